"""Pairs to the server, each exactly once, whatever happens in between.

An import is all or nothing on the server, but who is killed, or loses the connection, does not learn which. So nothing
is taken from memory: the server is asked which pairs it has, what is missing is sent, and at the end it is asked
again. A batch that may still be on its way is waited for, two minutes from its sending: a proxy gives up sooner than
the server. What came twice all the same is removed, as long as nobody has annotated it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from data.labelling.client import Away, Refused, Unsent
from data.labelling.ledger import IN_FLIGHT, Entry, Ledger, Project, require_same
from data.labelling.page import QUESTION, missing_controls, page
from data.labelling.server import ANSWER_SECONDS, IDS, LabelStudio
from rlhf.errors import ConfigError, LabellingError
from rlhf.store.artifact import write_json

BATCH = 500
SETTLE_SECONDS = 10.0  # for which a batch whose answer was lost may still be on its way
FIELDS = f"id,data,{IDS}"
TITLE = range(3, 51)  # characters that the server takes
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What a project is to be like."""

    title: str
    overlap: int | None = None  # annotators for each task; None: as it is, and one where the project is new
    dimensions: tuple[str, ...] = ()
    instructions: str = ""  # shown before labelling
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for a title that the server would not take."""
        if len(self.title) not in TITLE or self.title != self.title.strip():
            raise ConfigError(f"--project {self.title!r}: a title has {TITLE.start} to {TITLE.stop - 1} characters")


@dataclass(frozen=True)
class Pushed:
    """What has come of a push."""

    project: Project
    pushed: int
    there: int  # that had been there before
    removed: int  # that had come twice
    turned: int  # that the server shows the other way round than this side would have


def find_project(server: LabelStudio, ledger: Ledger, settings: Settings) -> Project:
    """The project of a title, made if there is none. Raises LabellingError where it is not, or not ours."""
    found = server.projects(settings.title)
    if len(found) > 1:
        raise LabellingError(f"--project {settings.title}: {server.url} has {len(found)} of this title; rename others")
    known = ledger.project
    if known is not None:
        if not found:
            raise LabellingError(
                f"{settings.title}: its project (number {known.id} of {known.url}) is not at {server.url}; give its "
                "--url, or another --directory"
            )
        require_same(known, found[0], server.url)
        if known.dimensions != settings.dimensions:
            rated = " ".join(f"--rate {name}" for name in known.dimensions) or "no --rate"
            raise LabellingError(
                f"{settings.title}: its page was made with {rated}; give the same, or another --project"
            )
    made = _updated(server, found[0], settings) if found else _created(server, settings)
    if known is not None:
        project = replace(known, url=server.url)
    else:
        first = (server.url, made["id"], settings.title, made["created_at"])
        project = Project(*first, settings.seed, settings.dimensions)
    ledger.keep_project(project)
    return project


def _created(server: LabelStudio, settings: Settings) -> dict[str, Any]:
    wanted = {
        "title": settings.title,
        "label_config": page(settings.dimensions),
        "maximum_annotations": settings.overlap or 1,
        "show_skip_button": True,
        "enable_empty_annotation": False,
        "show_collab_predictions": False,  # what a model thinks is not for people to see first
        "sampling": "Sequential sampling",
        "expert_instruction": as_html(settings.instructions),
        "show_instruction": bool(settings.instructions),
    }
    try:
        return server.create_project(wanted)
    except Away:
        # It may have been made all the same, and a second one of this title would be nobody's.
        found = server.projects(settings.title)
        return found[0] if found else server.create_project(wanted)


def _updated(server: LabelStudio, found: dict[str, Any], settings: Settings) -> dict[str, Any]:
    whole = server.project(found["id"])
    if lacking := missing_controls(whole["label_config"], settings.dimensions):
        raise LabellingError(
            f"--project {settings.title}: its labelling page has no {', '.join(lacking)} as rlhf label writes it; give "
            f"another --project, or undo the change of its page ({QUESTION}: A, B, tie)"
        )
    wanted: dict[str, Any] = {} if settings.overlap is None else {"maximum_annotations": settings.overlap}
    if settings.instructions:
        wanted |= {"expert_instruction": as_html(settings.instructions), "show_instruction": True}
    if changes := {name: value for name, value in wanted.items() if whole.get(name) != value}:
        server.change_project(whole["id"], changes)
    return whole


def as_html(text: str) -> str:
    """A text as the server shows instructions."""
    return escape(text).replace("\n", "<br>")


@dataclass(frozen=True)
class Present:
    """A task of the server with one of our pairs."""

    task: int
    annotated: bool
    data: Mapping[str, Any]


def push(
    server: LabelStudio,
    ledger: Ledger,
    project: Project,
    entries: Sequence[Entry],
    batch: int = BATCH,
    progress: Progress = lambda done, total: None,
) -> Pushed:
    """Send what the server does not have yet, in order. Raises LabellingError where it stays away."""
    wanted = {entry.pair.id: entry for entry in entries}
    present = _settled(server, ledger, project)
    turned = _turn(ledger, present)
    entries = [ledger.entries[pair] for pair in wanted]
    there = sum(pair in present for pair in wanted)
    since = time.monotonic()
    while missing := [entry for entry in entries if entry.pair.id not in present]:
        progress(len(entries) - len(missing), len(entries))
        try:
            for start in range(0, len(missing), batch):
                part = missing[start : start + batch]
                _mark(ledger, [entry.pair.id for entry in part], time.time())
                server.import_tasks(project.id, [entry.data() for entry in part])
                since = time.monotonic()
                progress(len(entries) - len(missing) + start + len(part), len(entries))
        except Refused:  # that is an answer: nothing is on its way
            (ledger.directory / IN_FLIGHT).unlink(missing_ok=True)
            raise
        except Unsent:
            (ledger.directory / IN_FLIGHT).unlink(missing_ok=True)
        except Away:  # it may have arrived
            pairs, sent, _ = _flying(ledger.directory)
            _mark(ledger, pairs, sent, lost=time.time())
            if time.monotonic() - since > server.patience:
                raise
        lost = time.monotonic()
        present = _settled(server, ledger, project)
        since += time.monotonic() - lost
    (ledger.directory / IN_FLIGHT).unlink(missing_ok=True)
    removed = _remove_doubles(
        server, project, {pair: tasks for pair, tasks in present.items() if pair in ledger.entries}
    )
    return Pushed(project, len(wanted) - there, there, removed, turned)


def pairs_on(server: LabelStudio, project: Project) -> dict[str, list[Present]]:
    """The tasks of each pair that the server has."""
    found: dict[str, dict[int, Present]] = defaultdict(dict)
    for _, tasks in server.tasks(project.id, FIELDS):
        for task in tasks:
            pair = task["data"].get("pair_id")
            if isinstance(pair, str):
                found[pair][task["id"]] = Present(task["id"], bool(task[IDS]), task["data"])
    return {pair: list(tasks.values()) for pair, tasks in found.items()}


def _settled(server: LabelStudio, ledger: Ledger, project: Project) -> dict[str, list[Present]]:
    """What the server has, once a batch that was on its way has arrived or had the time to."""
    present = pairs_on(server, project)
    flying, sent, lost = _flying(ledger.directory)
    until = max(sent + ANSWER_SECONDS, lost + SETTLE_SECONDS)
    # A clock that was set back must not make this long.
    deadline = time.monotonic() + min(until - time.time(), ANSWER_SECONDS + SETTLE_SECONDS)
    said = False
    while not all(pair in present for pair in flying) and (left := deadline - time.monotonic()) > 0:
        if not said:
            print(f"the last batch may be on its way still; up to {left:.0f} s more", file=sys.stderr, flush=True)
            said = True
        time.sleep(min(left, 1.0))
        present = pairs_on(server, project)
    return present


def _mark(ledger: Ledger, pairs: Sequence[str], sent: float, lost: float = 0.0) -> None:
    write_json(ledger.directory / IN_FLIGHT, {"pairs": list(pairs), "sent": sent, "lost": lost})


def _flying(directory: Path) -> tuple[list[str], float, float]:
    """The batch that was sent last, when, and when its answer was lost, as far as that is known."""
    try:
        record = json.loads((directory / IN_FLIGHT).read_text(encoding="utf-8"))
        return list(record["pairs"]), float(record["sent"]), float(record["lost"])
    except (OSError, ValueError, KeyError, TypeError):
        return [], 0.0, 0.0


def _turn(ledger: Ledger, present: Mapping[str, Sequence[Present]]) -> int:
    """Take over the sides that the server shows, where a ledger was lost and its seed with it."""
    turned = 0
    for pair, tasks in present.items():
        entry = ledger.entries.get(pair)
        shown = (tasks[0].data.get("response_a"), tasks[0].data.get("response_b"))
        if entry is not None and shown == entry.responses[::-1]:
            ledger.turn(pair)
            turned += 1
    if turned:
        ledger.write()
    return turned


def _remove_doubles(server: LabelStudio, project: Project, present: Mapping[str, Sequence[Present]]) -> int:
    """Leave each pair one task, that with annotations or else the first; one with annotations is never removed.

    A listing is minutes old where there are many, and people vote: so each pair is asked for again.
    """
    removed = 0
    for tasks in present.values():
        if len(tasks) < 2:
            continue
        now = server.annotated(project.id, [task.task for task in tasks])
        annotated = {task["id"]: bool(task["annotations"]) for task in now}
        for number in sorted(annotated, key=lambda number: (not annotated[number], number))[1:]:
            if not annotated[number]:
                server.delete_task(number)
                removed += 1
    return removed
