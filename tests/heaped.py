"""What the heap of an update's process holds, and where it grows: `python tests/heaped.py 60M 32 64 0.06 bfloat16`.

Size, responses, tokens at most, chance of an end behind each, dtype, updates: as `rlhf bench ppo`. MiB, by glibc.
"""

from __future__ import annotations

import ctypes
import sys
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


class Growth(TorchDispatchMode):
    """The most that is in use behind any operation, and which operations the heap grew in, by how much."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = ctypes.CDLL("libc.so.6").mallinfo2
        self.ask.restype = Heap
        self.most, self.whole = 0, self.ask().arena
        self.by: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        heap = self.ask()
        self.most = max(self.most, heap.uordblks)
        if heap.arena > self.whole:
            self.by[str(function)] = self.by.get(str(function), 0) + heap.arena - self.whole
            self.whole = heap.arena
        return found


def main(size: str, batch: str, length: str, ends: str, dtype: str, updates: str = "4") -> None:
    """Print it, update by update."""
    quiet_libraries()
    keep_freed()
    torch.set_num_threads(2)
    growth = Growth()
    print(f"libraries: {growth.ask().uordblks / MIB:,.0f} in use", file=sys.stderr)  # what is measured has taken stdout
    load = Load(size=size, batch=int(batch), response_length=int(length), eos_bias=float(ends))
    step = ours.prepare(load, models(load), dtype, Turns())
    growth.whole = growth.ask().arena
    for number in range(1, int(updates) + 1):
        growth.by.clear()
        with growth:
            step(number)
        grown = ", ".join(f"{name} {bytes_ / MIB:,.0f}" for name, bytes_ in growth.by.items() if bytes_ > MIB)
        print(
            f"update {number}: at most {growth.most / MIB:,.0f} in use of {growth.whole / MIB:,.0f};"
            f" the process {peak_memory() / MIB:,.0f}; grew in {grown or 'nothing'}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
