"""Looks at the beacons of all ranks, tells early what is wrong, and decides late that a stage cannot go on.

Rank 0 and the last rank, which several machines have apart, look at all ranks; each other rank looks at these two, and
takes over where neither gives a sign. Clocks of hosts are not compared: what counts is whether a beacon changes while
our own clock goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.beacons.diagnosis import GONE_SECONDS, UNCLEAR_SECONDS, Finding, Observed, diagnose, named
from rlhf.beacons.record import HANG, RUNNING, Beacon, is_frozen, is_gone, read

BEAT_SECONDS = 1.0
READ_PER_BEAT = 32  # beacons of others, so that a look costs the same among thousands of ranks
UNABLE_SECONDS = UNCLEAR_SECONDS  # without a sign, after which another rank watches in its place


@dataclass(frozen=True)
class Limits:
    """When something that is wrong is told, and when it ends the stage; seconds."""

    warn: float
    abort: float


@dataclass(frozen=True)
class Post:
    """One rank of one execution, and where its beacon stands."""

    stage: str
    output: Path  # the stage's directory
    directory: Path  # of beacons
    execution: str
    rank: int
    ranks: int


@dataclass(frozen=True)
class Order:
    """The stage is to be ended."""

    verdict: str
    folder: str
    mine: bool  # whether this rank has decided it
    said: bool = False  # whether the rank that it is about has told people itself


class Sight:
    """The beacons of other ranks, and since when each has not changed by our clock."""

    def __init__(self, post: Post) -> None:
        self.post = post
        # Of each rank its beacon, when that changed and when it was looked at: between two looks nobody is silent.
        self.last: dict[int, tuple[Beacon, float, float]] = {}
        self.next = 0

    def look_around(self, now: float) -> None:
        """Read the next beacons: all of them, or where there are very many, some at a time."""
        ranks = min(self.post.ranks, READ_PER_BEAT)
        self.look([(self.next + number) % self.post.ranks for number in range(ranks)], now)
        self.next += ranks

    def look(self, ranks: Sequence[int], now: float) -> None:
        """Read some beacons."""
        for rank in ranks:
            beacon = read(self.post.directory, rank)
            known = self.last.get(rank)
            if beacon is None or beacon.execution != self.post.execution:
                continue
            changed = known is None or known[0].count != beacon.count
            self.last[rank] = (beacon, now, now) if known is None or changed else (beacon, known[1], now)

    def forgive(self, now: float) -> None:
        """We were away ourselves: nobody's silence before now counts."""
        self.last = {rank: (beacon, now, now) for rank, (beacon, _, _) in self.last.items()}

    def observed(self) -> list[Observed]:
        """What was read, by rank."""
        found = []
        for beacon, changed, looked in (self.last[rank] for rank in sorted(self.last)):
            quiet = looked - changed
            lasting = beacon.state == RUNNING and quiet >= GONE_SECONDS
            found.append(Observed(beacon, quiet, lasting and is_gone(beacon), lasting and is_frozen(beacon)))
        return found

    def able(self, rank: int, now: float) -> bool:
        """Whether a rank is there to watch."""
        known = self.last.get(rank)
        return known is not None and known[0].state == RUNNING and now - known[1] < UNABLE_SECONDS


class Watchdog:
    """What one rank makes of what it sees."""

    def __init__(self, post: Post, limits: Limits) -> None:
        self.post = post
        self.limits = limits
        self.sight = Sight(post)
        self.started = self.looked = time.monotonic()
        self.told: dict[tuple[str, tuple[int, ...]], float] = {}  # what people were warned of
        self.lines: list[str] = []  # warnings to say, taken by whoever calls `look`
        self.absent_told = False

    @property
    def watchers(self) -> list[int]:
        """Who looks at all ranks, the first that can; the others follow."""
        return sorted({0, self.post.ranks - 1})

    def look(self, own: Beacon) -> Order | None:
        """One look at the others; the order to end the stage, if it was given or must be."""
        now, rank = time.monotonic(), self.post.rank
        if now - self.looked > UNABLE_SECONDS:  # this process was stopped, or the machine
            self.sight.forgive(now)
        self.looked = now
        self.sight.look(self.watchers, now)
        if rank in self.watchers or not any(self.sight.able(watcher, now) for watcher in self.watchers):
            self.sight.look_around(now)
        others = [each for each in self.sight.observed() if each.beacon.rank != rank]
        for beacon in (each.beacon for each in others):
            if beacon.verdict:
                return Order(beacon.verdict, beacon.folder, mine=False)
        before = [*self.watchers, *range(self.post.ranks)]
        if any(self.sight.able(other, now) for other in before[: before.index(rank)]):
            return None  # one that comes before us watches
        return self.judge([*others, Observed(own, 0.0)], now)

    def judge(self, seen: list[Observed], now: float) -> Order | None:
        """Warn of what is wrong; the order to end the stage where it has been so for too long."""
        seen.sort(key=lambda each: each.beacon.rank)
        findings = diagnose(seen, self.limits.warn)
        self._warn(findings, now)
        self._miss(seen, now)
        for finding in findings:
            if finding.certain and min(e.quiet for e in seen if e.beacon.rank == finding.ranks[0]) < GONE_SECONDS:
                continue  # the others may end by themselves
            if finding.certain or (finding.seconds >= self.limits.abort and not finding.loading):
                folder = self.post.output / HANG / time.strftime("%Y%m%d-%H%M%S")
                return Order(finding.text, str(folder), mine=True, said=finding.said)
        return None

    def _warn(self, findings: Sequence[Finding], now: float) -> None:
        present = {(finding.kind, finding.ranks) for finding in findings}
        for key in self.told.keys() - present:
            seconds = now - self.told.pop(key)
            if not any(finding.certain for finding in findings):
                self.lines.append(f"{named(key[1])} went on after {seconds:.0f} s more")
        for finding in findings:
            key = finding.kind, finding.ranks
            if finding.certain or key in self.told:
                continue
            self.told[key] = now
            loading = finding.loading
            end = "" if loading else f"; the stage is ended after {self.limits.abort:g} s (watchdog.abort_seconds)"
            self.lines.append(f"{finding.text}{end}")

    def _miss(self, seen: Sequence[Observed], now: float) -> None:
        """Ranks without a beacon are not watched: their file system may be another."""
        absent = set(range(self.post.ranks)) - {each.beacon.rank for each in seen}
        if absent and not self.absent_told and now - self.started > self.limits.warn:
            self.absent_told = True
            where = f"{self.post.directory} on a file system of all machines"
            self.lines.append(f"{named(absent)} has no beacon, and is not watched; beacons need {where}")
