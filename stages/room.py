"""Whether the disk takes what a stage will write. Loads no torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlhf.config import InitConfig, Recipe
from rlhf.errors import ArtifactError
from rlhf.store.weights import base_of_adapter, check_model_directory
from stages.lineage import used_by
from stages.origins import first_model, model_place

BYTES = 4  # of a weight, and of each of the two moments that AdamW keeps of it
TRAINED = {"sft": 1, "reward": 1, "ppo": 2, "evaluate": 0}  # models that learn in a stage


def require_room(recipe: Recipe, stage: str, run: Path) -> None:
    """Raise ArtifactError unless the run's disk can be written and has room for a stage's models and checkpoints.

    Two checkpoints, because an older checkpoint goes only once the newer one is whole; PPO may keep its best besides.
    """
    place = next(folder for folder in (run, *run.absolute().parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        raise ArtifactError(f"{run}: {place} cannot be written; give another --run or change its permissions")
    weights = weights_of(recipe)
    if weights is None:
        return
    learning = 0 if recipe.model.lora else weights  # adapters are small beside the model
    models = 1 if stage == "ppo" and not recipe.ppo.has_critic else TRAINED[stage]
    if used_by(recipe, stage):
        models, learning = (1 if is_copied(recipe, stage) else 0), 0
    results, checkpoints = min(models, 1), 2
    if stage == "ppo" and recipe.ppo.evaluate_every and recipe.checkpoint.keep_best:
        results, checkpoints = 2, 3
    needed = BYTES * (results * weights + checkpoints * 3 * models * learning)
    # What an execution before this one has written is there already.
    needed -= sum(path.stat().st_size for path in (run / stage / "checkpoints").rglob("*") if path.is_file())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ArtifactError(
            f"{run}: {megabytes(free)} free on its disk, but the {stage} stage of a model of {weights:,} weights needs "
            f"{megabytes(needed)} for its result and {checkpoints} checkpoints; free some or give another --run"
        )


def is_copied(recipe: Recipe, stage: str) -> bool:
    """Whether what is used in a stage's place is written anew: an adapter merged, or a model with more tokens."""
    place = Path(model_place(used_by(recipe, stage) or "", recipe.data))
    return base_of_adapter(place) is not None or (stage == "sft" and bool(recipe.model.added_tokens))


def weights_of(recipe: Recipe) -> int | None:
    """The policy's weights, from the recipe or from the files of its first model; None for a hub id."""
    path = first_model(recipe)
    if path is None:
        return weights_of_init(recipe.model.init)
    return check_model_directory(Path(path)) if Path(path).is_dir() else None


def weights_of_init(init: InitConfig) -> int:
    """Weights of a Llama with tied embeddings: per layer four square projections, three of the MLP, two norms."""
    width = init.hidden_size
    per_layer = 4 * width * width + 3 * width * init.mlp_size + 2 * width
    return init.vocab_size * width + init.layers * per_layer + width


def megabytes(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:,.1f} MB"
