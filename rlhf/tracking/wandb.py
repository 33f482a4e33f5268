"""Weights & Biases: one group per run, one W&B run per stage, artifacts from stage to stage.

The W&B run keeps its id in STAGE/wandb/id. Online it is resumed, and steps that the server has are not sent twice.
Offline a run cannot be gone on with, so its file is written once more, whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from rlhf.config import WandbConfig
from rlhf.tracking.artifacts import log_lineage
from rlhf.tracking.entries import Entry, Line, Table
from rlhf.tracking.public import public
from rlhf.tracking.services import Job, forget_sent, note_sent

STAGING = "artifacts"
INIT_SECONDS = 90.0  # W&B's own default; it waits in a process of its own


class WandbService:
    """The W&B run of a stage; `rlhf/step` is the step axis of all figures."""

    name = "wandb"

    def __init__(self, job: Job) -> None:
        self.job = job
        self.config = WandbConfig(**job.tracking["wandb"])
        self.remote = self.config.mode == "online"
        self.identity = job.ids[self.name]
        self.run: Any = None
        self.known = -1  # the last step that the run has already
        self.taken: set[int | Path] = set()  # lines and tables that the open run was given
        self.failed: Exception | None = None  # why some samples could not be logged

    def open(self) -> None:
        """Start the run of the stage, or go on with it. An open run stays open: W&B itself brings it to the server."""
        if self.run is not None:
            return
        own = self.job.folder(self.name)
        forget_sent(self.job, self.name)
        for earlier in (*offline_runs(own), own / STAGING):  # what they hold is sent again, whole
            shutil.rmtree(earlier, ignore_errors=True)
        # Where artifacts wait until they are sent: offline that may be long, and on another machine.
        os.environ.setdefault("WANDB_DATA_DIR", str(own.resolve()))
        self.start(
            wandb.init(
                project=self.config.project,
                entity=self.config.entity,
                group=self.job.name,
                name=f"{self.job.name}-{self.job.stage}",
                id=self.identity,
                resume="allow" if self.remote else None,
                job_type=self.job.stage,
                dir=os.path.abspath(self.job.directory),  # the service that writes may have another working folder
                mode="online" if self.remote else "offline",
                config=public(self.job.recipe),
                settings=self.settings(),
            )
        )

    def settings(self) -> wandb.Settings:
        """Quiet, bounded, and recording the use of the machine by the stage instead of ours."""
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS)
        settings.program = f"-m stages.{self.job.stage}"
        if self.job.process:
            settings.x_stats_pid = self.job.process
        if self.remote:
            settings.finish_timeout, settings.finish_timeout_raises = self.job.seconds, True
        return settings

    def start(self, run: Any) -> None:
        """Log to an open W&B run behind the steps that it has."""
        self.run, self.known = run, run.starting_step - 1
        run.define_metric("rlhf/step")
        run.define_metric("*", step_metric="rlhf/step")

    def send(self, entries: Sequence[Entry]) -> None:
        """Figures and tables of steps that the run does not have."""
        for entry in entries:
            place = entry.path if isinstance(entry, Table) else entry.number
            if place in self.taken:
                continue
            self.taken.add(place)
            if isinstance(entry, Line):
                self._send_line(entry)
                continue
            try:
                self._send_table(entry)
            except Exception as error:  # figures are worth more than samples: they go on
                self.failed = error

    def _send_line(self, line: Line) -> None:
        if line.step > self.known:
            row = {"rlhf/step": line.step, "_timestamp": line.time, **line.figures}
            self.run.log(row, step=line.step)
        elif line.step == self.known:  # the closing figures of a stage stand at its last step, which the run may have
            self.run.summary.update(dict(line.figures))

    def _send_table(self, entry: Table) -> None:
        rows = entry.rows()
        columns: list[str | int] = list(rows[0]) if rows else []
        table = wandb.Table(columns=columns, data=[[row[str(column)] for column in columns] for row in rows])
        key = f"samples/{entry.name}"
        if entry.step > self.known:
            self.run.log({"rlhf/step": entry.step, key: table}, step=entry.step)
        else:  # the run has the row that names this file; a kill may have taken the file, which it has under this name
            table.bind_to_run(self.run, key, entry.step)  # type: ignore[no-untyped-call]

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Link the stage's artifacts if it is complete, and end the run."""
        if result is not None:
            log_lineage(self.run, self.job, result, upload=self.config.models)
            self.run.summary["rlhf/fingerprint"] = result["fingerprint"]
        self.run.finish()  # TimeoutError where not everything was taken in time
        wandb.teardown()
        if self.failed is not None:
            raise RuntimeError(f"figures are there, samples are not: {self.failed}")
        note_sent(self.job, self.name, "online" if self.remote else "offline")


def offline_runs(own: Path) -> list[Path]:
    """The directories of offline runs of a stage."""
    return sorted(own.glob("offline-run-*"))
