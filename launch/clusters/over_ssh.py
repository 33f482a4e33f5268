"""Runs over hosts of a hostfile: a supervisor on each, started by ssh, below it an agent of torchrun or deepspeed."""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.clusters.agents import RANK_PREFIX, hostfile, hostfile_name, rank_logs
from launch.clusters.hosts import LOCALHOST
from launch.clusters.itinerary import ITINERARY, Itinerary, itinerary, read_itinerary
from launch.clusters.job import RunSpec
from launch.clusters.logs import Source, read_logs
from launch.clusters.records import Records
from launch.clusters.scheduler import Rendered, StageState, Submission
from launch.clusters.site import Site
from launch.clusters.ssh import Answer, ask, command_on
from launch.clusters.submission import FOLDER, LOGS, submitting
from launch.local import visible_gpus
from rlhf.errors import ConfigError
from rlhf.recipe import load_recipe
from rlhf.store.unfinished import is_held
from stages.lineage import is_current

COMMANDS = "start.sh"
LOOK_SECONDS = 0.5
TOKEN = "RLHF_GENERATION_TOKEN"
ENDS_SECONDS = 90.0  # beside the grace period: until supervisors have ended


class OverSSH:
    """torchrun or deepspeed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, spec: RunSpec, site: Site) -> None:
        """Raise ConfigError where this machine, if it is the one, has too few GPUs, or a token is missing."""
        open_to_others = any(
            role.name == "generator" and not (role.colocated and role.nodes == 1)
            for job in spec.jobs
            for role in job.servers
        )
        if open_to_others and not os.environ.get(TOKEN):
            raise ConfigError(f"--generators: servers on other nodes want a token; set {TOKEN} to a secret of your own")
        if spec.hosts[0].name == LOCALHOST and (gpus := _most_gpus(spec)) > visible_gpus():
            raise ConfigError(f"--gpus={gpus}: this machine has {visible_gpus()}; use at most as many")

    def render(self, spec: RunSpec, site: Site) -> Sequence[Rendered]:
        """What every node does, and the command lines that start them; ConfigError where the hosts are too few."""
        _require_hosts(spec)
        plan = itinerary(self.name, spec, site)
        lines = [
            f"{shlex.join(command_on(host, plan.start[node], 'start', plan.ssh))}\n"
            for node, host in enumerate(plan.hosts)
        ]
        rendered = [Rendered(ITINERARY, plan.text()), Rendered(COMMANDS, "".join(lines))]
        if self.name == "deepspeed":
            rendered += [Rendered(hostfile_name(job), hostfile(job, spec.hosts)) for job in spec.jobs]
        return rendered

    def submit(self, spec: RunSpec, site: Site, rendered: Sequence[Rendered], folder: Path) -> Submission:
        """Look at every host, then start on every host. Raises ConfigError with a line for each that cannot be used."""
        plan = itinerary(self.name, spec, site)
        nodes = list(range(len(plan.hosts)))
        content = hashlib.sha256(plan.text().encode()).hexdigest()
        problems = [problem for answer in ask(plan, nodes, "look") if (problem := _problem(answer, spec, content))]
        if problems:
            raise ConfigError(*problems)
        Records(spec.run).forget()
        facts = {"hosts": " ".join(host.name for host in plan.hosts)}
        stages = tuple(job.stage for job in spec.jobs)
        ids = {job.stage: f"{job.trainer.nodes} x {job.trainer.processes}" for job in spec.jobs}
        submission = Submission(
            self.name, spec.name, str(spec.directory), stages, time.time(), spec.command, ids=ids, facts=facts
        )
        with submitting(spec.run, submission):
            answers = ask(plan, nodes, "start")
            if failed := [answer.problem for answer in answers if answer.problem]:
                ask(plan, [node for node in nodes if not answers[node].problem], "stop")
                raise ConfigError(*failed)
        return submission

    def states(self, submission: Submission, run: Path) -> list[StageState]:
        """By what its nodes say, and by what stands."""
        plan, records, recipe = read_itinerary(run), Records(run), load_recipe(run / "recipe.yaml")
        order = records.order()
        living = set() if order.do == "end" else records.living(len(plan.hosts))
        found: list[StageState] = []
        begun = False
        for stage in submission.stages:
            if is_current(recipe, run, stage):
                found.append(StageState(stage, "complete", ""))
            elif order.do == "end":
                own = order.stage in ("", stage)
                state = order.result if own and order.result in ("failed", "stopped") else "stopped"
                found.append(StageState(stage, state, order.told if own else "not begun"))  # type: ignore[arg-type]
            elif not living:
                told = "not begun" if begun else f"no supervisor gives a sign; rlhf resume {run} starts them again"
                found.append(StageState(stage, "stopped" if begun else "lost", told))
                begun = True
            elif begun:
                found.append(StageState(stage, "waiting", ""))
            else:
                found.append(StageState(stage, "running", told_of(plan, run, stage, living)))
                begun = True
        return found

    def logs(self, submission: Submission, run: Path, stage: str, rank: int | None, follow: bool) -> Iterator[str]:
        """Of all its nodes; rank: lines of one process."""
        plan, folder = read_itinerary(run), run / FOLDER / LOGS
        several = len(plan.leg(stage).agents) > 1

        def sources() -> list[Source]:
            if self.name == "deepspeed":
                ranks = sorted(rank_logs(run, stage).glob("*_rank*.log"))
                files = [(path, int(path.stem.rpartition("rank")[2])) for path in ranks]
                mine = [(path, number) for path, number in files if rank in (None, number)]
                found = [Source(path, "" if rank is not None else f"[rank {number}]: ") for path, number in mine]
                if rank is not None:
                    return found
            else:
                found = []
            begins = None if rank is None else RANK_PREFIX.format(rank=rank)
            names = [host.name for host in plan.hosts]
            logs = [(folder / f"{stage}.{name}.log", name) for name in names]
            prefixed = several and rank is None
            if rank is None:
                servers = [(each.name, plan.hosts[each.node].name) for each in plan.leg(stage).servers]
                found += [Source(folder / f"{name}.{host}.log", f"{name} on {host}: ") for name, host in servers]
            return [Source(path, f"{name}: " if prefixed else "", begins) for path, name in logs] + found

        def runs() -> bool:
            states = {each.stage: each.state for each in self.states(submission, run)}
            return states[stage] in ("running", "waiting")

        return read_logs(sources, follow, runs)

    def cancel(self, submission: Submission, run: Path) -> list[str]:
        """Ask for it, and wait until it is done."""
        plan, records = read_itinerary(run), Records(run)
        if records.order().do == "end":
            return []
        records.cancel("rlhf cancel")  # before anybody is looked for: who gives no sign now may give one again
        if not records.living(len(plan.hosts)):
            return ["no supervisor gives a sign; one that comes back ends what it does"]
        grace = max(leg.grace_seconds for leg in plan.legs)
        deadline = time.monotonic() + grace + ENDS_SECONDS
        while time.monotonic() < deadline:
            if records.order().do == "end" or not records.living(len(plan.hosts)):
                order = records.order()
                told = f" ({order.told})" if order.told else ""
                return [f"{order.stage or 'the run'}: {order.result or 'stopped'}{told}"]
            time.sleep(LOOK_SECONDS)
        raise ConfigError(f"{run}: asked to stop, and still running after {grace + ENDS_SECONDS:g} s; see rlhf status")


def _require_hosts(spec: RunSpec) -> None:
    """Raise ConfigError where the hostfile does not give what is asked for."""
    problems: list[str] = []
    for job in spec.jobs:
        apart = sum(role.nodes for role in job.servers if not role.colocated)
        wanted = job.trainer.nodes + apart
        if wanted > len(spec.hosts):
            beside = f", {apart} of them generators" if apart else ""
            given = "name more in --hosts, or lower --nodes"
            problems.append(f"{job.stage}: {wanted} nodes{beside}, and there are {len(spec.hosts)} hosts; {given}")
        for host in spec.hosts[: job.trainer.nodes]:
            if host.slots is not None and job.trainer.processes > host.slots:
                problems.append(
                    f"{job.stage}: {job.trainer.processes} processes on each node, and {host.name} has "
                    f"slots={host.slots}; lower --gpus or --processes"
                )
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _problem(answer: Answer, spec: RunSpec, content: str) -> str | None:
    """What keeps a host from being used."""
    if answer.value is None:
        return answer.problem
    name = answer.host.name
    if answer.value.get("sees") != content:
        return f"{name}: does not see {spec.run} as it is here; give a --run on a folder that all hosts share"
    if answer.value.get("busy"):
        return f"{name}: a supervisor of {spec.run} runs there; rlhf cancel {spec.run} ends it"
    has, wants = answer.value.get("gpus"), gpus_of(spec, spec.hosts.index(answer.host))
    if isinstance(has, int) and has < wants:
        return f"{name}: has {has} GPUs, and {wants} are asked for; lower --gpus, or leave it out of --hosts"
    return None


def gpus_of(spec: RunSpec, node: int) -> int:
    """GPUs that a host gives at most."""
    most = 0
    for job in spec.jobs:
        first = job.trainer.nodes
        beside = sum(role.gpus for role in job.servers if role.colocated)
        most = max(most, job.trainer.gpus + beside if node < first else 0)
        for role in job.servers:
            if not role.colocated and first <= node < first + role.nodes:
                most = max(most, role.gpus)
    return most


def _most_gpus(spec: RunSpec) -> int:
    return max(gpus_of(spec, node) for node in range(len(spec.hosts)))


def told_of(plan: Itinerary, run: Path, stage: str, living: set[int]) -> str:
    """Where a stage that has begun is."""
    records = Records(run)
    order = records.order()
    leg = plan.leg(stage)
    away = ", ".join(plan.hosts[node].name for node in sorted(leg.nodes - living))
    why = {record.told for node in living if (record := records.record(node)) and record.told}
    missing = f"{away} gives no sign ({'; '.join(sorted(why)) or 'it is started again'})" if away else ""
    if order.stage != stage or order.do == "wait":
        return missing or (f"waits until {run / stage} is in use no more" if is_held(run / stage) else "begins")
    told = f"attempt {order.attempt} on {', '.join(plan.hosts[node].name for node in sorted(leg.nodes))}"
    return f"{told}; {missing}" if missing else told
