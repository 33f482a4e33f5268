"""Operations of a step of decoding, counted, and seconds of a batch.

    python tests/decoding.py 15M 64 128 0.04 bfloat16

Size, responses, tokens at most, chance of an end behind each, dtype: as `rlhf bench generate`. Composite operations
count as what they are made of; a step is one of the longest response.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.config import GenerationConfig
from rlhf.heap import keep_freed
from rlhf.packing import accept
from stages.bench.generating import ours
from stages.bench.load import Load, models

BATCHES = 8


class Counted(TorchDispatchMode):
    """How many of each operation there were."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        with self:
            parts = function.decompose(*given, **(named or {}))
        if parts is not NotImplemented:
            return parts
        self.counts[str(function)] += 1
        return function(*given, **(named or {}))


@torch.no_grad()
def main(size: str, batch: str, length: str, ends: str, dtype: str) -> None:
    """Print both."""
    keep_freed()
    torch.set_num_threads(2)
    load = Load(size=size, batch=int(batch), response_length=int(length), eos_bias=float(ends))
    policy = models(load).policy.eval()
    accept(policy)
    config = GenerationConfig(max_new_tokens=load.response_length)
    sample = ours(policy, load, config, dtype == "bfloat16", torch.device("cpu"))
    times = []
    for number in range(BATCHES):
        started = time.perf_counter()
        sample(number)
        times.append(time.perf_counter() - started)
    print(f"a batch: {statistics.median(times[2:]):.3f} s, the median of {BATCHES - 2} behind two that warm up")
    with Counted() as seen:
        sample(BATCHES)
    steps = max(load.lengths())
    print(f"a step: {seen.counts.total() / steps:.0f} operations")
    for name, count in seen.counts.most_common(25):
        print(f"{count / steps:8.2f}  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
