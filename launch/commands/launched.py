"""`rlhf status`, `logs`, `cancel`, `resume`: a launched run, found again by its directory. Loads no torch."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.clusters.scheduler import StageState, Submission
from launch.clusters.schedulers import find_scheduler
from launch.clusters.submission import read_submission
from launch.commands.launch import UNDER_WAY, launch
from rlhf.errors import ArtifactError, ConfigError
from stages.targets import RUNS

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a name under runs/.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


def status(run: RunArgument, as_json: AsJson = False) -> None:
    """Say where each stage of a launched run is.

    Exit code 0: all complete, or under way; 1: one failed, was stopped, or is lost.

    Examples:

        rlhf status demo

        rlhf status runs/demo --json
    """
    directory, submission = launched(run)
    states = find_scheduler(submission.scheduler).states(submission, directory)
    if as_json:
        content: dict[str, Any] = {"run": str(directory), **asdict(submission)}
        typer.echo(json.dumps({**content, "states": [asdict(each) for each in states]}, indent=2))
    else:
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(submission.time))
        console = Console()
        console.print(f"{directory} on {submission.scheduler} since {at}", highlight=False, soft_wrap=True)
        table = Table("stage", "state", "", box=SIMPLE_HEAD, padding=(0, 1))
        for each in states:
            table.add_row(each.stage, each.state, Text(each.told))
        console.print(table)
        if any(each.state in ("failed", "lost") for each in states):
            console.print(f"rlhf logs {run} and rlhf doctor {run} say why", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if all(each.state in ("complete", *UNDER_WAY) for each in states) else 1)


def logs(
    run: RunArgument,
    stage: Annotated[str | None, typer.Argument(metavar="STAGE", help="Default: the last that began.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="And what comes, until the stage has ended.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="One process of the stage alone.")] = None,
) -> None:
    """Show what a stage of a launched run has said.

    Examples:

        rlhf logs demo -f

        rlhf logs demo ppo --rank 3
    """
    directory, submission = launched(run)
    scheduler = find_scheduler(submission.scheduler)
    if stage is not None and stage not in submission.stages:
        raise ConfigError(f"{stage} is not a stage of this run; it has {', '.join(submission.stages)}")
    chosen = stage or last_begun(scheduler.states(submission, directory))
    for line in scheduler.logs(submission, directory, chosen, rank, follow):
        typer.echo(line)


def cancel(run: RunArgument, as_json: AsJson = False) -> None:
    """Stop a launched run behind a checkpoint; rlhf resume goes on from there.

    Example:

        rlhf cancel demo
    """
    directory, submission = launched(run)
    done = find_scheduler(submission.scheduler).cancel(submission, directory)
    if as_json:
        typer.echo(json.dumps({"run": str(directory), "done": done}, indent=2))
        return
    for line in done or ["nothing to stop"]:
        typer.echo(line)


def resume(run: RunArgument, as_json: AsJson = False) -> None:
    """Submit a launched run once more, as it was: complete stages are skipped, the others go on.

    The recipe is that of the run directory; hostfile and site are read again.

    Example:

        rlhf resume demo
    """
    _, submission = launched(run)
    if not Path(submission.directory).is_dir():
        raise ArtifactError(f"{submission.directory}: not there any more; the run was launched from that folder")
    again = typer.Typer(add_completion=False)
    again.command()(launch)
    again([*submission.command, *(["--json"] if as_json else [])], standalone_mode=False)


def launched(run: Path) -> tuple[Path, Submission]:
    """The directory of a run, absolute, and how it was launched. Raises ArtifactError where it was not.

    This process goes to the folder that it was launched from, if that is here: paths in its recipe begin there.
    """
    directory = find_run(run)
    submission = read_submission(directory)
    with suppress(OSError):
        os.chdir(submission.directory)
    return directory, submission


def find_run(run: Path) -> Path:
    """The directory of a run, absolute. Raises ArtifactError where there is none."""
    for path in (run, RUNS / run):
        if path.is_dir():
            return path.absolute()
    raise ArtifactError(f"{run}: no such run; give a run directory, or a name under {RUNS}/")


def last_begun(states: list[StageState]) -> str:
    """The stage that somebody who asks for none means."""
    begun = [each.stage for each in states if each.state != "waiting"]
    running = [each.stage for each in states if each.state == "running"]
    return running[-1] if running else begun[-1] if begun else states[0].stage
