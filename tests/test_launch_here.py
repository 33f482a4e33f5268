"""`rlhf launch` on this machine, detached: found again by its directory, stopped, gone on with, and brought back."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from interruption import EVERY_STEP, assert_same, own_copy, seconds_until
from running import TINY, rlhf

from rlhf.beacons.record import BEACONS, read

pytestmark = [pytest.mark.services, pytest.mark.beside]
STEPS = 60  # so many that it has not ended before somebody has typed a command or two
PPO = [str(TINY), f"ppo.steps={STEPS}", EVERY_STEP, "--run", "runs/tiny"]
ONLY = ["--from", "ppo", "--until", "ppo"]


@pytest.fixture(scope="module")
def reference(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    copy = own_copy(tiny_run, folder, ["sft", "reward"])
    done = rlhf("ppo", *PPO, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "ppo"


def typed(folder: Path, *arguments: str, codes: Sequence[int] = (0,)) -> str:
    done = rlhf(*arguments, folder=folder)
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


def state(folder: Path) -> str:
    told = json.loads(typed(folder, "status", "tiny", "--json", codes=(0, 1)))
    return str(told["states"][-1]["state"])


def steps(run: Path) -> int:
    """The last step that stands in the figures."""
    with suppress(OSError, IndexError, ValueError):
        return int(json.loads((run / "ppo" / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def said(folder: Path) -> str:
    return "\n".join(log.read_text() for log in (folder / "runs" / "tiny" / "launch" / "logs").glob("*.log"))


@pytest.mark.parametrize("on", ["local", pytest.param("torchrun", marks=pytest.mark.soak)])
def test_a_run_is_cancelled_and_goes_on(on: str, tiny_run: Path, reference: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    where = ["--on", on] + (["--processes", "1"] if on == "torchrun" else [])
    typed(tmp_path, "launch", *PPO, *ONLY, *where)
    seconds_until(lambda: steps(run) >= 2, 180, lambda: said(tmp_path))
    assert state(tmp_path) == "running"
    assert "ppo is running on" in rlhf("launch", *PPO, *ONLY, *where, folder=tmp_path).stderr
    typed(tmp_path, "cancel", "tiny")
    assert state(tmp_path) == "stopped"
    assert steps(run) < STEPS
    typed(tmp_path, "resume", "tiny")
    assert "going on from" in typed(tmp_path, "logs", "tiny", "-f"), "it follows until the end"
    seconds_until(lambda: state(tmp_path) == "complete", 60, lambda: said(tmp_path))
    assert_same(run / "ppo", reference)


@pytest.mark.soak
def test_a_process_that_is_killed_is_started_again(tiny_run: Path, reference: Path, tmp_path: Path) -> None:
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    typed(tmp_path, "launch", *PPO, *ONLY, "--on", "torchrun", "--processes", "1")
    seconds_until(lambda: steps(run) >= 2, 180, lambda: said(tmp_path))
    beacon = read(run / "ppo" / BEACONS, 0)
    assert beacon
    os.kill(beacon.pid, signal.SIGKILL)
    seconds_until(lambda: state(tmp_path) == "complete", 180, lambda: said(tmp_path))
    assert "ppo, attempt 2" in said(tmp_path)
    assert_same(run / "ppo", reference)


def test_bad_input_is_not_tried_again(tiny_run: Path, tmp_path: Path) -> None:
    """A reward that gives no score: nothing that another attempt would mend."""
    run = own_copy(tiny_run, tmp_path, ["sft"])
    (tmp_path / "mine.py").write_text("def score(prompts, responses):\n    return ['no score'] * len(prompts)\n")
    overrides = ["reward.use=mine:score", f"data.directory={tmp_path}"]
    typed(tmp_path, "launch", str(TINY), *overrides, "--from", "reward", "--on", "torchrun", "--processes", "1")
    started = time.monotonic()
    seconds_until(lambda: state(tmp_path) != "waiting", 180, lambda: said(tmp_path))
    told = json.loads(typed(tmp_path, "status", "tiny", "--json", codes=(0, 1)))["states"]
    assert [each["state"] for each in told] == ["failed", "stopped", "stopped"], said(tmp_path)
    assert "attempt 1: exit code 2 on localhost" in told[0]["told"], f"{time.monotonic() - started:.0f} s"
    assert "attempt 2" not in said(tmp_path)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(run) in (p.info["cmdline"] or [])]
