"""`rlhf doctor`: the machine, the nodes and a recipe before a run, or what has become of one. Loads no torch."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from launch.checking.examination import Verdict, examine
from launch.checking.finding import LEVELS
from launch.checking.meeting import Invitation, MeetingError, Say, invitation
from launch.checking.node import Question
from launch.checking.over_ssh import Asked, examine_hosts
from launch.clusters.hosts import Host, named_hosts, read_hosts
from launch.clusters.site import read_site
from launch.commands import outcome
from launch.commands.run import DataDirectory, Overrides, all_overrides, resolve
from rlhf.errors import ConfigError
from rlhf.recipe import shipped_recipes

MOST_NODES = 100_000  # more than there are anywhere: a slip of the hand
STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def doctor(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE | RUN]",
            help="A recipe file or the name of a shipped one; or a run directory, a name under runs/, or one stage's.",
        ),
    ] = None,
    overrides: Overrides = None,
    before: Annotated[
        bool, typer.Option("--before", help="RECIPE is a recipe, although there is a run of that name.")
    ] = False,
    nodes: Annotated[
        str,
        typer.Option(
            "--nodes",
            metavar="N | HOST,...",
            help="Of so many, each of which runs this command; or of these hosts, on which ssh starts it.",
        ),
    ] = "1",
    hosts: Annotated[
        Path | None,
        typer.Option("--hosts", "--hostfile", metavar="FILE", help="Those of a file, as of rlhf launch, by ssh."),
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--site", metavar="FILE", help="By ssh: the cluster's settings. Default: $RLHF_SITE.")
    ] = None,
    rendezvous: Annotated[
        str | None, typer.Option("--rendezvous", metavar="HOST:PORT", help="Where they meet: the first node's address.")
    ] = None,
    node_rank: Annotated[
        int | None, typer.Option("--node-rank", min=0, help="This node's. Default: as they come, HOST being 0.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Of each node. Default: as a run would have here.")
    ] = None,
    wait_seconds: Annotated[float, typer.Option("--wait-seconds", min=1, help="For the other nodes to come.")] = 60.0,
    run_directory: Annotated[Path | None, typer.Option("--run", help="Run directory. Default: runs/NAME.")] = None,
    data_directory: DataDirectory = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Of a run: one stage. Default: the last that began.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for programs.")] = False,
) -> None:
    """Before a run: say what would keep it from starting or make it slow. Of a run: say what has become of it.

    Before: versions, GPUs and drivers, memory, the run's folder and disk, servers, the recipe with its data and
    tokenizers; of several nodes also ports, clocks, and the speed of collectives over all processes and between all
    pairs. One line each: ok, warning, or failure with its remedy. Exit code 0: no failure; 1: one at least, or nodes
    that do not come; 2: the command is wrong.

    Of a run, also while it goes on: complete, running, stopped, or which rank died or hung, where, and who waited. Exit
    code 0: complete, or running and nobody waits in vain; 1: anything else.

    Examples:

        rlhf doctor

        rlhf doctor my.yaml --json

        rlhf doctor my.yaml --nodes node-1,node-2

        rlhf doctor my.yaml --nodes 2 --rendezvous node-1:29400    (on every node)

        srun --nodes 4 --ntasks-per-node 1 rlhf doctor my.yaml --nodes 4 --rendezvous node-1:29400

        rlhf doctor runs/demo --stage ppo
    """
    chosen = hosts_of(nodes, hosts, processes)
    if site is not None and chosen is None:
        raise ConfigError(f"--site {site}: is for hosts that ssh reaches; name them: --nodes HOST,... or --hosts")
    count = int(nodes) if chosen is None else len(chosen)
    several = count > 1 or chosen is not None
    ahead = before or several or bool(overrides) or rendezvous is not None or processes is not None
    if (run := run_of(subject, ahead, stage)) is not None:
        tell_outcome(run, stage, as_json)
    if chosen is not None and (rendezvous is not None or node_rank is not None):
        option = f"--rendezvous {rendezvous}" if rendezvous is not None else f"--node-rank {node_rank}"
        raise ConfigError(
            f"{option}: hosts that ssh reaches meet at the first one, at the site's network.port; leave it out"
        )
    invited = None if chosen else invitation_of(count, rendezvous, node_rank, wait_seconds)
    recipe = None if subject is None else resolve(subject, overrides, data_directory)
    if chosen is not None:
        place = None if run_directory is None else str(run_directory)
        asked = Asked(subject, tuple(all_overrides(overrides, data_directory)), place, processes, wait_seconds)
        its_site = read_site(site)
        check(lambda say: examine_hosts(asked, chosen, its_site, say), as_json)
    directory = run_directory or (Path("runs") / recipe.name if recipe else Path("runs"))
    check(lambda say: examine(Question(recipe, directory, count, processes), invited, say), as_json)


def hosts_of(nodes: str, file: Path | None, processes: int | None) -> tuple[Host, ...] | None:
    """The hosts that are named; None where `nodes` is a number. Raises ConfigError."""
    if re.fullmatch(r"[0-9]+", nodes):
        number = nodes.lstrip("0")
        if len(number) > len(str(MOST_NODES)) or int(number or 0) > MOST_NODES:
            raise ConfigError(f"--nodes {nodes}: at most {MOST_NODES} meet; give fewer")
        if not number:
            raise ConfigError("--nodes 0: a run has at least one; leave it out for this machine alone")
        if file is None:
            return None
        if number != "1":
            raise ConfigError(f"--nodes {nodes}: {file} names the hosts; leave one of the two out")
    elif file is not None:
        raise ConfigError(f"--nodes {nodes}: {file} names hosts, too; leave one of the two out")
    hosts = read_hosts(file) if file is not None else named_hosts("--nodes", nodes)
    few = [host for host in hosts if host.slots is not None and processes is not None and processes > host.slots]
    if few:
        raise ConfigError(*(f"--processes {processes}: {host.name} has slots={host.slots}; lower it" for host in few))
    return hosts


def run_of(subject: str | None, ahead: bool, stage: str | None) -> Path | None:
    """The run that is meant; None for what is to be checked before one. Raises ConfigError where it is neither.

    ahead: the command has options that only a check before a run knows.
    """
    if subject is None or subject.startswith("-"):
        if stage is not None:
            raise ConfigError(f"--stage {stage}: give the run, as in rlhf doctor demo --stage {stage}")
        return None
    path = Path(subject)
    named = Path("runs") / path
    if path.is_dir():
        if ahead:
            raise ConfigError(f"{subject}: a directory; what is checked before a run is a recipe: a file, or a name")
        return path
    is_name = len(path.parts) == 1
    recipe = path.is_file() or (is_name and subject in shipped_recipes())
    if is_name and named.is_dir() and not ahead:
        if recipe:
            what = f"{subject} is a recipe, too, and this is about the run in {named}"
            print(f"{what}; to check before a run: rlhf doctor {subject} --before", file=sys.stderr)
        return named
    if not recipe and not ahead:
        raise ConfigError(
            f"{subject}: no run (a directory, or a name under runs/) and no recipe (a file, or one of the shipped: "
            f"{', '.join(shipped_recipes())})"
        )
    if stage is not None:
        raise ConfigError(f"--stage {stage}: {subject} is a recipe; give the run, as in runs/NAME")
    return None


def invitation_of(nodes: int, rendezvous: str | None, rank: int | None, seconds: float) -> Invitation | None:
    """How nodes meet; None for this machine alone. Raises ConfigError."""
    if nodes == 1:
        if rendezvous is not None or rank is not None:
            option = f"--rendezvous {rendezvous}" if rendezvous is not None else f"--node-rank {rank}"
            raise ConfigError(f"{option}: is for several nodes; give --nodes as well")
        return None
    if rendezvous is None:
        raise ConfigError(
            f"--nodes {nodes}: where do they meet? Run it on each with --rendezvous HOST:PORT, an address of the first"
        )
    return invitation(nodes, rendezvous, rank, seconds)


def tell_outcome(run: Path, stage: str | None, as_json: bool) -> None:
    """What has become of a run."""
    found = outcome.examine(run, stage)
    if as_json:
        typer.echo(json.dumps({"run": str(run), **found.record()}, indent=2))
    else:
        outcome.show(found, Console())
    raise typer.Exit(0 if found.state in outcome.WELL else 1)


def check(examination: Callable[[Say], Verdict], as_json: bool) -> NoReturn:
    """Check before a run; the first node tells the verdict, and all end with its exit code."""
    aside = Console(stderr=True)
    # What was begun is cleared away also where a scheduler ends us.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with aside.status("") as status:
            verdict = examination(lambda line: status.update(f"doctor: {line}"))
    except MeetingError as error:
        for problem in error.problems:
            typer.echo(f"{'failure':<9}{'nodes':<13}{problem}", err=True)
        raise typer.Exit(1) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    if verdict.speaks and as_json:
        typer.echo(json.dumps(verdict.record(), indent=2))
    elif verdict.speaks:
        show(verdict, Console())
    raise typer.Exit(1 if verdict.level == "failure" else 0)


def show(verdict: Verdict, console: Console) -> None:
    """A line for each finding, and one for all."""
    for finding in verdict.findings:
        line = Text(f"{finding.level:<9}", STYLES[finding.level]) + Text(
            f"{finding.check:<13}{finding.line}", "default"
        )
        console.print(line, soft_wrap=True)
    counts = Counter(finding.level for finding in verdict.findings)
    parts = [
        f"{counts[level]} {level}{'s' if counts[level] > 1 else ''}" for level in reversed(LEVELS[1:]) if counts[level]
    ]
    console.print(", ".join(parts) or "nothing stands in the way", style="default", soft_wrap=True)
