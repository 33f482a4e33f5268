"""Memory of a process that computes on a CPU: what is freed stays at hand, as on GPUs.

glibc gives large blocks back to the system when they are freed, and a step frees and takes hundreds of them: gigabytes
whose pages are cleared anew each time. Its own rule for when to stop that ends at blocks of 32 MB.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST = 2**31 - 1  # bytes, as mallopt takes an int
OLDER = 2**25  # bytes that older versions take at most
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed() -> bool:
    """Have the heap keep what is freed, until this process ends; whether it does.

    Not where the C library is another one, nor where the environment says how its heap is to be.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        return False
    heap = ctypes.CDLL(None)
    # Both, for either ends its own rule: blocks of 128 KB and more would go back to the system for good.
    taken = heap.mallopt(MMAP_THRESHOLD, LARGEST) or heap.mallopt(MMAP_THRESHOLD, OLDER)
    return bool(taken and heap.mallopt(TRIM_THRESHOLD, LARGEST))
