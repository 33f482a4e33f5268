"""The contract of a generation server, asked of real vLLM: `make soak ARGS="-k vllm_server -s"`.

vLLM gets an environment of its own (`tests/vllm_environment.py`), made at the first run: 3.5 GB, some minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from interruption import figures, manifest
from running import ROOT, rlhf
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_environment import vllm_python

from data import toy
from launch.local import free_port
from rlhf.config import GenerationConfig, GenerationServerConfig, ModelConfig
from rlhf.errors import GenerationError
from rlhf.generation.vllm import VllmGenerator
from rlhf.tokenization import Tokenization, load_tokenization
from tests.test_interoperability import rendered

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
LEARNING = str(ROOT / "tests" / "recipes" / "learning.yaml")
WIDER = ["model.init.heads=2", "ppo.steps=6"]  # vLLM's kernels for CPUs begin at heads of size 32
NEW_TOKENS, TEMPERATURE = 24, 0.7
UP_SECONDS = 300.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an SFT and a reward model, and with PPO by the native sampler."""
    folder = tmp_path_factory.mktemp("wider")
    done = rlhf("run", LEARNING, *WIDER, folder=folder, seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "learning"


@contextmanager
def serving(target: str, port: int, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`rlhf generation serve`, up; ended with all that it started."""
    command = [sys.executable, "-P", "-m", "launch.cli", "generation", "serve", target, "--port", str(port)]
    command += ["--python", str(vllm_python()), "--", "--enforce-eager", "--max-num-seqs", "64"]
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    own |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **environment}
    with log.open("ab") as file:
        server = subprocess.Popen(command, env=own, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + UP_SECONDS
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield server
    finally:
        end(server)


def end(server: subprocess.Popen[bytes]) -> None:
    """All processes of a server, at once."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def generator(model: nn.Module, tokenization: Tokenization, port: int) -> VllmGenerator:
    config = GenerationConfig(
        engine="vllm",
        weights="server",
        server=GenerationServerConfig(addresses=[f"http://127.0.0.1:{port}"], timeout_seconds=120),
        max_new_tokens=NEW_TOKENS,
        temperature=TEMPERATURE,
    )
    return VllmGenerator(model, tokenization.stop_id, tokenization.pad_id, config)


def greedy_here(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    with torch.no_grad():
        return [
            model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None)[
                0, len(prompt) :
            ].tolist()
            for prompt in prompts
        ]


def greedy_there(port: int, prompts: list[list[int]]) -> list[list[int]]:
    found = []
    for prompt in prompts:
        asked = {"prompt": prompt, "temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True}
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/completions", json={**asked, "return_token_ids": True}, timeout=120
        )
        found.append(answer.json()["choices"][0]["token_ids"])
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_after_an_update_the_server_is_the_policy(tied: bool, run: Path, tmp_path: Path) -> None:
    directory, target = run / "sft" / "model", tmp_path / "model"
    model: Any = AutoModelForCausalLM.from_pretrained(directory).eval()
    if not tied:
        state, config = model.state_dict(), model.config
        config.tie_word_embeddings = False
        model = AutoModelForCausalLM.from_config(config).eval()
        model.load_state_dict(state)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(directory).save_pretrained(target)
    tokenization = load_tokenization(directory, ModelConfig())
    prompts = rendered(directory, [prompt.text for prompt in toy.prompts()[:16]])
    port = free_port()
    with serving(str(target), port, tmp_path / "server.log"):
        asked = generator(model, tokenization, port)
        torch.manual_seed(0)
        for update in range(3):
            started = time.perf_counter()
            sampled = asked.sample(prompts, range(len(prompts)), seed=1, step=1)
            took = time.perf_counter() - started
            assert greedy_there(port, prompts) == greedy_here(model, prompts), update
            worst = 0.0
            for row, prompt in enumerate(prompts):
                response = sampled.responses[row][sampled.mask[row]]
                tokens = torch.cat([torch.tensor(prompt), response])[None]
                with torch.no_grad():
                    logits = model(tokens).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
                own = logits.log_softmax(-1).gather(-1, response[:, None]).squeeze(-1)
                worst = max(worst, float((own - sampled.logprobs[row][sampled.mask[row]]).abs().max()))
            print(f"tied {tied}, update {update}: {took:.2f} s, log-probs apart by {worst:.1e} at most")
            assert worst < 1e-4
            again = asked.sample(prompts, range(len(prompts)), seed=1, step=1)
            assert torch.equal(again.responses, sampled.responses)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
            asked.load(model)


def test_a_server_lets_only_the_token_in(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("RLHF_GENERATION_TOKEN", "right")
    with serving(str(run), port, tmp_path / "server.log"):
        for path in ("/collective_rpc", "/v1/completions", "/reset_prefix_cache", "/update_weights"):
            assert httpx.post(f"{address}{path}", json={}).status_code == 401
        told = httpx.post(
            f"{address}/collective_rpc", json={"method": "rlhf_state"}, headers={"Authorization": "Bearer right"}
        )
        assert told.json()["results"][0]["version"] is None
        assert "right" not in (tmp_path / "server.log").read_text()
        # A model of another shape is named, not loaded.
        tokenization = load_tokenization(run / "sft" / "model", ModelConfig())
        config = AutoModelForCausalLM.from_pretrained(run / "sft" / "model").config
        config.hidden_size *= 2
        other = AutoModelForCausalLM.from_config(config)
        with pytest.raises(GenerationError, match="generation server"):
            generator(other, tokenization, port).sample([[1, 2, 3]], [0], seed=1, step=1)


def on_server(port: int, *overrides: str) -> list[str]:
    there = {"engine": "vllm", "weights": "server", "server": {"addresses": [f"http://127.0.0.1:{port}"]}}
    return [LEARNING, *WIDER, f"ppo.generation={json.dumps({'max_new_tokens': 36, **there})}", *overrides]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("ppo.parallelism={strategy: fsdp, processes: 2}",),
        ("ppo.parallelism={strategy: zero3, processes: 2}",),
        ("model.lora={rank: 4, alpha: 8.0}", "ppo.parallelism={strategy: ddp, processes: 2}"),
    ],
    ids=["one", "fsdp", "zero3", "adapters"],
)
def test_ppo_samples_from_the_policy_that_it_trains(overrides: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    port = free_port()
    use = [f"sft.use={run / 'sft' / 'model'}", f"reward.use={run / 'reward' / 'model'}"]
    with serving(str(run), port, tmp_path / "server.log"):
        done = rlhf("ppo", *on_server(port, *overrides, *use), folder=tmp_path, seconds=900)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = figures(tmp_path / "runs" / "learning" / "ppo")
    mismatch = [abs(row["policy/mismatch_kl"]) for row in rows]
    print(f"{overrides}: |mismatch| at most {max(mismatch):.1e}, scores", [row["objective/scores"] for row in rows])
    assert len(rows) == 6 and max(mismatch) < 1e-5
    assert max(abs(row["objective/kl"]) for row in rows) > 0.01  # the policy has moved, and the server with it


def test_a_run_goes_on_when_its_server_has_been_killed(run: Path, tmp_path: Path) -> None:
    port = free_port()
    use = [f"sft.use={run / 'sft' / 'model'}", f"reward.use={run / 'reward' / 'model'}"]
    command = [sys.executable, "-P", "-m", "launch.cli", "ppo", *on_server(port, *use)]
    with serving(str(run), port, tmp_path / "server.log") as first:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        metrics = tmp_path / "runs" / "learning" / "ppo" / "metrics.jsonl"
        deadline = time.monotonic() + 300
        while not metrics.is_file() or metrics.read_text().count('"policy/mismatch_kl"') < 2:
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        end(first)
    with serving(str(run), port, tmp_path / "second.log"):
        said, _ = running.communicate(timeout=600)
    assert running.returncode == 0, said
    assert "asking again" in said
    assert max(abs(row["policy/mismatch_kl"]) for row in figures(metrics.parent)) < 1e-5


def test_ppo_learns_the_embedded_task_on_a_server(tmp_path: Path) -> None:
    """The demo: PPO never sees the gold score that evaluates it."""
    port = free_port()
    there = {"engine": "vllm", "weights": "server", "server": {"addresses": [f"http://127.0.0.1:{port}"]}}
    recipe = ["demo", f"ppo.generation={json.dumps({'max_new_tokens': 36, **there})}"]
    for stage in ("sft", "reward"):
        done = rlhf(stage, *recipe, folder=tmp_path, seconds=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "demo"
    with serving(str(run), port, tmp_path / "server.log"):
        done = rlhf("run", *recipe, folder=tmp_path, seconds=2400)
    assert done.returncode == 0, done.stdout + done.stderr
    results = manifest(run / "evaluate")["results"]
    steps = [row for row in figures(run / "ppo") if "policy/mismatch_kl" in row]
    mismatch = max(abs(row["policy/mismatch_kl"]) for row in steps)
    print(f"{results}, |mismatch| at most {mismatch:.1e}")
    assert mismatch < 1e-5
    assert results["gold_after"] > results["gold_before"] + 0.2
    assert results["win_rate"] > 0.7
