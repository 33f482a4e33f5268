"""What a run does: batches, steps, tokens, operations; and what it leaves on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from launch.planning.cluster import Cluster
from launch.planning.needs import settle
from rlhf.config import Recipe
from rlhf.memory import Computation, trainable
from rlhf.shapes import Shape
from stages.lineage import used_by

STATE = 12  # bytes a weight that learns in a checkpoint: itself and AdamW's two moments, in float32
MODEL = 4  # bytes a weight of a model that is handed on
TEXT = 5  # bytes of text that a token stands for, at most as a rule
FORWARD, TRAINED = 2, 6  # operations a weight and token (Kaplan et al. 2020)


def batches(recipe: Recipe, stage: str, shape: Shape, cluster: Cluster, counts: Mapping[str, int]) -> dict[str, Any]:
    """Sizes of a stage: of a step over all processes, of one process, of a forward, and of the whole.

    Tokens are those of examples and responses as long as the recipe allows, with prompts as long as responses.
    counts: examples for training, by kind, where the data were read; else steps of SFT and reward stay unknown.
    """
    processes = cluster.processes
    if stage in ("sft", "reward"):
        section = getattr(recipe, stage)
        share = section.batch_size // processes
        micro = min(section.micro_batch_size or share, share) or 1
        sequences = 1 if stage == "sft" else 2
        longest = min(section.max_length or shape.context, shape.context)
        examples = counts.get("demonstrations" if stage == "sft" else "comparisons")
        steps = None if examples is None else math.ceil(section.epochs * -(-examples // section.batch_size))
        of_step = section.batch_size * sequences * longest
        return {
            "global": section.batch_size,
            "per_process": share,
            "micro": micro,
            "accumulated": -(-share // micro),
            "examples": examples,
            "steps": steps,
            "tokens": None if steps is None else steps * of_step,
            "tokens_a_step": of_step,
        }
    prompts = recipe.ppo.prompts_per_step if stage == "ppo" else recipe.evaluate.prompts
    rows = recipe.ppo.responses_per_step if stage == "ppo" else 2 * prompts
    steps = recipe.ppo.steps if stage == "ppo" else 1
    # A prompt as long as the longest response, as the arithmetic of memory has it.
    of_row = 2 * recipe.ppo.generation.max_new_tokens
    found = {
        "global": rows,
        "per_process": -(-rows // processes),
        "steps": steps,
        "episodes": steps * rows,
        "tokens": steps * rows * of_row,
        "tokens_a_step": rows * of_row,
    }
    if stage == "ppo":
        found["micro"] = recipe.ppo.micro_batch_tokens  # tokens
        found["updates"] = steps * recipe.ppo.epochs * recipe.ppo.minibatches
    return found


def operations(recipe: Recipe, stage: str, shape: Shape, tokens: float) -> float:
    """Useful operations of a stage that sees so many tokens, by the rules of `rlhf bench`."""
    if stage == "ppo":
        models = 2 if recipe.ppo.has_critic else 1
        answering = 2 + models  # sampling, reference, reward model, and the value model if there is one
        return shape.weights * tokens * (FORWARD * answering + TRAINED * recipe.ppo.epochs * models)
    if stage == "evaluate":
        return shape.weights * tokens * FORWARD * 3
    return shape.weights * tokens * TRAINED


def disk(recipe: Recipe, shape: Shape) -> dict[str, float]:
    """Bytes of a whole run at most: checkpoints, one more than are kept while it is written, models, samples.

    Steps of SFT and reward are not known here, so that what `checkpoint.keep_every` keeps of them is not counted.
    """
    model = settle(recipe, checkpointing=False).model
    rank = model.lora.rank if model.lora else None
    learning = trainable(shape, Computation(bfloat16=True, checkpointing=False, lora_rank=rank))
    trained = [stage for stage in ("sft", "reward", "ppo") if not used_by(recipe, stage)]
    of_each = {stage: STATE * learning * (2 if stage == "ppo" and recipe.ppo.has_critic else 1) for stage in trained}
    kept = recipe.checkpoint.keep_last + int(recipe.checkpoint.keep_best) + 1  # one more while it is written
    best = int(recipe.checkpoint.keep_best and bool(recipe.ppo.evaluate_every))
    models = (len(trained) + best) * MODEL * shape.weights
    found: dict[str, float] = {f"a checkpoint of {stage}": size for stage, size in of_each.items()}
    found["checkpoints"] = sum(kept * size for size in of_each.values())
    if recipe.checkpoint.keep_every and "ppo" in of_each:
        found["checkpoints"] += recipe.ppo.steps // recipe.checkpoint.keep_every * of_each["ppo"]
    found["models"] = models
    found["samples"] = samples(recipe)
    found["total"] = found["checkpoints"] + models + found["samples"]
    return found


def samples(recipe: Recipe) -> float:
    """Bytes of the responses that are kept as parquet, uncompressed: of PPO's held-out evaluations, and the last."""
    every = recipe.ppo.evaluate_every
    rows = 0
    if every and not used_by(recipe, "ppo"):
        rows = (recipe.ppo.steps // every + 2) * recipe.ppo.held_out.prompts  # before the first and behind the last
    rows += (2 + (recipe.evaluate.best_of or 0)) * recipe.evaluate.prompts
    return float(rows * 2 * recipe.ppo.generation.max_new_tokens * TEXT)
