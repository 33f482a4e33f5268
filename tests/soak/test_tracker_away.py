"""What trackers cost a PPO stage, their servers up or away: `make soak ARGS="-k tracker -s"`, on a quiet machine.

Each round runs the same stage once under each condition, in an order that changes; a condition is compared with the
same round without trackers: by the clock, by the processor's time of the stage's own process, and by the seconds that
the stage spent inside its trackers, which other work on the machine disturbs least.

RLHF_SOAK_ROUNDS (default 5), RLHF_SOAK_STEPS (300), RLHF_SOAK_CONDITIONS.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from away import AWAY, away
from interruption import own_copy
from running import ROOT, TINY
from wandb_server import WandbServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

ROUNDS = int(os.environ.get("RLHF_SOAK_ROUNDS", "5"))
STEPS = int(os.environ.get("RLHF_SOAK_STEPS", "300"))
CONDITIONS = os.environ.get("RLHF_SOAK_CONDITIONS", "off offline healthy closed hanging failing slow").split()
LIMIT = 0.02


class Taken(NamedTuple):
    """What a stage took, in seconds."""

    wall: float
    processor: float  # of its own process
    waited: float  # inside its trackers


def settings(condition: str, folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The overrides of a condition; its servers are up, or away, until the stack is closed."""
    if condition == "off":
        return ["tracking.wandb.mode=disabled"]
    mlflow = str(folder / "store")
    if condition == "offline":
        return ["tracking.wandb.mode=offline", "tracking.tensorboard=true", f"tracking.mlflow={{uri: {mlflow}}}"]
    if condition == "healthy":
        server = WandbServer()
        stack.callback(server.close)
        environment = server.environment
    else:
        mlflow = stack.enter_context(away(condition))
        environment = {"WANDB_BASE_URL": mlflow, "WANDB_API_KEY": "0" * 40}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return ["tracking.wandb.mode=online", f"tracking.mlflow={{uri: '{mlflow}'}}"]


def timed(arguments: Sequence[str], folder: Path) -> tuple[Taken, str]:
    """Run the stage; what it took, and what it wrote to standard error."""
    waited, processor, started = folder / "waited", 0.0, time.monotonic()
    command = [sys.executable, str(ROOT / "tests" / "waiting.py"), str(waited), *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with suppress(psutil.NoSuchProcess):
        stage = psutil.Process(process.pid)
        while process.poll() is None:
            times = stage.cpu_times()
            processor = times.user + times.system
            time.sleep(0.05)
    wall = time.monotonic() - started
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return Taken(wall, processor, float(waited.read_text())), errors


def run_once(reference: Path, folder: Path, condition: str, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """What the stage takes under a condition; it is complete, and says what was not sent where that is so."""
    run = own_copy(reference, folder, ["sft", "reward"])
    overrides = [f"ppo.steps={STEPS}", "ppo.evaluate_every=50", "checkpoint.every_steps=null"]
    with ExitStack() as stack:
        overrides += settings(condition, folder, stack, monkeypatch)
        taken, errors = timed(["--recipe", str(TINY), "--run-dir", str(run), *overrides], folder)
    assert "Traceback" not in errors
    assert errors.count("not everything was sent") == (2 if condition in AWAY else 0), errors
    lines = (run / "ppo" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "objective/kl" in line] == list(range(1, STEPS + 1))
    return taken


def test_a_tracker_that_is_away_does_not_slow_a_stage(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: dict[str, list[Taken]] = {condition: [] for condition in CONDITIONS}
    for number in range(ROUNDS):
        shift = number * 3 % len(CONDITIONS)
        for condition in (*CONDITIONS[shift:], *CONDITIONS[:shift]):
            with monkeypatch.context() as patch:
                taken = run_once(tiny_run, tmp_path / f"{number}-{condition}", condition, patch)
            seconds[condition].append(taken)
            print(number, condition, *(f"{value:.2f}" for value in taken), f"load {os.getloadavg()[0]:.1f}")
    slower, undecided = [], []
    for condition in CONDITIONS:
        pairs = list(zip(seconds[condition], seconds["off"], strict=True))
        waited = [taken.waited / taken.wall for taken in seconds[condition]]
        print(f"{condition:8} {'waited':9} {statistics.mean(waited):.2%} of its time, at most {max(waited):.2%}")
        if condition in AWAY and statistics.median(waited) > LIMIT:
            slower.append(f"{condition} waited")
        for number, measure in enumerate(Taken._fields[:2]):
            ratios = [taken[number] / off[number] - 1 for taken, off in pairs]
            mean, error = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(ROUNDS)
            median = statistics.median(taken[number] for taken in seconds[condition])
            print(
                f"{condition:8} {measure:9} median {median:6.2f} s, against off {mean:+.2%}, "
                f"standard error {error:.2%}, from {min(ratios):+.2%} to {max(ratios):+.2%}"
            )
            if mean - 2 * error > LIMIT:
                slower.append(f"{condition} {measure}")
            elif 2 * error > LIMIT:
                undecided.append(f"{condition} {measure}")
    assert not slower
    if undecided:
        pytest.skip(f"too much else runs here to tell {LIMIT:.0%}: {', '.join(undecided)}")
