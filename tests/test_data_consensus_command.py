"""`rlhf data consensus`, as people and programs meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data.formats import write_jsonl
from launch.cli import app
from rlhf.errors import ConfigError, DataError
from tests.crowd import simulate

ROOT = Path(__file__).parents[1]


def ask(*arguments: object) -> str:
    """The command in this process: standard output."""
    done = CliRunner().invoke(app, ["data", "consensus", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    write_jsonl(path, simulate(1, prompts=40, overlap=5).votes)
    return path


def test_people_read_who_votes_against_and_what_was_written(votes: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "consensus.jsonl", tmp_path / "annotators.png"
    told = ask(votes, "--output", output, "--method", "bradley-terry", "--picture", picture)
    lines = {line.split("  ")[0]: line for line in told.splitlines()}
    assert "votes against the others: turned round" in lines["annotator 11"]
    assert "votes against" not in lines["annotator 0"] and "\x1b" not in told
    assert f"wrote {output}: 240 pairs" in told and "alpha" in told
    assert picture.read_bytes().startswith(b"\x89PNG") and len(output.read_text().splitlines()) == 240


def test_programs_read_figures_and_records(votes: Path, tmp_path: Path) -> None:
    output = tmp_path / "consensus.jsonl"
    found = json.loads(ask(votes, "--output", output, "--json"))
    assert (found["method"], found["votes"], found["pairs"], found["bad"]) == ("dawid-skene", 1200, 240, 0)
    assert {one["finding"] for one in found["annotators"]} >= {"against", "reliable"}
    made = [json.loads(line) for line in output.read_text().splitlines()]
    assert all(0.5 < record["target"] <= 1 or record["tie"] for record in made if record.keys() & {"target", "tie"})
    truth = [record["chosen"] < record["rejected"] for record in made]
    assert sum(truth) / len(truth) > 0.85


def test_the_consensus_of_a_consensus_is_itself_by_majority(votes: Path, tmp_path: Path) -> None:
    """Without names each pair has one vote left, which decides it."""
    once, again = tmp_path / "once.jsonl", tmp_path / "again.jsonl"
    ask(votes, "--output", once)
    ask(once, "--output", again, "--method", "majority")
    first, second = ([json.loads(line) for line in path.read_text().splitlines()] for path in (once, again))
    assert [(r["chosen"], r["rejected"]) for r in first] == [(r["chosen"], r["rejected"]) for r in second]


def test_majority_counts_everybody_as_they_are(votes: Path, tmp_path: Path) -> None:
    told = ask(votes, "--output", tmp_path / "c.jsonl", "--method", "majority")
    assert "votes against the others, counted as it is" in told


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--method", "mean"], "--method=mean: not known; choose from majority, dawid-skene, one-coin, bradley-terry"),
        (["--output", "c.csv"], "--output=c.csv: its name must end in .jsonl"),
        (["--output", "no/c.jsonl"], "no file can be there"),
        (["--picture", "a.jpg"], "--picture=a.jpg: its name must end in .png"),
    ],
)
def test_wrong_options_end_before_anything_is_read(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=problem):
        ask("missing.jsonl", "--output", "c.jsonl", *arguments)


def test_its_input_is_never_replaced(votes: Path) -> None:
    with pytest.raises(ConfigError, match="would replace a file that is read"):
        ask(votes, "--output", votes)


def test_bad_records_end_it_unless_they_may_be_dropped(votes: Path, tmp_path: Path) -> None:
    mixed, output = tmp_path / "mixed.jsonl", tmp_path / "c.jsonl"
    mixed.write_text(votes.read_text() + '{"prompt": "p", "chosen": 3, "rejected": "b"}\n')
    with pytest.raises(DataError, match=r"mixed.jsonl:1201: chosen=3 is not a text.*--drop-bad"):
        ask(mixed, "--output", output)
    assert not list(tmp_path.glob("*c.jsonl*"))
    assert "1 bad records left out" in ask(mixed, "--output", output, "--drop-bad")


def test_where_no_record_can_be_used_no_option_is_named_that_would_not_help(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "chosen": 3, "rejected": "b"}\n')
    for options in ([], ["--drop-bad"]):
        with pytest.raises(DataError, match=r"bad.jsonl:1: chosen=3 is not a text.*; mend or remove it$"):
            ask(tmp_path / "bad.jsonl", "--output", tmp_path / "c.jsonl", *options)


def test_votes_on_different_pairs_tell_nothing_and_that_is_said(tmp_path: Path) -> None:
    lone = simulate(3, prompts=30, responses=2, overlap=1).votes
    write_jsonl(tmp_path / "lone.jsonl", [replace(vote, seconds=1.0) for vote in lone])
    told = ask(tmp_path / "lone.jsonl", "--output", tmp_path / "c.jsonl")
    assert "no pair has two votes" in told and "too few votes to tell" in told


def test_no_torch_is_loaded_and_an_error_is_one_line(votes: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom launch.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        "    print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules], end.code)"
    )
    for output, expected in (("c.jsonl", "[] None"), ("c.csv", "[] 2")):
        command = [sys.executable, "-c", code, "data", "consensus", str(votes), "--output", output]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == expected and len(done.stderr.splitlines()) == (expected == "[] 2")
