"""What a recipe names in place of stages, checked before anything runs. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.scorers import load_scorer
from rlhf.config import Recipe
from rlhf.errors import ConfigError, RLHFError
from rlhf.references import check_address, kind_of
from rlhf.store.weights import check_model_directory, check_reward_model
from stages.lineage import STAGES, kinds_of, used_by
from stages.origins import first_model, model_place, start_of_reward

HUB_NAME = r"[\w.-]+/[\w.-]+"
HUB_ID = HUB_NAME + r"@[\w.-]+"
NO_DIRECTORY = "no such directory; give one made by save_pretrained, or org/name@COMMIT"


def unread(recipe: Recipe) -> list[str]:
    """Sections of a recipe that no stage of it reads, as dotted fields."""
    read = {kind for stage in STAGES for kind in kinds_of(recipe, stage)}
    fields = [f"data.{kind}" for kind in ("demonstrations", "comparisons", "prompts") if kind not in read]
    if first_model(recipe) is not None:
        fields.append("model.init")
    if recipe.sft.use:
        fields += [f"sft.{name}" for name in type(recipe.sft).model_fields if name != "use"]
    return [*fields, "labelling"]


def check_uses(recipe: Recipe, stages: Sequence[str], run: Path | None = None) -> None:
    """Raise one error with all that is wrong with what these stages and their inputs use.

    run: where the stages are written, if that is known.
    """
    problems: list[str] = []
    for field, name in uses(recipe, stages):
        try:
            if field == "reward.start" and run is not None:
                check_start(recipe, run / "reward")
            check_use(field, name, recipe)
        except RLHFError as error:
            problems += error.problems
    if recipe.sft.use and recipe.model.path:
        unused = f"model.path={recipe.model.path}: is not used beside sft.use={recipe.sft.use}"
        problems.append(f"{unused}; remove one of them")
    if problems:
        raise ConfigError(*problems)


def check_start(recipe: Recipe, output: Path) -> None:
    """Raise ConfigError where `reward.start` is what the reward stage writes: that makes room before it reads."""
    name = recipe.reward.start
    if name is None:
        return
    start = Path(model_place(name, recipe.data))
    if output.resolve() in ((start / "reward").resolve(), start.resolve(), *start.resolve().parents):
        raise ConfigError(f"reward.start={name}: is the run that is written; give another name= to go on from it")


def uses(recipe: Recipe, stages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Fields and names that the stages, or the inputs they take in, use."""
    concerned = {*stages, *(name for stage in stages for name in STAGES[stage].inputs)}
    for stage in ("sft", "reward"):
        if stage in concerned and (name := used_by(recipe, stage)):
            yield f"{stage}.use", name
    if "reward" in stages and (start := start_of_reward(recipe)):
        yield "reward.start", start
    if "ppo" in stages and recipe.ppo.held_out.judge:
        yield "ppo.held_out.judge", recipe.ppo.held_out.judge
    if {"ppo", "evaluate"} & {*stages}:
        yield from ((f"ppo.rewards.{i}.use", term.use) for i, term in enumerate(recipe.ppo.rewards))


def check_use(field: str, name: str, recipe: Recipe) -> None:
    """Raise ConfigError, ArtifactError where a name cannot be what its field needs."""
    kind = kind_of(name)
    if field == "sft.use" and kind != "model":
        raise ConfigError(f"{field}={name}: is a {kind}; give a language model's directory or org/name@COMMIT")
    if field == "reward.start" and kind != "model":
        raise ConfigError(f"{field}={name}: is a {kind}, which cannot be trained; give a run or a reward model")
    if kind == "function":
        load_scorer(name, recipe.data.directory)
    elif kind == "server":
        check_address(field, name)
    elif (place := Path(model_place(name, recipe.data))).is_dir():
        check_model_directory(place)
        if field != "sft.use":
            check_reward_model(field, place)
    elif not re.fullmatch(HUB_ID, name) or name.startswith("."):
        raise ConfigError(f"{field}={name}: {NO_DIRECTORY}")


def check_first_model(recipe: Recipe) -> None:
    """Raise ConfigError, ArtifactError where model.path is no model: neither a directory of one nor a hub's name."""
    name = recipe.model.path
    if name is None:
        return
    if (place := Path(model_place(name, recipe.data))).is_dir():
        check_model_directory(place)
    elif name.startswith(".") or place.is_file() or not re.fullmatch(f"{HUB_NAME}(@[\\w.-]+)?", name):
        raise ConfigError(f"model.path={name}: {NO_DIRECTORY}")
