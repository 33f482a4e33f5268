"""What tensors take in this process's memory, by the events of torch's allocator: kernels' workspaces among them."""

from __future__ import annotations

import ctypes
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

M_MMAP_THRESHOLD, LARGE = -3, 2**17  # of glibc's malloc.h; bytes


class Allocated:
    """Peaks between marks, of a process that records from before it has made its first tensor."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, str]] = [(0, "loading")]
        # Large blocks get a mapping each, which goes when they are freed, by whichever thread.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
        self.mapped: list[tuple[int, int]] = []  # behind the first mark
        self.recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.recorded.start()

    def mark(self, name: str) -> None:
        """What happens from now on, until the next mark."""
        if not self.mapped:
            lines = Path("/proc/self/maps").read_text().splitlines()
            ranges = (line.split(maxsplit=1)[0].split("-") for line in lines)
            self.mapped = [(int(begin, 16), int(end, 16)) for begin, end in ranges]
        self.marks.append((time.time_ns(), name))

    def peaks(self) -> dict[str, int]:
        """End the record; the most bytes that were held at a time, by mark."""
        self.recorded.stop()
        events = sorted(_events(self.recorded.profiler.kineto_results.experimental_event_tree()))  # type: ignore[union-attr]
        begun = [moment for moment, _ in self.marks]
        held: dict[int, int] = {}
        places: list[int] = []  # of `held`, ascending
        now, most = 0, dict.fromkeys((name for _, name in self.marks), 0)
        loading = True
        for moment, address, size in events:
            if loading and len(begun) > 1 and moment >= begun[1]:
                loading = False
                gone = [place for place in places if held[place] >= LARGE and not self._is_mapped(place)]
                now -= sum(held.pop(place) for place in gone)
                places = sorted(held)
            # What another thread has freed is not told: whatever lies where something is put is gone.
            first = bisect_right(places, address - 1)
            if first and places[first - 1] + held[places[first - 1]] > address:
                first -= 1
            last = bisect_right(places, address + max(size, 1) - 1)
            now -= sum(held.pop(place) for place in places[first:last])
            del places[first:last]
            if size > 0:
                held[address] = size
                places.insert(first, address)
                now += size
            name = self.marks[bisect_right(begun, moment) - 1][1]
            most[name] = max(most[name], now)
        return most

    def _is_mapped(self, address: int) -> bool:
        found = bisect_right(self.mapped, (address, 2**63)) - 1
        return found >= 0 and address < self.mapped[found][1]


def _events(tree: Any) -> Iterator[tuple[int, int, int]]:
    """Nanoseconds, address and bytes of each allocation, negative where it ends."""
    waiting = list(tree)
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag.name == "Allocation":
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
