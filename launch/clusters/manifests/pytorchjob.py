"""A stage as a PyTorchJob (kubeflow.org/v1), for clusters that have the Training Operator and nothing newer.

Its operator knows no roles but the first node (Master) and the others (Worker), and no rule for exit codes that is
bounded as well: ExitCode restarts without end (kubeflow/trainer issue 2045). So containers are started anew in their
pods, `backoffLimit` times in all, after bad input too.
"""

from __future__ import annotations

from math import ceil

from launch.clusters.manifests.gate import gate_job
from launch.clusters.manifests.jobs import node_command
from launch.clusters.manifests.objects import PYTORCHJOB, Object, Place
from launch.clusters.manifests.pods import template, trainer_container


def pytorchjob(place: Place) -> list[Object]:
    """The PyTorchJob, behind its gate."""
    role = place.job.trainer
    policy: Object = {"suspend": True} if place.held else {}
    policy |= {"cleanPodPolicy": "Running", "backoffLimit": place.job.retries * role.nodes}
    if place.job.hours is not None:
        policy["activeDeadlineSeconds"] = ceil(place.job.hours * 3600)
    replicas = {"Master": replica(place, 1)}
    if role.nodes > 1:
        replicas["Worker"] = replica(place, role.nodes - 1)
    content = {
        "apiVersion": PYTORCHJOB,
        "kind": "PyTorchJob",
        "metadata": place.queued(place.metadata()),
        "spec": {"runPolicy": policy, "nprocPerNode": str(role.processes), "pytorchReplicaSpecs": replicas},
    }
    return [*([gate_job(place)] if place.held else []), content]


def replica(place: Place, pods: int) -> Object:
    """Equal pods; the operator tells each its number and the first one's name."""
    role = place.job.trainer
    container = trainer_container(place, role, node_command(place, None))
    pod = template(place, role.name, container, place.job.grace_seconds)
    del pod["spec"]["restartPolicy"]  # the operator's
    return {"replicas": pods, "restartPolicy": "OnFailure", "template": pod}
