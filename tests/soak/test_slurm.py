"""Each thing that can happen to a job of Slurm, on a real cluster; `tests/test_slurm.py` has one of them."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from interruption import EVERY_STEP, assert_same, manifest, own_copy
from running import TINY, rlhf
from slurm_cluster import Cluster, slurm_cluster
from slurm_faults import CASES, carried_out
from slurm_runs import AGAIN_SECONDS, END_SECONDS, Launched, ppo_of, undisturbed

from stages.lineage import STAGES

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture(scope="module")
def reference(tiny_run_of_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tiny_run_of_two, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("case", CASES)
def test_comes_back_with_undisturbed_figures(
    case: str, cluster: Cluster, tiny_run_of_two: Path, reference: Path, tmp_path: Path
) -> None:
    times = carried_out(case, cluster, tiny_run_of_two, tmp_path, reference)
    print(case, {what: round(seconds, 1) for what, seconds in times.items()})


def test_one_allocation_has_undisturbed_figures(cluster: Cluster, tiny_run_of_two: Path, tmp_path: Path) -> None:
    """The whole chain in one job, of which a process is killed in PPO."""
    launched = Launched(cluster, tmp_path, EVERY_STEP, "--one-allocation")
    assert len(set(launched.submitted["ids"].values())) == 1
    launched.until(lambda: launched.kept("ppo"), END_SECONDS)
    worker = launched.worker(launched.nodes("ppo")[1])
    worker.send_signal(signal.SIGSTOP)  # or it would be complete before it is asked about
    states = launched.states()
    assert (states["ppo"]["state"], states["evaluate"]["state"]) == ("running", "waiting"), states
    worker.kill()
    states = launched.end()
    assert {each["state"] for each in states.values()} == {"complete"}, launched.said()
    assert "sft: complete, nothing to do" in launched.said()
    for stage in STAGES:
        assert_same(launched.run / stage, tiny_run_of_two / stage)


def test_an_array_runs_each_seed(cluster: Cluster, tmp_path: Path) -> None:
    launched = Launched(cluster, tmp_path, "--seeds", "1,2", "--until", "reward", nodes=1)
    states = launched.end()
    told = "seed 1 complete (job {0}_1); seed 2 complete (job {0}_2)"
    assert states["reward"]["told"] == told.format(launched.submitted["ids"]["reward"]), states
    done = rlhf("run", str(TINY), "seed=2", "--until", "reward", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in ("sft", "reward"):
        assert_same(tmp_path / "runs" / "tiny-seed-2" / stage, launched.run / stage)
    first, second = (manifest(tmp_path / "runs" / f"tiny-seed-{seed}" / "sft") for seed in (1, 2))
    assert first["checksums"] != second["checksums"]
    one = rlhf("logs", "tiny", "sft", folder=tmp_path)
    assert {line.partition(":")[0] for line in one.stdout.splitlines()} == {"seed 1", "seed 2"}


def test_bad_input_is_final(cluster: Cluster, tiny_run_of_two: Path, tmp_path: Path) -> None:
    """What PPO starts from is gone when its turn comes: no other try, and nothing behind it."""
    own_copy(tiny_run_of_two, tmp_path, ["sft", "reward"])
    cluster.said("scontrol", "update", "PartitionName=main", "State=DOWN")  # nothing starts yet
    launched = Launched(cluster, tmp_path, "--from", "ppo")
    shutil.rmtree(launched.run / "sft")
    cluster.said("scontrol", "update", "PartitionName=main", "State=UP")
    states = launched.end()
    assert states["ppo"]["state"] == "failed" and "exit code 2" in states["ppo"]["told"], states
    assert states["evaluate"]["told"].endswith("never began, for ppo is not complete"), states
    said = rlhf("logs", "tiny", "ppo", folder=tmp_path)
    assert "error: ppo: needs sft and reward, not complete" in said.stdout, said.stdout + said.stderr


def test_a_stage_that_always_dies_is_given_up(cluster: Cluster, tiny_run_of_two: Path, tmp_path: Path) -> None:
    launched = ppo_of(cluster, tiny_run_of_two, tmp_path, "--retries", "1")
    for number in (1, 2):
        launched.until(lambda number=number: len(launched.began()) == number and launched.alive(), AGAIN_SECONDS)
        launched.worker(launched.nodes()[0]).kill()
    state = launched.end()["ppo"]
    assert (state["state"], "exit code 137, try 2" in state["told"]) == ("failed", True), state
    assert "2 tries in a row came to no checkpoint behind none; given up" in launched.said()


def test_a_job_that_somebody_cancels_stays_dead(cluster: Cluster, tiny_run_of_two: Path, tmp_path: Path) -> None:
    """By Slurm's own scancel: a requeue would bring it back to life."""
    launched = ppo_of(cluster, tiny_run_of_two, tmp_path)
    launched.reach()
    cluster.said("scancel", launched.submitted["ids"]["ppo"])
    launched.until(lambda: not launched.under_way(), 60)
    time.sleep(15)
    assert not launched.under_way()
    assert launched.states()["ppo"]["state"] == "stopped"
