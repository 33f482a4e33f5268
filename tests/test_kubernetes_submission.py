"""The real kubectl against a stand-in for an API server, which keeps objects and runs none: see tests/api_server.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from api_server import RESOURCES, Cluster, running
from manifests import chain, generator, site

from launch.clusters.job import RunSpec
from launch.clusters.kubernetes import SCHEDULER
from launch.clusters.scheduler import Submission
from launch.clusters.site import Site
from launch.clusters.submission import FOLDER, SUBMISSION, read_submission, write_rendered
from rlhf.errors import ConfigError

with_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl")
SMALL = {"cpus": 1, "secret": "rlhf"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with running() as found:
        monkeypatch.setenv("KUBECONFIG", str(found.configuration(tmp_path)))
        monkeypatch.setenv("HOME", str(tmp_path))  # where kubectl keeps what it has discovered
        yield found


def submit(spec: RunSpec, of: Site, run: Path) -> Submission:
    """As `rlhf launch` does, but that what is kept of it here lies in a folder of the test's."""
    SCHEDULER.check(spec, of)
    rendered = SCHEDULER.render(spec, of)
    return SCHEDULER.submit(replace(spec, run=run), of, rendered, write_rendered(run, rendered))


def add_pod(cluster: Cluster, node: int) -> None:
    """A trainer's pod of PPO, as a Job would make it."""
    labels = {"app.kubernetes.io/instance": "rlhf-demo", "rlhf/stage": "ppo", "app.kubernetes.io/component": "trainer"}
    labels["batch.kubernetes.io/job-completion-index"] = str(node)
    cluster.objects["pods", f"node-{node}"] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"node-{node}", "namespace": "default", "labels": labels},
        "spec": {"containers": [{"name": "trainer", "image": "any"}]},
        "status": {"phase": "Running"},
        "said": f"line of node {node}\n",
    }


@with_kubectl
def test_what_is_rendered_arrives(cluster: Cluster, tmp_path: Path) -> None:
    spec, of = chain(generator(), recipe="name: demo\n"), site(**SMALL)
    submission = submit(spec, of, tmp_path)
    stages = ("sft", "reward", "ppo", "evaluate")
    assert cluster.names == sorted(["configmaps/rlhf-demo-recipe", *(f"jobsets/rlhf-demo-{stage}" for stage in stages)])
    for file in SCHEDULER.render(spec, of):
        for document in yaml.safe_load_all(file.text):
            found = cluster.objects[f"{document['kind'].lower()}s", document["metadata"]["name"]]
            assert found["metadata"]["annotations"].pop("kubectl.kubernetes.io/last-applied-configuration")
            assert found == document
    assert (submission.scheduler, submission.stages) == ("kubernetes", stages)
    assert submission.ids == {stage: f"rlhf-demo-{stage}" for stage in stages}
    assert read_submission(tmp_path) == submission


@with_kubectl
@pytest.mark.parametrize("kind", ["trainjob", "pytorchjob"])
def test_other_kinds_arrive_with_what_belongs_to_them_and_go_with_it(
    cluster: Cluster, tmp_path: Path, kind: str
) -> None:
    submission = submit(chain(), site(kind=kind, queue="research"), tmp_path)
    count = 4 + 3 + (4 if kind == "trainjob" else 0)  # stages, gates, runtimes
    assert len(cluster.objects) == count
    assert len(SCHEDULER.cancel(submission, tmp_path)) == count
    assert not cluster.objects


@with_kubectl
def test_a_stage_that_is_refused_leaves_nothing_behind(cluster: Cluster, tmp_path: Path) -> None:
    cluster.refused.add("rlhf-demo-ppo")
    with pytest.raises(ConfigError) as raised:
        submit(chain(), site(), tmp_path)
    assert "rlhf-demo-ppo may not be" in str(raised.value)
    assert not cluster.objects
    assert not (tmp_path / FOLDER / SUBMISSION).exists()


@with_kubectl
def test_a_run_that_is_there_is_not_submitted_twice(cluster: Cluster, tmp_path: Path) -> None:
    submit(chain(), site(), tmp_path)
    with pytest.raises(ConfigError) as raised:
        SCHEDULER.check(chain(), site())
    assert len(raised.value.problems) == 4
    assert raised.value.problems[0].startswith("rlhf-demo-sft: is waiting already")


@with_kubectl
def test_a_run_that_has_ended_is_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    submit(chain(), site(), tmp_path)
    for content in cluster.objects.values():
        content["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    submit(chain(), site(), tmp_path)
    assert len(cluster.objects) == 4
    assert not [content for content in cluster.objects.values() if "status" in content]


@with_kubectl
def test_a_run_of_the_same_name_elsewhere_is_not_touched(cluster: Cluster, tmp_path: Path) -> None:
    submit(chain(), site(), tmp_path)
    with pytest.raises(ConfigError, match="is that of /runs/demo on the cluster; give the recipe another name"):
        SCHEDULER.check(replace(chain(), run=Path("/runs/other")), site())


@with_kubectl
def test_a_kind_that_the_cluster_has_not_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running({api: kinds for api, kinds in RESOURCES.items() if not api.startswith("jobset")}) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.configuration(tmp_path)))
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(ConfigError) as raised:
            SCHEDULER.check(chain(), site())
    (problem,) = raised.value.problems
    assert problem.startswith("site kubernetes.kind=jobset: the cluster knows no jobsets.jobset.x-k8s.io; use another")


@with_kubectl
def test_states_are_those_of_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    submission = submit(chain(), site(), tmp_path)
    cluster.objects["jobsets", "rlhf-demo-sft"]["status"] = {"conditions": [{"type": "Completed", "status": "True"}]}
    jobs = [{"name": "gate", "succeeded": 1}, {"name": "trainer", "active": 1, "ready": 1}]
    cluster.objects["jobsets", "rlhf-demo-reward"]["status"] = {"replicatedJobsStatus": jobs}
    del cluster.objects["jobsets", "rlhf-demo-evaluate"]
    found = {each.stage: each.state for each in SCHEDULER.states(submission, tmp_path)}
    assert found == {"sft": "complete", "reward": "running", "ppo": "waiting", "evaluate": "stopped"}


@with_kubectl
def test_behind_a_stage_that_failed_nothing_waits_and_all_is_submitted_anew(cluster: Cluster, tmp_path: Path) -> None:
    submission = submit(chain(), site(), tmp_path)
    failed = {"conditions": [{"type": "Failed", "status": "True", "reason": "FailedJobs"}]}
    cluster.objects["jobsets", "rlhf-demo-sft"]["status"] = failed
    found = SCHEDULER.states(submission, tmp_path)
    assert [each.state for each in found] == ["failed", "stopped", "stopped", "stopped"]
    assert found[1].told.endswith("in vain: sft failed")
    submit(chain(), site(), tmp_path)
    assert "status" not in cluster.objects["jobsets", "rlhf-demo-sft"]


@with_kubectl
def test_logs_are_those_of_a_stage_or_of_the_pod_of_a_rank(cluster: Cluster, tmp_path: Path) -> None:
    submission = submit(chain(), site(), tmp_path)
    for node in (0, 1):
        add_pod(cluster, node)
    every = sorted(SCHEDULER.logs(submission, tmp_path, "ppo", None, follow=False))
    assert every == ["[pod/node-0/trainer] line of node 0", "[pod/node-1/trainer] line of node 1"]
    assert list(SCHEDULER.logs(submission, tmp_path, "ppo", 8, follow=False)) == ["line of node 1"]
    assert list(SCHEDULER.logs(submission, tmp_path, "ppo", 7, follow=True)) == ["line of node 0"]


@with_kubectl
def test_cancel_deletes_what_is_there_and_says_so(cluster: Cluster, tmp_path: Path) -> None:
    submission = submit(chain(recipe="name: demo\n"), site(), tmp_path)
    said = SCHEDULER.cancel(submission, tmp_path)
    assert said[0] == 'jobset.jobset.x-k8s.io "rlhf-demo-sft" deleted'
    assert len(said) == 5
    assert not cluster.objects
    assert SCHEDULER.cancel(submission, tmp_path) == ["nothing runs or waits on the cluster"]
    assert {each.state for each in SCHEDULER.states(submission, tmp_path)} == {"stopped"}


@with_kubectl
def test_a_server_that_does_not_answer_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as cluster:
        configuration = cluster.configuration(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(configuration))
    with pytest.raises(ConfigError) as raised:
        SCHEDULER.check(chain(), site())
    (problem,) = raised.value.problems
    assert "was refused" in problem
    assert problem.endswith("name another as site kubernetes.context")


def test_without_kubectl_that_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="^kubectl: is not here; install it"):
        SCHEDULER.check(chain(), site())


@pytest.mark.services
@pytest.mark.beside
@with_kubectl
def test_the_command_line_submits_a_run_tells_of_it_and_ends_it(cluster: Cluster, tmp_path: Path) -> None:
    of = {"kubernetes": {"image": "any", "claims": [{"name": "runs", "path": str(tmp_path)}]}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(of), encoding="utf-8")

    def rlhf(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "launch.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)

    launched = rlhf("launch", "demo", "--on", "kubernetes", "--nodes", "ppo=2", "--gpus", "8", "--site", "site.yaml")
    assert launched.returncode == 0, launched.stderr
    assert len(cluster.objects) == 5
    told = json.loads(rlhf("status", "runs/demo", "--json").stdout)
    assert "waiting" in json.dumps(told)
    cancelled = rlhf("cancel", "runs/demo")
    assert cancelled.returncode == 0, cancelled.stderr
    assert not cluster.objects
    resumed = rlhf("resume", "runs/demo")
    assert resumed.returncode == 0, resumed.stderr
    assert len(cluster.objects) == 5
