"""The border to TRL: what its two trainers are given, and what they report to us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rlhf.config import Recipe, StageConfig
from rlhf.distributed import world_size
from rlhf.engine.options import to_training_arguments
from rlhf.tracking.console import StageProgress
from rlhf.types import Tracker
from stages.context import StageContext


class Report(TrainerCallback):
    """Hands a trainer's figures to our tracker and progress, under our names."""

    def __init__(self, tracker: Tracker, progress: StageProgress, names: dict[str, str]) -> None:
        self.tracker = tracker
        self.progress = progress
        self.names = names

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The number of steps is known now."""
        self.progress.total = state.max_steps
        self.progress.bar.update(self.progress.task, total=state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Figures of one optimizer step."""
        figures = {ours: logs[theirs] for theirs, ours in self.names.items() if logs and theirs in logs}
        if figures and state.is_world_process_zero:
            self.tracker.log(state.global_step, figures)
            self.progress.update(state.global_step, dict(list(figures.items())[:2]))


def train(
    context: StageContext,
    make_trainer: Callable[[dict[str, Any], Report], Any],
    config: StageConfig,
    names: dict[str, str],
) -> Any:
    """Build a TRL trainer from the recipe, train it under our progress, and return it."""
    recipe: Recipe = context.recipe
    arguments = to_training_arguments(
        config,
        recipe.model,
        stage=context.stage,
        seed=recipe.seed,
        processes=world_size(),
        cpu=not torch.cuda.is_available(),
    )
    arguments["output_dir"] = str(context.partial / "trainer")
    with context.progress(1) as progress:
        trainer = make_trainer(arguments, Report(context.tracker, progress, names))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer
