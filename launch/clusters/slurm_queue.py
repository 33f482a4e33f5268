"""Slurm's own commands, and what they answer. Thin: no command is given anything that was not rendered before."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.errors import ConfigError

SECONDS = 60.0  # a controller that says nothing for so long is away
# What an allocation that we are in would put upon ours, and the service of a W&B run that is not ours.
FOREIGN = re.compile(r"^(SLURM_(?!CONF$|CLUSTERS$)|PMI|WANDB_SERVICE$)")
UNFIT = re.compile(r"^(sbatch|squeue|scontrol|scancel|sinfo|sacct|srun): (error|fatal): |^allocation failure: ")


@dataclass(frozen=True)
class QueuedJob:
    """A job as the queue has it, for as long as it remembers it (MinJobAge), or as accounting does."""

    state: str  # PENDING, RUNNING, COMPLETED, ...
    reason: str = ""
    nodes: str = ""


@dataclass(frozen=True)
class Node:
    """One of a partition's."""

    name: str
    cpus: int
    memory: int  # MiB
    gpus: int


@dataclass(frozen=True)
class Partition:
    """Where jobs run."""

    name: str
    nodes: tuple[Node, ...]
    hours: float  # at most


def asked(*command: str, text: str | None = None) -> str:
    """What a command answers. Raises ConfigError with its own words in a line where it refuses."""
    if shutil.which(command[0]) is None:
        raise ConfigError(f"--on=slurm: no {command[0]} here; start this where jobs are submitted, or use another --on")
    environment = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    try:
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{command[0]}: no answer within {SECONDS:g} s; is Slurm's controller up?") from error
    if done.returncode:
        raise ConfigError(f"{command[0]}: {in_a_line(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def in_a_line(words: str) -> str:
    """What Slurm has to say, without the names of its programs."""
    return "; ".join(dict.fromkeys(UNFIT.sub("", line.strip()) for line in words.splitlines() if line.strip()))


def submit(text: str, dependency: str | None) -> str:
    """The id of a new job. dependency: see `slurm_script.dependency`."""
    options = [f"--dependency={dependency}"] if dependency else []
    return asked("sbatch", "--parsable", *options, text=text).strip().partition(";")[0]


def queued(ids: Sequence[str]) -> dict[str, QueuedJob]:
    """Those of some jobs that the queue remembers, by id; of a heterogeneous one its first component."""
    wanted = sorted(set(ids))
    form = "%i|%T|%r|%N"
    command = ["squeue", "--noheader", "--states=all", "--array", f"--jobs={','.join(wanted)}", "--format", form]
    try:
        answer = asked(*command)
    except ConfigError as error:
        if "Invalid job id" not in str(error):
            raise
        answer = ""  # it has forgotten all of them
    found = {}
    for line in answer.splitlines():
        name, state, reason, nodes = line.strip().split("|", 3)
        first, plus, component = name.partition("+")
        if not plus or component == "0":
            found[first] = QueuedJob(state, "" if reason == "None" else reason, nodes)
    return found


def accounted(ids: Sequence[str]) -> dict[str, QueuedJob]:
    """Those of some jobs that accounting has; none where the cluster keeps none."""
    if not ids or shutil.which("sacct") is None:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(ids)}"]
    try:
        answer = asked(*command, "--format=JobID,State,NodeList")
    except ConfigError:  # accounting is off
        return {}
    found = {}
    for line in answer.splitlines():
        name, state, nodes = line.split("|", 2)
        found[name.removesuffix("+0")] = QueuedJob(state.partition(" ")[0], "", nodes)  # CANCELLED by 1000
    return found


def partition(name: str | None) -> Partition:
    """One or several, with commas, or the default one. Raises ConfigError where there is none of that name."""
    form = "%P|%N|%c|%m|%G|%l"
    lines = [line.split("|", 5) for line in asked("sinfo", "--noheader", "--Node", "--format", form).splitlines()]
    there = sorted({line[0].rstrip("*") for line in lines})
    wanted = name.split(",") if name else [line[0].rstrip("*") for line in lines if line[0].endswith("*")][:1]
    if unknown := [each for each in wanted if each not in there]:
        raise ConfigError(f"slurm.partition={unknown[0]}: no such partition; there are {', '.join(there) or 'none'}")
    if not wanted:
        raise ConfigError(f"slurm.partition: there is no default one; use one of {', '.join(there)}")
    own = [line for line in lines if line[0].rstrip("*") in wanted]
    nodes = {line[1]: Node(line[1], int(line[2]), int(line[3]), gpus_in(line[4])) for line in own}
    return Partition(",".join(wanted), tuple(nodes.values()), max(hours_in(line[5]) for line in own))


def gpus_in(resources: str) -> int:
    """Of a node's generic resources: gpu:h100:8(S:0-1),nvme:2."""
    return sum(int(number) for number in re.findall(r"(?:^|,)gpu:(?:[^:,()]+:)?(\d+)", resources))


def hours_in(limit: str) -> float:
    """Of a time as Slurm writes it: 3-00:00:00, 1:00:00, 30:00, infinite."""
    if not re.match(r"^[\d:-]+$", limit):
        return float("inf")
    days, dash, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    parts = parts + [0] * (3 - len(parts)) if dash else [0] * (3 - len(parts)) + parts
    return int(days or 0) * 24 + parts[0] + parts[1] / 60 + parts[2] / 3600
