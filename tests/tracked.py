"""A stage as trackers see it, without a model: figures, samples, an end. As a program, one that can be killed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.recipe import load_recipe
from rlhf.tracking import Place, open_tracker
from rlhf.types import Tracker

TINY = Path(__file__).parent / "recipes" / "tiny.yaml"
MANIFEST: dict[str, Any] = {
    "stage": "ppo",
    "fingerprint": "f" * 64,
    "inputs": {"sft": "a" * 64},
    "data": {"prompts": "b" * 64},
    "results": {"kl": 1.5, "steps": 6, "judge": "gold"},
    "seconds": 1.0,
    "checksums": {"model/model.safetensors": "c" * 64},
}


def open_at(directory: Path, overrides: Sequence[str], resumed: bool = False, said: list[str] | None = None) -> Tracker:
    """The trackers of a stage that begins, or goes on."""
    if not resumed:
        shutil.rmtree(directory, ignore_errors=True)
    (directory / ".partial").mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(TINY, ["tracking.wandb.mode=disabled", *overrides])
    inputs = {name: directory.parent / name for name in ("sft", "reward")}
    say = print if said is None else said.append
    return open_tracker(recipe, Place("ppo", directory, inputs, resumed), say)


def log_steps(tracker: Tracker, first: int, last: int) -> None:
    """Figures of some steps as PPO logs them, with held-out samples at every second one."""
    for step in range(first, last + 1):
        tracker.log(step, {"objective/kl": step / 4, "loss/policy": -step / 8})
        if step % 2 == 0:
            tracker.table(step, "held-out", [{"prompt": "p|q", "response": f"r\n{step}", "score": float(step)}])
            tracker.log(step, {"eval/scores": step / 2})


def cut_back(directory: Path, step: int) -> None:
    """As a stage does that goes on behind a checkpoint."""
    path = directory / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in lines))
    for file in (directory / "samples").glob("*.parquet"):
        if int(file.stem.rpartition("-")[2]) > step:
            file.unlink()


if __name__ == "__main__":  # DIRECTORY LAST OVERRIDES...: log up to a step, then wait to be killed
    tracker = open_at(Path(sys.argv[1]), sys.argv[3:])
    log_steps(tracker, 1, int(sys.argv[2]))
    print(os.getpid(), flush=True)
    time.sleep(600)
