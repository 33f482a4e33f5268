"""Embedded demonstrations and comparisons with a known truth, drawn by seed from the closed world of data.toy_world.

Why: the whole pipeline (SFT, reward model, PPO) can be run and judged offline in minutes. Demonstrations are of mixed
quality, so that PPO has something to improve; votes come from simulated annotators of known reliability, so that the
best accuracy any reward model can reach (Bayes) is known. Standard library alone: a launcher without torch imports it.

Votes: Bradley & Terry (1952), "Rank analysis of incomplete block designs", with the ties of Davidson (1970), "On
extending the Bradley-Terry model to accommodate ties in paired comparison experiments".

Show it: python -m data.toy
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data.toy_gold import gold, parts, utility
from data.toy_world import FACT_BY_PROMPT, FACTS, OPENERS, RAMBLES, Fact, fact_of
from data.votes import Comparisons
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Prompt

__all__ = [
    "ANNOTATORS",
    "Annotator",
    "Comparisons",
    "comparisons",
    "demonstrations",
    "gold",
    "parts",
    "prompts",
    "vote_probability",
]


@dataclass(frozen=True)
class Annotator:
    """A simulated voter."""

    id: str
    sharpness: float  # k: log-odds per unit of gold difference
    share: float  # of all votes
    tie_width: float  # Davidson's nu: odds of a tie between equals are nu to 2
    adversary: bool = False  # votes for the worse: the gold difference is mirrored


ANNOTATORS = (
    Annotator("ada", sharpness=24.0, share=0.265, tie_width=0.25),
    Annotator("ben", sharpness=14.0, share=0.30, tie_width=0.30),
    Annotator("cleo", sharpness=8.0, share=0.25, tie_width=0.20),
    Annotator("dan", sharpness=4.0, share=0.15, tie_width=0.15),
    Annotator("mal", sharpness=8.0, share=0.035, tie_width=0.10, adversary=True),
)


@dataclass(frozen=True)
class Quality:
    """How often a drawn response has each attribute; the rest of the manners is neutral."""

    correct: float
    polite: float
    rude: float
    ramble: float
    cut: float


DEMONSTRATION_QUALITY = Quality(correct=0.50, polite=0.25, rude=0.45, ramble=0.45, cut=0.30)
COMPARISON_QUALITY = Quality(correct=0.50, polite=0.40, rude=0.30, ramble=0.35, cut=0.30)
MINIMAL_PAIRS = 0.5  # share of pairs that differ in one attribute: they show a reward model what that one is worth
MINIMAL_ATTRIBUTES = {"correct": 0.55, "manner": 0.2, "ramble": 0.15, "cut": 0.1}
MAX_CUT = 5  # words


@dataclass(frozen=True)
class Draft:
    """A response before it is written out."""

    manner: str  # polite, none or rude
    opener: str
    core: str
    answer: str
    ramble: str  # empty for none
    cut: int  # words dropped from the end, 0 for a complete response

    @property
    def text(self) -> str:
        """The response's words, space separated."""
        tokens = f"{self.opener} {self.core} {self.answer} {self.ramble}".split()
        if not self.cut:
            return " ".join([*tokens, "."])
        ends = [place + 1 for place, token in enumerate(tokens) if token.isalnum()]  # marks do not count as words
        last = max(0, len(ends) - 1 - self.cut)  # one word stays: an empty text teaches nothing
        return " ".join(tokens[: ends[last]])


def prompts() -> list[Prompt]:
    """Every prompt of the world, always in the same order."""
    return [Prompt.of_user(text) for text in FACT_BY_PROMPT]


def demonstrations(count: int, seed: int, prompts: Sequence[Prompt]) -> list[Demonstration]:
    """Draw `count` responses of mixed quality; fewer are a prefix of more, and all prompts come equally often."""
    rng = random.Random(f"{seed}/toy/demonstrations")
    order = _prompt_order(prompts, rng)
    drawn = []
    for _ in range(count):
        prompt = next(order)
        drawn.append(Demonstration(prompt, _draw(fact_of(prompt.text), DEMONSTRATION_QUALITY, rng).text))
    return drawn


def comparisons(count: int, seed: int, prompts: Sequence[Prompt]) -> Comparisons:
    """Draw `count` votes on pairs of different responses, with the Bayes accuracy of those that are no tie."""
    rng = random.Random(f"{seed}/toy/comparisons")
    order = _prompt_order(prompts, rng)
    shares = [annotator.share for annotator in ANNOTATORS]
    records = []
    ceilings = []
    for _ in range(count):
        prompt = next(order)
        first, second = _draw_pair(fact_of(prompt.text), rng)
        difference = utility(prompt.text, first) - utility(prompt.text, second)
        record = _vote(prompt, (first, second), difference, rng.choices(ANNOTATORS, shares)[0], rng)
        records.append(record)
        if not record.tie:
            probability = _mixture(difference)
            ceilings.append(max(probability, 1.0 - probability))
    return Comparisons(records, math.fsum(ceilings) / len(ceilings) if ceilings else math.nan)


def vote_probability(prompt: str, first: str, second: str) -> float:
    """Probability that a vote that is no tie, by an unknown annotator, prefers the first response."""
    return _mixture(utility(prompt, first) - utility(prompt, second))


def _prompt_order(prompts: Sequence[Prompt], rng: random.Random) -> Iterator[Prompt]:
    """Endless passes over the prompts, each in a new order."""
    if not prompts:
        raise DataError("prompts is empty; pass some of data.toy.prompts()")
    while True:
        yield from rng.sample(prompts, len(prompts))


def _draw(fact: Fact, quality: Quality, rng: random.Random) -> Draft:
    """One response, every attribute independent."""
    manner = _draw_manner(quality, rng)
    return Draft(
        manner=manner,
        opener=rng.choice(OPENERS[manner]),
        core=rng.choice(fact.cores),
        answer=fact.answer if rng.random() < quality.correct else rng.choice(fact.distractors),
        ramble=rng.choice(RAMBLES) if rng.random() < quality.ramble else "",
        cut=rng.randint(1, MAX_CUT) if rng.random() < quality.cut else 0,
    )


def _draw_manner(quality: Quality, rng: random.Random) -> str:
    """Polite, rude or neither."""
    return rng.choices(("polite", "rude", "none"), (quality.polite, quality.rude, 1 - quality.polite - quality.rude))[0]


def _draw_pair(fact: Fact, rng: random.Random) -> tuple[str, str]:
    """Two different responses in random order: independent draws, or one draw with a single attribute changed."""
    minimal = rng.random() < MINIMAL_PAIRS
    while True:
        draft = _draw(fact, COMPARISON_QUALITY, rng)
        other = _change_one(draft, fact, rng) if minimal else _draw(fact, COMPARISON_QUALITY, rng)
        texts = (draft.text, other.text)
        if texts[0] != texts[1]:  # a cut can remove the very words in which two drafts differ
            return texts if rng.random() < 0.5 else (texts[1], texts[0])


def _change_one(draft: Draft, fact: Fact, rng: random.Random) -> Draft:
    """The same response with one attribute changed and all other words kept."""
    attribute = rng.choices(tuple(MINIMAL_ATTRIBUTES), tuple(MINIMAL_ATTRIBUTES.values()))[0]
    if attribute == "correct":
        return replace(draft, answer=rng.choice(fact.distractors) if draft.answer == fact.answer else fact.answer)
    if attribute == "ramble":
        return replace(draft, ramble="" if draft.ramble else rng.choice(RAMBLES))
    if attribute == "cut":
        return replace(draft, cut=0 if draft.cut else rng.randint(1, MAX_CUT))
    manner = draft.manner
    while manner == draft.manner:
        manner = _draw_manner(COMPARISON_QUALITY, rng)
    return replace(draft, manner=manner, opener=rng.choice(OPENERS[manner]))


def _outcomes(annotator: Annotator, difference: float) -> tuple[float, float, float]:
    """Probabilities of (first wins, second wins, tie) given the gold difference (Davidson 1970, eq. 2)."""
    half = annotator.sharpness * difference / 2 * (-1 if annotator.adversary else 1)
    first, second = math.exp(half), math.exp(-half)
    total = first + second + annotator.tie_width
    return first / total, second / total, annotator.tie_width / total


def _mixture(difference: float) -> float:
    """Probability that the first wins given no tie, over annotators; who rarely ties weighs more among such votes."""
    outcomes = [(annotator.share, _outcomes(annotator, difference)) for annotator in ANNOTATORS]
    wins = math.fsum(share * first for share, (first, _, _) in outcomes)
    losses = math.fsum(share * second for share, (_, second, _) in outcomes)
    return wins / (wins + losses)


def _vote(
    prompt: Prompt, shown: tuple[str, str], difference: float, annotator: Annotator, rng: random.Random
) -> Comparison:
    """One annotator's vote on two responses, in the order in which they were shown."""
    first_wins, _, tied = _outcomes(annotator, difference)
    draw = rng.random()
    tie = draw < tied
    # A tie has no winner, so which response is stored as chosen is a coin toss: the order must say nothing.
    first_chosen = rng.random() < 0.5 if tie else draw < tied + first_wins
    words = sum(len(text.split()) for text in shown)
    return Comparison(
        prompt=prompt,
        chosen=shown[0] if first_chosen else shown[1],
        rejected=shown[1] if first_chosen else shown[0],
        tie=tie,
        annotator=annotator.id,
        chosen_shown_first=first_chosen,
        seconds=round(rng.lognormvariate(math.log(4.0 + 0.3 * words), 0.4), 1),  # a pause, then about 200 words/min
    )


def longer_wins(records: Sequence[Comparison], *, words: bool) -> float:
    """Share of votes, without ties and equal lengths, that the longer response wins; by words or by characters."""

    def length(text: str) -> int:
        return len(text.split()) if words else len(text)

    pairs = [(length(record.chosen), length(record.rejected)) for record in records if not record.tie]
    unequal = [chosen > rejected for chosen, rejected in pairs if chosen != rejected]
    return sum(unequal) / len(unequal)


def main() -> None:
    """Print a summary of the world and of a draw from it."""
    world = prompts()
    demos = demonstrations(5000, 0, world)
    votes = comparisons(12000, 0, world)
    scores = gold([demo.prompt.text for demo in demos], [demo.completion for demo in demos])
    by_words, by_characters = (longer_wins(votes.records, words=words) for words in (True, False))
    words = [len(demo.completion.split()) for demo in demos]
    print(f"facts {len(FACTS)}, prompts {len(world)}")
    mean_gold, mean_words = sum(scores) / len(scores), sum(words) / len(words)
    ties = sum(record.tie for record in votes.records) / len(votes.records)
    print(f"demonstrations {len(demos)}: mean gold {mean_gold:.3f}, words and marks {mean_words:.1f}, max {max(words)}")
    print(f"comparisons {len(votes.records)}: Bayes accuracy {votes.bayes_accuracy:.3f}, ties {ties:.3f}")
    print(f"the longer wins {by_words:.3f} by words, {by_characters:.3f} by characters")
    for demo, score in list(zip(demos, scores, strict=True))[:4]:
        print(f"  {score:.2f}  {demo.prompt.text}  ->  {demo.completion}")
    for record in votes.records[:4]:
        over = "ties with" if record.tie else "beats"
        print(f"  {record.prompt.text}\n    {record.chosen}\n    {over}: {record.rejected}")


if __name__ == "__main__":
    main()
