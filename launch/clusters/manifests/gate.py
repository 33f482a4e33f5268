"""What holds a stage back until its inputs are complete, while no GPU is taken for it.

Each stage is a workload of its own, so that stages may differ in nodes and GPUs are free between them. Where its
inputs are still to come, one of two things waits on a CPU:

- a first Job within the workload, on whose completion the other Jobs depend: pods that want GPUs are made only then.
  It asks for no rights, but for a JobSet, and for no queue: Kueue admits a workload whole, so that quota of all
  waiting stages would be taken from the beginning, and a later stage could be admitted before an earlier one, for good.
- else a Job beside the workload, which is submitted asleep: once the inputs are complete it hands the workload to the
  queue (or wakes it, where there is none). Its service account has to be allowed to patch workloads.
"""

from __future__ import annotations

import json

from launch.clusters.manifests.objects import QUEUE, RECIPE, Object, Place
from launch.clusters.manifests.pods import small_container, template

GATE = "gate"
TRIES = 6  # of a gate whose node goes, or whose server does not answer


def waiting_command(place: Place) -> list[str]:
    """The command line of a gate."""
    command = ["python", "-P", "-m", "launch.clusters.gate", "--run", str(place.spec.run)]
    if place.spec.recipe is not None:
        command += ["--recipe", RECIPE]
    command += ["--wait", f"{place.cluster.wait_hours * 3600:.0f}"]
    if place.held:
        workload, cluster = place.workload, place.cluster
        path = f"/apis/{workload.api}/namespaces/{cluster.namespace}/{workload.plural}/{place.name}"
        command += ["--patch", path, "--with", json.dumps(release(place))]
    return place.words([*command, place.job.stage])


def release(place: Place) -> Object:
    """What is changed of a workload that is to run now, as a merge patch (RFC 7386)."""
    if place.cluster.queue:
        return {"metadata": {"labels": {QUEUE: place.cluster.queue}}}
    return {"spec": {"runPolicy": {"suspend": False}}} if place.cluster.kind == "pytorchjob" else {}


def gate_template(place: Place) -> Object:
    """The pod that waits. It needs no GPU node, and tolerates what their pods tolerate, should there be no others."""
    content = template(place, GATE, small_container(place, GATE, waiting_command(place)), 10, anywhere=True)
    if place.held:
        content["spec"]["automountServiceAccountToken"] = True
    return content


def gate_job(place: Place) -> Object:
    """The Job beside a workload that sleeps."""
    spec = {"backoffLimit": TRIES, "podFailurePolicy": final_codes(GATE), "podReplacementPolicy": "Failed"}
    spec["template"] = gate_template(place)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": place.metadata(f"{place.name}-{GATE}", GATE),
        "spec": spec,
    }


def final_codes(container: str) -> Object:
    """Bad input fails at once; what somebody else did to a pod is no try of the job's.

    75 is a stage that was asked to stop and has written its checkpoint: the other pods of one that was disrupted.
    """
    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": [2]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": {"containerName": container, "operator": "In", "values": [75]}},
        ]
    }
