"""Rewards over HTTP: what a server is asked, and what is no answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from answering import answering
from torch import Tensor

from reward_models.client import HttpReward
from rlhf.config import RewardServerConfig
from rlhf.errors import RewardError
from tests.test_own_rewards import ANSWERS


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says; keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    asked: list[dict[str, Any]]
    tokens: list[str | None]
    encoding = "identity"
    answer: Callable[[dict[str, Any]], tuple[int, Any]]

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(question)
        type(self).tokens.append(self.headers.get("Authorization"))
        status, content = type(self).answer(question)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Encoding", self.encoding)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def server(answer: Callable[[dict[str, Any]], tuple[int, Any]]) -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Own", (Handler,), {"asked": [], "tokens": [], "answer": staticmethod(answer)})
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as listening:
        yield f"http://127.0.0.1:{listening.server_port}/score", handler


def lengths(question: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"scores": [len(response) for response in question["responses"]]}


def asked(address: str, **options: Any) -> Tensor:
    return HttpReward(address, RewardServerConfig(**options))(ANSWERS)


LENGTHS = torch.tensor([float(len(c.response)) for c in ANSWERS])


def test_a_server_is_asked_in_batches_with_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_REWARD_TOKEN", "secret")
    with server(lengths) as (address, handler):
        torch.testing.assert_close(asked(address, batch_size=5), LENGTHS)
    assert [len(question["responses"]) for question in handler.asked] == [5, 5, 2]
    assert set(handler.tokens) == {"Bearer secret"}
    assert handler.asked[0]["messages"][0] == [{"role": "user", "content": "question 0 ?"}]
    assert handler.asked[0]["prompts"][0] == "question 0 ?" and handler.asked[0]["finished"][0] is True


def test_a_server_of_this_machine_is_asked_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with server(lengths) as (address, _):
            torch.testing.assert_close(asked(address, patience_seconds=0.3), LENGTHS)
        with pytest.raises(RewardError, match="no answer within"):  # by name it is another one
            HttpReward("http://elsewhere.invalid/score", RewardServerConfig(patience_seconds=0.3))(ANSWERS)


def test_rewards_is_another_word_for_scores() -> None:
    with server(lambda question: (200, {"rewards": [1.0] * len(question["prompts"])})) as (address, _):
        assert asked(address).eq(1).all()


def test_an_answer_that_cannot_be_decoded_is_one_line() -> None:
    with server(lambda question: (200, b"no gzip at all")) as (address, handler):
        handler.encoding = "gzip"
        with pytest.raises(RewardError, match="gave an answer that cannot be decoded .*the answer must be") as raised:
            asked(address)
    assert "\n" not in str(raised.value)


def test_a_busy_server_is_asked_again() -> None:
    answers = iter([(503, {}), (429, {}), (200, None)])

    def busy(question: dict[str, Any]) -> tuple[int, Any]:
        status, _ = next(answers)
        return lengths(question) if status == 200 else (status, {})

    with server(busy) as (address, handler):
        torch.testing.assert_close(asked(address), LENGTHS)
    assert len(handler.asked) == 3


@pytest.mark.parametrize(
    ("status", "content", "problem"),
    [
        (401, {}, "refused with 401 Unauthorized; set RLHF_REWARD_TOKEN"),
        (404, {}, "refused with 404 Not Found; mend reward.use or the server"),
        (200, b"<html>", "the answer must be"),
        (200, [1, 2], "the answer must be"),
        (200, {"scores": [1.0]}, "gave 1 scores for 12 responses"),
        (200, b'{"scores": [NaN, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}', "gave nan for the response 'word answer 0'"),
        (500, {}, r"no answer within reward.server.patience_seconds=0.3 \(500 Internal Server Error\)"),
    ],
)
def test_what_is_no_answer_is_one_line(status: int, content: Any, problem: str) -> None:
    with (
        server(lambda question: (status, content)) as (address, _),
        pytest.raises(RewardError, match=problem) as raised,
    ):
        asked(address, patience_seconds=0.3)
    assert "\n" not in str(raised.value)


def test_a_server_that_is_away_is_waited_for_and_then_named() -> None:
    with server(lengths) as (address, _):
        pass
    with pytest.raises(RewardError, match="no answer within .*ConnectError"):
        asked(address, patience_seconds=0.3)


def test_what_is_said_of_a_server_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with server(lambda question: (400, {})) as (address, _):
        secret = address.replace("http://", "http://me:p@ss@") + "?token=secret#secret"
        with pytest.raises(RewardError, match=f"^reward {address}: refused with 400") as refused:
            asked(secret)
    assert "secret" not in str(refused.value) and "ss" not in str(refused.value).replace(address, "")
    assert HttpReward("http://me:secret@[::1]:8000/a/b?c=d", RewardServerConfig()).shown == "http://[::1]:8000/a/b"
    assert HttpReward("http://judge?token=secret", RewardServerConfig()).shown == "http://judge"
