"""Weights & Biases: one group per run, one W&B run per stage."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb

from rlhf.config import Recipe
from rlhf.types import Tracker

logger = logging.getLogger(__name__)


class WandbTracker:
    """Sends figures and tables to an open W&B run; `rlhf/step` is the step axis of all of them."""

    def __init__(self, run: Any) -> None:
        self.run = run
        run.define_metric("rlhf/step")
        run.define_metric("*", step_metric="rlhf/step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        self.run.log({"rlhf/step": step, **metrics})

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Record a table of samples."""
        columns: list[str | int] = list(rows[0]) if rows else []
        table = wandb.Table(columns=columns, data=[[row[str(column)] for column in columns] for row in rows])
        self.run.log({"rlhf/step": step, f"samples/{name}": table})

    def close(self) -> None:
        """Flush and end the run."""
        self.run.finish()


def open_wandb(recipe: Recipe, stage: str, directory: Path) -> Tracker:
    """Start the W&B run of a stage; a run that cannot start is said once and costs no figure, for jsonl has them."""
    from rlhf.tracking import NullTracker

    try:
        run = wandb.init(
            project=recipe.tracking.wandb.project,
            group=recipe.name,
            name=f"{recipe.name}-{stage}",
            job_type=stage,
            dir=directory,
            mode=_mode(recipe),
            config=recipe.model_dump(),
            settings=wandb.Settings(silent=True, console="off"),
        )
    except Exception as error:  # whatever the network or the service raises must not end a training
        logger.warning("tracking.wandb: no run could be started (%s); metrics.jsonl has all figures", error)
        return NullTracker()
    return WandbTracker(run)


def _mode(recipe: Recipe) -> Literal["online", "offline", "disabled"]:
    mode = recipe.tracking.wandb.mode
    if mode == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return mode
