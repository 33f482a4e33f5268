"""What each stage needs and what determines its result. Loads no torch: the launcher asks it what must run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import sources
from data.scorers import scorer_digest
from rlhf.config import Recipe
from rlhf.store.artifact import Lineage, find_artifact
from stages.benchmark_tasks import tasks_digest
from stages.origins import first_model, model_digest, start_of_reward, used_digest


@dataclass(frozen=True)
class Needs:
    """A stage's place in the chain."""

    inputs: tuple[str, ...]  # stages whose artifacts it starts from
    data: tuple[str, ...]  # kinds of examples it reads
    fields: Callable[[Recipe], dict[str, Any]]  # the recipe's fields that affect it, besides those of `data`


def _sft(recipe: Recipe) -> dict[str, Any]:
    if recipe.sft.use:
        return {"model": _computation(recipe), "added_tokens": recipe.model.added_tokens}
    return {"model": recipe.model.fingerprint_fields(), "sft": recipe.sft.fingerprint_fields()}


def _reward(recipe: Recipe) -> dict[str, Any]:
    if recipe.reward.use:  # it is examined on responses of the policy
        return {"model": _computation(recipe), "generation": _native_sampling(recipe)}
    fields = {"model": _computation(recipe), "reward": recipe.reward.fingerprint_fields()}
    if on_policy(recipe):
        fields["generation"] = _native_sampling(recipe)
    return fields


def _ppo(recipe: Recipe) -> dict[str, Any]:
    return {"model": _computation(recipe), "ppo": recipe.ppo.fingerprint_fields()}


def _evaluate(recipe: Recipe) -> dict[str, Any]:
    generation = _native_sampling(recipe)
    return {"model": _computation(recipe), "evaluate": recipe.evaluate.fingerprint_fields(), "generation": generation}


def _native_sampling(recipe: Recipe) -> dict[str, Any]:
    """How all but PPO samples: whatever PPO's engine is, the policy itself."""
    return {**recipe.ppo.generation.fingerprint_fields(), "engine": "native"}


def _computation(recipe: Recipe) -> dict[str, Any]:
    """How models compute; where the first weights come from reaches later stages through the SFT artifact."""
    fields = recipe.model.fingerprint_fields()
    return {key: fields[key] for key in ("chat_template", "dtype", "attention", "lora")}


STAGES: Mapping[str, Needs] = {
    "sft": Needs((), ("demonstrations",), _sft),
    "reward": Needs(("sft",), ("comparisons", "prompts"), _reward),
    "ppo": Needs(("sft", "reward"), ("prompts",), _ppo),
    "evaluate": Needs(("sft", "reward", "ppo"), ("prompts",), _evaluate),
}


def kinds_of(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The kinds of examples that a stage reads under a recipe."""
    if stage == "sft" and recipe.sft.use:
        return ()
    if stage == "reward" and recipe.reward.use:
        return ("comparisons", "prompts") if has_votes(recipe) else ("prompts",)
    if stage == "reward" and not on_policy(recipe):
        return ("comparisons",)  # prompts matter only where responses to them are sampled
    return STAGES[stage].data


def on_policy(recipe: Recipe) -> bool:
    """Whether the reward stage samples responses for votes."""
    return any(source.path == sources.ON_POLICY for source in recipe.data.comparisons)


def has_votes(recipe: Recipe) -> bool:
    """Whether there are votes by which to judge a reward that was not trained here: they may have stayed at toy."""
    toy = [any(s.path == "toy" for s in getattr(recipe.data, kind)) for kind in ("comparisons", "prompts")]
    return not on_policy(recipe) and (not toy[0] or toy[1])


def used_by(recipe: Recipe, stage: str) -> str | None:
    """What a recipe names in place of a stage, if it does."""
    name: str | None = {"sft": recipe.sft.use, "reward": recipe.reward.use}.get(stage)
    return name


def is_current(recipe: Recipe, run: Path, stage: str) -> bool:
    """Whether a stage's result stands and is what the recipe, the data and its inputs now give."""
    artifact = find_artifact(run / stage)
    return artifact is not None and artifact.fingerprint == lineage_of(recipe, stage, run).fingerprint


def lineage_of(recipe: Recipe, stage: str, run: Path) -> Lineage:
    """A stage's lineage, given the artifacts that now stand in the run directory."""
    needs = STAGES[stage]
    inputs = {name: find_artifact(run / name) for name in needs.inputs}
    data = {kind: sources.content_hash(recipe.data, kind) for kind in kinds_of(recipe, stage)}
    if stage == "sft":
        data["model"] = model_digest(first_model(recipe), recipe.model.revision)
    if stage == "reward" and recipe.reward.use:
        data["use"] = used_digest(recipe.reward.use, recipe)
    if stage == "reward" and recipe.reward.start:
        data["start"] = model_digest(start_of_reward(recipe), recipe.model.revision)
    if stage == "ppo" and recipe.ppo.held_out.judge:
        data["judge"] = used_digest(recipe.ppo.held_out.judge, recipe)
    if stage == "ppo":
        data |= {f"reward {i}": used_digest(term.use, recipe) for i, term in enumerate(recipe.ppo.rewards)}
    if stage == "evaluate":
        golds = [name for name in (recipe.evaluate.gold, recipe.evaluate.second_gold) if name]
        data |= {name: scorer_digest(name, recipe.data.directory) for name in golds}
        if recipe.evaluate.lm_eval:
            data["lm_eval"] = tasks_digest(recipe)
    return Lineage(
        stage=stage,
        fields={
            "seed": recipe.seed,
            "test_fraction": recipe.data.test_fraction,
            "too_long": recipe.data.too_long,
            **needs.fields(recipe),
        },
        inputs={name: artifact.fingerprint if artifact else "" for name, artifact in inputs.items()},
        data=data,
    )
