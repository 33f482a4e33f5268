"""Texts that nearly repeat each other, found without comparing all of them: MinHash and bands.

A text is the set of its runs of SHINGLE bytes; how alike two texts are is the Jaccard similarity of the sets (Broder
1997). A signature estimates it: the runs' hashes are dealt to BINS, and of each bin the least is kept (one permutation
hashing, Li, Owen & Zhang 2012), an empty bin takes that of another, which its number picks (optimal densification,
Shrivastava 2017), and of each the low eight bits are stored (b-bit minwise hashing, Li & König 2010). Texts with some
band of eight bins in common are candidates, with similarity s for 1 - (1 - s^8)^16 of all pairs: 0.95 at 0.8, 0.9999 at
0.9; their signatures decide.

All texts of a batch go through numpy as one array of bytes: a Python loop over texts or hash functions takes minutes
where this takes seconds.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

SHINGLE = 8  # bytes, read as one number
BINS = 128  # bytes of a signature
BAND = 8  # bins, read as one number
PIECE = 65_536  # pairs that are compared together

EMPTY = np.uint64(2**64 - 1)
Signatures = NDArray[np.uint8]  # [texts, BINS]
Rows = NDArray[np.int64]
Keys = NDArray[np.uint64]


def signatures(texts: Sequence[str]) -> Signatures:
    """[texts, BINS]. A text shorter than a shingle is its own only one; texts are taken as they are, case and all."""
    return signed(minima(texts))


def minima(texts: Sequence[str]) -> NDArray[np.uint64]:
    """[texts, BINS]: the least hash in each bin, EMPTY where there is none; of two texts together it is the less."""
    if not texts:
        return np.zeros((0, BINS), np.uint64)
    encoded = [text.encode().ljust(SHINGLE, b"\0") for text in texts]
    lengths = np.array([len(text) for text in encoded])
    counts = lengths - (SHINGLE - 1)
    joined = np.frombuffer(b"".join(encoded), np.uint8)
    every = np.ndarray(len(joined) - (SHINGLE - 1), "<u8", joined, strides=(1,))
    # A text's shingles begin at all its bytes but the last seven, so that none spans two texts.
    skipped = np.repeat(np.arange(len(texts)) * (SHINGLE - 1), counts)
    mixed = _mix(every[np.arange(len(skipped)) + skipped])
    cells = np.repeat(np.arange(len(texts)) * BINS, counts) + (mixed >> np.uint64(64 - 7)).astype(np.int64)
    least = np.full(len(texts) * BINS, EMPTY)
    np.minimum.at(least, cells, mixed << np.uint64(7))
    return least.reshape(-1, BINS)


def signed(least: NDArray[np.uint64]) -> Signatures:
    """The signatures of minima: each empty bin gets the content of a full one.

    Which one is drawn by the bin's number, the same for all texts, so that alike texts stay alike.
    """
    filled = least.copy()
    rows, bins = np.nonzero(filled == EMPTY)
    for attempt in range(1, 65):
        if not len(rows):
            break
        drawn = _mix(bins.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(attempt))
        content = least[rows, (drawn % np.uint64(BINS)).astype(np.int64)]
        filled[rows, bins] = content
        still = content == EMPTY
        rows, bins = rows[still], bins[still]
    filled[rows, bins] = least[rows].min(axis=1)  # of so few shingles that luck did not find one
    return (filled >> np.uint64(7)).astype(np.uint8)


def similarity(one: Signatures, other: Signatures) -> NDArray[np.float64]:
    """The estimated Jaccard similarity, row by row; bins that are equal by chance, one in 256, are taken off."""
    equal = (one == other).mean(axis=1)
    unbiased: NDArray[np.float64] = np.maximum(0.0, (equal - 1 / 256) / (1 - 1 / 256))
    return unbiased


class SignatureFile:
    """Signatures in an unnamed file, so that memory need not hold those of a large set."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="rlhf-signatures-")  # noqa: SIM115 - closed by `read`
        weakref.finalize(self, self._file.close)
        self._length = 0
        self._mapped: Signatures | None = None

    def append(self, batch: Signatures) -> None:
        """Write more of them."""
        self._file.write(batch.tobytes())
        self._length += len(batch)

    def read(self) -> Signatures:
        """All of them, mapped; nothing is appended after that."""
        if self._mapped is None:
            self._file.flush()
            shape = (self._length, BINS)
            self._mapped = (
                np.memmap(self._file, np.uint8, "r", shape=shape) if self._length else np.zeros(shape, np.uint8)
            )
            self._file.close()
        return self._mapped


def bands(found: Signatures, rows: Rows) -> Iterator[Keys]:
    """Each band of some rows, as numbers: equal where all bins of the band are."""
    for start in range(0, BINS, BAND):
        yield np.ascontiguousarray(found[rows, start : start + BAND]).view("<u8")[:, 0]


def joint_bands(one: Signatures, other: Signatures, rows: Rows) -> Iterator[Keys]:
    """Bands of two texts together, half of each: rows meet with similarities s, t for 1 - (1 - s^4 t^4)^32 of pairs."""
    for start in range(0, BINS, BAND // 2):
        halves = [np.ascontiguousarray(each[rows, start : start + BAND // 2]) for each in (one, other)]
        yield np.concatenate(halves, axis=1).view("<u8")[:, 0]


def neighbours(keys: Keys, rank: NDArray[Any] | None = None) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of positions with equal keys, (earlier, later): each with the first of its key, and with the one before it.

    So the work grows with the number of texts, not with its square, however many are alike. rank: positions stand in
    its order, then in their own, and only those with a rank above that of the first are paired: with the first, and
    with the last of the first's rank.
    """
    ranks = np.zeros(len(keys), np.int8) if rank is None else rank
    order = np.lexsort((ranks, keys))
    ordered = keys[order]
    begins = np.ones(len(order), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    positions = np.arange(len(order))
    first = np.maximum.accumulate(np.where(begins, positions, 0))
    if rank is None:
        before, later = positions - 1, np.flatnonzero(~begins)
    else:
        lowest = ranks[order] == ranks[order][first]
        before, later = np.maximum.accumulate(np.where(lowest, positions, 0)), np.flatnonzero(~lowest)
    for piece in (later[i : i + PIECE] for i in range(0, len(later), PIECE)):
        yield order[first[piece]], order[piece]
        yield order[before[piece]], order[piece]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every bit of a value reaches all of the result's."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
