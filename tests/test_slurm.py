"""`rlhf launch --on slurm` on a real cluster: a chain of jobs of which one loses a node; servers; what Slurm refuses.

`tests/soak/test_slurm.py` has all faults, arrays and one allocation.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from interruption import EVERY_STEP, assert_same, seconds_until
from running import ROOT, TINY, rlhf
from slurm_cluster import LOST_SECONDS, NODES, Cluster, slurm_cluster
from slurm_golden import specified
from slurm_runs import AGAIN_SECONDS, END_SECONDS, Launched, last_step

from launch.clusters.job import JobSpec, Role, RunSpec
from launch.clusters.site import Site
from launch.clusters.slurm import SCHEDULER
from launch.clusters.submission import write_rendered
from launch.local import free_port
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe, resolved_yaml
from stages.lineage import STAGES

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


def test_a_chain_that_loses_a_node_has_undisturbed_figures(
    cluster: Cluster, tiny_run_of_two: Path, tmp_path: Path
) -> None:
    launched = Launched(cluster, tmp_path, EVERY_STEP)
    waiting = launched.states()
    assert waiting["ppo"]["state"] == "waiting" and "Dependency" in waiting["ppo"]["told"], waiting
    launched.until(lambda: launched.kept("ppo"), END_SECONDS)
    node = launched.nodes("ppo")[1]
    launched.worker(node).send_signal(signal.SIGSTOP)  # or it would be complete before it is lost
    cluster.lose(node)
    launched.until(lambda: launched.nodes("ppo").count(node) == 0, 3 * LOST_SECONDS)
    cluster.revive(node)
    states = launched.end()
    assert {each["state"] for each in states.values()} == {"complete"}, launched.said()
    assert "try 2" in states["ppo"]["told"]
    for stage in STAGES:
        assert_same(launched.run / stage, tiny_run_of_two / stage)
    own = rlhf("logs", "tiny", "ppo", "--rank", "0", folder=tmp_path)
    assert "going on from" in own.stdout and "0: " not in own.stdout, own.stdout + own.stderr


@pytest.mark.parametrize(
    ("slurm", "wanted", "told"),
    [
        ({"partition": "gpu"}, {}, "slurm.partition=gpu: no such partition; there are high, main"),
        ({}, {"nodes": "ppo=4"}, "ppo: 4 nodes; partition main has 3, use --nodes 3 or fewer"),
        ({}, {"nodes": "2", "generators": "2"}, "4 nodes; partition main has 3"),
        ({}, {"gpus": 2}, "sft: --gpus 2 on 1 nodes; of partition main a node has 0 at most"),
        ({"cpus_per_task": 5}, {}, "sft: 5 CPUs on 1 nodes; of partition main a node has 4 at most"),
        ({}, {"memory": 9}, "sft: --memory 9 on 1 nodes; of partition main a node has 3 GiB at most"),
        ({}, {"hours": 2.0}, "sft: --hours 2; partition main ends jobs after 1, use fewer"),
        ({}, {"hours": 0.02}, "sft: --hours 0.02; is over before the 90 s"),
        ({}, {"generators": "1"}, "set RLHF_GENERATION_TOKEN"),
        ({"constraint": "h100"}, {}, "Invalid feature specification"),
        ({"reservation": "mine"}, {}, "Requested reservation is invalid"),
        ({"options": ["--mail-tipe=FAIL"]}, {}, "unrecognized option '--mail-tipe=FAIL'"),
    ],
)
def test_what_slurm_has_not_is_a_line(
    slurm: dict[str, object], wanted: dict[str, object], told: str, cluster: Cluster
) -> None:
    site = Site.model_validate({"slurm": slurm})
    with pytest.raises(ConfigError) as error:
        SCHEDULER.check(specified(site, **wanted), site)
    assert any(told in problem for problem in error.value.problems), error.value.problems
    assert not any("\n" in problem for problem in error.value.problems)


def test_what_is_refused_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("slurm: {partition: gpu}\n")
    options = ["--on", "slurm", "--processes", "1", "--site", "site.yaml"]
    done = rlhf("launch", str(TINY), *options, folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not (tmp_path / "runs").exists()


def sbatch_that(does: str, folder: Path) -> str:
    """PATH with an sbatch before Slurm's own that does something else when it is given a second job."""
    folder.mkdir()
    real, calls = shutil.which("sbatch"), folder / "calls"
    own = folder / "sbatch"
    own.write_text(
        f'#!/bin/sh\ncase "$*" in *--test-only*) exec {real} "$@";; esac\n'
        f'echo >>{calls}; [ $(wc -l <{calls}) = 2 ] && {{ {does}; }}\nexec {real} "$@"\n'
    )
    own.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_what_is_refused_in_the_middle_leaves_nothing(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", sbatch_that("echo 'sbatch: error: no more for you' >&2; exit 1", tmp_path / "bin"))
    done = rlhf("launch", str(TINY), "--on", "slurm", "--processes", "1", folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: sbatch: no more for you\n")
    assert not (tmp_path / "runs" / "tiny").exists()
    seconds_until(lambda: not cluster.said("squeue", "--noheader"), 60, lambda: cluster.said("squeue"))


def test_a_launcher_that_is_killed_has_left_what_it_submitted(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PATH", sbatch_that("kill -KILL $PPID; exit 1", tmp_path / "bin"))
        done = rlhf("launch", str(TINY), "--on", "slurm", "--processes", "1", folder=tmp_path)
    assert done.returncode == -signal.SIGKILL
    states = json.loads(rlhf("status", "tiny", "--json", folder=tmp_path).stdout)["states"]
    assert [each["state"] for each in states][1:] == ["lost", "lost", "lost"], states
    assert states[0]["state"] in ("running", "waiting")
    early = rlhf("resume", "tiny", folder=tmp_path)
    assert early.returncode == 2 and "rlhf cancel" in early.stderr, early.stderr
    rlhf("cancel", "tiny", folder=tmp_path)
    seconds_until(lambda: not cluster.said("squeue", "--noheader"), 60, lambda: cluster.said("squeue"))


def test_a_controller_that_is_away_is_a_line(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = cluster.configuration.read_text().splitlines()
    port = next(line for line in words if line.startswith("SlurmctldPort="))
    (tmp_path / "slurm.conf").write_text("\n".join(words).replace(port, f"SlurmctldPort={free_port()}"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(ConfigError, match="sinfo: .*[Uu]nable to contact slurm controller") as error:
        SCHEDULER.check(specified(Site()), Site())
    assert len(error.value.problems) == 1


def test_what_cannot_begin_on_a_node_is_not_tried_for_ever(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("python: /no/such/python\n")
    options = ["--on", "slurm", "--processes", "1", "--site", "site.yaml", "--until", "sft", "--retries", "1"]
    done = rlhf("launch", str(TINY), *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    seconds_until(lambda: not cluster.said("squeue", "--noheader"), 120, lambda: cluster.said("squeue"))
    said = rlhf("logs", "tiny", "sft", folder=tmp_path).stdout
    assert "2 tries in a row came to no checkpoint behind none; given up" in said, said
    states = json.loads(rlhf("status", "tiny", "--json", folder=tmp_path).stdout)["states"]
    assert (states[0]["state"], "exit code 127" in states[0]["told"]) == ("failed", True), states


def test_a_trainer_is_told_where_its_servers_are(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any server and any trainer: a heterogeneous job whose second component answers before the first begins."""
    monkeypatch.setenv("RLHF_GENERATION_TOKEN", "token")
    run, port, beside = tmp_path / "runs" / "tiny", free_port(), free_port()
    run.mkdir(parents=True)
    (tmp_path / "health").write_text("well\n")
    (run / "recipe.yaml").write_text(resolved_yaml(load_recipe(TINY)))
    serve = (sys.executable, "-m", "http.server", "--directory", str(tmp_path))
    field = "ppo.generation.server.addresses"
    own = (sys.executable, "-c", "import os, sys; print(os.environ['RANK'], *sys.argv[1:])", "own")
    roles = (
        Role("generator", 1, 1, 0, (*serve, str(port)), port=port, health="/health", announced=field),
        Role("reward", 1, 1, 0, (*serve, str(beside)), port=beside, health="/health", colocated=True),
        Role("trainer", 1, 2, 0, own),
    )
    spec = RunSpec("tiny", run, tmp_path, (JobSpec("sft", roles, retries=0),))
    SCHEDULER.check(spec, Site())
    rendered = SCHEDULER.render(spec, Site())
    submission = SCHEDULER.submit(spec, Site(), rendered, write_rendered(run, rendered))
    said = list(SCHEDULER.logs(submission, run, "sft", None, follow=True))
    for rank in (0, 1):
        assert f"{rank}: {rank} own {field}=[http://127.0.0.1:{port}]" in said, said
    assert any(line.endswith(f"reward: http://127.0.0.1:{beside}") for line in said)
    assert not cluster.said("squeue", "--noheader")


@pytest.mark.soak
@pytest.mark.parametrize("name", ["stage", "one-node"])
def test_example_goes_on_when_it_is_told_to_stop(
    name: str, cluster: Cluster, tiny_run_of_two: Path, tmp_path: Path
) -> None:
    script = str(ROOT / "launch" / "examples" / "slurm" / f"{name}.sbatch")
    of_two = [str(TINY), "--until", "sft", "parallelism.processes=2"]
    own = of_two if name == "one-node" else ["sft", str(TINY), "runs/tiny"]
    shape = [] if name == "one-node" else ["--nodes=2", "--ntasks-per-node=1"]
    job = cluster.said("sbatch", "--parsable", f"--chdir={tmp_path}", *shape, script, *own).strip()
    stage, log = tmp_path / "runs" / "tiny" / "sft", tmp_path / f"rlhf-{job}.log"

    def said() -> str:
        return log.read_text() if log.exists() else "nothing"

    seconds_until(lambda: last_step(stage) >= 1, AGAIN_SECONDS, said)
    held = [each for node in NODES for each in cluster.processes(node, "stages.sft")]
    for process in held:
        process.send_signal(signal.SIGSTOP)
    cluster.said("scancel", "--batch", "--signal=USR1", job)
    time.sleep(1)
    for process in held:
        process.send_signal(signal.SIGCONT)
    seconds_until(lambda: not cluster.said("squeue", "--noheader"), END_SECONDS, said)
    assert "exit code 75" in said() and "going on from" in said(), said()
    assert_same(stage, tiny_run_of_two / "sft")
