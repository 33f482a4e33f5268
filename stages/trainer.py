"""The border to TRL: what its two trainers are given, what they report to us, and their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf.beacons import at_step, enter, phase
from rlhf.config import StageConfig
from rlhf.distributed import world_size
from rlhf.engine.ddp import warm_buckets
from rlhf.engine.options import to_training_arguments
from rlhf.tracking.console import StageProgress
from rlhf.types import Tracker
from stages.checkpoints import END, SAVE, Checkpoints
from stages.context import StageContext

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

TRAINER_STATE = "trainer_state.json"


class Checkpointed(Base):
    """A mixin for TRL's trainers: their complete state goes through `stages.checkpoints`."""

    checkpoints: Checkpoints
    score: float | None = None  # held out, at the present step
    warm = False

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """In place of the trainer's own, which writes a checkpoint under its final name file by file."""
        step, last = self.state.global_step, self.state.global_step >= self.state.max_steps
        record = {"score": self.score, "last": last, "engine": type(self.model_wrapped).__name__}
        self.checkpoints.write(step, self.save_state_below, record)

    def save_state_below(self, directory: Path) -> None:
        """Weights, optimizer, schedule, random states and position; every rank calls."""
        self.save_model(str(directory), _internal_call=True)
        (directory / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads; the recipe says it all
        self._save_optimizer_and_scheduler(str(directory))
        self._save_scaler(str(directory))
        self._save_rng_state(str(directory))
        if self.args.should_save:
            self.state.save_to_json(str(directory / TRAINER_STATE))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch."""
        if not self.warm and isinstance(model, DistributedDataParallel):
            warm_buckets(model, self.args.device)
        self.warm = True
        return super().training_step(model, inputs, num_items_in_batch)

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The held-out figures."""
        with phase("evaluate"):
            return super().evaluate(*arguments, **options)


class Report(TrainerCallback):
    """Hands a trainer's figures to our tracker and progress, under our names, and asks when to save and stop."""

    trainer: Checkpointed  # set once it is built

    def __init__(self, tracker: Tracker, progress: StageProgress, names: dict[str, str]) -> None:
        self.tracker = tracker
        self.progress = progress
        self.names = names
        self.stopping = False
        self.deciding = False  # once the held-out score of this step is known

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The number of steps is known now."""
        enter("train")
        self.progress.total = state.max_steps
        self.progress.bar.update(self.progress.task, total=state.max_steps)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """No step follows."""
        enter("finish")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Another step."""
        at_step(state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Figures of one optimizer step."""
        state.log_history.clear()  # our tracker has them; every checkpoint would hold all of them once more
        figures = {ours: logs[theirs] for theirs, ours in self.names.items() if logs and theirs in logs}
        if figures and state.is_world_process_zero:
            self.tracker.log(state.global_step, figures)
            if "eval_loss" not in (logs or {}):
                self.progress.update(state.global_step, dict(list(figures.items())[:2]))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Whether to save and to stop, unless the held-out score of this step is still to come."""
        self.trainer.score = None
        self.deciding = control.should_evaluate
        return control if self.deciding else self._decide(state, control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> TrainerControl:
        """The held-out loss at a step of training; after training there is nothing to decide."""
        if not self.deciding:
            return control
        self.deciding = False
        self.trainer.score = -metrics["eval_loss"] if metrics else None
        return self._decide(state, control)

    def _decide(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        last = state.global_step >= state.max_steps
        demand = self.trainer.checkpoints.demand(state.global_step, self.trainer.score, last)
        self.stopping = demand == END
        control.should_save = demand >= SAVE
        control.should_training_stop = control.should_training_stop or self.stopping
        return control


def keep_float32(model: nn.Module) -> None:
    """What learns is float32: over weights of few bits TRL rounds adapters and heads to bfloat16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class Trained(NamedTuple):
    """A trainer whose training is complete."""

    trainer: Any
    engine: str  # the wrapper that really ran


def train(
    context: StageContext,
    make_trainer: Callable[[dict[str, Any], Report], Any],
    config: StageConfig,
    names: dict[str, str],
) -> Trained:
    """Build a TRL trainer from the recipe and train it under our progress, from the newest checkpoint if there is one.

    Raises Stopped where the stage was asked to end early.
    """
    arguments = to_training_arguments(
        config,
        context.recipe.model,
        stage=context.stage,
        seed=context.recipe.seed,
        processes=world_size(),
        cpu=not torch.cuda.is_available(),
        strategy=context.recipe.parallelism_of(context.stage).strategy,
    )
    arguments["output_dir"] = str(context.partial / "trainer")
    checkpoints = context.checkpoints()
    newest = checkpoints.newest
    if context.recipe.checkpoint.asynchronous:
        context.say("checkpoint.asynchronous: PPO alone; here each step waits for its checkpoint")
    with context.progress(max(1, checkpoints.start), checkpoints.start) as progress, checkpoints.training():
        report = Report(context.tracker, progress, names)
        trainer = make_trainer(arguments, report)
        keep_float32(trainer.model)
        report.trainer = trainer
        trainer.checkpoints = checkpoints
        trainer.remove_callback(PrinterCallback)
        if newest and newest.meta["last"]:  # trained to the end, and killed before the result was handed on
            trainer._load_from_checkpoint(str(newest.directory))
            trainer.state = TrainerState.load_from_json(str(newest.directory / TRAINER_STATE))
            trainer.score = newest.score
            return Trained(trainer, newest.meta["engine"])
        checkpoints.restore(lambda _: None)  # the trainer itself loads
        trainer.train(resume_from_checkpoint=str(newest.directory) if newest else None)
        if report.stopping:
            checkpoints.end(trainer.state.global_step)
    return Trained(trainer, type(trainer.model_wrapped).__name__)
