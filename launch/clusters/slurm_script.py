"""Batch scripts of Slurm: options, settings, the part that all share (slurm.sh), and what a stage runs. Pure.

    STAGE.sbatch    one for each stage, chained by dependencies that sbatch is given
    chain.sbatch    or one for all of them, in one allocation

With generators on nodes of their own a job is heterogeneous: component 0 trains, component 1 serves.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.clusters.job import JobSpec, Role, RunSpec
from launch.clusters.network import network_environment
from launch.clusters.scheduler import Rendered
from launch.clusters.site import Site
from launch.clusters.submission import FOLDER, LOGS

SHARED = Path(__file__).with_name("slurm.sh")
CHAIN = "chain"
PORTS = 1000  # above the site's port, of which each job takes another
LAST_PORT = 65535


def render(spec: RunSpec, site: Site) -> list[Rendered]:
    """One script for each stage, or one for all."""
    if spec.one_allocation or site.slurm.one_allocation:
        return [Rendered(f"{CHAIN}.sbatch", script(spec, spec.jobs, CHAIN, site))]
    return [Rendered(f"{job.stage}.sbatch", script(spec, [job], job.stage, site)) for job in spec.jobs]


def script(spec: RunSpec, jobs: Sequence[JobSpec], name: str, site: Site) -> str:
    """A whole batch script."""
    head = [f"#SBATCH {option}" for option in options(spec, jobs, name, site)]
    if servers := apart(jobs):
        head += ["#SBATCH hetjob", *(f"#SBATCH {option}" for option in server_options(servers, jobs, site))]
    stages = " and ".join(filter(None, [", ".join(job.stage for job in jobs[:-1]), jobs[-1].stage]))
    after = f"; sbatch --dependency={dependency(spec, jobs[0].after)}" if len(jobs) == 1 and jobs[0].after else ""
    lines = ["#!/bin/bash", *head, f"# rlhf: {stages} of {spec.name}{after}", "", *settings(spec, jobs, site)]
    body = [line for job in jobs for line in run_stage(spec, job, bool(servers), site)]
    return "\n".join(lines) + "\n" + SHARED.read_text(encoding="utf-8") + "\n" + "\n".join([*body, "exit 0"]) + "\n"


def options(spec: RunSpec, jobs: Sequence[JobSpec], name: str, site: Site) -> Iterator[str]:
    """Of sbatch: what the largest of the stages needs, as one after the other they share it."""
    grace = math.ceil(max(job.grace_seconds for job in jobs))
    run, task = (f"{spec.run}-seed-%a", "%A_%a") if spec.seeds else (str(spec.run), "%j")
    yield f"--job-name={spec.named(name)}"
    yield f'--output="{run}/{FOLDER}/{LOGS}/{name}-{task}.log"'
    yield "--open-mode=append"
    yield "--requeue"
    yield "--kill-on-invalid-dep=yes"
    yield f"--signal=B:USR1@{grace + site.slurm.signal_seconds}"
    if spec.seeds:
        yield f"--array={','.join(map(str, spec.seeds))}"
    yield from resources([job.trainer for job in jobs], beside(jobs), jobs, site)
    yield from site.slurm.options


def dependency(spec: RunSpec, jobs: Sequence[str]) -> str:
    """What holds a job until others are complete, task by task of an array; jobs: their ids, or their stages' names."""
    return ":".join(["aftercorr" if spec.seeds else "afterok", *jobs])


def server_options(servers: Sequence[Role], jobs: Sequence[JobSpec], site: Site) -> Iterator[str]:
    """Of the second component."""
    yield from resources(servers, [], jobs, site)
    yield from site.slurm.servers


def resources(roles: Sequence[Role], guests: Sequence[Role], jobs: Sequence[JobSpec], site: Site) -> Iterator[str]:
    """Nodes and what each of them has. guests: roles that share them."""
    slurm = site.slurm
    for option in ("partition", "account", "qos", "constraint", "reservation"):
        if value := getattr(slurm, option):
            yield f"--{option}={value}"
    if slurm.comment:
        yield f'--comment="{slurm.comment}"'
    yield f"--nodes={max(role.nodes for role in roles)}"
    yield f"--ntasks-per-node={max(role.processes for role in roles)}"
    if gpus := max(role.gpus for role in roles) + sum(role.gpus for role in guests):
        kind = f"{slurm.gpu_type}:{gpus}" if slurm.gpu_type else f"{gpus}"
        yield f"--gpus-per-node={kind}" if slurm.gpus == "gpus-per-node" else f"--gres=gpu:{kind}"
    if cpus := max(cpus_per_task(role, site) or 0 for role in roles):
        yield f"--cpus-per-task={cpus}"
    memory = max((role.memory for role in roles if role.memory), default=None)
    if memory or slurm.memory:
        yield f"--mem={f'{memory}G' if memory else slurm.memory}"
    hours = [job.hours or slurm.hours for job in jobs]
    if all(hours):
        minutes = math.ceil(60 * sum(filter(None, hours)))
        yield f"--time={minutes // 60}:{minutes % 60:02d}:00"
    if slurm.exclusive:
        yield "--exclusive"


def settings(spec: RunSpec, jobs: Sequence[JobSpec], site: Site) -> Iterator[str]:
    """The part of a script that is not the same for every stage."""
    environment = {**network_environment(site), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **site.environment}
    yield f"run={run_word(spec)}"
    yield f"retries={jobs[0].retries}"
    yield f"grace={max(job.grace_seconds for job in jobs):g}"
    yield f"ports={min(site.network.port, LAST_PORT - PORTS)}"
    yield f"python={shlex.quote(jobs[0].trainer.command[0])}"
    yield f"inside=({shlex.join(inside(site, spec, batch=True))})"
    yield f"cd {shlex.quote(str(spec.directory))} || exit 1"
    yield from site.setup
    yield from (f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items()))
    yield "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"


def run_stage(spec: RunSpec, job: JobSpec, heterogeneous: bool, site: Site) -> Iterator[str]:
    """What a script does for one stage."""
    trainer = job.trainer
    yield f"begin {job.stage} {trainer.nodes} && {{"
    for role in job.servers:
        own = [*group(0 if role.colocated else 1, heterogeneous), f"--nodes={role.nodes}", f"--ntasks={role.nodes}"]
        own += [*cpus(role, site), *(["--overlap"] if role.colocated else [])]
        there = "127.0.0.1" if role.colocated else f"$(apart {role.nodes})"
        what = f"{role.name} {role.port} {shlex.quote(role.health or '')} {shlex.quote(role.announced or '')} {there}"
        yield from call(f"serve {what} --", [*own, *srun(site, spec)], role, spec, site)
    own = [*group(0, heterogeneous), f"--nodes={trainer.nodes}", f"--ntasks={trainer.nodes * trainer.processes}"]
    own += [f"--ntasks-per-node={trainer.processes}", *cpus(trainer, site)]
    own += ["--overlap"] if any(role.colocated for role in job.servers) else []
    yield from call("train", [*own, *srun(site, spec)], trainer, spec, site)
    yield "}"


def call(function: str, own: Sequence[str], role: Role, spec: RunSpec, site: Site) -> Iterator[str]:
    """A function of slurm.sh: options of srun, the role's environment behind what Slurm sets, the command itself."""
    container = site.slurm.container
    yield f"    {function} {shlex.join(own)} -- \\"
    if container and container.engine == "apptainer":
        yield f"        {shlex.join(inside(site, spec, batch=False))} \\"
    if role.environment:
        pairs = [f"{name}={value_of(name, value)}" for name, value in sorted(role.environment.items())]
        yield f"        env {' '.join(pairs)} \\"
    yield f"        {' '.join(word(part, spec) for part in role.command)}"


def value_of(name: str, value: str) -> str:
    """The value of a role's variable; its GPUs are counted among those that the node of the script gives the job."""
    return f"$(gpus {value.replace(',', ' ')})" if name == "CUDA_VISIBLE_DEVICES" else shlex.quote(value)


def word(part: str, spec: RunSpec) -> str:
    """A word of a command line; the run directory by its variable, for it may be another in each task of an array."""
    before, found, after = part.partition(str(spec.run))
    if not found or (after and not after.startswith("/")):
        return shlex.quote(part)
    return f'{shlex.quote(before) if before else ""}"$run"{shlex.quote(after) if after else ""}'


def run_word(spec: RunSpec) -> str:
    """The run directory, of the task's seed if there are several."""
    return shlex.quote(str(spec.run)) + ("-seed-$SLURM_ARRAY_TASK_ID" if spec.seeds else "")


def inside(site: Site, spec: RunSpec, batch: bool) -> list[str]:
    """What puts a command into the container. batch: from the batch script, without a step of its own to be in."""
    container = site.slurm.container
    if container is None:
        return []
    if container.engine == "apptainer":
        mounts = [option for mount in mounted(site, spec) for option in ("--bind", mount)]
        return ["apptainer", "exec", "--nv", *mounts, *container.options, container.image]
    return ["srun", "--nodes=1", "--ntasks=1", "--overlap", *pyxis(site, spec)] if batch else pyxis(site, spec)


def pyxis(site: Site, spec: RunSpec) -> list[str]:
    """Options of srun that the plugin adds."""
    container = site.slurm.container
    assert container is not None
    mounts = f"--container-mounts={','.join(mounted(site, spec))}"
    where = f"--container-workdir={spec.directory}"
    return [f"--container-image={container.image}", mounts, where, *container.options]


def mounted(site: Site, spec: RunSpec) -> list[str]:
    """Folders that a container sees."""
    container = site.slurm.container
    own = dict.fromkeys([str(spec.run.parent), str(spec.directory)])
    return [*(f"{folder}:{folder}" for folder in own), *(container.mounts if container else [])]


def srun(site: Site, spec: RunSpec) -> list[str]:
    """Options of each srun."""
    container = site.slurm.container
    return [*(pyxis(site, spec) if container and container.engine == "pyxis" else []), *site.slurm.srun]


def cpus(role: Role, site: Site) -> list[str]:
    """Since 22.05 srun does not take them from sbatch."""
    found = cpus_per_task(role, site)
    return [f"--cpus-per-task={found}"] if found else []


def cpus_per_task(role: Role, site: Site) -> int | None:
    """Of each process."""
    return max(1, role.cpus // role.processes) if role.cpus else site.slurm.cpus_per_task


def group(number: int, heterogeneous: bool) -> list[str]:
    """Which component of a heterogeneous job."""
    return [f"--het-group={number}"] if heterogeneous else []


def apart(jobs: Sequence[JobSpec]) -> list[Role]:
    """Servers on nodes of their own."""
    return [role for job in jobs for role in job.servers if not role.colocated]


def beside(jobs: Sequence[JobSpec]) -> list[Role]:
    """Servers on the trainer's nodes."""
    return [role for job in jobs for role in job.servers if role.colocated]
