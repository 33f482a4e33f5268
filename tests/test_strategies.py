"""PPO under each way to share models out over real processes: the figures of replicated training, resume, one model.

The whole matrix, on two and on four processes, is tests/soak/test_strategies.py; what is marked here is part of it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import made_once
from interruption import EVERY_STEP, assert_same, figures, lines_of, manifest, own_copy, ranks, start, wait_for
from running import TINY, rlhf
from strategies import LORA, apart, compare, goes_on_to_rounding, ppo, shared, stopped

pytestmark = pytest.mark.services
FSDP, ZERO = "FSDP", "DeepSpeedEngine"
# Drops what an early end of a step leaves, and passes over steps in which the policy does not learn.
EARLY = ("ppo.target_kl=1e-4", "ppo.value_warmup_steps=2")
FOUR = (FSDP, shared("fsdp", 4, shard_over=2))
REPLICA = (ZERO, shared("zero3"), "ppo.generation.weights=replica", "model.activation_checkpointing=true")


@pytest.fixture(scope="module")
def adapted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of the tiny recipe with adapters."""
    return made_once(tmp_path_factory, "tiny-adapted", LORA)


@pytest.fixture(scope="module")
def replicated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PPO of one process, all weights learning."""
    return ppo(tiny_run, tmp_path_factory.mktemp("replicated"))


@pytest.mark.parametrize(
    "chosen",
    [pytest.param(FOUR, marks=pytest.mark.soak), REPLICA],
    ids=["fsdp over pairs of four", "zero3, replicas that sample, recomputing"],
)
def test_figures_and_weights_are_those_of_one_process(
    chosen: tuple[str, ...], replicated: Path, tiny_run: Path, tmp_path: Path
) -> None:
    wrapper, *overrides = chosen
    compare(ppo(tiny_run, tmp_path, *overrides), replicated, wrapper)


@pytest.mark.soak
def test_steps_that_end_early_or_do_not_train_the_policy(tiny_run: Path, tmp_path: Path) -> None:
    alone = ppo(tiny_run, tmp_path / "alone", *EARLY)
    updates = [line["policy/updates"] for line in figures(alone)]
    assert min(updates) < 2 and figures(alone)[0]["policy/grad_norm"] == 0  # or this would show nothing
    compare(ppo(tiny_run, tmp_path / "zero2", shared("zero2"), *EARLY), alone, ZERO)


@pytest.mark.soak
def test_adapters_learn_the_same_where_all_is_shared_out(adapted_run: Path, tmp_path: Path) -> None:
    alone = ppo(adapted_run, tmp_path / "alone", LORA)
    compare(ppo(adapted_run, tmp_path / "zero3", LORA, shared("zero3")), alone, ZERO)


@pytest.mark.soak
@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param((shared("zero2"), LORA), marks=pytest.mark.soak),
        (shared("zero3", cpu_offload="true"), "ppo.value_start=trunk"),
    ],
    ids=["zero2-adapters", "zero3-offloaded-trunk"],
)
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(
    chosen: tuple[str, ...], tiny_run: Path, adapted_run: Path, tmp_path: Path
) -> None:
    run = adapted_run if LORA in chosen else tiny_run
    whole = own_copy(run, tmp_path / "whole", ["sft", "reward"]) / "ppo"
    assert rlhf("ppo", str(TINY), EVERY_STEP, *chosen, folder=tmp_path / "whole").returncode == 0
    own = stopped(run, tmp_path / "stopped", *chosen)
    done = rlhf("ppo", str(TINY), EVERY_STEP, *chosen, folder=tmp_path / "stopped")
    assert done.returncode == 0 and "going on from" in done.stdout, done.stderr
    assert_same(own, whole)


@pytest.mark.parametrize("strategy", ["zero3"])
def test_one_killed_process_ends_the_others_and_the_run_goes_on(strategy: str, tiny_run: Path, tmp_path: Path) -> None:
    overrides = ("ppo.steps=6", EVERY_STEP, shared(strategy))
    whole = own_copy(tiny_run, tmp_path / "whole", ["sft", "reward"]) / "ppo"
    assert rlhf("ppo", str(TINY), *overrides, folder=tmp_path / "whole").returncode == 0
    own = own_copy(tiny_run, tmp_path / "killed", ["sft", "reward"]) / "ppo"
    process = start("ppo", str(TINY), *overrides, folder=tmp_path / "killed")
    assert wait_for(lambda: lines_of(own / "metrics.jsonl") >= 3, process)
    max(ranks(process, "ppo"), key=lambda rank: rank.pid).send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not (own / "manifest.json").exists()
    done = rlhf("ppo", str(TINY), *overrides, folder=tmp_path / "killed")
    assert done.returncode == 0 and "going on from" in done.stdout, done.stderr
    assert_same(own, whole)


@pytest.mark.soak
def test_another_strategy_goes_on_to_rounding(tiny_run: Path, tmp_path: Path) -> None:
    goes_on_to_rounding(shared("ddp", 1), shared("fsdp"), tiny_run, tmp_path)


@pytest.mark.soak
def test_deepspeed_refuses_another_number_of_processes_and_loses_nothing(tiny_run: Path, tmp_path: Path) -> None:
    own = stopped(tiny_run, tmp_path, shared("zero3"))
    for other in (shared("zero3", 1), shared("ddp", 1)):
        refused = rlhf("ppo", str(TINY), EVERY_STEP, other, folder=tmp_path)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr
        assert "use ppo.parallelism={strategy: zero3, processes: 2}, or --force" in refused.stderr
    done = rlhf("ppo", str(TINY), EVERY_STEP, shared("zero3"), folder=tmp_path)
    assert done.returncode == 0 and "going on from" in done.stdout and (own / "manifest.json").exists(), done.stderr


@pytest.mark.soak
def test_one_held_out_prompt_for_two_processes_and_the_best_from_a_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    """A process without a prompt makes the other's calls; a best policy other than the last comes from shares."""
    settings = ("ppo.evaluate_every=1", "ppo.held_out.prompts=1", "ppo.steps=4", "ppo.rewards=[{use: 'data.toy:gold'}]")
    settings += ("ppo.held_out.judge=runs/tiny/reward/model", "ppo.value_start=trunk")
    found = {}
    for name, parallelism in (("alone", shared("ddp", 1)), ("fsdp", shared("fsdp")), ("zero3", shared("zero3"))):
        run = own_copy(tiny_run, tmp_path / name, ["sft", "reward"])
        done = rlhf("ppo", str(TINY), *settings, parallelism, folder=tmp_path / name, seconds=600)
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = run / "ppo"
    alone = found.pop("alone")
    wanted = manifest(alone)["results"]
    for own in found.values():
        results = manifest(own)["results"]
        assert results["best_step"] == wanted["best_step"] != 4
        assert results["best_score"] == pytest.approx(wanted["best_score"], abs=1e-4)
        assert apart(own / "best" / "model.safetensors", alone / "best" / "model.safetensors") < 1e-4


def test_the_deepspeed_command_and_a_file_of_its_settings(tiny_run: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    own = {"train_batch_size": "auto", "zero_optimization": {"stage": "auto", "reduce_bucket_size": 1000}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--module", "stages.ppo"]
    command += ["--recipe", str(TINY), "--run-dir", "runs/tiny"]
    command += ["ppo.parallelism={strategy: zero2, deepspeed: own.json}"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}  # which the command asks before any stage could say it
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert manifest(run / "ppo")["engine"] == {"policy": ZERO, "value": ZERO}
    assert manifest(run / "ppo")["processes"] == 2
    for ours, theirs in zip(figures(run / "ppo"), figures(tiny_run / "ppo"), strict=True):
        for key, value in theirs.items():
            assert math.isclose(ours[key], value, rel_tol=1e-4, abs_tol=1e-4), (theirs["step"], key)
