"""Runs on the cluster of tests/slurm_cluster.py, by the command that a person types, and what may happen to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from interruption import EVERY_STEP, own_copy, seconds_until
from running import TINY, rlhf
from slurm_cluster import Cluster

SETTINGS = ["ppo.steps=12", EVERY_STEP, "checkpoint.grace_seconds=20"]
AT = 3  # the step behind which something happens
AGAIN_SECONDS = 150.0  # until a job is started anew and has made a step, on a busy machine
END_SECONDS = 400.0


def undisturbed(inputs: Path, folder: Path) -> Path:
    """PPO by `rlhf` on this machine: two processes, no Slurm and no fault."""
    copy = own_copy(inputs, folder, ["sft", "reward"])
    done = rlhf("ppo", str(TINY), "ppo.parallelism.processes=2", *SETTINGS, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "ppo"


class Launched:
    """A run that was given to Slurm."""

    def __init__(self, cluster: Cluster, folder: Path, *options: str, nodes: int = 2, processes: int = 1) -> None:
        self.cluster = cluster
        self.folder = folder
        self.run = folder / "runs" / "tiny"
        arguments = ["launch", str(TINY), "--on", "slurm", "--nodes", str(nodes), "--processes", str(processes)]
        done = rlhf(*arguments, *options, "--json", folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        self.submitted = json.loads(done.stdout)

    def states(self) -> dict[str, dict[str, Any]]:
        """What `rlhf status` says of each stage."""
        done = rlhf("status", "tiny", "--json", folder=self.folder)
        assert done.returncode in (0, 1), done.stderr
        return {each["stage"]: each for each in json.loads(done.stdout)["states"]}

    def said(self) -> str:
        """What its jobs have written, for people."""
        logs = sorted((self.run / "launch" / "logs").glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs)

    def step(self, stage: str = "ppo") -> int:
        """The last step that stands in a stage's figures."""
        return last_step(self.run / stage)

    def kept(self, stage: str) -> bool:
        """Whether a stage has a checkpoint."""
        return any((self.run / stage / "checkpoints").glob("step-*"))

    def reach(self, step: int = AT) -> None:
        """Wait until PPO has made a step."""
        self.until(lambda: self.step() >= step, AGAIN_SECONDS)

    def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for something; how long it took."""
        return seconds_until(condition, seconds, self.said)

    def under_way(self) -> bool:
        """Whether Slurm still has something to do for it."""
        listed = self.cluster.said("squeue", "--noheader", "--format=%i").split()
        return bool({job.partition("_")[0] for job in self.submitted["ids"].values()} & set(_plain(listed)))

    def end(self, seconds: float = END_SECONDS) -> dict[str, dict[str, Any]]:
        """Wait until Slurm has done with it; the states then."""
        self.until(lambda: not self.under_way(), seconds)
        return self.states()

    def nodes(self, stage: str = "ppo") -> list[str]:
        """On which a stage began last."""
        return self.began(stage)[-1].split()[-1].split(",")

    def began(self, stage: str = "ppo") -> list[str]:
        """A line for each try that has begun."""
        path = self.run / "launch" / f"{stage}.tries"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith("began")]

    def alive(self, stage: str = "ppo") -> bool:
        """Whether the stage's processes run on the nodes of its last try."""
        return all(self.cluster.processes(node, f"stages.{stage}") for node in self.nodes(stage))

    def worker(self, node: str, stage: str = "ppo") -> psutil.Process:
        """The process of a stage on a node."""
        (found,) = self.cluster.processes(node, f"stages.{stage}")
        return found


def _plain(listed: Sequence[str]) -> list[str]:
    return [name.partition("_")[0].partition("+")[0] for name in listed]


def last_step(stage: Path) -> int:
    """The last step that stands in a stage's figures."""
    try:
        return int(json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def ppo_of(cluster: Cluster, inputs: Path, folder: Path, *options: str) -> Launched:
    """PPO alone, over two nodes, from the results of another run."""
    own_copy(inputs, folder, ["sft", "reward"])
    return Launched(cluster, folder, *SETTINGS, "--from", "ppo", "--until", "ppo", *options)
