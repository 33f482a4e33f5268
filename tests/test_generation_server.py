"""Sampling on servers: whose weights they have, and what they give back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from generation_client import ROWS, TOKENIZATION, generator, own_logprobs, policy, sample
from generation_server import Server, serving
from interruption import figures, own_copy
from running import TINY, rlhf, stage
from transformers import AutoModelForCausalLM

from rlhf.errors import GenerationError
from rlhf.generation import servers, transfer
from rlhf.generation.inside_vllm.rlhf_weights import Weights, join_group
from rlhf.generation.servers import begun

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


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


def test_another_nccl_is_not_asked_for_a_group(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would refuse; here and there are GPUs, and a torch that is not the other's."""
    asked: list[bool] = []
    made = servers.Transfer

    def noted(addresses: Any, size: int, on_gpus: bool, seconds: float) -> Any:
        asked.append(on_gpus)
        return made(addresses, size, False, seconds)

    monkeypatch.setattr(servers, "Transfer", noted)
    state = Weights.rlhf_state
    for there in ("2.28.9", "2.29.7"):
        monkeypatch.setattr(servers, "nccl_version", lambda: "2.28.9")
        other = {"device": "cuda", "nccl": there}
        monkeypatch.setattr(Weights, "rlhf_state", lambda worker, other=other: state(worker) | other)
        with serving(policy(2)) as server:
            sample(generator(policy(1), server))
    said = [line for line in capfd.readouterr().err.splitlines() if "NCCL is" in line]
    assert asked == [True, False]
    assert len(said) == 1 and "is 2.28.9 here and 2.29.7 there; weights go over gloo" in said[0]


def test_a_communicator_is_made_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL makes it at a first collective; a group of gloo's stands in for one of NCCL's."""
    sent: list[tuple[int, Any]] = []

    class Nccl:
        Options = dist.ProcessGroupGloo._Options

        def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
            options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
            self.rank, self.group = rank, dist.ProcessGroupGloo(store, rank, size, options)

        def broadcast(self, tensors: list[Any], options: Any) -> Any:
            sent.append((self.rank, tensors[0].shape))
            return self.group.broadcast(tensors, options)

    monkeypatch.setattr(dist, "ProcessGroupNCCL", Nccl, raising=False)
    store: Any = dist.HashStore()
    both = [
        begun(lambda rank=rank: join_group(store, "nccl", rank, 2, 30.0, "127.0.0.1", torch.device("cpu")))
        for rank in range(2)
    ]
    assert {each.result(timeout=30).rank for each in both} == {0, 1}
    assert sorted(sent) == [(0, (1,)), (1, (1,))]


def test_a_server_that_is_done_before_we_see_it_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer may come before the end of the last broadcast is seen here."""

    class Slow:
        def __init__(self, work: Any) -> None:
            self.work, self.until = work, time.monotonic() + 0.05

        def is_completed(self) -> bool:
            return bool(self.work.is_completed()) and time.monotonic() > self.until

        def wait(self) -> None:
            self.work.wait()

    begin = transfer.begin_broadcast
    monkeypatch.setattr(transfer, "begin_broadcast", lambda *arguments: Slow(begin(*arguments)))
    model = policy(1)
    with serving(policy(2)) as server:
        found = sample(generator(model, server))
        assert torch.allclose(found.logprobs, own_logprobs(model, found), atol=1e-5)
