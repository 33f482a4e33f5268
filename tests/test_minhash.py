"""Signatures against the sets they stand for, and pairs that are found without comparing all."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import words

from data.quality.minhash import SignatureFile, bands, minima, neighbours, signatures, signed, similarity


def shingles(text: str) -> set[bytes]:
    encoded = text.encode().ljust(8, b"\0")
    return {encoded[i : i + 8] for i in range(len(encoded) - 7)}


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def changed(text: str, changes: int, generator: random.Random) -> str:
    parts = text.split()
    for _ in range(changes):
        parts[generator.randrange(len(parts))] = words(generator, 1, 1)
    return " ".join(parts)


def test_the_estimate_is_right_on_average_and_as_exact_as_it_should_be() -> None:
    generator = random.Random(0)
    ones = [words(generator, 20, 80) for _ in range(600)]
    others = [changed(text, generator.randint(0, 12), generator) for text in ones]
    truth = np.array([jaccard(one, other) for one, other in zip(ones, others, strict=True)])
    off = similarity(signatures(ones), signatures(others)) - truth
    assert truth.std() > 0.15  # there was something to estimate
    assert abs(off.mean()) < 0.004 and off.std() < 1.15 * np.sqrt(truth * (1 - truth) / 128).mean()


@given(st.lists(st.text(max_size=40).filter(lambda text: text.isprintable()), min_size=1, max_size=8))
@settings(deadline=None)
def test_a_text_has_one_signature_whatever_stands_beside_it(texts: list[str]) -> None:
    together = signatures(texts)
    for text, signature in zip(texts, together, strict=True):
        assert (signatures([text])[0] == signature).all()


def test_minima_of_two_texts_are_those_of_both() -> None:
    one, other = "the first of two texts, ", "and the second, which is longer"
    separate = minima([one, other])
    union = signed(np.minimum(separate[:1], separate[1:]))
    joined = signatures([f"{one}{other}"])  # seven shingles more, which span both
    assert similarity(union, joined)[0] > 0.7
    assert similarity(union, signatures([one]))[0] == pytest.approx(
        len(shingles(one)) / len(shingles(one) | shingles(other)), abs=0.15
    )


def test_near_pairs_are_found_and_others_are_not() -> None:
    generator = random.Random(1)
    texts = [words(generator, 30, 60) for _ in range(500)]
    texts += [changed(text, 1, generator) for text in texts[:200]]
    found = signatures(texts)
    pairs = {
        (int(a), int(b))
        for keys in bands(found, np.arange(len(texts)))
        for earlier, later in neighbours(keys)
        for a, b in zip(earlier, later, strict=True)
        if similarity(found[[a]], found[[b]])[0] >= 0.7
    }
    wanted = {(i, 500 + i) for i in range(200) if jaccard(texts[i], texts[500 + i]) >= 0.8}
    assert len(wanted) > 150 and len(wanted - pairs) <= 0.02 * len(wanted)
    assert all(b - a == 500 for a, b in pairs)


def test_many_equal_texts_cost_no_square() -> None:
    found = signatures(["all of these are the same text"] * 20_000)
    compared = sum(len(later) for keys in bands(found, np.arange(len(found))) for _, later in neighbours(keys))
    assert compared == 16 * 2 * (len(found) - 1)


def test_ranks_are_paired_across_alone() -> None:
    keys, rank = np.array([7, 7, 7, 7, 8, 8], np.uint64), np.array([1, 0, 1, 0, 1, 1])
    pairs = {(int(a), int(b)) for one, other in neighbours(keys, rank) for a, b in zip(one, other, strict=True)}
    assert pairs == {(1, 0), (3, 0), (1, 2), (3, 2)}


def test_signatures_wait_on_disk() -> None:
    kept = SignatureFile()
    batch = signatures([f"text number {i}" for i in range(1000)])
    tracemalloc.start()
    for _ in range(50):
        kept.append(batch)
    read = kept.read()
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert read.shape == (50_000, 128) and (read[49_000:] == batch).all()
