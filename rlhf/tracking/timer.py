"""Seconds per phase of a step; the process's beacon tells the phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf import beacons


class PhaseTimer:
    """Adds up wall-clock seconds by phase until they are taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as part of a phase."""
        started = time.perf_counter()
        try:
            with beacons.phase(name):
                yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """The metrics `perf/seconds_PHASE`; starts again from zero."""
        taken = {f"perf/seconds_{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds.clear()
        return taken

    def speed(self, tokens: float) -> dict[str, float]:
        """The phases' seconds and the metric `perf/tokens_per_second` of so many tokens; starts again from zero."""
        seconds = self.take()
        return {"perf/tokens_per_second": tokens / sum(seconds.values()), **seconds}
