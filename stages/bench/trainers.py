"""One side of `rlhf bench sft | reward`: our trainer, or TRL's own as its users set it up, on the same examples.

    python -m stages.bench.trainers '{"size": "15M", ...}' [float32 | bfloat16] [cpu | cuda] [sft | reward] [rlhf | trl]

TRL's has its defaults, but for activation checkpointing, which both have as the recipe has it; off without one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from reward_models.trainer import BradleyTerryTrainer
from rlhf.adapters import add_lora
from rlhf.config import ModelConfig, Recipe
from rlhf.devices import settled_recipe
from rlhf.heap import keep_freed
from rlhf.packing import accept
from stages.bench.load import PAD, Examples, checksum, models
from stages.bench.turns import Turns
from stages.bench.words import tokenizer
from stages.supervised import IGNORED, SupervisedTrainer

STEPS = 10_000  # more than anybody waits for: the launcher says when it is enough


class Watch(TrainerCallback):
    """Takes turns between optimizer steps."""

    def __init__(self, turns: Turns, facts: dict[str, Any]) -> None:
        self.turns, self.facts = turns, facts
        self.started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """All is loaded."""
        self.turns.ready(**self.facts)
        self.started = time.perf_counter()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """A step is done, and its loss known."""
        seconds = time.perf_counter() - self.started
        self.turns.phases["training"] = seconds
        if not self.turns.done(seconds, loss=(logs or {})["loss"]):
            os._exit(0)
        self.started = time.perf_counter()


def main(load: Examples, bfloat16: bool, device: torch.device, stage: str, side: str) -> None:
    """Take turns until told to end."""
    if side == "rlhf" and device.type == "cpu":  # as `stages.command.run_stage` does
        keep_freed()
    torch.set_num_threads(load.threads)
    turns = Turns()
    recipe = Recipe.model_validate_json(json.dumps(load.recipe)) if load.recipe else None
    again = recipe is not None and settled_recipe(recipe, stage, load.shape).model.activation_checkpointing
    arguments: dict[str, Any] = {
        "output_dir": tempfile.gettempdir(),  # the launcher's own
        "per_device_train_batch_size": load.micro,
        "gradient_accumulation_steps": load.batch // load.micro,
        "max_steps": STEPS,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": device.type == "cpu",
        "bf16": bfloat16,
        "gradient_checkpointing": again,
        "disable_tqdm": True,
        "seed": load.seed,
        **({"remove_unused_columns": False} if side == "rlhf" else {}),
    }
    MAKERS[stage](load, side, arguments, turns, device).train()


def supervised(load: Examples, side: str, arguments: dict[str, Any], turns: Turns, device: torch.device) -> Any:
    """SFT: the second half of each sequence is learned."""
    rows = [
        {"input_ids": tokens, "labels": [IGNORED] * (len(tokens) // 2) + tokens[len(tokens) // 2 :]}
        for tokens in load.sequences(load.batch)
    ]
    model = adapted(models(load).policy.to(device), load, side, "policy")
    learned = sum(label != IGNORED for row in rows for label in row["labels"])
    tokens = sum(len(row["input_ids"]) for row in rows)
    useful = load.trained * (load.of_body * tokens + load.of_head * learned)
    return (SupervisedTrainer if side == "rlhf" else SFTTrainer)(
        model=model,
        args=SFTConfig(**arguments, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(load.shape.vocabulary),
        callbacks=[Watch(turns, facts_of(model, tokens, useful))],
    )


def preferences(load: Examples, side: str, arguments: dict[str, Any], turns: Turns, device: torch.device) -> Any:
    """A reward model: pairs of sequences, each of a length of its own."""
    sequences = load.sequences(2 * load.batch)
    rows = [
        {"chosen_ids": chosen, "rejected_ids": rejected, "target": 1.0, "weight": 1.0}
        for chosen, rejected in zip(sequences[::2], sequences[1::2], strict=True)
    ]
    model = adapted(models(load).reward.to(device), load, side, "reward")
    tokens = sum(map(len, sequences))
    options = {
        "args": RewardConfig(**arguments, max_length=None),
        "train_dataset": Dataset.from_list(rows),
        "processing_class": tokenizer(load.shape.vocabulary),
        "callbacks": [Watch(turns, facts_of(model, tokens, load.trained * load.of_body * tokens))],
    }
    if side == "trl":
        options["train_dataset"] = options["train_dataset"].remove_columns(["target", "weight"])
        return RewardTrainer(model=model, **options)
    return BradleyTerryTrainer(model=model, pad_id=PAD, label_smoothing=0.0, center=0.0, **options)


def adapted(model: Any, load: Examples, side: str, role: str) -> Any:
    """Packing on our side, with adapters where the recipe has them."""
    if side == "rlhf":
        accept(model)
    lora = ModelConfig.model_validate(load.recipe["model"]).lora if load.recipe else None
    return add_lora(model, lora, role) if lora else model


MAKERS: dict[str, Callable[..., Any]] = {"sft": supervised, "reward": preferences}


def facts_of(model: Any, tokens: int, useful: float) -> dict[str, Any]:
    """What is known before the first step."""
    facts = {"checksum": checksum(model), "tokens": tokens, "version": trl.__version__}
    return {**facts, "flops": {"training": useful}}


if __name__ == "__main__":
    main(Examples(**json.loads(sys.argv[1])), sys.argv[2] == "bfloat16", torch.device(sys.argv[3]), *sys.argv[4:])
