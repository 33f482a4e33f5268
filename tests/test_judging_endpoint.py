"""A judge asked at an endpoint: who sees the token, what the command makes of it, and what a faulty one costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import Server, longer, serving
from judged import judge, pairs, votes
from labelled import write

from data.judging.asking import Settings
from data.judging.endpoint import checked_url, token_for
from rlhf.errors import ConfigError, LabellingError, RLHFError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RLHF_JUDGE_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


# Who sees the token.


def test_the_token_goes_to_nobody_in_clear_unless_that_is_said() -> None:
    known = {"OPENAI_API_KEY": "sk-2"}
    assert token_for("https://example.com/v1", False, known) == "sk-2"
    assert token_for("http://127.0.0.1:8000/v1", False, known) == "sk-2"
    assert token_for("https://example.com", False, {**known, "RLHF_JUDGE_TOKEN": "own"}) == "own"
    with pytest.raises(ConfigError, match="OPENAI_API_KEY would go over http in clear; .* --allow-http") as error:
        token_for("http://example.com/v1", False, known)
    assert "sk-2" not in str(error.value)
    assert token_for("http://example.com/v1", True, known) == "sk-2"
    assert token_for("http://example.com/v1", False, {}) is None
    with pytest.raises(ConfigError, match="characters that no token has"):
        token_for("https://example.com", False, {"RLHF_JUDGE_TOKEN": "a\nb"})
    assert "sk-2" not in repr(Settings("u", "m", "r", 1, token="sk-2"))


@pytest.mark.parametrize("url", ["x", "ftp://a/v1", "http://", "http://a/v1?k=1", "http://u:p@a/v1", "http://a:b/v1"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        checked_url(url)


def test_the_token_is_sent_and_written_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "sk-secret"
    with pytest.raises(LabellingError, match=r"refuses us \(401\); it needs one: set RLHF_JUDGE_TOKEN"):
        judge(pairs(1), "--url", server.url, "--concurrency", "1")
    monkeypatch.setenv("RLHF_JUDGE_TOKEN", "sk-secret")
    server.faults = [(400, {}, '{"detail": "who is sk-secret ?"}')]
    code, report = judge(pairs(2), "--url", server.url, "--concurrency", "1")
    assert (code, report["votes"], report["refused"]) == (0, 1, 1)
    assert "who is ... ?" in report["refused_examples"][0]["why"]
    written = [path.read_text() for path in Path().iterdir() if path.is_file()]
    assert not any("sk-secret" in text for text in [*written, json.dumps(report)])


# The command against an endpoint.


def test_a_judge_s_votes_are_comparisons_of_an_annotator_of_its_own(server: Server) -> None:
    code, report = judge(pairs(6), "--url", server.url)
    assert (code, report["pairs"], report["votes"], report["ties"], report["unparsed"]) == (0, 6, 6, 0, 0)
    assert report["tokens"] == 120 and report["position"]["bias"] == 0 and report["position"]["consistent"] == 6
    found = votes()
    assert {vote.annotator for vote in found} == {"judge:m"}
    assert all(len(vote.chosen) > len(vote.rejected) and not vote.tie for vote in found)
    assert {vote.chosen_shown_first for vote in found} == {None}  # both orders were
    assert sorted(server.asked) == sorted([*server.asked, *((b, a) for a, b in server.asked)])[::2]
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 16)


def test_a_judge_that_takes_the_first_gives_ties_and_is_found_out(server: Server) -> None:
    server.rule = lambda a, b: "A"
    code, report = judge(pairs(30), "--url", server.url)
    assert (code, report["ties"], report["ties_by_order"]) == (0, 30, 30)
    assert report["position"]["bias"] == 1 and report["position"]["bias_ci"][0] > 0.7
    assert all(vote.tie for vote in votes())


def test_people_are_beside_it_and_other_judges_are_not(server: Server) -> None:
    better = ["a long one" if n % 2 else "long one" for n in range(8)]
    records = [
        {"prompt": f"p {n} ?", "chosen": text, "rejected": "c", "annotator": "7"} for n, text in enumerate(better)
    ]
    records += [{**records[0], "chosen": "c", "rejected": "long one", "annotator": "judge:other"}] * 3
    code, report = judge(write("people.jsonl", *records), "--people", "people.jsonl", "--url", server.url)
    assert (code, report["people"]["pairs"], report["people"]["share"]) == (0, 8, 1.0)
    assert 0.6 < report["people"]["share_ci"][0] < 0.7 and report["people"]["alpha"] == 1


def test_what_is_no_answer_is_counted_and_named(server: Server) -> None:
    server.rule = lambda a, b: None if "xxx" in (a, b) else "I prefer A" if "xx" in (a, b) else longer(a, b)
    code, report = judge(pairs(5), "--url", server.url)
    assert (code, report["votes"], report["unparsed"]) == (0, 3, 4)
    assert {each["said"] for each in report["unparsed_examples"]} == {None, "I prefer A"}
    asked = len(server.bodies)
    assert judge(pairs(5), "--url", server.url)[1]["unparsed"] == 4
    assert len(server.bodies) == asked  # the same question has the same answer
    server.rule = lambda a, b: "well"
    with pytest.raises(LabellingError, match="no pair has two answers that are A, B or tie .one was 'well'"):
        judge(pairs(2), "--url", server.url, "--output", "none.jsonl")
    assert not Path("none.jsonl").exists()


def test_a_repeat_asks_only_what_is_missing(server: Server) -> None:
    judge(pairs(3), "--url", server.url)
    first = votes()
    code, report = judge(pairs(5), "--url", server.url)
    assert (code, report["votes"], len(server.bodies)) == (0, 5, 10)
    assert {vote.prompt for vote in first} < {vote.prompt for vote in votes()}


def test_busy_garbled_and_broken_answers_are_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.judging.endpoint.FIRST_WAIT", 0.05)
    busy = '{"error": {"message": "slow down"}}'
    server.faults = [(429, {"Retry-After": "1"}, busy), (500, {}, "boom"), (200, {}, "<html>"), (503, {}, busy)]
    code, report = judge(pairs(3), "--url", server.url, "--concurrency", "1")
    assert (code, report["votes"], report["retries"], len(server.bodies)) == (0, 3, 4, 6)
    assert server.times[1] - server.times[0] >= 1


def test_a_wait_beyond_all_patience_is_said_at_once(server: Server) -> None:
    server.faults = [(429, {"Retry-After": "86400"}, '{"error": {"message": "quota"}}')]
    started = time.monotonic()
    with pytest.raises(LabellingError, match="429 quota, and asks to wait 86400 s; the same command goes on"):
        judge(pairs(3), "--url", server.url, "--concurrency", "1")
    assert time.monotonic() - started < 10
    assert judge(pairs(3), "--url", server.url)[1]["votes"] == 3


def test_an_endpoint_that_is_none_is_said(server: Server) -> None:
    with pytest.raises(LabellingError, match="404 Not Found; check --url and --model"):
        judge(pairs(1), "--url", server.url.replace("/v1", "/v2"))
    server.faults = [(200, {}, '{"choices": []}')] * 9  # more than are asked for: a question of before may take one
    with pytest.raises(LabellingError, match="no chat completion; is --url right"):
        judge(pairs(1), "--url", server.url, "--concurrency", "1")
    with pytest.raises(LabellingError, match="no answer .*the same command goes on"):
        judge(pairs(1), "--url", "http://127.0.0.1:9/v1", "--patience", "0.1")


def test_a_question_that_is_refused_costs_its_pair_alone(server: Server) -> None:
    server.refuses = lambda a, b: "xxxx" in (a, b)
    code, report = judge(pairs(6), "--url", server.url)
    assert (code, report["votes"], report["refused"]) == (0, 5, 2)
    assert "400 maximum context length" in report["refused_examples"][0]["why"]
    server.refuses = lambda a, b: True
    with pytest.raises(LabellingError, match=r"\(10 questions in a row\); see --request"):
        judge(pairs(20), "--url", server.url, "--output", "other.jsonl", "--concurrency", "1")
    server.refuses = lambda a, b: False
    assert judge(pairs(6), "--url", server.url)[1]["votes"] == 6


def test_the_budget_is_kept_over_repeats(server: Server) -> None:
    code, report = judge(pairs(90), "--url", server.url, "--budget-tokens", "1500")
    assert (code, report["out_of_budget"]) == (3, True)
    assert 1300 < report["tokens"] <= 1500
    assert report["tokens"] == 10 * len(server.bodies)
    code, report = judge(pairs(90), "--url", server.url, "--budget-tokens", "5000")
    assert (code, report["votes"], report["tokens"]) == (0, 90, 1800)
    server.usage = False
    with pytest.raises(LabellingError, match="have no usage; leave --budget-tokens out"):
        judge(pairs(4), "--url", server.url, "--budget-tokens", "9999", "--output", "other.jsonl")


def test_no_more_are_in_flight_than_is_said(server: Server) -> None:
    server.seconds = 0.05
    judge(pairs(8), "--url", server.url, "--concurrency", "3")
    assert server.most_at_once == 3


def test_requests_keep_the_distance_that_is_said(server: Server) -> None:
    judge(pairs(3), "--url", server.url, "--requests-per-minute", "600")
    assert server.times[-1] - server.times[0] >= 5 * 0.1 - 0.05


def test_a_request_holds_what_the_user_wants_in_it(server: Server) -> None:
    wanted = '{"max_tokens": null, "temperature": null, "max_completion_tokens": 99, "top_p": 0.5}'
    judge(pairs(1), "--url", server.url, "--request", wanted)
    assert {name: value for name, value in server.bodies[0].items() if name not in ("model", "messages")} == {
        "max_completion_tokens": 99,
        "top_p": 0.5,
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--request", "[1]"], "is no JSON object"),
        (["--request", '{"n": 2}'], "n is not for it to set"),
        (["--request", '{"max_tokens": null}'], "sets no limit to answers"),
        (["--output", "judged.json"], "give one that ends in .jsonl"),
        (["--output", "pairs.jsonl"], "was not written by this command"),
        (["--rubric", "nowhere.txt"], "--rubric nowhere.txt: cannot be read"),
        (["--rubric", "empty.txt"], "--rubric empty.txt: is empty"),
        (["--people", "bad.jsonl"], "--people bad.jsonl:1: .*; mend or remove it, or give --drop-bad"),
        (["--stage", "ppo"], "--stage ppo: is for a run"),
        (["--model", " "], "--model: is empty"),
    ],
)
def test_bad_input_is_said_before_anything_is_asked(server: Server, arguments: list[str], problem: str) -> None:
    Path("empty.txt").write_text(" \n")
    write("bad.jsonl", {"prompt": "p", "chosen": "a", "rejected": 3}, {"prompt": "p", "chosen": "a", "rejected": "b"})
    with pytest.raises(RLHFError, match=problem):
        judge(pairs(1), "--url", server.url, *arguments)
    assert not server.times and not Path("judged.jsonl.answers").exists()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_command_that_is_killed_loses_no_answer(server: Server, name: str) -> None:
    server.seconds = 0.1
    command = [sys.executable, "-m", "launch.entry", "label", "judge", pairs(40), "--model", "m", "--url", server.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # In the background of a shell SIGINT is ignored, and children inherit that.
    child = subprocess.Popen(
        command, env=environment, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    deadline = time.monotonic() + 60
    while len(server.bodies) < 12 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(getattr(signal, name))
    _, said = child.communicate(timeout=60)
    kept = len(Path("judged.jsonl.answers").read_bytes().splitlines()) - 1
    assert 0 < kept <= len(server.bodies) < 80
    if name == "SIGINT":
        expected = f"interrupted: {kept} answers are in judged.jsonl.answers, and the same command goes on\n"
        assert (child.returncode, said) == (130, expected)
        assert votes()  # what there is can be used
    while server.at_once:  # answers that nobody waits for any more
        time.sleep(0.02)
    time.sleep(0.1)
    before = len(server.bodies)
    server.seconds = 0.0
    code, report = judge(pairs(40), "--url", server.url)
    assert (code, report["votes"], len(server.bodies) - before) == (0, 40, 80 - kept)
