"""`kill -9` at random moments, many times a stage: `make soak ARGS="-k kills -s"`.

Each stage of tests/recipes/tiny.yaml is killed RLHF_SOAK_KILLS times (default ten), by one process and by two, half of
them anywhere between start and end, half while it trains; then the same command runs again, and every figure and every
byte of the models must be those of a run that nobody disturbed. Some runs are killed twice.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from interruption import EVERY_STEP, assert_same, kill_tree, lines_of, own_copy, start, wait_for
from running import TINY, rlhf

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]

STAGES = ["sft", "reward", "ppo"]
KILLS = int(os.environ.get("RLHF_SOAK_KILLS", "10"))
# Longer than in the tiny recipe, so that a random moment falls into training about as often as beside it.
LONGER = ("sft.epochs=12", "reward.epochs=12", "ppo.steps=30", EVERY_STEP)
# Of so few prompts chance decides which policy is the best, so that best/ comes from any step.
LONGER += ("ppo.evaluate_every=3", "ppo.held_out.prompts=3")


@pytest.fixture(scope="module", params=[1, 2], ids=["one-process", "two-processes"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    processes = f"parallelism.processes={request.param}"
    folder = tmp_path_factory.mktemp(f"whole-{request.param}")
    done = rlhf("run", str(TINY), *LONGER, processes, "--until", "ppo", folder=folder, seconds=1200)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny", processes


def start_and_kill(command: Sequence[str], folder: Path, metrics: Path, lines: int | None, seconds: float) -> None:
    """Start a command and kill it some seconds after its start, or after its metrics file has so many lines."""
    process = start(*command, folder=folder)
    if lines is not None:
        wait_for(lambda: lines_of(metrics) >= lines, process)
    time.sleep(seconds)
    kill_tree(process)


@pytest.mark.parametrize("stage", STAGES)
def test_kills(stage: str, undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    reference, processes = undisturbed
    inputs = STAGES[: STAGES.index(stage)]
    command = (stage, str(TINY), *LONGER, processes)
    chance = random.Random(f"{stage}/{processes}")
    started = time.monotonic()
    whole = own_copy(reference, tmp_path / "timed", inputs)
    assert rlhf(*command, folder=tmp_path / "timed").returncode == 0
    duration = time.monotonic() - started
    assert_same(whole / stage, reference / stage)
    steps = lines_of(reference / stage / "metrics.jsonl")
    went_on = ended = 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        run = own_copy(reference, folder, inputs)
        for _ in range(1 + (number % 3 == 2)):
            lines = chance.randrange(1, steps) if number % 2 else None
            seconds = chance.random() * (0.1 if lines else duration)
            start_and_kill(command, folder, run / stage / "metrics.jsonl", lines, seconds)
        ended += (run / stage / "manifest.json").exists()
        done = rlhf(*command, folder=folder)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        went_on += "going on from" in done.stdout
        assert_same(run / stage, reference / stage)
        shutil.rmtree(folder)
    print(
        f"\n{stage}, {processes}: {KILLS} kills, {went_on} went on from a checkpoint, {ended} had ended, all the same"
    )
