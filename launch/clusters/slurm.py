"""Slurm: a job for each stage, chained by dependencies, or one allocation for all; jobs requeue themselves.

Scripts are rendered by `slurm_script`, Slurm's commands are in `slurm_queue`, what became of jobs in `slurm_states`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launch.clusters import slurm_queue, slurm_script, slurm_states
from launch.clusters.job import Role, RunSpec
from launch.clusters.logs import Source, read_logs
from launch.clusters.scheduler import Rendered, Scheduler, StageState, Submission
from launch.clusters.site import Site
from launch.clusters.slurm_queue import Partition, asked
from launch.clusters.submission import FOLDER, LOGS, SUBMISSION, read_submission, write_submission
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe, resolved_yaml
from rlhf.store.artifact import write_text

TOKEN = "RLHF_GENERATION_TOKEN"
LOOK_SECONDS = 5.0  # between two questions to Slurm's controller while logs are followed
ACTIVE = ("running", "waiting")
WORST = ("lost", "failed", "stopped", "running", "waiting", "complete")


class Slurm:
    """See the module."""

    name = "slurm"

    def check(self, spec: RunSpec, site: Site) -> None:
        """Raise ConfigError for what Slurm has not, by its own account, and then for what it refuses."""
        if re.search(r"[%\"\\\n]", str(spec.run)):
            raise ConfigError(f'--run={spec.run}: Slurm takes no % " or \\ in the names of log files; give another')
        where = slurm_queue.partition(site.slurm.partition)
        jobs = list(spec.jobs)
        servers = slurm_script.apart(jobs)
        problems = [problem for job in jobs for problem in unfit(job.trainer, job.stage, where, site, job.hours)]
        for job in jobs:
            hours, told = job.hours or site.slurm.hours, job.grace_seconds + site.slurm.signal_seconds
            if hours and hours * 3600 <= told + 60:
                problems.append(
                    f"{job.stage}: --hours {hours:g}; is over before the {told:g} s in which it stops behind a "
                    "checkpoint, and as much as a minute by which Slurm tells it sooner; use more"
                )
        own = next((option for option in reversed(site.slurm.servers) if option.startswith("--partition=")), None)
        theirs = slurm_queue.partition(own.partition("=")[2]) if own and servers else where
        problems += [problem for role in servers for problem in unfit(role, role.name, theirs, site, None)]
        if theirs is where and not problems:
            wanted = max(job.trainer.nodes + sum(r.nodes for r in job.servers if not r.colocated) for job in jobs)
            if wanted > len(where.nodes):
                problems.append(
                    f"--nodes with --generators: {wanted} nodes; partition {where.name} has {len(where.nodes)}"
                )
        if any(role.name == "generator" for role in servers) and not os.environ.get(TOKEN):
            problems.append(
                f"--generators: they are open to other machines; set {TOKEN} to something that is hard to guess"
            )
        if spec.seeds:
            problems += self._problems_of_seeds(spec.seeds)
        if problems:
            raise ConfigError(*problems)
        for each in slurm_script.render(spec, site):
            asked("sbatch", "--test-only", text=each.text)

    def _problems_of_seeds(self, seeds: Sequence[int]) -> list[str]:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", asked("scontrol", "show", "config"))
        most = int(found[1]) - 1 if found else 1000
        if max(seeds) > most:
            return [f"--seeds={max(seeds)}: a task of an array has its seed's number, {most} at most; use smaller ones"]
        return []

    def render(self, spec: RunSpec, site: Site) -> Sequence[Rendered]:
        """Batch scripts."""
        return slurm_script.render(spec, site)

    def submit(self, spec: RunSpec, site: Site, rendered: Sequence[Rendered], folder: Path) -> Submission:
        """Submit the jobs, each held until those before it are complete; what is submitted is kept as it comes."""
        stages = tuple(job.stage for job in spec.jobs)
        facts = {f"processes.{job.stage}": str(job.trainer.nodes * job.trainer.processes) for job in spec.jobs}
        made = Submission(self.name, spec.name, str(spec.directory), stages, time.time(), spec.command, {}, facts)
        runs: dict[int | None, Path] = {seed: spec.seeded(seed) for seed in spec.seeds}
        runs = runs or {None: spec.run}
        new = [run for run in runs.values() if not run.exists()]
        before = {path: path.read_bytes() for run in runs.values() if (path := run / FOLDER / SUBMISSION).is_file()}
        ids: dict[str, str] = {}
        try:
            for seed, run in runs.items():
                prepare(spec, seed, run)
            for each in rendered:
                name = each.name.removesuffix(".sbatch")
                whole = name == slurm_script.CHAIN
                after = [] if whole else [ids[stage] for stage in spec.job(name).after]
                found = slurm_queue.submit(each.text, slurm_script.dependency(spec, after) if after else None)
                ids |= dict.fromkeys(stages if whole else [name], found)
                for seed, run in runs.items():
                    own = {stage: f"{job}_{seed}" if seed is not None else job for stage, job in ids.items()}
                    write_submission(run, replace(made, ids=own))
        except BaseException:
            for job in dict.fromkeys(reversed(ids.values())):
                with suppress(ConfigError):
                    asked("scancel", job)
            for run in runs.values():
                (run / FOLDER / SUBMISSION).unlink(missing_ok=True)
                if run in new:
                    shutil.rmtree(run, ignore_errors=True)
            for path, content in before.items():
                path.write_bytes(content)
            raise
        seeds = {"seeds": ",".join(map(str, spec.seeds))} if spec.seeds else {}
        return replace(made, ids=ids, facts=facts | seeds)

    def states(self, submission: Submission, run: Path) -> list[StageState]:
        """Of each stage; of several seeds the worst, and what each says."""
        if not (runs := seeds_of(submission, run)):
            return slurm_states.states(submission, run)
        each = {seed: slurm_states.states(read_submission(own), own) for seed, own in runs.items()}
        found = []
        for number, stage in enumerate(submission.stages):
            own = {seed: states[number] for seed, states in each.items()}
            state = min((one.state for one in own.values()), key=WORST.index)
            told = "; ".join(
                f"seed {seed} {one.state}{f' ({one.told})' if one.told else ''}" for seed, one in own.items()
            )
            found.append(StageState(stage, state, told))
        return found

    def logs(self, submission: Submission, run: Path, stage: str, rank: int | None, follow: bool) -> Iterator[str]:
        """What all tries of a stage have said; of its ranks each line has the number."""
        runs = seeds_of(submission, run) or {"": run}

        def sources() -> list[Source]:
            found = []
            for seed, own in runs.items():
                job = read_submission(own).ids.get(stage, "")
                width = len(str(int(submission.facts.get(f"processes.{stage}", "1")) - 1))
                begins = None if rank is None else f"{rank:>{width}}: "
                prefix = f"seed {seed}: " if seed else ""
                found.append(Source(own / FOLDER / LOGS / f"{stage}-{job}.log", prefix, begins))
            return found

        return read_logs(sources, follow, Active(list(submission.ids.get(stage, "").split())))

    def cancel(self, submission: Submission, run: Path) -> list[str]:
        """Those that wait are cancelled, then those that run are asked to stop behind a checkpoint; twice: at once."""
        if runs := seeds_of(submission, run):
            return [
                f"seed {seed}: {line}" for seed, own in runs.items() for line in self.cancel(read_submission(own), own)
            ]
        states = [each for each in slurm_states.states(submission, run) if each.state in ACTIVE]
        again = (run / FOLDER / slurm_states.STOP).exists()
        if not states:
            return []
        write_text(run / FOLDER / slurm_states.STOP, "by rlhf cancel\n")  # before anything could be requeued
        done = []
        jobs = {submission.ids[each.stage]: each for each in reversed(states)}  # of a chain in one job, the first
        for job, each in jobs.items():
            gently = each.state == "running" and not again
            try:
                asked("scancel", *(["--batch", "--signal=USR1"] if gently else []), job)
            except ConfigError as error:  # it ends this very moment
                done.append(f"{each.stage}: job {job}: {error}")
                continue
            told = "was asked to stop behind a checkpoint; once more ends it at once" if gently else "cancelled"
            done.append(f"{each.stage}: job {job} {told}")
        return done


class Active:
    """Whether Slurm still has something to do for jobs; it is asked every few seconds, however often we are."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self.at = float("-inf")
        self.found = False

    def __call__(self) -> bool:
        """See the class."""
        if time.monotonic() - self.at > LOOK_SECONDS:
            states = [job.state for job in slurm_queue.queued(self.ids).values()] if self.ids else []
            self.found = any(state in (*slurm_states.RUNS, *slurm_states.WAITS) for state in states)
            self.at = time.monotonic()
        return self.found


def unfit(role: Role, what: str, where: Partition, site: Site, hours: float | None) -> Iterator[str]:
    """What a partition has not of what a role asks for."""
    nodes, name = where.nodes, where.name
    if role.nodes > len(nodes):
        yield f"{what}: {role.nodes} nodes; partition {name} has {len(nodes)}, use --nodes {len(nodes)} or fewer"
    if role.gpus and sum(node.gpus >= role.gpus for node in nodes) < role.nodes:
        most = max((node.gpus for node in nodes), default=0)
        yield f"{what}: --gpus {role.gpus} on {role.nodes} nodes; of partition {name} a node has {most} at most"
    cpus = (slurm_script.cpus_per_task(role, site) or 1) * role.processes
    if sum(node.cpus >= cpus for node in nodes) < role.nodes <= len(nodes):
        most = max(node.cpus for node in nodes)
        yield f"{what}: {cpus} CPUs on {role.nodes} nodes; of partition {name} a node has {most} at most"
    if role.memory and sum(node.memory >= role.memory * 1024 for node in nodes) < role.nodes <= len(nodes):
        most = max(node.memory for node in nodes) // 1024
        yield f"{what}: --memory {role.memory} on {role.nodes} nodes; of partition {name} a node has {most} GiB at most"
    asked_for = hours or site.slurm.hours
    if asked_for and asked_for > where.hours:
        yield f"{what}: --hours {asked_for:g}; partition {name} ends jobs after {where.hours:g}, use fewer"


def prepare(spec: RunSpec, seed: int | None, run: Path) -> None:
    """A run directory, with the recipe of its seed, in which nobody has cancelled anything."""
    (run / FOLDER / LOGS).mkdir(parents=True, exist_ok=True)
    (run / FOLDER / slurm_states.STOP).unlink(missing_ok=True)
    if seed is not None:
        write_text(run / "recipe.yaml", resolved_yaml(load_recipe(spec.run / "recipe.yaml", [f"seed={seed}"])))


def seeds_of(submission: Submission, run: Path) -> dict[str, Path]:
    """The run directories of an array's tasks; none where there is no array."""
    seeds = submission.facts.get("seeds", "")
    return {seed: run.with_name(f"{run.name}-seed-{seed}") for seed in seeds.split(",")} if seeds else {}


SCHEDULER: Scheduler = Slurm()
