"""Sampling on servers: whose weights they have, what they give back, and what happens when they do not."""

from __future__ import annotations

import asyncio
import copy
import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from generation_server import Server, serving
from interruption import figures, own_copy
from running import TINY, rlhf, stage
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from launch.cli import app
from launch.commands import generation
from rlhf.config import GenerationConfig, GenerationServerConfig, LoraConfig, Recipe
from rlhf.errors import ArtifactError, ConfigError, GenerationError
from rlhf.generation.inside_vllm.rlhf_weights import Guard
from rlhf.generation.vllm import VllmGenerator
from rlhf.generation.weights import weights_of
from rlhf.logprobs import response_logprobs
from rlhf.models import add_lora, save_model
from rlhf.types import Sampled
from stages.lineage import STAGES
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
    settings = {"patience_seconds": 5.0, "timeout_seconds": 20.0, **config}
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
    with serving(policy(2), port=port):
        assert torch.equal(sample(asked).responses, undisturbed.responses)


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
        server.answers = [503, 429, 500]
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


@pytest.mark.parametrize("turned", [False, True])
def test_weights_are_those_of_the_merged_model_under_its_checkpoint_s_names(turned: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = policy()
    if turned:  # layers that keep their weights [in, out]
        vocabulary = len(TOKENIZATION.tokenizer)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    model = add_lora(model, LoraConfig(rank=2, alpha=4.0), "policy")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    found = {weight.name: weight.make() for weight in weights_of(model)}
    shapes = {weight.name: weight.shape for weight in weights_of(model)}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in found.items()}
    save_model(copy.deepcopy(model), TOKENIZATION, tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == saved.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, saved[name], atol=1e-6), name


def test_only_who_brings_the_token_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    async def ask(path: str, token: str | None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        transport = httpx.ASGITransport(app=Guard(inner))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return (await client.post(path, headers=headers)).status_code

    for path in ("/collective_rpc", "/v1/completions", "/pause"):
        monkeypatch.setenv("RLHF_GENERATION_TOKEN", "right")
        assert [asyncio.run(ask(path, token)) for token in ("right", "wrong", "", None)] == [200, 401, 401, 401]
        monkeypatch.delenv("RLHF_GENERATION_TOKEN")
        assert asyncio.run(ask(path, None)) == 200
    monkeypatch.setenv("RLHF_GENERATION_TOKEN", "right")
    assert asyncio.run(ask("/health", None)) == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "vllm"}, "engine=vllm with weights=shared"),
        ({"weights": "server"}, "engine=native with weights=server"),
        ({"engine": "vllm", "weights": "server"}, "without a server: start one with rlhf generation serve RUN"),
        (
            {"engine": "vllm", "weights": "server", "server": {"addresses": ["localhost:8000"]}},
            "give http://host:port",
        ),
        (
            {"engine": "vllm", "weights": "server", "server": {"addresses": ["http://me:secret@host:1"]}},
            "set RLHF_GENERATION_TOKEN in place of it",
        ),
    ],
)
def test_settings_that_fit_no_server_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig.model_validate(settings)


def test_serve_wants_a_token_before_it_opens_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHF_GENERATION_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "10.1.2.3", "node-7"):
        with pytest.raises(ConfigError, match="set RLHF_GENERATION_TOKEN"):
            app(["generation", "serve", "demo", "--host", host], standalone_mode=False)
    assert all(map(generation.is_loopback, ("127.0.0.1", "::1", "localhost", "127.8.9.1")))


def test_serve_wants_an_interpreter_that_has_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(generation.PYTHON, raising=False)
    with pytest.raises(ConfigError, match="vLLM is not installed here"):
        app(["generation", "serve", "demo"], standalone_mode=False)
    monkeypatch.setenv(generation.PYTHON, "/not/there")
    with pytest.raises(ConfigError, match=f"{generation.PYTHON}=/not/there: no interpreter there"):
        app(["generation", "serve", "demo"], standalone_mode=False)
    with pytest.raises(ConfigError, match="--python=.*: vLLM is not installed there"):
        app(["generation", "serve", "demo", "--python", sys.executable], standalone_mode=False)


def test_serve_names_a_model_and_hands_options_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generation, "find_python", lambda named: "/vllm/bin/python")
    save_model(policy(), TOKENIZATION, tmp_path / "model")
    capsys.readouterr()
    app(
        ["generation", "serve", str(tmp_path / "model"), "--port", "9", "--dry-run", "--", "--enforce-eager"],
        standalone_mode=False,
    )
    said = capsys.readouterr().out.split()
    assert said[:5] == ["/vllm/bin/python", "-m", generation.SERVER, "--model", str(tmp_path / "model")]
    assert said[-1] == "--enforce-eager" and said[said.index("--port") + 1] == "9"
    assert said[said.index("--dtype") + 1] == "float32"  # of a model that no run has made, where there is no GPU
    assert "processed_logprobs" in said and "--trust-remote-code" not in said
    with pytest.raises(ArtifactError, match="no run, stage or model"):
        app(["generation", "serve", "nothing", "--dry-run"], standalone_mode=False)
    assert generation.environment()["PYTHONPATH"] == str(generation.INSIDE)
    assert (generation.INSIDE / "rlhf_weights.py").is_file()


BRIEF = ("ppo.learning_rate=0.01", "ppo.evaluate_every=0")


def on(server: Server) -> str:
    """An override: PPO samples there."""
    there = f"{{addresses: ['{server.address}']}}"
    return f"ppo.generation={{max_new_tokens: 16, engine: vllm, weights: server, server: {there}}}"


def test_another_engine_runs_ppo_again_and_nothing_before_it(tmp_path: Path) -> None:
    there = {"engine": "vllm", "weights": "server", "server": {"addresses": ["http://127.0.0.1:1"]}}
    elsewhere = {**there, "server": {"addresses": ["http://10.0.0.1:1"], "timeout_seconds": 5.0}}
    prints = []
    for how in ({}, there, elsewhere):
        recipe = Recipe.model_validate({"ppo": {"generation": how}, "reward": {"use": "data.toy:gold"}})
        prints.append([fields_of(recipe, name) for name in STAGES])
    native, first, second = prints
    assert first == second
    assert [a == b for a, b in zip(native, first, strict=True)] == [True, True, False, True]


def fields_of(recipe: Recipe, name: str) -> Any:
    return STAGES[name].fields(recipe)


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
