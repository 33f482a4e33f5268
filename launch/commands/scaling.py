"""`rlhf bench scaling`: how the cost of an update grows. Loads no torch: children are measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from launch.commands.bench import Device, Dtype, EosBias, Json, Micro, PpoEpochs, Seed, Size, Threads
from launch.commands.benched import known
from launch.scaling import sweep
from rlhf.analysis.scaling_picture import draw_scaling
from rlhf.errors import ConfigError


def scaling(
    batches: Annotated[str, typer.Option("--batches", help="Responses an update.")] = "8,16,32,64",
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens of a response at most.")] = "16,32,64,128",
    sizes: Annotated[str, typer.Option("--sizes", help="Of random models.")] = "2M,15M,60M",
    size: Size = "15M",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Where it is another that varies.")] = 16,
    micro: Micro = 8,
    response_length: Annotated[int, typer.Option("--response-length", min=1, help="The same.")] = 32,
    eos_bias: EosBias = 0.0,
    ppo_epochs: PpoEpochs = 2,
    threads: Threads = 2,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    updates: Annotated[int, typer.Option("--updates", min=1, help="That count, behind one that warms up.")] = 3,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture.")] = Path("scaling.png"),
    as_json: Json = False,
) -> None:
    """Time updates of PPO over batch, response length and model, and fit a line through each.

    One of the three varies at a time. Where the line fits and the exponent is near 1, twice the tokens cost twice the
    time: nothing is spent on padding or on waiting. Seconds at zero are what an update costs however small it is.

    Examples:

        rlhf bench scaling

        rlhf bench scaling --sizes 2M,15M --batches 8,32 --lengths 16,64 --updates 1

        rlhf bench scaling --device cuda --dtype bfloat16 --sizes 135M,qwen2.5-0.5b --size 135M --batches 64,256
    """
    values: dict[str, list[Any]] = {
        "batch": numbers("--batches", batches),
        "response_length": numbers("--lengths", lengths),
        "size": several("--sizes", sizes),
    }
    for each in (size, *values["size"]):
        known(each, dtype, device, None, "trl")
    base = {
        "size": size,
        "batch": batch,
        "micro": micro,
        "response_length": response_length,
        "eos_bias": eos_bias,
        "ppo_epochs": ppo_epochs,
        "threads": threads,
        "seed": seed,
    }
    if not output.parent.is_dir():
        raise ConfigError(f"--output={output}: its folder is not there; make it, or leave the option out")
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("updates", total=None)
        result = sweep(
            base, values, dtype, device, updates, lambda done, total: bars.update(task, completed=done, total=total)
        )
    draw_scaling(result, output)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show(result, Console())
        typer.echo(f"picture: {output}")


def several(option: str, text: str) -> list[str]:
    """At least two different values of a list. Raises ConfigError."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if len(set(found)) < max(2, len(found)):
        raise ConfigError(f"{option}={text}: a line wants two values or more, each once; use for example 8,32")
    return found


def numbers(option: str, text: str) -> list[int]:
    """Ascending whole numbers. Raises ConfigError."""
    found = several(option, text)
    try:
        counts = sorted(int(part) for part in found)
    except ValueError:
        counts = [0]
    if counts[0] < 1:
        raise ConfigError(f"{option}={text}: are to be whole numbers from 1; use for example 8,32")
    return counts


def show(result: Mapping[str, Any], console: Console) -> None:
    """A table of points, and a line for each fit."""
    table = Table("varied", "value", "tokens", "seconds", "MFU", "memory, MiB", box=SIMPLE_HEAD, padding=(0, 1))
    for name, found in result["sweeps"].items():
        for point in found["points"]:
            figures = f"{point['tokens']:,}", f"{point['seconds']:.2f}", f"{point['mfu']:.0%}"
            table.add_row(name, str(point["value"]), *figures, f"{point['peak_memory_bytes'] / 2**20:,.0f}")
    console.print(table)
    for name, found in result["sweeps"].items():
        fit = found["fit"]
        slope = f"{fit['slope'] * 1e3:.3f} s a 1,000 tokens"
        if found["axis"] == "operations":
            slope = f"{1 / fit['slope'] / 1e9:.1f} GFLOP/s"
        console.print(
            f"{name}: {fit['fixed']:.2f} s and {slope}, points within {fit['worst']:.0%} of the line; exponent "
            f"{fit['exponent']:.2f}",
            highlight=False,
            soft_wrap=True,
        )
