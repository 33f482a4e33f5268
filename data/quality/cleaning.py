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
from data.quality.check import Checked, Tokens
from data.quality.faults import faults_of
from data.quality.repeats import Mask
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
    masks, partners = _masks(checked, kinds), checked.repeats.partners
    wanted = {int(row) for kind in masks for row in partners[_PARTNER[kind]][masks[kind]] if row >= 0}
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
        if found is None:
            repeated = next((kind for kind in masks if masks[kind][number]), None)
            if repeated:
                other = places.get(int(partners[_PARTNER[repeated]][number]))
                found = repeated, _WHY[repeated] + (f" ({other})" if other and other != vote.place else "")
        why = {"place": vote.place, "kind": found[0], "why": found[1]} if found else None
        yield as_record(vote.comparison), why
    yield from bad_ones()


_PARTNER = {"duplicate": "duplicate", "near_duplicate": "near_duplicate", "contradiction": "pair", "leakage": "leakage"}
_WHY = {
    "duplicate": "repeats an earlier vote",
    "near_duplicate": "nearly repeats an earlier pair",
    "contradiction": "on a pair with votes in both directions",
    "leakage": "of training, with a prompt that is held out as well",
}


def _masks(checked: Checked, kinds: Collection[str]) -> dict[str, Mask]:
    """Which votes are left out for what others say: all votes of near pairs, and of training what leaks."""
    repeats = checked.repeats
    near = repeats.near_duplicate
    masks = {
        "duplicate": repeats.duplicate,
        "contradiction": repeats.contradiction,
        "near_duplicate": near[repeats.partners["pair"]] if len(near) else near,
        "leakage": repeats.leaking,
    }
    return {kind: np.asarray(mask, bool) for kind, mask in masks.items() if kind in kinds}
