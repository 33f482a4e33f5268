"""Killed at any moment, a stage goes on from its newest checkpoint and ends with the figures of an undisturbed one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from interruption import EVERY_STEP, assert_same, figures, kill_tree, lines_of, manifest, own_copy, start, wait_for
from judges import judged_by_chance
from running import TINY, rlhf

STAGES = ["sft", "reward", "ppo"]
RARELY = pytest.mark.soak  # what is alike
STEPS = {"sft": 7, "reward": 6, "ppo": 3}


def kill_in_training(stage: str, reference: Path, folder: Path, lines: int, *overrides: str) -> Path:
    """A run whose stage was killed once its metrics file had so many lines of training."""
    run = own_copy(reference, folder, STAGES[: STAGES.index(stage)])
    process = start(stage, str(TINY), EVERY_STEP, *overrides, folder=folder)
    before = 1 if stage == "ppo" else 0  # the evaluation at step 0
    assert wait_for(lambda: lines_of(run / stage / "metrics.jsonl") >= lines + before, process)
    kill_tree(process)
    assert not (run / stage / "manifest.json").exists()
    return run


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=RARELY), pytest.param("reward", marks=RARELY), "ppo"])
def test_killed_stage_goes_on_bit_for_bit(stage: str, tiny_run: Path, tmp_path: Path) -> None:
    run = kill_in_training(stage, tiny_run, tmp_path, 2)
    done = rlhf(stage, str(TINY), EVERY_STEP, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{stage}: going on from runs/tiny/{stage}/checkpoints/step-" in done.stdout
    assert_same(run / stage, tiny_run / stage)


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=RARELY), pytest.param("reward", marks=RARELY), "ppo"])
def test_killed_stage_of_two_processes_goes_on_bit_for_bit(stage: str, tiny_run_of_two: Path, tmp_path: Path) -> None:
    two = "parallelism.processes=2"
    run = kill_in_training(stage, tiny_run_of_two, tmp_path, STEPS[stage] - 1, two)
    done = rlhf(stage, str(TINY), EVERY_STEP, two, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout
    assert_same(run / stage, tiny_run_of_two / stage)


def stopped_after(step: int, stage: str, reference: Path, folder: Path, *overrides: str) -> Path:
    run = own_copy(reference, folder, STAGES[: STAGES.index(stage)])
    done = rlhf(stage, str(TINY), *overrides, "--stop-after", str(step), folder=folder)
    assert done.returncode == 0, done.stderr
    assert f"stopped by --stop-after {step}" in done.stdout
    assert (run / stage / "checkpoints" / f"step-{step:06d}" / "checksums.json").is_file()
    return run


@pytest.mark.soak
def test_stopped_at_the_end_of_an_epoch_the_next_one_is_trained(tiny_run: Path, tmp_path: Path) -> None:
    overrides = ("sft.epochs=2", "sft.packing=false")  # 173 demonstrations, batches of 32: 6 steps an epoch
    whole = tmp_path / "whole"
    whole.mkdir()
    assert rlhf("sft", str(TINY), *overrides, folder=whole).returncode == 0
    run = stopped_after(6, "sft", tiny_run, tmp_path / "stopped", *overrides)
    assert rlhf("sft", str(TINY), *overrides, folder=tmp_path / "stopped").returncode == 0
    assert manifest(run / "sft")["results"]["steps"] == 12
    assert_same(run / "sft", whole / "runs" / "tiny" / "sft")


@pytest.mark.parametrize("stage", ["sft", pytest.param("reward", marks=RARELY), "ppo"])
def test_killed_behind_the_last_step_nothing_is_trained_again(stage: str, tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, STAGES[: STAGES.index(stage)])
    process = start(stage, str(TINY), EVERY_STEP, folder=tmp_path)
    last = run / stage / "checkpoints" / f"step-{STEPS[stage]:06d}"
    assert wait_for(last.is_dir, process)
    kill_tree(process)
    written = last.stat().st_mtime_ns
    if (run / stage / "manifest.json").exists():
        return  # it was faster than the kill
    done = rlhf(stage, str(TINY), EVERY_STEP, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{last.relative_to(tmp_path)}" in done.stdout
    assert not last.exists() or last.stat().st_mtime_ns == written
    assert_same(run / stage, tiny_run / stage)


def goes_on_bit_for_bit(stage: str, reference: Path, folder: Path, *overrides: str) -> Path:
    """A stage that was stopped after two steps against one that was not; the latter."""
    whole = own_copy(reference, folder / "whole", STAGES[: STAGES.index(stage)])
    assert rlhf(stage, str(TINY), *overrides, folder=folder / "whole").returncode == 0
    run = stopped_after(2, stage, reference, folder / "stopped", *overrides)
    assert rlhf(stage, str(TINY), *overrides, folder=folder / "stopped").returncode == 0
    assert_same(run / stage, whole / stage)
    return whole / stage


@pytest.mark.soak
def test_an_adaptive_controller_and_the_best_policy_go_on(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judged_by_chance(tmp_path, monkeypatch)
    overrides = ("ppo.kl.controller=adaptive", "ppo.kl.target=0.5", "ppo.kl.horizon=20", *judge)
    whole = goes_on_bit_for_bit("ppo", tiny_run, tmp_path, *overrides)
    coefficients = {line["objective/kl_coef"] for line in figures(whole) if "objective/kl_coef" in line}
    assert len(coefficients) == STEPS["ppo"]  # it moves, or this test would show nothing
    assert manifest(whole)["results"]["best_step"] in (1, 2)  # so that it comes from a checkpoint


@RARELY  # tests/test_stages.py trains adapters, tests/test_strategies.py stops them under PPO
def test_adapters_go_on(tiny_run: Path, tmp_path: Path) -> None:
    goes_on_bit_for_bit("sft", tiny_run, tmp_path, "model.lora.rank=4")


def test_force_starts_an_interrupted_stage_from_the_beginning(tiny_run: Path, tmp_path: Path) -> None:
    run = stopped_after(2, "ppo", tiny_run, tmp_path)
    done = rlhf("ppo", str(TINY), "--force", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on" not in done.stdout
    assert_same(run / "ppo", tiny_run / "ppo")


def test_another_recipe_does_not_go_on_from_it_and_does_not_destroy_it(tiny_run: Path, tmp_path: Path) -> None:
    run = stopped_after(2, "ppo", tiny_run, tmp_path)
    mistaken = rlhf("ppo", str(TINY), "ppo.generation.max_new_tokens=100", folder=tmp_path)
    assert mistaken.returncode == 2
    assert (run / "ppo" / "checkpoints" / "step-000002").is_dir()
    other = rlhf("ppo", str(TINY), "ppo.kl.coef=0.2", "--stop-after", "1", folder=tmp_path)
    assert other.returncode == 0, other.stderr
    assert "going on" not in other.stdout
    assert "is kept in .interrupted until this is complete" in other.stdout
    done = rlhf("ppo", str(TINY), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on from runs/tiny/ppo/checkpoints/step-000002" in done.stdout
    assert_same(run / "ppo", tiny_run / "ppo")
    assert not (run / "ppo" / ".interrupted").exists()


@pytest.mark.soak
def test_held_out_scores_while_training_change_nothing_and_keep_the_best(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluated"
    shutil.copytree(tiny_run / "sft", folder / "runs" / "tiny" / "sft")
    overrides = ("sft.evaluate_every=2", "reward.evaluate_every=2", "checkpoint.every_steps=null")
    done = rlhf("run", str(TINY), *overrides, "--until", "reward", "--force", folder=folder)
    assert done.returncode == 0, done.stderr
    for stage in ("sft", "reward"):
        mine = folder / "runs" / "tiny" / stage
        assert manifest(mine)["checksums"] == manifest(tiny_run / stage)["checksums"]
        losses = {line["step"]: line["eval/loss"] for line in figures(mine) if "eval/loss" in line}
        assert sorted(losses) == sorted({2, 4, 6, STEPS[stage]})
        best = min(losses, key=lambda step: losses[step])
        assert [path.name for path in (mine / "checkpoints").iterdir()] == [f"step-{best:06d}"]
