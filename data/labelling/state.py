"""What the server last said of a project's tasks, so that only what has changed since is asked for again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.labelling.ledger import STATE, damaged, digest_of, read_lines, write_lines

KEPT = ("id", "completed_by", "updated_by", "created_at", "updated_at", "lead_time", "was_cancelled", "result")


@dataclass
class TaskState:
    """One task with annotations."""

    id: int
    pair: str  # the id of its pair; empty where it has none
    updated_at: str
    shown: str  # what people saw, as `ledger.digest_of` tells it
    annotations: list[dict[str, Any]]
    deleted: list[dict[str, Any]] = field(default_factory=list)  # those that the server had once


@dataclass
class State:
    """All tasks with annotations."""

    tasks: dict[int, TaskState] = field(default_factory=dict)
    newest: str = ""  # when the newest change of any task was made that has been seen

    @classmethod
    def load(cls, directory: Path) -> State:
        """What stands in a directory. Raises ArtifactError where it is damaged."""
        lines = read_lines(directory / STATE)
        try:
            newest = next(lines, {"newest": ""})["newest"]
            return cls({line["id"]: TaskState(**line) for line in lines}, newest)
        except (TypeError, KeyError) as error:
            raise damaged(directory / STATE, error) from error

    def write(self, directory: Path) -> None:
        """Write it."""
        write_lines(directory / STATE, [{"newest": self.newest}, *(vars(task) for task in self.tasks.values())])

    def take(self, task: Mapping[str, Any]) -> None:
        """Take up a task of the server's export, and keep what it held before and holds no more."""
        number: int = task["id"]
        known = self.tasks.get(number)
        shown, pair = digest_of(task["data"]), task["data"].get("pair_id")
        found = [{name: record.get(name) for name in KEPT} for record in task["annotations"]]
        made = TaskState(number, pair if isinstance(pair, str) else "", task["updated_at"], shown, found)
        made.deleted += known.deleted if known else []
        if known is not None:
            now = {record["id"]: record for record in found}
            for old in known.annotations:
                new = now.get(old["id"])
                if new is None:
                    made.deleted.append(old)
                elif _is_edited(new):
                    own = old.get("before") if _is_edited(old) else old
                    new |= {"before": own} if own else {}
        if made.annotations or made.deleted:
            self.tasks[number] = made

    def lose(self, number: int) -> None:
        """A task is gone from the server, and all annotations with it."""
        task = self.tasks[number]
        task.deleted += task.annotations
        task.annotations, task.updated_at = [], ""


def _is_edited(record: Mapping[str, Any]) -> bool:
    return record["updated_by"] is not None and record["updated_by"] != record["completed_by"]
