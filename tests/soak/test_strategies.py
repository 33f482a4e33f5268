"""Each strategy on two and on four processes, full and with adapters: `make soak ARGS="-k strategies"`.

Ten steps within 1e-5 of one process; stopped in the middle and resumed, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import made_once
from interruption import EVERY_STEP, assert_same, own_copy
from running import TINY, rlhf
from strategies import LORA, compare, goes_on_to_rounding, ppo, shared, stopped

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

WRAPPERS = {"ddp": "DistributedDataParallel", "fsdp": "FSDP"}
STRATEGIES: dict[str, tuple[str, dict[str, object]]] = {
    "ddp": ("ddp", {}),
    "fsdp": ("fsdp", {}),
    "fsdp, offloaded": ("fsdp", {"cpu_offload": "true"}),
    "zero1": ("zero1", {}),
    "zero2": ("zero2", {}),
    "zero2, offloaded": ("zero2", {"cpu_offload": "true"}),
    "zero3": ("zero3", {}),
    "zero3, offloaded": ("zero3", {"cpu_offload": "true"}),
}


@pytest.fixture(scope="module", params=[(), (LORA,)], ids=["full", "adapters"])
def alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, tuple[str, ...]]:
    """A run whose SFT and reward model serve all; PPO of one process on it; and their overrides."""
    name = "tiny-adapted" if request.param else "tiny"
    run = made_once(tmp_path_factory, name, *request.param)
    return run, ppo(run, tmp_path_factory.mktemp("alone"), *request.param), request.param


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_ten_steps(name: str, processes: int, alone: tuple[Path, Path, tuple[str, ...]], tmp_path: Path) -> None:
    run, replicated, overrides = alone
    strategy, settings = STRATEGIES[name]
    own = ppo(run, tmp_path, shared(strategy, processes, **settings), *overrides)
    compare(own, replicated, WRAPPERS.get(strategy, "DeepSpeedEngine"))


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_replicas_that_sample_and_recomputing(
    strategy: str, alone: tuple[Path, Path, tuple[str, ...]], tmp_path: Path
) -> None:
    run, replicated, overrides = alone
    how = ("ppo.generation.weights=replica", "model.activation_checkpointing=true")
    own = ppo(run, tmp_path, shared(strategy), *how, *overrides)
    compare(own, replicated, WRAPPERS.get(strategy, "DeepSpeedEngine"))


@pytest.mark.parametrize(
    ("before", "after"),
    [(shared("fsdp"), shared("fsdp", 4, shard_over=2)), (shared("fsdp"), shared("ddp", 1))],
)
def test_another_number_of_processes(before: str, after: str, tiny_run: Path, tmp_path: Path) -> None:
    goes_on_to_rounding(before, after, tiny_run, tmp_path)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero2", "zero3"])
def test_resumed(strategy: str, processes: int, tiny_run: Path, tmp_path: Path) -> None:
    chosen = shared(strategy, processes)
    whole = own_copy(tiny_run, tmp_path / "whole", ["sft", "reward"]) / "ppo"
    assert rlhf("ppo", str(TINY), EVERY_STEP, chosen, folder=tmp_path / "whole").returncode == 0
    own = stopped(tiny_run, tmp_path / "stopped", chosen)
    done = rlhf("ppo", str(TINY), EVERY_STEP, chosen, folder=tmp_path / "stopped")
    assert done.returncode == 0 and "going on from" in done.stdout, done.stderr
    assert_same(own, whole)
