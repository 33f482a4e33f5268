"""Beacons of ranks that are not there, in memory and as files that stand in for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.beacons.record import Beacon, Wait, write
from rlhf.beacons.watchdog import Limits, Post, Watchdog

WORLD, PAIR = "0:gloo", "3:gloo"
LIMITS = Limits(warn=20, abort=300)


def beacon(rank: int, number: int = 56, seconds: float = 0.0, ranks: int = 2, **fields: Any) -> Beacon:
    """A rank that has begun so many collectives, the last of them so long ago."""
    values: dict[str, Any] = {"host": f"host{rank}", "pid": 100 + rank, "phase": "collect/score", "step": 3}
    values |= {"born": 0.0, "groups": {WORLD: (number, seconds)}}
    return Beacon(execution="e", rank=rank, ranks=ranks, **values | fields)


def waiting(rank: int, number: int, seconds: float, operation: str = "all_reduce", **fields: Any) -> Beacon:
    """A rank that is in a collective."""
    return beacon(rank, number, seconds, **{"wait": Wait(WORLD, number, operation, "[4]"), **fields})


class Others:
    """Files that stand in for the other ranks of a stage, and the clock."""

    def __init__(self, folder: Path, rank: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now, self.counts = folder, 1000.0, dict.fromkeys(range(ranks), 0)
        monkeypatch.setattr("rlhf.beacons.watchdog.time.monotonic", lambda: self.now)
        self.watchdog = Watchdog(Post("ppo", folder, folder, "e", rank, ranks), LIMITS)
        self.rank = rank

    def beat(self, own: Beacon, *others: Beacon, seconds: float = 1.0) -> Any:
        """The others renew their beacons, then this rank looks."""
        self.now += seconds
        for each in others:
            self.counts[each.rank] += 1
            write(self.folder, replace(each, count=self.counts[each.rank]))
        return self.watchdog.look(own)

    def lines(self) -> list[str]:
        taken, self.watchdog.lines = self.watchdog.lines, []
        return taken
