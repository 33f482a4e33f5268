"""One annotation, read strictly: the server takes whatever it is sent, and checks nothing against the page.

What it was seen to take: choices that there are not, two at once, none, the question answered twice, fields of no
control, items without a value, six stars of five, ratings that are texts. Each of these is malformed, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from data.fields import moment_of, number_of
from data.labelling.page import CHOICES, QUESTION, REASON, SIDES, STARS, rating_name
from data.records import one_line, shown

Class = Literal["valid", "tie", "skipped", "malformed", "duplicate", "edited", "deleted"]
CLASSES: tuple[Class, ...] = ("valid", "tie", "skipped", "malformed", "duplicate", "edited", "deleted")
USABLE = ("valid", "tie", "skipped")  # what somebody has said


@dataclass(frozen=True)
class Annotation:
    """What one annotation says."""

    number: int  # of the server
    annotator: str
    kind: Class
    why: str = ""  # it gives no vote
    choice: str | None = None  # A, B or tie, as shown
    ratings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # dimension → side → stars
    reason: str = ""
    seconds: float | None = None  # time taken; None where the server has none that can be used
    time: float = 0.0  # of its last change, seconds since 1970


def parse(record: Mapping[str, Any], dimensions: Sequence[str]) -> Annotation:
    """Read an annotation as the server's JSON export has it. Raises ValueError where not even its author is known."""
    number, annotator = _whole(record, "id"), str(_whole(record, "completed_by"))
    changed_by = record.get("updated_by")
    try:
        time = moment_of(record.get("updated_at"), "updated_at")
    except ValueError as error:
        return Annotation(number, annotator, "malformed", one_line(error))
    found = Annotation(number, annotator, "malformed", seconds=_seconds(record.get("lead_time")), time=time)
    if changed_by is not None and str(changed_by) != annotator:
        return replace(found, kind="edited", why=f"last written by {changed_by}")
    if record.get("was_cancelled") is True:
        return replace(found, kind="skipped", why="skipped")
    try:
        said = _Said(dimensions).read(record.get("result"))
    except ValueError as error:
        return replace(found, why=one_line(error))
    kind: Class = "tie" if said.choice == "tie" else "valid"
    return replace(found, kind=kind, choice=said.choice, ratings=said.ratings, reason=said.reason)


class _Said:
    """The result of an annotation, item by item."""

    def __init__(self, dimensions: Sequence[str]) -> None:
        self.rated = {rating_name(name, side): (name, side) for name in dimensions for side in SIDES}
        self.choice: str | None = None
        self.ratings: dict[str, dict[str, int]] = {}
        self.reason = ""
        self.seen: set[str] = set()

    def read(self, result: Any) -> _Said:
        if not isinstance(result, list):
            raise ValueError(f"result={shown(result)} is not a list")
        for item in result:
            self._take(item)
        if QUESTION not in self.seen:
            raise ValueError("no preference" if result else "an empty result")
        return self

    def _take(self, item: Any) -> None:
        if not isinstance(item, dict):
            raise ValueError(f"an item of the result is {shown(item)}, not an object")
        name, value = item.get("from_name"), item.get("value")
        if not isinstance(name, str) or name not in (QUESTION, REASON, *self.rated):
            raise ValueError(f"from_name={shown(name)} is no field of the page")
        if not isinstance(value, dict):
            raise ValueError(f"{name} has no value")
        if name in self.seen:
            raise ValueError(f"{name} is answered twice")
        self.seen.add(name)
        if name == QUESTION:
            self.choice = _choice(value.get("choices"))
        elif name == REASON:
            self.reason = _reason(value.get("text"))
        else:
            dimension, side = self.rated[name]
            self.ratings.setdefault(dimension, {})[side] = _stars(name, value.get("rating"))


def _choice(choices: Any) -> str:
    if not isinstance(choices, list) or len(choices) != 1:
        raise ValueError(f"preference={shown(choices)} is not one choice")
    if not isinstance(choices[0], str) or choices[0] not in CHOICES:
        raise ValueError(f"preference={shown(choices[0])} is not {', '.join(CHOICES)}")
    return choices[0]


def _reason(text: Any) -> str:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ValueError(f"reason={shown(text)} is not a text")
    return "\n".join(texts)


def _stars(name: str, stars: Any) -> int:
    if isinstance(stars, bool) or not isinstance(stars, int) or not 1 <= stars <= STARS:
        raise ValueError(f"{name}={shown(stars)} is not a whole number from 1 to {STARS}")
    return stars


def _seconds(value: Any) -> float | None:
    try:
        return number_of(value, "lead_time", 0)
    except ValueError:
        return None


def _whole(record: Mapping[str, Any], name: str) -> int:
    value = record.get(name)
    if isinstance(value, dict):  # some answers of the server have the whole account in the place of its number
        value = value.get("id")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={shown(value)} is not a number")
    return value
