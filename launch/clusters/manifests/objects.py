"""Names, labels and the YAML of what is submitted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from launch.clusters.job import JobSpec, Role, RunSpec
from launch.clusters.manifests.settings import KubernetesSite, Topology
from launch.clusters.site import Site
from rlhf.errors import ConfigError

Object = dict[str, Any]

# A pod is called NAME-generator-0-12-x7k2p, which has to be a label of DNS: 63 characters.
LONGEST_NAME = 40
RUN, STAGE, ROLE = "app.kubernetes.io/instance", "rlhf/stage", "app.kubernetes.io/component"
DIRECTORY = "rlhf/run"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
RECIPE = "/etc/rlhf/recipe.yaml"  # where pods see the recipe that was submitted
JOBSET, TRAINJOB, PYTORCHJOB = "jobset.x-k8s.io/v1alpha2", "trainer.kubeflow.org/v1alpha1", "kubeflow.org/v1"


@dataclass(frozen=True)
class Workload:
    """A kind that runs a stage."""

    kind: str
    api: str  # group/version
    plural: str  # in the server's paths
    trainer: str  # what its trainer's container has to be called

    @property
    def resource(self) -> str:
        """As kubectl wants it: with the group, because other groups have kinds of the same name."""
        return f"{self.plural}.{self.api.partition('/')[0]}"


WORKLOADS: Mapping[str, Workload] = {
    "jobset": Workload("JobSet", JOBSET, "jobsets", "trainer"),
    "trainjob": Workload("TrainJob", TRAINJOB, "trainjobs", "node"),
    "pytorchjob": Workload("PyTorchJob", PYTORCHJOB, "pytorchjobs", "pytorch"),
}


@dataclass(frozen=True)
class Place:
    """A stage of a run on a cluster: all that a manifest follows from."""

    spec: RunSpec
    job: JobSpec
    site: Site

    @property
    def cluster(self) -> KubernetesSite:
        """The site's section."""
        return self.site.kubernetes

    @property
    def name(self) -> str:
        """Of the stage's workload."""
        return name_of(self.spec, self.job.stage)

    @property
    def workload(self) -> Workload:
        """The kind that the cluster knows."""
        return WORKLOADS[self.cluster.kind]

    @property
    def directory(self) -> str:
        """Where commands are started."""
        return self.cluster.directory or str(self.spec.directory)

    @property
    def apart(self) -> list[Role]:
        """Servers in pods of their own."""
        return [role for role in self.job.servers if not role.colocated]

    @property
    def held(self) -> bool:
        """Whether the workload is submitted asleep; see `gate`."""
        return bool(self.job.after) and (self.cluster.queue is not None or self.cluster.kind == "pytorchjob")

    @property
    def gated(self) -> bool:
        """Whether the workload itself begins with waiting; see `gate`."""
        return bool(self.job.after) and not self.held

    def labels(self, role: str | None = None) -> dict[str, str]:
        """By which everything of a run, a stage or a role is found."""
        own = {RUN: name_of(self.spec), STAGE: self.job.stage, "app.kubernetes.io/part-of": "rlhf"}
        return {**self.cluster.labels, **own, **({ROLE: role} if role else {})}

    def metadata(self, name: str | None = None, role: str | None = None) -> Object:
        """Of a whole object."""
        annotations = {**self.cluster.annotations, DIRECTORY: str(self.spec.run)}
        labels = self.labels(role)
        place = {"name": name or self.name, "namespace": self.cluster.namespace}
        return {**place, "labels": labels, "annotations": annotations}

    def queued(self, metadata: Object) -> Object:
        """With Kueue's labels, unless the queue is to see the workload only once its inputs are complete."""
        asked = {QUEUE: self.cluster.queue, PRIORITY: self.cluster.priority}
        if not self.cluster.queue:
            return metadata
        if self.held:
            del asked[QUEUE]
        return {**metadata, "labels": {**metadata["labels"], **{key: value for key, value in asked.items() if value}}}

    def local(self, command: Sequence[str]) -> list[str]:
        """A command with the interpreter that the pods have."""
        first = self.site.python or "python" if command[0].rpartition("/")[2].startswith("python") else command[0]
        return [first, *command[1:]]

    def words(self, command: Sequence[str]) -> list[str]:
        """The same as a container's command."""
        return [literal(each) for each in self.local(command)]


def literal(text: str) -> str:
    """A word of a command or a variable's value, in which Kubernetes replaces nothing: it reads $(NAME) and $$."""
    return text.replace("$", "$$")


def name_of(spec: RunSpec, stage: str = "") -> str:
    """Of a run or of its stage; a long one is cut, and told from others that begin alike by a hash."""
    wanted = spec.named(stage).strip("-")
    plain = re.sub(r"[^a-z0-9]+", "-", spec.name.lower()).strip("-")
    if len(wanted) <= LONGEST_NAME and plain in wanted:
        return wanted
    ending = f"-{hashlib.sha256(spec.name.encode()).hexdigest()[:5]}" + (f"-{stage}" if stage else "")
    return f"rlhf-{plain[: LONGEST_NAME - len('rlhf-') - len(ending)].strip('-')}{ending}"


def addresses(place: Place, role: Role, called: str) -> list[str]:
    """The names that a role's pods have in the network of a JobSet."""
    return [f"{place.name}-{called}-0-{node}.{place.name}" for node in range(role.nodes)]


def recipe_map(spec: RunSpec, site: Site) -> Object:
    """A ConfigMap with the recipe, which the pods bring into the run directory."""
    first = Place(spec, spec.jobs[0], site)
    metadata = first.metadata(recipe_name(spec))
    metadata["labels"] = {key: value for key, value in metadata["labels"].items() if key != STAGE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"recipe.yaml": spec.recipe}}


def recipe_name(spec: RunSpec) -> str:
    """Of the ConfigMap."""
    return f"{name_of(spec)}-recipe"


def near(place: Place, topology: Topology, role: str) -> Object:
    """A pod's affinity to the others of its role."""
    term = {"topologyKey": topology.label, "labelSelector": {"matchLabels": place.labels(role)}}
    if topology.required:
        return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    weighed = {"weight": 100, "podAffinityTerm": term}
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [weighed]}}


class _Dumper(yaml.SafeDumper):
    """Lists indented, texts of several lines as blocks, no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def to_yaml(objects: Iterable[Object]) -> str:
    """Documents that `kubectl apply -f -` takes, one after another or together with those of other files."""
    dumped = (yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True) for each in objects)
    return "".join(f"---\n{text}" for text in dumped)


def require_renderable(spec: RunSpec, site: Site) -> None:
    """Raise ConfigError with a line for each thing without which there is no manifest."""
    cluster = site.kubernetes
    problems = []
    if not cluster.image:
        problems.append("site kubernetes.image: is not set; name the image that pods run (docs/clusters-kubernetes.md)")
    if not any(spec.run.is_relative_to(claim.path) and not claim.read_only for claim in cluster.claims):
        problems.append(
            f"site kubernetes.claims: the run directory {spec.run} is in none that can be written; mount one above it, "
            f"such as {{name: runs, path: {spec.run.parent}}}, or give --run a path within one"
        )
    if not cluster.directory and not any(spec.directory.is_relative_to(claim.path) for claim in cluster.claims):
        problems.append(
            f"site kubernetes.directory: pods have no {spec.directory}, where rlhf launch was typed; say where the "
            "recipe's relative paths begin in a pod, or type it in a folder of a claim"
        )
    if site.setup:
        problems.append("site setup: pods start no shell; put it into the image, or into site environment")
    for job in spec.jobs:
        problems += [problem for role in job.servers for problem in _unable(job, role, cluster)]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _unable(job: JobSpec, role: Role, cluster: KubernetesSite) -> list[str]:
    """What is missing for a server in pods of its own."""
    problems: list[str] = []
    if role.colocated:
        return problems
    if cluster.kind == "pytorchjob":
        problems.append(
            f"site kubernetes.kind=pytorchjob: has no pods for a {role.name} ({job.stage}); use jobset or trainjob, or "
            "servers beside the trainer"
        )
    if role.port is None:
        problems.append(f"{job.stage}: {role.name} has no port; give it one")
    if not cluster.secret:
        problems.append(
            f"site kubernetes.secret: {role.name} of {job.stage} answers other pods, and wants a token for it; name a "
            "Secret that holds it"
        )
    return problems
