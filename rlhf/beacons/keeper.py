"""The thread that keeps this process's beacon, looks at the others, and ends the process when the stage must end."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from rlhf.beacons.collectives import Traffic
from rlhf.beacons.evidence import end_frozen, leave_stacks, leave_verdict
from rlhf.beacons.own import RAISED_IN, SIGNS
from rlhf.beacons.record import ABORTED, Beacon, pid_namespace, read_all, write
from rlhf.beacons.watchdog import BEAT_SECONDS, Limits, Order, Post, Watchdog

HUNG = 70  # the exit code of a rank that the watchdog has ended: EX_SOFTWARE of sysexits.h
LINGER_SECONDS = 2.5  # from the order to the end, in which all ranks see it and leave their stacks
WARNINGS = "warnings.txt"
LONGEST_WORD, LONGEST_FRAMES = 500, 3000  # characters
LIBRARIES = (f"{os.sep}site-packages{os.sep}", os.path.dirname(os.__file__), "<")
ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / name}{os.sep}" for name in ("rlhf", "data", "reward_models", "stages"))
PASSED_THROUGH = (
    str(ROOT / "rlhf" / "distributed.py"),
    f"{ROOT / 'rlhf' / 'beacons'}{os.sep}",
)  # who calls them says more


@dataclass(frozen=True)
class Channel:
    """How people are told."""

    warn: Callable[[str], None]  # of something that does not end the stage
    problem: Callable[[str], None]  # of what has ended it


class Keeper(threading.Thread):
    """Keeps the beacon of one rank from `start` to `end`."""

    def __init__(self, post: Post, limits: Limits, channel: Channel) -> None:
        super().__init__(name="beacon", daemon=True)
        process = psutil.Process()
        self.post = post
        self.channel = channel
        self.watchdog = Watchdog(post, limits) if post.ranks > 1 else None
        self.traffic = Traffic()
        self.lock = threading.RLock()
        self.ended = threading.Event()
        self.ending = False  # the watchdog ends this process
        self.failed = ""  # why the beacon could not be written
        self.beacon = Beacon(
            execution=post.execution,
            rank=post.rank,
            ranks=post.ranks,
            host=socket.gethostname(),
            pid=process.pid,
            born=process.create_time(),
            namespace=pid_namespace(),
            warn_seconds=limits.warn,
        )

    def start(self) -> None:
        """Write the first record, then one every second."""
        SIGNS.reset()
        self.post.directory.mkdir(parents=True, exist_ok=True)
        self.renew()
        super().start()

    def run(self) -> None:
        """See `start`."""
        while not self.ended.wait(BEAT_SECONDS):
            try:
                self.beat()
            except Exception as error:  # whatever it is, training is not its business; but it must be known
                self.complain(f"the watchdog failed: {type(error).__name__}: {error}")

    def beat(self) -> None:
        """Write where this process is, and look at the others."""
        self.renew()
        if self.failed or self.watchdog is None:  # who cannot write may not read what is there either
            return
        order = self.watchdog.look(self.beacon)
        for line in self.watchdog.lines:
            self.complain(line)
        self.watchdog.lines.clear()
        if order is not None:
            self.abort(order)

    def renew(self, **changes: Any) -> None:
        """Write the record anew."""
        with self.lock:
            if self.ended.is_set() and not changes:
                return
            now = time.monotonic()
            groups, wait = self.traffic.look(now)
            patience, left = SIGNS.patience_left(now)
            self.beacon = replace(
                self.beacon,
                count=self.beacon.count + 1,
                time=time.time(),
                phase=SIGNS.phase,
                loading=SIGNS.loading,
                phase_seconds=now - SIGNS.since,
                step=SIGNS.step,
                where=place_of_main_thread(),
                groups=groups,
                wait=wait,
                patience=patience,
                patience_seconds=left,
                unannounced_seconds=SIGNS.unannounced(now),
            )
            if changes:
                self.beacon = replace(self.beacon, **changes)
            try:
                write(self.post.directory, self.beacon)
                self.failed = ""
            except OSError as error:
                if not self.failed:
                    self.complain(f"{self.post.directory}: {error.strerror}; this stage is not watched meanwhile")
                self.failed = str(error)

    def end(self, state: str, word: str = "", error: BaseException | None = None) -> None:
        """Leave a last word, and where an error came from; does not return where the watchdog ends this process."""
        changes = {} if error is None else of_error(error)
        with self.lock:
            if not self.ending:
                self.ended.set()
                self.renew(state=state, word=word[:LONGEST_WORD], **changes)
                return
        while True:  # what has ended us follows from the end of the others
            time.sleep(1.0)

    def abort(self, order: Order) -> None:
        """End this process, having left its stacks; and with it the others, which see the order in our beacon."""
        with self.lock:
            if self.ended.is_set():
                return
            self.ending = True
        folder = Path(order.folder)
        if order.mine:
            leave_verdict(folder, order.verdict, read_all(self.post.directory))
            if not order.said:
                self.channel.problem(f"{order.verdict}; stacks in {folder}/, the same command goes on from there")
        self.renew(state=ABORTED, verdict=order.verdict, folder=order.folder)
        leave_stacks(folder, self.post.rank)
        time.sleep(LINGER_SECONDS)
        if order.mine:
            end_frozen(read_all(self.post.directory))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(HUNG)

    def complain(self, line: str) -> None:
        """Warn people, in the terminal and in a file."""
        self.channel.warn(line)
        try:
            with (self.post.directory / WARNINGS).open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError:
            return


def place_of_main_thread() -> str:
    """The line that the main thread is at, the innermost that is of no library: FILE:LINE in FUNCTION."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if is_telling(frame.f_code.co_filename):
            return place_of(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back
    return ""


def of_error(error: BaseException) -> dict[str, Any]:
    """What a last word says of an error: the phase, the place and the traceback's last lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_telling(frame.filename)]
    where = place_of(frames[-1].filename, frames[-1].lineno or 0, frames[-1].name) if frames else ""
    phase = getattr(error, RAISED_IN, None)
    text = "".join(traceback.format_exception(error))[-LONGEST_FRAMES:]
    return {"frames": text, "where": where} | ({"phase": phase} if phase else {})


def is_telling(file: str) -> bool:
    """Whether a file of code is ours or the user's, and says what is done."""
    if file.startswith(OURS):
        return not file.startswith(PASSED_THROUGH)
    return not any(part in file for part in LIBRARIES)


def place_of(file: str, line: int, function: str) -> str:
    """A line of code, for people."""
    return f"{Path(file).parent.name}/{Path(file).name}:{line} in {function}"
