"""Roles as Jobs, which a JobSet and a TrainingRuntime are made of."""

from __future__ import annotations

import json
from math import ceil

from launch.clusters.job import Role
from launch.clusters.manifests.gate import GATE, TRIES, final_codes, gate_template
from launch.clusters.manifests.objects import RECIPE, Object, Place, addresses
from launch.clusters.manifests.pods import server_container, template, trainer_container

# What a Job says of itself when the same would end in the same: bad input, or the time limit.
FINAL_REASONS = ["PodFailurePolicy", "DeadlineExceeded"]


def replicated_jobs(place: Place) -> list[Object]:
    """The roles of a stage in the order in which they start: gate, servers, trainer."""
    jobs: list[Object] = []
    if place.gated:
        spec = {"parallelism": 1, "completions": 1, "backoffLimit": TRIES, "podReplacementPolicy": "Failed"}
        spec |= {"podFailurePolicy": final_codes(GATE), "template": gate_template(place)}
        jobs.append({"name": GATE, "replicas": 1, "template": {"spec": spec}})
    for role in place.apart:
        pod = template(place, role.name, server_container(place, role), 30)
        # One that dies is started anew beside the others: the trainer waits for it, and gives it the weights again.
        spec = job_spec(place, role, role.name, pod) | {"backoffLimit": place.job.retries * role.nodes}
        jobs.append({"name": role.name, "replicas": 1, **after(jobs), "template": {"spec": spec}})
    jobs.append({**trainer(place), **after(jobs)})
    jobs[-1]["template"] = jobs[-1].pop("template")  # last, as a person would write it
    return jobs


def trainer(place: Place) -> Object:
    """The Job of the trainer. Any pod that fails for good ends it, and the failure policy starts all pods anew."""
    called, role = place.workload.trainer, place.job.trainer
    command = node_command(place, master_of(place))
    pod = template(place, role.name, trainer_container(place, role, command), place.job.grace_seconds)
    spec = job_spec(place, role, called, pod)
    if place.job.hours is not None:
        spec = {"activeDeadlineSeconds": ceil(place.job.hours * 3600), **spec}
    return {"name": called, "replicas": 1, "template": {"spec": spec}}


def job_spec(place: Place, role: Role, container: str, pod: Object) -> Object:
    """A pod for each node of a role, each with a number."""
    return {
        "parallelism": role.nodes,
        "completions": role.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",  # never two pods of one number
        "podFailurePolicy": final_codes(container),
        "template": pod,
    }


def after(jobs: list[Object]) -> Object:
    """What the next Job waits for: the one before, which a gate has to end, and a server to serve."""
    if not jobs:
        return {}
    name = jobs[-1]["name"]
    return {"dependsOn": [{"name": name, "status": "Complete" if name == GATE else "Ready"}]}


def master_of(place: Place) -> str:
    """Where the processes of a stage meet: the pod of the first node."""
    return f"{place.name}-{place.workload.trainer}-0-0.{place.name}"


def node_command(place: Place, master: str | None) -> list[str]:
    """What a trainer's pod runs: its processes, with exit codes and signals that are theirs."""
    role = place.job.trainer
    command = ["python", "-P", "-m", "launch.clusters.pod", "--run", str(place.spec.run), "--stage", place.job.stage]
    if place.spec.recipe is not None:
        command += ["--recipe", RECIPE]
    command += ["--nodes", str(role.nodes), "--processes", str(role.processes)]
    if role.nodes > 1:
        command += ["--address", master] if master else []
        command += ["--port", str(place.site.network.port)]
    command += ["--grace", f"{place.job.grace_seconds:g}"]
    for server in place.job.servers:
        command += ["--beside", json.dumps(beside(place, server))] if server.colocated else []
    return place.words([*command, "--"]) + [*place.words(role.command), *announced(place)]


def beside(place: Place, server: Role) -> Object:
    """A server that the trainer's pod starts itself: GPUs of one pod are those of one container."""
    found: Object = {"command": place.local(server.command), "environment": dict(server.environment)}
    scheme = "http" if server.health else "tcp"
    found["health"] = f"{scheme}://127.0.0.1:{server.port}{server.health or ''}"
    return found


def announced(place: Place) -> list[str]:
    """Overrides that tell the trainer where its servers are."""
    found = []
    for server in place.job.servers:
        hosts = ["127.0.0.1"] if server.colocated else addresses(place, server, server.name)
        if server.announced:
            found.append(f"{server.announced}=[{','.join(f'http://{host}:{server.port}' for host in hosts)}]")
    return found


def failure_policy(place: Place) -> Object:
    """All pods of the stage anew, so often; at once the end where that would not help."""
    rule = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": FINAL_REASONS}
    return {"maxRestarts": place.job.retries, "rules": [rule]}


def jobset_spec(place: Place) -> Object:
    """A stage as a JobSet: complete once its trainer is, whatever its servers still do."""
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},  # pods meet before they are ready
        "successPolicy": {"operator": "All", "targetReplicatedJobs": [place.workload.trainer]},
        "failurePolicy": failure_policy(place),
        "replicatedJobs": replicated_jobs(place),
    }
