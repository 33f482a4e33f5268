"""What all stages share around their algorithm: inputs, trackers, progress, checkpoints, and handing on a result."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from torch import nn

from rlhf.beacons import enter
from rlhf.beacons.record import BEACONS
from rlhf.config import Recipe
from rlhf.devices import Computation, hardware, settled_recipe, use_plain_float32
from rlhf.distributed import barrier, counted, gather_objects, is_main, main_first, world_size
from rlhf.engine.zero_options import layout_of
from rlhf.errors import ConfigError, FaultError, RLHFError
from rlhf.models import save_alone, save_model
from rlhf.recipe_memory import read_shape
from rlhf.shapes import Shape, shape_of_init
from rlhf.store.artifact import PARTIAL, Artifact, Lineage, link_directory, load_artifact, publish, remove
from rlhf.store.checkpoint import Checkpoint, CheckpointStore, retention_of
from rlhf.store.turnover import put_back
from rlhf.store.unfinished import METRICS, Begun, begin, cut_back, hold
from rlhf.tokenization import Tokenization
from rlhf.tracking import NullTracker, Place, open_tracker
from rlhf.tracking.console import StageProgress
from rlhf.types import Tracker
from stages.checkpoints import Checkpoints
from stages.lineage import STAGES, lineage_of
from stages.origins import first_model
from stages.signals import Signals, Stopped
from stages.watching import watched


@dataclass(frozen=True)
class StageOptions:
    """Where a stage reads and writes, and when it is to stop."""

    run: Path  # inputs are RUN/STAGE
    output: Path
    stop_after: int | None = None  # a step
    restart: bool = False  # start from the beginning, whatever checkpoints there are


class StageContext:
    """One execution of one stage."""

    def __init__(self, recipe: Recipe, stage: str, options: StageOptions, signals: Signals | None = None) -> None:
        self.stage = stage
        self.output = options.output
        self.stop_after = options.stop_after
        self.signals = signals or Signals()
        self.started = psutil.Process().create_time()  # loading the libraries is part of a stage's time
        self.inputs: dict[str, Artifact] = {name: load_artifact(options.run / name) for name in STAGES[stage].inputs}
        use_plain_float32()
        self.recipe = settled_recipe(recipe, stage, self._shape(recipe))
        self.computation = Computation(self.recipe.model, hardware(), world_size())
        self.say(str(self.computation))
        self.lineage: Lineage = lineage_of(recipe, stage, options.run)
        barrier()  # every rank has read the inputs before the main one makes room
        self.partial = self.output / PARTIAL
        self.store = CheckpointStore(self.output / "checkpoints", self.lineage.fingerprint, retention_of(recipe))
        self.checkpoint: Checkpoint | None = None
        begun = Begun(resumed=False)
        with main_first():  # for as long as it takes to compare a checkpoint with its checksums
            if is_main():
                self.lock = hold(self.output)  # kept open until this process ends
                begun = begin(self.output, self.lineage, options.restart)
                remove(self.output / BEACONS)  # of the execution before
                self.checkpoint = self._newest() if begun.resumed else None
                if begun.slot:
                    self.say(f"what stood in {self.output} is kept in {begun.slot} until this is complete")
        self.begun: Begun
        self.begun, self.execution = gather_objects((begun, secrets.token_hex(4)))[0]
        self.checkpoint = gather_objects(self.checkpoint)[0]
        parallelism = self.recipe.parallelism_of(stage)
        # Over what this execution's sums are taken: the same again goes on bit for bit. As it is now, for a file of
        # settings may be another by the time a checkpoint is written.
        self.shared_over: dict[str, Any] = {
            "processes": world_size(),
            "strategy": parallelism.strategy,
            "shard_over": parallelism.shard_over,
            "deepspeed": layout_of(parallelism),
        }
        if self.checkpoint:
            self._compare_with(self.checkpoint.meta)
        self.seconds_before = float(self.checkpoint.meta["seconds"]) if self.checkpoint else 0.0
        inputs = {name: artifact.directory for name, artifact in self.inputs.items()}
        place = Place(stage, self.output, inputs, begun.resumed)
        self.tracker: Tracker = open_tracker(self.recipe, place, self.warn) if is_main() else NullTracker()
        barrier()

    def _shape(self, recipe: Recipe) -> Shape | None:
        """The shape of this stage's models."""
        if "sft" in self.inputs:
            return read_shape(self.inputs["sft"].model)
        start = first_model(recipe)
        return shape_of_init(recipe.model.init) if start is None else read_shape(start)

    def _newest(self) -> Checkpoint | None:
        """The checkpoint to go on from; figures and samples are cut back to it."""
        checkpoint = self.store.newest(self.warn)
        if checkpoint is None:
            self.say("begun before but without a usable checkpoint, starting again")
            cut_back(self.output, -1, 0, self.warn)
            return None
        self.say(f"going on from {checkpoint.directory}")
        cut_back(self.output, checkpoint.step, checkpoint.meta["metrics_bytes"], self.warn)
        return checkpoint

    def _compare_with(self, meta: Mapping[str, Any]) -> None:
        """Say how this execution goes on from a checkpoint of other processes. Raises ConfigError where it cannot."""
        before: dict[str, Any] = {key: meta.get(key) for key in self.shared_over}
        if before == self.shared_over:
            return
        then, now = (
            f"{counted(each['processes'])}, {each['strategy']}"
            + (f" over {each['shard_over']}" if each["shard_over"] else "")
            + (f" by settings {each['deepspeed']}" if each["deepspeed"] else "")
            for each in (before, self.shared_over)
        )
        zero = "zero" in f"{before['strategy']} {self.shared_over['strategy']}"
        if zero or (self.stage != "ppo" and before["strategy"] != self.shared_over["strategy"]):
            whose = "DeepSpeed's" if zero else "the trainer's"
            same = f"{self.stage}.parallelism={{strategy: {before['strategy']}, processes: {before['processes']}}}"
            raise ConfigError(
                f"{self.stage} was begun by {then}: {whose} checkpoints go on under the same strategy and settings "
                f"on as many processes alone, not with {now}; use {same}, or --force to start again"
            )
        self.say(f"begun by {then}: with {now} it goes on to rounding, not bit for bit")

    def checkpoints(self) -> Checkpoints:
        """When this stage writes checkpoints, and the one to go on from."""
        return Checkpoints(self)

    def progress_made(self) -> dict[str, Any]:
        """What a checkpoint records of this execution: seconds so far, over all executions, and the figures' end."""
        metrics = self.output / METRICS
        return {"seconds": self.seconds, "metrics_bytes": metrics.stat().st_size if metrics.is_file() else 0}

    def flush_figures(self) -> None:
        """Have the disk hold the figures so far, which no checkpoint may outlive."""
        if (metrics := self.output / METRICS).is_file():
            with metrics.open("rb") as file:
                os.fsync(file.fileno())

    @property
    def seconds(self) -> float:
        """Time that the stage has taken, executions before the last checkpoint included."""
        elapsed: float = self.seconds_before + time.time() - self.started
        return round(elapsed, 2)

    def progress(self, total: int, done: int = 0) -> StageProgress:
        """A progress display of this stage, of which some steps may be done already."""
        return StageProgress(self.stage, total, enabled=is_main(), done=done)

    def say(self, line: str) -> None:
        """Tell people one thing."""
        if is_main():
            print(f"{self.stage}: {line}", flush=True)

    def warn(self, line: str) -> None:
        """Tell people of something that is wrong and does not end the stage."""
        if is_main():
            print(f"{self.stage}: warning: {line}", file=sys.stderr, flush=True)

    def give_up(self) -> None:
        """What the user gave cannot be used: leave the directory as it was, unless there is something to go on from."""
        if is_main() and not self.begun.resumed and not self.store.newest(self.warn):
            self.tracker.close()
            put_back(self.output, self.begun.slot)

    def carry_out(self, main: Callable[[StageContext], None]) -> None:
        """Run a stage's main function; what stood here returns where the user's input cannot be used."""
        try:
            with watched(self):
                main(self)
        except (Stopped, FaultError):  # what was made stands
            self.tracker.close()
            raise
        except RLHFError:
            self.give_up()
            raise

    def _tell(self, manifest: Mapping[str, Any]) -> None:
        """Close the trackers with what was made, before it is complete: a complete stage is not taken up again."""
        self.tracker.result(manifest)
        self.tracker.close()

    def finish(
        self,
        results: Mapping[str, Any],
        model: nn.Module | None = None,
        tokenization: Tokenization | None = None,
        best: nn.Module | None = None,
        **record: Any,
    ) -> None:
        """Save the model if there is one, close the trackers and make the artifact complete.

        best: another model to keep in best/, or `model` itself, of which best/ is then a second name.
        """
        # Deferred on every rank, for one that ended would leave the others waiting; these wait as long as it takes.
        enter("finish")
        with self.signals.deferred(), main_first():
            if is_main():
                if model is not None and tokenization is not None:
                    save_model(model, tokenization, self.partial / "model")
                    if best is model:
                        link_directory(self.partial / "model", self.partial / "best")
                    elif best is not None:
                        save_alone(best, tokenization, self.partial / "best")
                manifest = {
                    "recipe": self.recipe.model_dump(),
                    "contract": tokenization.contract if tokenization else None,
                    "results": dict(results),
                    "seconds": self.seconds,
                    "processes": world_size(),
                    "computation": self.computation.record(),
                    **record,
                }
                publish(self.output, self.lineage, manifest, self._tell)
                self.store.finish()
                self.lock.close()
