"""The border to TRL: what its two trainers are given, what they report to us, and their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf.beacons import at_step, enter, phase
from rlhf.config import ParallelismConfig, StageConfig
from rlhf.distributed import join_process_group, world_size
from rlhf.engine.ddp import warm_buckets
from rlhf.engine.options import to_training_arguments
from rlhf.errors import ConfigError
from rlhf.partitions import OWNER
from rlhf.tracking.console import StageProgress
from rlhf.types import Tracker
from stages.checkpoints import END, SAVE, Checkpoints, attempt, first
from stages.context import StageContext
from stages.trained import TRAINER_STATE, Trained, load_trained

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object


class Checkpointed(Base):
    """A mixin for TRL's trainers: their complete state goes through `stages.checkpoints`."""

    checkpoints: Checkpoints
    parallelism: ParallelismConfig
    bfloat16 = False  # forwards compute in it by our autocast, not by accelerate's
    files: Any = None  # what DeepSpeed writes
    score: float | None = None  # held out, at the present step
    warm = False

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """In place of the trainer's own, which writes a checkpoint under its final name file by file."""
        step, last = self.state.global_step, self.state.global_step >= self.state.max_steps
        record = {"score": self.score, "last": last, "engine": type(self.model_wrapped).__name__}
        self.checkpoints.write(step, self.save_state_below, record)

    def save_state_below(self, directory: Path) -> None:
        """Weights, optimizer, schedule, random states and position; every rank calls. Raises OSError."""
        below = str(directory)
        parts: list[Callable[[], None]] = [
            lambda: self.save_model(below, _internal_call=True),
            lambda: self._save_partitions(directory) if self.files else self._save_optimizer_and_scheduler(below),
            lambda: self._save_scaler(below),
            lambda: self._save_rng_state(below),
        ]
        # A rank that cannot write one of them owes the others its calls in the next.
        if cause := first([attempt(part) for part in parts]):
            raise OSError(cause)
        (directory / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads; the recipe says it all
        if self.args.should_save:
            self.state.save_to_json(str(directory / TRAINER_STATE))

    def _save_partitions(self, directory: Path) -> None:
        """DeepSpeed's checkpoint and the schedule, where transformers looks for them."""
        tag = f"global_step{self.state.global_step}"
        engine: Any = self.model_wrapped
        schedule: Any = self.lr_scheduler
        adapted = hasattr(self.model, "peft_config")
        engine.save_checkpoint(str(directory), tag=tag, save_latest=False, exclude_frozen_parameters=adapted)
        self.files.require_written()
        if self.args.should_save:
            torch.save(schedule.state_dict(), directory / "scheduler.pt")
            (directory / "latest").write_text(tag, encoding="utf-8")

    def require_wrapper(self) -> None:
        """Raise ConfigError where something else was made of the model than the recipe's strategy says."""
        wrapped: Any = self.model_wrapped
        strategy = self.parallelism.strategy
        name = type(wrapped).__name__
        if strategy == "ddp":
            fits = isinstance(wrapped, DistributedDataParallel) if world_size() > 1 else wrapped is self.model
        elif strategy == "fsdp":
            fits = isinstance(wrapped, FSDPModule)
        else:
            fits = name == "DeepSpeedEngine" and wrapped.zero_optimization_stage() == self.parallelism.stage
        if not fits:
            raise ConfigError(
                f"parallelism.strategy={strategy}: the trainer made a {name} of the model instead, which is another "
                "way to train; use strategy=ddp, or the versions in constraints.txt"
            )
        if self.parallelism.stage:
            from rlhf.engine.zero import Files  # loads DeepSpeed

            self.files = Files(wrapped)
            if self.parallelism.stage == 3:
                setattr(self.model, OWNER, wrapped.optimizer.parameter_offload)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """How forwards compute, those that DeepSpeed's engine does not see among them."""
        if self.bfloat16:
            whole = self.parallelism.strategy not in ("fsdp", "zero3")  # see `rlhf.sharding.autocast`
            return torch.autocast(self.args.device.type, torch.bfloat16, cache_enabled=whole)
        return super().autocast_smart_context_manager(cache_enabled)

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
        """The number of steps is known now, and so is what became of the model."""
        self.trainer.require_wrapper()
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


def train(
    context: StageContext,
    make_trainer: Callable[[dict[str, Any], Report], Any],
    config: StageConfig,
    names: dict[str, str],
) -> Trained:
    """Build a TRL trainer from the recipe and train it under our progress, from the newest checkpoint if there is one.

    Raises Stopped where the stage was asked to end early, ConfigError where the trainer shares nothing out.
    """
    arguments = arguments_of(context, config)
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
        trainer.parallelism = context.recipe.parallelism_of(context.stage)
        trainer.bfloat16 = context.recipe.model.dtype == "bfloat16" and trainer.parallelism.strategy != "ddp"
        trainer.remove_callback(PrinterCallback)
        if newest and newest.meta["last"]:  # trained to the end, and killed before the result was handed on
            load_trained(trainer, newest.directory)
            trainer.score = newest.score
            return Trained(trainer, newest.meta["engine"])
        checkpoints.restore(lambda _: None)  # the trainer itself loads
        trainer.train(resume_from_checkpoint=str(newest.directory) if newest else None)
        if report.stopping:
            checkpoints.end(trainer.state.global_step)
    return Trained(trainer, type(trainer.model_wrapped).__name__)


def arguments_of(context: StageContext, config: StageConfig) -> dict[str, Any]:
    """The trainer's arguments, and what its libraries need before they are made. Raises ConfigError."""
    parallelism = context.recipe.parallelism_of(context.stage)
    arguments = to_training_arguments(
        config,
        context.recipe.model,
        stage=context.stage,
        seed=context.recipe.seed,
        processes=world_size(),
        cpu=not torch.cuda.is_available(),
        parallelism=parallelism,
    )
    if parallelism.strategy != "ddp":
        join_process_group(alone=True)
        os.environ.setdefault("LOCAL_RANK", "0")  # without it accelerate sees no group of a single process
    if parallelism.stage:
        from rlhf.engine.zero import load_deepspeed

        load_deepspeed()  # before transformers does, which would have it compile
    return arguments | {"output_dir": str(context.partial / "trainer")}
