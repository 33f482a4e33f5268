"""The sizes that `rlhf init` proposes: what fits the memory there is, shared by the processes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from launch.proposal.examples import Lengths
from launch.proposal.hardware import Hardware, hardware
from launch.proposal.models import weights_of_size
from launch.proposal.sizes import Sizes, Task, estimates, propose
from rlhf import memory
from rlhf.errors import ConfigError
from rlhf.memory import GIB
from rlhf.shapes import shape_of_size

LENGTHS = Lengths(
    prompt=300, prompt_max=800, prompt_median=100, completion=250, completion_median=120, response=250, measured=True
)


def task(size: str, machine: Hardware, **changes: object) -> Task:
    shape = shape_of_size(weights_of_size(size))
    counts = {"demonstrations": 10_000, "comparisons": 10_000, "prompts": 10_000}
    options: dict[str, object] = {"policy": shape, "scorer": shape, "pretrained": True, "lengths": LENGTHS}
    return Task(**(options | {"hardware": machine, "counts": counts} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "machine", "training"),
    [
        ("135M", Hardware(1, 8 * GIB), "full"),
        ("0.5B", Hardware(1, 24 * GIB), "full"),
        ("1B", Hardware(1, 24 * GIB), "lora"),  # gradients and moments of two models would take 32 GB
        ("3B", Hardware(1, 24 * GIB), "nf4"),
        ("1.5B", Hardware(8, 80 * GIB), "full"),
        ("8B", Hardware(8, 141 * GIB), "lora"),
        ("0.5B", Hardware(0, 64 * GIB), "full"),
        ("0.5B", Hardware(0, 16 * GIB), "lora"),
    ],
)
def test_training_that_fits(size: str, machine: Hardware, training: str) -> None:
    wanted = task(size, machine)
    sizes = propose(wanted)
    assert sizes.training == training
    for estimate in sizes.estimates.values():
        assert estimate.total <= memory.usable(machine.memory)
    for batch, micro in ((sizes.sft_batch, sizes.sft_micro), (sizes.reward_batch, sizes.reward_micro)):
        assert batch % machine.processes == 0 and (batch // machine.processes) % micro == 0
    assert sizes.prompts_per_step % (2 * machine.processes) == 0
    assert sizes.micro_batch_tokens >= LENGTHS.prompt_max + sizes.max_new_tokens


@pytest.mark.parametrize("size", ["0.5B", "1B", "3B"])
def test_micro_batches_are_as_large_as_fits(size: str) -> None:
    """Twice as much in a forward would be too much, or more than the batch."""
    wanted = task(size, Hardware(1, 24 * GIB))
    sizes = propose(wanted)
    room = memory.usable(24 * GIB)

    def needs(stage: str, **changes: int) -> float:
        from dataclasses import replace

        return estimates(wanted, replace(sizes, **changes))[stage].total

    assert sizes.sft_micro == sizes.sft_batch or needs("sft", sft_micro=2 * sizes.sft_micro) > room
    assert sizes.reward_micro == sizes.reward_batch or needs("reward", reward_micro=2 * sizes.reward_micro) > room
    most = sizes.micro_batch_tokens == 16_384
    assert most or needs("ppo", micro_batch_tokens=2 * sizes.micro_batch_tokens) > room


def test_nothing_fits_is_said_with_what_would() -> None:
    with pytest.raises(ConfigError) as caught:
        propose(task("70B", Hardware(8, 80 * GIB)))
    (line,) = caught.value.problems
    found = re.fullmatch(
        r"ppo: a model of 70.00 B weights needs about (\d+) GiB even with adapters over 4-bit weights and one example "
        r"at a time, and there is 8 GPUs of 80 GiB each; take a smaller model, a --max-length below 576, or larger "
        r"GPUs .--gpu-memory.",
        line,
    )
    assert found
    assert propose(task("70B", Hardware(8, (int(found[1]) + 1) * GIB))).training == "nf4"  # and it does


def test_a_reward_that_is_no_model_leaves_room() -> None:
    machine = Hardware(1, 24 * GIB)
    with_model, without = (propose(task("1B", machine, scorer=scorer)) for scorer in (shape_of_size(10**9), None))
    assert "reward model" not in without.estimates["ppo"].standing
    assert with_model.estimates["ppo"].standing["reward model"]["weights"] > 0


def test_six_gpus_share_the_batches() -> None:
    sizes: Sizes = propose(task("0.5B", Hardware(6, 80 * GIB)))
    assert sizes.sft_batch % 6 == sizes.reward_batch % 6 == sizes.prompts_per_step % 12 == 0


def test_few_examples_make_small_batches() -> None:
    counts = {"demonstrations": 100, "comparisons": 40, "prompts": 30}
    sizes = propose(task("0.5B", Hardware(1, 80 * GIB), counts=counts))
    assert (sizes.sft_batch, sizes.reward_batch, sizes.prompts_per_step) == (4, 2, 4)


def test_the_machine_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a program of nvidia-smi's name that says what the real one says."""
    assert hardware(0, None).gpus == 0 and hardware(0, None).memory > GIB
    assert hardware(4, 80.0) == Hardware(4, 80 * GIB)
    assert hardware(None, 24.0) == Hardware(1, 24 * GIB)
    program = tmp_path / "nvidia-smi"
    listed, sizes = "echo 'GPU 0: A'; echo 'GPU 1: B'", "echo 24564; echo 81559"
    program.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then {listed}; else {sizes}; fi\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware(None, None) == Hardware(2, 24564 * 2**20)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert hardware(None, None) == Hardware(1, 81559 * 2**20)
