"""A judge that a recipe describes: whom to ask, by which rubric; the command wins, and secrets are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import Server, serving
from typer.testing import CliRunner

from launch.cli import app
from rlhf.errors import ConfigError, DataError, RLHFError
from rlhf.recipe import load_recipe

PAIRS = {"prompt": "p ?", "responses": ["x", "yy"]}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RLHF_JUDGE_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(json.dumps(PAIRS))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def write_recipe(url: str, **judge: Any) -> str:
    Path("my.yaml").write_text(json.dumps({"labelling": {"judge": {"url": url, "model": "of-the-recipe", **judge}}}))
    return "my.yaml"


def judge(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["label", "judge", "pairs.jsonl", "--json", *arguments])
    if isinstance(result.exception, RLHFError):
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def questions(server: Server) -> list[str]:
    return [body["messages"][-1]["content"] for body in server.bodies]


def test_the_recipe_says_whom_to_ask_and_by_which_rubric(server: Server) -> None:
    recipe = write_recipe(
        server.url, rubric="Prefer what is kind.\n", max_tokens=7, request='{"top_p": 0.5}', concurrency=1
    )
    found = judge("--recipe", recipe)
    assert (found["judge"], found["votes"], server.most_at_once) == ("judge:of-the-recipe", 1, 1)
    assert all("by these criteria:\n\nPrefer what is kind.\n\n" in text for text in questions(server))
    assert all((body["max_tokens"], body["top_p"]) == (7, 0.5) for body in server.bodies)


def test_what_the_command_says_wins(server: Server) -> None:
    recipe = write_recipe("http://127.0.0.1:1/v1", rubric="of the recipe", max_tokens=7)
    Path("own.txt").write_text("of the command")
    options = "--url", server.url, "--model", "own", "--rubric", "own.txt", "--max-tokens", "9"
    found = judge("--recipe", recipe, *options)
    assert found["judge"] == "judge:own" and {body["max_tokens"] for body in server.bodies} == {9}
    assert all("of the command" in text and "of the recipe" not in text for text in questions(server))


def test_a_rubric_may_lie_in_a_file_beside_the_data(server: Server, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "constitution.txt").write_text("Prefer what is true.")
    recipe = write_recipe(server.url, rubric_file="constitution.txt")
    (tmp_path / "texts" / "pairs.jsonl").write_text(json.dumps(PAIRS))
    judge("--recipe", recipe, "--data-dir", str(tmp_path / "texts"))
    assert all("Prefer what is true." in text for text in questions(server))
    with pytest.raises(DataError, match=r"labelling.judge.rubric_file .*constitution.txt: cannot be read"):
        judge("--recipe", recipe)


@pytest.mark.parametrize(
    ("url", "fields", "problem"),
    [
        ("https://me:hush@judge.example/v1", {}, r"judge.url=https://\.\.\.@judge.example/v1: .* set RLHF_JUDGE_TOKEN"),
        ("https://judge.example/v1?key=hush", {}, r"judge.url=https://judge.example/v1\?key=...: .* RLHF_JUDGE_TOKEN"),
        ("http://judge.example", {"rubric": "a", "rubric_file": "b"}, "labelling.judge.rubric_file=b beside rubric"),
        ("http://judge.example", {"rubric": " "}, "labelling.judge.rubric=' ' is empty"),
        ("http://judge.example", {"patience": -1}, "labelling.judge.patience=-1 should be"),
        ("http://judge.example", {"token": "hush"}, "labelling.judge.token='hush' is not a known key|token=hush"),
    ],
)
def test_what_a_recipe_may_not_say_is_one_line(url: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as told:
        load_recipe(write_recipe(url, **fields))
    assert len(told.value.problems) == 1
    assert "hush" not in told.value.problems[0] or "token" in fields


def test_a_model_is_needed(server: Server) -> None:
    with pytest.raises(ConfigError, match="--model: is not given; .* or set labelling.judge.model"):
        judge("--url", server.url)
    with pytest.raises(ConfigError, match="--model: is empty"):
        judge("--url", server.url, "--model", " ")
    with pytest.raises(ConfigError, match="--request: stream is not for it to set"):
        judge("--recipe", write_recipe(server.url, request='{"stream": true}'))
    assert server.bodies == []
