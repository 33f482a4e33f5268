"""What a recipe asks of one process, as the work of a bench. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf.config import HeldOutConfig, Recipe
from rlhf.engine.options import micro_batches
from rlhf.errors import ConfigError
from rlhf.shapes import shape_of_config
from rlhf.store.weights import base_of_adapter
from stages.origins import first_model


def common(recipe: Recipe, device: str) -> tuple[dict[str, Any], str]:
    """What every bench of a recipe has: fields of `stages.bench.load.Work`, and the dtype. Raises ConfigError.

    Weights are random: how fast they are does not depend on what they know.
    """
    lora = recipe.model.lora
    if lora and lora.quantization:
        raise ConfigError(
            f"model.lora.quantization={lora.quantization}: random weights are not of few bits; measure with "
            "model.lora.quantization=null"
        )
    model = recipe.model
    dtype = "bfloat16" if model.dtype == "bfloat16" or (model.dtype == "auto" and device == "cuda") else "float32"
    settled: dict[str, Any] = {"dtype": dtype}
    if model.attention == "auto" and device == "cpu":
        settled["attention"] = "sdpa"
    if model.activation_checkpointing == "auto" and device == "cpu":
        settled["activation_checkpointing"] = False
    # No more of it than counts: the rest may name addresses, and is nobody's business in a list of processes.
    ppo = recipe.ppo.model_copy(update={"rewards": [], "held_out": HeldOutConfig(), "evaluate_every": 0})
    model = model.model_copy(update={**settled, "path": None, "revision": None})
    shown = Recipe(seed=recipe.seed, model=model, ppo=ppo, parallelism=recipe.parallelism)
    return {"config": config_of(recipe), "recipe": shown.model_dump(mode="json")}, dtype


def config_of(recipe: Recipe) -> dict[str, Any]:
    """The config.json of the model that a recipe starts from, an adapter's base's, or of the one that it makes."""
    place, init = first_model(recipe), recipe.model.init
    if place is None:
        return {
            "model_type": "llama",
            "vocab_size": init.vocab_size,
            "hidden_size": init.hidden_size,
            "intermediate_size": init.mlp_size,
            "num_hidden_layers": init.layers,
            "num_attention_heads": init.heads,
            "num_key_value_heads": init.heads,
            "max_position_embeddings": init.context,
            "tie_word_embeddings": True,
        }
    if (base := base_of_adapter(Path(place))) is not None:
        place = base
    file = Path(place) / "config.json"
    if not Path(place).is_dir():
        from huggingface_hub import try_to_load_from_cache  # late: it takes a moment

        name, _, revision = place.partition("@")
        cached = try_to_load_from_cache(name, file.name, revision=revision or recipe.model.revision)
        file = Path(cached) if isinstance(cached, str) else file
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        config = config.get("text_config") or config
        shape_of_config(config, str(file))
        config["model_type"]  # noqa: B018  # what transformers knows it by
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"model {place}: its shape cannot be read ({type(error).__name__}: {error}); put its config.json there, or "
            "measure a --size"
        ) from error
    return dict(config)


def of_ppo(recipe: Recipe, device: str) -> tuple[dict[str, Any], str]:
    """Of `rlhf bench ppo`; a process's share of the step where the recipe says how many there are."""
    ppo = recipe.ppo
    work, dtype = common(own_share(recipe, "ppo", alone(recipe)), device)
    load, share = sampled(recipe, work), work["recipe"]["ppo"]
    values = "none" if not ppo.has_value else "model" if ppo.has_critic else "trunk"
    load |= {"batch": share["prompts_per_step"] * ppo.responses_per_prompt, "ppo_epochs": ppo.epochs, "values": values}
    return load, dtype


def of_generate(recipe: Recipe, device: str) -> tuple[dict[str, Any], str]:
    """Of `rlhf bench generate`: a process's share of a step's responses."""
    work, dtype = common(own_share(recipe, "ppo", {}), device)
    batch = work["recipe"]["ppo"]["prompts_per_step"] * recipe.ppo.responses_per_prompt
    return sampled(recipe, work) | {"batch": batch}, dtype


def sampled(recipe: Recipe, work: Mapping[str, Any]) -> dict[str, Any]:
    """What is sampled. Raises ConfigError where that is not to be measured here."""
    generation = recipe.ppo.generation
    if generation.engine != "native":
        raise ConfigError(
            f"ppo.generation.engine={generation.engine}: the bench samples natively; add ppo.generation.engine=native "
            "ppo.generation.weights=shared"
        )
    context = shape_of_config(work["config"], "config.json").context
    if generation.max_new_tokens >= context:
        raise ConfigError(
            f"ppo.generation.max_new_tokens={generation.max_new_tokens} leaves no room for a prompt in the model's "
            f"context of {context}; use at most max_new_tokens={max(1, context // 2)}"
        )
    given = {"response_length": generation.max_new_tokens, "responses_per_prompt": recipe.ppo.responses_per_prompt}
    return {**work, **given}


def of_trainer(stage: str, recipe: Recipe, device: str) -> tuple[dict[str, Any], str]:
    """Of `rlhf bench sft` and `rlhf bench reward`: a process's share of an optimizer step.

    longest: tokens that an example may have at most, not those that the data have.
    """
    section = recipe.sft if stage == "sft" else recipe.reward
    work, dtype = common(recipe, device)
    micro, accumulated = micro_batches(section, stage, processes(recipe, stage))
    context = shape_of_config(work["config"], "config.json").context
    return {
        **work,
        "micro": micro,
        "batch": micro * accumulated,
        "longest": min(section.max_length or context, context),
    }, dtype


OF: Mapping[str, Callable[[Recipe, str], tuple[dict[str, Any], str]]] = {
    "ppo": of_ppo,
    "generate": of_generate,
    "sft": lambda recipe, device: of_trainer("sft", recipe, device),
    "reward": lambda recipe, device: of_trainer("reward", recipe, device),
}


def processes(recipe: Recipe, stage: str) -> int:
    """Of which one is measured: as many as the recipe says, or one."""
    wanted = recipe.parallelism_of(stage).processes
    return 1 if wanted == "auto" else wanted


def alone(recipe: Recipe) -> dict[str, Any]:
    """How one process shares its models out: with nobody, by the code that would."""
    own = recipe.parallelism_of("ppo")
    return {"parallelism": own.model_copy(update={"processes": 1, "shard_over": None})}


def own_share(recipe: Recipe, stage: str, update: Mapping[str, Any]) -> Recipe:
    """The recipe of one process of PPO, which has its share of the prompts. Raises ConfigError."""
    count, ppo = processes(recipe, stage), recipe.ppo
    prompts, steps = ppo.prompts_per_step, count * ppo.minibatches
    if prompts % count or (prompts // count * ppo.responses_per_prompt) % ppo.minibatches:
        raise ConfigError(
            f"ppo.prompts_per_step={prompts} does not split evenly over {count} processes, of which one is measured, "
            f"and minibatches={ppo.minibatches}; use prompts_per_step={max(1, prompts // steps) * steps}"
        )
    own = ppo.model_copy(update={"prompts_per_step": prompts // count, **update})
    return recipe.model_copy(update={"ppo": own})
