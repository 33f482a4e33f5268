"""Scores that are asked for while others are still sampled: the same ones, sooner."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from reward_models.client import HttpReward
from reward_models.rules import FunctionReward
from rlhf.config import RewardServerConfig
from rlhf.errors import RewardError
from rlhf.ppo.early import EarlyScores
from rlhf.ppo.experience import collect
from rlhf.ppo.rewards import WeightedRewards
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
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


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
    scores.thread.join(10)
    assert not asked and not scores.thread.is_alive()


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
