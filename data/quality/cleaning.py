"""A file of the votes that are sound, and beside it a file that names each one left out, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.formats import as_record
from data.quality.check import Checked
from data.quality.faults import faults_of
from data.quality.minhash import Rows
from data.quality.repeats import Mask
from data.quality.survey import Tokens
from data.quality.verdict import KINDS
from data.quality.votes import Votes
from data.records import BadRecord
from rlhf.errors import ConfigError, DataError

# What is left out unless the command says otherwise, and what may be.
DROPPED = tuple(kind for kind, leaving in KINDS.items() if leaving == "dropped")
DROPPABLE = tuple(kind for kind, leaving in KINDS.items() if leaving != "kept")


@dataclass(frozen=True)
class Cleaned:
    """What was written."""

    kept: int
    dropped: Mapping[str, int]  # votes and bad records, by the first kind that was found
    report: Path

    def __str__(self) -> str:
        """For people."""
        each = ", ".join(f"{count:,} {kind}" for kind, count in self.dropped.items())
        return f"{self.kept:,} votes kept, {sum(self.dropped.values()):,} left out{f' ({each})' if each else ''}"


def clean(votes: Votes, checked: Checked, output: Path, kinds: Collection[str], tokens: Tokens | None) -> Cleaned:
    """Write the votes that have none of the kinds of faults, in our own format, and what was left out beside it.

    Both files appear whole or not at all, and the report first. Raises ConfigError where the output is an input,
    DataError where nothing would be left.
    """
    report = output.with_name(f"{output.name.removesuffix('.jsonl')}.dropped.jsonl")
    for file in votes.files():
        if file.path.resolve() in (output.resolve(), report.resolve()):
            raise ConfigError(f"--clean={output}: would replace a file that is read ({file.name}); give another name")
    partials = [path.with_name(f".{path.name}.partial") for path in (output, report)]
    kept, dropped = 0, Counter[str]()
    try:
        with partials[0].open("w", encoding="utf-8") as good, partials[1].open("w", encoding="utf-8") as bad:
            for record, why in _sorted_out(votes, checked, kinds, tokens):
                if why:
                    dropped[why["kind"]] += 1
                    bad.write(json.dumps(why | ({"record": record} if record else {}), ensure_ascii=False) + "\n")
                else:
                    kept += 1
                    good.write(json.dumps(record, ensure_ascii=False) + "\n")
        if not kept:
            raise DataError(f"--clean={output}: no vote would be left; name fewer kinds with --drop")
        for partial, path in reversed(list(zip(partials, (output, report), strict=True))):
            partial.replace(path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    return Cleaned(kept, dropped, report)


def _sorted_out(
    votes: Votes, checked: Checked, kinds: Collection[str], tokens: Tokens | None
) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """(record, why it is left out) of each vote and each bad record; the one or the other may be None."""
    related = _related(checked, kinds)
    wanted = {int(row) for each in related for row in each.partner[each.mask] if row >= 0}
    places: dict[int, str] = {}
    waiting: list[BadRecord] = []

    def bad_ones() -> Iterator[tuple[None, dict[str, Any]]]:
        for bad in waiting:
            yield None, {"place": bad.place, "kind": bad.kind, "why": bad.problem}
        waiting.clear()

    for number, vote in enumerate(votes.read(lambda _, bad: waiting.append(bad))):
        yield from bad_ones()
        if number in wanted:
            places[number] = vote.place
        own = faults_of(vote.comparison, tokens.reserved if tokens else ())
        if tokens and "too_long" in kinds and (length := tokens.measure(vote.comparison)) > tokens.most:
            own["too_long"] = f"{length:,} tokens, more than {tokens.most:,}"
        found = next(((kind, own[kind]) for kind in DROPPABLE if kind in kinds and kind in own), None)
        if found is None and (each := next((each for each in related if each.mask[number]), None)):
            other = places.get(int(each.partner[number]))
            found = each.kind, each.why + (f" ({other})" if other and other != vote.place else "")
        why = {"place": vote.place, "kind": found[0], "why": found[1]} if found else None
        yield as_record(vote.comparison), why
    yield from bad_ones()


@dataclass(frozen=True)
class _Related:
    """Votes that are left out for what others say."""

    kind: str
    mask: Mask
    partner: Rows  # by vote, the one that it goes with
    why: str


def _related(checked: Checked, kinds: Collection[str]) -> list[_Related]:
    """All votes of near pairs, and of training what leaks; the first that names a vote is why."""
    repeats, partners = checked.repeats, checked.repeats.partners
    near = repeats.near_duplicate
    alone, flagged = np.full(len(near), -1), checked.flagged if len(checked.flagged) else np.zeros(len(near), bool)
    every = [
        _Related("offensive", flagged, alone, "a response is flagged"),
        _Related("duplicate", repeats.duplicate, partners["duplicate"], "repeats an earlier vote"),
        _Related("contradiction", repeats.contradiction, partners["pair"], "on a pair with votes in both directions"),
        _Related(
            "contradiction",
            repeats.near_contradiction,
            partners["alike"],
            "on one of some nearly equal pairs with votes in both directions",
        ),
        _Related(
            "near_duplicate",
            near[partners["pair"]] if len(near) else near,
            partners["near_duplicate"],
            "nearly repeats an earlier pair",
        ),
        _Related(
            "leakage", repeats.leaking, partners["leakage"], "of training, with a prompt that is held out as well"
        ),
    ]
    return [each for each in every if each.kind in kinds]
