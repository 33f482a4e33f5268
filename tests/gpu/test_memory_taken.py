"""`pytest -m gpu`: the arithmetic of memory beside `torch.cuda.max_memory_allocated`, on one GPU, in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from measurements import Case, measured, peak, write_start

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

HALF_BILLION = {  # Qwen2.5-0.5B's shape
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
CASES = [Case(stage, "ddp", rank) for stage in ("sft", "reward", "ppo") for rank in (None, 16)]


def test_it_is_what_one_gpu_takes(tmp_path: Path) -> None:
    assert torch.cuda.device_count(), "pytest -m gpu needs a GPU"
    recipe = write_start(tmp_path, HALF_BILLION, 151_936, dtype="bfloat16")
    found = measured(CASES, recipe, 1, ["gpu"])
    apart = {}
    for case in CASES:
        computed = case.computed(recipe, 1)
        taken = peak(computed, found[case]["gpu"])
        apart[case.name] = computed.total / taken - 1
        print(f"{case.name}: computed {computed.total / 2**30:.2f} GiB, taken {taken / 2**30:.2f} GiB")
    assert all(abs(share) < 0.1 for share in apart.values()), apart
