"""What every pod has: image, volumes, environment, resources, placement, and no rights."""

from __future__ import annotations

from math import ceil
from typing import Any

from launch.clusters.job import Role
from launch.clusters.manifests.objects import RECIPE, Object, Place, literal, near, recipe_name
from launch.clusters.network import network_environment

GENERATION_TOKEN = "RLHF_GENERATION_TOKEN"
# The image may know no user of the pod's number: torch asks for a name, and libraries keep what they fetch at home.
NOBODY = {"HOME": "/tmp", "USER": "rlhf"}
START_SECONDS, LOOK_SECONDS = 3600, 10  # that a server may take to load its model; between two looks at it


def trainer_container(place: Place, role: Role, command: list[str]) -> Object:
    """That starts the processes of a node."""
    return {
        "name": place.workload.trainer,
        "image": place.cluster.image,
        "command": command,
        "workingDir": place.directory,
        "env": environment(place, role),
        "resources": resources(place, role, sum(server.gpus for server in place.job.servers if server.colocated)),
        "volumeMounts": mounts(place, shared_memory=True),
        "securityContext": container_security(place, role),
    }


def server_container(place: Place, role: Role) -> Object:
    """That answers the trainer; it counts as ready once it serves."""
    content: Object = {
        "name": role.name,
        "image": place.cluster.image,
        "command": place.words(role.command),
        "workingDir": place.directory,
        "env": environment(place, role),
        "ports": [{"name": "http", "containerPort": role.port}],
        "resources": resources(place, role),
        "volumeMounts": mounts(place, shared_memory=True),
        "securityContext": container_security(place, role),
    }
    if role.health:
        asked = {"httpGet": {"path": role.health, "port": "http"}, "periodSeconds": LOOK_SECONDS, "timeoutSeconds": 5}
        content["startupProbe"] = {**asked, "failureThreshold": START_SECONDS // LOOK_SECONDS}
        content["readinessProbe"] = {**asked, "failureThreshold": 3}
    return content


def small_container(place: Place, name: str, command: list[str]) -> Object:
    """That waits, on a CPU."""
    return {
        "name": name,
        "image": place.cluster.image,
        "command": command,
        "workingDir": place.directory,
        "env": variables(NOBODY | place.site.environment),
        "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        "volumeMounts": mounts(place, shared_memory=False),
        "securityContext": container_security(place, None),
    }


def template(place: Place, role: str, container: Object, seconds: float, anywhere: bool = False) -> Object:
    """A pod of one container. seconds: from the signal to stop until it is killed; anywhere: on whichever node."""
    cluster = place.cluster
    spec: Object = {"restartPolicy": "Never", "terminationGracePeriodSeconds": ceil(seconds)}
    if cluster.service_account:
        spec["serviceAccountName"] = cluster.service_account
    spec["automountServiceAccountToken"] = False
    if cluster.priority and not cluster.queue:
        spec["priorityClassName"] = cluster.priority
    spec["securityContext"] = pod_security(place)
    if cluster.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
    if cluster.node_selector and not anywhere:
        spec["nodeSelector"] = dict(cluster.node_selector)
    if cluster.tolerations:
        spec["tolerations"] = [each.model_dump(exclude_none=True) for each in cluster.tolerations]
    annotations = dict(cluster.annotations)
    if cluster.topology and cluster.queue and not anywhere:
        wanted = "required" if cluster.topology.required else "preferred"
        annotations[f"kueue.x-k8s.io/podset-{wanted}-topology"] = cluster.topology.label
    elif cluster.topology and not anywhere:
        spec["affinity"] = near(place, cluster.topology, role)
    spec["containers"] = [container]
    spec["volumes"] = volumes(place, container)
    metadata = {"labels": place.labels(role), **({"annotations": annotations} if annotations else {})}
    return {"metadata": metadata, "spec": spec}


def environment(place: Place, role: Role) -> list[Object]:
    """Variables of a role's container, those that hold secrets by reference."""
    plain = NOBODY | place.site.environment | network_environment(place.site) | dict(role.environment)
    return variables(plain) + [
        secret(place.cluster.secret, name, optional=not (name == GENERATION_TOKEN and place.apart))
        for name in place.spec.secrets
        if place.cluster.secret
    ]


def variables(content: dict[str, str]) -> list[Object]:
    """As a container wants them."""
    return [{"name": name, "value": literal(value)} for name, value in content.items()]


def secret(of: str | None, name: str, optional: bool) -> Object:
    """A variable whose value is that of a Secret's key of the same name."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": of, "key": name, "optional": optional}}}


def resources(place: Place, role: Role, beside: int = 0) -> Object:
    """Of a node: GPUs and network devices are its own, memory is what it is killed beyond, CPUs are shared.

    beside: GPUs of the servers in the same pod.
    """
    cluster, gpus = place.cluster, role.gpus + beside
    cpus, memory = role.cpus or cluster.cpus, role.memory or cluster.memory
    devices: dict[str, Any] = {cluster.gpu: gpus} if gpus else {}
    if gpus:
        devices |= cluster.rdma
    requests: dict[str, Any] = {"cpu": str(cpus)} if cpus else {}
    requests |= {"memory": f"{memory}Gi"} if memory else {}
    limits: dict[str, Any] = ({"memory": f"{memory}Gi"} if memory else {}) | devices
    return {key: value for key, value in (("requests", requests | devices), ("limits", limits)) if value}


def mounts(place: Place, shared_memory: bool) -> list[Object]:
    """Where a container sees the volumes."""
    found: list[Object] = []
    for claim in place.cluster.claims:
        mount: Object = {"name": volume_of(claim.name), "mountPath": claim.path}
        mount |= {"subPath": claim.sub_path} if claim.sub_path else {}
        found.append(mount | ({"readOnly": True} if claim.read_only else {}))
    if place.spec.recipe is not None:
        found.append({"name": "recipe", "mountPath": RECIPE.rpartition("/")[0], "readOnly": True})
    if shared_memory and place.cluster.shared_memory:
        found.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    return found


def volumes(place: Place, container: Object) -> list[Object]:
    """What a container's mounts refer to, each once."""
    sources: dict[str, Object] = {
        volume_of(claim.name): {"persistentVolumeClaim": {"claimName": claim.name}} for claim in place.cluster.claims
    }
    sources["recipe"] = {"configMap": {"name": recipe_name(place.spec)}}
    sources["shared-memory"] = {"emptyDir": {"medium": "Memory", "sizeLimit": f"{place.cluster.shared_memory}Gi"}}
    mounted = dict.fromkeys(mount["name"] for mount in container["volumeMounts"])
    return [{"name": name, **sources[name]} for name in mounted]


def volume_of(claim: str) -> str:
    """A volume's name, which is a label of DNS, where a claim's may have dots."""
    return f"claim-{claim.replace('.', '-')}"[:63].rstrip("-")


def pod_security(place: Place) -> Object:
    """Nobody's root; new files belong to the group, whoever wrote them."""
    cluster = place.cluster
    return {
        "runAsNonRoot": True,
        "runAsUser": cluster.user,
        "runAsGroup": cluster.group,
        "fsGroup": cluster.group,
        "fsGroupChangePolicy": "OnRootMismatch",  # or each start walks through all files of the volumes
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(place: Place, role: Role | None) -> Object:
    """No capability, but for RDMA the one to pin memory."""
    capabilities: Object = {"drop": ["ALL"]}
    if place.cluster.rdma and role is not None and role.gpus:
        capabilities["add"] = ["IPC_LOCK"]
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities}
