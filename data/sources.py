"""Where a recipe's examples come from, split into train and test, and the hash of their content. Loads no torch.

A source's path is `toy` (the embedded task), `stories` (TinyStories), `on-policy` (pairs of responses that the reward
stage samples from the SFT model and a labeller votes on), or else a file, a directory or a hub id (`data.locations`),
whose records are read by `data.reading`, written to a scratch directory once and then mapped into memory.
"""

from __future__ import annotations

import inspect
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from data import locations, mapped, stories, toy, toy_gold, toy_world, votes
from data.formats import Example
from data.locations import few, files_of
from data.mixtures import Part, deciding, part_of, split_parts
from data.ratings import ALONE, Pairing, Partners, Rating
from data.reading import Reading
from data.scorers import load_scorer, scorer_digest
from data.scratch import remove, sound
from data.splits import Split, held_out, side_of, split_prompts
from data.votes import Comparisons
from rlhf.config import DataConfig, SourceConfig
from rlhf.errors import DataError
from rlhf.store.artifact import digest, file_digest
from rlhf.types import Comparison, Completion, Demonstration, Prompt

T = TypeVar("T")

ON_POLICY = "on-policy"
EMPTY: Mapping[int, Sequence[Comparison]] = {}
MODULES: dict[str, tuple[ModuleType, ...]] = {"toy": (toy, toy_gold, toy_world), "stories": (stories,)}
# How many the embedded task draws unless the recipe says otherwise: (for training, held out).
TOY_DEMONSTRATIONS, TOY_COMPARISONS = (6000, 400), (12_000, 4000)


def demonstrations(config: DataConfig, seed: int, scratch: Path | None = None) -> Split[Demonstration]:
    """All demonstrations of a recipe. scratch: where files are kept that can be used again; None: nowhere."""
    parts: list[Part[Demonstration]] = []
    for source in config.demonstrations:
        if source.path == "toy":
            prompts = split_prompts(toy.prompts(), config.test_fraction)
            made = toy.demonstrations(source.count or TOY_DEMONSTRATIONS[0], seed, prompts.train)
            made += toy.demonstrations(source.held_out or TOY_DEMONSTRATIONS[1], seed, prompts.test)
            parts.append(part_of(made, source.weight, source.replay))
        elif source.path == "stories":
            made = stories.demonstrations(config.directory, source.count, seed)
            parts.append(part_of(made, source.weight, source.replay))
        else:
            parts.append(_file_part(config, source, "demonstrations", seed, scratch))
    return _require(split_parts(parts, config.test_fraction, seed), "data.demonstrations")


def comparisons(
    config: DataConfig, seed: int, scratch: Path | None = None, sampled: Mapping[int, Sequence[Comparison]] = EMPTY
) -> tuple[Split[Comparison], float | None]:
    """All comparisons of a recipe, and the held-out ones' Bayes accuracy if known.

    sampled: the votes of on-policy sources, by their position; one without votes is left out.
    """
    parts: list[Part[Comparison]] = []
    bayes_accuracy = None
    for number, source in enumerate(config.comparisons):
        if source.path == "toy":
            prompts = split_prompts(toy.prompts(), config.test_fraction)
            made = toy.comparisons(source.count or TOY_COMPARISONS[0], seed, prompts.train).records
            kept_out = toy.comparisons(source.held_out or TOY_COMPARISONS[1], seed, prompts.test)
            parts.append(part_of([*made, *kept_out.records], source.weight, source.replay))
            bayes_accuracy = kept_out.bayes_accuracy if len(config.comparisons) == 1 else None
        elif source.path == ON_POLICY:
            parts.append(part_of(sampled.get(number, []), source.weight, source.replay))
        else:
            parts.append(_file_part(config, source, "comparisons", seed, scratch))
    return split_parts(parts, config.test_fraction, seed), bayes_accuracy


def prompts(config: DataConfig, seed: int, scratch: Path | None = None) -> Split[Prompt]:
    """All prompts of a recipe, each once; a source with a weight may repeat those for training."""
    parts: list[Part[Prompt]] = []
    for source in config.prompts:
        if source.path == "toy":
            parts.append(part_of(toy.prompts()[: source.count], source.weight, source.replay))
        elif source.path == "stories":
            parts.append(part_of(stories.prompts(config.directory)[: source.count], source.weight, source.replay))
        else:
            parts.append(_file_part(config, source, "prompts", seed, scratch))
    return _require(split_parts(parts, config.test_fraction, seed, unique=True), "data.prompts")


def read(config: DataConfig, kind: str, seed: int) -> None:
    """Read the files of a kind and throw them away: raises DataError for all that cannot be used.

    What the embedded task makes cannot be wrong, and making it takes seconds.
    """
    problems: list[str] = []
    sides: set[bool] = set()
    for source in getattr(config, kind):
        try:
            if source.path in ("toy", ON_POLICY):
                sides = {True, False}
            elif source.path == "stories" and kind != "comparisons":
                stories.demonstrations(config.directory, source.count, seed)
                sides = {True, False}
            else:
                sides |= _sides(config, source, kind)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    for part, side in (("train", False), ("test", True)):
        if side not in sides:
            raise DataError(_lacks(f"data.{kind}", part))


def _sides(config: DataConfig, source: SourceConfig, kind: str) -> set[bool]:
    """The sides (held out or not) that a source's files give examples for; DataError where they give none."""
    sides: set[bool] = set()
    partners = Partners()
    for example in Reading(source, files_of(source.path, config.directory), kind):
        held = side_of(deciding(example)) / 2**64 < config.test_fraction
        if not isinstance(example, Rating) or partners.found(example, held):
            sides.add(held)
    if not sides:
        raise DataError(_no_pairs(source))
    return sides


def _no_pairs(source: SourceConfig) -> str:
    return f"{source.path}: none of its rated texts has a partner ({ALONE}); give more texts to compare"


def reads_files(config: DataConfig, kind: str) -> bool:
    """Whether some source of a kind is a file, a directory or a hub id."""
    return any(source.path not in (*MODULES, ON_POLICY) for source in getattr(config, kind))


def vote(
    source: SourceConfig, pairs: Sequence[tuple[Completion, Completion]], config: DataConfig, seed: int
) -> Comparisons:
    """Votes of an on-policy source's labeller on sampled pairs."""
    labeller = load_scorer(source.labeller or "", config.directory)
    return votes.simulate_votes(pairs, labeller, source.sharpness, seed)


def content_hash(config: DataConfig, kind: str) -> str:
    """Hash of what the sources of a kind (demonstrations, comparisons, prompts) hold, without making examples."""
    return digest([[s.fingerprint_fields(), _content_hash(config, s)] for s in getattr(config, kind)])


def _content_hash(config: DataConfig, source: SourceConfig) -> str:
    """Files by their content; sources that make examples by their code, and by the files they read."""
    if source.path == ON_POLICY:
        return scorer_digest(source.labeller, config.directory) if source.labeller else ""
    if source.path in MODULES:
        content = digest([inspect.getsource(module) for module in MODULES[source.path]])
        if source.path == "stories":
            content = digest([content, *(file_digest(path) for path in stories.files(config.directory))])
        return content
    return locations.content_hash(source.path, config.directory)


def _file_part(config: DataConfig, source: SourceConfig, kind: str, seed: int, scratch: Path | None) -> Part[Any]:
    """A source's examples, written to the scratch directory unless they are there already."""
    if scratch is None:
        # What is mapped stays readable when its directory is gone, and takes no space once it is let go.
        with tempfile.TemporaryDirectory(prefix="rlhf-data-") as folder:
            return _file_part(config, source, kind, seed, Path(folder))
    # Seed and fraction: rated texts are paired by them.
    made_from = [mapped.FORMAT, kind, source.fingerprint_fields(), seed, config.test_fraction]
    path = scratch / f"{kind}-{digest([*made_from, _content_hash(config, source)])[:24]}.arrow"
    damage: list[str] = []
    account = sound(path, damage.append) or _write(path, config, source, kind, seed)
    examples = mapped.MappedExamples[Any](path, kind)
    return Part(examples, examples.sides, source.weight, source.replay, (*damage, *account["notes"]))


def _write(path: Path, config: DataConfig, source: SourceConfig, kind: str, seed: int) -> dict[str, Any]:
    """Write a source's examples; the account of the file."""
    reading = Reading(source, files_of(source.path, config.directory), kind)

    def notes() -> list[str]:
        left = locations.not_read(source.path, config.directory)
        return [*reading.notes(), *([f"{source.path}: not read: {few(left)}"] if left else [])]

    rows = ((example, deciding(example)) for example in reading)
    first = next(rows, None)
    if first and isinstance(first[0], Rating):
        return _write_pairs(path, itertools.chain([first], rows), notes, source, config, seed)
    return mapped.write_examples(path, itertools.chain([first] if first else [], rows), notes)


def _write_pairs(
    path: Path,
    rows: Iterator[tuple[Example, str]],
    notes: Callable[[], list[str]],
    source: SourceConfig,
    config: DataConfig,
    seed: int,
) -> dict[str, Any]:
    """Comparisons of rated texts, by way of a file of the texts: who is paired with whom depends on all of them."""
    rated = path.with_name(f"{path.stem}-ratings.arrow")
    mapped.write_examples(rated, rows, list)
    ratings = mapped.MappedExamples[Rating](rated, "ratings")
    held = held_out(ratings.sides, config.test_fraction)
    pairing = Pairing(ratings, held.tolist(), source.prompt, seed)

    def told() -> list[str]:
        if not pairing.pairs:
            raise DataError(_no_pairs(source))
        return [*notes(), *pairing.notes(source.path)]

    try:
        return mapped.write_examples(path, pairing, told)
    finally:
        remove(rated)


def _require(split: Split[T], field: str) -> Split[T]:
    for part in ("train", "test"):
        if not getattr(split, part):
            raise DataError(_lacks(field, part))
    return split


def _lacks(field: str, part: str) -> str:
    return f"{field}: no example in the {part} part; give more prompts or change data.test_fraction"
