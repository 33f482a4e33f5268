"""SFT under ZeRO with adapters, in bfloat16, and under ZeRO-1, two processes: `make soak ARGS="-k trainers"`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from interruption import EVERY_STEP, figures, manifest
from running import TINY, rlhf
from strategies import LORA
from trainers import close_to, stage

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def replicated(folder: Path, *overrides: str) -> Path:
    """SFT of two processes, under DDP."""
    folder.mkdir()
    done = rlhf("sft", str(TINY), "parallelism.processes=2", *overrides, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "tiny" / "sft"


def test_zero1(tmp_path: Path) -> None:
    close_to(stage("sft", tmp_path / "own", "zero1"), replicated(tmp_path / "ddp"))


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_adapters_stopped_and_resumed(strategy: str, tmp_path: Path) -> None:
    stage("sft", tmp_path / "own", strategy, LORA, EVERY_STEP, "--stop-after", "3")
    own = stage("sft", tmp_path / "own", strategy, LORA, EVERY_STEP)
    close_to(own, replicated(tmp_path / "ddp", LORA))
    assert (own / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_bfloat16_is_computed_in_and_weights_are_not_held_in_it(strategy: str, tmp_path: Path) -> None:
    own = stage("sft", tmp_path / "own", strategy, "model.dtype=bfloat16")
    half, single = replicated(tmp_path / "half", "model.dtype=bfloat16"), replicated(tmp_path / "single")
    assert set(manifest(own)["engine"].values()) == {"DeepSpeedEngine"}
    losses = [[line["loss/sft"] for line in figures(run) if "loss/sft" in line] for run in (own, half, single)]
    for ours, theirs in zip(losses[0], losses[1], strict=True):
        assert math.isclose(ours, theirs, rel_tol=1e-3)
    assert losses[0] != losses[2]  # or nothing would be computed in bfloat16
