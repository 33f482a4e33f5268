"""`rlhf study overoptimization`: when does more reward stop to be better? Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from launch.commands.run import DataDirectory, Overrides
from launch.jobs import Workers
from launch.overoptimization import Sweep
from launch.pipeline import Interrupted
from rlhf.analysis.overoptimization import Outcome, gather, read_trajectory, report
from rlhf.errors import ConfigError
from rlhf.store.artifact import write_json

DEFAULT = Path("runs/studies/overoptimization")


def overoptimization(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="A recipe whose truth is known.")] = "demo",
    overrides: Overrides = None,
    pairs: Annotated[str, typer.Option("--pairs", help="Comparisons behind the reward models.")] = "500,2000,8000",
    coefficients: Annotated[str, typer.Option("--coefficients", help="Of the KL penalty.")] = "0,0.05,0.2",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds of all stages.")] = "1,2,3",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of PPO.")] = 80,
    every: Annotated[int, typer.Option("--every", min=1, help="Steps between held-out evaluations.")] = 5,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="Runs side by side.")] = 1,
    data_directory: DataDirectory = None,
    output: Annotated[Path, typer.Option("--output", help="Where runs and results go.")] = DEFAULT,
) -> None:
    """Train reward models on little and much data, and PPO against each under weak and strong KL penalties.

    Draws the gold score and the reward model's own over the root of the KL (Gao et al. 2023) and says where gold was
    highest, and how much of it was lost behind its peak: OUTPUT/overoptimization.png and .json. Runs that are complete
    are not run again, so the command can be ended and given again, also with more seeds, pairs or coefficients.

    Examples:

        rlhf study overoptimization --at-once 2

        rlhf study overoptimization demo ppo.learning_rate=3e-4 --pairs 1000,16000 --coefficients 0,0.1 --seeds 1,2,3,4
    """
    from rlhf.analysis.overoptimization_picture import draw

    given = list(overrides or [])
    if data_directory is not None:
        given.append(f"data.directory={data_directory}")
    sweep = Sweep(
        recipe,
        [int(value) for value in numbers("--pairs", pairs, whole=True)],
        numbers("--coefficients", coefficients),
        [int(value) for value in numbers("--seeds", seeds, whole=True)],
        steps,
        every,
        output,
        given,
    )
    if 0 in sweep.pairs:
        raise ConfigError(f"--pairs={pairs}: a reward model learns from one comparison at least; remove 0")
    sweep.check()
    output.mkdir(parents=True, exist_ok=True)
    try:
        sweep.run(Workers(at_once))
    except Interrupted as interrupted:
        typer.echo(f"{interrupted}; the same command goes on; exit code {interrupted.code}")
        raise typer.Exit(interrupted.code) from interrupted
    outcomes = gather(read_trajectory(sweep.place(setting), setting) for setting in sweep.settings())
    write_json(output / "overoptimization.json", report(outcomes))
    draw(outcomes, output / "overoptimization.png")
    console = Console()
    console.print(table(outcomes))
    console.print(f"{output / 'overoptimization.json'}, {output / 'overoptimization.png'}", highlight=False)


def numbers(option: str, text: str, whole: bool = False) -> list[float]:
    """A comma-separated list. Raises ConfigError for anything else."""
    try:
        found = [float(int(part)) if whole else float(part) for part in text.split(",")]
    except ValueError:
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{option}={text}: give {kind} with commas between them, as in {option} 1,2") from None
    if any(value < 0 for value in found) or len(set(found)) < len(found):
        raise ConfigError(f"{option}={text}: give each number once, and none below zero")
    return found


def table(outcomes: list[Outcome]) -> Table:
    """A row for each setting."""
    shown = Table(title="over-optimisation: means over seeds")
    for column in ("pairs", "KL coefficient", "gold start", "peak (step, KL)", "last", "lost", "proxy's peak", "KL"):
        shown.add_column(column, justify="right")
    for outcome in outcomes:
        s = outcome.summary()
        shown.add_row(
            f"{s['pairs']:,}",
            f"{s['coefficient']:g}",
            f"{s['gold_start']:.3f}",
            f"{s['gold_peak']:.3f} ({s['gold_peak_step']}, {s['gold_peak_kl']:.1f})",
            f"{s['gold_last']:.3f}",
            f"{s['gold_lost']:.3f} ± {s['gold_lost_stderr']:.3f}",
            f"step {s['proxy_peak_step']}",
            f"{s['kl_last']:.1f}",
        )
    return shown
