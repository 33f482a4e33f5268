"""Where figures go: metrics.jsonl always, Weights & Biases when wanted, the terminal for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.config import Recipe
from rlhf.tracking.jsonl import JsonlTracker
from rlhf.types import Tracker


class NullTracker:
    """Takes everything, keeps nothing: for ranks other than the main one."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Drop metrics."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Drop a table."""

    def close(self) -> None:
        """Do nothing."""


class Trackers:
    """Hands everything to several trackers."""

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

    def close(self) -> None:
        """Flush and end."""
        for tracker in self.trackers:
            tracker.close()


def open_tracker(recipe: Recipe, stage: str, directory: Path, resumed: bool = False) -> Tracker:
    """The trackers that a recipe asks for, writing to a stage's directory.

    resumed: the directory holds the figures of an earlier execution, cut back to the checkpoint; they go on.
    """
    trackers: list[Tracker] = []
    if recipe.tracking.wandb.mode != "disabled":
        from rlhf.tracking.wandb import open_wandb

        trackers.append(open_wandb(recipe, stage, directory, resumed))
    return Trackers([JsonlTracker(directory), *trackers])
