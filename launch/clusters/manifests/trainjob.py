"""A stage as a TrainJob of Kubeflow Trainer (trainer.kubeflow.org/v1alpha1), with a TrainingRuntime of its own.

A TrainJob can say which image, how many nodes and what runs; roles, order, failure policy and pods are a runtime's.
One of the cluster's could not be asked for gates, servers or exit codes, so each stage brings its own.
"""

from __future__ import annotations

from launch.clusters.manifests.gate import gate_job
from launch.clusters.manifests.jobs import jobset_spec
from launch.clusters.manifests.objects import TRAINJOB, Object, Place

STEP = "trainer.kubeflow.org/trainjob-ancestor-step"  # the Job that the TrainJob's own fields are about


def trainjob(place: Place) -> list[Object]:
    """The TrainingRuntime and the TrainJob, behind its gate where that stands beside it."""
    runtime = training_runtime(place)
    node = runtime["spec"]["template"]["spec"]["replicatedJobs"][-1]["template"]["spec"]
    container = node["template"]["spec"]["containers"][0]
    role = place.job.trainer
    trainer = {"image": container["image"], "command": container.pop("command"), "env": container.pop("env")}
    trainer |= {"numNodes": role.nodes, "numProcPerNode": role.processes}
    if resources := container.pop("resources"):
        trainer["resourcesPerNode"] = resources
    spec: Object = {"suspend": True} if place.held else {}
    spec["runtimeRef"] = {"apiGroup": TRAINJOB.partition("/")[0], "kind": "TrainingRuntime", "name": place.name}
    metadata = place.queued(place.metadata())
    content = {"apiVersion": TRAINJOB, "kind": "TrainJob", "metadata": metadata, "spec": {**spec, "trainer": trainer}}
    return [*([gate_job(place)] if place.held else []), runtime, content]


def training_runtime(place: Place) -> Object:
    """How a stage's pods are made."""
    content = jobset_spec(place)
    node = content["replicatedJobs"][-1]
    node["template"] = {"metadata": {"labels": {STEP: "trainer"}}, **node["template"]}
    metadata = place.metadata()
    metadata["labels"] = {**metadata["labels"], "trainer.kubeflow.org/framework": "torch"}
    policy = {"numNodes": place.job.trainer.nodes, "torch": {}}
    spec = {"mlPolicy": policy, "template": {"spec": content}}
    return {"apiVersion": TRAINJOB, "kind": "TrainingRuntime", "metadata": metadata, "spec": spec}
