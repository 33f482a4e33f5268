"""Where figures go: metrics.jsonl at once, W&B, TensorBoard and MLflow behind it, the terminal for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config import Recipe
from rlhf.tracking.jsonl import JsonlTracker
from rlhf.types import Tracker


class NullTracker:
    """Takes everything, keeps nothing: for ranks other than the main one."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Drop metrics."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Drop a table."""

    def result(self, manifest: Mapping[str, Any]) -> None:
        """Drop a manifest."""

    def close(self) -> None:
        """Do nothing."""


class Trackers:
    """Hands everything to several trackers, in their order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Record a table of samples."""
        for tracker in self.trackers:
            tracker.table(step, name, rows)

    def result(self, manifest: Mapping[str, Any]) -> None:
        """Record what the stage has made."""
        for tracker in self.trackers:
            tracker.result(manifest)

    def close(self) -> None:
        """Flush and end."""
        for tracker in self.trackers:
            tracker.close()


def to_stderr(line: str) -> None:
    """Tell people of something that is wrong."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Place:
    """The execution of a stage that is tracked."""

    stage: str
    directory: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)  # directories of the stages that it starts from
    resumed: bool = False  # the directory holds an earlier execution's figures, cut back to the checkpoint; they go on


def open_tracker(recipe: Recipe, place: Place, warn: Callable[[str], None] = to_stderr) -> Tracker:
    """The trackers that a recipe asks for: metrics.jsonl, and behind it a process for the others, if there are any.

    Raises ConfigError where the package of a tracker is missing.
    """
    from rlhf.tracking.services import Job, remembered_ids, require_packages, wanted

    tracking = wanted(recipe)
    trackers: list[Tracker] = [JsonlTracker(place.directory)]
    if tracking:
        from rlhf.tracking.background import BackgroundTrackers

        require_packages(recipe.tracking)
        job = Job(
            directory=str(place.directory.resolve()),
            stage=place.stage,
            recipe=recipe.model_dump(),
            tracking=tracking,
            inputs={name: str(directory.resolve()) for name, directory in place.inputs.items()},
            ids=remembered_ids(place.directory, tracking, place.resumed),
            process=os.getpid(),
            seconds=recipe.tracking.close_seconds,
        )
        trackers.append(BackgroundTrackers(job, warn))
    return Trackers(trackers)
