"""The script for machines with a GPU, on a CPU: with TRL, and on an image that lacks it and whatever else it may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

pytestmark = [pytest.mark.services, pytest.mark.beside]
SCRIPT = ROOT / "tests" / "gpu" / "check.py"
ABSENT = ("trl", "datasets", "wandb", "duckdb", "deepspeed", "mlflow", "tensorboard", "bitsandbytes")
# `None` in sys.modules is what makes an import fail as if nothing were installed.
BARE = "import runpy, sys; sys.modules.update(dict.fromkeys({absent}, None)); sys.argv = {arguments}; "
BARE += "runpy.run_path(sys.argv[0], run_name='__main__')"


def check(folder: Path, *variants: str, bare: bool = False) -> str:
    """The table that the script writes at its smallest size."""
    table = folder / "table.md"
    arguments = [str(SCRIPT), "--device", "cpu", "--size", "tiny", "--table", str(table), "--variants", *variants]
    command = ["-c", BARE.format(absent=ABSENT, arguments=arguments)] if bare else arguments
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return table.read_text()


def stages_of(table: str) -> list[tuple[str, str]]:
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")]
    return [(row[1], row[2]) for row in rows if row[2] in ("sft", "reward", "ppo", "evaluate")]


def test_on_an_image_without_trl(tmp_path: Path) -> None:
    table = check(tmp_path, "bfloat16-full", bare=True)
    assert "No TRL here" in table
    assert stages_of(table) == [("bfloat16-full", stage) for stage in ("sft", "reward", "ppo", "evaluate")]


@pytest.mark.parametrize(
    "variants",
    [
        ["float32-lora", "bfloat16-fsdp"],
        pytest.param(["float32-full", "bfloat16-full", "bfloat16-lora"], marks=pytest.mark.soak),
    ],
    ids=" ".join,
)
def test_every_variant_with_trl(variants: list[str], tmp_path: Path) -> None:
    table = check(tmp_path, *variants)
    assert "No TRL here" not in table
    assert stages_of(table) == [(name, stage) for name in variants for stage in ("sft", "reward", "ppo", "evaluate")]
    assert "failed" not in table  # PPO of the last one under FSDP2


def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "no GPU is visible; --device cpu runs on this machine's CPU\n"
