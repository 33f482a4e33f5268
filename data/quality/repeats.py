"""Votes that repeat, nearly repeat or contradict others, and prompts that are on both sides of the split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.quality.minhash import PIECE, Rows, Signatures, bands, joint_bands, neighbours, similarity
from data.quality.survey import Survey

Mask = NDArray[np.bool_]
CLEAR = 0.2  # of similarities, four deviations of the estimate: from which on it is told which response is which


@dataclass(frozen=True)
class Repeats:
    """Of all votes, by their index: which are concerned, and by kind the index of the vote that each goes with."""

    duplicate: Mask  # not the first of the same annotator's votes on this pair with this result
    near_duplicate: Mask  # on a pair nearly the same as an earlier one
    contradiction: Mask  # on a pair that one annotator, or somebody unnamed, voted on in both directions
    disagreement: Mask  # on a pair that different annotators voted on in both directions
    near_contradiction: Mask  # the same of pairs that are nearly one, and each voted on in one direction
    near_disagreement: Mask
    leakage: Mask  # held out, with a prompt that training has too
    near_leakage: Mask  # held out, with a prompt nearly the same as one of training
    leaking: Mask  # of training, with a prompt that is held out too, or nearly
    leaning: NDArray[np.int8]  # 1, -1, 0: each vote's direction, the same for all pairs that are nearly one
    partners: dict[str, Rows]  # pair: the first vote on it; alike: that on the pair which it is nearly the same as

    def pairs(self, mask: Mask) -> Mask:
        """Of votes on some pairs the first on each pair."""
        first: Mask = mask & (self.partners["pair"] == np.arange(len(mask)))
        return first

    def groups(self, mask: Mask) -> Rows:
        """Of votes on pairs that are nearly one, the first vote on what all of a group are alike."""
        return np.unique(self.partners["alike"][mask])


def find_repeats(survey: Survey, least: float) -> Repeats:
    """least: Jaccard similarity from which on texts are nearly the same."""
    unit, said, annotator = survey.column("unit"), survey.column("said"), survey.column("annotator")
    duplicate, originals = _repeated(np.stack([unit, annotator.astype(np.uint64), said.astype(np.uint64)], axis=1))
    record = survey.column("record")
    contradiction, disagreement = _opposed(unit, np.where(duplicate, 0, said), annotator, record)
    _, first, numbers = np.unique(unit, return_index=True, return_inverse=True)
    near, nearest = _near_duplicates(survey, np.sort(first), least)
    pair = first[numbers]
    alike = np.where(near[pair], nearest[pair], pair)
    leaning = _turned(survey, near, nearest)[pair] * survey.column("leaning")
    # Pairs that nearly repeat another, and those others; what stands against itself already is told of once.
    rows = np.flatnonzero(np.isin(alike, alike[near]))
    told = (duplicate | contradiction | disagreement)[rows]
    opposed = _opposed(alike[rows].astype(np.uint64), np.where(told, 0, leaning[rows]), annotator[rows], record[rows])
    near_contradiction, near_disagreement = np.zeros((2, len(unit)), bool)
    near_contradiction[rows], near_disagreement[rows] = opposed
    leakage, near_leakage, leaking, leaked = _leakage(survey, least)
    partners = {"duplicate": originals, "near_duplicate": nearest, "leakage": leaked, "pair": pair, "alike": alike}
    opposites = contradiction, disagreement, near_contradiction, near_disagreement
    return Repeats(duplicate, near, *opposites, leakage, near_leakage, leaking, leaning, partners)


def _repeated(keys: NDArray[np.uint64]) -> tuple[Mask, Rows]:
    """Which rows stand earlier too, and where first."""
    if not len(keys):
        return np.zeros(0, bool), np.zeros(0, np.int64)
    _, first, numbers = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    originals = first[numbers.ravel()]
    later = np.ones(len(keys), bool)
    later[first] = False
    return later, originals


def _opposed(
    unit: NDArray[np.uint64], said: NDArray[np.int8], annotator: NDArray[np.int32], record: NDArray[np.uint32]
) -> tuple[Mask, Mask]:
    """Votes on pairs with votes in both directions: where one source stands against itself, and where sources differ.

    A vote without a name may be anybody's: against one of another record it is a contradiction. Several votes of one
    record are of several people. said: 0 for what does not count.
    """
    _, pair = np.unique(unit, return_inverse=True)
    pairs = int(pair.max(initial=-1)) + 1
    decided, named = said != 0, annotator >= 0
    # [2, pairs]: of the votes in each direction the least and the greatest record.
    none = np.iinfo(np.int64).max
    least, most = np.full((2, pairs), none), np.full((2, pairs), -1)
    side, number = (said > 0).astype(np.int64), record.astype(np.int64)
    np.minimum.at(least, (side[decided], pair[decided]), number[decided])
    np.maximum.at(most, (side[decided], pair[decided]), number[decided])
    opposed: Mask = np.asarray((most >= 0).all(axis=0))
    contradicted = np.zeros(pairs, bool)
    unnamed = decided & ~named & opposed[pair]
    other = 1 - side[unnamed], pair[unnamed]
    contradicted[pair[unnamed][(least[other] != number[unnamed]) | (most[other] != number[unnamed])]] = True
    source = pair * (int(annotator.max(initial=-1)) + 1) + annotator
    source, index = np.unique(source[decided & named], return_inverse=True)
    ways = np.zeros((2, len(source)), bool)
    ways[side[decided & named], index] = True
    itself: Mask = np.asarray(ways.all(axis=0))
    contradicted[pair[decided & named][itself[index]]] = True
    return contradicted[pair], (opposed & ~contradicted)[pair]


def _near_duplicates(survey: Survey, firsts: Rows, least: float) -> tuple[Mask, Rows]:
    """Votes on pairs whose prompt and responses are nearly those of an earlier pair that is none; firsts: one of each.

    Alike is no chain: who is alike a near duplicate, and not what that one goes with, stays.
    """
    near, nearest = np.zeros(len(survey), bool), np.full(len(survey), -1, np.int64)
    prompts, both, each = survey.prompts.read(), survey.both.read(), survey.each.read()
    for keys in joint_bands(prompts, both, firsts):
        for one, other in neighbours(keys):
            earlier, later = firsts[np.minimum(one, other)], firsts[np.maximum(one, other)]
            known = near[later]
            earlier, later = earlier[~known], later[~known]
            alike = similarity(prompts[earlier], prompts[later]) >= least
            earlier, later = earlier[alike], later[alike]
            alike = _alike(each[earlier], each[later], least)
            near[later[alike]] = True
            nearest[later[alike]] = earlier[alike]
    for row in np.flatnonzero(near):
        kept = nearest[row]
        if near[kept]:
            kept = nearest[kept]
            if similarity(prompts[[kept]], prompts[[row]]) < least or not _alike(each[[kept]], each[[row]], least):
                near[row], kept = False, -1
            nearest[row] = kept
    return near, nearest


def _alike(one: Signatures, other: Signatures, least: float) -> Mask:
    """Whether two responses are nearly two others, whichever is which; both signatures stand in a row."""
    return np.maximum(*_both_ways(one, other)) >= least


def _both_ways(one: Signatures, other: Signatures) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lesser similarity of two responses to two others: the first to the first, and the first to the second."""
    middle = one.shape[1] // 2
    turned = np.roll(other, middle, axis=1)
    straight, crossed = (
        np.minimum(similarity(one[:, :middle], these[:, :middle]), similarity(one[:, middle:], these[:, middle:]))
        for these in (other, turned)
    )
    return straight, crossed


def _turned(survey: Survey, near: Mask, nearest: Rows) -> NDArray[np.int8]:
    """Of each near duplicate, whether its responses stand as in what it goes with (1), turned (-1), or nobody can say.

    Nobody can (0) where the two responses of a pair are themselves so alike that either may be either.
    """
    turned, each = np.ones(len(near), np.int8), survey.each.read()
    rows = np.flatnonzero(near)
    for piece in (rows[i : i + PIECE] for i in range(0, len(rows), PIECE)):
        straight, crossed = _both_ways(each[nearest[piece]], each[piece])
        turned[piece] = np.where(np.abs(straight - crossed) > CLEAR, np.sign(straight - crossed), 0)
    return turned


def _leakage(survey: Survey, least: float) -> tuple[Mask, Mask, Mask, Rows]:
    """Held-out votes whose prompts are in training, those that nearly are, and the training votes concerned."""
    prompt, held_out = survey.column("prompt"), survey.column("held_out")
    leakage, near, leaking = (np.zeros(len(prompt), bool) for _ in range(3))
    partner = np.full(len(prompt), -1, np.int64)
    sides = [np.unique(prompt[held_out == side], return_index=True) for side in (0, 1)]
    shared, training, held = np.intersect1d(sides[0][0], sides[1][0], assume_unique=True, return_indices=True)
    position = [np.flatnonzero(held_out == side) for side in (0, 1)]
    other = (position[1][sides[1][1][held]], position[0][sides[0][1][training]])  # a held-out vote, one of training
    at = np.searchsorted(shared, prompt)
    at[at == len(shared)] = 0
    there = shared[at] == prompt if len(shared) else np.zeros(len(prompt), bool)
    for side, mask in ((0, leaking), (1, leakage)):
        mask |= there & (held_out == side)
        partner[mask] = other[side][at[mask]]
    # One of each prompt, on each side.
    rows = np.sort(np.concatenate([position[side][sides[side][1]] for side in (0, 1)]))
    found = survey.prompts.read()
    for keys in bands(found, rows):
        for one, later in neighbours(keys, held_out[rows]):
            differ = held_out[rows[one]] != held_out[rows[later]]
            trained, tested = rows[one[differ]], rows[later[differ]]
            alike = similarity(found[trained], found[tested]) >= least
            trained, tested = trained[alike], tested[alike]
            for mask, concerned, because in ((near, tested, trained), (leaking, trained, tested)):
                fresh = ~mask[concerned] & ~leakage[concerned]
                mask[concerned[fresh]] = True
                partner[concerned[fresh]] = because[fresh]
    return (
        leakage,
        _spread(near, prompt, held_out) & ~leakage,
        _spread(leaking, prompt, held_out),
        _filled(partner, prompt, held_out),
    )


def _spread(mask: Mask, prompt: NDArray[np.uint64], held_out: NDArray[np.int8]) -> Mask:
    """What is true of one vote, for all votes on the same prompt on the same side."""
    spread = np.zeros(len(mask), bool)
    for side in (0, 1):
        spread |= (held_out == side) & np.isin(prompt, prompt[mask & (held_out == side)])
    return spread


def _filled(partner: Rows, prompt: NDArray[np.uint64], held_out: NDArray[np.int8]) -> Rows:
    """The partner of one vote, for all on the same prompt on the same side."""
    filled = partner.copy()
    for side in (0, 1):
        rows = np.flatnonzero((held_out == side) & (partner >= 0))
        if not len(rows):
            continue
        known, first = np.unique(prompt[rows], return_index=True)
        at = np.minimum(np.searchsorted(known, prompt), len(known) - 1)
        mask = (held_out == side) & (known[at] == prompt) & (filled < 0)
        filled[mask] = partner[rows[first[at[mask]]]]
    return filled
