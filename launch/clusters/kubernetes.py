"""Kubernetes: a JobSet, TrainJob or PyTorchJob for each stage, by the site's section `kubernetes`.

    RUN/launch/recipe.yaml     a ConfigMap, where the recipe is not in the run directory of the cluster yet
               STAGE.yaml      the stage's workload, and what holds it back until its inputs are complete

What is rendered is plain YAML for `kubectl apply -f -`; see `launch.clusters.manifests` for what is in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.clusters.job import RunSpec
from launch.clusters.kubectl import Kubectl
from launch.clusters.manifests.gate import GATE
from launch.clusters.manifests.jobset import jobset
from launch.clusters.manifests.objects import (
    DIRECTORY,
    ROLE,
    RUN,
    STAGE,
    WORKLOADS,
    Place,
    name_of,
    recipe_map,
    require_renderable,
    to_yaml,
)
from launch.clusters.manifests.pytorchjob import pytorchjob
from launch.clusters.manifests.states import chain_states
from launch.clusters.manifests.trainjob import trainjob
from launch.clusters.scheduler import Rendered, StageState, Submission
from launch.clusters.site import Site
from launch.clusters.submission import submitting
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from rlhf.store.artifact import find_artifact
from stages.lineage import is_current

RENDERERS = {"jobset": jobset, "trainjob": trainjob, "pytorchjob": pytorchjob}
RECIPE_FILE = "recipe.yaml"
MOST_PODS = 1000  # whose logs are read at once
DELETION_SECONDS = 600  # that pods which end behind a checkpoint may take


class Kubernetes:
    """See the module."""

    name = "kubernetes"

    def check(self, spec: RunSpec, site: Site) -> None:
        """Raise ConfigError where the cluster would not take it, or holds another run of this name."""
        require_renderable(spec, site)
        cluster = site.kubernetes
        kubectl, resource = Kubectl(cluster.namespace, cluster.context), WORKLOADS[cluster.kind].resource
        selector = ("--selector", f"{RUN}={name_of(spec)}")
        try:
            workloads = kubectl.get(resource, *selector)
        except ConfigError as error:
            if "the server doesn't have a resource type" not in str(error):
                raise
            raise ConfigError(
                f"site kubernetes.kind={cluster.kind}: the cluster knows no {resource}; use another kind, or have its "
                "operator installed"
            ) from error
        names = {job.stage: name_of(spec, job.stage) for job in spec.jobs}
        runs = {each["metadata"]["name"]: each["metadata"].get("annotations", {}).get(DIRECTORY) for each in workloads}
        problems = [
            f"{name}: is that of {runs[name]} on the cluster; give the recipe another name"
            for name in names.values()
            if name in runs and runs[name] != str(spec.run)
        ]
        if not problems:
            problems = [
                f"{names[each.stage]}: is {each.state} already; see rlhf status, or end it by rlhf cancel"
                for each in chain_states(names, workloads, kubectl.get("jobs.batch", *selector))
                if each.state in ("running", "waiting")
            ]
        if problems:
            raise ConfigError(*problems)

    def render(self, spec: RunSpec, site: Site) -> Sequence[Rendered]:
        """A file of manifests for each stage. Raises ConfigError where the site does not say enough."""
        require_renderable(spec, site)
        render = RENDERERS[site.kubernetes.kind]
        files = [Rendered(f"{job.stage}.yaml", to_yaml(render(Place(spec, job, site)))) for job in spec.jobs]
        if spec.recipe is not None:
            files.insert(0, Rendered(RECIPE_FILE, to_yaml([recipe_map(spec, site)])))
        return files

    def submit(self, spec: RunSpec, site: Site, rendered: Sequence[Rendered], folder: Path) -> Submission:
        """Apply the manifests; where one is refused, what was applied before it is deleted."""
        cluster = site.kubernetes
        kubectl = Kubectl(cluster.namespace, cluster.context)
        stand = complete(spec)
        manifests = "".join(each.text for each in rendered if each.name.removesuffix(".yaml") not in stand)
        # A workload that has ended is not started again by applying it once more.
        delete(kubectl, [job.stage for job in spec.jobs], name_of(spec), cluster.kind, wait=True)
        ids = {job.stage: name_of(spec, job.stage) for job in spec.jobs if job.stage not in stand}
        facts = {"namespace": cluster.namespace, "kind": cluster.kind, "instance": name_of(spec)}
        facts |= {f"{job.stage}.processes": str(job.trainer.processes) for job in spec.jobs}
        facts |= {"context": cluster.context} if cluster.context else {}
        stages = tuple(job.stage for job in spec.jobs)
        submission = Submission(
            self.name, spec.name, str(spec.directory), stages, time.time(), spec.command, ids=ids, facts=facts
        )
        with submitting(spec.run, submission):
            try:
                if manifests:
                    kubectl.ask("apply", "--filename", "-", given=manifests)
            except BaseException as error:  # Ctrl-C as well
                try:
                    kubectl.ask("delete", "--ignore-not-found", "--wait=false", "--filename", "-", given=manifests)
                except ConfigError as left:
                    raise ConfigError(*getattr(error, "problems", ("interrupted",)), *left.problems) from error
                raise
        return submission

    def states(self, submission: Submission, run: Path) -> list[StageState]:
        """Where each stage is, by the cluster; by its files where the cluster has forgotten it."""
        kubectl, resource = cluster_of(submission)
        selector = ("--selector", f"{RUN}={submission.facts['instance']}")
        names = {stage: submission.ids.get(stage, "") for stage in submission.stages}
        states = chain_states(names, kubectl.get(resource, *selector), kubectl.get("jobs.batch", *selector))
        return [
            StageState(each.stage, "complete", "its result stands")
            if each.state == "stopped" and find_artifact(run / each.stage)
            else each
            for each in states
        ]

    def logs(self, submission: Submission, run: Path, stage: str, rank: int | None, follow: bool) -> Iterator[str]:
        """Lines of a stage's pods, each with the pod's name; of a rank those of the pod that it runs in."""
        kubectl, _ = cluster_of(submission)
        selector = selector_of(submission, stage, rank)
        options = ["--all-containers", f"--max-log-requests={MOST_PODS}", "--tail=-1"]
        options += ["--prefix"] if rank is None else []
        yield from kubectl.follow("logs", "--selector", selector, *options, *(["--follow"] if follow else []))

    def cancel(self, submission: Submission, run: Path) -> list[str]:
        """Delete the workloads: their pods get SIGTERM, and write a checkpoint within their grace period."""
        kubectl, _ = cluster_of(submission)
        kind = submission.facts["kind"]
        said = delete(kubectl, submission.stages, submission.facts["instance"], kind, wait=False)
        recipe = f"{RUN}={submission.facts['instance']},!{STAGE}"
        said += deleted(kubectl.ask("delete", "configmaps", "--ignore-not-found", "--selector", recipe))
        return said or ["nothing runs or waits on the cluster"]


def complete(spec: RunSpec) -> set[str]:
    """Stages whose results stand, as far as this machine sees the run directory: no GPU is asked for to say so."""
    if not (spec.run / "recipe.yaml").is_file():
        return set()
    recipe = load_recipe(spec.run / "recipe.yaml")
    return {job.stage for job in spec.jobs if is_current(recipe, spec.run, job.stage)}


def delete(kubectl: Kubectl, stages: Sequence[str], instance: str, kind: str, wait: bool) -> list[str]:
    """Delete what belongs to some stages of a run; what was deleted, a line each. wait: until it is gone."""
    resources = [
        WORKLOADS[kind].resource,
        "jobs.batch",
        *(["trainingruntimes.trainer.kubeflow.org"] * (kind == "trainjob")),
    ]
    selector = f"{RUN}={instance},{STAGE} in ({','.join(stages)})"
    # In the foreground a workload is there until its pods have ended: who resumes meanwhile waits for them.
    options = ("--ignore-not-found", "--cascade=foreground", f"--wait={wait}".lower())
    said: list[str] = []
    for resource in resources:
        gated = f",{ROLE}={GATE}" if resource == "jobs.batch" else ""
        text = kubectl.ask("delete", resource, "--selector", selector + gated, *options, seconds=DELETION_SECONDS)
        said += deleted(text)
    return said


def deleted(text: str) -> list[str]:
    """What kubectl says that it has deleted."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("No resources")]


def cluster_of(submission: Submission) -> tuple[Kubectl, str]:
    """Where something was submitted, and what kubectl calls its workloads."""
    facts = submission.facts
    return Kubectl(facts["namespace"], facts.get("context")), WORKLOADS[facts["kind"]].resource


def selector_of(submission: Submission, stage: str, rank: int | None) -> str:
    """The labels of a stage's trainers, or of the one in whose pod a rank runs."""
    facts = submission.facts
    selector = f"{RUN}={facts['instance']},{STAGE}={stage}"
    if rank is None:
        return selector
    node = rank // int(facts[f"{stage}.processes"])
    selector += f",{ROLE}=trainer"
    if facts["kind"] != "pytorchjob":
        return f"{selector},batch.kubernetes.io/job-completion-index={node}"
    kind, index = ("worker", node - 1) if node else ("master", 0)
    return f"{selector},training.kubeflow.org/replica-type={kind},training.kubeflow.org/replica-index={index}"


SCHEDULER = Kubernetes()
