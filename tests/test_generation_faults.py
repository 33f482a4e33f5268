"""Generation servers that are away, refuse, fail or are not what they should be: a line each, and in time."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
import torch
from generation_client import NEW_TOKENS, PROMPTS, TOKENIZATION, generator, policy, sample
from generation_server import serving
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf.errors import GenerationAwayError, GenerationError

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


def test_two_runs_at_one_server_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(policy(2)) as server:
        asked = generator(policy(1), server)
        ask = asked._answers

        def interrupted(*arguments: Any) -> Any:
            answers = ask(*arguments)
            server.workers[0].rlhf_version = "another run's"
            return answers

        monkeypatch.setattr(asked, "_answers", interrupted)
        with pytest.raises(GenerationAwayError, match="3 attempts at a batch; does another run use them"):
            sample(asked)


def test_a_server_that_stays_away_is_named_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    begun = time.monotonic()
    with pytest.raises(GenerationAwayError, match=r"patience_seconds=0.5 \(ConnectError.*rlhf generation serve RUN"):
        sample(generator(policy(), address, patience_seconds=0.5))
    assert time.monotonic() - begun < 5
    assert capfd.readouterr().err.count("asking again") == 1


def test_busy_servers_are_asked_again_and_said_to_be_once(capfd: pytest.CaptureFixture[str]) -> None:
    model = policy(1)
    with serving(policy(2)) as server:
        asked = generator(model, server)
        undisturbed = sample(asked)
        server.answers = [503, 429, 502]
        assert torch.equal(sample(asked).responses, undisturbed.responses)
    assert capfd.readouterr().err.count("asking again") in range(1, 4)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (400, "refused with 400"),
        ({}, "no tokens with their log-probs"),
        ({"choices": [{"token_ids": [1, 2], "logprobs": {"token_logprobs": [-1.0]}}]}, "2 tokens with 1 log-probs"),
        ({"choices": [{"token_ids": [], "logprobs": {"token_logprobs": []}}]}, "0 tokens"),
        ({"choices": [{"token_ids": None, "logprobs": None}]}, "no tokens with their log-probs"),
    ],
)
def test_answers_that_are_no_responses_are_refused(answer: Any, message: str) -> None:
    with serving(policy(2)) as server:
        asked = generator(policy(1), server)
        server.answers = [answer]
        with pytest.raises(GenerationError, match=message) as error:
            sample(asked)
    assert len(error.value.problems) == 1 and "\n" not in error.value.problems[0]
    assert not error.value.transient  # it would answer the same again: no launcher tries it


def test_a_server_of_another_kind_or_model_or_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = GPT2LMHeadModel(GPT2Config(vocab_size=33, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    with serving(other) as server, pytest.raises(GenerationError, match="serves a model of 33 tokens") as of_model:
        sample(generator(policy(), server))
    with serving(policy(), token="right") as server:
        monkeypatch.setenv("RLHF_GENERATION_TOKEN", "wrong")
        with pytest.raises(
            GenerationError, match="401 Unauthorized.*set RLHF_GENERATION_TOKEN to the server's"
        ) as of_token:
            sample(generator(policy(), server))
        monkeypatch.setenv("RLHF_GENERATION_TOKEN", "right")
        assert len(sample(generator(policy(), server)).responses) == len(PROMPTS)
    with serving(policy()) as server:
        server.workers = []
        with pytest.raises(
            GenerationError, match="answered .*it must be started with rlhf generation serve"
        ) as of_kind:
            sample(generator(policy(), server))
    assert not any(found.value.transient for found in (of_model, of_token, of_kind))


def test_a_weight_that_a_server_cannot_use_ends_in_a_line_and_not_in_a_wait() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": len(TOKENIZATION.tokenizer), "n_embd": 16, "n_head": 2, "n_positions": 64}
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, **shape))
    with serving(other) as server:
        asked = generator(policy(), server)
        begun = time.monotonic()
        with pytest.raises(GenerationAwayError, match="500 Internal Server Error.*KeyError"):
            sample(asked)
        assert time.monotonic() - begun < 10


def test_the_server_that_fails_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the others, which wait for it, nor the time that they would."""
    with serving(policy(2)) as healthy, serving(policy(2)) as failing:

        def fail(question: str) -> int:
            raise RuntimeError("boom")

        monkeypatch.setattr(failing.workers[0], "rlhf_receive", fail)
        began = time.monotonic()
        with pytest.raises(GenerationAwayError, match=f"generation server {failing.address}: refused with 500.*boom"):
            sample(generator(policy(1), healthy, failing))
        assert time.monotonic() - began < 5
        monkeypatch.undo()
        assert len(sample(generator(policy(1), healthy, failing)).responses) == len(PROMPTS)


def test_a_server_that_cannot_join_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(policy(2)) as server:

        def fail(question: str) -> None:
            raise OSError("no route to the trainer")

        monkeypatch.setattr(server.workers[0], "rlhf_join", fail)
        began = time.monotonic()
        with pytest.raises(GenerationAwayError, match="no route to the trainer"):
            sample(generator(policy(1), server))
        assert time.monotonic() - began < 5


def test_a_context_that_is_too_short_is_said_before_anything_is_asked() -> None:
    with serving(policy(2)) as server:
        server.workers[0].model_config.max_model_len = NEW_TOKENS + 2
        with pytest.raises(GenerationError, match="have room for 10 tokens .* start them with -- --max-model-len"):
            sample(generator(policy(1), server))
        assert "/v1/completions" not in server.calls
