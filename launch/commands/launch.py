"""`rlhf launch`: a recipe to a cluster. Loads no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from launch.clusters.hosts import HERE, read_hosts
from launch.clusters.job import RunSpec
from launch.clusters.scheduler import Rendered, Scheduler, Submission
from launch.clusters.schedulers import MODULES, find_scheduler
from launch.clusters.site import SITE, Site, read_site
from launch.clusters.specification import Wanted, site_on, specify, with_generators
from launch.clusters.submission import FOLDER, SUBMISSION, alone, read_submission, write_rendered, write_submission
from launch.commands.options import numbers
from launch.commands.run import DataDirectory, Overrides, RecipeArgument, RunDirectory, resolve
from launch.local import visible_gpus
from launch.pipeline import Selection, require_own
from rlhf.config import Recipe
from rlhf.errors import ArtifactError, ConfigError
from rlhf.recipe import resolved_yaml
from rlhf.store.artifact import write_text
from rlhf.store.unfinished import is_held
from stages import preflight
from stages.lineage import STAGES, is_current, used_by

BY_SSH = ("torchrun", "deepspeed")
UNDER_WAY = ("running", "waiting")


def launch(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: Annotated[str, typer.Option("--on", help=f"Where: {', '.join(MODULES)}.")] = "local",
    nodes: Annotated[str, typer.Option("--nodes", help="Of each stage: 4, or by stage: sft=1,ppo=4.")] = "1",
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=0, help="Of each node; 0: on CPUs. Default: as many as here.")
    ] = None,
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="Of each node, on CPUs.")] = None,
    hosts: Annotated[
        Path | None, typer.Option("--hosts", metavar="FILE", help="torchrun, deepspeed: a host a line; see below.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--site", metavar="FILE", help="The cluster's own settings. Default: $RLHF_SITE.")
    ] = None,
    first: Annotated[str, typer.Option("--from", help="First stage.")] = "sft",
    last: Annotated[str, typer.Option("--until", help="Last stage.")] = "evaluate",
    generators: Annotated[
        str | None, typer.Option("--generators", help="Nodes that sample for PPO by vLLM, or `colocated`.")
    ] = None,
    generator_gpus: Annotated[int | None, typer.Option("--generator-gpus", min=1, help="Of each generator.")] = None,
    generator_python: Annotated[
        str | None, typer.Option("--generator-python", metavar="PATH", help="The interpreter of vLLM's environment.")
    ] = None,
    reward_server: Annotated[
        str | None,
        typer.Option("--reward-server", metavar="COMMAND", help="Serves reward.use beside each node's trainers."),
    ] = None,
    retries: Annotated[
        int | None, typer.Option("--retries", min=0, help="Of a stage, after anything but bad input. Default: 3.")
    ] = None,
    hours: Annotated[float | None, typer.Option("--hours", min=0.01, help="Of a stage, until it is ended.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, help="Of each node.")] = None,
    memory: Annotated[int | None, typer.Option("--memory", min=1, help="Of each node, GiB.")] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="slurm: a run of each, as an array, in RUN-seed-N: 1,2,3.")
    ] = None,
    one_allocation: Annotated[
        bool, typer.Option("--one-allocation", help="slurm: one job for the whole chain, not one for each stage.")
    ] = False,
    run_directory: RunDirectory = None,
    data_directory: DataDirectory = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, and touch nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: what was, or would be, submitted.")] = False,
) -> None:
    """Start a run on a cluster, and leave: it goes through its stages, and comes back after faults, by itself.

    A stage starts when those before it are complete, on as many nodes as it is given; complete ones are skipped, and
    one that was interrupted goes on from its newest checkpoint. The run directory is a folder that all nodes see.
    rlhf status, logs, cancel and resume find the run by that directory.

    A hostfile has a line for each host: `node-1 slots=8`, or `user@node-1:2222 address=10.0.0.1`. Without one,
    torchrun and deepspeed start on this machine.

    Examples:

        rlhf launch my.yaml

        rlhf launch my.yaml --on torchrun --hosts hosts --nodes sft=1,ppo=2 --gpus 8 --dry-run

        rlhf launch my.yaml --on slurm --nodes 4 --gpus 8 --site cluster.yaml
    """
    scheduler, its_site = find_scheduler(on), site_on(on, read_site(site))
    if on != "slurm" and (seeds or one_allocation):
        raise ConfigError(f"--on={on}: takes no {'--seeds' if seeds else '--one-allocation'}; use --on slurm")
    stages = Selection(first, last).stages
    if hosts and on not in BY_SSH:
        raise ConfigError(f"--hosts={hosts}: {on} reaches no hosts; leave it out, or use --on torchrun")
    limits = {"--retries": retries, "--hours": hours, "--cpus": cpus, "--memory": memory}
    servers = {"--generators": generators, "--reward-server": reward_server}
    require_meaning(on, {name: value for name, value in {**limits, **servers}.items() if value is not None})
    wanted = Wanted(
        stages=tuple(stages),
        nodes=nodes,
        gpus=gpus_of_nodes(on, gpus, processes),
        processes=processes,
        generators=generators,
        generator_gpus=generator_gpus,
        generator_python=generator_python,
        reward_server=reward_server,
        retries=3 if retries is None else retries,
        hours=hours,
        cpus=cpus,
        memory=memory,
        seeds=tuple(int(seed) for seed in numbers("--seeds", seeds, whole=True)) if seeds else (),
        one_allocation=one_allocation,
        hosts=read_hosts(hosts) if hosts else (HERE,),
    )
    resolved = with_generators(resolve(recipe, overrides, data_directory), wanted)
    run = (run_directory or Path("runs") / resolved.name).absolute()
    spec = specify(resolved, run, Path.cwd(), wanted, its_site)
    require_ready(resolved, spec)
    rendered = scheduler.render(spec, its_site)
    if dry_run:
        show_rendered(rendered, as_json)
        return
    with alone(run):
        require_free(run)
        scheduler.check(spec, its_site)
        spec = replace(spec, command=tuple(typed(run, on, wanted, hosts, site)))
        submission = carry_out(scheduler, resolved, spec, rendered, its_site)
    if as_json:
        typer.echo(json.dumps({"run": str(run), **asdict(submission)}, indent=2))
        return
    where = f": {', '.join(f'{stage} {i}' for stage, i in submission.ids.items())}" if submission.ids else ""
    typer.echo(f"{resolved.name} is submitted to {on}{where}")
    typer.echo(f"rlhf status {run}; rlhf logs {run} -f; rlhf cancel {run}")


def gpus_of_nodes(on: str, gpus: int | None, processes: int | None) -> int:
    """GPUs of each node. Raises ConfigError where nobody says and this machine, which has none, would be no example."""
    if processes and gpus:
        raise ConfigError(
            f"--processes={processes} with --gpus={gpus}: each GPU has one process; leave one of them out"
        )
    if on == "local":
        if processes:
            raise ConfigError(
                f"--processes={processes}: a local run has as many as parallelism.processes says; set that"
            )
        return gpus or 0  # as `rlhf run` has it: all that are visible
    if gpus is None and not processes and not visible_gpus():
        raise ConfigError("--gpus: this machine has none, so say how many each node has; 0: it runs on CPUs")
    return 0 if processes else visible_gpus() if gpus is None else gpus


def require_meaning(on: str, given: Mapping[str, object]) -> None:
    """Raise ConfigError with a line for each option that would change nothing there."""
    without = {"local": ("--retries", "--hours", "--cpus", "--memory"), **dict.fromkeys(BY_SSH, ("--memory",))}
    problems = [
        f"{option}={given[option]}: {on} has no use for it; leave it out"
        for option in without.get(on, ())
        if option in given
    ]
    if on == "local":
        problems += [
            f"{option}={given[option]}: {on} starts no servers; use --on torchrun, on this machine too"
            for option in ("--generators", "--reward-server")
            if option in given
        ]
    if problems:
        raise ConfigError(*problems)


def require_ready(recipe: Recipe, spec: RunSpec) -> None:
    """Raise RLHFError with all that the run would refuse before its first stage, data that are not there included."""
    chosen = [job.stage for job in spec.jobs]
    require_own(recipe, spec.run)
    gpu = any(job.trainer.gpus for job in spec.jobs)

    def counted(stage: str) -> int:
        trainer = spec.job(stage).trainer
        return trainer.nodes * trainer.processes

    preflight.check(recipe, chosen, counted, gpu, spec.run)
    missing = [
        name
        for name in STAGES[chosen[0]].inputs
        if name not in chosen and not used_by(recipe, name) and not is_current(recipe, spec.run, name)
    ]
    if missing:
        raise ArtifactError(
            f"{chosen[0]}: needs {' and '.join(missing)}, not complete in {spec.run}; launch with --from {missing[0]}"
        )


def require_free(run: Path) -> None:
    """Raise ArtifactError where the run is under way: by what was submitted, or by whoever holds its directory."""
    if (run / FOLDER / SUBMISSION).is_file():
        submission = read_submission(run)
        for each in find_scheduler(submission.scheduler).states(submission, run):
            if each.state in UNDER_WAY:
                told = f" ({each.told})" if each.told else ""
                raise ArtifactError(
                    f"{run}: {each.stage} is {each.state} on {submission.scheduler}{told}; rlhf status {run} shows it, "
                    f"rlhf cancel {run} ends it"
                )
    if is_held(run):
        raise ArtifactError(f"{run}: in use by another rlhf process; wait or give another --run")


def carry_out(
    scheduler: Scheduler,
    recipe: Recipe,
    spec: RunSpec,
    rendered: Sequence[Rendered],
    site: Site,
) -> Submission:
    """Write what is to be submitted, submit it and keep what was."""
    write_recipe(recipe, spec.run)
    folder = write_rendered(spec.run, rendered)
    submission = replace(scheduler.submit(spec, site, rendered, folder), command=spec.command)
    write_submission(spec.run, submission)
    return submission


def write_recipe(recipe: Recipe, run: Path) -> None:
    """The resolved recipe, by which every node goes."""
    path, text = run / "recipe.yaml", resolved_yaml(recipe)
    run.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def show_rendered(rendered: Sequence[Rendered], as_json: bool) -> None:
    """Exactly what would be submitted."""
    if as_json:
        typer.echo(json.dumps({"rendered": {each.name: each.text for each in rendered}}, indent=2))
        return
    for each in rendered:
        typer.echo(f"# {each.name}", err=True)
        typer.echo(each.text, nl=not each.text.endswith("\n"))


def typed(run: Path, on: str, wanted: Wanted, hosts: Path | None, site: Path | None) -> list[str]:
    """The arguments that launch this run once more, from its own recipe."""
    options: dict[str, object | None] = {
        "--on": on,
        "--run": run,
        "--nodes": wanted.nodes,
        "--gpus": None if wanted.processes or (on == "local" and not wanted.gpus) else wanted.gpus,
        "--processes": wanted.processes,
        "--hosts": hosts.absolute() if hosts else None,
        "--site": Path(named).absolute() if (named := site or os.environ.get(SITE)) else None,
        "--from": wanted.stages[0],
        "--until": wanted.stages[-1],
        "--generators": wanted.generators,
        "--generator-gpus": wanted.generator_gpus,
        "--generator-python": wanted.generator_python,
        "--reward-server": wanted.reward_server,
        "--retries": None if on == "local" else wanted.retries,
        "--hours": wanted.hours,
        "--cpus": wanted.cpus,
        "--memory": wanted.memory,
        "--seeds": ",".join(map(str, wanted.seeds)) or None,
    }
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    flags = ["--one-allocation"] if wanted.one_allocation else []
    return [str(run / "recipe.yaml"), *given, *flags]
