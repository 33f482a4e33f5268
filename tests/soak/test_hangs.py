"""Hangs, errors and deaths of one rank under each strategy and launcher: `make soak ARGS="-k test_hangs -s"`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hangs import Run, plant, processes_in
from running import rlhf

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

LIMITS = "watchdog={warn_seconds: 20, abort_seconds: 24}"
SAID = {
    "hang": r"rank 1 of 2 on \S+ \(pid \d+\) stays in collect/score \(step 2\).*rank 0 waits for it in all_gather",
    "freeze": r"rank 1 of 2 on \S+ \(pid \d+\) has given no sign.*SIGSTOP.*collect/score \(step 2\).*in all_gather",
    "die": r"rank 1 of 2 on \S+ \(pid \d+\) was killed without a word.*collect/score \(step 2\)",
    "raise": r"rank 1 of 2 on \S+ \(pid \d+\) raised an error in update \(step 2\).*ValueError: planted in backward",
}

CODES = {"hang": 70, "freeze": 70, "die": 137, "raise": 1}  # of `rlhf`; torchrun has its own


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Run]]:
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.close()


@pytest.mark.parametrize("torchrun", [False, True], ids=["rlhf", "torchrun"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", SAID)
def test_named_ended_and_gone_on(
    what: str, strategy: str, torchrun: bool, started: list[Run], tiny_run: Path, tmp_path: Path
) -> None:
    plant(tmp_path, what)
    run = Run(tiny_run, tmp_path, strategy, LIMITS, torchrun=torchrun)
    started.append(run)
    run.until(lambda: not (tmp_path / "planted").exists(), 180)
    named = run.until(lambda: re.search(SAID[what], run.said()) is not None, 30)
    gone = run.until(lambda: not processes_in(tmp_path), 45)
    assert run.wait(5) == (1 if torchrun else CODES[what])
    told = rlhf("doctor", "tiny", folder=tmp_path)
    assert told.returncode == 1 and re.search(SAID[what], told.stdout), told.stdout
    again = Run(tiny_run, tmp_path, strategy, LIMITS, torchrun=torchrun)
    started.append(again)
    assert again.wait(240) == 0, again.said()
    assert "going on from" in again.said()
    launcher = "torchrun" if torchrun else "rlhf"
    print(f"\n{what}, {strategy}, {launcher}: named after {named:.1f} s, all gone {gone:.1f} s later")
