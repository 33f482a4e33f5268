"""What held-out evaluation is for, on a run made to over-optimise: `make soak ARGS="-k over_optimisation -s"`.

Three seeds of tests/recipes/over-optimisation.yaml, two at a time. The judge's score of the best policy is compared
with that of the last, on the held-out prompts that chose it and, with other noise and more prompts, by the evaluate
stage; then the same recipe with patience, handing on the best. The table is printed.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from interruption import figures, manifest
from running import ROOT, rlhf

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
RECIPE = str(ROOT / "tests" / "recipes" / "over-optimisation.yaml")
SEEDS = (321, 322, 323)
EARLY = ("ppo.held_out.patience=3", "ppo.hand_on=best")
COLUMNS = "| seed | policy | step | judge | reward | KL, nats | gold by evaluate | steps made |"


def run(seed: int, directory: Path, *overrides: str) -> dict[str, Any]:
    """One chain; the results of its two last stages."""
    command = ("run", RECIPE, f"seed={seed}", "--run", str(directory), *overrides)
    done = rlhf(*command, folder=directory.parent, seconds=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return manifest(directory / "ppo")["results"] | {"gold": manifest(directory / "evaluate")["results"]["gold_after"]}


def both(seed: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """To the end, handing on the last; and with patience, handing on the best."""
    directory = folder / f"to-the-end-{seed}"
    whole = run(seed, directory)
    for stage in ("sft", "reward"):
        shutil.copytree(directory / stage, folder / f"early-{seed}" / stage)
    return whole, run(seed, folder / f"early-{seed}", *EARLY)


def test_the_best_is_kept_where_the_judge_falls_while_the_reward_rises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = str(ROOT / "tests")  # where tests/flawed.py, the recipe's reward, is found
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([own, os.environ.get("PYTHONPATH", "")]))
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = dict(zip(SEEDS, pool.map(lambda seed: both(seed, tmp_path), SEEDS), strict=True))
    print(f"\n{COLUMNS}\n|{' --- |' * COLUMNS.count(' | ')} --- |")
    for seed, (whole, early) in found.items():
        curve = [line for line in figures(tmp_path / f"to-the-end-{seed}" / "ppo") if "eval/judge" in line]
        rows = {"first": curve[0], "best": curve[whole["best_step"] // 5], "last": curve[-1]}
        for name, line in rows.items():
            gold = {"best": f"{early['gold']:.3f}", "last": f"{whole['gold']:.3f}"}.get(name, "")
            made = {"best": early["steps"], "last": whole["steps"]}.get(name, "")
            print(
                f"| {seed} | {name} | {line['step']} | {line['eval/judge']:.3f} ± {line['eval/judge_stderr']:.3f} | "
                f"{line['eval/scores']:.2f} | {line['eval/kl']:.1f} | {gold} | {made} |"
            )
    for whole, early in found.values():
        assert whole["best_score"] > whole["last_score"]
        assert whole["last_reward"] > whole["best_reward"]
        assert 0 < whole["best_step"] < 60
        assert early["stopped_early"] and early["steps"] < whole["steps"]
        assert early["best_score"] <= whole["best_score"]
        assert early["gold"] > whole["gold"]  # on prompts and noise that chose nothing
    print(json.dumps({seed: [whole["best_score"], whole["last_score"]] for seed, (whole, _) in found.items()}))
