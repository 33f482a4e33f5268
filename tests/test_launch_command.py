"""`rlhf launch` and its companions as somebody types them, mistakes included; only what ends at once is started."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from launch import local
from launch.cli import app
from launch.clusters.local import process_of
from launch.clusters.scheduler import StageState, Submission
from launch.clusters.submission import alone, read_submission, submitting, write_submission
from launch.commands.launched import last_begun
from rlhf.errors import ConfigError, RLHFError
from rlhf.store.artifact import write_text
from rlhf.store.unfinished import hold

TINY = str(Path(__file__).parent / "recipes" / "tiny.yaml")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_SITE", str(tmp_path / "site.yaml"))
    (tmp_path / "site.yaml").write_text("network: {interface: eth0}\n")


def rlhf(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def problem(*arguments: str) -> str:
    """The one line with which a command ends."""
    with pytest.raises(RLHFError) as raised:
        rlhf(*arguments)
    (line,) = raised.value.problems
    return line


@pytest.mark.parametrize("on", ["local", "torchrun", "deepspeed"])
def test_a_dry_run_touches_nothing(on: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processes = [] if on == "local" else ["--processes", "2"]
    rlhf("launch", TINY, "--on", on, *processes, "--dry-run")
    assert "python" in capsys.readouterr().out
    rlhf("launch", TINY, "--on", on, *processes, "--dry-run", "--json")
    texts = json.loads(capsys.readouterr().out)["rendered"]
    assert all(isinstance(text, str) and text for text in texts.values())
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]


@pytest.mark.parametrize("on", ["slurm", "local", "torchrun"])
def test_a_containers_interpreter_is_its_own_under_slurm_alone(
    on: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").write_text("slurm: {container: {image: registry/rlhf:1}}\n")
    rlhf("launch", TINY, "--on", on, "--dry-run", *([] if on == "local" else ["--gpus", "0"]))
    assert (sys.executable in capsys.readouterr().out) == (on != "slurm")


def test_a_host_that_cannot_be_reached_is_a_line_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        port = closed.getsockname()[1]
        (tmp_path / "hosts").write_text(f"127.0.0.1:{port} slots=1\n")
        line = problem("launch", TINY, "--on", "torchrun", "--hosts", "hosts", "--processes", "1")
    if shutil.which("ssh"):
        assert line.startswith("127.0.0.1: cannot be reached by ssh (") and "refused" in line
    else:
        assert "install an ssh client" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts", "site.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "sge"], "--on=sge: is no scheduler; use one of local"),
        (["--on", "torchrun"], "--gpus: this machine has none, so say how many each node has"),
        (["--on", "torchrun", "--gpus", "8", "--processes", "2"], "--processes=2 with --gpus=8: each GPU has one"),
        (["--on", "torchrun", "--processes", "2", "--nodes", "2"], "sft: 2 nodes, and there are 1 hosts; name more"),
        (["--processes", "2"], "--processes=2: a local run has as many as parallelism.processes says"),
        (["--gpus", "4"], "--gpus=4: this machine has 0"),
        (["--nodes", "2"], "--nodes: local is one machine, and sft, reward, ppo, evaluate asks for more"),
        (["--from", "ppo"], "ppo: needs sft and reward, not complete in"),
        (["--from", "ppo", "--until", "sft"], "--from ppo comes after --until sft"),
        (["--on", "torchrun", "--processes", "1", "--hosts", "no"], "--hosts=no: cannot be read"),
        (["--hosts", "hosts"], "--hosts=hosts: local reaches no hosts; leave it out, or use --on torchrun"),
        (["--hours", "2"], "--hours=2.0: local has no use for it; leave it out"),
        (["--generators", "2"], "--generators=2: local starts no servers; use --on torchrun, on this machine too"),
        (["--reward-server", "python s.py"], "--reward-server=python s.py: local starts no servers; use --on torchrun"),
        (["--on", "torchrun", "--processes", "1", "--memory", "64"], "--memory=64: torchrun has no use for it"),
        (["--site", "no.yaml"], "site no.yaml: cannot be read"),
        (["--on", "torchrun", "--processes", "5"], "sft.batch_size=32"),
        (["--on", "torchrun", "--processes", "1", "--hosts", "hosts", "--generators", "1"], "RLHF_GENERATION_TOKEN"),
    ],
)
def test_a_mistake_is_a_line(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RLHF_GENERATION_TOKEN", raising=False)
    (tmp_path / "hosts").write_text("node-1\nnode-2\n")
    with pytest.raises(RLHFError) as raised:
        rlhf("launch", TINY, *arguments)
    assert said in raised.value.problems[0]
    assert not (tmp_path / "runs").exists()


def test_data_that_are_not_there_are_said_before_anything_is_submitted(tmp_path: Path) -> None:
    with pytest.raises(RLHFError, match="nothing.jsonl"):
        rlhf("launch", TINY, "data.prompts=[{path: nothing.jsonl}]")
    assert not (tmp_path / "runs").exists()


def submitted(folder: Path, **facts: str) -> Path:
    """A run directory from which something was submitted to this machine."""
    run = folder / "runs" / "tiny"
    (run / "launch").mkdir(parents=True)
    write_text(run / "recipe.yaml", Path(TINY).read_text())
    given = {"host": socket.gethostname(), "pid": str(os.getpid()), "born": "0.0", **facts}
    stages = ("sft", "reward", "ppo", "evaluate")
    write_submission(run, Submission("local", "tiny", str(folder), stages, 0.0, (TINY,), facts=given))
    return run


def test_a_run_under_way_is_not_launched_again(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    with hold(run):
        line = problem("launch", TINY)
    assert line.startswith(f"{run}: sft is running on local (pid ") and f"rlhf cancel {run} ends it" in line


def test_a_run_of_somebody_else_is_not_launched_over(tmp_path: Path) -> None:
    with hold(tmp_path / "runs" / "tiny"):
        assert "in use by another rlhf process" in problem("launch", TINY)


def test_two_do_not_submit_the_same_run_at_once(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    with alone(run):
        assert problem("launch", TINY).startswith(f"{run}: another rlhf launch submits it just now")
    with pytest.raises(ConfigError), alone(tmp_path / "more" / "tiny"):
        raise ConfigError("refused")
    assert not (tmp_path / "more").exists()


def test_a_run_directory_that_cannot_be_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").touch()
    line = problem("launch", TINY, "--run", "votes.jsonl")
    assert "votes.jsonl: cannot be written (" in line and line.endswith("; give another --run")


def test_status_of_what_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = submitted(tmp_path)
    assert app(["status", "tiny", "--json"], standalone_mode=False) == 1
    states = [each["state"] for each in json.loads(capsys.readouterr().out)["states"]]
    assert states == ["lost", "stopped", "stopped", "stopped"]
    rlhf("cancel", str(run))
    assert capsys.readouterr().out == "nothing to stop\n"


def test_a_run_is_asked_about_from_anywhere(tmp_path: Path) -> None:
    """Paths in its recipe begin where it was launched from."""
    run = submitted(tmp_path)
    for command in ("status", "cancel"):
        os.chdir("/")
        app([command, str(run)], standalone_mode=False)
        assert Path.cwd() == tmp_path


def test_what_was_not_launched_is_a_line(tmp_path: Path) -> None:
    assert problem("status", "nothing").startswith("nothing: no such run")
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    for command in ("status", "logs", "cancel", "resume"):
        assert "nothing was submitted from here; rlhf launch RECIPE --on ... does" in problem(command, "tiny")


def test_logs_of_a_run_that_waits_are_those_of_its_first_stage() -> None:
    waiting = [StageState(stage, "waiting", "") for stage in ("reward", "ppo")]
    assert last_begun(waiting) == "reward"
    assert last_begun([StageState("sft", "failed", ""), *waiting]) == "sft"


def test_a_failed_resume_leaves_what_was_submitted_before(tmp_path: Path) -> None:
    run = submitted(tmp_path)
    before = read_submission(run)
    with pytest.raises(ConfigError), submitting(run, replace(before, time=1.0)):
        assert read_submission(run).time == 1.0
        raise ConfigError("a host is away")
    assert read_submission(run) == before


def test_a_process_is_known_again_though_the_clock_was_set(tmp_path: Path) -> None:
    born = psutil.Process().create_time()
    for apart, known in ((0.0, True), (5.0, True), (-3600.0, False)):
        facts = {"host": socket.gethostname(), "pid": str(os.getpid()), "born": repr(born + apart)}
        assert (process_of(Submission("local", "tiny", "/", ("sft",), 0.0, (), facts=facts)) is not None) == known


def test_a_driver_that_hangs_counts_as_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(local, "SMI_SECONDS", 0.2)
    assert local.visible_gpus() == 0


def test_logs_know_the_stages_of_the_run(tmp_path: Path) -> None:
    submitted(tmp_path)
    assert problem("logs", "tiny", "pp").startswith("pp is not a stage of this run; it has sft, reward")
    assert problem("logs", "tiny", "ppo", "--rank", "1").startswith("--rank: ranks of a local run write to one file")
