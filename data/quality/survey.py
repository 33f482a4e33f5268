"""One pass over all votes: what must be known of each to compare it with the others, and counts of the rest.

Memory holds 30 bytes of a vote, and some 100 while votes are compared; 384 bytes lie in unnamed files, see `minhash`.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.progress import counted
from data.quality.faults import faults_of, normalised, same_text
from data.quality.flags import Flagging
from data.quality.minhash import BINS, SignatureFile, minima, signed
from data.quality.votes import Vote, Votes
from data.records import BadRecord, shown
from rlhf.types import Comparison

BATCH = 512  # votes whose texts go through numpy together
EXAMPLES = 5  # of each kind
SHOWN = 90  # characters of a text in an example
HALVINGS = 24  # bins of lengths, each twice as wide as the one before

Example = dict[str, Any]


@dataclass(frozen=True)
class Tokens:
    """How long votes are in a model's tokens."""

    measure: Callable[[Comparison], int]  # of prompt and longer response together
    most: int
    reserved: Collection[str]  # the tokenizer's special tokens
    identity: str = ""  # what tells the tokenizer from others


@dataclass
class Sizes:
    """Lengths in characters, and which of two wins; `wins` has a row for each doubling of the longer's lead."""

    prompt: NDArray[np.int64] = field(default_factory=lambda: np.zeros(HALVINGS, np.int64))
    chosen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(HALVINGS, np.int64))
    rejected: NDArray[np.int64] = field(default_factory=lambda: np.zeros(HALVINGS, np.int64))
    # [5, 2]: the longer one is up to 1.1, 1.25, 1.5, 2 times as long, or more; how often it lost, and won
    wins: NDArray[np.int64] = field(default_factory=lambda: np.zeros((5, 2), np.int64))


LEADS = (1.1, 1.25, 1.5, 2.0)


@dataclass
class Survey:
    """What one pass has found."""

    unit: array[int] = field(default_factory=lambda: array("Q"))  # hash of a prompt and two responses, in any order
    prompt: array[int] = field(default_factory=lambda: array("Q"))  # hash of the prompt
    said: array[int] = field(default_factory=lambda: array("b"))  # 1, -1: which of the two won; 0 a tie
    leaning: array[int] = field(default_factory=lambda: array("b"))  # the same, of the two in the order of `each`
    # Index of the name. Unknown: -1, and -2, -3, ... where one record has several such votes that say the same.
    annotator: array[int] = field(default_factory=lambda: array("i"))
    record: array[int] = field(default_factory=lambda: array("I"))  # which record it stands in
    shown_first: array[int] = field(default_factory=lambda: array("b"))  # 1 chosen, 0 rejected, -1 unknown
    held_out: array[int] = field(default_factory=lambda: array("b"))  # 1, 0; -1 where no prompt can leak
    prompts: SignatureFile = field(default_factory=SignatureFile)
    both: SignatureFile = field(default_factory=SignatureFile)  # both responses as one text
    each: SignatureFile = field(default_factory=SignatureFile)  # half of that of each, in the order of the texts
    sizes: Sizes = field(default_factory=Sizes)
    names: dict[str, int] = field(default_factory=dict)  # annotators
    counts: Counter[str] = field(default_factory=Counter)  # votes with faults of their own, and bad records, by kind
    held_out_votes: int = 0
    bad_records: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # by kind
    records: int = 0  # good and bad; of what no file holds, the votes
    refused: Counter[str] = field(default_factory=Counter)  # of these, by kind, those that the recipe does not drop
    examples: dict[str, list[Example]] = field(default_factory=dict)
    tokens: array[int] = field(default_factory=lambda: array("I"))  # of the longer sequence, where they were measured
    # Of each vote 0 where nothing is flagged, 1 of chosen, 2 of rejected, 3 of both; empty where nothing is looked for.
    flagged: array[int] = field(default_factory=lambda: array("b"))
    flagged_wins: list[int] = field(default_factory=lambda: [0, 0])  # over one that is not flagged; and losses
    votes: int = 0
    _place: str = ""  # of the last record
    _unnamed: Counter[tuple[int, int]] = field(default_factory=Counter)  # its votes without a name, by pair and result

    def __len__(self) -> int:
        """How many votes."""
        return self.votes

    def column(self, name: str) -> NDArray[Any]:
        """A column as numpy has it."""
        return np.array(getattr(self, name))

    def note(self, kind: str, example: Example) -> None:
        """Count something of a kind, and keep it as an example if it is one of the first."""
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < EXAMPLES:
            kept.append(example)


def survey(
    votes: Votes, tokens: Tokens | None = None, flagging: Flagging | None = None, compare: bool = True
) -> Survey:
    """Go through all votes. tokens: measures them too. flagging: what takes responses for offensive.

    compare: whether what it takes to compare votes with each other is gathered, most of the work. Raises DataError for
    a file that cannot be read at all.
    """
    found = Survey()

    def tell_bad(policy: str, bad: BadRecord) -> None:
        found.bad_records += 1
        found.bad[bad.kind] += 1
        found.refused[bad.kind] += policy == "fail"
        found.note(bad.kind, {"place": bad.place, "what": bad.problem})

    for batch in _batches(counted(votes.read(tell_bad), "checking votes")):
        for vote in batch:
            for kind, what in faults_of(vote.comparison, tokens.reserved if tokens else ()).items():
                found.note(kind, example_of(vote, what))
            if tokens:
                found.tokens.append(length := tokens.measure(vote.comparison))
                if length > tokens.most:
                    found.note("too_long", example_of(vote, f"{length:,} tokens, more than {tokens.most:,}"))
            _measure_sizes(found.sizes, vote.comparison)
        if flagging:
            _flag(found, batch, flagging)
        if compare:
            _compare_texts(found, batch)
        found.votes += len(batch)
    accounts = votes.accounts.values()
    found.records = sum(
        account["comparisons"] if account["records"] is None else account["records"] for account in accounts
    )
    return found


def example_of(vote: Vote, what: str, **more: Any) -> Example:
    """A vote as people see it."""
    comparison = vote.comparison
    texts = {"prompt": comparison.prompt.text, "chosen": comparison.chosen, "rejected": comparison.rejected}
    return {"place": vote.place, "what": what, **{name: shown(text, SHOWN) for name, text in texts.items()}, **more}


def _batches(votes: Iterable[Vote]) -> Iterator[list[Vote]]:
    iterator = iter(votes)
    while batch := list(itertools.islice(iterator, BATCH)):
        yield batch


def _flag(found: Survey, batch: list[Vote], flagging: Flagging) -> None:
    """Which responses are offensive; each text is looked at once."""
    texts = list(dict.fromkeys(text for vote in batch for text in (vote.comparison.chosen, vote.comparison.rejected)))
    told = dict(zip(texts, flagging(texts), strict=True))
    for vote in batch:
        sides = {"chosen": told[vote.comparison.chosen], "rejected": told[vote.comparison.rejected]}
        found.flagged.append((sides["chosen"] is not None) + 2 * (sides["rejected"] is not None))
        if found.flagged[-1]:
            seen = ", ".join(f"{side}: {what}" for side, what in sides.items() if what)
            found.note("offensive", example_of(vote, seen))
        if not vote.comparison.tie and found.flagged[-1] in (1, 2):
            found.flagged_wins[found.flagged[-1] - 1] += 1


def _compare_texts(found: Survey, batch: list[Vote]) -> None:
    """Hashes and signatures of texts."""
    prompts, lower, higher = [], [], []
    for vote in batch:
        comparison = vote.comparison
        prompt, chosen, rejected = map(normalised, (comparison.prompt.text, comparison.chosen, comparison.rejected))
        one, other = sorted((chosen, rejected))
        prompts.append(prompt)
        lower.append(one)
        higher.append(other)
        found.prompt.append(_hash(prompt))
        exact = [same_text(text) for text in (comparison.prompt.text, comparison.chosen, comparison.rejected)]
        found.unit.append(unit := _hash("\0".join((exact[0], *sorted(exact[1:])))))
        found.said.append(said := 0 if comparison.tie else 1 if exact[1] <= exact[2] else -1)
        found.leaning.append(0 if comparison.tie else 1 if chosen <= rejected else -1)
        found.annotator.append(_who(found, vote, unit, said))
        found.record.append((found.record[-1] if found.record else 0) + (vote.place != found._place))
        found._place = vote.place
        first = comparison.chosen_shown_first
        found.shown_first.append(-1 if first is None else int(first))
        found.held_out.append(int(vote.held_out) if vote.may_leak else -1)
        found.held_out_votes += vote.held_out
    found.prompts.append(signed(_minima(prompts)))
    of_lower, of_higher = _minima(lower), _minima(higher)
    found.both.append(signed(np.minimum(of_lower, of_higher)))
    found.each.append(np.concatenate([signed(least)[:, : BINS // 2] for least in (of_lower, of_higher)], axis=1))


def _who(found: Survey, vote: Vote, unit: int, said: int) -> int:
    """The annotator's number; votes of one record without a name are of different people, who repeat nothing."""
    name = vote.comparison.annotator
    if name is not None:
        return found.names.setdefault(name, len(found.names))
    if vote.place != found._place:
        found._unnamed.clear()
    found._unnamed[unit, said] += 1
    return -found._unnamed[unit, said]


def _minima(texts: list[str]) -> NDArray[np.uint64]:
    """Of each text, which goes through numpy once: votes on one pair, and pairs of one prompt, stand together."""
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return minima(list(distinct))[[distinct[text] for text in texts]]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _measure_sizes(sizes: Sizes, vote: Comparison) -> None:
    chosen, rejected = len(vote.chosen), len(vote.rejected)
    sizes.prompt[_halving(len(vote.prompt.text))] += 1
    sizes.chosen[_halving(chosen)] += 1
    sizes.rejected[_halving(rejected)] += 1
    if vote.tie or chosen == rejected:
        return
    lead = max(chosen, rejected) / max(1, min(chosen, rejected))
    row = sum(lead > limit for limit in LEADS)
    sizes.wins[row, int(chosen > rejected)] += 1


def _halving(length: int) -> int:
    return min(length.bit_length(), HALVINGS - 1)
