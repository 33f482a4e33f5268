"""The check of comparisons: one pass over the votes, what repeats and contradicts, what is biased, and a verdict.

    from data.quality.check import check_votes
    verdict = check_votes(Votes(recipe.data, recipe.seed), recipe.data.check).verdict

Show it: rlhf data check votes.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.quality.bias import Bias, Share, find_bias, one_sided
from data.quality.examples import examples_of_repeats
from data.quality.flags import Flagging
from data.quality.repeats import Mask, Repeats, find_repeats
from data.quality.survey import EXAMPLES, Example, Survey, Tokens, survey
from data.quality.verdict import Finding, Verdict, judged, judged_alpha, sorted_by_severity, worse
from data.quality.votes import Votes
from rlhf.config import CheckConfig, LimitsConfig
from rlhf.errors import DataError

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
    "offensive": ("with a response that is flagged", "see whether people meant to prefer these"),
}
BY_MODELS = ("too_long", "template", "offensive")  # what a tokenizer, or a classifier, has a say in


@dataclass(frozen=True)
class Checked:
    """A verdict, and what a cleaned file is made by."""

    verdict: Verdict
    repeats: Repeats
    flagged: Mask  # votes with an offensive response; empty where nothing is looked for


def check_votes(
    votes: Votes, config: CheckConfig, tokens: Tokens | None = None, flagging: Flagging | None = None
) -> Checked:
    """Check all votes. Raises DataError for a file that cannot be read at all, and where there is no vote."""
    found = survey(votes, tokens, flagging)
    if not len(found):
        raise DataError("no comparison to check; give files that hold some")
    repeats, bias = find_repeats(found, config.similarity), find_bias(found)
    shown = examples_of_repeats(votes, found, repeats)
    findings = [
        *_of_single_votes(found, config),
        *_of_repeats(found, repeats, config, shown),
        *_of_bias(bias, config),
    ]
    summary = _summary(votes, found, bias) | {"contradictions": contradictions(repeats)}
    sizes = {name: value.tolist() for name, value in vars(found.sizes).items()}
    flagged = found.column("flagged") != 0
    return Checked(Verdict(sorted_by_severity(findings), summary, sizes), repeats, flagged)


def look_again(
    verdict: Verdict, votes: Votes, config: CheckConfig, tokens: Tokens, flagging: Flagging | None
) -> Verdict:
    """A verdict that was come to without models, with what they tell: a pass that compares no vote with another."""
    found = survey(votes, tokens, flagging, compare=False)
    kept = [finding for finding in verdict.findings if finding.kind not in BY_MODELS]
    told = [finding for finding in _of_single_votes(found, config) if finding.kind in BY_MODELS]
    return replace(verdict, findings=sorted_by_severity([*kept, *told]), summary={**verdict.summary, **_told(found)})


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
            what += f": {_told_of_flagged(found)}" if kind == "offensive" else ""
            yield Finding(kind, severity, count, f"{part} {what}", remedy, found.examples[kind])


def _told_of_flagged(found: Survey) -> str:
    sides = offensive(found)
    wins = Share(found.flagged_wins[0], sum(found.flagged_wins))
    beside = f"over one that is not, it wins {wins}" if wins.votes else "it never stands against one that is not"
    return f"{sides['chosen']:,} times the chosen one, {sides['rejected']:,} times the rejected one; {beside}"


def offensive(found: Survey) -> dict[str, Any]:
    """Of how many votes which response is flagged, and how often it wins over one that is not."""
    flagged = found.column("flagged")
    counts = {name: int(((flagged & bit) > 0).sum()) for name, bit in (("chosen", 1), ("rejected", 2))}
    wins = Share(found.flagged_wins[0], sum(found.flagged_wins))
    return {**counts, "both": int((flagged == 3).sum()), "flagged_wins": wins.as_json() if wins.votes else None}


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
    opposed = contradictions(repeats)
    if total_opposed := sum(opposed.values()):
        pairs = int(repeats.pairs(np.ones(total, bool)).sum())
        inner, near = opposed["same"], opposed["nearly_same"]
        message = f"{_part(inner, pairs, 'pairs')} have votes in both directions"
        message += f", and {near:,} more with one that is nearly the same" if near else ""
        if between := opposed["between_annotators"] + opposed["nearly_same_between_annotators"]:
            message += f", and {between:,} more by different annotators, who disagree"
        remedy = "find out which is right, or drop both" if inner + near else "none is needed: see the agreement"
        severity = judged(config.contradiction, (inner + near) / pairs)
        yield finding("contradiction", severity, total_opposed, message, remedy)
    exact, near = int(repeats.leakage.sum()), int(repeats.near_leakage.sum())
    if exact + near:
        held_out = int((found.column("held_out") == 1).sum())
        message = f"the prompts of {_part(exact or near, held_out, 'held-out votes')} are "
        message += "in the training part as well" if exact else "nearly the same as some of the training part"
        message += f", and those of {near:,} more are nearly" if exact and near else ""
        severity = worse(judged(config.leakage, exact / held_out), judged(config.near_leakage, near / held_out))
        remedy = "take these prompts out of one part, or held-out figures flatter"
        yield finding("leakage", severity, exact + near, message, remedy)


def contradictions(repeats: Repeats) -> dict[str, int]:
    """Pairs with votes in both directions, and groups of nearly the same pairs: of one source, and between several."""
    return {
        "same": int(repeats.pairs(repeats.contradiction).sum()),
        "nearly_same": len(repeats.groups(repeats.near_contradiction)),
        "between_annotators": int(repeats.pairs(repeats.disagreement).sum()),
        "nearly_same_between_annotators": len(repeats.groups(repeats.near_disagreement)),
    }


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
        message += f"; by annotator: {_named(partial)}" if partial else ""
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
        message += f"{'; ' if message else ''}as most others votes only {_named(contrary)}"
    examples = [{"annotator": name, **share.as_json()} for name, share in contrary.items()]
    remedy = "are labels swapped, or is the task unclear?"
    yield Finding("low_agreement", severity, together.units, message, remedy, examples)


def _named(shares: dict[str, Share]) -> str:
    first = list(shares.items())[:EXAMPLES]
    more = f", and {len(shares) - len(first):,} more" if len(shares) > len(first) else ""
    return ", ".join(f"{name} {share.share:.0%} of {share.votes:,}" for name, share in first) + more


def _part(count: int, whole: int, of: str = "votes") -> str:
    return f"{count:,} of {whole:,} {of} ({count / max(1, whole):.1%})"


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
        **_told(found),
        **bias.as_json(),
    }


def _told(found: Survey) -> dict[str, Any]:
    """What is known where it was looked for."""
    looked = len(found.flagged) > 0
    return {"longest_tokens": max(found.tokens, default=None), "offensive": offensive(found) if looked else None}
