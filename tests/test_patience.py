"""What one rank does for all may take longer than a collective of the group that all else goes through."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from running import TINY

from rlhf.config import WatchdogConfig
from rlhf.distributed import barrier, is_main, join_process_group
from rlhf.errors import ConfigError
from rlhf.store.checkpoint import Checkpoint
from stages import command
from stages.command import collective_minutes
from tests.test_checkpoints_aside import Training
from tests.two_ranks import two_ranks

TIMEOUT, WORK = 5.0, 9.0  # seconds: of the group, and of what the main rank does alone


def write_slowly(folder: Path, cases: list[str]) -> Any:
    """A checkpoint that the main rank alone takes long to commit."""
    assert cases == ["checkpoint"]
    training = Training(folder / "checkpoints", {"asynchronous": False, "every_steps": 1})
    if is_main():
        commit = training.store.commit

        def slowly(step: int, meta: Mapping[str, Any]) -> Checkpoint:
            time.sleep(WORK)
            return commit(step, meta)

        training.store.commit = slowly  # type: ignore[method-assign]
    barrier()
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=TIMEOUT))
    training.step()
    return training.said


def test_a_large_checkpoint_is_committed(tmp_path: Path) -> None:
    with two_ranks(write_slowly, tmp_path, ["checkpoint"], seconds=90.0) as said:
        pass
    assert said == [[], []]
    assert (tmp_path / "checkpoints" / "step-000001" / "checkpoint.json").is_file()


def test_the_group_waits_for_longer_than_the_watchdog() -> None:
    assert collective_minutes(None) == collective_minutes(WatchdogConfig()) == 10
    assert collective_minutes(WatchdogConfig(abort_seconds=3600.0)) == 65


def test_a_stage_joins_its_group_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def join(minutes: float) -> None:
        asked.append(minutes)
        raise ConfigError("enough")

    monkeypatch.setattr(command, "join_process_group", join)
    monkeypatch.setattr(command.Signals, "install", lambda self: None)
    given = ["--recipe", str(TINY), "--run-dir", str(tmp_path), "watchdog.abort_seconds=3600"]
    monkeypatch.setattr("sys.argv", ["ppo", *given])
    with pytest.raises(SystemExit):
        command.run_stage("ppo", write_slowly)  # type: ignore[arg-type]
    assert asked == [65]


def test_the_group_is_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    join_process_group(65.0, alone=True)
    try:
        backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(minutes=65)
    finally:
        dist.destroy_process_group()
