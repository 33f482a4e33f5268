"""The thread that keeps this process's beacon, looks at the others, and ends the process when the stage must end."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from rlhf.beacons.collectives import Traffic
from rlhf.beacons.evidence import end_frozen, leave_stacks, leave_verdict
from rlhf.beacons.own import RAISED_IN, SIGNS
from rlhf.beacons.record import ABORTED, Beacon, Wait, pid_namespace, read_all, write
from rlhf.beacons.watchdog import BEAT_SECONDS, Limits, Order, Post, Watchdog

HUNG = 70  # the exit code of a rank that the watchdog has ended: EX_SOFTWARE of sysexits.h
LINGER_SECONDS = 2.5  # from the order to the end, in which all ranks see it and leave their stacks
LONGEST_ABORT_SECONDS = 8.0  # from the order to the end, if what is left cannot be written
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
        self.unread = False  # whether it was said that collectives cannot be read
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
            groups, wait = self._traffic(now)
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

    def _traffic(self, now: float) -> tuple[dict[str, tuple[int, float]], Wait | None]:
        """This process's collectives; none where they cannot be read, which is said once and stops no beacon."""
        try:
            return self.traffic.look(now)
        except Exception as error:
            if not self.unread:
                self.complain(f"collectives cannot be read, so that ranks apart are not found: {error!r}")
            self.unread = True
            return {}, None

    def end(self, state: str, word: str = "", error: BaseException | None = None) -> None:
        """Leave a last word, and where an error came from; does not return where the watchdog ends this process.

        Raises nothing: the stage's own error would be lost behind it. May be called again with another last word.
        """
        with self.lock:
            if not self.ending:
                self.ended.set()
                try:
                    changes = {} if error is None else of_error(error)
                    self.renew(state=state, word=word[:LONGEST_WORD], **changes)
                except Exception as failure:
                    self.complain(f"the beacon has no last word: {type(failure).__name__}: {failure}")
                return
        while True:  # what has ended us follows from the end of the others
            time.sleep(1.0)

    def abort(self, order: Order) -> None:
        """End this process, having left its stacks; and with it the others, which see the order in our beacon."""
        with self.lock:
            if self.ended.is_set():
                return
            self.ending = True
        # Whatever is written below may fail or never return: a full disk, a lost file system, a pipe nobody reads.
        last = threading.Timer(LONGEST_ABORT_SECONDS, os._exit, (HUNG,))
        last.daemon = True
        try:
            last.start()
            try:
                self._leave(order)
                time.sleep(LINGER_SECONDS)
            finally:
                if order.mine:
                    end_frozen(read_all(self.post.directory))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(HUNG)

    def _leave(self, order: Order) -> None:
        """The order for the others to see, the verdict for people, the stacks of this process."""
        folder = Path(order.folder)
        before = read_all(self.post.directory) if order.mine else []
        self.renew(state=ABORTED, verdict=order.verdict, folder=order.folder)
        if order.mine:
            leave_verdict(folder, order.verdict, before)
            if not order.said:
                with suppress(OSError, ValueError):  # nobody can be told
                    self.channel.problem(f"{order.verdict}; stacks in {folder}/, the same command goes on from there")
        leave_stacks(folder, self.post.rank)

    def complain(self, line: str) -> None:
        """Warn people, in the terminal and in a file."""
        with suppress(OSError, ValueError):  # a terminal that is gone
            self.channel.warn(line)
        with suppress(OSError), (self.post.directory / WARNINGS).open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


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
