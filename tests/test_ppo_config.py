"""Settings of PPO that do not fit together are one line each, and its remedy holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf.config import PpoConfig
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe

# What is given, how its line begins (behind the file's name), and the first remedy that it names, as an override.
REFUSED = [
    (["kl.place=loss"], "ppo.kl.estimator=k1 with place=loss: its expected gradient is zero", "kl.estimator=k2"),
    (["kl.controller=adaptive"], "ppo.kl.controller=adaptive with target=None: an adaptive", "kl.target=6.0"),
    (["kl.target=3.0"], "ppo.kl.controller=fixed with target=3.0: an adaptive", "kl.target=null"),
    (["advantage=rloo"], "ppo.advantage=rloo with responses_per_prompt=1", "responses_per_prompt=4"),
    (["advantage=grpo"], "ppo.advantage=grpo with responses_per_prompt=1", "responses_per_prompt=4"),
    (["generation.top_p=0.9"], "ppo.generation.top_p=0.9 with importance_cap=null", "generation.top_p=1.0"),
    (["generation.top_p=0.9"], "ppo.generation.top_p=0.9 with importance_cap=null", "importance_cap=2.0"),
    (["overlong.tokens=24"], "ppo.overlong.tokens=24 with generation.max_new_tokens=24", "overlong.tokens=6"),
    (
        ["value_start=trunk", "value_warmup_steps=3"],
        "ppo.value_warmup_steps=3 with value_start=trunk",
        "value_start=policy",
    ),
    (
        ["value_start=trunk", "value_learning_rate=1e-3"],
        "ppo.value_learning_rate=0.001 with value_start=trunk",
        "value_start=policy",
    ),
    (["prompts_per_step=7"], "ppo.prompts_per_step=7 does not split into minibatches=2", "prompts_per_step=6"),
    (
        ["prompts_per_step=5", "responses_per_prompt=3", "minibatches=4"],
        "ppo.prompts_per_step=5 does not split into minibatches=4",
        "prompts_per_step=4",
    ),
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\n")
    return path


@pytest.mark.parametrize(("given", "line", "remedy"), REFUSED, ids=lambda each: str(each)[:50])
def test_what_does_not_fit_is_one_line_whose_remedy_holds(
    given: list[str], line: str, remedy: str, recipe: Path
) -> None:
    overrides = [f"ppo.{each}" for each in given]
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    (problem,) = caught.value.problems
    assert line in problem and "\n" not in problem
    assert remedy.removeprefix("kl.").removeprefix("generation.") in problem or remedy == "kl.target=null"
    load_recipe(recipe, [*overrides, f"ppo.{remedy}"])


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("ppo.advantage=vtrace", "'gae', 'rloo', 'reinforce++' or 'grpo'"),
        ("ppo.ratio=word", "'token' or 'sequence'"),
        ("ppo.kl.estimator=k4", "'k1', 'k2' or 'k3'"),
        ("ppo.generation.top_p=0", "greater than 0"),
        ("ppo.generation.top_p=1.1", "less than or equal to 1"),
        ("ppo.generation.temperature=0", "greater than 0"),
        ("ppo.importance_cap=0", "greater than 0"),
        ("ppo.clip_high=0", "greater than 0"),
        ("ppo.entropy_bonus=-0.1", "greater than or equal to 0"),
        ("ppo.lam=1.5", "less than or equal to 1"),
        ("ppo.kl.coef=-1", "greater than or equal to 0"),
    ],
)
def test_what_is_out_of_range_is_refused(override: str, problem: str, recipe: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load_recipe(recipe, [override])


@pytest.mark.parametrize(
    ("advantage", "normalization", "critic"),
    [("gae", "whiten", True), ("reinforce++", "whiten", False), ("rloo", "none", False), ("grpo", "none", False)],
)
def test_what_an_estimator_brings_along(advantage: str, normalization: str, critic: bool) -> None:
    given = {"advantage": advantage, "responses_per_prompt": 4}
    config = PpoConfig.model_validate(given)
    assert (config.normalization, config.has_value, config.has_critic) == (normalization, critic, critic)
    on_trunk = PpoConfig.model_validate(given | {"value_start": "trunk"})
    assert (on_trunk.has_value, on_trunk.has_critic) == (critic, False)
    assert config.unused == [] and on_trunk.unused == ([] if critic else ["value_start"])
    assert PpoConfig.model_validate(given | {"normalize_advantages": "center"}).normalization == "center"
