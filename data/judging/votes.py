"""Two answers to one vote.

A response wins where it is preferred in both orders; where the order changed the answer, the vote is a tie (Zheng et
al. 2023, "Judging LLM-as-a-Judge", section 3.4). A preference for a position so cancels out, whichever it is. A pair
without two answers that can be read gives no vote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data.fields import written_moment
from data.formats import as_record
from data.judging.journal import Answer
from data.judging.questions import Said, in_order
from data.labelling.pairs import Answer as Preference
from data.labelling.pairs import Pair
from rlhf.types import Comparison


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a pair, asked in both orders; of the pair in the order of its texts."""

    pair: Pair
    straight: Answer  # the pair's first response stood as A
    swapped: Answer  # its second did

    @property
    def said(self) -> tuple[Preference, Preference]:
        """What each of the two answers prefers."""
        assert self.straight.choice is not None and self.swapped.choice is not None
        return preferred(self.straight.choice, False), preferred(self.swapped.choice, True)

    @property
    def prefers(self) -> Preference:
        """What both answers prefer, else a tie."""
        one, other = self.said
        return one if one == other else "tie"

    @property
    def lean(self) -> int:
        """1 where the order moved the answers towards the response shown first, -1 towards the second, else 0."""
        shown = [{"A": 1, "B": -1, "tie": 0}[each.choice or "tie"] for each in (self.straight, self.swapped)]
        return (sum(shown) > 0) - (sum(shown) < 0)


def preferred(choice: Said, swapped: bool) -> Preference:
    """Which response of the pair a letter means."""
    if choice == "tie":
        return "tie"
    return "second" if (choice == "A") == swapped else "first"


def verdicts(pairs: Iterable[Pair], answers: Mapping[tuple[str, bool], Answer]) -> list[Verdict]:
    """Of the pairs that have two answers which can be read."""
    found = []
    for pair in pairs:
        both = [answers.get((pair.id, swapped)) for swapped in (False, True)]
        straight, swapped = both
        if straight and swapped and straight.choice and swapped.choice:
            found.append(Verdict(in_order(pair), straight, swapped))
    return found


def vote_record(verdict: Verdict, annotator: str) -> dict[str, Any]:
    """A vote in the format `preference`. No shown order: both were."""
    pair = verdict.pair
    texts, finished = (pair.first, pair.second), (pair.first_finished, pair.second_finished)
    if verdict.prefers == "second":
        texts, finished = texts[::-1], finished[::-1]
    comparison = Comparison(
        pair.prompt,
        *texts,
        tie=verdict.prefers == "tie",
        annotator=annotator,
        seconds=verdict.straight.seconds + verdict.swapped.seconds,
        chosen_finished=finished[0],
        rejected_finished=finished[1],
    )
    moment = written_moment(max(verdict.straight.time, verdict.swapped.time))
    record = {**as_record(comparison), "time": moment, "pair": pair.id}
    return record | ({"kind": pair.kind} if pair.kind else {})
