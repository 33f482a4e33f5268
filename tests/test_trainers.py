"""SFT and reward model under ZeRO: two processes, gloo, and DeepSpeed's own engine behind `tests/on_cpus.py`.

Everything is asserted by what ran and what lies on the disk: accelerate may fall back to DDP without a word.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from interruption import EVERY_STEP, assert_same, manifest, own_copy
from running import TINY, rlhf
from trainers import SHIM, close_to, shapes, stage

from launch.local import LocalStage

pytestmark = pytest.mark.services
CUT = "reward.micro_batch_size=8"  # two forwards a step


@pytest.fixture(scope="module")
def reward_of_two(tiny_run_of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model under DDP: how a batch is cut shows in the mean of its parts' accuracies."""
    folder = tmp_path_factory.mktemp("cut")
    run = own_copy(tiny_run_of_two, folder, ["sft"])
    done = rlhf("reward", str(TINY), CUT, "parallelism.processes=2", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return run / "reward"


@pytest.mark.soak
def test_sft_under_zero2_stopped_behind_the_last_step_and_handed_on(tiny_run_of_two: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run_of_two, tmp_path, [])
    last = str(manifest(tiny_run_of_two / "sft")["results"]["steps"])
    assert not (stage("sft", run, "zero2", "--stop-after", last) / "manifest.json").exists()
    close_to(stage("sft", run, "zero2"), tiny_run_of_two / "sft")


@pytest.mark.soak
def test_sft_under_zero3_stopped_and_resumed(tiny_run_of_two: Path, tmp_path: Path) -> None:
    # Without these DeepSpeed would keep so small a model whole behind its last forward, and nothing had to be gathered.
    settings = tmp_path / "deepspeed.json"
    settings.write_text('{"zero_optimization": {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 0}}')
    own = (EVERY_STEP, f"sft.parallelism.deepspeed={settings}")
    whole = stage("sft", own_copy(tiny_run_of_two, tmp_path / "whole", []), "zero3", *own)
    close_to(whole, tiny_run_of_two / "sft")
    run = own_copy(tiny_run_of_two, tmp_path / "stopped", [])
    stopped = stage("sft", run, "zero3", *own, "--stop-after", "3")
    checkpoint = stopped / "checkpoints" / "step-000003"
    parts = sorted((checkpoint / "global_step3").glob("*optim_states.pt"))
    learned = manifest(whole)["results"]["parameters"]
    assert len(parts) == 2 and all(part.stat().st_size < 0.75 * 12 * learned for part in parts)  # 12 bytes a weight
    assert shapes(checkpoint / "model.safetensors") == shapes(whole / "model" / "model.safetensors")
    assert_same(stage("sft", run, "zero3", *own), whole)


def test_reward_under_zero2_is_that_under_ddp(tiny_run_of_two: Path, reward_of_two: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run_of_two, tmp_path, ["sft"])
    close_to(stage("reward", run, "zero2", CUT), reward_of_two)


@pytest.mark.soak
def test_reward_under_zero3_is_that_under_ddp_and_goes_on_under_nothing_else(
    tiny_run_of_two: Path, reward_of_two: Path, tmp_path: Path
) -> None:
    run = own_copy(tiny_run_of_two, tmp_path, ["sft"])
    reward = stage("reward", run, "zero3", CUT, "--stop-after", "2")
    before = sorted(path.relative_to(reward) for path in (reward / "checkpoints").rglob("*"))
    for other in ("{strategy: zero2, processes: 2}", "{strategy: ddp, processes: 2}"):
        command = [sys.executable, str(SHIM), "stages.reward", "--recipe", str(TINY), "--run-dir", str(run)]
        outcome = LocalStage([*command, f"reward.parallelism={other}"], 2).wait(60, print)
        (problem,) = outcome.problems
        assert outcome.code == 2 and "go on under the same strategy and settings on as many processes alone" in problem
    assert sorted(path.relative_to(reward) for path in (reward / "checkpoints").rglob("*")) == before
    close_to(stage("reward", run, "zero3", CUT), reward_of_two)


def test_on_a_cpu_the_stage_itself_refuses(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.sft", "--recipe", str(TINY), "--run-dir", str(tmp_path / "run")]
    command += ["sft.parallelism={strategy: zero2}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: parallelism.strategy=zero2: sft needs GPUs for it")
    assert not (tmp_path / "run" / "sft" / "manifest.json").exists()


def test_ddp_in_place_of_zero_is_an_error(tiny_run_of_two: Path, tmp_path: Path) -> None:
    """The trainer's libraries have passed over what they were told."""
    run = own_copy(tiny_run_of_two, tmp_path, [])
    command = [sys.executable, str(SHIM), "--unheard", "stages.sft", "--recipe", str(TINY)]
    command += ["--run-dir", str(run), "sft.parallelism={strategy: zero2, processes: 2}"]
    outcome = LocalStage(command, 2).wait(60, print)
    (problem,) = outcome.problems
    assert outcome.code == 2 and "strategy=zero2: the trainer made a DistributedDataParallel of the model" in problem
    assert not (run / "sft" / "manifest.json").exists()
