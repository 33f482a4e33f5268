"""Where a recipe's examples come from, split into train and test, and the hash of their content. Loads no torch.

A source's path is a file (`data.files`), `toy` (the embedded task), `stories` (TinyStories), or `on-policy`: pairs of
responses that the reward stage samples from the SFT model and a labeller votes on.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from data import files, stories, toy, toy_gold, toy_world, votes
from data.scorers import load_scorer, scorer_digest
from data.splits import Split, split_prompts, split_records
from data.votes import Comparisons
from rlhf.config import DataConfig, ModelConfig, SourceConfig
from rlhf.errors import DataError
from rlhf.store.artifact import digest, file_digest
from rlhf.types import Comparison, Completion, Demonstration, Prompt

ON_POLICY = "on-policy"
MODULES: dict[str, tuple[ModuleType, ...]] = {"toy": (toy, toy_gold, toy_world), "stories": (stories,)}
# How many the embedded task draws unless the recipe says otherwise: (for training, held out).
TOY_DEMONSTRATIONS, TOY_COMPARISONS = (6000, 400), (12_000, 4000)


def demonstrations(config: DataConfig, seed: int) -> Split[Demonstration]:
    """All demonstrations of a recipe."""
    split: Split[Demonstration] = Split([], [])
    for source in config.demonstrations:
        if source.path == "toy":
            prompts = split_prompts(toy.prompts(), config.test_fraction)
            split.train.extend(toy.demonstrations(source.count or TOY_DEMONSTRATIONS[0], seed, prompts.train))
            split.test.extend(toy.demonstrations(source.held_out or TOY_DEMONSTRATIONS[1], seed, prompts.test))
            continue
        if source.path == "stories":
            records = stories.demonstrations(config.directory, source.count, seed)
        else:
            records = files.read_demonstrations(_path(config, source))[: source.count]
        part = split_records(records, config.test_fraction)
        split.train.extend(part.train)
        split.test.extend(part.test)
    return _require(split, "data.demonstrations")


def comparisons(config: DataConfig, seed: int) -> tuple[Split[Comparison], float | None]:
    """All comparisons of a recipe that are not made on policy, and the held-out ones' Bayes accuracy if known."""
    split: Split[Comparison] = Split([], [])
    bayes_accuracy = None
    for source in config.comparisons:
        if source.path == "toy":
            prompts = split_prompts(toy.prompts(), config.test_fraction)
            split.train.extend(toy.comparisons(source.count or TOY_COMPARISONS[0], seed, prompts.train).records)
            held_out = toy.comparisons(source.held_out or TOY_COMPARISONS[1], seed, prompts.test)
            split.test.extend(held_out.records)
            bayes_accuracy = held_out.bayes_accuracy if len(config.comparisons) == 1 else None
        elif source.path != ON_POLICY:
            records = files.read_comparisons(_path(config, source))[: source.count]
            part = split_records(records, config.test_fraction)
            split.train.extend(part.train)
            split.test.extend(part.test)
    return split, bayes_accuracy


def prompts(config: DataConfig) -> Split[Prompt]:
    """All prompts of a recipe."""
    found: list[Prompt] = []
    for source in config.prompts:
        if source.path == "toy":
            found.extend(toy.prompts()[: source.count])
        elif source.path == "stories":
            found.extend(stories.prompts(config.directory)[: source.count])
        else:
            found.extend(files.read_prompts(_path(config, source))[: source.count])
    return _require(split_prompts(found, config.test_fraction), "data.prompts")


def read(config: DataConfig, kind: str, seed: int) -> None:
    """Read the files of a kind and throw them away: raises DataError for what cannot be used.

    What the embedded task makes cannot be wrong, and making it takes seconds.
    """
    for source in getattr(config, kind):
        alone = config.model_copy(update={kind: [source]})
        if source.path in ("toy", ON_POLICY):
            continue
        if kind == "demonstrations":
            demonstrations(alone, seed)
        elif kind == "comparisons":
            comparisons(alone, seed)
        else:
            prompts(alone)


def vote(
    source: SourceConfig, pairs: Sequence[tuple[Completion, Completion]], config: DataConfig, seed: int
) -> Comparisons:
    """Votes of an on-policy source's labeller on sampled pairs."""
    labeller = load_scorer(source.labeller or "", config.directory)
    return votes.simulate_votes(pairs, labeller, source.sharpness, seed)


def content_hash(config: DataConfig, kind: str) -> str:
    """Hash of what the sources of a kind (demonstrations, comparisons, prompts) hold, without making examples.

    Files by their content; sources that make examples by their code, and by the files they read.
    """
    parts = []
    for source in getattr(config, kind):
        if source.path == ON_POLICY:
            content = scorer_digest(source.labeller, config.directory) if source.labeller else ""
        elif source.path in MODULES:
            content = digest([inspect.getsource(module) for module in MODULES[source.path]])
            if source.path == "stories":
                content = digest([content, *(file_digest(path) for path in stories.files(config.directory))])
        else:
            path = _path(config, source)
            if not path.is_file():
                raise DataError(f"{path}: no such file; relative paths start at data.directory (--data-dir)")
            content = file_digest(path)
        parts.append([source.fingerprint_fields(), content])
    return digest(parts)


def _path(config: DataConfig, source: SourceConfig) -> Path:
    return Path(config.directory or ".") / source.path


def _require(split: Split, field: str) -> Split:  # type: ignore[type-arg]
    for part in ("train", "test"):
        if not getattr(split, part):
            raise DataError(f"{field}: no example in the {part} part; give more prompts or change data.test_fraction")
    return split


def model_path(model: ModelConfig, data: DataConfig) -> str | None:
    """Where the first weights are: a directory (relative ones may start at the data directory), or a hub id."""
    if model.path is None:
        return None
    for path in (Path(model.path), Path(data.directory or ".") / model.path):
        if path.is_dir():
            return str(path)
    return model.path


def model_hash(model: ModelConfig, data: DataConfig) -> str:
    """Hash of the first weights' files, or of a hub id with its revision."""
    path = model_path(model, data)
    if path is None or not Path(path).is_dir():
        return digest([path, model.revision])
    return digest([[file.name, file_digest(file)] for file in sorted(Path(path).iterdir()) if file.is_file()])
