"""What a stage is asked from outside while it runs.

    SIGUSR1                  write a checkpoint at the next step and go on
    SIGTERM, SIGINT, SIGHUP  write a checkpoint at the next step, then end with exit code 75; a second one ends at once

While a stage loads or evaluates there is nothing to write, and the first such signal ends it directly. Exit code 75 is
EX_TEMPFAIL of sysexits.h: the same command goes on from where this one stopped.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

RESUMABLE = 75
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# torchrun's agent hands on to its workers what a scheduler or a terminal has sent to the whole group already.
SAME_SIGNAL_SECONDS = 1.0


# The file in which the launcher says which signal it has received: it hands all of them on as SIGTERM.
RECEIVED = "RLHF_SIGNAL"


class Stopped(BaseException):
    """The stage ends early, by a signal or because it was to stop after a step; `code` is its exit code.

    No Exception: libraries that survive any of those would go on.
    """

    def __init__(self, reason: str, code: int) -> None:
        self.reason = reason
        self.code = code
        super().__init__(reason)


class Signals:
    """Remembers the signals that came, for whoever asks at the next step."""

    def __init__(self) -> None:
        self.checkpoint = False
        self.stop: signal.Signals | None = None
        self.stopped_at = 0.0
        self.waiting = False  # a step or a file is not finished: the signal has to wait

    def install(self) -> None:
        """Take over the process's signals; only its main thread can."""
        signal.signal(signal.SIGUSR1, self._note_checkpoint)
        for number in STOP:
            signal.signal(number, self._note_stop)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal to stop is noted and nothing is interrupted."""
        outer, self.waiting = self.waiting, True
        try:
            yield
        finally:
            self.waiting = outer

    def take_checkpoint(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        asked, self.checkpoint = self.checkpoint, False
        return asked

    def _note_checkpoint(self, number: int, frame: FrameType | None) -> None:
        self.checkpoint = True

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop is not None:
            if time.monotonic() - self.stopped_at > SAME_SIGNAL_SECONDS:
                os._exit(128 + number)  # who asks twice means it
            return
        self.stop, self.stopped_at = received(number), time.monotonic()
        if not self.waiting:
            raise Stopped(self.stop.name, RESUMABLE)


def received(number: int) -> signal.Signals:
    """The signal that was sent to the launcher, if there is one and it says so, else the one that came here."""
    try:
        return signal.Signals[Path(os.environ[RECEIVED]).read_text(encoding="utf-8")]
    except (KeyError, OSError):
        return signal.Signals(number)
