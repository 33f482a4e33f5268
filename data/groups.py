"""Who votes, and on what: votes by groups of annotators or of prompts, their shares, and how far groups agree.

    from data.groups import by_field, report_of
    report_of(by_field(votes.read(), "kind"))

Show it: rlhf data groups votes.jsonl --by kind
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.annotators.tables import FIRST, SECOND, TIE, Integers, is_older, key_of
from data.drift.permutation import Lots
from data.fields import name_of, need, number_of
from data.locations import files_of
from data.quality.votes import Vote
from data.records import BadRecord, one_line, parse_json, printable, read_records
from rlhf.analysis.agreement import agreement, tallied
from rlhf.errors import DataError

NONE = "(none)"  # the group of votes that say no group
FEWEST = 30  # votes, below which a group's figures tell too little
Grouped = tuple[str, Vote]  # a vote with its group's name


@dataclass(frozen=True)
class Share:
    """Of some votes, or pairs, with the 95 % interval."""

    share: float
    interval: tuple[float, float]
    of: int


@dataclass(frozen=True)
class Group:
    """Votes of one group."""

    name: str
    votes: int
    share: Share  # of all votes
    reference: float | None  # the share that it ought to have
    pairs: int
    prompts: int
    annotators: int  # named ones
    ties: Share
    alpha: float | None  # Krippendorff's, of the group's votes alone
    alpha_interval: tuple[float, float] | None
    within: Share | None  # two votes of the group on one pair that are equal, of all such two
    between: Share | None  # a vote of the group and one of another, the same
    contrary: Share | None  # pairs whose majority in the group is another than that of all other votes

    @property
    def few(self) -> bool:
        """Whether there are too few votes to tell anything."""
        return self.votes < FEWEST

    @property
    def remark(self) -> str:
        """What people should know of it."""
        if self.few:
            return "too few votes to tell"
        if self.reference is None or self.share.interval[0] <= self.reference <= self.share.interval[1]:
            return ""
        return "fewer than the reference" if self.share.share < self.reference else "more than the reference"


@dataclass(frozen=True)
class Groups:
    """What `rlhf data groups` says: the groups, those with most votes first."""

    votes: int
    repeated: int  # votes that somebody with a name has cast again later, on the same pair
    groups: tuple[Group, ...]
    absent: tuple[str, ...]  # groups of the reference without a vote

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        told = [{**asdict(group), "few": group.few, "remark": group.remark} for group in self.groups]
        return {**asdict(self), "groups": told}


def by_field(votes: Iterable[Vote], field: str) -> Iterator[Grouped]:
    """Groups by a field of the records, `annotator` the votes' own. Raises DataError where it holds no name."""
    for vote in votes:
        value = vote.comparison.annotator if field == "annotator" else vote.fields.get(field)
        try:
            yield NONE if value is None else printable(name_of(value, field)), vote
        except ValueError as error:
            raise DataError(f"{vote.place}: {error}; give a text or a whole number") from error


def by_annotator(votes: Iterable[Vote], groups: Mapping[str, str]) -> Iterator[Grouped]:
    """Groups by who voted; annotators that are in none are counted together."""
    return ((groups.get(vote.comparison.annotator or "", NONE), vote) for vote in votes)


def read_annotators(name: str, field: str, directory: str | None = None) -> dict[str, str]:
    """Each annotator's group, by a file of records with `annotator` and the field. DataError for what does not fit."""
    groups: dict[str, str] = {}
    problems = []
    for file in files_of(name, directory):
        for record in read_records(file):
            try:
                if isinstance(record, BadRecord):
                    raise ValueError(record.problem)
                who = name_of(need(record.fields, "annotator"), "annotator")
                group = printable(name_of(need(record.fields, field), field))
                if groups.setdefault(who, group) != group:
                    raise ValueError(f"annotator {who!r} is in {groups[who]!r} already")
            except ValueError as error:
                problems.append(f"{record.place}: {one_line(error)}; mend or remove it")
    if problems:
        raise DataError(*problems[:10])
    return groups


def read_reference(path: Path) -> dict[str, float]:
    """The shares that groups ought to have, summing to 1, from a JSON object of shares or counts. DataError else."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or not value:
            raise ValueError("is no object of groups and shares")
        counts = {printable(name): number_of(count, name, 0) for name, count in value.items()}
        if not sum(counts.values()):
            raise ValueError("its shares are all zero")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f'{path}: {one_line(error)}; write {{"group": share, ...}}') from error
    return {name: count / sum(counts.values()) for name, count in counts.items()}


@dataclass(frozen=True)
class _Table:
    """Equal index, equal vote: the newest of each named annotator on each pair, by time, or the one read last."""

    names: tuple[str, ...]  # of groups
    group: Integers
    prompt: Integers
    pair: Integers
    annotator: Integers
    answer: Integers
    repeated: int


def _tabulate(grouped: Iterable[Grouped]) -> _Table:
    numbers: dict[str, dict[Any, int]] = {"group": {}, "prompt": {}, "pair": {}, "annotator": {}}
    rows: dict[tuple[int, int, int], tuple[str, int, int, float | None]] = {}
    repeated = 0

    def number(kind: str, key: Any) -> int:
        return numbers[kind].setdefault(key, len(numbers[kind]))

    for place, (name, placed) in enumerate(grouped):
        vote = placed.comparison
        keys = key_of(vote.prompt, vote.chosen), key_of(vote.prompt, vote.rejected)
        answer = TIE if vote.tie else FIRST if keys[0] < keys[1] else SECOND
        pair, who = number("pair", b"".join(sorted(keys))), -1
        if vote.annotator is not None:
            who = number("annotator", vote.annotator)
        key = pair, who, -1 if who >= 0 else place
        before = rows.get(key)
        repeated += before is not None
        if before is None or not is_older(vote.time, before[-1]):
            rows[key] = name, number("prompt", vote.prompt.text), answer, vote.time
    told = [(number("group", name), prompt, answer) for name, prompt, answer, _ in rows.values()]
    keys_of, said = np.array([*rows], np.int64).reshape(-1, 3), np.array(told, np.int64).reshape(-1, 3)
    names = tuple(numbers["group"])  # of votes that count
    return _Table(names, said[:, 0], said[:, 1], keys_of[:, 0], keys_of[:, 1], said[:, 2], repeated)


def report_of(
    grouped: Iterable[Grouped], reference: Mapping[str, float] | None = None, of_people: bool = False
) -> Groups:
    """The report. of_people: groups are of annotators, whose votes stand together; else of prompts.

    Raises DataError where there is no vote.
    """
    table = _tabulate(grouped)
    if not len(table.group):
        raise DataError("no votes; give files that hold some")
    cluster = table.annotator if of_people else table.prompt
    found = [_group(table, number, cluster, reference or {}) for number in range(len(table.names))]
    found.sort(key=lambda group: (-group.votes, group.name))
    absent = tuple(name for name, share in (reference or {}).items() if share and name not in table.names)
    return Groups(len(table.group), table.repeated, tuple(found), absent)


def _group(table: _Table, number: int, cluster: Integers, reference: Mapping[str, float]) -> Group:
    mine = table.group == number
    who = np.unique(table.annotator[mine])
    own = agreement(tallied(zip(table.pair[mine].tolist(), table.answer[mine].tolist(), strict=True)))
    between, contrary = _with_others(table, mine)
    name = table.names[number]
    return Group(
        name=name,
        votes=int(mine.sum()),
        share=_share(Lots.of(mine.astype(float), cluster)),
        reference=(reference.get(name, 0.0) if reference else None),
        pairs=len(np.unique(table.pair[mine])),
        prompts=len(np.unique(table.prompt[mine])),
        annotators=int((who >= 0).sum()),
        ties=_share(Lots.of((table.answer[mine] == TIE).astype(float), table.prompt[mine])),
        alpha=own.alpha if own else None,
        alpha_interval=own.alpha_ci if own else None,
        within=Share(own.share, own.share_ci, own.units) if own else None,
        between=between,
        contrary=contrary,
    )


def _with_others(table: _Table, mine: NDArray[np.bool_]) -> tuple[Share | None, Share | None]:
    """Equal votes of a group and of the others on one pair; pairs on which their majorities are opposed."""
    tally = np.zeros((2, int(table.pair.max()) + 1, 3))
    np.add.at(tally, (mine.astype(int), table.pair, table.answer), 1.0)
    votes = tally.sum(axis=2)
    both = (votes > 0).all(axis=0)
    if not both.any():
        return None, None
    equal, of = (tally[0] * tally[1]).sum(axis=1)[both], (votes[0] * votes[1])[both]
    lead = tally[:, both, FIRST] - tally[:, both, SECOND]
    decided = (lead != 0).all(axis=0)
    opposed = (lead[0] * lead[1] < 0)[decided].astype(float)
    contrary = _share(Lots(np.ones(len(opposed)), opposed)) if decided.any() else None
    pairs = _share(Lots(of, equal))
    return Share(pairs.share, pairs.interval, int(both.sum())), contrary


def _share(lots: Lots) -> Share:
    return Share(lots.mean, lots.share_interval(), int(lots.count.sum()))
