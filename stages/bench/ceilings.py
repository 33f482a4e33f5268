"""What the machine can do at most: products of large matrices, and copies of large tensors.

python -m stages.bench.ceilings [float32 | bfloat16] [cpu | cuda] THREADS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from rlhf.products import linear

SIDE = 2048  # of the matrices, 8192 on a GPU
COPIED = 2**28  # bytes, eight times as many on a GPU
SECONDS = 0.5  # that each is measured for


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Products of square matrices, in 1e9 floating point operations a second; the best of several, by either library.

    On a CPU they are torch's own (MKL's in float32, on x86), or oneDNN's, which training here takes.
    """
    side = SIDE if device.type == "cpu" else 4 * SIDE
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    result = torch.empty(side, side, device=device, dtype=dtype)
    ways = [lambda: torch.mm(one, other, out=result), lambda: linear(one, other)]
    with torch.no_grad():
        return 2 * side**3 / min(_best(way, device) for way in ways) / 1e9


def copy_rate(device: torch.device) -> float:
    """Copies within the device's memory, in 1e9 bytes a second, read and written both counted."""
    copied = COPIED if device.type == "cpu" else 8 * COPIED
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    return 2 * copied / _best(lambda: target.copy_(source), device) / 1e9


def _best(work: Callable[[], object], device: torch.device) -> float:
    best, ends = float("inf"), time.perf_counter() + SECONDS
    for turn in range(100):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - started)
        if turn >= 2 and time.perf_counter() > ends:
            break
    return best


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    place = torch.device(sys.argv[2])
    rates = {"ceiling_gflops": matrix_rate(getattr(torch, sys.argv[1]), place), "copy_gigabytes": copy_rate(place)}
    print(json.dumps(rates))
