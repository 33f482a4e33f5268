"""The arithmetic of memory beside what stages take, strategy by strategy: `make soak ARGS="-k memory -s"`.

Two real processes over gloo on the CPU, in float32. Tensors within 5 %, resident memory within 25 %.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from measurements import adopted, arithmetic, measured, overrides_of, peak, write_start

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

BUCKET = 2_000_000  # entries of DeepSpeed's buffers, whose own size would drown so small a model
CASES = [
    *((stage, "ddp", rank) for stage in ("sft", "reward", "ppo") for rank in (None, 16)),
    *(("ppo", strategy, rank) for strategy in ("zero2", "zero3", "fsdp") for rank in (None, 16)),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe over models and records of known sizes, and a run for PPO to start from."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "deepspeed.json").write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": BUCKET}}))
    made = write_start(folder)
    adopted(made)
    print("\n| stage | strategy | learns | computed | tensors | | resident | |\n|---|---|---|---|---|---|---|---|")
    return made


@pytest.mark.parametrize(("stage", "strategy", "rank"), CASES)
def test_it_is_what_two_processes_take(
    stage: str, strategy: str, rank: int | None, recipe: Path, tmp_path: Path
) -> None:
    overrides = overrides_of(stage, strategy, 2, rank, recipe)
    computed = arithmetic(stage, recipe, overrides, 2)
    found = {
        kind: peak(computed, measured(kind, stage, recipe, overrides, tmp_path / kind, 2))
        for kind in ("tensors", "resident")
    }
    apart = {kind: computed.total / size - 1 for kind, size in found.items()}
    cells = [f"{found[kind] / 1e6:.0f} MB | {share:+.1%}" for kind, share in apart.items()]
    learns = "all" if rank is None else f"adapters of {rank}"
    print(f"| {stage} | {strategy} | {learns} | {computed.total / 1e6:.0f} MB | {' | '.join(cells)} |")
    assert abs(apart["tensors"]) < 0.05
    assert abs(apart["resident"]) < 0.25
