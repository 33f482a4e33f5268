"""`kill -9` of one process of several, at random moments, under three engines: `make soak ARGS="-k rank_kills -s"`.

PPO of the tiny recipe with 24 steps is started and one of its processes is killed, over and over, RLHF_SOAK_KILLS times
(default 50) in all: half of the kills anywhere between start and end, half while it trains. The others must end by
themselves, no checkpoint may be half written, and in the end figures, samples and weights are those of a run that
nobody disturbed, bit for bit.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from interruption import EVERY_STEP, assert_same, lines_of, own_copy, ranks, start, wait_for
from running import TINY, rlhf
from strategies import shared

from rlhf.recipe import load_recipe
from rlhf.store.checkpoint import CheckpointStore, retention_of
from stages.lineage import lineage_of

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("RLHF_SOAK_KILLS", "50"))
ENGINES = ("ddp", "fsdp", "zero3")
LONGER = ("ppo.steps=24", "ppo.evaluate_every=6", "ppo.held_out.prompts=3", EVERY_STEP)
BOUND = 30.0  # seconds from the kill of one process to the end of all


def half_written(run: Path, overrides: tuple[str, ...]) -> list[str]:
    """What is wrong with the checkpoints that stand under their final names."""
    recipe = load_recipe(TINY, overrides)
    fingerprint = lineage_of(recipe, "ppo", run).fingerprint
    said: list[str] = []
    CheckpointStore(run / "ppo" / "checkpoints", fingerprint, retention_of(recipe)).newest(said.append)
    return said


def started(process: subprocess.Popen[Any]) -> bool:
    return len(ranks(process, "ppo")) == 2


def has_lines(path: Path, lines: int) -> bool:
    return lines_of(path) >= lines


@pytest.mark.parametrize("strategy", ENGINES)
def test_rank_kills(strategy: str, tiny_run: Path, tmp_path: Path) -> None:
    overrides = (*LONGER, shared(strategy))
    began = time.monotonic()
    whole = own_copy(tiny_run, tmp_path / "whole", ["sft", "reward"]) / "ppo"
    done = rlhf("ppo", str(TINY), *overrides, folder=tmp_path / "whole", seconds=900)
    assert done.returncode == 0, done.stderr
    duration = time.monotonic() - began
    steps = lines_of(whole / "metrics.jsonl")
    chance = random.Random(strategy)
    kills = KILLS // len(ENGINES) + (ENGINES.index(strategy) < KILLS % len(ENGINES))
    killed, ended, slowest, run = 0, 0, 0.0, Path()
    while killed < kills:
        folder = tmp_path / f"from-{killed}"
        run = own_copy(tiny_run, folder, ["sft", "reward"])
        while killed < kills and not (run / "ppo" / "manifest.json").exists():
            process = start("ppo", str(TINY), *overrides, folder=folder)
            metrics, lines = run / "ppo" / "metrics.jsonl", chance.randrange(1, steps)
            assert wait_for(partial(started, process), process)
            if killed % 2:
                wait_for(partial(has_lines, metrics, lines), process)
            time.sleep(chance.random() * (0.5 if killed % 2 else duration / 2))
            alive = ranks(process, "ppo")
            for rank in chance.sample(alive, min(1, len(alive))):
                rank.send_signal(signal.SIGKILL)
            at = time.monotonic()
            process.communicate(timeout=300)
            slowest = max(slowest, time.monotonic() - at)
            killed += 1
            assert half_written(run, overrides) == []
            ended += process.returncode == 0
        done = rlhf("ppo", str(TINY), *overrides, folder=folder, seconds=900)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert_same(run / "ppo", whole)
    assert slowest < BOUND
    print(f"\n{strategy}: {killed} kills, {ended} came too late, the others ended within {slowest:.1f} s; all the same")
