"""Groups of votes: by a field, by who voted, beside the shares that there should be."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data.formats import as_record
from data.groups import by_annotator, by_field, report_of
from data.quality.votes import Vote
from launch.cli import app
from rlhf.errors import ConfigError, DataError, RLHFError
from rlhf.types import Comparison, Prompt


def cast(prompt: int, who: str | None, side: str, kind: str = "a") -> Vote:
    """A vote for one side of the only pair of a prompt."""
    texts = ("x", "y") if side == "x" else ("y", "x")
    vote = Comparison(Prompt(f"{prompt}"), *texts, tie=side == "tie", annotator=who, kind=kind)
    return Vote(f"v:{prompt}", vote, False, fields={"kind": kind})


def test_figures_are_those_counted_by_hand() -> None:
    teams = {"ann": "north", "bob": "north", "cid": "south"}
    votes = [
        *(cast(0, who, side) for who, side in (("ann", "x"), ("bob", "x"), ("cid", "y"))),
        *(cast(1, who, side) for who, side in (("ann", "x"), ("bob", "y"), ("cid", "y"))),
        *(cast(2, who, side) for who, side in (("ann", "tie"), ("cid", "y"))),
        cast(2, "ann", "y"),  # again: this one counts
        cast(3, "dan", "x"),
    ]
    found = report_of(by_annotator(votes, teams), {"north": 0.5, "south": 0.25, "east": 0.25}, of_people=True)
    groups = {group.name: group for group in found.groups}
    north, south = groups["north"], groups["south"]
    assert (found.votes, found.repeated, list(groups), found.absent) == (9, 1, ["north", "south", "(none)"], ("east",))
    assert (north.votes, north.pairs, north.prompts, north.annotators) == (5, 3, 3, 2)
    assert north.share.share == pytest.approx(5 / 9) and north.reference == 0.5 and groups["(none)"].reference == 0.0
    # Two votes of the north on one pair: equal on the first, not on the second.
    assert north.within is not None and (north.within.share, north.within.of) == (0.5, 2)
    # One of the north, one of the south: 0 of 2, 1 of 2, 1 of 1.
    assert north.between is not None and north.between == south.between
    assert (north.between.share, north.between.of) == (pytest.approx(2 / 5), 3)
    # Both have a majority on the first and the third.
    assert north.contrary is not None and (north.contrary.share, north.contrary.of) == (0.5, 2)
    assert south.within is None and groups["(none)"].between is None
    assert all(group.few and group.remark == "too few votes to tell" for group in found.groups)


def test_the_newest_vote_counts_and_a_group_without_one_is_none() -> None:
    first, second = cast(0, "ann", "x", "old"), cast(0, "ann", "y", "new")
    found = report_of(by_field([first, second], "kind"), {"new": 1, "old": 1})
    assert ([group.name for group in found.groups], found.repeated, found.absent) == (["new"], 1, ("old",))
    timed = [replace(vote, comparison=replace(vote.comparison, time=time)) for vote, time in ((first, 2), (second, 1))]
    assert [group.name for group in report_of(by_field(timed, "kind")).groups] == ["old"]


def test_who_is_missing_is_told_where_it_is_no_chance() -> None:
    draw = random.Random(0)
    votes = [cast(i, None, draw.choice("xy"), "rare" if i % 10 == 0 else "common") for i in range(1000)]
    for share, remark in ((0.5, "fewer than the reference"), (0.1, ""), (0.02, "more than the reference")):
        found = report_of(by_field(votes, "kind"), {"rare": share, "common": 1 - share})
        assert next(group for group in found.groups if group.name == "rare").remark == remark


def test_a_share_of_few_people_is_unsure() -> None:
    """A thousand votes of four people say little of how many such people there are."""
    votes = [cast(i, f"{i % 4}", "x") for i in range(1000)]
    teams = {"0": "north"}
    people = report_of(by_annotator(votes, teams), of_people=True)
    kinds = report_of((("north" if i % 4 == 0 else "(none)", vote) for i, vote in enumerate(votes)))
    widths = [high - low for low, high in (report.groups[1].share.interval for report in (people, kinds))]
    assert people.groups[1].share.share == kinds.groups[1].share.share == 0.25
    assert widths[0] > 0.5 and widths[1] < 0.1


def ask(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["data", "groups", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    draw = random.Random(1)
    made = [cast(i // 2, f"{i % 6}", draw.choice(["x", "x", "y", "tie"]), f"kind {i // 2 % 3}") for i in range(240)]
    lines = [json.dumps(as_record(replace(vote.comparison, annotator=vote.comparison.annotator))) for vote in made]
    (tmp_path / "votes.jsonl").write_text("\n".join(lines) + "\n")
    people = "".join(f"{i},{'north' if i < 3 else 'south'}\n" for i in range(6))
    (tmp_path / "people.csv").write_text("annotator,team\n" + people)
    (tmp_path / "census.json").write_text('{"north": 3, "south": 1}')
    return tmp_path / "votes.jsonl"


def test_people_and_programs_read_the_same(votes: Path, tmp_path: Path) -> None:
    found = json.loads(ask(votes, "--json", "--picture", tmp_path / "groups.png"))
    assert (found["by"], found["votes"], [group["votes"] for group in found["groups"]]) == ("kind", 240, [80] * 3)
    assert (tmp_path / "groups.png").read_bytes().startswith(b"\x89PNG")
    told = ask(votes, "--by", "team", "--annotators", tmp_path / "people.csv", "--reference", tmp_path / "census.json")
    assert "north" in told and "75.0%" in told and "opposed" in told and "\x1b" not in told
    assert "opposed" not in ask(votes)  # a pair is of one kind
    assert len(json.loads(ask(votes, "--by", "annotator", "--json"))["groups"]) == 6


def test_bad_input_is_one_line_each(votes: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    for text, problem in (
        ("[]", "is no object of groups"),
        ('{"a": -1}', "a=-1 is not a number"),
        ('{"a": 0}', "all zero"),
    ):
        wrong.write_text(text)
        with pytest.raises(DataError, match=rf"wrong.json: .*{problem}"):
            ask(votes, "--reference", wrong)
    twice = tmp_path / "twice.csv"
    twice.write_text("annotator,team\n1,north\n1,south\n")
    with pytest.raises(DataError, match=r"twice.csv:3: annotator '1' is in 'north' already"):
        ask(votes, "--by", "team", "--annotators", twice)
    with pytest.raises(ConfigError, match=r"--picture=a.jpg: its name must end in .png"):
        ask(votes, "--picture", "a.jpg")
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({**as_record(Comparison(Prompt("p"), "a", "b")), "team": [1]}) + "\n")
    with pytest.raises(DataError, match=r"bare.jsonl:1: team=\[1\] is not a name"):
        ask(bare, "--by", "team")
    bare.write_text('{"prompt": "p", "chosen": 3, "rejected": "b"}\n' + votes.read_text())
    with pytest.raises(RLHFError, match=r"bare.jsonl:1: chosen=3 is not a text.*--drop-bad"):
        ask(bare)
    assert "1 bad records left out" in ask(bare, "--drop-bad")
