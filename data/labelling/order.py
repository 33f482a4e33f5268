"""Which pairs are labelled, and in which order: kinds of prompts in proportion, gold pairs spread among them.

People see tasks in the order in which they were pushed, and seldom all of them. So any beginning of the order is a
sample by proportion (systematic sampling with a random start within each stratum; Cochran 1977, chapters 5 and 8).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from data.labelling.pairs import Pair


def ordered(pairs: Iterable[Pair], gold: Iterable[Pair], seed: int, count: int | None, share: float) -> list[Pair]:
    """Pairs to push, gold ones among them; they depend on the seed and the pairs, not on the order they came in.

    count: at most so many that are not gold. share: of gold pairs among all; fewer where there are not so many.
    """
    known = {pair.id: pair for pair in gold}
    chosen = _spread([pair for pair in pairs if pair.id not in known], seed)[:count]
    wanted = round(len(chosen) * share / (1 - share))
    drawn = _spread(known.values(), seed)[:wanted]
    return _merged([chosen, drawn], random.Random(f"{seed}/gold"))


def _spread(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    strata: dict[str | None, list[Pair]] = defaultdict(list)
    for pair in sorted(pairs, key=lambda pair: pair.id):
        strata[pair.kind].append(pair)
    generator = random.Random(f"{seed}/order")
    for _, stratum in sorted(strata.items(), key=lambda item: item[0] or ""):
        generator.shuffle(stratum)
    return _merged(list(strata.values()), generator)


def _merged(strata: Sequence[Sequence[Pair]], generator: random.Random) -> list[Pair]:
    """All strata in one order, the members of each at equal distances behind a random start."""
    placed: list[tuple[float, str, Pair]] = []
    for stratum in strata:
        start = generator.random()
        placed += [((number + start) / len(stratum), pair.id, pair) for number, pair in enumerate(stratum)]
    return [pair for _, _, pair in sorted(placed, key=lambda item: item[:2])]
