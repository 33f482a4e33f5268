"""Votes in batches: a file each, a field's values, or stretches of time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import PurePath

from data.fields import name_of
from data.quality.votes import Vote, Votes, votes_of_files
from data.records import BadRecord, printable, shown
from rlhf.config import DataConfig, SourceConfig
from rlhf.errors import ConfigError, DataError

UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}  # seconds
Told = Callable[[str, BadRecord], None]
Batched = tuple[str, Vote]  # a vote with its batch's name


def of_files(names: Sequence[str], source: SourceConfig, config: DataConfig) -> list[tuple[str, Votes]]:
    """What is given, each a batch with the name of its file, without what all names end in."""
    votes_of_files(names, source, config)  # finds what is missing, or given twice, before anything is read
    stems = [PurePath(name.rstrip("/")).name.partition(".")[0] or name for name in names]
    unique = stems if len(set(stems)) == len(stems) else list(names)
    batches = []
    for name, path in zip(unique, names, strict=True):
        own = source.model_copy(update={"path": path})
        batches.append((printable(name), votes_of_files([path], own, config)))
    return batches


def read_batches(batches: Iterable[tuple[str, Votes]], tell_bad: Told) -> Iterator[Batched]:
    """All votes, batch by batch."""
    for name, votes in batches:
        yield from ((name, vote) for vote in votes.read(tell_bad))


def by_field(batched: Iterable[Batched], field: str) -> Iterator[Batched]:
    """Batches by a field of the records instead, as they come. Raises DataError where one lacks it."""
    for _, vote in batched:
        if vote.fields.get(field) is None:
            raise DataError(
                f"{vote.place}: no field {field!r} that names its batch; add it, or give a file for each batch"
            )
        try:
            yield printable(name_of(vote.fields[field], field)), vote
        except ValueError as error:
            raise DataError(f"{vote.place}: {error}; give a text or a whole number") from error


def by_time(batched: Iterable[Batched], every: float) -> list[Batched]:
    """Batches of so many seconds instead, counted from the first vote's midnight (UTC), in order of time.

    Raises DataError where a vote has no time.
    """
    votes = [vote for _, vote in batched]
    for vote in votes:
        if vote.comparison.time is None:
            raise DataError(f"{vote.place}: no time; add it, or give a file for each batch")
    votes.sort(key=_time)
    if not votes:
        return []
    start = _time(votes[0]) // UNITS["d"] * UNITS["d"]
    form = "%Y-%m-%d" if every % UNITS["d"] == 0 else "%Y-%m-%d %H:%M"

    def begin(vote: Vote) -> str:
        seconds = start + (_time(vote) - start) // every * every
        return datetime.fromtimestamp(seconds, UTC).strftime(form)

    return [(begin(vote), vote) for vote in votes]


def _time(vote: Vote) -> float:
    assert vote.comparison.time is not None
    return vote.comparison.time


def seconds_of(every: str) -> float:
    """A stretch of time such as 12h, 7d or 2w in seconds. Raises ConfigError for what is none."""
    found = re.fullmatch(r"(\d{1,6})([hdw])", every)
    if not found or int(found[1]) == 0:
        raise ConfigError(f"--every={shown(every)}: is no stretch of time; write hours, days or weeks: 12h, 7d, 2w")
    return float(int(found[1]) * UNITS[found[2]])
