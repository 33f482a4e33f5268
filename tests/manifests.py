"""Specifications that are rendered for Kubernetes, and what they are validated by: as strictly as nowhere else.

The CustomResourceDefinitions lie beside the repository, in ../shared/crds, next to the data (RLHF_TEST_DATA).
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml
from published import DATA

from launch.clusters.job import JobSpec, Role, RunSpec
from launch.clusters.kubernetes import SCHEDULER
from launch.clusters.site import Site, read_site

CRDS = DATA.parent / "crds"
FILES = {
    "JobSet": "jobset.x-k8s.io_jobsets.yaml",
    "TrainJob": "trainer.kubeflow.org_trainjobs.yaml",
    "TrainingRuntime": "trainer.kubeflow.org_trainingruntimes.yaml",
    "PyTorchJob": "kubeflow.org_pytorchjobs.yaml",
}
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
KINDS = ("jobset", "trainjob", "pytorchjob")
VERSION = "1.32"  # of Kubernetes, for its own kinds
TEXT = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": TEXT, "annotations": TEXT},
    "required": ["name", "namespace"],
    "additionalProperties": False,
}
RUN = Path("/runs/demo")


def trainer(stage: str, nodes: int = 1, gpus: int = 8) -> Role:
    command = ("/opt/env/bin/python", "-m", f"stages.{stage}", "--recipe", f"{RUN}/recipe.yaml", "--run-dir", str(RUN))
    return Role("trainer", nodes, gpus or 2, gpus, command, {"OMP_WAIT_POLICY": "passive"})


def generator(nodes: int = 2, gpus: int = 4, colocated: bool = False) -> Role:
    command = ("/opt/env/bin/python", "-P", "-m", "launch.cli", "generation", "serve", str(RUN), "--wait")
    host = "127.0.0.1" if colocated else "0.0.0.0"
    return Role(
        *("generator", nodes, 1, gpus, (*command, "--host", host, "--port", "8000")),
        port=8000,
        health="/health",
        announced="ppo.generation.server.addresses",
        colocated=colocated,
    )


def chain(*servers: Role, nodes: int = 2, recipe: str | None = None, hours: float | None = None) -> RunSpec:
    """Four stages on different numbers of nodes."""
    jobs = (
        JobSpec("sft", (trainer("sft", nodes),), hours=hours),
        JobSpec("reward", (trainer("reward"),), after=("sft",), hours=hours),
        JobSpec("ppo", (*servers, trainer("ppo", nodes * 2)), after=("sft", "reward"), grace_seconds=120.0),
        JobSpec("evaluate", (trainer("evaluate"),), after=("sft", "reward", "ppo"), retries=1),
    )
    return RunSpec("demo", RUN, Path("/runs"), jobs, recipe=recipe)


def site(**settings: Any) -> Site:
    """A small one, with more where a test says so."""
    network = settings.pop("network", {})
    content = {"image": "registry.example/rlhf:0.1.0", "claims": [{"name": "runs", "path": "/runs"}], **settings}
    return Site.model_validate({"network": network, "kubernetes": content})


LARGE: dict[str, Any] = {
    "namespace": "research",
    "pull_secrets": ["registry"],
    "claims": [
        {"name": "runs", "path": "/runs"},
        {"name": "data.sets", "path": "/data", "sub_path": "rlhf", "read_only": True},
    ],
    "secret": "rlhf",
    "service_account": "rlhf",
    "rdma": {"rdma/hca_shared_devices_a": 1},
    "cpus": 96,
    "memory": 900,
    "shared_memory": 64,
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
    "topology": {"label": "cloud.provider.com/topology-rack"},
    "labels": {"team": "alignment"},
    "annotations": {"owner": "somebody@example.org"},
    "network": {"interface": "eth0", "infiniband": "mlx5_0,mlx5_1", "timeout_minutes": 30},
}
QUEUED = {**LARGE, "queue": "research", "priority": "high", "topology": {"label": "rack", "required": True}}


def documents(spec: RunSpec, of: Site) -> list[dict[str, Any]]:
    """What is rendered, read back."""
    return [each for file in SCHEDULER.render(spec, of) for each in yaml.safe_load_all(file.text)]


def matrix() -> Iterator[tuple[str, RunSpec, Site]]:
    """Every kind with little and with much of everything."""
    recipe = "name: demo\nppo:\n  steps: 3\n"
    for kind in KINDS:
        apart = () if kind == "pytorchjob" else (generator(),)
        beside = generator(1, 2, colocated=True)
        yield f"{kind}-small", chain(nodes=1), site(kind=kind)
        yield f"{kind}-large", chain(*apart, recipe=recipe, hours=12.5), site(kind=kind, **LARGE)
        yield f"{kind}-queued", chain(*apart, recipe=recipe), site(kind=kind, **QUEUED)
        yield f"{kind}-beside", chain(beside), site(kind=kind, shared_memory=None, topology={"label": "rack"})


CASES = {name: (spec, of) for name, spec, of in matrix()}


def validate(document: Mapping[str, Any]) -> None:
    """Raise a ValidationError where an object, or a pod within it, has what its kind has not."""
    if not {"kind", "apiVersion"} <= document.keys():
        raise jsonschema.ValidationError("no kind or no apiVersion")
    if document["kind"] in FILES:
        jsonschema_of(document["kind"]).validate(document)
    else:
        builtin(json.dumps(document))
    for template in pod_templates(document):
        metadata = {"name": "any", **template.get("metadata", {})}
        builtin(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}))


@functools.cache
def builtin(text: str) -> None:
    """An object of Kubernetes' own, each once."""
    kubernetes_validate.validate(json.loads(text), VERSION, strict=True)


def pod_templates(node: Any) -> Iterator[dict[str, Any]]:
    """Each pod template within an object."""
    if isinstance(node, dict):
        if isinstance(node.get("spec"), dict) and "containers" in node["spec"]:
            yield node
        for value in node.values():
            yield from pod_templates(value)
    elif isinstance(node, list):
        for value in node:
            yield from pod_templates(value)


@functools.cache
def jsonschema_of(kind: str) -> jsonschema.Draft7Validator:
    """A CustomResourceDefinition's schema, closed: unknown fields are errors, as they are for the server."""
    path = CRDS / FILES[kind]
    if not path.is_file():
        pytest.skip(f"{path} is absent; it lies next to the data; set RLHF_TEST_DATA")
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    version = next(each for each in definition["spec"]["versions"] if each["storage"])
    schema = closed(version["schema"]["openAPIV3Schema"])
    group, name = definition["spec"]["group"], version["name"]
    schema["properties"] |= {
        "metadata": METADATA,
        "kind": {"const": definition["spec"]["names"]["kind"]},
        "apiVersion": {"const": f"{group}/{name}"},
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return jsonschema.Draft7Validator(schema)


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A structural schema of Kubernetes as JSON schema that forbids what it does not name."""
    found = copy.copy(dict(schema))
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if found.get("nullable"):
        found["type"] = [found["type"], "null"]
    if str(found.get("pattern", "")).startswith("^(?i)"):
        found["pattern"] = f"(?i){found['pattern'].replace('(?i)', '', 1)}"
    if "items" in found:
        found["items"] = closed(found["items"])
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = closed(found["additionalProperties"])
    if found.get("type") == "object" and not found.get("x-kubernetes-preserve-unknown-fields"):
        found["properties"] = {name: closed(each) for name, each in found.get("properties", {}).items()}
        found.setdefault("additionalProperties", False)
    for key in ("format", "default", "description"):
        found.pop(key, None)
    return found


ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "baselines" / "kubernetes"
GOLDEN_CASES = {"jobset-large": "ppo", "jobset-queued": "ppo", "trainjob-large": "ppo", "pytorchjob-beside": "ppo"}
EXAMPLES = ROOT / "launch" / "examples" / "kubernetes"


def golden(case: str) -> str:
    """One stage of a case."""
    spec, of = CASES[case]
    return next(file.text for file in SCHEDULER.render(spec, of) if file.name == f"{GOLDEN_CASES[case]}.yaml")


def example(kind: str) -> str:
    """What a person copies: stages of a run by the site beside it; of a JobSet those that show most."""
    found = read_site(EXAMPLES / "site.yaml")
    cluster = found.kubernetes.model_copy(update={"kind": kind})
    whole = chain(generator(1, 4))
    shown = ("sft", "reward", "ppo") if kind == "jobset" else ("sft", "reward")
    spec = replace(whole, jobs=tuple(whole.job(stage) for stage in shown))
    return "".join(file.text for file in SCHEDULER.render(spec, found.model_copy(update={"kubernetes": cluster})))


if __name__ == "__main__":  # PYTHONPATH=. python tests/manifests.py writes what is compared
    GOLDEN.mkdir(exist_ok=True)
    for name in GOLDEN_CASES:
        (GOLDEN / f"{name}.yaml").write_text(golden(name), encoding="utf-8")
    for name in KINDS:
        (EXAMPLES / f"{name}.yaml").write_text(example(name), encoding="utf-8")
