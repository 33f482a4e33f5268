"""`rlhf bench --recipe`: what of a recipe is measured, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import rlhf

from launch.cli import app
from launch.recipe_load import OF
from rlhf.errors import RLHFError
from rlhf.recipe import load_recipe
from stages.bench.load import Load, flops, models
from stages.bench.ours import recipe_of

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "recipes" / "tiny.yaml")
QWEN = {
    "model_type": "qwen2",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "tie_word_embeddings": True,
    "attention_dropout": 0.1,
    "dtype": "bfloat16",
}


def load_of(kind: str, *overrides: str) -> dict[str, Any]:
    return OF[kind](load_recipe(TINY, overrides), "cpu")[0]


def test_one_process_has_its_share_of_a_step() -> None:
    load = Load(**load_of("ppo", "parallelism.processes=2", "ppo.prompts_per_step=8", "ppo.minibatches=4"))
    assert load.batch == 4 and len(load.prompts()) == 4
    recipe = recipe_of(load, "float32")
    assert recipe.ppo.prompts_per_step == 4 and recipe.ppo.minibatches == 4
    assert recipe.parallelism_of("ppo").processes == 1
    assert load_of("sft", "sft.parallelism.processes=4", "sft.batch_size=32", "sft.micro_batch_size=4")["micro"] == 4
    assert load_of("sft", "sft.parallelism.processes=4", "sft.batch_size=32", "sft.micro_batch_size=4")["batch"] == 8


def test_settings_are_the_recipes() -> None:
    changed = ("ppo.epochs=3", "ppo.micro_batch_tokens=77", "ppo.generation.temperature=0.5", "model.lora.rank=4")
    load = Load(**load_of("ppo", *changed, "model.attention=eager", "ppo.clip=0.1"))
    recipe = recipe_of(load, "float32")
    assert (recipe.ppo.epochs, recipe.ppo.micro_batch_tokens, recipe.ppo.clip) == (3, 77, 0.1)
    assert recipe.ppo.generation.temperature == 0.5 and recipe.model.attention == "eager"
    assert recipe.model.lora is not None and recipe.model.lora.rank == 4
    assert models(load).policy.config._attn_implementation == "eager"


def test_a_model_is_as_its_configuration_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    load = Load(**load_of("ppo", f"model.path={tmp_path}", "ppo.generation.max_new_tokens=30"))
    policy = models(load).policy
    assert policy.config.model_type == "qwen2" and policy.config.attention_dropout == 0
    assert {str(parameter.dtype) for parameter in policy.parameters()} == {"torch.float32"}
    matrices = sum(p.numel() for name, p in policy.named_parameters() if name.endswith("proj.weight"))
    assert load.of_body == 2 * matrices and load.of_head == 2 * policy.lm_head.weight.numel()
    assert max(len(prompt) for prompt in load.prompts()) == 10  # what a response leaves of the context


def test_work_is_that_of_the_models_that_take_part() -> None:
    """A value head is no model, without values one forward less; adapters leave frozen weights without a gradient."""
    of = {name: flops(Load(**load_of("ppo", *changed))) for name, changed in PARTS.items()}
    body, head = (of["model"]["training"] - of["trunk"]["training"]), of["generation"]["generation"]
    assert of["none"]["training"] == of["trunk"]["training"] < of["model"]["training"]
    assert of["none"]["scoring"] < of["trunk"]["scoring"] == of["model"]["scoring"]
    assert of["adapters"]["training"] == pytest.approx(of["model"]["training"] * 2 / 3) and body > 0 and head > 0


PARTS: dict[str, tuple[str, ...]] = {
    "model": (),
    "generation": (),
    "trunk": ("ppo.value_start=trunk",),
    "none": ("ppo.advantage=reinforce++",),
    "adapters": ("model.lora.rank=4",),
}


def test_no_address_is_told_to_a_child() -> None:
    """Command lines can be read by others."""
    load = load_of("ppo", "reward.use=https://host.internal/score", "ppo.rewards=[{use: 'http://other.internal/c'}]")
    assert "internal" not in json.dumps(load)


OPTIONS = ("--threads", "1", "--updates", "1", "--json")
ONCE = ("ppo.prompts_per_step=4", "ppo.generation.max_new_tokens=5", "sft.batch_size=4", "reward.batch_size=4")


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("ppo", ("model.lora.rank=4", "ppo.value_start=trunk")),
        ("ppo", ("ppo.parallelism.strategy=fsdp", "ppo.advantage=rloo", "ppo.responses_per_prompt=2")),
        ("generate", ("model.lora.rank=4", "ppo.generation.top_p=0.9", "ppo.importance_cap=2.0")),
    ],
)
def test_a_recipe_is_measured(kind: str, changed: tuple[str, ...], tmp_path: Path) -> None:
    done = rlhf("bench", kind, "--recipe", TINY, *ONCE, *changed, *OPTIONS, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["load"]["recipe"]["ppo"]["generation"]["max_new_tokens"] == 5
    assert found["response_tokens"] == 5 * found["load"]["batch"] or kind == "generate"
    assert found["seconds_per_update"] > 0 and 0 < found["mfu"] < 1


@pytest.mark.services
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_trainers_of_a_recipe_are_measured(kind: str, tmp_path: Path) -> None:
    changed = (f"{kind}.micro_batch_size=2", "model.lora.rank=4", *ONCE)
    done = rlhf("bench", kind, "--recipe", TINY, *changed, *OPTIONS, folder=tmp_path, seconds=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["load"]["batch"], found["load"]["micro"]) == (4, 2) and 0 < found["mfu"] < 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("ppo.epochs=2",), "ppo.epochs=2: a recipe's setting, and there is no recipe; add for example --recipe demo"),
        (("--recipe", TINY, "--batch", "8"), "--batch=8 with --recipe="),
        (("--recipe", TINY, "--against", "trl"), "the baseline knows sizes alone; leave one out"),
        (("--recipe", TINY, "ppo.epoch=2"), "ppo.epoch"),
        (("--recipe", TINY, "model.path=org/nowhere"), "model org/nowhere: its shape cannot be read"),
        (("--recipe", TINY, "model.lora.quantization=nf4"), "random weights are not of few bits"),
        (("--recipe", TINY, "parallelism.processes=3"), "does not split evenly over 3 processes"),
        (("--recipe", TINY, "ppo.generation.max_new_tokens=500"), "leaves no room for a prompt"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is(options: tuple[str, ...], problem: str) -> None:
    with pytest.raises(RLHFError) as error:
        app(["bench", "ppo", *options], standalone_mode=False)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_what_the_device_cannot_do_is_one_line(tmp_path: Path) -> None:
    done = rlhf("bench", "ppo", "--recipe", TINY, "model.attention=flash_attention_2", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: model.attention=flash_attention_2: this process computes on a CPU; use")
