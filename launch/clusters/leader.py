"""What the first node of a run over ssh does beside its own part: it orders stage by stage, attempt by attempt."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import IO

from launch.clusters.company import SILENT_TICKS, TICK_SECONDS, Watch
from launch.clusters.due import due
from launch.clusters.itinerary import Itinerary, Leg
from launch.clusters.job import BAD_INPUT, again
from launch.clusters.records import Order, Record, Records
from launch.pipeline import summarize, write_summary
from rlhf.errors import ConfigError, RLHFError
from rlhf.recipe import load_recipe
from rlhf.store.unfinished import hold, is_held
from stages.lineage import is_current

AFTER_END_SECONDS = 10.0  # what others get once one node has ended badly: they lose their connection to it
SIGHT_SECONDS = 60.0  # until what another node has written is seen here
SEES_TICKS = 4  # between two looks for it
LOST = 137  # the code of a node that has fallen silent, or whose supervisor is another now

Steps = Generator[None, None, None]  # each step is one look; between two of them time passes


class Leader:
    """Its orders are numbered on from those of a predecessor, whose attempts count."""

    def __init__(self, run: Path, plan: Itinerary, records: Records, watch: Watch) -> None:
        self.run = run
        self.plan = plan
        self.records = records
        self.watch = watch
        self.before = records.order()
        self.number = self.before.number

    def lead(self) -> Steps:
        """All stages; ends with an order to end."""
        try:
            lock = yield from self._hold()
        except RLHFError as error:
            self._end("", "failed", str(error))
            return
        with lock:
            for leg in self.plan.legs:
                try:
                    result, told = yield from self._stage(leg)
                except RLHFError as error:  # a manifest that is damaged, say
                    result, told = "failed", "; ".join(error.problems)
                if result != "complete":
                    self._end(leg.stage, result, told)
                    return
            recipe = load_recipe(self.run / "recipe.yaml")
            write_summary(summarize(recipe, self.run), self.run)
            self._end("", "complete", "")

    def _hold(self) -> Generator[None, None, IO[str]]:
        """Hold the run directory, which may still be in a predecessor's hands."""
        yield from self._until(lambda: not is_held(self.run), SILENT_TICKS)
        return hold(self.run)

    def _stage(self, leg: Leg) -> Generator[None, None, tuple[str, str]]:
        """Result and what is to be said of it."""
        tried = self.before.attempt if self.before.stage == leg.stage else 0
        began = time.monotonic()
        if not (yield from self._due(leg)):
            return "complete", ""
        while True:
            tried += 1
            yield from self._gather(leg, tried)
            if self.records.cancelled:
                return "stopped", f"before attempt {tried}"
            self._give("run", leg, tried)
            code, told = yield from self._attempt(leg, began)
            seconds = leg.grace_seconds if self.records.cancelled or code is None else AFTER_END_SECONDS
            self._give("stop", leg, tried, seconds, told)
            yield from self._until(lambda: self._idle(leg), round((leg.grace_seconds + 60) / TICK_SECONDS))
            if (yield from self._seen(leg, code)):
                return "complete", ""
            if self.records.cancelled:
                return "stopped", f"attempt {tried} was cancelled"
            if code is None:
                return "stopped", f"{leg.hours:g} h have passed"
            print(f"{leg.stage}: attempt {tried} ended: {told}", flush=True)
            if code == 0:
                return "failed", "it ended without a complete result"
            if not again(code, tried, leg.retries):
                return "failed", f"attempt {tried}: {told}"

    def _due(self, leg: Leg) -> Generator[None, None, bool]:
        """Whether a stage is to run; what another node has written may be seen here later."""
        for _ in range(_ticks(SIGHT_SECONDS) // SEES_TICKS):
            try:
                return due(self.run, leg.stage)
            except ConfigError:
                if self.records.cancelled:
                    return True  # and is stopped before it begins
                yield from self._until(lambda: self.records.cancelled, SEES_TICKS)
        return due(self.run, leg.stage)

    def _gather(self, leg: Leg, attempt: int) -> Steps:
        """Wait until all nodes of a stage live, and nobody is left in its directory."""
        self._give("wait", leg, attempt - 1)
        while not self.records.cancelled:
            if leg.nodes <= self.watch.living and not is_held(self.run / leg.stage):
                return
            yield

    def _attempt(self, leg: Leg, began: float) -> Generator[None, None, tuple[int | None, str]]:
        """Wait until an attempt is over; its code, None where its time is up, and what is to be said of it."""
        trainers = range(len(leg.agents))
        while not self.records.cancelled:
            if leg.hours and time.monotonic() - began > leg.hours * 3600:
                return None, ""
            if lost := leg.nodes & self.watch.silent:
                return LOST, f"{self._names(lost)} fell silent"
            ended = self._ended(trainers)
            if len(ended) == len(trainers) and not any(ended.values()):
                return 0, ""
            if any(ended.values()):
                yield from self._until(lambda: self._ended(trainers).keys() == {*trainers}, _ticks(AFTER_END_SECONDS))
                return self._worst(self._ended(trainers))
            if self._ended(leg.nodes - {*trainers}):  # a server that cannot be had
                return 1, f"{self._names(self._ended(leg.nodes))}: its server does not answer"
            yield
        return 0, ""

    def _ended(self, nodes: Iterable[int]) -> dict[int, int]:
        """Codes of nodes whose part of the present order is over."""
        records = {node: self.records.record(node) for node in nodes}
        return {n: r.code for n, r in records.items() if r and r.order == self.number and r.state == "ended"}

    def _worst(self, codes: dict[int, int]) -> tuple[int, str]:
        """Bad input wins, for the others follow from it."""
        code = BAD_INPUT if BAD_INPUT in codes.values() else max(codes.values())
        where = self._names(node for node, each in codes.items() if each == code)
        return code, f"exit code {code} on {where}"

    def _idle(self, leg: Leg) -> bool:
        def idle(record: Record | None) -> bool:
            return record is not None and record.order == self.number and record.state == "idle"

        return all(idle(self.records.record(node)) for node in leg.nodes - self.watch.silent)

    def _complete(self, leg: Leg) -> bool:
        return is_current(load_recipe(self.run / "recipe.yaml"), self.run, leg.stage)

    def _seen(self, leg: Leg, code: int | None) -> Generator[None, None, bool]:
        """Whether a stage is complete; where all have ended well its result may be seen here later."""
        for _ in range(_ticks(SIGHT_SECONDS) // SEES_TICKS if code == 0 and not self.records.cancelled else 0):
            if self._complete(leg):
                return True
            yield from self._until(lambda: self.records.cancelled, SEES_TICKS)
        return self._complete(leg)

    def _until(self, holds: Callable[[], bool], ticks: int) -> Steps:
        for _ in range(ticks):
            if holds():
                return
            yield

    def _names(self, nodes: Iterable[int]) -> str:
        return ", ".join(self.plan.hosts[node].name for node in sorted(nodes))

    def _give(self, do: str, leg: Leg, attempt: int, seconds: float = AFTER_END_SECONDS, told: str = "") -> None:
        self.number += 1
        self.records.give(Order(self.number, do, leg.stage, attempt, seconds, told=told))  # type: ignore[arg-type]

    def _end(self, stage: str, result: str, told: str) -> None:
        self.number += 1
        self.records.give(Order(self.number, "end", stage, result=result, told=told))
        print(f"{stage or 'the run'}: {result}{f', {told}' if told else ''}", flush=True)


def _ticks(seconds: float) -> int:
    return round(seconds / TICK_SECONDS)
