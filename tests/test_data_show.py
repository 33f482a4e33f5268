"""`rlhf data show`: what it says, to people and to programs, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.inspection import inspect_source
from launch.cli import app as command_line
from rlhf.config import SourceConfig
from rlhf.errors import DataError

ROOT = Path(__file__).parents[1]
VOTES = [
    {"prompt": "one two", "chosen": "a", "rejected": "b b", "annotator": "ann"},
    {"prompt": "one two", "chosen": "aa", "rejected": "b", "annotator": "bob", "tie": True},
    {"prompt": "p" * 500, "chosen": "aaaa", "rejected": "b", "annotator": "ann"},
]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def rlhf(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "launch.cli", "data", "show", *arguments]
    return subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=False)


def write(path: Path, *records: dict[str, Any] | str) -> str:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return str(path)


def test_people_read_counts_lengths_and_the_first_records(tmp_path: Path) -> None:
    name = write(tmp_path / "votes.jsonl", *VOTES, "{", {"prompt": "x"})
    done = rlhf(name, "--records", "2")
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    told = " ".join(done.stdout.split())
    for expected in (
        "preference, usable as comparisons or demonstrations or prompts",
        "records 5, 2 of them bad",
        "comparisons 3, 1 of them ties",
        "distinct prompts 2",
        "annotators ann 2, bob 1",
        "prompt characters 7 500 500",
        "words 2 2 2",
        "chosen characters 2 4 4",
        f"bad: {name}:4: not JSON",
        f"bad: {name}:5: no field 'chosen'",
        f"1. {name}:1 prompt: 'one two' chosen: 'a'",
        f"2. {name}:2",
    ):
        assert expected in told, expected
    assert f"3. {name}" not in told


def test_long_fields_are_shortened_to_a_line(tmp_path: Path) -> None:
    done = rlhf(write(tmp_path / "votes.jsonl", VOTES[2]))
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("   prompt: ")]
    assert 50 < len(line) < 130 and line.endswith("...")


def test_strict_fails_on_a_bad_record_and_says_which(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", *VOTES)
    assert rlhf(good, "--strict").returncode == 0
    bad = write(tmp_path / "bad.jsonl", *VOTES, *["{"] * 12)
    done = rlhf(good, bad, "--strict", "--records", "0")
    errors = done.stderr.splitlines()
    assert done.returncode == 2 and len(errors) == 11
    assert errors[0].startswith(f"error: {bad}:4: not JSON") and errors[0].endswith("mend or remove it")
    assert errors[10] == f"error: {bad}: 2 more records cannot be used"
    assert rlhf(bad).returncode == 0


def test_what_cannot_be_read_is_one_line_and_the_others_are_shown(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"none")
    done = rlhf("nix.jsonl", str(tmp_path / "x.parquet"), write(tmp_path / "votes.jsonl", *VOTES))
    assert done.returncode == 2
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["nix.jsonl", str(tmp_path / "x.parquet")]
    assert "comparisons" in done.stdout
    done = rlhf("nix.jsonl", "--format", "unknown")
    assert done.returncode == 2 and "not a known format; choose from auto, pandalm" in done.stderr
    assert "Traceback" not in done.stderr


def test_programs_read_json(tmp_path: Path) -> None:
    name = write(tmp_path / "votes.jsonl", *VOTES, "{")
    (found,) = json.loads(rlhf(name, "--json", "--records", "1").stdout)
    assert found["format"] == "preference" and found["usable_as"] == ["comparisons", "demonstrations", "prompts"]
    assert (found["records"], found["examples"], found["bad"], found["ties"]) == (4, 3, 1, 1)
    assert found["lengths"]["rejected"] == {
        "characters": {"median": 1, "95 %": 3, "max": 3},
        "words": {"median": 1, "95 %": 2, "max": 2},
    }
    assert found["annotators"] == {"ann": 2, "bob": 1} and found["problems"][0].startswith(f"{name}:4")
    assert found["first"] == [{"place": f"{name}:1", **{k: repr(v) for k, v in VOTES[0].items()}}]


def test_a_format_can_be_given(tmp_path: Path) -> None:
    name = write(tmp_path / "votes.jsonl", *VOTES)
    (found,) = json.loads(rlhf(name, "--format", "prompt", "--json").stdout)
    assert (found["format"], found["examples"]) == ("prompt", 3)


def test_relative_paths_may_start_at_a_data_directory(tmp_path: Path) -> None:
    write(tmp_path / "votes.jsonl", *VOTES)
    assert rlhf("votes.jsonl", "--data-dir", str(tmp_path)).returncode == 0
    assert "no such file" in rlhf("votes.jsonl").stderr


def test_the_hub_cache_is_read_without_a_network(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    write(snapshot / "votes.jsonl", *VOTES)
    done = rlhf(f"org/name@{COMMIT}", "--json", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout)[0]["examples"] == 3, done.stderr
    done = rlhf(f"org/other@{COMMIT}", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "not in the hub's cache" in done.stderr


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    name = write(tmp_path / "votes.jsonl", *VOTES)
    code = (
        "import sys\nfrom launch.commands.data import show\n"
        f"show([{name!r}], False, 'auto', 1, None, False)\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'trl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_has_examples() -> None:
    told = CliRunner().invoke(command_line, ["data", "show", "--help"]).output
    assert "rlhf data show votes.jsonl demonstrations.parquet" in told


def test_names_that_no_terminal_can_show_are_escaped(tmp_path: Path) -> None:
    name = write(tmp_path / "odd.jsonl", '{"\\ud800x": 1, "\\u001b[1m": 2, "größe": 3, "prompt": "a"}')
    done = rlhf(name)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line in done.stdout for line in ("   \\ud800x: 1\n", "   \\x1b[1m: 2\n", "   größe: 3\n"))
    (found,) = json.loads(rlhf(name, "--json").stdout)
    assert found["first"] == [{"place": f"{name}:1", "\\ud800x": "1", "\\x1b[1m": "2", "größe": "3", "prompt": "'a'"}]


def test_what_is_not_read_of_a_directory_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *VOTES)
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    assert "not read 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, and 2 more" in re.sub(" +", " ", rlhf(str(tmp_path)).stdout)
    assert json.loads(rlhf(str(tmp_path), "--json").stdout)[0]["not_read"] == [f"{i}.txt" for i in range(7)]


def test_a_file_of_bad_records_alone_has_no_format(tmp_path: Path) -> None:
    name = write(tmp_path / "bad.jsonl", "{", "[")
    found = inspect_source(SourceConfig(path=name), 3)
    assert (found.format, found.holds, found.bad, found.first) == (None, None, 2, [])
    assert "none: no good record" in rlhf(name).stdout
    with pytest.raises(DataError, match="no known format"):
        inspect_source(SourceConfig(path=write(tmp_path / "other.jsonl", {"x": 1})), 3)
