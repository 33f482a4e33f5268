"""The four advantage estimators on the embedded task, on fresh seeds: `make soak ARGS="-k estimators -s"`.

One SFT and one reward model a seed, then PPO under each estimator, 96 responses a step for all: settings of the demo
recipe, not tuned for any but GAE. Runs go to $RLHF_SOAK_RUNS (default: a temporary folder), two seeds at a time with
one thread each, and are skipped there if they are complete. The table is printed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]
SEEDS = (401, 402, 403)
GROUPED = ("ppo.responses_per_prompt=4", "ppo.prompts_per_step=24")
SETTINGS = {"gae": (), "rloo": GROUPED, "reinforce++": (), "grpo": GROUPED}


def run(folder: Path, seed: int) -> dict[str, dict[str, Any]]:
    start = folder / f"start-{seed}"
    command(folder, "run", "demo", f"seed={seed}", "--until", "reward", "--run", str(start))
    found = {}
    for estimator, settings in SETTINGS.items():
        directory = folder / f"{estimator}-{seed}"
        for stage in ("sft", "reward"):
            if not (directory / stage).is_dir():
                shutil.copytree(start / stage, directory / stage)
        fields = (f"seed={seed}", f"ppo.advantage={estimator}", *settings, "evaluate.best_of=16")
        command(folder, "run", "demo", *fields, "--run", str(directory))
        found[estimator] = json.loads((directory / "summary.json").read_text())["ppo"]
    return found


def command(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("a") as log:
        line = [sys.executable, "-P", "-m", "launch.cli", *arguments]
        subprocess.run(line, env=environment, stdout=log, stderr=log, check=True)


def row(estimator: str, seed: int, ppo: dict[str, Any]) -> str:
    low, high = ppo["gold_gain_ci"]
    rise = f"{ppo['gold_after'] - ppo['gold_before']:+.3f} ({low:+.3f} to {high:+.3f})"
    gold = f"{ppo['gold_before']:.3f} | {ppo['gold_after']:.3f} | {rise}"
    return f"| {estimator} | {seed} | {ppo['seconds']:.0f} | {ppo['kl']:.2f} | {gold} | {ppo['win_rate']:.3f} |"


def test_all_estimators_beat_sft_on_three_seeds(tmp_path: Path) -> None:
    folder = Path(os.environ.get("RLHF_SOAK_RUNS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = dict(zip(SEEDS, pool.map(lambda seed: run(folder, seed), SEEDS), strict=True))
    print("\n| estimator | seed | seconds | KL, nats | gold before | gold after | rise (95 %) | win rate |")
    print("| --- " * 8 + "|")
    for estimator in SETTINGS:
        for seed in SEEDS:
            print(row(estimator, seed, found[seed][estimator]))
    for seed in SEEDS:
        for best in found[seed]["gae"]["best_of"]:
            print(f"seed {seed}: best of {best['n']}: KL {best['kl']:.2f}, gold {best['gold']:.3f}")
    for seed in SEEDS:
        for estimator in SETTINGS:
            assert found[seed][estimator]["gold_gain_ci"][0] > 0, (estimator, seed)
