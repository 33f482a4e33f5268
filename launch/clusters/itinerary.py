"""RUN/launch/nodes.yaml: what each node of a run over ssh does, rendered before anything is started; read there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launch.clusters.agents import STARTERS
from launch.clusters.hosts import Host
from launch.clusters.job import JobSpec, Role, RunSpec
from launch.clusters.network import network_environment
from launch.clusters.site import Site
from launch.clusters.submission import FOLDER
from rlhf.errors import ArtifactError

ITINERARY = "nodes.yaml"


@dataclass(frozen=True)
class Server:
    """What answers a stage's trainers on one node."""

    name: str
    node: int
    command: str
    environment: Mapping[str, str]
    port: int
    health: str | None


@dataclass(frozen=True)
class Leg:
    """One stage."""

    stage: str
    agents: tuple[str, ...]  # the command of each node that trains
    environment: Mapping[str, str]
    processes: int  # of each node
    retries: int
    grace_seconds: float
    hours: float | None
    servers: tuple[Server, ...] = ()

    @property
    def nodes(self) -> set[int]:
        """Those that have something to do in it."""
        return {*range(len(self.agents)), *(server.node for server in self.servers)}


@dataclass(frozen=True)
class Itinerary:
    """All of it."""

    starter: str
    hosts: tuple[Host, ...]
    start: tuple[str, ...]  # the shell script that starts the supervisor of each node
    ssh: tuple[str, ...]
    secrets: tuple[str, ...]  # names
    legs: tuple[Leg, ...] = field(default=())

    def leg(self, stage: str) -> Leg:
        """That of a stage."""
        return next(leg for leg in self.legs if leg.stage == stage)

    def text(self) -> str:
        """As YAML."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, width=1000)


def itinerary(starter: str, spec: RunSpec, site: Site) -> Itinerary:
    """What a run does on its hosts."""
    legs = tuple(_leg(starter, spec, job, site) for job in spec.jobs)
    scripts = tuple(supervisor_script(spec, site, node) for node in range(len(spec.hosts)))
    return Itinerary(starter, spec.hosts, scripts, tuple(site.ssh), spec.secrets, legs)


def _leg(starter: str, spec: RunSpec, job: JobSpec, site: Site) -> Leg:
    trainer = job.trainer
    environment = {**trainer.environment, **network_environment(site), **site.environment}
    if trainer.gpus == 0:
        environment["DS_ACCELERATOR"] = "cpu"
    agents = [
        shlex.join([*STARTERS[starter](spec, job, site, node), *_announced(spec, job)]) for node in range(trainer.nodes)
    ]
    servers = [
        Server(
            role.name,
            node,
            shlex.join(role.command),
            {**role.environment, **site.environment},
            role.port or 0,
            role.health,
        )
        for role in job.servers
        for node in _nodes_of(role, job)
    ]
    return Leg(
        *(job.stage, tuple(agents), environment, trainer.processes, job.retries, job.grace_seconds, job.hours),
        servers=tuple(servers),
    )


def _nodes_of(role: Role, job: JobSpec) -> range:
    """Beside the trainers, or behind them."""
    return range(role.nodes) if role.colocated else range(job.trainer.nodes, job.trainer.nodes + role.nodes)


def _announced(spec: RunSpec, job: JobSpec) -> list[str]:
    """The recipe's fields that hold addresses of servers."""
    found = []
    for role in job.servers:
        if role.announced:
            nodes = _nodes_of(role, job)
            here = role.colocated and len(nodes) == 1
            hosts = ["127.0.0.1"] if here else [spec.hosts[node].address for node in nodes]
            found.append(f"{role.announced}=[{','.join(f'http://{host}:{role.port}' for host in hosts)}]")
    return found


def supervisor_script(spec: RunSpec, site: Site, node: int) -> str:
    """What a node's shell runs; the verb (look, start, stop) is its first argument."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(site.environment.items())]
    python = spec.jobs[0].trainer.command[0]
    command = [python, "-P", "-m", "launch.clusters.node", "--run", str(spec.run), "--node", str(node)]
    lines = [
        "set -e",
        f"cd {shlex.quote(str(spec.directory))}",
        *site.setup,
        *exports,
        f'exec {shlex.join(command)} "$1"',
    ]
    return "\n".join(lines)


def read_itinerary(run: Path) -> Itinerary:
    """What stands in a run directory. Raises ArtifactError where nothing does."""
    path = run / FOLDER / ITINERARY
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        legs = [
            Leg(**{**leg, "agents": tuple(leg["agents"]), "servers": tuple(Server(**each) for each in leg["servers"])})
            for leg in content.pop("legs")
        ]
        hosts = tuple(Host(**host) for host in content.pop("hosts"))
        start, ssh, secrets = (tuple(content[name]) for name in ("start", "ssh", "secrets"))
        return Itinerary(str(content["starter"]), hosts, start, ssh, secrets, tuple(legs))
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); launch the run again") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
