"""The code's way on a GPU, on one that is imitated: nothing is left behind on the CPU, and figures are the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from imitated_gpu import OnTwoDevices, State, imitated
from running import ROOT

from rlhf import logprobs
from rlhf.logprobs import response_logprobs
from stages.bench.load import Load, models
from stages.bench.ours import prepare
from stages.bench.turns import Turns
from tests.test_decoder import policy
from tests.test_packing import RESPONSES, batch

IMITATED = ROOT / "tests" / "imitated_gpu.py"
CHECK = ROOT / "tests" / "gpu" / "check.py"
CUDA = torch.device("cuda", 0)
ONE_LAYER = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}


@pytest.fixture
def gpu() -> Iterator[State]:
    with imitated() as state:
        yield state


def test_a_copy_is_on_the_gpu_and_what_is_made_of_it(gpu: State) -> None:
    own = torch.ones(2, 3)
    there = own.to("cuda")
    assert (own.device.type, there.device, there.is_cuda) == ("cpu", CUDA, True)
    for made in (
        there + 1,
        there.t(),
        torch.zeros_like(there),
        torch.arange(3, device=there.device),
        there.new_ones(2),
    ):
        assert made.device == CUDA
    there.zero_()
    assert own.sum() == 6 and there.cpu().device.type == "cpu"
    module = torch.nn.Linear(3, 2).cuda()
    assert {each.device for each in module.parameters()} == {CUDA}


def test_two_devices_do_not_mix(gpu: State) -> None:
    own, there = torch.arange(3), torch.arange(3, device="cuda")
    for mixed in (
        lambda: own + there,
        lambda: own[there],
        lambda: torch.cat([own, there]),
        lambda: torch.stack([there[0], own[0]]),
        lambda: there.index_select(0, own),
        lambda: torch.where(there > 0, there, own),
        lambda: own.add_(there),
    ):
        with pytest.raises(OnTwoDevices):
            mixed()
    with pytest.raises(TypeError, match="Use Tensor.cpu"):
        there.numpy()
    with pytest.raises(RuntimeError, match="cannot pin"):
        there.pin_memory()
    assert (there + 1).tolist() == (there + torch.tensor(1)).tolist() == [1, 2, 3]  # numbers may be anywhere
    assert there[own].device == CUDA
    own.copy_(there)


def test_gradients_are_where_their_tensors_are(gpu: State) -> None:
    seen: list[torch.device] = []

    class Asked(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            seen.append(gradient.device)
            return gradient * torch.ones(3, device="cuda")

    own = torch.ones(3, requires_grad=True)
    (Asked.apply(own.to("cuda")) * 2).sum().backward()
    assert own.grad is not None and own.grad.device.type == "cpu" and own.grad.tolist() == [2.0] * 3
    assert seen == [CUDA]


def test_what_waits_is_counted(gpu: State) -> None:
    own, there = torch.ones(3), torch.ones(3, device="cuda")
    for asks in (
        lambda: there.sum().item(),
        lambda: there.nonzero(),
        lambda: there[there > 0],
        lambda: there.cpu(),
        lambda: there.tolist(),
        lambda: own.cuda(),
    ):
        before = sum(gpu.waits.counts.values())
        asks()
        assert sum(gpu.waits.counts.values()) == before + 1
    before = sum(gpu.waits.counts.values())
    there.to("cpu", non_blocking=True)
    torch.ones(3).to("cuda", non_blocking=True)
    assert sum(gpu.waits.counts.values()) == before
    assert all(places[0].startswith("tests/test_imitated_gpu.py:") for _, places in gpu.waits.counts)


def test_what_is_left_behind_is_found(gpu: State, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, mask = batch()
    model, inputs = policy("llama").to("cuda"), logprobs.packed_inputs
    assert response_logprobs(model, tokens, mask, max(RESPONSES), 1.0).logprobs.device == CUDA
    monkeypatch.setattr(logprobs, "packed_inputs", lambda *given: {**inputs(*given), "input_ids": given[0][None]})
    with pytest.raises(OnTwoDevices):
        response_logprobs(model, tokens, mask, max(RESPONSES), 1.0)


def test_micro_batches_of_an_update_wait_for_nothing(gpu: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update waits for a model's norm, for whether its losses are finite, and once for the step's figures."""
    monkeypatch.setattr(Turns, "__init__", lambda self: setattr(self, "phases", {}))
    found = []
    for micro in (2, 1):
        load = Load(config=ONE_LAYER, batch=2, micro=micro, response_length=3)
        step = prepare(load, models(load), "bfloat16", Turns())
        gpu.waits.counts.clear()
        step(1)
        of_update = [
            n for (_, places), n in gpu.waits.counts.items() if any("ppo/update.py" in each for each in places)
        ]
        found.append(sum(of_update))
        assert "to the GPU" not in {name for name, _ in gpu.waits.counts}  # of sampling and scoring as well
    epochs, roles = 2, 2
    assert found == [epochs * roles * 2 + 1] * 2


def check(folder: Path, variant: str, *first: str) -> dict[str, dict[str, Any]]:
    """What each stage's manifest holds of a run of tests/gpu/check.py at its smallest size."""
    device = [] if first else ["--device", "cpu"]
    command = [sys.executable, *first, str(CHECK), "--size", "tiny", "--variants", variant, "--output", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *device], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = ("sft", "reward", "ppo", "evaluate")
    return {stage: json.loads((folder / variant / stage / "manifest.json").read_text()) for stage in stages}


@pytest.mark.services
@pytest.mark.beside
def test_figures_of_all_stages_are_the_cpus(tmp_path: Path) -> None:
    there = check(tmp_path / "gpu", "float32-full", str(IMITATED))
    here = check(tmp_path / "cpu", "float32-full")
    for stage, manifest in there.items():
        assert manifest["computation"]["device"] == "cuda" and here[stage]["computation"]["device"] == "cpu"
        figures = {name: figure for name, figure in manifest["results"].items() if isinstance(figure, float)}
        assert figures == pytest.approx({name: here[stage]["results"][name] for name in figures}, rel=1e-2, abs=1e-3)
        assert figures
