"""Who of a run's nodes lives, and starting those again that do not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from launch.clusters.hosts import LOCALHOST
from launch.clusters.itinerary import Itinerary
from launch.clusters.records import Records
from launch.clusters.ssh import Answer, ask_one

TICK_SECONDS = 0.5
SILENT_TICKS = 30  # looks, not seconds: a file system that stands still for all makes nobody silent
RESCUE_SECONDS = 15.0  # between two attempts to start a node


class Watch:
    """Whose count has changed lately."""

    def __init__(self, records: Records, nodes: int) -> None:
        self.records = records
        self.counts: dict[int, tuple[int, int]] = {}  # pid and count, by node
        self.changed: set[int] = set()  # nodes of which there was more than a file that somebody left
        self.quiet = dict.fromkeys(range(nodes), 0)  # looks in which neither has changed

    def look(self) -> None:
        """Look once."""
        for node in self.quiet:
            record = self.records.record(node)
            seen = (record.pid, record.count) if record else None
            if seen and seen != self.counts.get(node):
                if node in self.counts:
                    self.changed.add(node)
                self.counts[node] = seen
                self.quiet[node] = 0
            else:
                self.quiet[node] += 1

    @property
    def silent(self) -> set[int]:
        """Nodes that have given no sign for long."""
        return {node for node, looks in self.quiet.items() if looks > SILENT_TICKS}

    @property
    def living(self) -> set[int]:
        """The others, as far as one has come while we looked."""
        return self.changed - self.silent


class Rescue:
    """Starts silent nodes, one attempt for all of them at a time, beside everything else."""

    def __init__(self, plan: Itinerary) -> None:
        self.plan = plan
        self.pool = ThreadPoolExecutor(8)
        self.under_way: list[Future[Answer]] = []
        self.last = time.monotonic()
        self.told = ""

    def look(self, silent: Iterable[int]) -> str:
        """Try to start them if it is time to; what is to be said of the attempt before."""
        nodes = [node for node in silent if self.plan.hosts[node].name != LOCALHOST]
        if not nodes:
            self.told = ""
            return ""
        if time.monotonic() - self.last > RESCUE_SECONDS and all(each.done() for each in self.under_way):
            problems = [each.result().problem for each in self.under_way if each.result().problem]
            told = "; ".join(dict.fromkeys(problems))
            if told and told != self.told:
                print(told, flush=True)
            self.told, self.last = told, time.monotonic()
            self.under_way = [self.pool.submit(ask_one, self.plan, node, "start") for node in nodes]
        return self.told

    def close(self) -> None:
        """Wait for nobody."""
        self.pool.shutdown(wait=False, cancel_futures=True)
