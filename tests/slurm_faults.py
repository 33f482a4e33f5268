"""What can happen to PPO on two nodes of Slurm: each case does it, and says how long what followed took."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from interruption import assert_same
from running import rlhf
from slurm_cluster import LOST_SECONDS, Cluster
from slurm_runs import AGAIN_SECONDS, END_SECONDS, Launched, ppo_of

Times = dict[str, float]
PATIENT = "watchdog={warn_seconds: 60, abort_seconds: 300}"


def node_lost(launched: Launched) -> Times:
    """The second node, with its daemon, for good: Slurm misses it, and the job goes on elsewhere."""
    return lost(launched, launched.nodes()[1])


def first_node_lost(launched: Launched) -> Times:
    """The node on which the batch script runs."""
    return lost(launched, launched.nodes()[0])


def lost(launched: Launched, node: str) -> Times:
    launched.cluster.lose(node)
    times = {"next step": next_step(launched)}
    assert node not in launched.nodes()
    launched.cluster.revive(node)
    return times


def process_killed(launched: Launched) -> Times:
    """One process by SIGKILL: srun fails, and the script requeues its job."""
    launched.worker(launched.nodes()[1]).kill()
    times = {"next step": next_step(launched)}
    assert "exit code 137: requeued" in launched.said()
    return times


def preempted(launched: Launched) -> Times:
    """By a job of a partition that comes first: SIGTERM, five seconds, and the nodes are gone."""
    launched.cluster.said(
        "sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 5"
    )
    times = {"next step": next_step(launched)}
    assert "stopped by SIGTERM" in launched.said()
    return times


def time_over(launched: Launched) -> Times:
    """Its minutes are over: it is told before, and goes on in other ones. Its processes are held until it is told."""
    workers = [launched.worker(node) for node in launched.nodes()]
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    launched.until(lambda: "asked to stop" in launched.said(), 240)
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    times = {"next step": next_step(launched)}
    assert "exit code 75: requeued" in launched.said()
    return times


def cancelled(launched: Launched) -> Times:
    """By `rlhf cancel`: stopped behind a checkpoint and not requeued; `rlhf resume` goes on."""
    done = rlhf("cancel", "tiny", folder=launched.folder)
    assert done.returncode == 0 and "asked to stop" in done.stdout, done.stdout + done.stderr
    times = {"gone": launched.until(lambda: not launched.under_way(), 60)}
    state = launched.states()["ppo"]
    assert state["state"] == "stopped" and "at checkpoint step-" in state["told"], state
    again = rlhf("resume", "tiny", folder=launched.folder)
    assert again.returncode == 0, again.stdout + again.stderr
    return times


CASES: dict[str, Callable[[Launched], Times]] = {
    case.__name__: case for case in (node_lost, first_node_lost, process_killed, preempted, time_over, cancelled)
}


def next_step(launched: Launched) -> float:
    """Seconds until a try after this one has begun and made a step."""
    before = len(launched.began())

    def made() -> bool:
        return len(launched.began()) > before and "going on from" in launched.said()

    return launched.until(made, 2 * LOST_SECONDS + AGAIN_SECONDS)


def carried_out(case: str, cluster: Cluster, inputs: Path, folder: Path, reference: Path) -> Times:
    """One case, up to the figures of the run that nobody disturbed."""
    options = ["--hours", "0.04"] if case == "time_over" else []
    launched = ppo_of(cluster, inputs, folder, PATIENT, *options)
    launched.reach()
    times = CASES[case](launched)
    times["complete"] = launched.until(lambda: launched.states()["ppo"]["state"] == "complete", END_SECONDS)
    assert_same(launched.run / "ppo", reference)
    assert launched.said().count("going on from") >= 1, launched.said()
    return times
