"""`rlhf data check`, as people and programs meet it, and the gate before reward training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted import PLANTED, sound, swapped, write
from running import TINY
from stand_ins import write_model
from typer.testing import CliRunner

from data.quality.survey import Tokens
from launch.cli import app
from rlhf.errors import ConfigError, DataError, RLHFError
from rlhf.recipe import load_recipe, resolved_yaml
from rlhf.tokenization import load_tokenization
from stages import gate, preflight
from stages.token_lengths import tokens_by

ROOT = Path(__file__).parents[1]
SHORT = Tokens(lambda vote: 1, 2, frozenset())  # nothing is too long


def ask(*arguments: str) -> tuple[int, str]:
    """The command in this process: exit code and standard output."""
    done = CliRunner().invoke(app, ["data", "check", *arguments])
    if isinstance(done.exception, RLHFError):
        raise done.exception
    return done.exit_code, done.stdout


def rotten(folder: Path) -> str:
    votes = sound()
    return write(folder / "rotten.jsonl", [*votes, *votes[:150], *map(swapped, votes[200:260])])


def test_programs_read_the_verdict(tmp_path: Path) -> None:
    code, told = ask(write(tmp_path / "sound.jsonl", sound()), "--json")
    found = json.loads(told)
    assert code == 0 and found["verdict"] == "pass" and found["findings"] == []
    assert (found["summary"]["comparisons"], found["summary"]["bad_records"]) == (400, 0)
    code, told = ask(rotten(tmp_path), "--json")
    found = json.loads(told)
    assert code == 3 and found["verdict"] == "fail"
    severities = {finding["kind"]: (finding["severity"], finding["count"]) for finding in found["findings"]}
    assert severities == {"duplicate": ("fail", 150), "contradiction": ("fail", 60)}
    assert all(finding.keys() >= {"kind", "severity", "count", "examples"} for finding in found["findings"])


def test_a_warning_ends_with_code_0(tmp_path: Path) -> None:
    code, told = ask(write(tmp_path / "votes.jsonl", PLANTED["template"](sound())[0]), "--json")
    assert code == 0 and json.loads(told)["verdict"] == "warn"


def test_people_read_one_page(tmp_path: Path) -> None:
    code, told = ask(rotten(tmp_path))
    words = " ".join(told.split())
    assert code == 3 and words.startswith("fail: 610 comparisons, 2 fail")
    assert "150 of 610 votes (24.6%) repeat an earlier one" in words and "\x1b" not in told
    assert len(told.splitlines()) < 25


def test_no_torch_is_loaded_and_the_exit_code_is_real(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom launch.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        "    print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules], end.code)"
    )
    command = [sys.executable, "-c", code, "data", "check", rotten(tmp_path), "--html", str(tmp_path / "page.html")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 3" and done.stderr == ""


def test_the_page_needs_nothing_else_and_obeys_no_text(tmp_path: Path) -> None:
    votes = [{**vote, "prompt": f"<script>alert({n})</script> {vote['prompt']}"} for n, vote in enumerate(sound())]
    page = tmp_path / "page.html"
    ask(write(tmp_path / "votes.jsonl", [*votes, *votes[:5]]), "--html", str(page))
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text and "duplicate" in text
    assert re.findall(r"(?:src|href)=.{5}", text) == ['src="data'] and "http" not in text


def test_the_cleaned_file_passes_and_each_one_left_out_is_told(tmp_path: Path) -> None:
    votes = sound()
    for kind in ("malformed", "identical", "duplicate", "contradiction", "template", "leakage"):
        votes = PLANTED[kind](votes)[0]
    path = write(tmp_path / "votes.jsonl", votes)
    clean = tmp_path / "clean.jsonl"
    _, told = ask(path, "--clean", str(clean))
    kept = [json.loads(line) for line in clean.read_text().splitlines()]
    dropped = [json.loads(line) for line in (tmp_path / "clean.dropped.jsonl").read_text().splitlines()]
    assert len(kept) + len(dropped) == len(votes) and f"{len(kept):,} votes kept, {len(dropped):,} left out" in told
    assert all(each["place"].startswith(path) and each["why"] for each in dropped)
    planted = {"malformed", "identical", "duplicate", "contradiction", "template", "leakage"}
    assert {each["kind"] for each in dropped} == planted
    lines = {int(each["place"].rsplit(":", 1)[1]) for each in dropped}
    assert kept == [vote for line, vote in enumerate(votes, start=1) if line not in lines]
    code, told = ask(str(clean), "--json")
    assert code == 0 and json.loads(told)["verdict"] == "pass"


def test_only_the_named_kinds_are_left_out(tmp_path: Path) -> None:
    votes = PLANTED["tie"](PLANTED["duplicate"](sound())[0])[0]
    clean = tmp_path / "clean.jsonl"
    ask(write(tmp_path / "votes.jsonl", votes), "--clean", str(clean), "--drop", "tie")
    dropped = (tmp_path / "clean.dropped.jsonl").read_text().splitlines()
    assert len(dropped) == 7 and all(json.loads(each)["kind"] == "tie" for each in dropped)


def test_an_interrupted_cleaning_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def stopping(vote: Any) -> dict[str, Any]:
        written.append(vote)
        if len(written) == 50:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr("data.quality.cleaning.as_record", stopping)
    path = write(tmp_path / "votes.jsonl", sound())
    CliRunner().invoke(app, ["data", "check", path, "--clean", str(tmp_path / "clean.jsonl")])
    assert len(written) == 50 and [file.name for file in tmp_path.iterdir()] == ["votes.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["VOTES", "--clean", "VOTES"], "would replace a file that is read"),
        (["VOTES", "--clean", "VOTES", "--drop", "nix"], "--drop=nix: not a kind that can be left out; choose from"),
        (["VOTES", "--html", "FOLDER"], "a directory; give the name of a file"),
        (["VOTES", "--html", "FOLDER/nix/page.html"], "no such directory"),
        (["VOTES", "VOTES"], "a file is given twice"),
        (["FOLDER/nix.jsonl"], "no such file or directory"),
        ([], "nothing to check; give FILES, or a recipe with --recipe"),
        (["--recipe", "stories"], "its votes are made in the reward stage, which checks them"),
        (["--recipe", "demo", "--format", "hh"], "--format and --prompt are for FILES"),
        (["VOTES", "--tokenizer", "FOLDER"], "cannot be loaded"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    votes = write(tmp_path / "votes.jsonl", sound(30))
    given = [each.replace("VOTES", votes).replace("FOLDER", str(tmp_path)) for each in arguments]
    with pytest.raises(RLHFError) as told:
        ask(*given)
    assert len(told.value.problems) == 1 and line in told.value.problems[0]
    assert [file.name for file in tmp_path.iterdir()] == ["votes.jsonl"]


def recipe_on(path: str, folder: Path, *overrides: str) -> Any:
    return load_recipe(TINY, [f"data.comparisons=[{{path: {path}}}]", "data.too_long=drop", *overrides])


def check(recipe: Any, run: Path | None = None) -> None:
    preflight.check(recipe, ["reward"], lambda stage: 1, run=run)


def test_a_recipe_on_rotten_votes_is_refused_before_anything_begins(tmp_path: Path) -> None:
    path = rotten(tmp_path)
    with pytest.raises(ConfigError) as told:
        check(recipe_on(path, tmp_path))
    assert len(told.value.problems) == 2
    assert told.value.problems[0].startswith("data.comparisons: duplicate: 150 of 610 votes (24.6%)")
    assert all(problem.endswith("or set data.check.gate=warn") for problem in told.value.problems)
    check(recipe_on(path, tmp_path, "data.check.gate=warn"))
    check(recipe_on(path, tmp_path, "data.check.gate=off"))
    check(recipe_on(path, tmp_path, "data.check.duplicate={warn: 0.3}", "data.check.contradiction={warn: 0.5}"))
    preflight.check(recipe_on(path, tmp_path), ["sft"], lambda stage: 1)


def test_what_was_checked_is_remembered_while_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "votes.jsonl", PLANTED["duplicate"](sound())[0])
    recipe = recipe_on(path, tmp_path)
    check(recipe, tmp_path)
    gate.keep(recipe, tmp_path)
    monkeypatch.setattr(gate, "_checked", {})
    counted: list[Any] = []
    original = gate.check_votes
    monkeypatch.setattr(gate, "check_votes", lambda *given, **more: counted.append(given) or original(*given, **more))
    check(recipe, tmp_path)
    gate.pass_through(recipe, tmp_path, tmp_path, {}, SHORT, print)
    assert counted == []
    monkeypatch.setattr(gate, "_checked", {})
    check(recipe_on(path, tmp_path, "data.check.similarity=0.9"), tmp_path)
    assert len(counted) == 1
    (tmp_path / "check.json").write_text("{")
    monkeypatch.setattr(gate, "_checked", {})
    check(recipe, tmp_path)
    assert len(counted) == 2


def test_a_reward_model_that_stands_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_on(rotten(tmp_path), tmp_path)
    current = {"reward": True, "sft": True}
    monkeypatch.setattr(preflight, "is_current", lambda recipe, run, stage: current[stage])
    check(recipe, tmp_path)
    with pytest.raises(ConfigError, match="duplicate"):
        preflight.check(recipe, ["reward"], lambda stage: 1, run=tmp_path, force=True)
    assert preflight.is_trained(recipe, ["sft", "reward"], tmp_path)
    current["sft"] = False  # so both are made anew
    assert not preflight.is_trained(recipe, ["sft", "reward"], tmp_path)


def test_the_stage_writes_what_was_found_and_tells_the_worst(tmp_path: Path) -> None:
    path, said = rotten(tmp_path), list[str]()
    (tmp_path / "reward").mkdir()
    with pytest.raises(DataError):
        gate.pass_through(recipe_on(path, tmp_path), tmp_path, tmp_path / "reward", {}, SHORT, said.append)
    gate.pass_through(
        recipe_on(path, tmp_path, "data.check.gate=warn"), tmp_path, tmp_path / "reward", {}, SHORT, said.append
    )
    assert [line.split(":")[:2] for line in said] == [["data check", " duplicate"], ["data check", " contradiction"]]
    assert gate.headline(tmp_path / "reward") == {
        "verdict": "fail",
        "comparisons": 610,
        "findings": {
            "duplicate": {"severity": "fail", "count": 150},
            "contradiction": {"severity": "fail", "count": 60},
        },
    }
    gate.pass_through(
        recipe_on(path, tmp_path, "data.check.gate=off"), tmp_path, tmp_path / "nix", {}, SHORT, said.append
    )
    assert not (tmp_path / "nix").exists()


def test_the_stage_finds_what_the_command_finds_with_its_tokenizer(tmp_path: Path) -> None:
    """Whether the launcher has checked before, or nobody has; a stage that goes on reads nothing again."""
    write_model(model := tmp_path / "model")
    votes = [*sound(60), {**sound(1)[0], "prompt": "<s> what?"}]
    votes[7:9] = [{**vote, "chosen": vote["chosen"] * 9} for vote in votes[7:9]]
    path = write(tmp_path / "votes.jsonl", votes)
    recipe = recipe_on(path, tmp_path, "reward.max_length=300", "data.check.too_long={warn: 0.02}")
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    _, told = ask("--recipe", str(tmp_path / "recipe.yaml"), "--tokenizer", str(model), "--json")
    wanted = json.loads(told)
    assert {each["kind"]: (each["severity"], each["count"]) for each in wanted["findings"]} == {
        "too_long": ("warn", 2),
        "template": ("warn", 1),
    }
    check(recipe, tmp_path)
    gate.keep(recipe, tmp_path)
    tokens = tokens_by(load_tokenization(model, recipe.model), model, recipe)
    for run in ("elsewhere", "."):  # without the launcher's check, and with it
        said, output = list[str](), tmp_path / f"reward of {run}"
        output.mkdir()
        gate.pass_through(recipe, tmp_path / run, output, {}, tokens, said.append)
        found = json.loads((output / "check.json").read_text())
        assert {name: found[name] for name in wanted} == wanted and "2 too_long, 1 template" in said[0]
    unread = replace(tokens, measure=lambda vote: 1 // 0)
    gate.pass_through(recipe, tmp_path, output, {}, unread, said.append)
    assert said[1] == said[0]
    with pytest.raises(DataError, match=r"data.comparisons: too_long: 2 of 61 records"):
        failing = recipe_on(path, tmp_path, "reward.max_length=300", "data.check.too_long={fail: 0.02}")
        gate.pass_through(failing, tmp_path, output, {}, tokens, said.append)


@pytest.mark.parametrize("recipe", ["demo", str(TINY)])
def test_what_is_shipped_passes(recipe: str) -> None:
    code, told = ask("--recipe", recipe, "--json")
    assert code == 0 and json.loads(told)["verdict"] == "pass"
