"""Memory of a process that computes on a CPU: what is freed stays at hand, as on GPUs.

glibc gives large blocks back to the system when they are freed, and a step frees and takes hundreds of them: gigabytes
whose pages are cleared anew each time.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed() -> bool:
    """Have glibc's heap keep what is freed, until this process ends; whether it was told to.

    Not where the C library is another one, nor where the environment says how its heap is to be: any `MALLOC_...`
    variable, or `glibc.malloc` in GLIBC_TUNABLES. It is the main thread's heap, in which tensors are made.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    heap = ctypes.CDLL(None)
    # No block is a mapping of its own, which would go when it is freed; nor is the heap cut where its end is free.
    return bool(heap.mallopt(MMAP_MAX, 0) and heap.mallopt(TRIM_THRESHOLD, -1))
