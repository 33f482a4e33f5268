"""Stages on models and examples of known sizes, by real processes, and what they hold beside the arithmetic."""

from __future__ import annotations

import json
import random
import string
import sys
from pathlib import Path
from typing import Any

import torch
from running import ROOT
from stand_ins import write_model
from transformers import AutoConfig, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from launch.local import LocalStage
from rlhf.memory import Estimate
from rlhf.recipe import load_recipe
from rlhf.recipe_memory import estimate, read_shape

SCRIPT = ROOT / "tests" / "measured_stage.py"
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
VOCABULARY = 8192  # far more than the tokenizer has, so that hardly a response stops early
RESPONSE = 64  # tokens, and as many of a prompt
AROUND = 19  # tokens of the template around a prompt


def write_start(folder: Path) -> Path:
    """A policy, a reward model, and records whose prompts and responses are all as long; the recipe over them."""
    for name, kind in (("policy", Qwen2ForCausalLM), ("reward", Qwen2ForSequenceClassification)):
        write_model(folder / name, 259, **SHAPE)
        config = AutoConfig.from_pretrained(folder / name)
        config.update({"vocab_size": VOCABULARY, "num_labels": 1})
        torch.manual_seed(0)
        kind(config).save_pretrained(folder / name)  # type: ignore[arg-type]
    draw = random.Random(0)

    def text(letters: int) -> str:
        return "".join(draw.choices(string.ascii_lowercase, k=letters))

    short, prompt, answer = 2, RESPONSE - AROUND, RESPONSE - 1  # letters are tokens, and a response has its stop
    records = [
        {
            "short": text(short),
            "long": text(2 * RESPONSE - AROUND - short - 1),
            "prompt": text(prompt),
            "one": text(answer),
            "other": text(answer),
        }
        for _ in range(96)
    ]
    kinds: dict[str, dict[str, str]] = {
        "demonstrations": {"prompt": "short", "completion": "long"},
        "comparisons": {"prompt": "prompt", "chosen": "one", "rejected": "other"},
        "prompts": {"prompt": "prompt"},
    }
    for kind_, columns in kinds.items():
        lines = [json.dumps({name: record[column] for name, column in columns.items()}) for record in records]
        (folder / f"{kind_}.jsonl").write_text("\n".join(lines) + "\n")
    recipe: dict[str, Any] = {
        "name": "measured",
        "model": {"path": str(folder / "policy")},
        "data": {kind: [{"path": str(folder / f"{kind}.jsonl")}] for kind in kinds} | {"test_fraction": 0.2},
        "sft": {"epochs": 1, "batch_size": 16, "micro_batch_size": 4, "max_length": 2 * RESPONSE},
        "reward": {"epochs": 1, "batch_size": 16, "micro_batch_size": 2, "max_length": 2 * RESPONSE},
        "ppo": {
            "steps": 2,
            "prompts_per_step": 16,
            "minibatches": 1,
            "generation": {"max_new_tokens": RESPONSE},
            "micro_batch_tokens": 4 * 2 * RESPONSE,
            "evaluate_every": 0,
            "normalize_scores": "none",
        },
        "evaluate": {"prompts": 4},
        "checkpoint": {"every_steps": None, "every_minutes": None},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML
    return file


def adopted(recipe: Path) -> Path:
    """A run whose policy and reward model are those beside a recipe: what PPO starts from."""
    run = recipe.parent / "run"
    for stage in ("sft", "reward"):
        command = [sys.executable, "-m", f"stages.{stage}", "--recipe", str(recipe), "--run-dir", str(run)]
        outcome = LocalStage([*command, *in_place(recipe)], 1).wait(60, print)
        assert outcome.code == 0, outcome
    return run


def in_place(recipe: Path) -> list[str]:
    """Overrides under which PPO starts from a policy and a reward model, and not from the stages before it."""
    return ["model.path=null"] + [
        f"{stage}.use={json.dumps(str(recipe.parent / name))}"
        for stage, name in (("sft", "policy"), ("reward", "reward"))
    ]


def overrides_of(stage: str, strategy: str, processes: int, rank: int | None, recipe: Path) -> list[str]:
    """What a configuration is of a recipe; rank: of adapters."""
    own = f", deepspeed: {recipe.parent / 'deepspeed.json'}" if strategy.startswith("zero") else ""
    chosen = [f"{stage}.parallelism={{strategy: {strategy}, processes: {processes}{own}}}"]
    if rank:
        chosen.append(f"model.lora={{rank: {rank}, alpha: 8.0}}")
    return chosen + (in_place(recipe) if stage == "ppo" else [])


def arithmetic(stage: str, recipe: Path, overrides: list[str], processes: int) -> Estimate:
    """What is computed of it."""
    resolved = load_recipe(recipe, [*overrides, "model.dtype=float32", "model.activation_checkpointing=false"])
    shape = read_shape(recipe.parent / "policy")
    assert shape
    return estimate(resolved, stage, shape, processes)


def measured(
    kind: str, stage: str, recipe: Path, overrides: list[str], output: Path, processes: int
) -> list[dict[str, int]]:
    """What each process of it holds at most, by phase; bytes."""
    file = output.with_name(f"{output.name}-{kind}")
    command = [sys.executable, str(SCRIPT), kind, str(file), f"stages.{stage}", "--recipe", str(recipe)]
    command += ["--run-dir", str(recipe.parent / "run"), "--output", str(output), *overrides]
    outcome = LocalStage(command, processes).wait(60, print)
    assert outcome.code == 0, outcome
    return [json.loads(Path(f"{file}-{rank}.json").read_text()) for rank in range(processes)]


def peak(computed: Estimate, of_each: list[dict[str, int]]) -> int:
    """The most that any process holds in the phases that are computed, bytes."""
    return max(size for phases in of_each for phase, size in phases.items() if phase in computed.passing)
