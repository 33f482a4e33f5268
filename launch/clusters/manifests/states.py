"""Where a stage is, by what `kubectl get -o json` says of its workload and its gate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.clusters.manifests.gate import GATE
from launch.clusters.manifests.objects import QUEUE
from launch.clusters.scheduler import StageState, State

Document = Mapping[str, Any]
# What a workload's conditions are called: those of PyTorchJob differ.
COMPLETE, FAILED = ("Completed", "Complete", "Succeeded"), ("Failed",)


def chain_states(
    names: Mapping[str, str], workloads: Sequence[Document], gates: Sequence[Document]
) -> list[StageState]:
    """The states of stages, first to last; one that waits for another that has failed or was stopped, waits no more.

    names: of the workload of each stage.
    """
    found = {each["metadata"]["name"]: each for each in workloads}
    gated = {each["metadata"]["name"]: each for each in gates}
    states: list[StageState] = []
    for stage, name in names.items():
        state = stage_state(stage, found.get(name), gated.get(f"{name}-{GATE}"))
        ended = [each for each in states if each.state in ("failed", "stopped")]
        if state.state == "waiting" and ended:
            state = StageState(stage, "stopped", f"{state.told}, in vain: {ended[0].stage} {ended[0].state}")
        states.append(state)
    return states


def stage_state(stage: str, workload: Document | None, gate: Document | None) -> StageState:
    """The state of a stage. workload, gate: as the server has them, None where it has none."""
    if workload is None:
        return StageState(stage, "stopped", "not on the cluster any more; rlhf resume submits it again")
    name = f"{str(workload.get('kind', '')).lower()}/{workload['metadata']['name']}"
    state, told = _of_workload(workload)
    if state in ("waiting", "running") and gate is not None and (failure := condition(gate, FAILED)):
        return StageState(stage, "failed", f"{name}: its gate failed: {reason(failure)}")
    if state == "waiting" and gate is not None and not condition(gate, COMPLETE):
        told = "waits for the stages before it"
    elif state == "waiting" and gate is not None and suspended(workload) and not queue_of(workload):
        # Its gate has found a result that stands, and let it sleep.
        state, told = "complete", "was complete already"
    return StageState(stage, state, f"{name}: {told}")


def _of_workload(workload: Document) -> tuple[State, str]:
    status: Document = workload.get("status") or {}
    counted = tries(status)
    if condition(workload, COMPLETE):
        return "complete", f"complete{counted}"
    if failure := condition(workload, FAILED):
        return "failed", f"{reason(failure)}{counted}"
    if workload["metadata"].get("deletionTimestamp"):
        return "stopped", "is being deleted, behind a checkpoint"
    if suspended(workload):
        queue = queue_of(workload)
        return "waiting", f"in queue {queue}{counted}" if queue else f"suspended{counted}"
    jobs = jobs_of(status)
    if any(job["name"] == GATE and not job.get("succeeded") for job in jobs):
        return "waiting", f"waits for the stages before it{counted}"
    parts = [part for job in jobs if job["name"] != GATE and (part := progress(job))]
    running = any(job.get("ready") for job in jobs if job["name"] != GATE)
    return ("running" if running else "waiting"), (", ".join(parts) or "pods are being made") + counted


def jobs_of(status: Document) -> list[Document]:
    """The Jobs of a workload, or what a PyTorchJob has in their place, each with its counts."""
    found: list[Document] = list(status.get("replicatedJobsStatus") or status.get("jobsStatus") or [])
    for name, counts in (status.get("replicaStatuses") or {}).items():
        found.append({"name": name.lower(), **counts, "ready": counts.get("active", 0)})
    return found


def progress(job: Document) -> str:
    """One Job, for people."""
    for key, told in (("failed", "failed"), ("succeeded", "done"), ("ready", "running"), ("active", "starting")):
        if job.get(key):
            return f"{job['name']} {told}"
    return ""


def tries(status: Document) -> str:
    """How often it was started anew, for people."""
    restarts = status.get("restarts", 0)
    return f", started anew {restarts} time{'s' if restarts > 1 else ''}" if restarts else ""


def queue_of(workload: Document) -> str | None:
    """Kueue's queue that it is in."""
    found: str | None = workload["metadata"].get("labels", {}).get(QUEUE)
    return found


def suspended(workload: Document) -> bool:
    """Whether it sleeps."""
    spec: Document = workload.get("spec") or {}
    return bool(spec.get("suspend") or (spec.get("runPolicy") or {}).get("suspend"))


def condition(document: Document, types: tuple[str, ...]) -> Document | None:
    """The condition of one of these types that holds."""
    conditions = (document.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] in types and each["status"] == "True"), None)


def reason(failure: Document) -> str:
    """Of a condition, in a line."""
    return " ".join(f"{failure.get('reason', 'Failed')}: {failure.get('message', '')}".split()).rstrip(": ")
