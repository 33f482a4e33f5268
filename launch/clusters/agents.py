"""What starts the processes of a stage on one of its nodes: torchrun's agent, or deepspeed. Pure.

Both start processes once and end with them. Trying again is for whoever starts them: an agent's own restarts know
neither bad input from a crash, nor that a node is away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from launch.clusters.hosts import Host
from launch.clusters.job import JobSpec, RunSpec
from launch.clusters.site import Site
from launch.clusters.submission import FOLDER, LOGS

ATTEMPT = "ATTEMPT"  # in a command: the number of the attempt takes its place
PORT = "FREE_PORT"  # likewise: one that nobody uses on the node
JOIN_SECONDS = 600  # until all agents have met: nodes load their libraries at different speeds
READ_SECONDS = 60  # of one question to the rendezvous
RANK_PREFIX = "[rank {rank}]:"  # of each line of a process under torchrun


def torchrun(spec: RunSpec, job: JobSpec, site: Site, node: int) -> list[str]:
    """torchrun's agent: its rendezvous is on the first host, and a stage of one node keeps to itself."""
    trainer, hosts = job.trainer, spec.hosts
    endpoint = f"{hosts[0].address}:{site.network.port if trainer.nodes > 1 else 0}"
    conf = f"is_host={str(node == 0).lower()},join_timeout={JOIN_SECONDS},read_timeout={READ_SECONDS}"
    python, *rest = trainer.command
    return [
        *(python, "-P", "-m", "torch.distributed.run"),
        *("--nnodes", str(trainer.nodes), "--nproc-per-node", str(trainer.processes)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", f"{spec.named(job.stage)}-{ATTEMPT}"),
        *("--rdzv-conf", conf, "--local-addr", hosts[node].address),
        *("--max-restarts", "0", "--monitor-interval", "0.5", "--shutdown-timeout", str(round(job.grace_seconds))),
        *("--tee", "3", *rest),
    ]


def deepspeed(spec: RunSpec, job: JobSpec, site: Site, node: int) -> list[str]:
    """deepspeed's launcher, by itself on each node; hosts and their order are those of a hostfile for this stage."""
    python, _, *rest = job.trainer.command
    port = str(site.network.port) if job.trainer.nodes > 1 else PORT  # runs may share a machine
    return [
        *(python, "-P", "-m", "deepspeed.launcher.runner"),
        *("--hostfile", str(spec.run / FOLDER / hostfile_name(job)), "--no_ssh", "--node_rank", str(node)),
        *("--master_addr", spec.hosts[0].address, "--master_port", port),
        *("--log_level", "warning", "--no_local_rank", "--enable_each_rank_log", str(rank_logs(spec.run, job.stage))),
        *("--module", *rest),
    ]


def hostfile_name(job: JobSpec) -> str:
    """Of deepspeed, for one stage."""
    return f"{job.stage}.hostfile"


def hostfile(job: JobSpec, hosts: Sequence[Host]) -> str:
    """The nodes of a stage as deepspeed reads them."""
    return "".join(f"{host.name} slots={job.trainer.processes}\n" for host in hosts[: job.trainer.nodes])


def rank_logs(run: Path, stage: str) -> Path:
    """Where each rank under deepspeed writes to."""
    return run / FOLDER / LOGS / f"{stage}.ranks"


STARTERS: dict[str, Callable[[RunSpec, JobSpec, Site, int], list[str]]] = {"torchrun": torchrun, "deepspeed": deepspeed}
