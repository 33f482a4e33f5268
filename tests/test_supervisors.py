"""What supervisors of a run over ssh do with what they start, in real processes; what they start is light.

Two hosts are two supervisors of this machine, and an `ssh` that stays on it. tests/test_launch_over_ssh.py has real
stages, nodes and ssh.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from interruption import seconds_until

from launch.clusters.hosts import Host
from launch.clusters.itinerary import ITINERARY, Itinerary, Leg, Server
from launch.clusters.over_ssh import OverSSH
from launch.clusters.records import Order, Records
from launch.clusters.scheduler import Submission
from launch.local import free_port
from rlhf.recipe import load_recipe, resolved_yaml
from rlhf.store.artifact import publish
from stages.lineage import is_current, lineage_of

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = ROOT / "tests" / "light_stage.py"
TINY = ROOT / "tests" / "recipes" / "tiny.yaml"
SECONDS = 120.0  # on a busy machine
SSH = '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n'


class Run:
    """Over two hosts: SFT on the first, the reward model on both."""

    def __init__(self, folder: Path, retries: int = 3, **behaviour: str) -> None:
        self.run = folder / "run"
        (self.run / "launch" / "logs").mkdir(parents=True)
        (self.run / "recipe.yaml").write_text(resolved_yaml(load_recipe(TINY)))
        said = {key.replace("_", "."): value for key, value in behaviour.items()}
        (self.run / "behaviour.json").write_text(json.dumps(said))
        self.binaries = folder / "bin"
        self.binaries.mkdir()
        (self.binaries / "ssh").write_text(SSH)
        (self.binaries / "ssh").chmod(0o755)
        self.records = Records(self.run)
        self.records.forget()
        self.plan = Itinerary(
            "torchrun",
            (Host("one", "127.0.0.1"), Host("two", "127.0.0.1")),
            tuple(f'cd {self.run} && exec {self.supervisor(node)} "$1"' for node in (0, 1)),
            (),
            (),
            (self.leg("sft", 1, retries), self.leg("reward", 2, retries)),
        )
        (self.run / "launch" / ITINERARY).write_text(self.plan.text())
        self.started: list[subprocess.Popen[bytes]] = []

    def supervisor(self, node: int) -> str:
        return f"{sys.executable} -P -m launch.clusters.node --run {self.run} --node {node}"

    def leg(self, stage: str, nodes: int, retries: int) -> Leg:
        command = f"{sys.executable} {STAND_IN} {self.run} {stage}"
        agents = tuple(f"{command} {node} {nodes} ATTEMPT" for node in range(nodes))
        return Leg(stage, agents, {"PYTHONPATH": str(ROOT)}, 1, retries, 10.0, None)

    def start(self) -> None:
        own = {"PYTHONPATH": str(ROOT), "PATH": f"{self.binaries}{os.pathsep}{os.environ['PATH']}"}
        for node in (0, 1):
            command = [*self.supervisor(node).split(), "supervise"]
            with (self.run / "launch" / "logs" / f"node-{node}.log").open("ab") as log:
                self.started.append(
                    subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log, cwd=self.run)
                )

    def end(self) -> Order:
        """Wait for it."""
        self.until(lambda: self.records.order().do == "end")
        self.until(lambda: not self.processes())
        return self.records.order()

    def until(self, condition: object) -> float:
        return seconds_until(condition, SECONDS, self.said)  # type: ignore[arg-type]

    def began(self, stage: str, node: int, attempt: int) -> Path:
        """Written by the stand-in, with its process id in it."""
        return self.run / f"{stage}.{node}.{attempt}"

    def processes(self) -> list[int]:
        """Supervisors, those that others have started included, and what they have started."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line, state = (path / "cmdline").read_bytes(), (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(self.run).encode() in line and state != "Z":
                found.append(int(path.name))
        return found

    def states(self) -> list[str]:
        submission = Submission("torchrun", "tiny", str(self.run), ("sft", "reward"), 0.0, ())
        return [each.state for each in OverSSH("torchrun").states(submission, self.run)]

    def said(self) -> str:
        logs = sorted((self.run / "launch" / "logs").glob("*.log"))
        return f"{self.records.order()}\n" + "\n".join(f"== {log.name}\n{log.read_text()}" for log in logs)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    """Those that a test has made; nothing of them is left."""
    made: list[Run] = []
    yield made
    for run in made:
        for pid in run.processes():
            os.kill(pid, signal.SIGKILL)
        for process in run.started:
            process.wait()


def begun(runs: list[Run], folder: Path, retries: int = 3, **behaviour: str) -> Run:
    runs.append(run := Run(folder, retries, **behaviour))
    run.start()
    return run


def test_stages_follow_each_other(runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path)
    assert run.end().result == "complete", run.said()
    recipe = load_recipe(run.run / "recipe.yaml")
    assert is_current(recipe, run.run, "sft") and is_current(recipe, run.run, "reward")
    assert not run.began("sft", 1, 1).exists(), "the second host has no part in it"
    assert (run.run / "summary.json").is_file()
    assert run.states() == ["complete", "complete"]
    assert "two: reward, attempt 1" in run.said()


def test_a_crash_on_one_host_is_another_attempt_for_all(runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path, reward_1_1="crash", reward_0_1="wait")
    assert run.end().result == "complete", run.said()
    assert run.began("reward", 0, 2).exists() and run.began("reward", 1, 2).exists()
    assert "reward: attempt 1 ended: exit code 1 on two" in run.said()


def test_retries_are_bounded(runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path, 1, sft_0_1="crash", sft_0_2="crash")
    end = run.end()
    assert (end.result, end.stage, end.told) == ("failed", "sft", "attempt 2: exit code 1 on one"), run.said()
    assert run.states() == ["failed", "stopped"]


def test_bad_input_is_final(runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path, reward_1_1="bad input", reward_0_1="wait")
    end = run.end()
    assert (end.result, end.told) == ("failed", "attempt 1: exit code 2 on two"), run.said()
    assert run.states() == ["complete", "failed"]


def test_a_disk_or_a_server_that_is_away_is_another_attempt(runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path, sft_0_1="away")
    assert run.end().result == "complete", run.said()
    assert "sft: attempt 1 ended: exit code 74 on one" in run.said()


def test_trainers_wait_for_servers_of_other_hosts(runs: list[Run], tmp_path: Path) -> None:
    runs.append(run := Run(tmp_path))
    code = "import pathlib, socket, sys, time; time.sleep(3); pathlib.Path(sys.argv[1], 'serves').touch(); "
    code += "listener = socket.create_server(('127.0.0.1', int(sys.argv[2]))); time.sleep(100)"
    port = free_port()
    command = shlex.join([sys.executable, "-c", code, str(run.run), str(port)])
    first, second = run.plan.legs
    served = replace(first, servers=(Server("generator", 1, command, {}, port, None),))
    (run.run / "launch" / ITINERARY).write_text(replace(run.plan, legs=(served, second)).text())
    run.start()
    run.until(lambda: run.began("sft", 0, 1).exists())
    assert (run.run / "serves").exists(), run.said()
    assert run.end().result == "complete", run.said()


def test_a_result_that_is_seen_late_is_complete(runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path, sft_0_1="unseen")
    run.until(lambda: run.records.order().do == "stop")
    (run.run / "sft").mkdir()
    publish(
        run.run / "sft",
        lineage_of(load_recipe(run.run / "recipe.yaml"), "sft", run.run),
        {"results": {}, "seconds": 0.0},
    )
    assert run.end().result == "complete", run.said()
    assert not run.began("sft", 0, 2).exists()


def test_cancel_reaches_supervisors_that_give_no_sign(runs: list[Run], tmp_path: Path) -> None:
    runs.append(run := Run(tmp_path))
    submission = Submission("torchrun", "tiny", str(run.run), ("sft", "reward"), 0.0, ())
    (said,) = OverSSH("torchrun").cancel(submission, run.run)
    assert said.startswith("no supervisor gives a sign")
    run.start()
    assert run.end().result == "stopped", run.said()
    assert not run.began("sft", 0, 1).exists()


@pytest.mark.parametrize("by", ["file", "signal"])
def test_what_is_cancelled_ends_behind_a_checkpoint(by: str, runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path, sft_0_1="wait")
    run.until(lambda: run.began("sft", 0, 1).is_file() and run.began("sft", 0, 1).read_text())
    if by == "file":
        run.records.cancel("a test")
    else:  # to the one that has no part in the stage
        run.started[1].send_signal(signal.SIGTERM)
    assert run.end().result == "stopped", run.said()
    assert (run.run / "checkpoint.0.1").exists() and not run.began("sft", 0, 2).exists()
    assert run.states() == ["stopped", "stopped"]


def test_nobody_stays_where_the_run_is_gone(runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path, sft_0_1="wait")
    run.until(lambda: run.began("sft", 0, 1).is_file())
    shutil.rmtree(run.run)
    run.until(lambda: not run.processes())


@pytest.mark.services
@pytest.mark.beside
@pytest.mark.parametrize("node", [0, 1])
def test_a_host_that_falls_silent_is_started_by_the_other(node: int, runs: list[Run], tmp_path: Path) -> None:
    run = begun(runs, tmp_path, reward_1_1="wait", reward_0_1="wait")
    run.until(
        lambda: all(run.began("reward", n, 1).is_file() and run.began("reward", n, 1).read_text() for n in (0, 1))
    )
    orphan = int(run.began("reward", node, 1).read_text())
    run.started[node].kill()
    run.until(lambda: orphan not in run.processes())  # it is told by the kernel
    assert run.end().result == "complete", run.said()
    assert run.began("reward", 0, 2).exists() and run.began("reward", 1, 2).exists(), run.said()
