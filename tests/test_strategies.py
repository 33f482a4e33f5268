"""PPO under each way to share models out over real processes: the figures of replicated training, resume, one model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import made_once
from interruption import EVERY_STEP, assert_same, figures, manifest, own_copy
from running import TINY, rlhf
from safetensors.torch import load_file

pytestmark = pytest.mark.services
STEPS = 10
FSDP = "ppo.parallelism={strategy: fsdp, processes: 2}"
STRATEGIES = {
    "fsdp": (FSDP,),
    "fsdp, replicas that sample": (FSDP, "ppo.generation.weights=replica"),
    "fsdp, offloaded": ("ppo.parallelism={strategy: fsdp, processes: 2, cpu_offload: true}",),
    "fsdp over pairs of four": ("ppo.parallelism={strategy: fsdp, processes: 4, shard_over: 2}",),
    "fsdp, one process": ("ppo.parallelism={strategy: fsdp, processes: 1}",),
    "fsdp, recomputing": (FSDP, "model.activation_checkpointing=true"),
}
LORA = "model.lora={rank: 4, alpha: 8.0}"


def ppo(reference: Path, folder: Path, *overrides: str) -> Path:
    """A PPO run of its own; its directory."""
    run = own_copy(reference, folder, ["sft", "reward"])
    # Four rows of a minibatch on each of four processes, one or two in a micro-batch: gradients of several are summed.
    work = (f"ppo.steps={STEPS}", "ppo.prompts_per_step=16", "ppo.minibatches=1", "ppo.micro_batch_tokens=100")
    done = rlhf("ppo", str(TINY), "ppo.evaluate_every=0", *work, *overrides, folder=folder, seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return run / "ppo"


@pytest.fixture(scope="module")
def adapted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of the tiny recipe with adapters."""
    return made_once(tmp_path_factory, "tiny-adapted", LORA)


@pytest.fixture(scope="module")
def replicated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PPO of one process, all weights learning."""
    return ppo(tiny_run, tmp_path_factory.mktemp("replicated"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_figures_and_weights_are_those_of_one_process(
    name: str, replicated: Path, tiny_run: Path, tmp_path: Path
) -> None:
    compare(ppo(tiny_run, tmp_path, *STRATEGIES[name]), replicated)


def test_adapters_learn_the_same_where_all_is_shared_out(adapted_run: Path, tmp_path: Path) -> None:
    alone = ppo(adapted_run, tmp_path / "alone", LORA)
    for name in ("fsdp", "fsdp over pairs of four"):
        compare(ppo(adapted_run, tmp_path / name.replace(" ", "-"), LORA, *STRATEGIES[name]), alone)


def compare(own: Path, replicated: Path) -> None:
    """What a strategy made against what one process made."""
    engines = manifest(own)["engine"]
    assert engines.keys() == {"policy", "value"} and all(each.startswith("FSDP") for each in engines.values())
    wanted, found = figures(replicated), figures(own)
    assert len(found) == len(wanted) == STEPS
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert math.isclose(ours[key], value, rel_tol=1e-5, abs_tol=1e-5), (theirs["step"], key)
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (own / file).exists() == (replicated / file).exists()
        if (own / file).exists():
            ours, theirs = load_file(own / file), load_file(replicated / file)
            assert ours.keys() == theirs.keys()
            assert max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) < 1e-4  # ten steps of Adam


def stopped(reference: Path, folder: Path, *overrides: str) -> Path:
    """A run that was stopped after two of the tiny recipe's three steps."""
    run = own_copy(reference, folder, ["sft", "reward"])
    done = rlhf("ppo", str(TINY), EVERY_STEP, *overrides, "--stop-after", "2", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return run / "ppo"


def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(tiny_run: Path, tmp_path: Path) -> None:
    whole = own_copy(tiny_run, tmp_path / "whole", ["sft", "reward"]) / "ppo"
    assert rlhf("ppo", str(TINY), EVERY_STEP, FSDP, folder=tmp_path / "whole").returncode == 0
    own = stopped(tiny_run, tmp_path / "stopped", FSDP)
    done = rlhf("ppo", str(TINY), EVERY_STEP, FSDP, folder=tmp_path / "stopped")
    assert done.returncode == 0 and "going on from" in done.stdout, done.stderr
    assert_same(own, whole)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{strategy: ddp, processes: 1}", "{strategy: fsdp, processes: 2}"),
        ("{strategy: fsdp, processes: 2}", "{strategy: fsdp, processes: 4, shard_over: 2}"),
        ("{strategy: fsdp, processes: 2}", "{strategy: ddp, processes: 1}"),
        ("{strategy: ddp, processes: 2}", "{strategy: fsdp, processes: 2}"),
    ],
)
def test_another_strategy_goes_on_to_rounding(before: str, after: str, tiny_run: Path, tmp_path: Path) -> None:
    own = stopped(tiny_run, tmp_path, f"ppo.parallelism={before}")
    done = rlhf("ppo", str(TINY), EVERY_STEP, f"ppo.parallelism={after}", folder=tmp_path)
    assert done.returncode == 0 and "it goes on to rounding, not bit for bit" in done.stdout, done.stderr
    for ours, theirs in zip(figures(own), figures(tiny_run / "ppo"), strict=True):
        for key, value in theirs.items():
            assert math.isclose(ours[key], value, rel_tol=1e-4, abs_tol=1e-4), (theirs["step"], key)


def test_one_held_out_prompt_for_two_processes_and_the_best_from_a_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    """A process without a prompt makes the other's calls; a best policy other than the last comes from shares."""
    settings = ("ppo.evaluate_every=1", "ppo.held_out.prompts=1", "ppo.steps=4", "ppo.rewards=[{use: 'data.toy:gold'}]")
    found = {}
    for name, parallelism in (("alone", "{strategy: ddp, processes: 1}"), ("shared", "{strategy: fsdp, processes: 2}")):
        run = own_copy(tiny_run, tmp_path / name, ["sft", "reward"])
        own = (*settings, f"ppo.parallelism={parallelism}", "ppo.held_out.judge=runs/tiny/reward/model")
        done = rlhf("ppo", str(TINY), *own, folder=tmp_path / name, seconds=600)
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = run / "ppo"
    alone, shared = (manifest(stage)["results"] for stage in found.values())
    assert alone["best_step"] == shared["best_step"] != 4
    assert alone["best_score"] == pytest.approx(shared["best_score"], abs=1e-4)
    ours, theirs = (load_file(stage / "best" / "model.safetensors") for stage in found.values())
    assert max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) < 1e-4
