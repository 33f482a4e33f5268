"""`rlhf study overoptimization`: when does more reward stop being better? Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from launch.commands.options import check_output, numbers
from launch.commands.run import DataDirectory, Overrides, all_overrides
from launch.jobs import Workers
from launch.overoptimization import Sweep
from launch.pipeline import Interrupted
from rlhf.analysis.overoptimization import Outcome, gather, read_trajectory, report
from rlhf.errors import ConfigError
from rlhf.store.artifact import write_json
from rlhf.tracking.console import wide_console

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

    sweep = Sweep(
        recipe,
        [int(value) for value in numbers("--pairs", pairs, whole=True)],
        numbers("--coefficients", coefficients),
        [int(value) for value in numbers("--seeds", seeds, whole=True)],
        steps,
        every,
        output,
        all_overrides(overrides, data_directory),
    )
    if 0 in sweep.pairs:
        raise ConfigError(f"--pairs={pairs}: a reward model learns from one comparison at least; remove 0")
    check_output(output)
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
    console = wide_console()
    console.print(table(outcomes))
    console.print(
        f"{output / 'overoptimization.json'}, {output / 'overoptimization.png'}", highlight=False, soft_wrap=True
    )


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
