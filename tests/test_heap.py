"""Memory that is freed and taken again is the same memory; counted by the pages that the system had to give."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.running import ROOT

COUNTED = """
import ctypes, resource, torch
from rlhf.heap import keep_freed

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: of 2 MiB, pages would be too few to tell

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mib in (1, 40, 3, 90) * 5:  # freed before the next is taken
        torch.ones(mib * 2**18)
    several = [torch.ones(100 * 2**18) for _ in range(22)]  # more than 2 GiB at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before, kept = faults(), keep_freed()
for _ in range(3):
    faults()
print(kept, before, faults())
"""
# Not by what `keep_freed` asks: these tests would be skipped where that went wrong.
GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
pytestmark = pytest.mark.skipif(not GLIBC, reason="it is glibc's heap")


def counted(**environment: str) -> tuple[bool, int, int]:
    """Whether the heap was told to keep what is freed; faults of pages before and after."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", COUNTED],
        env=inherited | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    ).stdout.split()
    return found[0] == "True", int(found[1]), int(found[2])


@pytest.mark.parametrize("other", [{}, {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}], ids=["as it is", "of threads"])
def test_pages_are_taken_once(other: dict[str, str]) -> None:
    kept, before, after = counted(**other)
    assert kept and before > 100_000
    assert after < before / 100


@pytest.mark.parametrize(
    "own", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}], ids=str
)
def test_who_set_up_the_heap_has_it_so(own: dict[str, str]) -> None:
    kept, before, after = counted(**own)
    assert not kept and after > before / 2 > 50_000
