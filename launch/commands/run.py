"""`rlhf run` and the commands of single stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from launch.commands.curves import draw_behind_summary
from launch.local import processes_of, visible_gpus
from launch.pipeline import Interrupted, Selection, StageFailed, run_chain, summarize, write_summary
from launch.summary import show_summary
from rlhf.config import Recipe
from rlhf.recipe import load_recipe, resolved_yaml
from stages.preflight import check
from stages.uses import unread

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields of the recipe to override.")]
DataDirectory = Annotated[str | None, typer.Option("--data-dir", help="Where relative paths of data start.")]
RunDirectory = Annotated[Path | None, typer.Option("--run", help="Run directory. Default: runs/NAME.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the recipe, defaults included, and check it; run nothing.")
]
Force = Annotated[bool, typer.Option("--force", help="Run stages from the beginning, also complete and begun ones.")]
StopAfter = Annotated[
    int | None, typer.Option("--stop-after", min=1, help="End the last stage behind a checkpoint of this step.")
]


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    first: Annotated[str, typer.Option("--from", help="First stage.")] = "sft",
    last: Annotated[str, typer.Option("--until", help="Last stage.")] = "evaluate",
    force: Force = False,
    stop_after: StopAfter = None,
    run_directory: RunDirectory = None,
    data_directory: DataDirectory = None,
    dry_run: DryRun = False,
) -> None:
    """Run the whole road: demonstrations and votes to an aligned policy.

    Complete stages are skipped, interrupted ones go on from their newest checkpoint; stages whose recipe, data or
    inputs changed run again, with those that follow. SIGTERM and Ctrl-C end behind a checkpoint with exit code 75,
    SIGUSR1 writes one and goes on.

    Examples:

        rlhf run demo

        rlhf run my.yaml ppo.kl.coef=0.02 --run runs/weaker-penalty

        rlhf run my.yaml --dry-run    (exit code 2 and a line for each thing that is missing or wrong)

        rlhf run demo --from ppo --force
    """
    resolved, selection = resolve(recipe, overrides, data_directory), Selection(first, last, force, stop_after)
    if dry_run:
        show_and_check(resolved, run_directory, selection)
    else:
        run_selection(resolved, run_directory, selection)


def show_and_check(recipe: Recipe, run_directory: Path | None, selection: Selection) -> None:
    """Print all that a run would read of the recipe, and that it is in order; not whether inputs of a run are there.

    Raises ConfigError with all that a run would refuse before its first stage.
    """
    typer.echo(resolved_yaml(recipe, without=unread(recipe)), nl=False)
    run = run_directory or Path("runs") / recipe.name
    check(recipe, selection.stages, lambda stage: processes_of(recipe, stage), visible_gpus() > 0, run, selection.force)
    typer.echo(
        f"the recipe and what it names are in order; a run would go through {', '.join(selection.stages)}", err=True
    )


def run_selection(recipe: Recipe, run_directory: Path | None, selection: Selection) -> None:
    """Run stages and show the summary; a failed stage ends us with its exit code."""
    console = Console()
    directory = run_directory or Path("runs") / recipe.name
    try:
        run_chain(recipe, directory, selection, lambda line: console.print(line, highlight=False, soft_wrap=True))
    except Interrupted as interrupted:
        console.print(f"{interrupted}; exit code {interrupted.code}", highlight=False)
        raise typer.Exit(interrupted.code) from interrupted
    except StageFailed as failure:
        for problem in failure.problems:
            typer.echo(problem, err=True)
        if not failure.problems:
            typer.echo(f"error: {failure}; the lines above say why, the same command goes on from there", err=True)
        raise typer.Exit(failure.code) from failure
    summary = summarize(recipe, directory)
    write_summary(summary, directory)
    show_summary(summary, directory, console)
    console.print(draw_behind_summary(directory), highlight=False, soft_wrap=True)


def resolve(recipe: str, overrides: list[str] | None, data_directory: str | None) -> Recipe:
    """The recipe with overrides and data directory."""
    return load_recipe(recipe, all_overrides(overrides, data_directory))


def all_overrides(overrides: list[str] | None, data_directory: str | None) -> list[str]:
    """The overrides with that of the data directory, if one is given."""
    directory = [] if data_directory is None else [f"data.directory={json.dumps(data_directory)}"]  # not read as YAML
    return [*(overrides or []), *directory]


def stage_command(stage: str, summary: str) -> object:
    """A command that runs one stage of the chain."""

    def command(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        force: Force = False,
        stop_after: StopAfter = None,
        run_directory: RunDirectory = None,
        data_directory: DataDirectory = None,
        dry_run: DryRun = False,
    ) -> None:
        resolved, selection = resolve(recipe, overrides, data_directory), Selection(stage, stage, force, stop_after)
        if dry_run:
            show_and_check(resolved, run_directory, selection)
        else:
            run_selection(resolved, run_directory, selection)

    command.__doc__ = f"{summary}\n\nExample:\n\n    rlhf {stage} demo --force"
    return command
