"""A stage as a JobSet (jobset.x-k8s.io/v1alpha2): its roles are ReplicatedJobs."""

from __future__ import annotations

from launch.clusters.manifests.gate import gate_job
from launch.clusters.manifests.jobs import jobset_spec
from launch.clusters.manifests.objects import JOBSET, Object, Place


def jobset(place: Place) -> list[Object]:
    """The JobSet, behind its gate where that stands beside it."""
    spec = {**({"suspend": True} if place.held else {}), **jobset_spec(place)}
    metadata = place.queued(place.metadata())
    content = {"apiVersion": JOBSET, "kind": "JobSet", "metadata": metadata, "spec": spec}
    return [*([gate_job(place)] if place.held else []), content]
