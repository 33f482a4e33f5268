"""`rlhf plan`: what a recipe takes on some GPUs, before anything is loaded. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from data import sources
from launch.commands.run import DataDirectory, Overrides, RecipeArgument, all_overrides, resolve
from launch.local import visible_gpus
from launch.planning.cluster import cluster, name_of
from launch.planning.needs import FIELDS
from launch.planning.plan import Plan, StagePlan, plan
from launch.proposal.hardware import gpu_memories
from launch.proposal.models import weights_of_size
from rlhf.analysis.plan_picture import draw_plan
from rlhf.config import Recipe
from rlhf.errors import ConfigError
from rlhf.memory import GIB, PARTS, ROLES
from rlhf.memory.parts import total_of
from rlhf.recipe_memory import read_shape
from rlhf.shapes import Shape, shape_of_init, shape_of_size
from stages.lineage import kinds_of, on_policy
from stages.origins import first_model


def plan_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Of each. Default: as many as here, or 8.")] = None,
    gpu_memory: Annotated[
        str | None, typer.Option("--gpu-memory", help="Of each GPU: 80GB, 22GiB. Default: as here, or 80GB.")
    ] = None,
    model_size: Annotated[
        str | None, typer.Option("--model-size", help="Of a model that is not here, such as 8B or 0.5B.")
    ] = None,
    count: Annotated[bool, typer.Option("--count", help="Read the data, so that SFT and reward have steps.")] = False,
    bench: Annotated[
        Path | None, typer.Option("--bench", metavar="FILE", help="What rlhf bench ppo --json said of such a GPU.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Where a PNG of memory goes.")] = None,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, for programs; bytes and seconds.")] = False,
) -> None:
    """Say what a run takes on some GPUs: batches, memory by strategy, disk, time and commands. Nothing is loaded.

    Of the model its config.json is enough. Memory is arithmetic, of the largest example that the recipe allows, with a
    prompt as long as the longest response (docs/gpu.md says what is counted); `fits` leaves room for the allocator and
    the libraries. The cheapest strategy is that which fits and sends least. Time is that of useful operations at the
    measured rate of a bench: what is sent between GPUs and computed twice is not in it.

    Examples:

        rlhf plan qwen2.5-1.5b-ultrafeedback --model-size 1.5B

        rlhf plan llama3-8b-hh-multinode --nodes 4 --gpus 8 --gpu-memory 80GB --model-size 8B --picture memory.png

        rlhf plan my.yaml --gpus 2 ppo.micro_batch_tokens=8192 --json
    """
    if picture and not picture.parent.is_dir():
        raise ConfigError(f"--picture={picture}: {picture.parent} is no directory; make it first")
    given = all_overrides(overrides, data_directory)
    resolved = resolve(recipe, overrides, data_directory)
    here = gpu_memories()
    size = gpu_memory or (f"{min(here) / GIB:.1f}GiB" if here else "80GB")
    machines = cluster(nodes, gpus or visible_gpus() or 8, size)
    found = plan(
        resolved,
        shape_of(resolved, model_size),
        machines,
        called=recipe,
        overrides=given,
        counts=counts_of(resolved) if count else None,
        rate=rates_of(bench) if bench else None,
    )
    told = found.as_json()
    if picture:
        names = {name: [name_of(each.way) for each in stage.needs] for name, stage in found.stages.items()}
        draw_plan(told, names, picture)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    show(found, Console())
    if picture:
        typer.echo(f"picture: {picture}")


def shape_of(recipe: Recipe, size: str | None) -> Shape:
    """Of the model that a recipe starts from: as its configuration says, or one of about that size."""
    place = first_model(recipe)
    found = shape_of_init(recipe.model.init) if place is None else read_shape(place)
    if found is not None and size is not None:
        known = "made from nothing" if place is None else place
        raise ConfigError(f"--model-size={size}: the model ({known}) says its own size; leave the option out")
    if found is not None:
        return found
    if size is None:
        raise ConfigError(
            f"model {place}: its config.json is not here, so its size is unknown; put it there, or give --model-size, "
            "for example --model-size 8B"
        )
    return shape_of_size(weights_of_size(size))


def counts_of(recipe: Recipe) -> dict[str, int]:
    """Examples for training, by kind. Raises DataError."""
    counts = {}
    if "demonstrations" in kinds_of(recipe, "sft"):
        counts["demonstrations"] = len(sources.demonstrations(recipe.data, recipe.seed).train)
    if "comparisons" in kinds_of(recipe, "reward") and not on_policy(recipe):  # whose votes are still to be sampled
        counts["comparisons"] = len(sources.comparisons(recipe.data, recipe.seed)[0].train)
    return counts


def rates_of(bench: Path) -> dict[str, float]:
    """Useful operations a second by stage, of a bench's result; SFT and reward go by its training."""
    try:
        result: dict[str, Any] = json.loads(bench.read_text(encoding="utf-8"))
        ceiling = float(result["ceiling_gflops"]) * 1e9
        training = float(result["mfu_phases"]["training"]) * ceiling
        return {"sft": training, "reward": training, "ppo": float(result["mfu"]) * ceiling}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--bench={bench}: is no result of rlhf bench ppo --json ({type(error).__name__}: {error}); write one with "
            "rlhf bench ppo --device cuda --json"
        ) from error


def show(found: Plan, console: Console) -> None:
    """Tables for people."""
    weights = found.shape.weights
    size = f"{weights / 1e9:.2f} B" if weights >= 1e8 else f"{weights / 1e6:.1f} M"
    told = f"{size} weights on {found.cluster}; {found.cluster.room / GIB:.1f} GiB of each can be filled"
    console.print(told, highlight=False, soft_wrap=True)
    for name, stage in found.stages.items():
        console.print(f"\n[bold]{name}[/bold]: {batch_line(name, stage)}", highlight=False, soft_wrap=True)
        show_ways(name, stage, console)
        show_parts(stage, console)
    kept = ", ".join(f"{what} {size / 1e9:,.{1 if size >= 5e7 else 3}f}" for what, size in found.disk.items())
    console.print(f"\ndisk, GB at most: {kept}", highlight=False, soft_wrap=True)
    console.print(
        "\nagain: activations are computed again. models: what stands from step to step. phase: the largest of those "
        "that come and go. micro: the largest micro-batch that fits, of PPO in tokens.",
        style="dim",
        highlight=False,
    )
    several = ", which torchrun, deepspeed, slurm or kubernetes carries out" if found.cluster.nodes > 1 else ""
    console.print(f"\ncommands{several}:")
    for command in found.commands:
        console.print(f"  {command}", highlight=False, soft_wrap=True, markup=False)
    for problem in found.problems:
        console.print(f"problem: {problem}", style="bold red", highlight=False, soft_wrap=True, markup=False)


def batch_line(name: str, stage: StagePlan) -> str:
    """A stage's batches in a line."""
    batch = stage.batch
    unit = {"sft": "examples", "reward": "pairs"}.get(name, "responses")
    parts = [f"{batch['global']:,} {unit} a step, {batch['per_process']:,} a GPU"]
    if "accumulated" in batch:
        parts.append(f"in {batch['accumulated']:,} micro-batches of {batch['micro']:,}")
    if name == "ppo":
        parts.append(f"{batch['micro']:,} tokens a forward; {batch['steps']:,} steps, {batch['updates']:,} updates")
        parts.append(f"{batch['episodes']:,} episodes")
    elif batch["steps"] and name != "evaluate":
        parts.append(f"{batch['steps']:,} steps of {batch['examples']:,} {unit}")
    tokens, of_step = batch["tokens"], batch["tokens_a_step"]
    parts.append(f"{tokens:,} tokens if all are long" if tokens else f"{of_step:,} tokens a step if all are long")
    if stage.seconds is not None:
        parts.append(f"{stage.seconds / 3600:,.1f} h to compute them")
    return ", ".join(parts)


def show_ways(name: str, stage: StagePlan, console: Console) -> None:
    """Memory of a stage by strategy."""
    field = FIELDS.get(name)
    table = Table("strategy", "again", "models", "phase", "GiB", "fits", box=SIMPLE_HEAD, padding=(0, 1))
    for column in table.columns[2:5]:
        column.justify = "right"
    if field:
        table.add_column("micro", justify="right")
    table.add_column("")
    table.columns[0].no_wrap = True
    for each in stage.needs:
        marks = [mark for mark, is_so in (("recipe", each is stage.own), ("cheapest", each is stage.cheapest)) if is_so]
        row = [name_of(each.way), "yes" if each.checkpointing else "no", f"{each.estimate.stands / GIB:.1f}"]
        fits = "refused" if each.refused else "yes" if each.fits else "no"
        row += [f"{each.estimate.passes / GIB:.1f}", f"{each.estimate.total / GIB:.1f}", fits]
        row += [f"{each.largest:,}" if each.largest else "none"] if field else []
        table.add_row(*row, ", ".join(marks))
    console.print(table)


def show_parts(stage: StagePlan, console: Console) -> None:
    """Memory of one way by part and role: of the recipe's own, or of one that fits where this does not."""
    shown = stage.own if stage.own.fits or stage.cheapest is None else stage.cheapest
    estimate = shown.estimate
    held = estimate.during(estimate.peak)
    roles = [role for role in ROLES if sum(held.get(role, {}).values())]
    table = Table(f"{name_of(shown.way)}, GiB", *roles, "all", box=SIMPLE_HEAD, padding=(0, 1))
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {part: [held[role].get(part, 0.0) for role in roles] for part in PARTS}
    rows["all"] = [sum(held[role].values()) for role in roles]
    for part, sizes in rows.items():
        if round(sum(sizes) / GIB, 1):
            table.add_row(part, *(f"{size / GIB:.1f}" if size else "" for size in (*sizes, sum(sizes))))
    console.print(table)
    totals = ", ".join(f"{phase} {total_of(estimate.during(phase)) / GIB:.1f}" for phase in estimate.passing)
    console.print(f"  above at its peak, {estimate.peak}; by phase: {totals}", highlight=False, soft_wrap=True)
