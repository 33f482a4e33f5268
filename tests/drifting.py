"""Batches of simulated votes, of which the last may follow another utility; run, a table of docs/drift.md.

Four batches of pairs of the embedded task, two votes on each pair; a quarter of a batch's pairs are of the first batch.
Annotators go by correct, polite, concise and complete (`data.toy_gold`), those of the last batch by other weights:
PYTHONPATH=. python tests/drifting.py [COUNT [CASE …]]
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping, Sequence

from data import toy
from data.drift.batches import Batched
from data.drift.report import Options, drift_of
from data.drift.table import gather
from data.quality.votes import Vote
from data.toy_gold import WEIGHTS
from rlhf.analysis.statistics import wilson_interval
from rlhf.types import Comparison

BATCHES, ANNOTATORS, EACH = 4, 8, 2
SHARPNESS = 12.0  # log-odds for a unit of utility
TIES = 0.1
RUDE = {**WEIGHTS, "polite": -WEIGHTS["polite"]}
PROMPTS = toy.prompts()[::4]


def simulate(
    seed: int, votes: int, last: Mapping[str, float] = WEIGHTS, ties: float = TIES, steady: bool = False
) -> list[Batched]:
    """So many votes in each batch; last, ties: the weights of the last batch's annotators, and how often they tie.

    steady: who votes on a pair again says the same again.
    """
    draw = random.Random(f"{seed}/drifting")
    each = votes // EACH
    pairs = toy.comparisons(BATCHES * each, seed, PROMPTS).records
    made: list[Batched] = []
    said: dict[tuple[int, int], tuple] = {}
    for batch in range(BATCHES):
        is_last = batch == BATCHES - 1
        own = pairs[batch * each : (batch + 1) * each]
        if batch:
            own = own[each // 4 :] + draw.sample(pairs[:each], each // 4)
        for pair in own:
            for who in draw.sample(range(ANNOTATORS), EACH):
                vote = cast(pair, last if is_last else WEIGHTS, ties if is_last else TIES, draw)
                if steady:
                    vote = said.setdefault((id(pair), who), vote)
                day = 1_699_920_000 + 86_400 * (batch + draw.random() * 0.9)
                known = Comparison(*vote, annotator=f"{who}", chosen_shown_first=draw.random() < 0.5, time=day)
                made.append((f"batch {batch + 1}", Vote(f"vote {len(made)}", known, held_out=False)))
    return made


def cast(pair: Comparison, weights: Mapping[str, float], ties: float, draw: random.Random) -> tuple:
    """Prompt, chosen and rejected response, and whether it is a tie."""
    scores = [toy.parts(pair.prompt.text, text) for text in (pair.chosen, pair.rejected)]
    gap = sum(weight * (scores[0][name] - scores[1][name]) for name, weight in weights.items())
    wins = draw.random() < 0.5 + 0.5 * math.tanh(0.5 * SHARPNESS * gap)
    sides = (pair.chosen, pair.rejected) if wins else (pair.rejected, pair.chosen)
    return pair.prompt, *sides, draw.random() < ties


CASES = (  # what the last batch does, its weights, ties, steady, votes in each batch, seeds for one that is asked for
    ("as the others", WEIGHTS, TIES, False, 200, 4),
    ("as the others, each person steady", WEIGHTS, TIES, True, 200, 4),
    ("likes who is rude", RUDE, TIES, False, 400, 1),
    ("likes who is rude", RUDE, TIES, False, 600, 1),
    ("likes who is rude", RUDE, TIES, False, 800, 1),
    ("ties twice as often", WEIGHTS, 2 * TIES, False, 400, 1),
)


def main(count: int, cases: Sequence[int]) -> None:
    """Print how often the last batch is named, and others."""
    print("| the last batch | votes in each | seeds | it is named | for its preferences | another is named | any is |")
    print("|---|---|---|---|---|---|---|")
    for what, weights, ties, steady, votes, times in (CASES[i] for i in cases):
        seeds, counts = count * times, [0] * 4
        for seed in range(seeds):
            found = drift_of(gather(simulate(seed, votes, weights, ties, steady)), Options(seed=seed)).drifted
            names = {batch.name for batch, _ in found}
            by_preferences = any(b.name == "batch 4" and c.measure == "preferences" for b, c in found)
            told = ("batch 4" in names, by_preferences, bool(names - {"batch 4"}), bool(names))
            counts = [a + b for a, b in zip(counts, told, strict=True)]
        shares = [
            f"{n / seeds:.3f} ({low:.3f} to {high:.3f})" for n in counts for low, high in [wilson_interval(n, seeds)]
        ]
        print(f"| {what} | {votes} | {seeds} | " + " | ".join(shares) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, [int(i) for i in sys.argv[2:]] or range(len(CASES)))
