"""What can be known to be wrong before the first stage starts. Loads no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from data import sources
from data.scorers import load_scorer
from rlhf.config import Recipe
from rlhf.engine.options import require_ddp, to_training_arguments
from rlhf.engine.zero_options import ZERO, to_deepspeed
from rlhf.engine.zero_section import NotAsked, problems_of
from rlhf.errors import ConfigError, RLHFError
from rlhf.recipe_memory import declared_context
from rlhf.tracking import to_stderr
from rlhf.tracking.services import require_packages
from stages import gate
from stages.benchmark_tasks import find_tasks
from stages.lineage import is_current, kinds_of, used_by
from stages.origins import first_model
from stages.uses import check_first_model, check_uses


def check(
    recipe: Recipe,
    stages: Sequence[str],
    processes: Callable[[str], int],
    gpu: bool = False,
    run: Path | None = None,
    force: bool = False,
    warn: Callable[[str], None] = to_stderr,
) -> None:
    """Raise one error with all problems of these stages: records, what they say, scorers, batches, the first model.

    processes: how many processes a stage will get. gpu: whether there is one. run: where they are written, and a check
    remembered. force: stages run although they are complete and current. warn: is told what could not be checked.
    """
    problems: list[str] = []

    def attempt(read: Callable[[], object]) -> None:
        try:
            read()
        except RLHFError as error:
            problems.extend(problem for problem in error.problems if problem not in problems)

    attempt(lambda: check_uses(recipe, stages, run))
    attempt(lambda: packages_are_there(recipe, stages))
    kinds = list(dict.fromkeys(kind for stage in stages for kind in kinds_of(recipe, stage)))
    attempt(lambda: no_toy_among_real(recipe, kinds))
    for kind in kinds:
        attempt(lambda kind=kind: sources.read(recipe.data, kind, recipe.seed))  # type: ignore[misc]
    if not problems and gate.is_shut(recipe, stages) and (force or not is_trained(recipe, stages, run)):
        attempt(lambda: gate.check_files(recipe, run))
    labelled = "reward" in stages and not recipe.reward.use
    named = [source.labeller for source in recipe.data.comparisons] if labelled else []
    named += [recipe.evaluate.gold, recipe.evaluate.second_gold] if "evaluate" in stages else []
    for name in filter(None, named):
        attempt(lambda name=name: load_scorer(name, recipe.data.directory))  # type: ignore[misc]
    if "evaluate" in stages and recipe.evaluate.lm_eval:
        attempt(lambda: find_tasks(recipe))
    for stage in ("sft", "reward", "ppo", "evaluate"):
        if stage in stages and not used_by(recipe, stage):
            attempt(lambda stage=stage: parallelism_fits(recipe, stage, processes(stage), gpu))  # type: ignore[misc]
    if not problems:
        attempt(lambda: deepspeed_takes_files(recipe, stages, warn))
    attempt(lambda: require_packages(recipe.tracking))
    if "sft" in stages and not recipe.sft.use:
        attempt(lambda: check_first_model(recipe))
    if "ppo" in stages:
        attempt(lambda: responses_fit(recipe))
    if problems:
        raise ConfigError(*problems)


def is_trained(recipe: Recipe, stages: Sequence[str], run: Path | None) -> bool:
    """Whether the reward model stands in a run already, and nothing before it is made anew."""
    return run is not None and all(is_current(recipe, run, stage) for stage in stages if stage in ("sft", "reward"))


def packages_are_there(recipe: Recipe, stages: Sequence[str]) -> None:
    """Raise ConfigError where the recipe asks for what a package does that is not installed."""
    lora, problems = recipe.model.lora, []
    if lora and lora.quantization and importlib.util.find_spec("bitsandbytes") is None:
        field = f"model.lora.quantization={lora.quantization}"
        problems.append(
            f"{field}: needs bitsandbytes; in the clone: pip install -c constraints.txt -e '.[quantization]'"
        )
    strategies = [recipe.parallelism_of(stage).strategy for stage in stages if not used_by(recipe, stage)]
    strategy = next((each for each in strategies if each.startswith("zero")), None)
    if strategy and importlib.util.find_spec("deepspeed") is None:
        problems.append(
            f"parallelism.strategy={strategy}: needs deepspeed; in the clone: pip install -c constraints.txt -e "
            "'.[deepspeed]'"
        )
    if "ppo" in stages and recipe.ppo.generation.vllm_here and importlib.util.find_spec("vllm") is None:
        problems.append(
            "ppo.generation.engine=vllm with weights=replica: vllm is not installed in this environment; install it, "
            "or use weights=server"
        )
    if recipe.model.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        problems.append(
            "model.attention=flash_attention_2: the package flash-attn is not installed; install it, or use "
            "model.attention=auto"
        )
    if problems:
        raise ConfigError(*problems)


def deepspeed_takes_files(recipe: Recipe, stages: Sequence[str], warn: Callable[[str], None]) -> None:
    """Raise ConfigError where DeepSpeed itself would refuse what a file says of ZeRO; it takes seconds to load."""
    named, sections = [], []
    for stage in ("sft", "reward", "ppo"):
        parallelism = recipe.parallelism_of(stage)
        if stage in stages and not used_by(recipe, stage) and parallelism.deepspeed:
            named.append((stage, f"parallelism.deepspeed={parallelism.deepspeed}"))
            norm = getattr(recipe, stage).max_grad_norm
            sections.append(to_deepspeed(parallelism, norm, stage=stage)[ZERO])
    try:
        found = problems_of(sections)
    except NotAsked as reason:
        for field in dict.fromkeys(field for _, field in named):
            warn(f"{field}: zero_optimization is not checked: {reason}")
        return
    refused: dict[str, list[str]] = {}  # the stages by what is wrong with them
    for (stage, field), own in zip(named, found, strict=True):
        for problem in own:
            refused.setdefault(f"{field}: {problem}", []).append(stage)
    if refused:
        raise ConfigError(*(f"{', '.join(its)}: {problem}" for problem, its in refused.items()))


def responses_fit(recipe: Recipe) -> None:
    """Raise ConfigError where a response alone fills the first model's context, as far as that can be known here."""
    place, room = first_model(recipe), recipe.ppo.generation.max_new_tokens
    context = recipe.model.init.context if place is None else declared_context(place)
    if context is not None and room >= context:
        raise ConfigError(
            f"ppo.generation.max_new_tokens={room} leaves no room for a prompt in the model's context of {context}; "
            f"use at most max_new_tokens={max(1, context // 2)}, or what the longest prompt leaves"
        )


def no_toy_among_real(recipe: Recipe, kinds: Sequence[str]) -> None:
    """Votes on the embedded task would teach a real model nothing; most likely a kind was left at its default."""
    if toy := toy_among_real(recipe, kinds):
        real = next(kind for kind in kinds if kind not in toy)
        problem = f"data.{toy[0]}: is the embedded task (path=toy, the default) while data.{real} is not"
        raise ConfigError(f"{problem}; give data.{toy[0]} too")


def toy_among_real(recipe: Recipe, kinds: Sequence[str]) -> list[str]:
    """The kinds of examples that are of the embedded task, if others are not."""
    toy = [kind for kind in kinds if any(source.path == "toy" for source in getattr(recipe.data, kind))]
    return toy if len(toy) < len(kinds) else []


def parallelism_fits(recipe: Recipe, stage: str, processes: int, gpu: bool = False) -> None:
    """Raise ConfigError where a stage cannot be shared out over processes as the recipe has it."""
    parallelism, lora = recipe.parallelism_of(stage), recipe.model.lora
    if stage == "evaluate":
        require_ddp(stage, parallelism.strategy)
        return
    if parallelism.strategy != "ddp" and lora and lora.quantization:
        raise ConfigError(
            f"model.lora.quantization={lora.quantization} with strategy={parallelism.strategy}: weights of few "
            "bits are not shared out; use strategy=ddp, or quantization=null"
        )
    if stage == "ppo":
        if parallelism.stage:
            to_deepspeed(parallelism, recipe.ppo.max_grad_norm)
        if parallelism.shard_over and processes % parallelism.shard_over:
            raise ConfigError(
                f"parallelism.shard_over={parallelism.shard_over}: {processes} processes do not split into such "
                "groups; use a divisor"
            )
        if recipe.ppo.generation.vllm_here and processes > 1:
            raise ConfigError(
                f"ppo.generation.weights=replica with engine=vllm: {processes} processes, where vllm samples in one "
                "alone; use weights=server, or ppo.parallelism.processes=1"
            )
        if recipe.ppo.prompts_per_step < processes:
            raise ConfigError(
                f"ppo.prompts_per_step={recipe.ppo.prompts_per_step} leaves some of {processes} processes without a "
                f"prompt; use at least prompts_per_step={processes}"
            )
        return
    to_training_arguments(
        getattr(recipe, stage),
        recipe.model,
        stage=stage,
        seed=recipe.seed,
        processes=processes,
        cpu=not gpu,
        parallelism=parallelism,
    )
