"""What trackers cost a PPO stage, their servers up or away: `make soak ARGS="-k tracker -s"`, on a quiet machine.

Each round runs the same stage once under each condition, in an order that changes; a condition's cost is the mean over
rounds of its time against that of the same round without trackers. RLHF_SOAK_ROUNDS (default 5), RLHF_SOAK_STEPS (300).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from away import away
from interruption import own_copy
from running import TINY, rlhf
from wandb_server import WandbServer

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

ROUNDS = int(os.environ.get("RLHF_SOAK_ROUNDS", "5"))
STEPS = int(os.environ.get("RLHF_SOAK_STEPS", "300"))
CONDITIONS = ("off", "offline", "healthy", "closed", "hanging", "failing", "slow")
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


def run_once(reference: Path, folder: Path, condition: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds of `rlhf ppo` under a condition."""
    run = own_copy(reference, folder, ["sft", "reward"])
    overrides = [f"ppo.steps={STEPS}", "ppo.evaluate_every=50", "checkpoint.every_steps=null"]
    with ExitStack() as stack:
        overrides += settings(condition, folder, stack, monkeypatch)
        started = time.monotonic()
        done = rlhf("ppo", str(TINY), *overrides, folder=folder, seconds=1800)
        seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    away_now = condition in ("closed", "hanging", "failing", "slow")
    assert done.stderr.count("not everything was sent") == (2 if away_now else 0), done.stderr
    lines = (run / "ppo" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "objective/kl" in line] == list(range(1, STEPS + 1))
    return seconds


def test_a_tracker_that_is_away_does_not_slow_a_stage(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: dict[str, list[float]] = {condition: [] for condition in CONDITIONS}
    for number in range(ROUNDS):
        shift = number * 3 % len(CONDITIONS)
        for condition in (*CONDITIONS[shift:], *CONDITIONS[:shift]):
            with monkeypatch.context() as patch:
                taken = run_once(tiny_run, tmp_path / f"{number}-{condition}", condition, patch)
            seconds[condition].append(taken)
            print(f"round {number} {condition:8} {taken:7.2f} s  load {os.getloadavg()[0]:.1f}", flush=True)
    slower = []
    for condition in CONDITIONS:
        ratios = [taken / off - 1 for taken, off in zip(seconds[condition], seconds["off"], strict=True)]
        mean, error = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(ROUNDS)
        print(
            f"{condition:8} median {statistics.median(seconds[condition]):7.2f} s  "
            f"against off {mean:+.2%}, standard error {error:.2%}, from {min(ratios):+.2%} to {max(ratios):+.2%}"
        )
        if mean - 2 * error > LIMIT:
            slower.append(condition)
    assert not slower
