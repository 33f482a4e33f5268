"""Reward accuracy over number of labels, pairs chosen by each way; run, it prints the table of docs/annotators.md.

The task is data.toy, the reward model a linear Bradley-Terry model on the words of a response and whether they answer
its prompt's fact, in numpy: seconds, so that many rounds and seeds can be tried.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from data import toy
from data.selection import Answer, Candidate, Pool, select
from data.toy_world import fact_of
from rlhf.analysis.statistics import wilson_interval
from rlhf.types import Comparison

Floats = NDArray[np.float64]
FIRST, STEP, ROUNDS, POOL, HELD_OUT = 50, 50, 15, 4000, 2000
WAYS = ("random", "margin", "disagreement")
MODELS = 5  # that disagree, each fitted to votes drawn anew from those that there are (bootstrap)


def words_of(comparison: Comparison, text: str) -> list[str]:
    """Words, whether the answer is the right one, and the length: what a linear model sees of a response."""
    words = text.split()
    answer = fact_of(comparison.prompt.text).answer
    return [*words, *(["<right>"] if f" {answer} " in f" {text} " else []), *["<long>"] * (len(words) // 4)]


def features(comparisons: list[Comparison], vocabulary: dict[str, int]) -> tuple[Floats, Floats]:
    """[comparisons, words] of the chosen and of the rejected responses."""
    sides = np.zeros((2, len(comparisons), len(vocabulary)))
    for row, comparison in enumerate(comparisons):
        for side, text in enumerate((comparison.chosen, comparison.rejected)):
            for word in words_of(comparison, text):
                if word in vocabulary:
                    sides[side, row, vocabulary[word]] += 1
    return sides[0], sides[1]


def fit(difference: Floats, target: Floats, penalty: float = 0.5) -> Floats:
    """Weights of the Bradley-Terry model with a Gaussian prior, by Newton's method."""
    weights = np.zeros(difference.shape[1])
    for _ in range(12):
        wins = 0.5 + 0.5 * np.tanh(difference @ weights / 2)
        gradient = difference.T @ (target - wins) - penalty * weights
        curvature = (difference.T * (wins * (1 - wins))) @ difference + penalty * np.eye(len(weights))
        weights += np.linalg.solve(curvature, gradient)
    return weights


def curve(seed: int, by: str) -> list[tuple[int, float]]:
    """(labels, share of held-out pairs whose better response, by the hidden utility, scores higher)."""
    world = toy.prompts()
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(world))
    held, open_ = [world[i] for i in order[: len(world) // 4]], [world[i] for i in order[len(world) // 4 :]]
    pool, test = toy.comparisons(POOL, seed, open_).records, toy.comparisons(HELD_OUT, seed, held).records
    vocabulary = {word: n for n, word in enumerate(sorted({w for c in pool for w in words_of(c, c.chosen)}))}
    chosen, rejected = features(pool, vocabulary)
    target = np.array([comparison.wanted for comparison in pool])
    test_difference = np.subtract(*features(test, vocabulary))
    chances = [toy.vote_probability(c.prompt.text, c.chosen, c.rejected) for c in test]
    better = np.sign(np.array(chances) - 0.5)
    labelled = list(map(int, draw.permutation(POOL)[:FIRST]))
    found = []
    for _ in range(ROUNDS + 1):
        weights = fit((chosen - rejected)[labelled], target[labelled])
        right = np.sign(test_difference @ weights) * better
        found.append((len(labelled), float(np.where(right == 0, 0.5, right > 0)[better != 0].mean())))
        known, models = set(labelled), weights[:, None]
        if by == "disagreement":
            samples = (draw.choice(labelled, len(labelled)) for _ in range(MODELS))
            models = np.stack([fit((chosen - rejected)[sample], target[sample]) for sample in samples], axis=1)
        scores = chosen @ models, rejected @ models
        candidates = {
            i: Candidate(c.prompt, Answer(f"{i}", (*scores[0][i],)), Answer("", (*scores[1][i],)))
            for i, c in enumerate(pool)
            if i not in known
        }
        picked = select(Pool(list(candidates.values())), STEP, by, seed * 1000 + len(labelled))
        labelled += [int(one.first.text) for one in picked]
    return found


def labels_to(curve: list[tuple[int, float]], accuracy: float) -> float:
    """Labels at which a curve first reaches an accuracy, on the line between its points."""
    for (before, low), (after, high) in zip(curve, curve[1:], strict=False):
        if high >= accuracy:
            return before if low >= accuracy else before + (after - before) * (accuracy - low) / (high - low)
    return float("inf")


def main(count: int) -> None:
    """Print the curves of some seeds, with 95 % intervals over held-out pairs, and what random's accuracy takes."""
    print("| seed | chosen by | " + " | ".join(f"{FIRST + STEP * n}" for n in range(0, ROUNDS + 1, 3)) + " labels |")
    shares: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
    every: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for seed in range(1, count + 1):
        curves = {by: curve(seed, by) for by in WAYS}
        for by, points in curves.items():
            cells = (f"{accuracy:.3f} ({low:.3f} to {high:.3f})" for _, accuracy, low, high in map(_told, points[::3]))
            print(f"| {seed} | {by} | " + " | ".join(cells) + " |", flush=True)
            every[by].append([accuracy for _, accuracy in points[::3]])
        labels, accuracy = curves["random"][-1]
        for way, found in shares.items():
            found.append(labels_to(curves[way], accuracy) / labels)
    for way, points_of_seeds in every.items():
        print(f"| mean | {way} | " + " | ".join(f"{mean:.3f}" for mean in np.mean(points_of_seeds, axis=0)) + " |")
    for way, found in shares.items():
        told = ", ".join(f"{share:.0%}" for share in found)
        print(f"labels by {way} for random's last accuracy: {told}; median {np.median(found):.0%}")


def _told(point: tuple[int, float]) -> tuple[int, float, float, float]:
    labels, accuracy = point
    return labels, accuracy, *wilson_interval(accuracy * HELD_OUT, HELD_OUT)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
