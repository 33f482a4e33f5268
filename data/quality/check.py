"""The check of comparisons: one pass over the votes, what repeats and contradicts, what is biased, and a verdict.

    from data.quality.check import check_votes
    verdict = check_votes(Votes(recipe.data, recipe.seed), recipe.data.check).verdict

Show it: rlhf data check votes.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.quality.bias import Bias, Share, find_bias, one_sided
from data.quality.repeats import Mask, Repeats, find_repeats
from data.quality.survey import EXAMPLES, Example, Survey, example_of, survey
from data.quality.verdict import Finding, Verdict, judged, judged_alpha, sorted_by_severity, worse
from data.quality.votes import Vote, Votes
from rlhf.config import CheckConfig, LimitsConfig
from rlhf.errors import DataError
from rlhf.types import Comparison

SIGNIFICANT = 0.01  # p-value of a bias
SHARED = 20  # pairs with several annotators' votes, from which on their agreement is judged

# kind → (what its votes or records are, the remedy)
SINGLE = {
    "malformed": ("cannot be used", "mend them, or set bad_records: drop"),
    "empty": ("with an empty text", "collect these anew, or drop them"),
    "identical": ("of two equal responses", "drop them: nobody can prefer one"),
    "too_long": ("over the context", "shorten them, raise reward.max_length or set data.too_long: drop"),
    "template": ("with marks of a chat template or a transcript", "cut them out of the texts"),
    "tie": ("are ties", "none is needed: they count as even odds"),
    "truncated": ("with a response that looks cut", "say so by chosen_finished and rejected_finished: false"),
    "language": ("with a response in another script, or broken characters", "see whether that is meant"),
}


@dataclass(frozen=True)
class Tokens:
    """How long votes are in a model's tokens."""

    measure: Callable[[Comparison], int]  # of prompt and longer response together
    most: int
    reserved: Collection[str]  # the tokenizer's special tokens


@dataclass(frozen=True)
class Checked:
    """A verdict, and what a cleaned file is made by."""

    verdict: Verdict
    repeats: Repeats


def check_votes(votes: Votes, config: CheckConfig, tokens: Tokens | None = None) -> Checked:
    """Check all votes. Raises DataError for a file that cannot be read at all, and where there is no vote."""
    found = survey(votes, tokens.reserved, tokens.measure, tokens.most) if tokens else survey(votes)
    if not len(found):
        raise DataError("no comparison to check; give files that hold some")
    repeats, bias = find_repeats(found, config.similarity), find_bias(found)
    wanted = _Wanted(found, repeats)
    shown = wanted.examples(votes)
    findings = [
        *_of_single_votes(found, config),
        *_of_repeats(found, repeats, config, shown),
        *_of_bias(bias, config),
    ]
    summary = _summary(votes, found, bias)
    sizes = {name: value.tolist() for name, value in vars(found.sizes).items()}
    return Checked(Verdict(sorted_by_severity(findings), summary, sizes), repeats)


def _of_single_votes(found: Survey, config: CheckConfig) -> Iterator[Finding]:
    votes, records = len(found), found.records
    for kind, (what, remedy) in SINGLE.items():
        if count := found.counts[kind]:
            bad, good = found.bad[kind], count - found.bad[kind]
            # A record may hold many votes: those of a kind stand for as large a part of the good records.
            share = (bad + good / votes * (records - found.bad_records)) / records
            severity = "fail" if found.refused[kind] else judged(getattr(config, kind), share)
            of_each = [_part(bad, records, "records")] * (bad > 0) + [_part(good, votes)] * (good > 0)
            part = _part(count, records, "records") if records - found.bad_records == votes else " and ".join(of_each)
            yield Finding(kind, severity, count, f"{part} {what}", remedy, found.examples[kind])


def _of_repeats(
    found: Survey, repeats: Repeats, config: CheckConfig, shown: dict[str, list[Example]]
) -> Iterator[Finding]:
    total = len(found)

    def finding(kind: str, severity: Any, count: int, message: str, remedy: str) -> Finding:
        return Finding(kind, severity, count, message, remedy, shown[kind])

    if count := int(repeats.duplicate.sum()):
        message = f"{_part(count, total)} repeat an earlier one of the same annotator"
        yield finding("duplicate", judged(config.duplicate, count / total), count, message, "keep the first of them")
    if count := int(repeats.near_duplicate.sum()):
        pairs = int(repeats.pairs(np.ones(total, bool)).sum())
        message = f"{_part(count, pairs, 'pairs')} are nearly the same as an earlier one"
        severity = judged(config.near_duplicate, count / pairs)
        yield finding("near_duplicate", severity, count, message, "keep the first of them")
    inner, between = (int(repeats.pairs(mask).sum()) for mask in (repeats.contradiction, repeats.disagreement))
    if inner + between:
        pairs = int(repeats.pairs(np.ones(total, bool)).sum())
        message = f"{_part(inner, pairs, 'pairs')} have votes in both directions"
        message += f", and {between:,} more by different annotators, who disagree" if between else ""
        remedy = "find out which is right, or drop both" if inner else "none is needed: see the agreement"
        yield finding("contradiction", judged(config.contradiction, inner / pairs), inner + between, message, remedy)
    exact, near = int(repeats.leakage.sum()), int(repeats.near_leakage.sum())
    if exact + near:
        held_out = int((found.column("held_out") == 1).sum())
        message = f"the prompts of {_part(exact or near, held_out, 'held-out votes')} are "
        message += "in the training part as well" if exact else "nearly the same as some of the training part"
        message += f", and those of {near:,} more are nearly" if exact and near else ""
        severity = worse(judged(config.leakage, exact / held_out), judged(config.near_leakage, near / held_out))
        remedy = "take these prompts out of one part, or held-out figures flatter"
        yield finding("leakage", severity, exact + near, message, remedy)


def _of_bias(bias: Bias, config: CheckConfig) -> Iterator[Finding]:
    def severity_of(share: Share, kind: str) -> Any:
        return judged(getattr(config, kind), max(share.share, 1 - share.share))

    longer = bias.longer
    if longer.share > 0.5 and one_sided(longer, _least(config.length_bias), SIGNIFICANT):
        message = f"the longer response wins {longer}"
        remedy = "balance lengths: a reward model learns length from this"
        yield Finding("length_bias", severity_of(longer, "length_bias"), longer.wins, message, remedy)
    first, least = bias.first_shown, _least(config.position_bias)
    partial = bias.partial_to_a_side(least, SIGNIFICANT)
    if one_sided(first, least, SIGNIFICANT) or partial:
        message = f"the response shown first wins {first}"
        message += f"; by annotator: {_told(partial)}" if partial else ""
        severity = "warn" if partial and config.position_bias.warn is not None else "info"
        count = first.wins if first.share > 0.5 else first.votes - first.wins
        remedy = "draw the order anew for each vote, and have these votes looked at"
        examples = [{"annotator": name, **share.as_json()} for name, share in partial.items()]
        overall = severity_of(first, "position_bias") if one_sided(first, least, SIGNIFICANT) else "info"
        yield Finding("position_bias", worse(overall, severity), count, message, remedy, examples)  # type: ignore[arg-type]
    yield from _of_agreement(bias, config)


def _least(limits: LimitsConfig) -> float:
    """The share from which on there is something to say; 1, which nothing exceeds, where there is no limit."""
    return min(limit for limit in (limits.warn, limits.fail, 1.0) if limit is not None)


def _of_agreement(bias: Bias, config: CheckConfig) -> Iterator[Finding]:
    together, contrary = bias.agreement, bias.contrary(SIGNIFICANT)
    severity: Any = "warn" if contrary and config.low_agreement.warn is not None else "info"
    message = ""
    if together and together.alpha is not None and together.alpha_ci and together.units >= SHARED:
        low, high = together.alpha_ci
        severity = worse(severity, judged_alpha(config, together.alpha, high))
        message = f"Krippendorff's alpha of {together.alpha:.2f} (95 % interval {low:.2f} to {high:.2f})"
    if severity == "info" or together is None:
        return
    message += f" on {together.units:,} pairs with votes of several annotators" if message else ""
    if contrary:
        message += f"{'; ' if message else ''}as most others votes only {_told(contrary)}"
    examples = [{"annotator": name, **share.as_json()} for name, share in contrary.items()]
    remedy = "are labels swapped, or is the task unclear?"
    yield Finding("low_agreement", severity, together.units, message, remedy, examples)


def _told(shares: dict[str, Share]) -> str:
    first = list(shares.items())[:EXAMPLES]
    more = f", and {len(shares) - len(first):,} more" if len(shares) > len(first) else ""
    return ", ".join(f"{name} {share.share:.0%} of {share.votes:,}" for name, share in first) + more


def _part(count: int, whole: int, of: str = "votes") -> str:
    return f"{count:,} of {whole:,} {of} ({count / max(1, whole):.1%})"


class _Wanted:
    """Which votes are to be shown: fetched in a second pass, which ends with the last of them."""

    def __init__(self, found: Survey, repeats: Repeats) -> None:
        self.rows: dict[str, list[tuple[int, int]]] = {}  # kind → vote, and the one it goes with
        for kind, mask in (
            ("duplicate", repeats.duplicate),
            ("near_duplicate", repeats.near_duplicate),
            ("leakage", repeats.leakage if repeats.leakage.any() else repeats.near_leakage),
        ):
            first = np.flatnonzero(mask)[:EXAMPLES]
            self.rows[kind] = [(int(row), int(repeats.partners[kind][row])) for row in first]
        opposed = repeats.contradiction if repeats.contradiction.any() else repeats.disagreement
        self.rows["contradiction"] = list(_opposites(found, repeats, opposed))

    def examples(self, votes: Votes) -> dict[str, list[Example]]:
        """The examples of each kind."""
        numbers = {row for pairs in self.rows.values() for pair in pairs for row in pair}
        fetched = fetch(votes, numbers)
        told = {
            "duplicate": "the same as the one at {}",
            "near_duplicate": "nearly the same as the one at {}",
            "contradiction": "voted the other way at {}",
            "leakage": "its prompt is in training at {}",
        }
        return {
            kind: [example_of(fetched[row], told[kind].format(fetched[other].place)) for row, other in pairs]
            for kind, pairs in self.rows.items()
        }


def _opposites(found: Survey, repeats: Repeats, opposed: Mask) -> Iterator[tuple[int, int]]:
    """Of the first opposed pairs the first vote, and the first in the other direction."""
    said, pair = found.column("said"), repeats.partners["pair"]
    for first in np.flatnonzero(repeats.pairs(opposed))[:EXAMPLES]:
        rows = np.flatnonzero((pair == first) & (said != 0))
        yield int(rows[0]), int(rows[said[rows] != said[rows[0]]][0])


def fetch(votes: Votes, numbers: Collection[int]) -> dict[int, Vote]:
    """Votes by their index."""
    last, found = max(numbers, default=-1), {}
    for number, vote in enumerate(votes.read() if numbers else ()):
        if number in numbers:
            found[number] = vote
        if number >= last:
            break
    return found


def _summary(votes: Votes, found: Survey, bias: Bias) -> dict[str, Any]:
    return {
        "sources": [votes.accounts[number] for number in sorted(votes.accounts)],
        "comparisons": len(found),
        "bad_records": found.bad_records,
        "pairs": len(np.unique(found.column("unit"))),
        "prompts": len(np.unique(found.column("prompt"))),
        "held_out": found.held_out_votes,
        "split": votes.split,
        "ties": found.counts["tie"],
        "longest_tokens": max(found.tokens, default=None),
        **bias.as_json(),
    }
