"""Simulated annotators of known reliability on responses of known quality; run, the table of docs/annotators.md."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np

from data.annotators.consensus import consensus
from data.annotators.tables import VoteTable, tabulate
from rlhf.types import Comparison, Prompt

# Ten from .95 to .5, and two who are right so rarely that they vote against.
RELIABILITIES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.2, 0.1)


@dataclass(frozen=True)
class Crowd:
    """Votes, what is so of each pair of the table, and who is how reliable."""

    votes: list[Comparison]
    table: VoteTable
    truth: np.ndarray  # [pairs] bool: the first response is the better one
    reliability: list[float]  # [annotators] in the table's order


def simulate(
    seed: int,
    prompts: int = 100,
    responses: int = 4,
    overlap: int = 3,
    ties: float = 0.05,
    reliabilities: tuple[float, ...] = RELIABILITIES,
) -> Crowd:
    """Every pair of each prompt's responses goes to `overlap` annotators; each is right with their own probability."""
    draw = random.Random(seed)
    votes: list[Comparison] = []
    for prompt in range(prompts):
        # The quality is a text's number, which hashes of texts do not know.
        for better, worse in itertools.combinations(range(responses), 2):
            for annotator in draw.sample(range(len(reliabilities)), overlap):
                right = draw.random() < reliabilities[annotator]
                chosen, rejected = (better, worse) if right else (worse, better)
                votes.append(
                    Comparison(
                        Prompt(f"prompt {prompt}"),
                        f"response {chosen}",
                        f"response {rejected}",
                        tie=draw.random() < ties,
                        annotator=f"annotator {annotator}",
                        chosen_shown_first=draw.random() < 0.5,
                    )
                )
    table = tabulate(votes)
    truth = np.array([votes[i].chosen < votes[i].rejected for i in table.origin]) == table.first_was_chosen
    return Crowd(votes, table, truth, [reliabilities[int(name.split()[1])] for name in table.names])


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def measured(crowd: Crowd, method: str) -> dict[str, float]:
    """How right the consensus is, an even one counted half; its log loss in nats; how well it knows its annotators."""
    found = consensus(crowd.table, method)
    wins = found.opinion.first_wins
    right = np.where(crowd.truth, wins, 1 - wins)
    return {
        "accuracy": float(np.where(right == 0.5, 0.5, right > 0.5).mean()),
        "log_loss": float(-np.log(right.clip(0.01, 0.99)).mean()),
        "rank_correlation": rank_correlation([one.reliability for one in found.annotators], crowd.reliability),
        "error": float(np.abs(np.array([one.reliability for one in found.annotators]) - crowd.reliability).mean()),
    }


def main() -> None:
    """Print the table."""
    print("| responses to a prompt | votes on a pair | seed | method | right | log loss | rank correlation | error |")
    print("|---|---|---|---|---|---|---|---|")
    for responses, overlap, seed in itertools.product((2, 4), (3, 5), (1, 2, 3)):
        crowd = simulate(seed, 600 // (responses * (responses - 1) // 2), responses, overlap)
        for method in ("majority", "one-coin", "dawid-skene", "bradley-terry"):
            figures = measured(crowd, method)
            cells = " | ".join(f"{figures[name]:.3f}" for name in ("accuracy", "log_loss", "rank_correlation", "error"))
            print(f"| {responses} | {overlap} | {seed} | {method} | {cells} |")


if __name__ == "__main__":
    main()
