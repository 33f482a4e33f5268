"""Operations of an update: which take the time, and in which the heap grows.

    python tests/operations.py 60M 32 64 0.06 bfloat16

Size, responses, tokens at most, chance of an end behind each, dtype, updates: as `rlhf bench ppo`. The heap in MiB, by
glibc; seconds inside torch, without the Python around, of the last update.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.heap import keep_freed
from stages.bench import ours
from stages.bench.load import Load, models
from stages.bench.turns import Turns, peak_memory
from stages.command import quiet_libraries

FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
MIB = 2**20


class Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


class Operations(TorchDispatchMode):
    """Seconds of each, and how much the heap grew in it; the most that is in use behind any."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = ctypes.CDLL("libc.so.6").mallinfo2
        self.ask.restype = Heap
        self.most, self.whole = 0, self.ask().arena
        self.grown: Counter[str] = Counter()  # bytes
        self.seconds: dict[str, float] = {}

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        started, name = time.perf_counter(), str(function)
        found = function(*given, **(named or {}))
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        heap = self.ask()
        self.most = max(self.most, heap.uordblks)
        if heap.arena > self.whole:
            self.grown[name] += heap.arena - self.whole
            self.whole = heap.arena
        return found


def main(size: str, batch: str, length: str, ends: str, dtype: str, updates: str = "4") -> None:
    """Print it, update by update."""
    quiet_libraries()
    keep_freed()
    torch.set_num_threads(2)
    seen = Operations()
    print(f"libraries: {seen.ask().uordblks / MIB:,.0f} in use", file=sys.stderr)  # what is measured has taken stdout
    load = Load(size=size, batch=int(batch), response_length=int(length), eos_bias=float(ends))
    step = ours.prepare(load, models(load), dtype, Turns())
    seen.whole = seen.ask().arena
    for number in range(1, int(updates) + 1):
        seen.grown.clear()
        seen.seconds.clear()
        with seen:
            step(number)
        grown = ", ".join(f"{name} {bytes_ / MIB:,.0f}" for name, bytes_ in seen.grown.items() if bytes_ > MIB)
        print(
            f"update {number}: at most {seen.most / MIB:,.0f} in use of {seen.whole / MIB:,.0f};"
            f" the process {peak_memory() / MIB:,.0f}; grew in {grown or 'nothing'}",
            file=sys.stderr,
        )
    for name, seconds in sorted(seen.seconds.items(), key=lambda each: -each[1])[:25]:
        print(f"{seconds:8.3f} s  {name}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
