"""Weights & Biases: one group per run, one W&B run per stage."""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet
import wandb

from rlhf.config import Recipe
from rlhf.store.artifact import write_text
from rlhf.types import Tracker

logger = logging.getLogger(__name__)


class WandbTracker:
    """Sends figures and tables to an open W&B run; `rlhf/step` is the step axis of all of them.

    known: the last step that the run has already, from an execution before this one; -1 for none. Resumed stages repeat
    the steps behind their checkpoint with the same figures, and those are not sent again.
    """

    def __init__(self, run: Any, known: int = -1) -> None:
        self.run = run
        self.known = known
        run.define_metric("rlhf/step")
        run.define_metric("*", step_metric="rlhf/step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        if step > self.known:
            self.run.log({"rlhf/step": step, **metrics}, step=step)
        elif step == self.known:  # the closing figures of a stage stand at its last step, which the run may have
            self.run.summary.update(metrics)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Record a table of samples."""
        if step > self.known:
            columns: list[str | int] = list(rows[0]) if rows else []
            table = wandb.Table(columns=columns, data=[[row[str(column)] for column in columns] for row in rows])
            self.run.log({"rlhf/step": step, f"samples/{name}": table}, step=step)

    def close(self) -> None:
        """Flush and end the run."""
        self.run.finish()

    def replay(self, directory: Path) -> None:
        """Send what the stage's own files have and the run does not: a kill takes what was still on its way."""
        tables: dict[int, list[Path]] = {}
        for path in sorted((directory / "samples").glob("*-*.parquet")):
            tables.setdefault(int(path.stem.rpartition("-")[2]), []).append(path)
        path = directory / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for step, group in groupby(map(json.loads, lines), lambda line: int(line["step"])):
            for line in group:
                self.log(step, {key: value for key, value in line.items() if key not in ("step", "time")})
            for path in tables.pop(step, []):
                self.table(step, path.stem.rpartition("-")[0], pyarrow.parquet.read_table(path).to_pylist())


def open_wandb(recipe: Recipe, stage: str, directory: Path, resumed: bool) -> Tracker:
    """Start the W&B run of a stage, or go on with it under the id that the stage's directory keeps.

    A run that cannot start is said once and costs no figure, for jsonl has them.
    """
    from rlhf.tracking import NullTracker

    mode, own = _mode(recipe), directory / "wandb"
    identity = own / "id"
    try:
        own.mkdir(parents=True, exist_ok=True)
        if not (resumed and identity.is_file()):
            write_text(identity, uuid.uuid4().hex[:8])
        run_id = identity.read_text(encoding="utf-8")
        if mode == "offline":  # such a run cannot be gone on with, so it is written once more, whole
            for earlier in own.glob(f"offline-run-*-{run_id}"):
                shutil.rmtree(earlier)
        run = wandb.init(
            project=recipe.tracking.wandb.project,
            group=recipe.name,
            name=f"{recipe.name}-{stage}",
            id=run_id,
            resume=None if mode == "offline" else "allow",
            job_type=stage,
            dir=directory.absolute(),  # the service that writes may have another working folder
            mode=mode,
            config=recipe.model_dump(),
            settings=wandb.Settings(silent=True, console="off"),
        )
        tracker = WandbTracker(run, run.starting_step - 1)
        tracker.replay(directory)
    except Exception as error:  # whatever the network or the service raises must not end a training
        logger.warning("tracking.wandb: no run could be started (%s); metrics.jsonl has all figures", error)
        return NullTracker()
    return tracker


def _mode(recipe: Recipe) -> Literal["online", "offline", "disabled"]:
    mode = recipe.tracking.wandb.mode
    if mode == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return mode
