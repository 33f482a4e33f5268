"""A hundred thousand comparisons are checked in bounded memory: `make soak ARGS="-k data_check -s"`; both are printed.

They are dialogues of Anthropic's harmless-base of which every second word is exchanged for one of the others, so that
no two are nearly the same.
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
from stand_ins import DATA, require_data

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
COMPARISONS, MOST_MEGABYTES = 100_000, 150
WORD = re.compile(r"[a-z]+")

CHILD = """
import json, resource, sys, time
from data.quality.check import check_votes
from data.quality.votes import votes_of_files
from rlhf.config import CheckConfig, DataConfig, SourceConfig

votes = votes_of_files([sys.argv[1]], SourceConfig(path="given"), DataConfig())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
private = next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))
started = time.process_time()
summary = check_votes(votes, CheckConfig()).verdict.summary
seconds = time.process_time() - started
print(json.dumps({"seconds": seconds, "megabytes": peak() - private, "comparisons": summary["comparisons"]}))
"""


def write_comparisons(path: Path) -> None:
    """Of the published pairs, as often as it takes."""
    with gzip.open(DATA / "pairs" / "hh_harmless_base_test.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    words = sorted({word for record in records for word in WORD.findall(record["chosen"])})
    draw, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < COMPARISONS:
            record = records[draw.randrange(len(records))]
            exchanged = {word: draw.choice(words) for word in WORD.findall(record["chosen"] + record["rejected"])}
            kept = {word for word in exchanged if draw.random() < 0.5}
            # The same word in both texts becomes the same, so that they share their prompt still.
            texts = {
                name: WORD.sub(lambda found: found[0] if found[0] in kept else exchanged[found[0]], record[name])  # noqa: B023
                for name in ("chosen", "rejected")
            }
            before = [texts[name].rpartition("\n\nAssistant:")[0] for name in texts]
            if before[0] and before[0] == before[1] and all(text.rpartition(":")[2].strip() for text in texts.values()):
                file.write(json.dumps(texts) + "\n")
                written += 1


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
