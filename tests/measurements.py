"""Stages on models and examples of known sizes, by real processes, and what they hold beside the arithmetic."""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from running import ROOT
from stand_ins import write_model
from transformers import AutoConfig, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from rlhf.memory import Estimate
from rlhf.recipe import load_recipe
from rlhf.recipe_memory import estimate, read_shape

SCRIPT = ROOT / "tests" / "measured_stage.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
KINDS = ("tensors", "resident")
BUCKET = 2_000_000  # entries of DeepSpeed's buffers, whose own size would drown so small a model
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
VOCABULARY = 8192  # far more than the tokenizer has, so that hardly a response stops early
RESPONSE = 32  # tokens, and as many of a prompt
ROWS = 8  # of a forward
LONG = 256  # of a demonstration, nearly all of them learned
AROUND = 19  # tokens of the template around a prompt


def write_start(folder: Path, shape: dict[str, int] = SHAPE, vocabulary: int = VOCABULARY, **model: object) -> Path:
    """A policy, a reward model, and records whose prompts and responses are all as long; the recipe over them.

    model: fields of the recipe's section, float32 else.
    """
    for name, kind in (("policy", Qwen2ForCausalLM), ("reward", Qwen2ForSequenceClassification)):
        write_model(folder / name, 259, **shape)
        config = AutoConfig.from_pretrained(folder / name)
        config.update({"vocab_size": vocabulary, "num_labels": 1})
        torch.manual_seed(0)
        kind(config).save_pretrained(folder / name)  # type: ignore[arg-type]
    draw = random.Random(0)

    def text(letters: int) -> str:
        return "".join(draw.choices(string.ascii_lowercase, k=letters))

    short, prompt, answer = 2, RESPONSE - AROUND, RESPONSE - 1  # letters are tokens, and a response has its stop
    records = [
        {
            "short": text(short),
            "long": text(LONG - AROUND - short - 1),
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
        "model": {
            "path": str(folder / "policy"),
            "dtype": "float32",
            "attention": "sdpa",
            "activation_checkpointing": False,
            **model,
        },
        "data": {kind: [{"path": str(folder / f"{kind}.jsonl")}] for kind in kinds} | {"test_fraction": 0.2},
        "sft": {"epochs": 1, "batch_size": 8, "micro_batch_size": 2, "max_length": LONG},
        "reward": {"epochs": 1, "batch_size": 2 * ROWS, "micro_batch_size": ROWS // 2, "max_length": 2 * RESPONSE},
        "ppo": {
            "steps": 2,
            "prompts_per_step": 32,
            "minibatches": 1,
            "generation": {"max_new_tokens": RESPONSE},
            "micro_batch_tokens": ROWS * 2 * RESPONSE,
            "evaluate_every": 0,
            "normalize_scores": "none",
        },
        "evaluate": {"prompts": 4},
        "checkpoint": {"every_steps": None, "every_minutes": None},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    (folder / "deepspeed.json").write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": BUCKET}}))
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML
    return file


def in_place(recipe: Path) -> list[str]:
    """Overrides under which PPO starts from a policy and a reward model, and not from the stages before it."""
    return ["model.path=null"] + [
        f"{stage}.use={json.dumps(str(recipe.parent / name))}"
        for stage, name in (("sft", "policy"), ("reward", "reward"))
    ]


@dataclass(frozen=True)
class Case:
    """A stage under a strategy."""

    stage: str
    strategy: str
    rank: int | None = None  # of adapters; None: all weights learn

    @property
    def name(self) -> str:
        """For people and folders."""
        return f"{self.stage}-{self.strategy}-{self.rank or 'all'}"

    def overrides(self, recipe: Path, processes: int) -> list[str]:
        """What it is of a recipe."""
        own = f", deepspeed: {recipe.parent / 'deepspeed.json'}" if self.strategy.startswith("zero") else ""
        chosen = [f"{self.stage}.parallelism={{strategy: {self.strategy}, processes: {processes}{own}}}"]
        if self.rank:
            chosen.append(f"model.lora={{rank: {self.rank}, alpha: 8.0}}")
        return chosen + (in_place(recipe) if self.stage == "ppo" else [])

    def computed(self, recipe: Path, processes: int) -> Estimate:
        """By arithmetic."""
        resolved = load_recipe(recipe, self.overrides(recipe, processes))
        shape = read_shape(recipe.parent / "policy")
        assert shape
        return estimate(resolved, self.stage, shape, processes)


def measured(
    cases: Sequence[Case], recipe: Path, processes: int, kinds: Sequence[str] = KINDS
) -> dict[Case, dict[str, dict[str, int]]]:
    """What the fullest process of each holds at most: of each kind, by phase; bytes."""
    folder = recipe.parent
    read = ["--recipe", str(recipe), "--run-dir", str(folder / "run")]
    # What PPO starts from; what these hold is not asked.
    jobs: list[Any] = [
        (stage, kinds[-1], 1, str(folder / stage), [*read, *in_place(recipe)]) for stage in ("sft", "reward")
    ]
    for kind, case in product(kinds, cases):
        output = folder / f"{case.name}-{kind}"
        command = [*read, "--output", str(output), *case.overrides(recipe, processes)]
        jobs.append((case.stage, kind, processes, f"{output}-process", command))
    file = folder / "jobs.jsonl"
    file.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    # A parent that has asked CUDA itself could not be forked.
    own = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if "gpu" in kinds else {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(file)], env=ENVIRONMENT | own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {case: {kind: fullest(folder / f"{case.name}-{kind}", processes) for kind in kinds} for case in cases}


def fullest(output: Path, processes: int) -> dict[str, int]:
    """The most of any process, by phase."""
    of_each = [json.loads(Path(f"{output}-process-{rank}.json").read_text()) for rank in range(processes)]
    return {phase: max(each.get(phase, 0) for each in of_each) for phase in of_each[0]}


def peak(computed: Estimate, phases: Mapping[str, int]) -> int:
    """The most that is held in the phases that are computed, bytes."""
    return max(size for phase, size in phases.items() if phase in computed.passing)
