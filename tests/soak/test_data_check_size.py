"""A hundred thousand comparisons are checked in bounded memory: `make soak ARGS="-k data_check -s"`; both are printed.

They are dialogues of Anthropic's harmless-base of which every second word is exchanged for another. Memory is what
belongs to the process alone (RssAnon), over that of the loaded libraries.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from published import DATA, require_data

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
COMPARISONS, MOST_MEGABYTES = 100_000, 150
WORD = re.compile(r"(?<![A-Za-z])([a-z]+)")  # not of "Human:" and "Assistant:"

CHILD = """
import json, sys, threading, time
from data.quality.check import check_votes
from data.quality.votes import votes_of_files
from rlhf.config import CheckConfig, DataConfig, SourceConfig

def private():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024

peak = before = private()
def watch():
    global peak
    while True:
        peak = max(peak, private())
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
votes = votes_of_files([sys.argv[1]], SourceConfig(path="given", bad_records="drop"), DataConfig())
started = time.process_time()
summary = check_votes(votes, CheckConfig()).verdict.summary
seconds = time.process_time() - started
print(json.dumps({"seconds": seconds, "megabytes": peak - before, "comparisons": summary["comparisons"]}))
"""


def write_comparisons(path: Path) -> None:
    """Of the published pairs, as often as it takes; a word is exchanged for the same one in both texts."""
    with gzip.open(DATA / "pairs" / "hh_harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    pieces = [{name: WORD.split(record[name]) for name in ("chosen", "rejected")} for record in records]
    words = sorted({word for record in pieces for word in record["chosen"][1::2] + record["rejected"][1::2]})
    numbers = {word: number for number, word in enumerate(words)}
    draw, many = random.Random(0), len(words)
    with path.open("w", encoding="utf-8") as file:
        for number in range(COMPARISONS):
            shift = draw.randrange(1, many)

            def exchanged(word: str, shift: int = shift) -> str:
                own = numbers[word]
                return words[(own + shift) % many] if (own * 2654435761 ^ shift * 40503) >> 7 & 1 else word

            texts = {}
            for name, parts in pieces[number % len(pieces)].items():
                made = parts.copy()
                made[1::2] = map(exchanged, parts[1::2])
                texts[name] = "".join(made)
            file.write(json.dumps(texts) + "\n")


def test_a_hundred_thousand_comparisons_are_checked_in_bounded_memory(tmp_path: Path) -> None:
    require_data()
    path = tmp_path / "votes.jsonl"
    write_comparisons(path)
    size = path.stat().st_size
    child = [sys.executable, "-P", "-c", CHILD, str(path)]
    done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    print(f"\n{size / 1e6:.0f} MB: {found['seconds']:.1f} s, {found['megabytes']:.0f} MB over that of the libraries")
    assert found["comparisons"] > 0.99 * COMPARISONS and found["megabytes"] < MOST_MEGABYTES
