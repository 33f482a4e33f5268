"""Sampling on servers: whose weights they have, what they give back, and what happens when they do not."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from generation_server import Server, serving
from interruption import figures, own_copy
from running import TINY, rlhf, stage
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rlhf.config import GenerationConfig, GenerationServerConfig, LoraConfig
from rlhf.errors import GenerationError
from rlhf.generation import transfer
from rlhf.generation.servers import begun
from rlhf.generation.vllm import VllmGenerator
from rlhf.logprobs import response_logprobs
from rlhf.models import add_lora
from rlhf.types import Sampled
from tests.test_models import tiny_policy, tiny_tokenization

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
TOKENIZATION = tiny_tokenization()
PROMPTS = [TOKENIZATION.tokenizer(text)["input_ids"] for text in ("The cat", "a", "and the dog sat on the", "A dog")]
ROWS = [4, 1, 7, 2]
NEW_TOKENS, TEMPERATURE = 8, 0.7


def policy(seed: int = 0, adapted: bool = False) -> Any:
    torch.manual_seed(seed)
    made: Any = tiny_policy()
    if adapted:
        made = add_lora(made, LoraConfig(rank=2, alpha=4.0), "policy")
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return made.eval()


def generator(model: nn.Module, *servers: Server | str, **config: float) -> VllmGenerator:
    addresses = [server if isinstance(server, str) else server.address for server in servers]
    settings = {"patience_seconds": 5.0, "timeout_seconds": 10.0, **config}
    return VllmGenerator(
        model,
        TOKENIZATION.stop_id,
        TOKENIZATION.pad_id,
        GenerationConfig(
            engine="vllm",
            weights="server",
            server=GenerationServerConfig(addresses=addresses, **settings),
            max_new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE,
        ),
    )


def sample(asked: VllmGenerator, step: int = 1) -> Sampled:
    return asked.sample(PROMPTS, ROWS, seed=3, step=step)


def own_logprobs(model: nn.Module, sampled: Sampled) -> torch.Tensor:
    """The policy's own of what was sampled, row by row."""
    found = torch.zeros_like(sampled.logprobs)
    for row, prompt in enumerate(PROMPTS):
        response = sampled.responses[row][sampled.mask[row]]
        tokens = torch.cat([torch.tensor(prompt), response])[None]
        mask = torch.ones_like(tokens, dtype=torch.bool)
        with torch.no_grad():
            own = response_logprobs(model, tokens, mask, len(response), TEMPERATURE)
        found[row, : len(response)] = own.logprobs[0]
    return found


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_servers_sample_from_the_weights_that_the_policy_has_now(adapted: bool, workers: int) -> None:
    model = policy(1, adapted)
    with serving(policy(2), workers=workers) as server:
        asked = generator(model, server)
        first = sample(asked)
        assert torch.allclose(first.logprobs, own_logprobs(model, first), atol=1e-5)
        assert torch.equal(first.logprobs, first.sampler_logprobs)
        ended = first.responses.eq(TOKENIZATION.stop_id).logical_and(first.mask).any(-1)
        assert torch.equal(first.finished, ended)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        asked.load(model)
        second = sample(asked)
        assert torch.allclose(second.logprobs, own_logprobs(model, second), atol=1e-5)
        assert not torch.allclose(second.logprobs, own_logprobs(policy(1, adapted), second), atol=1e-2)


def test_weights_are_given_when_they_have_changed_and_the_old_ones_keys_are_forgotten() -> None:
    model = policy(1)
    with serving(policy(2)) as server:
        asked = generator(model, server)
        for step in (1, 2):
            sample(asked, step)
        assert [call for call in server.calls if call in ("rlhf_join", "rlhf_receive", "/reset_prefix_cache")] == [
            "rlhf_join",
            "rlhf_receive",
            "/reset_prefix_cache",
        ]
        asked.load(model)
        sample(asked, 3)
        assert server.calls.count("rlhf_join") == 1
        assert server.calls.count("rlhf_receive") == server.calls.count("/reset_prefix_cache") == 2


def test_what_is_sampled_depends_on_seed_step_and_row_alone() -> None:
    model = policy(1)
    with serving(policy(2)) as one, serving(policy(3)) as other:
        alone, both = sample(generator(model, one)), sample(generator(model, one, other))
        assert other.calls.count("/v1/completions") in range(1, len(ROWS))
        assert torch.equal(alone.responses, both.responses)
        again = generator(model, other)
        assert torch.equal(sample(again).responses, alone.responses)
        assert not torch.equal(sample(again, step=2).responses, alone.responses)


def test_a_server_that_has_lost_the_weights_gets_them_again_and_answers_anew() -> None:
    model = policy(1)
    with serving(policy(2)) as server:
        asked = generator(model, server)
        undisturbed = sample(asked)
        server.forgets_after = 2
        assert torch.equal(sample(asked).responses, undisturbed.responses)
        assert server.calls.count("rlhf_join") == server.calls.count("rlhf_receive") == 2


def test_a_server_that_is_started_anew_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    model = policy(1)
    with serving(policy(2)) as server:
        asked = generator(model, server)
        undisturbed, port = sample(asked), int(server.server_address[1])
    waiting = begun(lambda: sample(asked))
    time.sleep(0.5)
    with serving(policy(2), port=port):
        assert torch.equal(waiting.result(timeout=20).responses, undisturbed.responses)
    assert capfd.readouterr().err.count("asking again") == 1


def test_two_runs_at_one_server_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(policy(2)) as server:
        asked = generator(policy(1), server)
        ask = asked._answers

        def interrupted(*arguments: Any) -> Any:
            answers = ask(*arguments)
            server.workers[0].rlhf_version = "another run's"
            return answers

        monkeypatch.setattr(asked, "_answers", interrupted)
        with pytest.raises(GenerationError, match="3 attempts at a batch; does another run use them"):
            sample(asked)


def test_a_server_that_stays_away_is_named_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    begun = time.monotonic()
    with pytest.raises(GenerationError, match=r"patience_seconds=0.5 \(ConnectError.*rlhf generation serve RUN"):
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


def test_a_server_of_another_kind_or_model_or_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = GPT2LMHeadModel(GPT2Config(vocab_size=33, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    with serving(other) as server, pytest.raises(GenerationError, match="serves a model of 33 tokens"):
        sample(generator(policy(), server))
    with serving(policy(), token="right") as server:
        monkeypatch.setenv("RLHF_GENERATION_TOKEN", "wrong")
        with pytest.raises(GenerationError, match="401 Unauthorized.*set RLHF_GENERATION_TOKEN to the server's"):
            sample(generator(policy(), server))
        monkeypatch.setenv("RLHF_GENERATION_TOKEN", "right")
        assert len(sample(generator(policy(), server)).responses) == len(PROMPTS)
    with serving(policy()) as server:
        server.workers = []
        with pytest.raises(GenerationError, match="answered .*it must be started with rlhf generation serve"):
            sample(generator(policy(), server))


def test_a_weight_that_a_server_cannot_use_ends_in_a_line_and_not_in_a_wait() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": len(TOKENIZATION.tokenizer), "n_embd": 16, "n_head": 2, "n_positions": 64}
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, **shape))
    with serving(other) as server:
        asked = generator(policy(), server)
        begun = time.monotonic()
        with pytest.raises(GenerationError, match="500 Internal Server Error.*KeyError"):
            sample(asked)
        assert time.monotonic() - begun < 10


def test_the_server_that_fails_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the others, which wait for it, nor the time that they would."""
    with serving(policy(2)) as healthy, serving(policy(2)) as failing:

        def fail(question: str) -> int:
            raise RuntimeError("boom")

        monkeypatch.setattr(failing.workers[0], "rlhf_receive", fail)
        began = time.monotonic()
        with pytest.raises(GenerationError, match=f"generation server {failing.address}: refused with 500.*boom"):
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
        with pytest.raises(GenerationError, match="no route to the trainer"):
            sample(generator(policy(1), server))
        assert time.monotonic() - began < 5


def test_servers_are_met_where_they_see_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the address of the interface that leads to them, which need not be the loopback's."""
    monkeypatch.setattr(transfer, "own_address", lambda server: "127.0.0.2")
    model = policy(1)
    with serving(policy(2)) as server:
        found = sample(generator(model, server))
        assert torch.allclose(found.logprobs, own_logprobs(model, found), atol=1e-5)


def test_old_keys_and_values_are_gone_before_anything_is_sampled(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(policy(2)) as server:
        server.resets_refused = 2
        sample(generator(policy(1), server))
        assert server.calls.count("/reset_prefix_cache") == 3
        assert server.calls.index("/v1/completions") > server.calls.index("/reset_prefix_cache") + 2
        server.resets_refused = 10**6
        with pytest.raises(GenerationError, match="its prefix cache is held by other requests"):
            sample(generator(policy(3), server, patience_seconds=0.5))
    assert "asking again" in capfd.readouterr().err


def test_a_context_that_is_too_short_is_said_before_anything_is_asked() -> None:
    with serving(policy(2)) as server:
        server.workers[0].model_config.max_model_len = NEW_TOKENS + 2
        with pytest.raises(GenerationError, match="have room for 10 tokens .* start them with -- --max-model-len"):
            sample(generator(policy(1), server))
        assert "/v1/completions" not in server.calls


BRIEF = ("ppo.learning_rate=0.01", "ppo.evaluate_every=0")


def on(server: Server) -> str:
    """An override: PPO samples there."""
    there = f"{{addresses: ['{server.address}']}}"
    return f"ppo.generation={{max_new_tokens: 16, engine: vllm, weights: server, server: {there}}}"


def served(run: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(run / "sft" / "model").eval()


def test_the_stage_gives_a_server_each_step_s_policy(tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    with serving(served(run)) as server:
        stage("ppo", TINY, run, run / "ppo", [on(server), *BRIEF])
        rows = figures(run / "ppo")
        assert server.calls.count("rlhf_receive") >= len(rows) == 3
    assert max(abs(row["policy/mismatch_kl"]) for row in rows) < 1e-5
    assert abs(rows[-1]["objective/kl"]) > 0.01  # the policy has moved


@pytest.mark.services
@pytest.mark.beside
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero3", marks=pytest.mark.soak)])
def test_two_processes_gather_what_they_send(strategy: str, tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    with serving(served(run), workers=2) as server:
        shared = f"ppo.parallelism={{strategy: {strategy}, processes: 2}}"
        done = rlhf("ppo", str(TINY), on(server), shared, *BRIEF, folder=tmp_path, seconds=300)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = figures(run / "ppo")
    assert len(rows) == 3 and max(abs(row["policy/mismatch_kl"]) for row in rows) < 1e-5
    assert abs(rows[-1]["objective/kl"]) > 0.01
