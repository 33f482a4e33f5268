"""Where stages are, by documents as the API server has them; none of them was recorded from a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from launch.clusters.manifests.states import stage_state


def condition(kind: str, reason: str = "Any", message: str = "", status: str = "True") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def document(kind: str, status: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    metadata = {"name": "rlhf-demo-ppo", **others.pop("metadata", {})}
    return {
        "kind": kind,
        "metadata": metadata,
        "spec": others.get("spec", {}),
        **({"status": status} if status else {}),
    }


QUEUED = {"labels": {"kueue.x-k8s.io/queue-name": "research"}}
GATE = {"name": "gate", "active": 1, "ready": 1}
WORKLOADS = {
    "just made": (document("JobSet"), "waiting", "jobset/rlhf-demo-ppo: pods are being made"),
    "gate waits": (
        document("JobSet", {"replicatedJobsStatus": [GATE, {"name": "trainer", "active": 0}]}),
        "waiting",
        "jobset/rlhf-demo-ppo: waits for the stages before it",
    ),
    "pods pending": (
        document("JobSet", {"replicatedJobsStatus": [{"name": "trainer", "active": 1, "ready": 0}]}),
        "waiting",
        "jobset/rlhf-demo-ppo: trainer starting",
    ),
    "running": (
        document(
            "JobSet",
            {
                "restarts": 2,
                "replicatedJobsStatus": [
                    {"name": "gate", "succeeded": 1},
                    {"name": "generator", "active": 1, "ready": 1},
                    {"name": "trainer", "active": 1, "ready": 1},
                ],
            },
        ),
        "running",
        "jobset/rlhf-demo-ppo: generator running, trainer running, started anew 2 times",
    ),
    "complete": (
        document("JobSet", {"conditions": [condition("Completed", "AllJobsCompleted")], "restarts": 1}),
        "complete",
        "jobset/rlhf-demo-ppo: complete, started anew 1 time",
    ),
    "failed": (
        document(
            "JobSet",
            {"conditions": [condition("Failed", "FailedJobs", "jobset failed due to\none or more job failures")]},
        ),
        "failed",
        "jobset/rlhf-demo-ppo: FailedJobs: jobset failed due to one or more job failures",
    ),
    "queued": (
        document("JobSet", spec={"suspend": True}, metadata=QUEUED),
        "waiting",
        "jobset/rlhf-demo-ppo: in queue research",
    ),
    "suspended by hand": (
        document("JobSet", {"conditions": [condition("Suspended")]}, spec={"suspend": True}),
        "waiting",
        "jobset/rlhf-demo-ppo: suspended",
    ),
    "no condition any more": (
        document(
            "JobSet",
            {
                "conditions": [condition("Suspended", status="False"), condition("Failed", status="False")],
                "replicatedJobsStatus": [{"name": "trainer", "ready": 1}],
            },
        ),
        "running",
        "jobset/rlhf-demo-ppo: trainer running",
    ),
    "being deleted": (
        document("JobSet", metadata={"deletionTimestamp": "2026-11-28T00:00:00Z"}),
        "stopped",
        "jobset/rlhf-demo-ppo: is being deleted, behind a checkpoint",
    ),
    "TrainJob runs": (
        document("TrainJob", {"jobsStatus": [{"name": "node", "ready": 1, "active": 1, "succeeded": 0}]}),
        "running",
        "trainjob/rlhf-demo-ppo: node running",
    ),
    "TrainJob complete": (
        document("TrainJob", {"conditions": [condition("Complete", "JobsCompleted")]}),
        "complete",
        "trainjob/rlhf-demo-ppo: complete",
    ),
    "PyTorchJob runs": (
        document(
            "PyTorchJob",
            {
                "conditions": [condition("Created"), condition("Running")],
                "replicaStatuses": {"Master": {"active": 1}, "Worker": {"active": 3}},
            },
        ),
        "running",
        "pytorchjob/rlhf-demo-ppo: master running, worker running",
    ),
    "PyTorchJob complete": (
        document("PyTorchJob", {"conditions": [condition("Running", status="False"), condition("Succeeded")]}),
        "complete",
        "pytorchjob/rlhf-demo-ppo: complete",
    ),
    "PyTorchJob failed": (
        document("PyTorchJob", {"conditions": [condition("Failed", "BackoffLimitExceeded", "has failed")]}),
        "failed",
        "pytorchjob/rlhf-demo-ppo: BackoffLimitExceeded: has failed",
    ),
}


@pytest.mark.parametrize("case", WORKLOADS)
def test_state_of_a_workload(case: str) -> None:
    workload, state, told = WORKLOADS[case]
    found = stage_state("ppo", workload, None)
    assert (found.stage, found.state, found.told) == ("ppo", state, told)


ASLEEP = document("PyTorchJob", spec={"runPolicy": {"suspend": True}})


def test_a_workload_that_sleeps_waits_for_the_stages_before_it() -> None:
    found = stage_state("ppo", ASLEEP, document("Job", {"active": 1}))
    assert (found.state, found.told) == ("waiting", "pytorchjob/rlhf-demo-ppo: waits for the stages before it")


def test_a_gate_that_failed_is_the_stage_that_failed() -> None:
    gate = document("Job", {"conditions": [condition("Failed", "PodFailurePolicy", "exit code 2")]})
    found = stage_state("ppo", ASLEEP, gate)
    assert (found.state, found.told[-29:]) == ("failed", "PodFailurePolicy: exit code 2")


def test_a_workload_that_was_not_woken_was_complete() -> None:
    found = stage_state("ppo", ASLEEP, document("Job", {"conditions": [condition("Complete")]}))
    assert (found.state, found.told) == ("complete", "pytorchjob/rlhf-demo-ppo: was complete already")


def test_one_handed_to_the_queue_waits_there() -> None:
    workload = document("JobSet", spec={"suspend": True}, metadata=QUEUED)
    found = stage_state("ppo", workload, document("Job", {"conditions": [condition("Complete")]}))
    assert (found.state, found.told) == ("waiting", "jobset/rlhf-demo-ppo: in queue research")


def test_one_that_is_not_there_was_stopped() -> None:
    assert stage_state("ppo", None, None).state == "stopped"
