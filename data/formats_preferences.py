"""Formats that hold comparisons: from a record to votes, ValueError for what does not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data.fields import (
    answer_of,
    flag_of,
    messages_of,
    moment_of,
    name_of,
    need,
    number_of,
    prompt_of,
    response_of,
    text_of,
)
from data.formats_demonstrations import instructed
from rlhf.types import Comparison, Message, Prompt

_MARK = re.compile(r"\n\n(Human|Assistant): ?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_ANNOTATOR = re.compile(r"annotator[0-9]+")


class SameText(ValueError):
    """Both responses are the same, so that nobody can prefer one."""

    kind = "identical"


def parse_preference(record: Mapping[str, Any]) -> list[Comparison]:
    """{"prompt", "chosen", "rejected"}, and what is known of the vote; one comparison for each vote."""
    prompt = prompt_of(record)
    return votes(record, prompt, response_of(record, "chosen", prompt), response_of(record, "rejected", prompt))


def parse_implicit_preference(record: Mapping[str, Any]) -> list[Comparison]:
    """{"chosen", "rejected"} that begin with the same prompt, as turns or as texts."""
    chosen, rejected = need(record, "chosen"), need(record, "rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        turns = messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
        return votes(record, *split_turns(*turns))
    return votes(record, *split_texts(text_of(chosen, "chosen"), text_of(rejected, "rejected")))


def parse_hh(record: Mapping[str, Any]) -> list[Comparison]:
    """{"chosen", "rejected"}: transcripts of "\\n\\nHuman: ..." and "\\n\\nAssistant: ...", equal but for the last."""
    return votes(record, *split_turns(*(transcript(need(record, name), name) for name in ("chosen", "rejected"))))


def parse_pandalm(record: Mapping[str, Any]) -> list[Comparison]:
    """{"instruction", "input", "response1", "response2", "annotator1", ...}: 0 for a tie, or the better one's number.

    A response may be empty: a model said nothing, and people voted on that.
    """
    prompt = instructed(need(record, "instruction"), record.get("input"))
    first, second = (text_of(need(record, name), name, may_be_empty=True) for name in ("response1", "response2"))
    found = []
    for name in sorted((name for name in record if _ANNOTATOR.fullmatch(name)), key=lambda name: int(name[9:])):
        vote = record[name]
        if isinstance(vote, bool) or vote not in (0, 1, 2):
            raise ValueError(f"{name}={vote!r:.60} is not 0 (a tie), 1 or 2")
        chosen, rejected = (second, first) if vote == 2 else (first, second)
        found.append(compared(Comparison(prompt, chosen, rejected, tie=vote == 0, annotator=name)))
    if not found:
        raise ValueError("no field 'annotator1'")
    return found


def votes(record: Mapping[str, Any], prompt: Prompt, chosen: str, rejected: str) -> list[Comparison]:
    """The votes of a record on two responses: one, or those listed under `votes` or `annotators`."""
    tie = flag_of(record.get("tie", False), "tie")
    target = _target_of(record, tie)
    one = compared(
        Comparison(
            prompt,
            chosen,
            rejected,
            tie=tie or target == 0.5,
            annotator=None if record.get("annotator") is None else name_of(record["annotator"], "annotator"),
            weight=number_of(record.get("weight", 1.0), "weight", 0),
            chosen_finished=flag_of(record.get("chosen_finished", True), "chosen_finished"),
            rejected_finished=flag_of(record.get("rejected_finished", True), "rejected_finished"),
            target=1.0 if target == 0.5 else target,
            kind=_kind_of(record.get("kind")),
            **_circumstances(record),
        )
    )
    lists = [name for name in ("votes", "annotators") if name in record]
    if not lists:
        return [one]
    alone = [name for name in ("tie", "annotator", "target", *lists[1:]) if name in record]
    if alone:
        raise ValueError(f"{lists[0]} and {alone[0]} cannot both say who voted for what; remove one of them")
    values = record[lists[0]]
    if not isinstance(values, list) or not values:
        raise ValueError(f"{lists[0]} is not a list with content")
    if lists == ["annotators"]:
        return [replace(one, annotator=name_of(value, "annotators")) for value in values]
    return [_vote(one, value) for value in values]


def _vote(pair: Comparison, vote: Any) -> Comparison:
    """One of `votes`: {"prefers": "chosen", "rejected" or "tie"}, and annotator, weight, seconds, the order shown."""
    prefers = vote.get("prefers") if isinstance(vote, dict) else None
    if prefers not in ("chosen", "rejected", "tie"):
        raise ValueError(f"a vote needs prefers, which is chosen, rejected or tie, not {prefers!r:.60}")
    annotator = None if vote.get("annotator") is None else name_of(vote["annotator"], "annotator")
    weight = number_of(vote.get("weight", pair.weight), "weight", 0)
    known = {name: value for name, value in _circumstances(vote).items() if value is not None}
    cast = replace(pair, annotator=annotator, weight=weight, tie=prefers == "tie", **known)
    if prefers != "rejected":
        return cast
    shown_first = None if cast.chosen_shown_first is None else not cast.chosen_shown_first
    return replace(
        cast,
        chosen=cast.rejected,
        rejected=cast.chosen,
        chosen_finished=cast.rejected_finished,
        rejected_finished=cast.chosen_finished,
        chosen_shown_first=shown_first,
    )


def _target_of(record: Mapping[str, Any], tie: bool) -> float:
    """A soft label, P(chosen wins); even odds are a tie. The likelier one is chosen, so that accuracy has a meaning."""
    target = number_of(record.get("target", 1.0), "target", 0)
    if target > 1:
        raise ValueError(f"target={target:g} is no probability; give P(chosen wins), from 0.5 to 1")
    if target < 0.5:
        raise ValueError(f"target={target:g} says that rejected is better; swap both and give {1 - target:g}")
    if tie and target not in (0.5, 1.0):
        raise ValueError(f"tie and target={target:g} cannot both say who wins; remove one of them")
    return target


def _kind_of(value: Any) -> str | None:
    """A prompt's stratum. Files have fields of this name that mean something else, which does not spoil their votes."""
    try:
        return name_of(value, "kind")
    except ValueError:
        return None


def _circumstances(record: Mapping[str, Any]) -> dict[str, Any]:
    """How a vote came about, as far as it was recorded. Of `votes`, the order shown speaks of the record's texts."""
    order, seconds, time = (record.get(name) for name in ("chosen_shown_first", "seconds", "time"))
    return {
        "chosen_shown_first": None if order is None else flag_of(order, "chosen_shown_first"),
        "seconds": None if seconds is None else number_of(seconds, "seconds", 0),
        "time": None if time is None else moment_of(time, "time"),
    }


def compared(comparison: Comparison) -> Comparison:
    """A comparison of two different responses."""
    if comparison.chosen == comparison.rejected:
        raise SameText("chosen and rejected are identical")
    return comparison


def begins_transcript(text: str) -> bool:
    """Whether a text is a transcript's: its first mark may have lost the blank line before it."""
    return text.startswith("\n\nHuman:") or (text.startswith("Human:") and "\n\nAssistant:" in text)


def transcript(value: Any, name: str) -> tuple[Message, ...]:
    """The turns of a transcript. One space behind a speaker's colon belongs to the mark, all else to the text."""
    text = text_of(value, name)
    before, *parts = _MARK.split(f"\n\n{text}" if text.startswith("Human:") else text)
    if before or not parts or parts[0] != "Human":
        raise ValueError(f"{name} does not begin with `Human:`")
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_SPEAKERS[speaker], text) for speaker, text in pairs)  # type: ignore[arg-type]


def split_turns(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Prompt, str, str]:
    """The shared prompt of two conversations and the responses behind it, which must be one turn each.

    Where the conversations part earlier, what was compared is no response to one prompt.
    """
    answers = answer_of(chosen, "chosen"), answer_of(rejected, "rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise SameText("chosen and rejected are identical")
    if shared == 0:
        raise ValueError("chosen and rejected share no prompt: their first turns differ")
    if {len(chosen), len(rejected)} != {shared + 1}:
        rest = f"{len(chosen) - shared} and {len(rejected) - shared} turns"
        raise ValueError(f"chosen and rejected part before the last response ({rest} follow what they share)")
    return Prompt(chosen[:-1]), *answers


def split_texts(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """The shared beginning of two texts and what follows, never cut inside a word.

    A word's single space before it goes with the response, as tokenizers have it and as TRL splits.
    """
    if chosen == rejected:
        raise SameText("chosen and rejected are identical")
    cut = len(os.path.commonprefix([chosen, rejected]))
    while cut > 0 and not chosen[cut - 1].isspace() and not _breaks(chosen, cut, rejected):
        cut -= 1
    if cut > 0 and chosen[cut - 1] == " ":
        cut -= 1
    if not chosen[:cut].strip():
        raise ValueError("chosen and rejected share no prompt; give it as the field prompt")
    if not chosen[cut:].strip() or not rejected[cut:].strip():
        raise ValueError("one of chosen and rejected is the beginning of the other; give the field prompt")
    return Prompt(chosen[:cut]), chosen[cut:], rejected[cut:]


def _breaks(chosen: str, cut: int, rejected: str) -> bool:
    """Whether a word ends at the cut in both texts."""
    return all(text[cut : cut + 1].isspace() or cut == len(text) for text in (chosen, rejected))
