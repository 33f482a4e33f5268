"""What trackers cost a PPO stage, their servers up or away: `make soak ARGS="-k tracker -s"`, on a quiet machine.

Each round runs the same stage once under each condition, in an order that changes; a condition's cost is the mean over
rounds of its time against that of the same round without trackers. Beside the time of the whole command stands the
processor's time that the stage's own process took, which says on a busy machine whether it did more work or was made to
wait. RLHF_SOAK_ROUNDS (default 5), RLHF_SOAK_STEPS (300), RLHF_SOAK_CONDITIONS.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from away import away
from interruption import own_copy, stage_process, start, wait_for
from running import TINY
from wandb_server import WandbServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

ROUNDS = int(os.environ.get("RLHF_SOAK_ROUNDS", "5"))
STEPS = int(os.environ.get("RLHF_SOAK_STEPS", "300"))
CONDITIONS = os.environ.get("RLHF_SOAK_CONDITIONS", "off offline healthy closed hanging failing slow").split()
LIMIT = 0.02


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


class Taken(NamedTuple):
    """What a stage took, in seconds."""

    wall: float  # the whole command
    processor: float  # the stage's own process


def timed(arguments: Sequence[str], folder: Path) -> tuple[Taken, str]:
    """Run a command; what it took, and what it wrote to standard error."""
    started = time.monotonic()
    process, processor = start(*arguments, folder=folder), 0.0
    with suppress(psutil.NoSuchProcess, ValueError):
        wait_for(lambda: bool(psutil.Process(process.pid).children()), process)
        stage = psutil.Process(stage_process(process))
        while process.poll() is None:
            times = stage.cpu_times()
            processor = times.user + times.system
            time.sleep(0.05)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return Taken(time.monotonic() - started, processor), errors


def run_once(reference: Path, folder: Path, condition: str, monkeypatch: pytest.MonkeyPatch) -> Taken:
    """What `rlhf ppo` takes under a condition."""
    run = own_copy(reference, folder, ["sft", "reward"])
    overrides = [f"ppo.steps={STEPS}", "ppo.evaluate_every=50", "checkpoint.every_steps=null"]
    with ExitStack() as stack:
        overrides += settings(condition, folder, stack, monkeypatch)
        taken, errors = timed(["ppo", str(TINY), *overrides], folder)
    assert "Traceback" not in errors
    away_now = condition in ("closed", "hanging", "failing", "slow")
    assert errors.count("not everything was sent") == (2 if away_now else 0), errors
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
            load = os.getloadavg()[0]
            print(f"{number} {condition:8} {taken.wall:6.2f} s, processor {taken.processor:5.2f} s, load {load:.1f}")
    slower = []
    for condition in CONDITIONS:
        for number, measure in enumerate(Taken._fields):
            pairs = zip(seconds[condition], seconds["off"], strict=True)
            ratios = [taken[number] / off[number] - 1 for taken, off in pairs]
            mean, error = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(ROUNDS)
            median = statistics.median(taken[number] for taken in seconds[condition])
            print(
                f"{condition:8} {measure:9} median {median:6.2f} s, against off {mean:+.2%}, "
                f"standard error {error:.2%}, from {min(ratios):+.2%} to {max(ratios):+.2%}"
            )
            if mean - 2 * error > LIMIT:
                slower.append(f"{condition} {measure}")
    assert not slower
