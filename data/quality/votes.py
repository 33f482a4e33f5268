"""The votes of a recipe or of files, one after another, each with its place; to be gone through more than once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from data import sources
from data.locations import files_of
from data.ratings import Rating
from data.reading import Reading
from data.records import BadRecord, DataFile
from data.splits import Split, is_test
from rlhf.config import DataConfig, SourceConfig
from rlhf.errors import DataError
from rlhf.types import Comparison

# What a file's name says of the split that it holds; word by word, so that "latest" and "contest" say nothing.
_HELD_OUT = {"test", "valid", "validation", "val", "dev", "eval", "heldout", "holdout"}
_WORDS = re.compile(r"[a-z]+")


@dataclass(frozen=True)
class Vote:
    """One vote and where it stands."""

    place: str
    comparison: Comparison
    held_out: bool
    # Rated texts share their prompts and are split by their own; what is made here phrases few questions in many ways.
    may_leak: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)  # of its record; none where it stands in no file as it is


@dataclass(frozen=True)
class _Origin:
    """Some votes of one source: of a file, or what the source makes."""

    source: SourceConfig
    files: Sequence[DataFile]  # none: the source makes them
    held_out: bool | None = None  # None: as each prompt's hash says


@dataclass
class Votes:
    """All votes of a recipe's comparisons. Bad records are passed over, and told of while one iterates."""

    config: DataConfig
    seed: int = 0
    sampled: Mapping[int, Sequence[Comparison]] = field(default_factory=dict)  # of on-policy sources, by position
    split: str = "prompt hashes"  # what tells training from held-out
    accounts: dict[int, dict[str, Any]] = field(default_factory=dict)  # of sources that were read to their ends
    _origins: list[_Origin] = field(default_factory=list)
    _made: dict[int, Split[Comparison]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the files; DataError for those that are not there."""
        if self._origins:
            return
        for source in self.config.comparisons:
            made = source.path in (*sources.MODULES, sources.ON_POLICY)
            self._origins.append(_Origin(source, [] if made else files_of(source.path, self.config.directory)))

    def files(self) -> list[DataFile]:
        """The files that are read."""
        return [file for origin in self._origins for file in origin.files]

    def read(self, tell_bad: Callable[[str, BadRecord], None] | None = None) -> Iterator[Vote]:
        """All votes, always in the same order. tell_bad: told of each bad record, and of its source's `bad_records`.

        Raises DataError for a file that cannot be read at all, or that holds no comparisons.
        """
        for number, origin in enumerate(self._origins):
            if number in self._made and not (tell_bad and origin.files):
                yield from self._make(number, origin)
            elif origin.files:
                yield from self._of_files(number, origin, tell_bad)
            else:
                yield from self._make(number, origin)

    def _of_files(
        self, number: int, origin: _Origin, tell_bad: Callable[[str, BadRecord], None] | None
    ) -> Iterator[Vote]:
        dropping = origin.source.model_copy(update={"bad_records": "drop"})
        reading = Reading(dropping, origin.files, "comparisons")
        if tell_bad:
            reading.tell_bad = lambda bad: tell_bad(origin.source.bad_records, bad)
        rated = False
        for example in reading:
            if isinstance(example, Rating):  # who is compared with whom depends on all of them
                rated = True
                continue
            assert isinstance(example, Comparison)  # by the kind
            told = origin.held_out
            held_out = is_test(example.prompt, self.config.test_fraction) if told is None else told
            yield Vote(reading.place, example, held_out, fields=reading.last)
        assert reading.format is not None  # there was an example, or the reading has raised
        path = origin.files[0].name if len(origin.files) == 1 else origin.source.path
        counts = {"records": reading.records, "comparisons": reading.examples}
        self.accounts[number] = {"path": path, "format": reading.format.name, **counts}
        if rated:
            yield from self._make(number, origin)

    def _make(self, number: int, origin: _Origin) -> Iterator[Vote]:
        """Votes that stand in no file as they are; their mapped file is kept, since making them takes long."""
        if number not in self._made:
            self._made[number] = self._split(number, origin)
        split = self._made[number]
        name = origin.files[0].name if len(origin.files) == 1 else origin.source.path
        account = self.accounts.setdefault(number, {"path": name, "format": None, "records": None})
        account["comparisons"] = len(split.train) + len(split.test)
        for i, vote in enumerate(itertools.chain(split.train, split.test)):
            held_out = i >= len(split.train) if origin.held_out is None else origin.held_out
            yield Vote(f"{name}, pair {i + 1}", vote, held_out, may_leak=False)

    def _split(self, number: int, origin: _Origin) -> Split[Comparison]:
        source = origin.source.model_copy(update={"weight": None, "replay": None, "bad_records": "drop"})
        if origin.files and not self.config.comparisons:  # files of a command
            source = source.model_copy(update={"path": str(origin.files[0].path)})
        config = self.config.model_copy(update={"comparisons": [source]})
        split, _ = sources.comparisons(config, self.seed, sampled={0: self.sampled.get(number, [])})
        return split


def votes_of_files(names: Sequence[str], source: SourceConfig, config: DataConfig, seed: int = 0) -> Votes:
    """The votes of files, directories and hub ids, each read as `source` says.

    Where names of files say that some are held out and others are not (train.jsonl, test.jsonl), they tell the splits.
    """
    origins: list[_Origin] = []
    for name in names:
        for file in files_of(name, config.directory):
            origins.append(_Origin(source.model_copy(update={"path": name}), [file], _told(name, file)))
    if len({file.path.resolve() for origin in origins for file in origin.files}) < len(origins):
        raise DataError("a file is given twice; give each once")
    by_name = {origin.held_out for origin in origins} == {True, False}
    if not by_name:
        origins = [_Origin(origin.source, origin.files) for origin in origins]
    emptied = config.model_copy(update={"comparisons": []})
    return Votes(emptied, seed, split="names of files" if by_name else "prompt hashes", _origins=origins)


def _told(name: str, file: DataFile) -> bool:
    """Whether the name of a file, or of what was asked for, says that it is held out."""
    names = PurePath(file.name).name, PurePath(name).name
    return any(word in _HELD_OUT for text in names for word in _WORDS.findall(text.lower()))
