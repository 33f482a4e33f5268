"""A gigabyte of demonstrations is split, shuffled and read in bounded memory: `make soak ARGS="-k large -s"`.

Memory is counted as what belongs to the process alone (RssAnon): pages of the mapped file are the kernel's, which takes
them back when it needs them. Both figures are printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
BYTES = int(float(os.environ.get("RLHF_SOAK_GIGABYTES", "1")) * 1e9)
PRIVATE_MEGABYTES = 500

CHILD = """
import json, resource, sys, threading, time
from pathlib import Path
import numpy as np
from data import sources
from data.splits import is_test
from rlhf.config import DataConfig, SourceConfig

peak = {"private": 0, "threads": 1}
def private():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
def watch():
    while True:
        peak["private"] = max(peak["private"], private())
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()

folder = Path(sys.argv[1])
config = DataConfig(directory=str(folder), demonstrations=[SourceConfig(path="large.jsonl")])
seconds, started = {}, time.monotonic()
def lap(name):
    global started
    seconds[name], started = round(time.monotonic() - started, 1), time.monotonic()

before = private()
sources.read(config, "demonstrations", 0)
lap("check")
split = sources.demonstrations(config, 0, folder / "scratch")
lap("write and split")
order = np.random.RandomState(0).permutation(len(split.train))
lap("shuffle")
seen = np.zeros(len(split.train) + len(split.test), bool)
characters = 0
for part, held in ((split.train.at(order), False), (split.test, True)):
    for demonstration in part:
        number = int(demonstration.prompt.text.split()[1])
        assert not seen[number]
        seen[number] = True
        characters += len(demonstration.completion)
        if number % 1000 == 0:
            assert is_test(demonstration.prompt, config.test_fraction) == held
lap("read in order")
assert seen.all()
print(json.dumps({
    "examples": len(seen),
    "held_out": len(split.test) / len(seen),
    "characters": characters,
    "seconds": seconds,
    "private_before": round(before),
    "private_peak": round(peak["private"]),
    "resident_peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
}))
"""


def write_large(path: Path) -> tuple[int, int]:
    """About BYTES of records that differ; how many, and the characters of their completions."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "wizards", "brew", "grüne", ""]
    text = " ".join(words[i * i % len(words)] for i in range(100))
    completion = json.dumps(text, ensure_ascii=False)
    count = written = 0
    with path.open("w", encoding="utf-8", buffering=2**20) as file:
        while written < BYTES:
            line = (
                f'{{"prompt": "question {count} of many: {words[count % len(words)]}?", "completion": {completion}}}\n'
            )
            written += len(line.encode())
            file.write(line)
            count += 1
    return count, count * len(text)


def test_a_gigabyte_needs_little_memory(tmp_path: Path) -> None:
    count, characters = write_large(tmp_path / "large.jsonl")
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print(f"\n{BYTES / 1e9:g} GB: {json.dumps(figures)}")
    assert (figures["examples"], figures["characters"]) == (count, characters)
    assert 0.095 < figures["held_out"] < 0.105
    assert figures["private_peak"] < PRIVATE_MEGABYTES
