"""What `rlhf bench` says of what it measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from launch.bench import Bench
from launch.commands.run import resolve
from launch.recipe_load import OF
from rlhf.errors import ConfigError
from stages.bench.sizes import SIZES

RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="What it says in place of these options, with random weights.")
]
# Options, and what says the same in a recipe.
FIELDS = {
    "size": "model.init or model.path",
    "dtype": "model.dtype",
    "responses_per_prompt": "ppo.responses_per_prompt",
    "response_length": "ppo.generation.max_new_tokens",
    "ppo_epochs": "ppo.epochs",
    "batch": "ppo.prompts_per_step",
    "micro": "ppo.micro_batch_tokens",
}
PHASES = ("generation", "scoring", "training")


def of_recipe(
    context: typer.Context, recipe: str | None, overrides: Sequence[str] | None, dtype: str, device: str
) -> tuple[dict[str, Any] | None, str]:
    """The work that a recipe describes, and its dtype; None where there is no recipe. Raises ConfigError."""
    if recipe is None:
        if overrides:
            raise ConfigError(
                f"{overrides[0]}: a recipe's setting, and there is no recipe; add for example --recipe demo"
            )
        return None, dtype
    stage = str(context.info_name)
    fields = FIELDS
    if stage in ("sft", "reward"):
        fields = {**FIELDS, "batch": f"{stage}.batch_size", "micro": f"{stage}.micro_batch_size"}
    for name in sorted(fields.keys() & context.params):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}={context.params[name]}"
            raise ConfigError(f"{option} with --recipe={recipe}: the recipe says it; set {fields[name]} there")
    return OF[stage](resolve(recipe, list(overrides or ()), None), device)


def known(size: str, dtype: str, device: str, against: str | None, *others: str) -> None:
    """Raises ConfigError for what cannot be measured; others: whom there is to compare with."""
    for option, value, choices in (
        ("--size", size, list(SIZES)),
        ("--dtype", dtype, ["float32", "bfloat16"]),
        ("--device", device, ["cpu", "cuda"]),
        ("--against", against, [None, *others]),
    ):
        if value not in choices:
            raise ConfigError(f"{option}={value}: not known; use one of {', '.join(filter(None, choices))}")


def measured(bench: Bench, as_json: bool) -> None:
    """Measure under a progress bar, and print."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("updates", total=None)
        result = bench.run(lambda done, total: bars.update(task, completed=done, total=total))
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show(result, Console())


def show(result: Mapping[str, Any], console: Console) -> None:
    """A table of phases, and a line of the whole."""
    theirs = result.get("against")
    names = (theirs["name"], "ratio") if theirs else ()
    table = Table("phase", "seconds", "MFU", *names, box=SIMPLE_HEAD, padding=(0, 1))
    for name in PHASES:
        if name in result["phases"]:
            seconds = result["phases"][name]
            row = [name, f"{seconds:.2f}", f"{result['mfu_phases'][name]:.0%}"]
            table.add_row(*row, *_against(seconds, theirs["phases"][name] if theirs else None))
    seconds = result["seconds_per_update"]
    if len(result["phases"]) > 1:
        row = ["update", f"{seconds:.2f}", f"{result['mfu']:.0%}"]
        table.add_row(*row, *_against(seconds, theirs["seconds_per_update"] if theirs else None))
    console.print(table)
    memory = f"peak memory {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    if theirs:
        memory += f", {result['memory_ratio']:.2f} of {theirs['name']}'s {theirs['peak_memory_bytes'] / 2**20:,.0f}"
    if theirs and "loss" in theirs:
        memory += f"; median loss {result['loss']:.4f}, {theirs['name']}'s {theirs['loss']:.4f}"
    console.print(
        f"{result['tokens_per_second']:,.0f} useful tokens/s; {memory}; the machine: {result['ceiling_gflops']:.0f} "
        f"GFLOP/s, copies {result['copy_gigabytes']:.1f} GB/s; medians of {result['updates']} updates",
        highlight=False,
        soft_wrap=True,
    )


def _against(seconds: float, theirs: float | None) -> list[str]:
    return [] if theirs is None else [f"{theirs:.2f}", f"{theirs / seconds:.2f}x"]
