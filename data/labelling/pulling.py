"""Votes from the server to files: what has changed since the last time, and from it everything anew.

The files are functions of the state and the ledger, so a pull that was killed leaves nothing behind that the next one
does not mend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.fields import moment_of
from data.labelling.ledger import (
    ANNOTATORS,
    CALIBRATION,
    LEDGER,
    REJECTS,
    STATE,
    SUMMARY,
    VOTES,
    Ledger,
    Project,
    require_same,
    write_lines,
)
from data.labelling.pushing import pairs_on
from data.labelling.server import EXPORTED, IDS, URL, LabelStudio, connect
from data.labelling.state import State
from data.labelling.votes import Account, account_of, reject_record, vote_record
from rlhf.errors import LabellingError
from rlhf.store.artifact import write_json

SLACK_SECONDS = 120.0  # by which the server's clock may have been set back
FIELDS = f"id,updated_at,{IDS}"
LISTED_IDS = 40  # of a task's annotations, which the server lists with certainty
LISTINGS = 5  # attempts to see all tasks while others come and go
Progress = Callable[[int, int], None]  # of how many tasks


@dataclass(frozen=True)
class Pulled:
    """What a pull has found."""

    account: Account
    counts: dict[str, Any]
    changed: int  # tasks that were asked for
    doubled: int = 0  # pairs with several tasks, as far as all were looked at


def server_of(ledger: Ledger, url: str | None, patience: float) -> LabelStudio:
    """The server that was pushed to, which may have moved to another address since: that given, or of the environment.

    Raises LabellingError where it is another.
    """
    project = ledger.require_project()
    server = connect(url or os.environ.get(URL) or project.url, patience)
    require_same(project, server.project(project.id), server.url)
    if server.url != project.url:
        ledger.keep_project(replace(project, url=server.url))
    return server


class Puller:
    """Pulls of one project, one after another; what is in memory is what is on the disk."""

    def __init__(self, server: LabelStudio, ledger: Ledger) -> None:
        self.server = server
        self.ledger = ledger
        self.project: Project = ledger.require_project()
        self.state = State()
        self.versions: list[object] = []  # of ledger and state, as they are in memory

    def pull(self, whole: bool = True, again: bool = False, progress: Progress = lambda done, total: None) -> Pulled:
        """Bring the files up to date.

        whole: look at all tasks, so that deleted ones are found; else at those that changed since the last pull.
        again: ask for the annotations of all of them, whatever the server says of changes.
        """
        self._refresh()
        listed, newest, complete = self._listed(whole or again)
        changed = [number for number, fields in listed.items() if again or self._has_changed(number, fields)]
        for start in range(0, len(changed), EXPORTED):
            for task in self.server.annotated(self.project.id, changed[start : start + EXPORTED]):
                self.state.take(task)
            progress(min(start + EXPORTED, len(changed)), len(changed))
        gone = [number for number in self.state.tasks if number not in listed] if complete else []
        gone = [number for number in gone if self.state.tasks[number].annotations]
        for number in gone:
            self.state.lose(number)
        if changed or gone or newest > self.state.newest:
            self.state.newest = max(newest, self.state.newest)
            self.state.write(self.ledger.directory)
            self.versions = self._versions()
        if whole or again:
            write_json(self.ledger.directory / ANNOTATORS, self.server.members())
        account = account_of(self.state.tasks.values(), self.ledger.entries, self.project.dimensions)
        doubled = self._doubled() if complete and len(listed) > len(self.ledger.entries) else 0
        return Pulled(account, write_files(self.ledger, account), len(changed) + len(gone), doubled)

    def _doubled(self) -> int:
        """Pairs with several tasks. To remove some is for a push alone, which knows what is on its way."""
        pairs = pairs_on(self.server, self.project)
        return sum(len(tasks) > 1 for pair, tasks in pairs.items() if pair in self.ledger.entries)

    def _refresh(self) -> None:
        """Read what another process has written since: a push, or somebody's own pull."""
        if self.versions != self._versions():
            self.ledger = Ledger.open(self.ledger.directory)
            self.state = State.load(self.ledger.directory)
            self.versions = self._versions()

    def _versions(self) -> list[object]:
        paths = [self.ledger.directory / name for name in (LEDGER, STATE)]
        stats = [path.stat() if path.is_file() else None for path in paths]
        return [stat and (stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]

    def _has_changed(self, number: int, fields: dict[str, Any]) -> bool:
        known = self.state.tasks.get(number)
        if known is None:
            return bool(fields[IDS])
        numbers = sorted(record["id"] for record in known.annotations)
        return bool(known.updated_at != fields["updated_at"] or (numbers != fields[IDS] and len(numbers) <= LISTED_IDS))

    def _listed(self, whole: bool) -> tuple[dict[int, dict[str, Any]], str, bool]:
        """Tasks by number, the newest change among them, and whether these are all that there are."""
        if not whole:
            return *self._listed_newest(), False
        for _ in range(LISTINGS):
            found: dict[int, dict[str, Any]] = {}
            totals = set()
            for total, tasks in self.server.tasks(self.project.id, FIELDS):
                totals.add(total)
                found |= {task["id"]: task for task in tasks}
            # A task that is removed while we read moves others to pages that we have read.
            if totals <= {len(found)}:
                return found, max((task["updated_at"] for task in found.values()), default=""), True
        raise LabellingError(f"{self.project.title}: its tasks change all the while; pull again once nobody pushes")

    def _listed_newest(self) -> tuple[dict[int, dict[str, Any]], str]:
        found: dict[int, dict[str, Any]] = {}
        seen = moment_of(self.state.newest, "newest") - SLACK_SECONDS if self.state.newest else 0.0
        for _, tasks in self.server.tasks(self.project.id, FIELDS, newest_first=True):
            found |= {task["id"]: task for task in tasks}
            if moment_of(tasks[-1]["updated_at"], "updated_at") < seen:
                break
        return found, max((task["updated_at"] for task in found.values()), default="")


def write_files(ledger: Ledger, account: Account) -> dict[str, Any]:
    """Write votes, votes on gold pairs, rejects and counts, each whole; the counts."""
    directory = ledger.directory
    gold = [each.entry is not None and each.entry.pair.answer is not None for each in account.votes]
    for name, wanted in ((VOTES, False), (CALIBRATION, True)):
        chosen = [each for each, is_gold in zip(account.votes, gold, strict=True) if is_gold is wanted]
        write_lines(directory / name, map(vote_record, chosen))
    write_lines(directory / REJECTS, map(reject_record, [*account.rejects, *account.overwritten]))
    counts = summarised(ledger, account, gold)
    write_json(directory / SUMMARY, counts)
    return counts


def summarised(ledger: Ledger, account: Account, gold: Sequence[bool]) -> dict[str, Any]:
    """How many annotations there are of each class, and how far the pairs are labelled."""
    voted = {each.entry.pair.id for each in account.votes if each.entry is not None}
    return {
        "annotations": len(account.judged),
        **account.counts(),
        "votes": len(gold) - sum(gold),
        "votes_on_gold": sum(gold),
        "without_seconds": sum(each.annotation.seconds is None for each in account.votes),
        "pairs": len(ledger.entries),
        "pairs_with_votes": len(voted),
    }
