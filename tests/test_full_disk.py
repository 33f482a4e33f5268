"""A disk that fills up while a stage runs: the older checkpoint stays, the cause is named, nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from interruption import EVERY_STEP, assert_same, own_copy, ranks, start, wait_for
from running import TINY, rlhf
from strategies import shared

from stages.problems import AWAY

pytestmark = pytest.mark.services  # mounting needs root

MEBIBYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={8 * MEBIBYTE}", "tmpfs", str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_what_a_stage_has_written_does_not_count_against_it(tiny_run: Path, small_disk: Path) -> None:
    own_copy(tiny_run, small_disk, ["sft", "reward"])
    assert rlhf("ppo", str(TINY), EVERY_STEP, "--stop-after", "2", folder=small_disk).returncode == 0
    fill(small_disk, leave=1_200_000)  # less than the 1.8 MB that a stage of its size wants before it has begun
    assert rlhf("ppo", str(TINY), EVERY_STEP, folder=small_disk).returncode == 0


def fill(disk: Path, leave: int) -> Path:
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast.write_bytes(bytes(free - leave))
    return ballast


def stage_alone(disk: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """PPO without the launcher, which would not have begun on a disk as full as this."""
    command = [sys.executable, "-P", "-m", "stages.ppo", "--recipe", str(TINY), "--run-dir", "runs/tiny"]
    command += [EVERY_STEP, *overrides]
    return subprocess.run(command, cwd=disk, capture_output=True, text=True, timeout=200)


def one_line_each(stderr: str) -> bool:
    return all(line.startswith(("error: ", "ppo: warning: ")) for line in stderr.splitlines())


@pytest.mark.parametrize("asynchronous", ["false", pytest.param("true", marks=pytest.mark.soak)])
def test_a_full_disk_costs_no_more_than_the_newest_checkpoint(
    asynchronous: str, tiny_run: Path, small_disk: Path
) -> None:
    run = own_copy(tiny_run, small_disk, ["sft", "reward"])
    assert rlhf("ppo", str(TINY), "--stop-after", "1", folder=small_disk).returncode == 0
    ballast = fill(small_disk, leave=100_000)  # enough for figures, not for a checkpoint or a model
    refused = rlhf("ppo", str(TINY), folder=small_disk)
    assert refused.returncode == 2
    assert "0.1 MB free on its disk" in refused.stderr
    done = stage_alone(small_disk, f"checkpoint.asynchronous={asynchronous}")
    assert done.returncode == AWAY, done.stdout
    assert "no checkpoint of step 2" in done.stderr
    assert "no checkpoint of step 3" in done.stderr
    assert "No space left on device" in done.stderr
    assert one_line_each(done.stderr), done.stderr
    assert [path.name for path in (run / "ppo" / "checkpoints").iterdir()] == ["step-000001"]
    assert not (run / "ppo" / "manifest.json").exists()
    ballast.unlink()
    done = rlhf("ppo", str(TINY), EVERY_STEP, folder=small_disk)
    assert done.returncode == 0, done.stderr
    assert "going on from runs/tiny/ppo/checkpoints/step-000001" in done.stdout
    assert_same(run / "ppo", tiny_run / "ppo")


@pytest.mark.soak
def test_two_processes_of_deepspeed_stay_in_step_on_a_full_disk(tiny_run: Path, small_disk: Path) -> None:
    """Each writes files of its own, between barriers that it owes the other whether it could write or not."""
    run, zero2 = own_copy(tiny_run, small_disk, ["sft", "reward"]), shared("zero2")
    assert rlhf("ppo", str(TINY), zero2, "--stop-after", "1", folder=small_disk).returncode == 0
    ballast = fill(small_disk, leave=100_000)
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "stages.ppo"]
    command += ["--recipe", str(TINY), "--run-dir", "runs/tiny", EVERY_STEP, zero2]
    done = subprocess.run(command, cwd=small_disk, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "no checkpoint of step 2" in done.stderr and "no checkpoint of step 3" in done.stderr, done.stderr
    assert [path.name for path in (run / "ppo" / "checkpoints").iterdir()] == ["step-000001"]
    ballast.unlink()
    done = rlhf("ppo", str(TINY), EVERY_STEP, zero2, folder=small_disk)
    assert done.returncode == 0 and "going on from runs/tiny/ppo/checkpoints/step-000001" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "strategy", [pytest.param("zero2", marks=pytest.mark.soak), pytest.param("zero3", marks=pytest.mark.soak)]
)
def test_where_one_process_alone_cannot_write_the_other_does_not_wait_for_it(
    strategy: str, tiny_run: Path, tmp_path: Path
) -> None:
    """Its files may be no larger than a part of the policy: it still owes the other the calls for the value model."""
    run = own_copy(tiny_run, tmp_path, ["sft", "reward"])
    process = start("ppo", str(TINY), EVERY_STEP, shared(strategy), "checkpoint.keep_best=false", folder=tmp_path)
    assert wait_for(lambda: len(ranks(process, "ppo")) == 2, process)
    (second,) = [rank for rank in ranks(process, "ppo") if rank.environ().get("RANK") == "1"]
    second.rlimit(psutil.RLIMIT_FSIZE, (20_000, 20_000))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert err.count("no checkpoint of step") == 3 and err.count("(rank 1: ") == 3, err
    assert not (run / "ppo" / "checkpoints").exists() and (run / "ppo" / "manifest.json").exists()


def test_a_folder_that_cannot_be_written_is_named_before_anything_starts(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = rlhf("run", str(TINY), folder=small_disk)
    assert done.returncode == 2, done.stdout
    assert done.stderr.startswith("error: runs/tiny: ")
    assert "cannot be written; give another --run" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(small_disk.iterdir()) == []


def test_a_disk_without_room_for_figures_ends_in_one_line(tiny_run: Path, small_disk: Path) -> None:
    own_copy(tiny_run, small_disk, ["sft", "reward"])
    assert rlhf("ppo", str(TINY), "--stop-after", "1", folder=small_disk).returncode == 0
    ballast = fill(small_disk, leave=0)
    done = stage_alone(small_disk)
    assert done.returncode == AWAY, done.stdout
    assert "No space left on device" in done.stderr
    assert one_line_each(done.stderr), done.stderr
    ballast.unlink()
    assert rlhf("ppo", str(TINY), folder=small_disk).returncode == 0
    assert_same(small_disk / "runs" / "tiny" / "ppo", tiny_run / "ppo")
