"""The ppo stage, with the seconds that it spends in its trackers added up: `python waiting.py FILE --recipe ...`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.tracking import open_tracker
from rlhf.types import Tracker
from stages import context
from stages.command import run_stage
from stages.ppo import main


class Waiting:
    """Adds up what calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call that is added up."""

        def measured(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.perf_counter() - started

        return measured

    def open(self, *arguments: Any) -> Tracker:
        """In place of `open_tracker`."""
        tracker: Tracker = self.timed(open_tracker)(*arguments)
        for name in ("log", "table", "result", "close"):
            setattr(tracker, name, self.timed(getattr(tracker, name)))
        return tracker


if __name__ == "__main__":
    waiting, file = Waiting(), Path(sys.argv.pop(1))
    context.open_tracker = waiting.open
    try:
        run_stage("ppo", main)
    finally:
        file.write_text(str(waiting.seconds))
