"""Scores that are asked for while others are still sampled: the same ones, sooner."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from answering import answering

from reward_models.client import HttpReward
from reward_models.rules import FunctionReward
from rlhf.config import RewardServerConfig
from rlhf.errors import RewardError
from rlhf.ppo.early import EarlyScores
from rlhf.ppo.experience import collect
from rlhf.ppo.rewards import WeightedRewards
from rlhf.recipe import load_recipe
from rlhf.types import Completion, Prompt
from stages.rewards import early
from tests.cast import CONFIG, KEY, PROMPTS, Cast, load_cast, save_cast

ROWS = list(range(len(PROMPTS)))


class Server:
    """A reward server: a response's score is its length, and it takes its time."""

    def __init__(self, each: float, status: int = 200) -> None:
        self.each, self.status = each, status  # seconds a response
        self.asked: list[tuple[float, list[str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((time.monotonic(), body["responses"]))
                time.sleep(server.each * len(body["responses"]))
                answer = json.dumps({"scores": [float(len(text)) for text in body["responses"]]}).encode()
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/"


@contextmanager
def serving(each: float = 0.0, status: int = 200) -> Iterator[Server]:
    server = Server(each, status)
    with answering(server.http):
        yield server


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Cast:
    return load_cast(save_cast(tmp_path_factory.mktemp("cast")))


def lengths(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def slowly(cast: Cast, seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Has each decode step take a while; when sampling was over."""
    sample, ends = cast.actors.generator.sample, []

    def watched(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(cast.actors.generator, "watch", lambda *_: time.sleep(seconds), raising=False)
        sampled = sample(*arguments, **options)
        ends.append(time.monotonic())
        return sampled

    monkeypatch.setattr(cast.actors.generator, "sample", watched)
    return ends


@pytest.mark.parametrize("overlap", ["servers", "all", "off"])
def test_scores_are_the_same_and_so_is_their_sum(cast: Cast, overlap: str) -> None:
    with serving() as server:
        rewards: dict[str, Any] = {
            "http": HttpReward(server.address, RewardServerConfig(batch_size=3), mean=2.0, deviation=3.0),
            "rule": FunctionReward("lengths", lengths),
            "model": cast.actors.reward,
        }
        both = WeightedRewards(
            {name: early(each, overlap) for name, each in rewards.items()}, dict(zip(rewards, (1, 2, 3), strict=True))
        )
        experience, completions = collect(PROMPTS, ROWS, replace(cast.actors, reward=both), CONFIG, KEY)
    plain = {name: reward(completions) for name, reward in rewards.items() if name != "http"}
    plain["http"] = (torch.tensor(lengths([], [each.response for each in completions])) - 2) / 3
    assert list(experience.terms) == list(rewards)
    for name, scores in plain.items():
        torch.testing.assert_close(experience.terms[name], scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(experience.scores, plain["http"] + 2 * plain["rule"] + 3 * plain["model"])
    texts = [text for _, asked in server.asked for text in asked]
    assert sorted(texts) == sorted(each.response for each in completions)  # each once


@pytest.mark.parametrize("overlap", ["servers", "off"])
def test_a_server_is_asked_while_others_are_sampled(cast: Cast, overlap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = slowly(cast, 0.1, monkeypatch)
    with serving() as server:
        reward = early(HttpReward(server.address, RewardServerConfig()), overlap)
        collect(PROMPTS, ROWS, replace(cast.actors, reward=reward), CONFIG, KEY)
    assert (server.asked[0][0] < ends[0]) == (overlap == "servers")


@pytest.mark.parametrize("overlap", ["servers", "off"])
def test_an_error_is_told_where_scores_are_wanted(cast: Cast, overlap: str) -> None:
    with serving(status=403) as server:
        reward = early(HttpReward(server.address, RewardServerConfig()), overlap)
        with pytest.raises(RewardError, match="refused with 403"):
            collect(PROMPTS, ROWS, replace(cast.actors, reward=reward), CONFIG, KEY)


def test_nothing_more_is_asked_once_sampling_has_failed(cast: Cast) -> None:
    asked: list[int] = []

    def count(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        asked.append(len(responses))
        return [0.0] * len(responses)

    scores = EarlyScores({"rule": FunctionReward("count", count)}, completion, rows=8)
    with pytest.raises(KeyboardInterrupt), scores:
        scores.ended(0, [1])
        raise KeyboardInterrupt
    scores.threads[0].join(10)
    assert not asked and not scores.threads[0].is_alive()


def completion(row: int, tokens: Sequence[int]) -> Completion:
    return Completion(Prompt(f"{row}"), "x" * len(tokens), (1,), tuple(tokens), True)


def test_a_response_that_was_sampled_again_is_scored_again() -> None:
    """As where a server had lost the weights: what was scored early is another text."""
    scores = EarlyScores({"rule": FunctionReward("lengths", lengths)}, completion, rows=4)
    with scores:
        for row, tokens in enumerate(([1], [1, 2], [1, 2, 3], [4])):
            scores.ended(row, tokens)
    final = [completion(0, [1]), completion(1, [1, 2, 3, 4, 5]), completion(2, [1, 2, 3]), completion(3, [4])]
    assert scores.scores(final)["rule"].tolist() == [1.0, 5.0, 3.0, 1.0]


def test_a_response_that_is_sampled_again_is_told_again() -> None:
    """Fixed rows are then asked about once more, together."""
    asked: list[list[str]] = []

    def count(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        asked.append(list(responses))
        return lengths(prompts, responses)

    scores = EarlyScores({"rule": FunctionReward("count", count)}, completion, rows=8, ordered=False)
    with scores:
        for row, length in enumerate([1, 2, 3, 4, 5, 6, 7, 8]):
            scores.ended(row, [0] * length)
        while len(asked) < 4:
            time.sleep(0.001)
        scores.ended(0, [0])
        scores.ended(1, [0] * 9)
    assert scores.scores([completion(row, [0] * n) for row, n in enumerate([1, 9, 3, 4, 5, 6, 7, 8])])["rule"][1] == 9
    assert asked[4:] == [["x", "x" * 9]]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("late", [0, 3, 7, 11])
def test_who_shares_a_request_does_not_depend_on_the_clock(ordered: bool, late: int) -> None:
    """The thread is busy until so many have ended; fixed rows are asked about together in whatever order they end."""
    asked: list[list[str]] = []
    busy = threading.Event()

    def count(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        busy.wait(10)
        asked.append(sorted(prompts, key=int))
        return [0.0] * len(responses)

    order = [4, 1, 0, 5, 2, 8, 7, 3, 9, 6, 10]
    scores = EarlyScores({"rule": FunctionReward("count", count)}, completion, len(order), ordered)
    with scores:
        for place, row in enumerate(order):
            if place == late:
                busy.set()
                time.sleep(0.02)
            scores.ended(row, [row])
    busy.set()
    scores.scores([completion(row, [row]) for row in range(len(order))])
    if ordered:
        slices = [sorted(map(str, order[start : start + 2]), key=int) for start in range(0, 11, 2)]
    else:
        slices = [[str(row) for row in range(start, min(start + 2, 11))] for start in range(0, 11, 2)]
    assert sorted(asked) == sorted(slices)


def test_a_slow_server_uses_up_nobody_else_s_patience() -> None:
    with serving(each=0.8) as slow, serving() as other:
        servers = {name: HttpReward(each.address, RewardServerConfig()) for name, each in (("a", slow), ("b", other))}
        scores = EarlyScores(servers, completion, rows=4)
        with scores:
            for row in range(4):
                scores.ended(row, [row])
        assert list(scores.scores([completion(row, [row]) for row in range(4)])) == ["a", "b"]
    assert other.asked[-1][0] < slow.asked[-1][0]  # not each after the other


def test_a_server_that_is_away_while_others_are_sampled_is_asked_later() -> None:
    with serving(status=503) as server:
        reward = HttpReward(server.address, RewardServerConfig(patience_seconds=0.3))
        scores = EarlyScores({"http": reward}, completion, rows=4)
        with scores:
            for row in range(4):
                scores.ended(row, [row])
            time.sleep(1.0)  # beyond its patience
            assert scores.error is None
            server.status = 200
        assert scores.scores([completion(row, [row]) for row in range(4)])["http"].tolist() == [1.0] * 4


def test_a_function_computes_outside_of_autocast(cast: Cast) -> None:
    seen: list[bool] = []

    def look(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return [0.0] * len(responses)

    for overlap in ("all", "off"):
        reward = early(FunctionReward("look", look), overlap)
        collect(PROMPTS, ROWS, replace(cast.actors, reward=reward, bfloat16=True), CONFIG, KEY)
    assert seen and not any(seen)


def test_off_may_be_bare(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("ppo:\n  overlap_scoring: off\n")
    assert load_recipe(tmp_path / "recipe.yaml").ppo.overlap_scoring == "off"


def test_many_small_requests_are_not_made() -> None:
    asked: list[int] = []

    def count(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        asked.append(len(responses))
        return [0.0] * len(responses)

    rows = 40
    scores = EarlyScores({"rule": FunctionReward("count", count)}, completion, rows)
    with scores:
        for row in range(rows):
            scores.ended(row, [row])
            time.sleep(0.001)
    scores.scores([completion(row, [row]) for row in range(rows)])
    assert sum(asked) == rows and len(asked) <= 5 and min(asked[:-1], default=rows) >= 10
