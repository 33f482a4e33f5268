"""`rlhf sync`: send to trackers what they did not get while a run ran. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.run import Overrides
from rlhf.config import Recipe
from rlhf.errors import ArtifactError, ConfigError, RLHFError
from rlhf.recipe import load_recipe
from rlhf.store.artifact import find_artifact
from rlhf.store.recipes import recipe_of
from rlhf.store.unfinished import METRICS, hold
from rlhf.tracking.sync import NO_KEY, destination, sync_stage
from stages.lineage import STAGES


def sync(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, a name under runs/, or one stage's.")],
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long to wait for a tracker.")] = 120.0,
) -> None:
    """Send figures, samples and artifacts to W&B and MLflow that were offline or away while a run ran.

    All of it stands in the run's own files. Nothing is sent twice: what a tracker has already is left out, so the
    command can be given again, also for a run that goes on later. Offline W&B runs are uploaded (set WANDB_API_KEY).

    Examples:

        rlhf sync demo

        rlhf sync runs/demo/ppo --seconds 600

        rlhf sync demo tracking.mlflow.uri=http://127.0.0.1:5000
    """
    directory = run if run.is_dir() else Path("runs") / run
    found = stages_of(directory)
    if not found:
        raise ArtifactError(f"{directory}: no stage with a {METRICS} here; give a run directory or one stage's")
    problems = []
    for path in found:
        recipe = recipe_to_sync(path, list(overrides or []))
        with hold(path):
            outcomes = list(sync_stage(recipe, path, path.name, seconds))
        if not outcomes:
            typer.echo(f"{path.name}: its recipe names no tracker")
        for outcome in outcomes:
            if outcome.problem == NO_KEY:
                problems.append(f"tracking.wandb: no key; set WANDB_API_KEY, then rlhf sync {run}")
            elif outcome.problem:
                problems.append(f"{path}: tracking.{outcome.service}: {outcome.problem}; the same command tries again")
            else:
                sent = f"sent to {destination(outcome.service, recipe, path)}"
                typer.echo(f"{path.name}: {outcome.service}: {sent if outcome.sent else 'has everything'}")
    if problems:
        raise RLHFError(*dict.fromkeys(problems))


def stages_of(directory: Path) -> list[Path]:
    """The stages of a run directory that have figures, in their order, or the one that a directory is."""
    if (directory / METRICS).is_file():
        return [directory.resolve()]
    return [(directory / stage).resolve() for stage in STAGES if (directory / stage / METRICS).is_file()]


def recipe_to_sync(directory: Path, overrides: list[str]) -> Recipe:
    """The recipe of a stage's run, or where it lies alone, of its manifest."""
    path = directory.parent / "recipe.yaml"
    if path.is_file():
        return load_recipe(path, overrides)
    artifact = find_artifact(directory)
    if artifact is None:
        raise ArtifactError(f"{directory}: neither {path} nor a manifest says where its figures go; resume it first")
    if overrides:
        raise ConfigError(f"{overrides[0]}: {directory} lies outside of a run, and its recipe cannot be overridden")
    return recipe_of(artifact, "send it with the version of rlhf that made it")
