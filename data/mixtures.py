"""Several sources as one: split by prompts, without repeats where those are prompts, mixed by weight.

All of it is arithmetic on indices: no example is read, so sources may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.formats import Example
from data.mapped import MappedExamples, Selection, identities_of
from data.ratings import Rating
from data.splits import Split, held_out, side_of, stable_random
from rlhf.types import Prompt

T = TypeVar("T")


@dataclass(frozen=True)
class Part(Generic[T]):
    """One source's examples, with what decides their sides."""

    examples: Sequence[T]
    sides: NDArray[np.uint64]
    weight: float | None = None
    replay: float | None = None
    notes: tuple[str, ...] = ()

    def identities(self) -> NDArray[np.uint64]:
        """[examples, 2]: equal rows for equal examples."""
        if isinstance(self.examples, MappedExamples):
            return self.examples.identities()
        return identities_of(self.examples)  # type: ignore[arg-type]


def part_of(examples: Sequence[T], weight: float | None = None, replay: float | None = None) -> Part[T]:
    """Examples in memory as a source."""
    sides = np.array([side_of(deciding(example)) for example in examples], np.uint64)  # type: ignore[arg-type]
    return Part(examples, sides, weight, replay)


def deciding(example: Example) -> str:
    """The text whose hash puts an example into train or test: its prompt's."""
    if isinstance(example, Rating):
        return example.side
    return (example if isinstance(example, Prompt) else example.prompt).text


def split_parts(parts: Sequence[Part[T]], test_fraction: float, seed: int, *, unique: bool = False) -> Split[T]:
    """Train and test of all sources, in their order.

    Without weights the sources stand one behind the other. With them (1.0 where one has none) the training part has as
    many examples as without, each source its share of weight / sum: whole passes, and for the rest some of its examples
    that the seed draws. A source with replay is drawn from beside them: so many that they are this share of all. Held
    out is every example once, whatever its weight. unique: of equal examples the first stays.
    """
    starts = np.cumsum([0, *(len(part.examples) for part in parts)])
    train, test = [], []
    first = _first_of_equals(parts) if unique else None
    for part, start in zip(parts, starts, strict=False):
        held = held_out(part.sides, test_fraction)
        kept = np.ones(len(held), bool) if first is None else first[start : start + len(held)]
        train.append(np.flatnonzero(~held & kept) + start)
        test.append(np.flatnonzero(held & kept) + start)
    new = [number for number, part in enumerate(parts) if part.replay is None]
    if any(part.weight is not None for part in parts):
        mixed = weighted([train[i] for i in new], [parts[i].weight or 1.0 for i in new], seed)
        train = [mixed[new.index(i)] if i in new else own for i, own in enumerate(train)]
    if len(new) < len(parts):
        train = replayed(train, [part.replay for part in parts], seed)
    sequences = [part.examples for part in parts]
    notes = tuple(note for part in parts for note in part.notes)
    return Split(Selection(sequences, _joined(train)), Selection(sequences, _joined(test)), notes)


def weighted(indices: Sequence[NDArray[np.int64]], weights: Sequence[float], seed: int) -> list[NDArray[np.int64]]:
    """As many of each source as its weight's share of the total; see `split_parts`."""
    total = sum(map(len, indices))
    present = [weight if len(own) else 0.0 for own, weight in zip(indices, weights, strict=True)]
    ends = np.round(total * np.cumsum(present) / max(sum(present), 1e-300)).astype(int)
    counts = np.diff(ends, prepend=0)
    return [
        _drawn(own, int(wanted), f"{seed}/mixture/{number}")
        for number, (own, wanted) in enumerate(zip(indices, counts, strict=True))
    ]


def replayed(
    indices: Sequence[NDArray[np.int64]], shares: Sequence[float | None], seed: int
) -> list[NDArray[np.int64]]:
    """Of sources with a share so many that they are this share of all; the others (None) as they are."""
    new = sum(len(own) for own, share in zip(indices, shares, strict=True) if share is None)
    whole = new / (1 - sum(share for share in shares if share is not None))
    return [
        own if share is None else _drawn(own, round(share * whole), f"{seed}/replay/{number}")
        for number, (own, share) in enumerate(zip(indices, shares, strict=True))
    ]


def _drawn(own: NDArray[np.int64], wanted: int, key: str) -> NDArray[np.int64]:
    """So many of a source: whole passes, and for the rest some that the key draws. Of an empty one none."""
    if not len(own):
        return own
    passes, rest = divmod(wanted, len(own))
    drawn = np.sort(stable_random(key).permutation(len(own))[:rest])
    return np.concatenate([*[own] * passes, own[drawn]])


def _first_of_equals(parts: Sequence[Part[T]]) -> NDArray[np.bool_]:
    identities = np.concatenate([np.empty((0, 2), np.uint64), *(part.identities() for part in parts)])
    order = np.lexsort((identities[:, 1], identities[:, 0]))  # stable: of equals the first stays in front
    ordered = identities[order]
    differs = np.ones(len(order), bool)
    differs[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.zeros(len(order), bool)
    first[order[differs]] = True
    return first


def _joined(indices: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *indices])
