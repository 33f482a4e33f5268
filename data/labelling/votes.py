"""From what the server holds of a project to votes, and an account of every annotation.

Of several usable annotations of one person on one pair the newest counts, whichever tasks they stand in; the others are
duplicates. What is malformed, was written over by somebody else or is gone displaces nothing. Of an annotation that
another person wrote over, the version before it counts, if it was pulled before that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.fields import written_moment
from data.formats import as_record
from data.labelling.annotations import CLASSES, USABLE, Annotation, parse
from data.labelling.ledger import Entry
from data.labelling.state import TaskState
from rlhf.types import Comparison


@dataclass(frozen=True)
class Judged:
    """An annotation, and what became of it."""

    annotation: Annotation
    task: int
    entry: Entry | None  # None: of a task that is none of ours
    record: Mapping[str, Any]  # as the server has it

    @property
    def prefers(self) -> str | None:
        """The response that was preferred, whichever side it was shown on: first, second or tie."""
        choice = self.annotation.choice
        if self.entry is None or choice is None or choice == "tie":
            return choice
        return "first" if (choice == "A") == self.entry.first_is_a else "second"


@dataclass
class Account:
    """Every annotation of a project, once."""

    judged: list[Judged] = field(default_factory=list)
    overwritten: list[Judged] = field(default_factory=list)  # what others made of those whose own version counts

    @property
    def votes(self) -> list[Judged]:
        """Those that prefer something, or nothing: valid ones and ties."""
        return [each for each in self.judged if each.annotation.kind in ("valid", "tie")]

    @property
    def rejects(self) -> list[Judged]:
        """Those that give no vote."""
        return [each for each in self.judged if each.annotation.kind not in ("valid", "tie")]

    def counts(self) -> dict[str, int]:
        """How many there are of each class, those with none included."""
        found = Counter(each.annotation.kind for each in self.judged)
        return {kind: found[kind] for kind in CLASSES}


def account_of(tasks: Iterable[TaskState], entries: Mapping[str, Entry], dimensions: Sequence[str]) -> Account:
    """What all annotations say."""
    account = Account()
    said: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for task in tasks:
        entry = entries.get(task.pair)
        problem = "" if entry is not None and entry.shows(task.shown) else _foreign(task, entry)
        for record in task.annotations:
            each = _judged(record, task, entry, (dimensions, problem))
            if each.annotation.kind == "edited" and (before := record.get("before")):
                account.overwritten.append(each)
                each = _judged(before, task, entry, (dimensions, problem))
            if entry is not None and each.annotation.kind in USABLE:
                said[entry.pair.id, each.annotation.annotator].append(each)
            else:
                account.judged.append(each)
        account.judged += [_deleted(record, task, entry) for record in task.deleted]
    for versions in said.values():
        *older, newest = sorted(versions, key=lambda each: (each.annotation.time, each.annotation.number))
        account.judged.append(newest)
        because = f"annotation {newest.annotation.number} of the same annotator on the same pair is newer"
        account.judged += [_rejected(each, "duplicate", because) for each in older]
    account.judged.sort(key=lambda each: (each.annotation.time, each.annotation.number))
    return account


def _foreign(task: TaskState, entry: Entry | None) -> str:
    if entry is None:
        return f"its task ({task.pair or 'no pair_id'}) was not pushed from here"
    return "its task shows other texts than were pushed"


def _judged(
    record: Mapping[str, Any], task: TaskState, entry: Entry | None, about: tuple[Sequence[str], str]
) -> Judged:
    """about: the dimensions of the page, and what is wrong with the task."""
    dimensions, problem = about
    try:
        annotation = parse(record, dimensions)
    except ValueError as error:
        return Judged(Annotation(_number(record), "", "malformed", str(error)), task.id, entry, record)
    found = Judged(annotation, task.id, entry, record)
    return _rejected(found, "malformed", problem) if problem else found


def _deleted(record: Mapping[str, Any], task: TaskState, entry: Entry | None) -> Judged:
    annotator = record.get("completed_by")
    known = Annotation(_number(record), str(annotator), "deleted", "was pulled once, and is gone from the server")
    return Judged(known, task.id, entry, record)


def _rejected(judged: Judged, kind: str, why: str) -> Judged:
    return replace(judged, annotation=replace(judged.annotation, kind=kind, why=why))  # type: ignore[arg-type]


def _number(record: Mapping[str, Any]) -> int:
    number = record.get("id")
    return number if isinstance(number, int) else 0


def vote_record(judged: Judged) -> dict[str, Any]:
    """A vote in the format `preference`, and what else is known of it."""
    annotation, entry = judged.annotation, judged.entry
    assert entry is not None and annotation.choice is not None
    pair = entry.pair
    first = judged.prefers == "first" or (judged.prefers == "tie" and entry.first_is_a)
    chosen, rejected = (pair.first, pair.second) if first else (pair.second, pair.first)
    finished = (pair.first_finished, pair.second_finished) if first else (pair.second_finished, pair.first_finished)
    chosen_side = "b" if annotation.choice == "B" else "a"
    comparison = Comparison(
        pair.prompt,
        chosen,
        rejected,
        tie=annotation.choice == "tie",
        annotator=annotation.annotator,
        chosen_shown_first=chosen_side == "a",
        seconds=annotation.seconds,
        chosen_finished=finished[0],
        rejected_finished=finished[1],
    )
    record = {**as_record(comparison), "time": written_moment(annotation.time), "pair": pair.id}
    known = {"kind": pair.kind, "reason": annotation.reason, "ratings": _ratings(annotation, chosen_side)}
    return record | {name: value for name, value in known.items() if value}


def _ratings(annotation: Annotation, chosen_side: str) -> dict[str, dict[str, int]]:
    return {
        name: {("chosen" if side == chosen_side else "rejected"): stars for side, stars in by_side.items()}
        for name, by_side in annotation.ratings.items()
    }


def reject_record(judged: Judged) -> dict[str, Any]:
    """An annotation that gives no vote, with the reason, and all that the server had."""
    annotation = judged.annotation
    pair = judged.entry.pair.id if judged.entry else None
    who = {"class": annotation.kind, "why": annotation.why, "pair": pair, "task": judged.task}
    who |= {"annotation": annotation.number, "annotator": annotation.annotator}
    when = {"time": written_moment(annotation.time)} if annotation.time else {}
    return who | when | {"record": {name: value for name, value in judged.record.items() if name != "before"}}
