"""The process that feeds the trackers of one stage from the stage's own files: `python -m rlhf.tracking.sender`.

Standard input is one line with a Job, then, when the stage ends, one line with its manifest or null; standard output is
one line with what could not be sent, by service. Whatever a server or a library does, the stage does not wait for it:
the two share nothing but files. Dies with the stage that started it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rlhf.tracking.entries import Entries
from rlhf.tracking.services import Job, Service, services_of

POLL_SECONDS = 1.0  # between two looks at the stage's files
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0  # seconds before a service that failed is tried again
AWAY_SECONDS = 1.0  # at the end, for an answer of a server that has failed before, unless that took longer itself
LOCAL_SECONDS = 60.0  # at the end, for files of this machine and for loading libraries
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Feeder(threading.Thread):
    """Feeds one service; what fails is tried again from the beginning, for a service knows what it has."""

    def __init__(self, service: Service, directory: Path) -> None:
        super().__init__(name=service.name, daemon=True)
        self.service = service
        self.directory = directory
        self.result: Mapping[str, Any] | None = None
        self.closing = threading.Event()
        self.waiting_since: float | None = None  # in a call that may be waiting for a server
        self.called = 0.0  # seconds of the latest call that has ended
        self.answered = False  # the server, to the latest call that has ended
        self.failures = 0
        self.silent = False  # the latest failure was that no answer came, so another try would take as long
        self.problem: str | None = "nothing was sent"
        self.sent = 0  # entries

    def run(self) -> None:
        """Until everything was sent behind the end of the stage."""
        pause = FIRST_PAUSE
        while True:
            last = self.closing.is_set()
            try:
                self._feed()
                self.problem = None
                return
            except Exception as error:  # whatever a network or a library raises
                self.answered = False
                self.failures += 1
                self.silent = self.called > AWAY_SECONDS
                self.problem = one_line(error)
                print(f"{self.service.name}: {self.problem}", file=sys.stderr, flush=True)
            if last or (self.closing.wait(pause) and self.silent):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _feed(self) -> None:
        entries = Entries(self.directory)
        with self._call():
            self.service.open()
        while True:
            ending = self.closing.is_set()
            if found := entries.take(everything=ending):
                with self._call():
                    self.service.send(found)
                self.sent += len(found)
            if ending:
                break
            self.closing.wait(POLL_SECONDS)
        with self._call():
            self.service.finish(self.result)

    @contextmanager
    def _call(self) -> Iterator[None]:
        self.waiting_since = time.monotonic()
        try:
            yield
        finally:
            self.called = time.monotonic() - self.waiting_since
            self.waiting_since = None
        self.answered, self.silent = True, False

    def close(self, result: Mapping[str, Any] | None) -> None:
        """The stage has ended: send the rest."""
        self.result = result
        self.closing.set()

    def in_vain(self, closed: float, job: Job) -> bool:
        """Whether there is no use in waiting any longer; closed: when the stage ended."""
        now = time.monotonic()
        if not self.service.remote:
            return now - closed > LOCAL_SECONDS
        if now - closed > job.seconds:
            return True
        waiting_since = self.waiting_since
        if self.answered or waiting_since is None:
            return False
        return self.silent or now - waiting_since > (AWAY_SECONDS if self.failures else job.patience)


def one_line(error: BaseException) -> str:
    """What an exception says, short and on one line."""
    while deeper := error.__cause__ or error.__context__:  # below what libraries make of it stands why
        error = deeper
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    said = " ".join(str(error).split())
    return (said if len(said) <= 120 else said[:120] + "...") or type(error).__name__


def follow_parent() -> None:
    """End with the process that started us, and leave signals to it: they come to its whole group."""
    parent = os.getppid()
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
    if os.getppid() != parent:
        leave()


def leave() -> None:
    """End at once, with whatever the libraries have started: their own ending may wait for servers."""
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)


def settle(feeders: Sequence[Feeder], job: Job) -> dict[str, str]:
    """Wait for all that is worth waiting for; by service, why it has not got everything."""
    closed = time.monotonic()
    problems = {}
    for feeder in feeders:
        while feeder.is_alive() and not feeder.in_vain(closed, job):
            feeder.join(0.02)
        if feeder.is_alive():
            problems[feeder.service.name] = (
                "the server does not answer" if feeder.service.remote else "it takes too long"
            )
        elif feeder.problem is not None:
            problems[feeder.service.name] = feeder.problem
    return problems


def main() -> None:
    """Feed until the stage ends, then for as long as it may wait."""
    follow_parent()
    job = Job.parse(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    feeders = [Feeder(service, Path(job.directory)) for service in services_of(job)]
    for feeder in feeders:
        feeder.start()
    line = sys.stdin.readline()
    if not line:  # it died
        leave()
    for feeder in feeders:
        feeder.close(json.loads(line))
    problems = settle(feeders, job)
    answers.write(json.dumps({"problems": problems, "sent": {feeder.service.name: feeder.sent for feeder in feeders}}))
    answers.close()
    leave()


if __name__ == "__main__":
    main()
