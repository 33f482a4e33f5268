"""How what is measured takes turns with another process: a line on its input for each update, one of JSON back."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

MARK = "bench "  # before each line of ours, for libraries print what they like


class Turns:
    """The side that is measured."""

    def __init__(self) -> None:
        # Libraries may print; what is measured is said on a copy of the descriptor that they do not know.
        self.out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.phases: dict[str, float] = {}

    def ready(self, **facts: Any) -> None:
        """All is loaded."""
        self._say(ready=facts)
        if not self._told():
            sys.exit(0)

    def done(self, seconds: float, **facts: Any) -> bool:
        """One update is done; whether there shall be another."""
        self._say(seconds=seconds, phases=self.phases, peak_memory_bytes=peak_memory(), **facts)
        self.phases = {}
        return self._told()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, time is added to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - started

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time is added to a phase."""

        def measured(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **options)

        return measured

    def _say(self, **facts: Any) -> None:
        self.out.write(MARK + json.dumps(facts) + "\n")

    def _told(self) -> bool:
        return bool(sys.stdin.readline().strip())


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
