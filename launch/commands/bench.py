"""`rlhf bench`: how fast, and how near to what the machine can do. Loads no torch: children are measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from launch.bench import Bench
from launch.trl_wheel import trl_with_ppo
from rlhf.errors import ConfigError
from stages.bench.sizes import SIZES

app = typer.Typer(
    name="bench", help="Measure speed, and how near it is to what the machine can do.", no_args_is_help=True
)


@app.callback()
def bench() -> None:
    """Measure speed, and how near it is to what the machine can do."""


@app.command()
def ppo(
    size: Annotated[str, typer.Option("--size", help=f"Of random models: {', '.join(SIZES)}.")] = "15M",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Responses an update.")] = 16,
    micro: Annotated[int, typer.Option("--micro", min=1, help="Rows of the longest kind in a micro-batch.")] = 8,
    response_length: Annotated[int, typer.Option("--response-length", min=1, help="Tokens at most.")] = 32,
    eos_bias: Annotated[
        float, typer.Option("--eos-bias", min=0, max=0.99, help="Chance that a response ends behind a token; 0: never.")
    ] = 0.0,
    ppo_epochs: Annotated[int, typer.Option("--ppo-epochs", min=1, help="Passes over an update's responses.")] = 2,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the CPU.")] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, prompts and lengths.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16, of computation.")] = "float32",
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    updates: Annotated[int, typer.Option("--updates", min=1, help="That count, behind one that warms up.")] = 5,
    against: Annotated[
        str | None,
        typer.Option("--against", help="trl: its last PPOTrainer (1.12.0, float32), turn by turn with ours."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Time updates of PPO by phase: sampling, scoring by reference, value and reward model, training.

    MFU is the share of the measured rate of matrix products that went into useful tokens: 2 operations a weight and
    token read, 6 trained; padding counts nothing. With --against both sides have the same weights, prompts, lengths and
    epochs, and take turns; the ratio is their median seconds over ours. Its wheel is downloaded once, into a cache.

    Examples:

        rlhf bench ppo

        rlhf bench ppo --batch 64 --response-length 128 --eos-bias 0.04 --against trl

        rlhf bench ppo --size qwen2.5-0.5b --batch 64 --device cuda --dtype bfloat16 --json
    """
    check(size, dtype, device, against)
    if against and batch % micro:
        raise ConfigError(f"--batch={batch} with --micro={micro}: TRL wants whole micro-batches; use a divisor")
    load = {
        "size": size,
        "batch": batch,
        "micro": micro,
        "response_length": response_length,
        "eos_bias": eos_bias,
        "ppo_epochs": ppo_epochs,
        "threads": threads,
        "seed": seed,
    }
    measured = Bench(load, dtype, device, updates, trl_with_ppo() if against else None)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("updates", total=None)
        result = measured.run(lambda done, total: bars.update(task, completed=done, total=total))
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show(result, Console())


def check(size: str, dtype: str, device: str, against: str | None) -> None:
    """Raises ConfigError for what cannot be measured."""
    for option, value, known in (
        ("--size", size, list(SIZES)),
        ("--dtype", dtype, ["float32", "bfloat16"]),
        ("--device", device, ["cpu", "cuda"]),
        ("--against", against or "trl", ["trl"]),
    ):
        if value not in known:
            raise ConfigError(f"{option}={value}: not known; use one of {', '.join(known)}")
    if against and device != "cpu":
        raise ConfigError(f"--against={against} with --device={device}: the baseline runs on the CPU; use --device cpu")


def show(result: Mapping[str, Any], console: Console) -> None:
    """A table of phases, and a line of the whole."""
    theirs = result.get("trl")
    table = Table("phase", "seconds", "MFU", *(("trl", "ratio") if theirs else ()), box=SIMPLE_HEAD, padding=(0, 1))
    for name in ("generation", "scoring", "training"):
        seconds = result["phases"][name]
        row = [name, f"{seconds:.2f}", f"{result['mfu_phases'][name]:.0%}"]
        table.add_row(*row, *_against(seconds, theirs["phases"][name] if theirs else None))
    seconds = result["seconds_per_update"]
    row = ["update", f"{seconds:.2f}", f"{result['mfu']:.0%}"]
    table.add_row(*row, *_against(seconds, theirs["seconds_per_update"] if theirs else None))
    console.print(table)
    memory = f"peak memory {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    if theirs:
        memory += f", {result['memory_ratio']:.2f} of trl's {theirs['peak_memory_bytes'] / 2**20:,.0f}"
    console.print(
        f"{result['tokens_per_second']:,.0f} useful tokens/s; {memory}; the machine: {result['ceiling_gflops']:.0f} "
        f"GFLOP/s, copies {result['copy_gigabytes']:.1f} GB/s; medians of {result['updates']} updates",
        highlight=False,
        soft_wrap=True,
    )


def _against(seconds: float, theirs: float | None) -> list[str]:
    return [] if theirs is None else [f"{theirs:.2f}", f"{theirs / seconds:.2f}x"]
