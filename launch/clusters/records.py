"""What the nodes of a run over ssh tell each other, through files of the run directory.

    RUN/launch/orders.json       what is to be done now; written by the supervisor of the first node alone
               nodes/N.json      what node N does, and a count that says that it lives; by its supervisor alone
               cancel            that everything is to stop behind a checkpoint; by whoever wants that

Clocks of machines are not compared: who lives is known by a count that changes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from launch.clusters.submission import FOLDER

Do = Literal["wait", "run", "stop", "end"]
T = TypeVar("T")
READS = 5  # of one file, before it counts as damaged
WATCHED_SECONDS = 3.0  # longer than two beats, for one who looks only once


@dataclass(frozen=True)
class Order:
    """What the first node says."""

    number: int = 0  # each order has one of its own
    do: Do = "wait"
    stage: str = ""
    attempt: int = 0  # from 1
    seconds: float = 10.0  # what runs now gets to end behind a checkpoint
    result: str = ""  # of `end`: complete, failed, stopped
    told: str = ""  # for people


@dataclass(frozen=True)
class Record:
    """What a node says."""

    node: int
    host: str
    pid: int
    count: int  # grows every second
    order: int  # the number of that which it carries out
    state: Literal["idle", "running", "ended"] = "idle"
    code: int = 0  # of its agent, once it has ended
    serves: bool = False  # its servers of this order answer
    told: str = ""


class Records:
    """The files."""

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self.nodes = self.folder / "nodes"

    def order(self) -> Order:
        """What is to be done."""
        return _read(self.folder / "orders.json", lambda content: Order(**content)) or Order()

    def give(self, order: Order) -> None:
        """Have something done."""
        _write(self.folder / "orders.json", asdict(order))

    def record(self, node: int) -> Record | None:
        """What a node says."""
        return _read(self.nodes / f"{node}.json", lambda content: Record(**content))

    def say(self, record: Record) -> None:
        """Say what this node does."""
        _write(self.nodes / f"{record.node}.json", asdict(record))

    @property
    def cancelled(self) -> bool:
        """Whether everything is to stop."""
        return (self.folder / "cancel").exists()

    def cancel(self, why: str) -> None:
        """Have everything stop."""
        (self.folder / "cancel").write_text(why + "\n", encoding="utf-8")

    def forget(self) -> None:
        """Forget what nodes have said before, at the beginning of a launch."""
        self.nodes.mkdir(parents=True, exist_ok=True)
        for path in (self.folder / "cancel", self.folder / "orders.json", *self.nodes.glob("*.json")):
            path.unlink(missing_ok=True)

    def living(self, nodes: int) -> set[int]:
        """The nodes whose supervisor lives; takes as long as one must look."""
        before = {node: record for node in range(nodes) if (record := self.record(node))}
        if not before:
            return set()
        time.sleep(WATCHED_SECONDS)
        return {node for node, record in before.items() if self.record(node) not in (None, record)}


def _read(path: Path, made: Callable[[Any], T]) -> T | None:
    for _ in range(READS):
        try:
            return made(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):  # of network file systems, for a moment while it is replaced
            time.sleep(0.1)
    return None


def _write(path: Path, content: Any) -> None:
    """Whole or not at all; not flushed to the disk, for it is written every second and worth nothing afterwards."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)
