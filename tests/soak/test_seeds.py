"""What the project promises of learning, on fresh seeds of the frozen recipes: `make soak ARGS="-k demo -s"`.

Runs go to $RLHF_SOAK_RUNS (default: a temporary folder), two at a time with one thread each, and are skipped there if
they are complete. The table is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from published import DATA, require_data

from rlhf.analysis.seeds import read_summaries, table

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
DEMO_SEEDS = (101, 102, 103, 104, 105)
STORIES_SEEDS = (201, 202, 203)


def run_seeds(recipe: str, seeds: tuple[int, ...], folder: Path, *options: str) -> list[dict[str, Any]]:
    folder = Path(os.environ.get("RLHF_SOAK_RUNS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    runs = [folder / f"{recipe}-{seed}" for seed in seeds]

    def run(seed: int, directory: Path) -> None:
        command = [sys.executable, "-P", "-m", "launch.cli", "run", recipe, f"seed={seed}", "--run", str(directory)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / f"{recipe}-{seed}.log").open("a") as log:
            subprocess.run([*command, *options], env=environment, stdout=log, stderr=log, check=True)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(run, seeds, runs))
    summaries = read_summaries(runs)
    print("\n" + table(summaries))
    return summaries


def test_demo_learns_on_five_seeds(tmp_path: Path) -> None:
    for summary in run_seeds("demo", DEMO_SEEDS, tmp_path):
        ppo, reward = summary["ppo"], summary["reward"]
        assert ppo["gold_after"] - ppo["gold_before"] >= 0.25
        assert ppo["win_rate"] >= 0.75
        assert ppo["win_rate_ci"][0] > 0.5
        assert reward["accuracy"] >= 0.9 * reward["bayes_accuracy"]


def test_stories_become_cheerful_on_three_seeds(tmp_path: Path) -> None:
    require_data()
    for summary in run_seeds("stories", STORIES_SEEDS, tmp_path, "--data-dir", str(DATA)):
        ppo = summary["ppo"]
        assert ppo["gold_after"] - ppo["gold_before"] >= 0.1
        assert ppo["second_gold_after"] > ppo["second_gold_before"]
