"""Models and rewards that a recipe names: where they are, and the hash of what they are. Loads no torch."""

from __future__ import annotations

import functools
from pathlib import Path

from data.scorers import scorer_digest
from rlhf.config import DataConfig, Recipe
from rlhf.references import kind_of
from rlhf.store.artifact import digest, file_digest, find_artifact
from rlhf.store.weights import base_of_adapter


def model_place(name: str, data: DataConfig) -> str:
    """Where a model is: a directory (relative ones may start at the data directory), or a hub id."""
    for path in (Path(name), Path(data.directory or ".") / name):
        if path.is_dir():
            return str(path)
    return name


def start_of_reward(recipe: Recipe) -> str | None:
    """Where the reward model is that training starts from: `reward.start`, of a run that of its reward stage."""
    if recipe.reward.start is None:
        return None
    place = model_place(recipe.reward.start, recipe.data)
    stage = find_artifact(Path(place) / "reward")
    return place if stage is None else str(stage.model)


def first_model(recipe: Recipe) -> str | None:
    """Where the policy's first weights are: `sft.use`, else `model.path`, else nowhere, for they are made here."""
    name = recipe.sft.use or recipe.model.path
    return None if name is None else model_place(name, recipe.data)


def model_digest(place: str | None, revision: str | None) -> str:
    """Hash of the files of a model's directory, with its base's if it is an adapter; of a hub id with its commit."""
    if place is None or not Path(place).is_dir():
        return digest([place, revision])
    files = [[file.name, content_digest(file)] for file in sorted(Path(place).iterdir()) if file.is_file()]
    base = base_of_adapter(Path(place))
    return digest(files if base is None else [files, model_digest(base, None)])


def used_digest(name: str, recipe: Recipe) -> str:
    """Hash of what a recipe names in place of a stage: a model's files, a function's source, a server's address."""
    kind = kind_of(name)
    if kind == "function":
        return scorer_digest(name, recipe.data.directory)
    return digest(name) if kind == "server" else model_digest(model_place(name, recipe.data), recipe.model.revision)


def content_digest(path: Path) -> str:
    """SHA-256 of a file, read again only where its size or time has changed: weights are large, and asked for often."""
    status = path.stat()
    return _digest(path.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified: int) -> str:
    return file_digest(path)
