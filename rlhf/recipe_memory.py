"""What the stages of a recipe hold in a device's memory: `rlhf.memory` at a recipe's own sizes. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf import memory
from rlhf.config import ParallelismConfig, Recipe
from rlhf.engine.zero_options import BUCKET, BUCKET_ENTRIES, ZERO
from rlhf.errors import RLHFError
from rlhf.memory import Computation, Estimate, RolloutLoad
from rlhf.shapes import Shape, context_of_config, shape_of_config
from rlhf.store.weights import base_of_adapter


def read_shape(model: str | Path) -> Shape | None:
    """The shape of the model in a directory; None of a hub id, or where its configuration says too little."""
    path = Path(model) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return shape_of_config(config, str(path)) if isinstance(config, dict) else None
    except (OSError, ValueError, RLHFError):
        return None


def declared_context(model: str | Path) -> int | None:
    """The longest context that the model in a directory declares, an adapter's base; None of a hub id, or of none."""
    try:
        if (base := base_of_adapter(Path(model))) is not None:
            return declared_context(base)
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        return context_of_config(config) if isinstance(config, dict) else None
    except (OSError, ValueError, RLHFError):
        return None


def shared_out(parallelism: ParallelismConfig, processes: int) -> dict[str, Any]:
    """How and over how many processes a stage's models are spread: fields of `rlhf.memory.Computation`."""
    whole = parallelism.strategy in ("fsdp", "zero3")  # weights too
    return {
        "strategy": parallelism.strategy,
        "over": min(parallelism.shard_over or processes, processes),
        "offloaded": None if not parallelism.cpu_offload else "all" if whole else "moments",
        "bucket": bucket_of(parallelism),
    }


def bucket_of(parallelism: ParallelismConfig) -> int:
    """Entries of the buffer in which DeepSpeed sends gradients: as a file of its settings says, or as we do."""
    try:
        own = json.loads(Path(str(parallelism.deepspeed)).read_text(encoding="utf-8"))[ZERO][BUCKET]
    except (OSError, ValueError, LookupError, TypeError):
        return BUCKET_ENTRIES
    return int(own) if isinstance(own, int) or (isinstance(own, float) and own.is_integer()) else BUCKET_ENTRIES


def computation(recipe: Recipe, stage: str, shape: Shape, processes: int = 1) -> Computation:
    """How the models of a stage compute, under a recipe whose `auto` is settled; of attention it is taken for sdpa."""
    model, lora = recipe.model, recipe.model.lora
    # Adapters that train new tokens of tied embeddings wrap the head, whose logits then stand all at once.
    wrapped = bool(lora and model.added_tokens and shape.tied)
    return Computation(
        bfloat16=model.dtype == "bfloat16",
        checkpointing=model.activation_checkpointing is True,
        packed=shape.packs and model.attention != "eager" and not wrapped,
        lora_rank=lora.rank if lora else None,
        quantization=lora.quantization if lora else None,
        processes=processes,
        **shared_out(recipe.parallelism_of(stage), processes),
    )


def estimate(recipe: Recipe, stage: str, shape: Shape, processes: int = 1) -> Estimate:
    """Bytes of one process of a stage at most, under a recipe whose `auto` is settled.

    Rows are taken to be as long as the recipe allows, prompts as long as the longest response, and the reward model to
    be as large as the policy.
    """
    how = computation(recipe, stage, shape, processes)
    if stage in ("sft", "reward"):
        section = recipe.sft if stage == "sft" else recipe.reward
        share = max(1, section.batch_size // processes)
        rows = min(section.micro_batch_size or share, share)
        length = min(section.max_length or shape.context, shape.context)
        return memory.sft(shape, how, rows, length) if stage == "sft" else memory.reward(shape, how, rows, length)
    generation = recipe.ppo.generation
    here = stage == "ppo" and generation.vllm_here
    rows = recipe.ppo.rows_together(processes)
    if not here:
        rows = max(rows, min(generation.batch_size, -(-recipe.evaluate.prompts // processes)))
    load = RolloutLoad(
        prompt=generation.max_new_tokens,
        response=generation.max_new_tokens,
        generation_rows=rows,
        micro_batch_tokens=recipe.ppo.micro_batch_tokens,
        sampler="shared" if stage != "ppo" else "beside" if here else generation.weights,
        nucleus=generation.top_p < 1,
    )
    if stage == "ppo":
        return memory.ppo(shape, shape, how, load, critic=recipe.ppo.has_critic, offload=recipe.ppo.offload)
    return memory.evaluation(shape, how, load)
