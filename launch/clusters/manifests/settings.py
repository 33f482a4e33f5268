"""The site's section `kubernetes`: what is the same for every run on a cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf.config import Section

Kind = Literal["jobset", "trainjob", "pytorchjob"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]  # RFC 1123
Path = Annotated[str, Field(pattern=r"^/")]
Number = Annotated[int, Field(ge=1)]


class Claim(Section):
    """A PersistentVolumeClaim; several nodes mount it, so its access mode is ReadWriteMany or ReadOnlyMany."""

    name: Name
    path: Path  # where it is mounted
    sub_path: str | None = None  # the folder of the claim that is mounted; null: all of it
    read_only: bool = False


class Toleration(Section):
    """Of a taint, as core/v1 has it."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Topology(Section):
    """The nodes of a role close to each other."""

    label: str  # of nodes, equal for those that are close: cloud.provider.com/topology-rack
    required: bool = False  # wait rather than be spread


class KubernetesSite(Section):
    """A cluster, and one's place in it."""

    kind: Kind = "jobset"
    context: str | None = None  # of kubectl; null: the current one
    namespace: Name = "default"
    image: str | None = None  # see launch/examples/kubernetes/Dockerfile
    pull_secrets: list[Name] = []
    claims: list[Claim] = []  # the run directory lies in one of them, the data too
    directory: Path | None = None  # where relative paths of a recipe begin in pods; null: where rlhf launch was typed
    secret: Name | None = None  # a Secret whose keys are called like the environment variables: WANDB_API_KEY, ...
    service_account: Name | None = None
    queue: str | None = None  # of Kueue, a LocalQueue
    priority: str | None = None  # of Kueue, a WorkloadPriorityClass; without a queue a PriorityClass
    gpu: str = "nvidia.com/gpu"
    rdma: dict[str, Number] = {}  # of each node with GPUs: rdma/hca_shared_devices_a: 1
    cpus: Number | None = None  # of each node, where the job does not say
    memory: Number | None = None  # GiB of each node, where the job does not say
    shared_memory: Number | None = 16  # GiB at /dev/shm, part of the pod's memory; null: the runtime's 64 MiB
    node_selector: dict[str, str] = {}  # of all pods but those that wait
    tolerations: list[Toleration] = []
    topology: Topology | None = None
    user: Number = 1000  # under which everything runs, never root
    group: Number = 1000  # to which new files in volumes belong
    wait_hours: Annotated[float, Field(gt=0)] = 168.0  # how long a stage waits for its inputs
    labels: dict[str, str] = {}  # of everything that is submitted, and of all pods
    annotations: dict[str, str] = {}
