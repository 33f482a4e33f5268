"""Imitated GPUs: each stage's strategies on two of them, and PPO's settings on one.

Under FSDP2 the trainers of SFT and reward models share them out on GPUs alone, so this is where that runs without any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, TINY, stage

pytestmark = [pytest.mark.services, pytest.mark.beside, pytest.mark.timeout(600)]
IMITATED = str(ROOT / "tests" / "imitated_gpu.py")
STRATEGIES = [
    ("sft", "fsdp"),
    pytest.param("sft", "zero3", marks=pytest.mark.soak),
    ("reward", "fsdp"),
    pytest.param("ppo", "ddp", marks=pytest.mark.soak),
    ("ppo", "fsdp"),
    ("ppo", "zero3"),
]
SETTINGS = {
    "graphs": ["ppo.generation.cuda_graphs=true", "ppo.prompts_per_step=32"],  # fewer tokens are not worth a graph
    "checkpointing": ["model.activation_checkpointing=true", "ppo.value_start=trunk"],
    "offloaded": ["ppo.offload=[reference, reward, optimizer]", "checkpoint={every_steps: 1, asynchronous: true}"],
    "offloaded shares": ["ppo.parallelism={strategy: fsdp, cpu_offload: true}", "ppo.generation.weights=replica"],
    "padded": ["model.attention=eager", "ppo.value_start=policy", "ppo.target_kl=0.5"]
    + ["ppo.kl={coef: 0.05, estimator: k3, place: loss}", "ppo.whiten_rewards=true"],
    "without a value model": ["ppo.advantage=grpo", "ppo.responses_per_prompt=2", "ppo.generation.top_p=0.9"]
    + ["ppo.importance_cap=2.0", "ppo.entropy_bonus=0.01", "ppo.ratio=sequence"],
    "adapters": ["model.lora={rank: 4, alpha: 8.0}"],
}
FIGURES = ("objective/scores", "objective/kl", "loss/policy", "loss/value", "policy/grad_norm", "value/grad_norm")
FEW = ("graphs", "offloaded", "offloaded shares", "adapters")  # the others, of which CPUs have most, in make soak
ONE_STEP = ("ppo.steps=1", "ppo.evaluate_every=0")


def run(name: str, folder: Path, place: Path, processes: int, *overrides: str) -> Path:
    """Run a stage of the tiny recipe on imitated GPUs; its output."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*(several if processes > 1 else []), IMITATED, "-m", f"stages.{name}", "--recipe", str(TINY)]
    output = place / name
    where = ["--run-dir", str(folder), "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cuda"}
    done = subprocess.run(
        [sys.executable, *command, *where, *overrides], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (place / "stderr").write_text(done.stderr)
    assert "cuda:0 NVIDIA H200 (imitated)" in done.stdout
    return output


def manifest(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return found


def first_step(output: Path) -> dict[str, float]:
    """What PPO has measured in its first step."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if "loss/policy" in line)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process on the CPU, with one step of PPO."""
    folder = tmp_path_factory.mktemp("imitated") / "run"
    for name in ("sft", "reward", "ppo"):
        stage(name, TINY, folder, folder / name, ["model.dtype=float32", *(ONE_STEP if name == "ppo" else ())])
    return folder


@pytest.mark.parametrize(("name", "strategy"), STRATEGIES)
def test_strategies_train_as_one_cpu_does(name: str, strategy: str, on_cpu: Path, tmp_path: Path) -> None:
    overrides = ["model.dtype=float32", f"{name}.parallelism={{strategy: {strategy}}}"]
    output = run(name, on_cpu, tmp_path, 2, *overrides, *(ONE_STEP if name == "ppo" else ()))
    made = manifest(output)
    wrapper = {"ddp": "DistributedDataParallel", "fsdp": "FSDP"}.get(strategy, "DeepSpeedEngine")
    assert made["computation"]["processes"] == 2
    assert all(each.startswith(wrapper) for each in made["engine"].values()), made["engine"]
    if name == "ppo":
        found, wanted = first_step(output), first_step(on_cpu / name)
        assert {each: found[each] for each in FIGURES} == pytest.approx(
            {each: wanted[each] for each in FIGURES}, rel=1e-3, abs=1e-5
        )
    else:
        figure = {"sft": "eval_loss", "reward": "log_loss"}[name]
        assert made["results"][figure] == pytest.approx(manifest(on_cpu / name)["results"][figure], rel=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [pytest.param(each, id=name, marks=[] if name in FEW else pytest.mark.soak) for name, each in SETTINGS.items()],
)
def test_settings_of_ppo_in_bfloat16(overrides: list[str], on_cpu: Path, tmp_path: Path) -> None:
    output = run("ppo", on_cpu, tmp_path, 1, "ppo.steps=2", "ppo.evaluate_every=0", *overrides)
    assert manifest(output)["computation"]["dtype"] == "bfloat16"
    assert all(value is not None for value in first_step(output).values())
    assert ("replays of graphs" in (tmp_path / "stderr").read_text()) == (overrides == SETTINGS["graphs"])
