"""One record for each pair, with a soft label and a weight, from the votes of all annotators."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.annotators.bradley_terry import bradley_terry
from data.annotators.dawid_skene import dawid_skene
from data.annotators.opinions import Opinion, majority
from data.annotators.reliability import Reliability, reliabilities
from data.annotators.tables import Floats, VoteTable
from data.formats import as_record
from rlhf.analysis.agreement import Agreement, agreement, tallied
from rlhf.types import Comparison

Method = Literal["majority", "dawid-skene", "one-coin", "bradley-terry"]
METHODS: dict[str, Callable[[VoteTable], Opinion]] = {
    "majority": majority,
    "dawid-skene": dawid_skene,
    "one-coin": lambda table: dawid_skene(table, one_coin=True),
    "bradley-terry": bradley_terry,
}
PLACES = 4  # of probabilities and weights in the file


@dataclass(frozen=True)
class Consensus:
    """What the votes say together."""

    method: str
    table: VoteTable
    opinion: Opinion
    annotators: list[Reliability]
    weights: Floats  # [pairs], their mean is 1
    agreement: Agreement | None

    @property
    def overruled(self) -> int:
        """Pairs of which another response wins than by the majority; even votes have no majority."""
        plain = majority(self.table).first_wins
        return int(((self.opinion.first_wins - 0.5) * (plain - 0.5) < 0).sum())

    @property
    def targets(self) -> Floats:
        """[pairs]: P(first wins) as it is written."""
        rounded: Floats = self.opinion.first_wins.round(PLACES)
        return rounded

    def figures(self) -> dict[str, Any]:
        """For programs."""
        return {
            "method": self.method,
            "votes": len(self.table.pair),
            "repeated": self.table.repeated,
            "pairs": self.table.pairs,
            "even": int((self.targets == 0.5).sum()),
            "overruled": self.overruled,
            "agreement": None
            if self.agreement is None
            else {"share": self.agreement.share, "alpha": self.agreement.alpha, "alpha_ci": self.agreement.alpha_ci},
            "annotators": [
                {
                    "annotator": one.name,
                    "votes": one.votes,
                    "ties": one.ties,
                    "compared": one.compared,
                    "agreement": one.agreement,
                    "reliability": one.reliability,
                    "interval": list(one.interval),
                    "worth": one.worth if self.method != "majority" else 1.0,
                    "finding": one.finding,
                }
                for one in self.annotators
            ],
        }


def consensus(table: VoteTable, method: str) -> Consensus:
    """Apply a method of METHODS.

    A pair's weight is the sum of its votes, each by its worth (see `Reliability`), by the majority each as it is;
    divided by the mean over pairs, so that the learning rate keeps its meaning.
    """
    opinion = METHODS[method](table)
    annotators = reliabilities(table, opinion)
    worth = np.ones(len(annotators)) if method == "majority" else np.array([one.worth for one in annotators])
    weights = np.bincount(table.pair, table.weight * worth[table.annotator], table.pairs)
    mean = weights.mean() if len(weights) else 1.0
    told = agreement(tallied(zip(table.pair.tolist(), table.answer.tolist(), strict=True)))
    return Consensus(method, table, opinion, annotators, weights / (mean or 1.0), told)


def records(found: Consensus, votes: Iterable[Comparison]) -> Iterator[Comparison]:
    """The consensus on each pair, its texts taken from the votes that the table was made of, in the same order."""
    table = found.table
    at = {int(origin): pair for pair, origin in enumerate(table.origin)}
    for number, vote in enumerate(votes):
        if number not in at:
            continue
        pair = at[number]
        chosen_wins = found.targets[pair] if table.first_was_chosen[pair] else 1 - found.targets[pair]
        known = replace(vote, tie=False, annotator=None, chosen_shown_first=None, seconds=None, target=1.0)
        if chosen_wins < 0.5:
            known = replace(
                known,
                chosen=known.rejected,
                rejected=known.chosen,
                chosen_finished=known.rejected_finished,
                rejected_finished=known.chosen_finished,
            )
        target = round(float(max(chosen_wins, 1 - chosen_wins)), PLACES)
        soft = {"tie": True} if target == 0.5 else {"target": target}
        yield replace(known, weight=round(float(found.weights[pair]), PLACES), **soft)


def write_consensus(output: Path, made: Iterable[Comparison]) -> int:
    """Write records in our own format, whole or not at all; how many."""
    partial = output.with_name(f".{output.name}.partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in made:
                file.write(json.dumps(as_record(record), ensure_ascii=False) + "\n")
                count += 1
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return count
