"""The formats of records, by TRL's names where TRL has one; which of them a file is in; writing our own.

A format is told by the fields of the first records (detected) or by the recipe (`format: hh`). Where a record fits
several, the first in `FORMATS` counts: votes before demonstrations before prompts, the special before the general.
One example record of each: `docs/data.md`.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data.formats_demonstrations import (
    parse_instruction,
    parse_messages,
    parse_prompt,
    parse_prompt_completion,
    parse_self_instruct,
)
from data.formats_preferences import (
    begins_transcript,
    parse_hh,
    parse_implicit_preference,
    parse_pandalm,
    parse_preference,
)
from data.ratings import Rating, parse_rating, parse_squality
from data.records import shown
from rlhf.errors import DataError
from rlhf.types import Comparison, Demonstration, Message, Prompt

Example = Prompt | Demonstration | Comparison | Rating
Fields = Mapping[str, Any]

# What can be drawn from what a format holds.
USES: Mapping[str, tuple[str, ...]] = {
    "comparisons": ("comparisons", "demonstrations", "prompts"),
    "ratings": ("comparisons",),
    "demonstrations": ("demonstrations", "prompts"),
    "prompts": ("prompts",),
}


def _is_transcript(record: Fields) -> bool:
    texts = record["chosen"], record["rejected"]
    return all(isinstance(text, str) and begins_transcript(text) for text in texts)


def _is_rated(record: Fields) -> bool:
    return ("text" in record or "response" in record) and any(n in record for n in ("mean", "rating", "ratings"))


@dataclass(frozen=True)
class Format:
    """How records of one kind are read."""

    name: str
    holds: str  # comparisons, ratings, demonstrations or prompts
    fields: tuple[str, ...]  # what its records have
    parse: Callable[[Fields], Sequence[Example]]  # raises ValueError for a record that does not fit
    looks_right: Callable[[Fields], bool] = lambda record: True

    def fits(self, record: Fields) -> bool:
        """Whether a record has the fields of this format."""
        return all(name in record for name in self.fields) and self.looks_right(record)


FORMATS: Mapping[str, Format] = {
    made.name: made
    for made in (
        Format("pandalm", "comparisons", ("instruction", "response1", "response2", "annotator1"), parse_pandalm),
        Format("squality", "ratings", ("response", "worker_id", "overall-rating"), parse_squality),
        Format("preference", "comparisons", ("prompt", "chosen", "rejected"), parse_preference),
        Format("hh", "comparisons", ("chosen", "rejected"), parse_hh, _is_transcript),
        Format("implicit-preference", "comparisons", ("chosen", "rejected"), parse_implicit_preference),
        Format("rating", "ratings", (), parse_rating, _is_rated),
        Format("messages", "demonstrations", ("messages",), parse_messages),
        Format("prompt-completion", "demonstrations", ("prompt", "completion"), parse_prompt_completion),
        Format("self-instruct", "demonstrations", ("instruction", "instances"), parse_self_instruct),
        Format("instruction", "demonstrations", ("instruction", "output"), parse_instruction),
        Format("prompt", "prompts", ("prompt",), parse_prompt),
    )
}


def detect(records: Sequence[Fields], kind: str | None, source: str) -> Format:
    """The format that most of the first records are in, of those that can be used as a kind (None: as anything).

    Those that are in another do not parse and come out as bad records. DataError where no record fits.
    """
    usable = [form for form in FORMATS.values() if kind is None or kind in USES[form.holds]]
    fitting = ([form.name for form in usable if form.fits(record)] for record in records)
    seen = Counter(names[0] for names in fitting if names)
    if seen:
        order = list(FORMATS)
        return FORMATS[max(seen, key=lambda name: (seen[name], -order.index(name)))]
    other = next((form for form in FORMATS.values() for record in records if form.fits(record)), None)
    if other is not None:
        raise DataError(_cannot(source, other, kind))
    names = list(dict.fromkeys(name for record in records for name in record))
    known = {name for form in FORMATS.values() for name in form.fields}
    close = [(name, match) for name in names[:50] for match in difflib.get_close_matches(name[:50], known, n=1)]
    hint = next((f"; did you mean {match!r} by {shown(name, 30)}?" for name, match in close if name != match), "")
    raise DataError(
        f"{source}: no known format has the fields {listed(names)}{hint}; rename to {STANDARD[kind]}, or see "
        "docs/data.md for other formats"
    )


# The fields of our own standard formats.
STANDARD: Mapping[str | None, str] = {
    "comparisons": "prompt, chosen, rejected",
    "demonstrations": "prompt, completion",
    "prompts": "prompt",
    None: "prompt, chosen, rejected (votes) or prompt, completion (demonstrations)",
}


def listed(names: Sequence[str]) -> str:
    """The first fields of records, for people."""
    return (", ".join(shown(name, 30) for name in names[:8]) + (", ..." if len(names) > 8 else "")) or "(none)"


def given(name: str, kind: str | None, source: str) -> Format:
    """A format by its name; DataError where it cannot be used as a kind."""
    if name not in FORMATS:
        close = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known formats: {', '.join(FORMATS)}"
        raise DataError(f"{source}: format={shown(name)} is not known{hint}")
    if kind is not None and kind not in USES[FORMATS[name].holds]:
        raise DataError(_cannot(source, FORMATS[name], kind))
    return FORMATS[name]


def _cannot(source: str, form: Format, kind: str | None) -> str:
    usable = ", ".join(other.name for other in FORMATS.values() if kind in USES[other.holds])
    return f"{source}: format {form.name} holds {form.holds}, no {kind}; give {kind} in one of: {usable}"


def draw(examples: Sequence[Example], kind: str | None) -> tuple[list[Example], list[str]]:
    """What a record's examples give as a kind, and why the others give nothing.

    Prompts come with everything else; a demonstration is what was preferred, once for each text whoever voted for it.
    """
    if kind == "prompts":
        prompts = (example if isinstance(example, Prompt) else example.prompt for example in examples)
        return list(dict.fromkeys(prompt for prompt in prompts if prompt is not None)), []
    if kind != "demonstrations":
        return list(examples), []
    drawn: dict[Example, None] = {}
    unused = []
    for example in examples:
        if isinstance(example, Prompt):
            unused.append("rejected completions")
        elif not isinstance(example, Comparison):
            drawn[example] = None
        elif example.tie:
            unused.append("ties")
        elif not example.chosen.strip():
            unused.append("empty responses")
        elif not example.chosen_finished:
            unused.append("cut responses")
        else:
            drawn[Demonstration(example.prompt, example.chosen)] = None
    return list(drawn), unused


def as_record(example: Example) -> dict[str, Any]:
    """An example in our own standard format, the inverse of parsing: what is at its default is left out."""
    if isinstance(example, Prompt):
        return {"prompt": _turns(example)}
    if isinstance(example, Demonstration):
        return {"prompt": _turns(example.prompt), "completion": example.completion}
    if isinstance(example, Comparison):
        record: dict[str, Any] = {"prompt": _turns(example.prompt)}
        for name in ("chosen", "rejected"):
            text = getattr(example, name)
            # An empty text would be a hole; a response of nothing is a turn without content.
            record[name] = text if text.strip() else [{"role": "assistant", "content": text}]
    else:
        asked = {"group": example.group} if example.prompt is None else {"prompt": _turns(example.prompt)}
        record = {name: value for name, value in asked.items() if value is not None}
        record |= {"text": example.text, "rating": example.score}
    for field in fields(example):
        value = getattr(example, field.name)
        if field.name in _OPTIONAL and value != field.default:
            record[field.name] = value
    return record


_OPTIONAL = {"tie", "target", "annotator", "weight", "chosen_shown_first", "seconds", "time", "kind"}
_OPTIONAL |= {"chosen_finished", "rejected_finished"}


def _turns(prompt: Prompt) -> str | list[dict[str, str]]:
    if isinstance(prompt.content, str):
        return prompt.content
    return [_turn(message) for message in prompt.content]


def _turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def write_jsonl(path: Path, examples: Iterable[Example]) -> int:
    """Write examples in our own standard format; how many there were."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(json.dumps(as_record(example), ensure_ascii=False) + "\n")
            count += 1
    return count
