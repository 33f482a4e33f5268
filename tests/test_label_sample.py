"""Responses to label: of a real run, to prompts that train the next reward model."""

from __future__ import annotations

import json
import math
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from running import TINY, rlhf
from test_selection import ask
from typer.testing import CliRunner

from data.fields import prompt_of
from data.labelling.pairs import read_pairs
from data.splits import is_test
from launch.cli import app
from rlhf.errors import ArtifactError, ConfigError
from rlhf.recipe import load_recipe
from rlhf.types import Completion, Prompt
from stages.responses import prompts_of, record_of
from stages.rewards import trained_model
from stages.sampling import sample
from stages.speakers import Speaker
from stages.targets import find_target


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose runs/ has the tiny run."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sampled(folder: Path, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the command says, and what it writes."""
    command = ("label", "sample", "tiny", "--prompts", "24", "--output", "responses.jsonl", "--json", *options)
    done = rlhf(*command, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    return json.loads(done.stdout), records


def test_responses_are_to_prompts_that_train_and_have_the_reward_s_scores_in_nats(folder: Path) -> None:
    figures, records = sampled(folder, "--training", "--responses", "3")
    assert figures["prompts"] == len(records) == 24 - figures["alike"] and figures["policy"] == "tiny/ppo"
    assert len({prompt_of(record) for record in records}) == len(records)
    assert not any(is_test(prompt_of(record), 0.1) for record in records)
    assert max(len(record["responses"]) for record in records) == 3
    target = find_target("tiny")
    speaker = Speaker(target, None)
    assert target.reward is not None
    reward = trained_model(target.reward, speaker.tokenization, speaker.recipe)
    assert abs(target.reward.results["score_deviation"] - 1) > 0.02  # else PPO's scale is none
    assert figures["alike"] == 0  # so that the rows are those of the prompts that are left
    prompts = [prompt_of(record) for record in records]
    again = sample(speaker.policy, speaker.tokenization, speaker.recipe, prompts * 3, seed=0)
    expected = dict(zip(((c.prompt, c.response) for c in again), reward(again).tolist(), strict=True))
    found = {
        (prompt, text): score
        for prompt, record in zip(prompts, records, strict=True)
        for text, score in zip(record["responses"], record["scores"], strict=True)
    }
    assert found == pytest.approx(expected, abs=1e-3) and len(set(found.values())) > len(found) / 2

    # What was chosen and labelled is not chosen again.
    ask("responses.jsonl", "--budget", "5", "--output", "next.jsonl")
    for line in Path("next.jsonl").read_text().splitlines():
        pair = json.loads(line)
        one, other = (expected[prompt_of(pair), text] for text in pair["responses"])
        assert pair["probability"] == pytest.approx(1 / (1 + math.exp(other - one)), abs=2e-3)
    labelled = read_pairs(["next.jsonl"]).found
    rest = json.loads(
        ask("responses.jsonl", "--budget", "1000", "--without", "next.jsonl", "--output", "rest.jsonl", "--json")
    )
    assert rest["labelled"] == 5 and not labelled.keys() & read_pairs(["rest.jsonl"]).found.keys()


def test_held_out_prompts_are_asked_for(folder: Path) -> None:
    _, records = sampled(folder, "--held-out", "--stage", "sft")
    assert records and all(is_test(prompt_of(record), 0.1) for record in records)


def test_both_parts_are_asked_otherwise() -> None:
    """So that of a round's votes some measure, and training on them alone has something held out."""
    recipe = load_recipe(TINY)
    of_both, of_training = (
        prompts_of(recipe, Namespace(held_out=False, training=training)) for training in (False, True)
    )
    held_out = [is_test(prompt, 0.1) for prompt in of_both]
    assert 0.05 < sum(held_out) / len(held_out) < 0.2 and sum(held_out) == len(of_both) - len(of_training)


def test_a_prompt_is_asked_once_whatever_its_source_weighs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        rows = (json.dumps({"prompt": f"{name} {i} ?"}) + "\n" for i in range(40 if name == "one" else 8))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    weighted = "{path: one.jsonl, weight: 1}, {path: two.jsonl, weight: 1}"
    for given in (weighted, "{path: one.jsonl}, {path: two.jsonl, replay: 0.9}"):
        recipe = load_recipe(TINY, [f"data.directory={tmp_path}", f"data.prompts=[{given}]"])
        found = list(prompts_of(recipe, Namespace(held_out=False, training=False)))
        assert len(found) == len(set(found)) == 48


def test_equal_responses_are_one() -> None:
    def said(*texts: str) -> list[Completion]:
        return [Completion(Prompt("p"), text, (1,), (2,), number != 1) for number, text in enumerate(texts)]

    assert record_of(Prompt("p"), said("a", "b", "a"), (1.0, 2.0, 1.0)) == {
        "prompt": "p",
        "responses": ["a", "b"],
        "finished": [True, False],
        "scores": [1.0, 2.0],
    }
    assert record_of(Prompt("p"), said("a", "a"), None) is None


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        (("nothing", "--output", "r.jsonl"), ArtifactError, "nothing: no run, stage or model"),
        (("nothing", "--output", "r.csv"), ConfigError, r"--output=r.csv: its name must end in .jsonl"),
        (("nothing", "--output", "there/r.jsonl"), ConfigError, "no file can be there"),
    ],
)
def test_bad_input_is_told_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    error: type[Exception],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["label", "sample", "--prompts", "3", *arguments])
    assert isinstance(done.exception, error)
    with pytest.raises(error, match=problem):
        raise done.exception


def test_a_model_that_is_no_run_has_no_prompts(folder: Path) -> None:
    shutil.copytree("runs/tiny/sft/model", "own")
    done = rlhf("label", "sample", "./own", "--prompts", "3", "--output", "r.jsonl", folder=folder)
    assert (
        done.returncode == 2
        and done.stderr == "error: ./own: is no run, whose recipe says to which prompts; give one\n"
    )
    assert not Path("r.jsonl").exists()
