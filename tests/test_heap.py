"""Memory that is freed and taken again is the same memory; counted by the pages that the system had to give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

COUNTED = """
import resource, torch
from rlhf.heap import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mib in (1, 40, 3, 90) * 5:  # freed before the next is taken
        torch.ones(mib * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before, kept = faults(), keep_freed()
faults()
print(kept, before, faults())
"""


def counted(**environment: str) -> tuple[bool, int, int]:
    """Whether the heap says that it keeps what is freed, and faults of pages before and after."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", COUNTED],
        env=inherited | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.split()
    return found[0] == "True", int(found[1]), int(found[2])


@pytest.mark.skipif(not Path("/lib64/ld-linux-x86-64.so.2").exists(), reason="another C library")
def test_pages_are_taken_once() -> None:
    kept, before, after = counted()
    assert kept and before > 10_000
    assert after < before / 100


def test_who_set_up_the_heap_keeps_it() -> None:
    kept, before, after = counted(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    assert not kept and after > before / 2 > 5_000
