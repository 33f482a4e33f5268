"""What a run asks of a cluster, said once: renderers turn it into command lines, batch scripts or manifests.

    RunSpec                 one run directory, one recipe
    └── JobSpec             one stage: its roles, what it waits for, how often it is tried again
        └── Role            equal nodes that do one thing: trainer, generator (vLLM), reward (somebody's server)

Nothing here knows a scheduler, and nothing reads the machine: the same arguments give the same specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launch.clusters.hosts import Host
from rlhf.beacons.keeper import HUNG
from stages.signals import RESUMABLE

RoleName = Literal["trainer", "generator", "reward"]
BAD_INPUT = 2
# What the same command cannot mend: the recipe or the data have to change.
FINAL = (0, BAD_INPUT)
RESUMABLE_CODES = (RESUMABLE, HUNG)
# Environment variables that hold secrets: handed on by reference, never written into what is rendered.
SECRETS = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "RLHF_GENERATION_TOKEN",
    "RLHF_REWARD_TOKEN",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
# Those of commands that run beside stages, and on no node.
SECRETS_HERE = ("RLHF_DOCTOR_TOKEN", "LABEL_STUDIO_API_KEY")


@dataclass(frozen=True)
class Role:
    """Equal nodes of a job that do one thing.

    A trainer's command is that of each of its processes, which find each other by torchrun's variables (RANK,
    WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). A server's is started once on each of its nodes.
    """

    name: RoleName
    nodes: int
    processes: int  # of each node
    gpus: int  # of each node; 0: on CPUs
    command: tuple[str, ...]  # ("python", "-m", "stages.ppo", ...), without what starts several
    environment: Mapping[str, str] = field(default_factory=dict)
    cpus: int | None = None  # of each node; None: as the site has it
    memory: int | None = None  # GiB of each node
    port: int | None = None  # a server's
    health: str | None = None  # the path that answers 200 once it serves
    announced: str | None = None  # the recipe's field that is given its addresses: field=[http://host:port,...]
    # Beside the trainer, on its nodes and GPUs; else on nodes of its own. One server for each of the trainer's nodes
    # then, each asked at 127.0.0.1 by the processes of its node.
    colocated: bool = False


@dataclass(frozen=True)
class JobSpec:
    """One stage."""

    stage: str
    roles: tuple[Role, ...]  # in the order in which they start; the last is the trainer
    after: tuple[str, ...] = ()  # stages of this run whose results it starts from
    retries: int = 3  # times that it is started anew after anything but success and bad input
    grace_seconds: float = 60.0  # from the signal to stop until it is killed: a checkpoint is written meanwhile
    hours: float | None = None  # after which the scheduler ends it; None: as the site has it

    @property
    def trainer(self) -> Role:
        """Those that train."""
        return self.roles[-1]

    @property
    def servers(self) -> tuple[Role, ...]:
        """Those that answer the trainer."""
        return self.roles[:-1]


@dataclass(frozen=True)
class RunSpec:
    """All stages that are to run, first to last."""

    name: str  # the recipe's
    run: Path  # absolute, and the same on every node
    directory: Path  # where commands are started: relative paths of the recipe begin here
    jobs: tuple[JobSpec, ...]
    secrets: tuple[str, ...] = SECRETS  # names of environment variables
    command: tuple[str, ...] = ()  # the arguments of `rlhf launch` that submit it once more
    hosts: tuple[Host, ...] = ()  # of schedulers that reach them by ssh: trainers first, then servers
    recipe: str | None = None  # resolved, where nodes may not have it yet as run/recipe.yaml
    seeds: tuple[int, ...] = ()  # one run for each of them, in RUN-seed-N; none: the recipe's, in RUN
    one_allocation: bool = False  # one job for the whole chain, where the scheduler has jobs

    def seeded(self, seed: int) -> Path:
        """The run directory of a seed."""
        return self.run.with_name(f"{self.run.name}-seed-{seed}")

    def job(self, stage: str) -> JobSpec:
        """That of a stage."""
        return next(job for job in self.jobs if job.stage == stage)

    def named(self, stage: str) -> str:
        """A name that schedulers take (RFC 1123): small letters, digits and dashes, at most 52 of them."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "run"
        return f"rlhf-{plain[:36].strip('-')}-{stage}"


def again(code: int, tried: int, retries: int) -> bool:
    """Whether a job that ended with a code after so many tries is started anew."""
    return code not in FINAL and tried <= retries
