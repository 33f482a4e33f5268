"""`rlhf curves`: a run's curves in one picture, also of a run in progress. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CURVES = "curves.png"  # in the run directory


def curves(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a name under runs/.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="A .png, .svg or .pdf. Default: RUN/curves.png.")
    ] = None,
) -> None:
    """Draw what the stages of a run have measured so far: losses, accuracy, scores, KL, lengths, entropy.

    `rlhf run` does so when it ends; a run in progress can be drawn at any time.

    Examples:

        rlhf curves demo

        rlhf curves runs/weaker-penalty --output weaker-penalty.svg
    """
    from rlhf.analysis.curves import draw

    directory = run if run.is_dir() or len(run.parts) != 1 else Path("runs") / run
    target = output or directory / CURVES
    drawn = draw(directory, target)
    typer.echo(f"{target}" if drawn else f"{target}: up to date")


def draw_behind_summary(directory: Path) -> str:
    """Draw a run's curves, and the line that says where; a run never fails because its picture does."""
    from rlhf.analysis.curves import draw

    try:
        draw(directory, directory / CURVES)
    except Exception as error:  # whatever it is, the run itself is complete
        cause = " ".join(str(error).split()) or type(error).__name__
        return f"curves: not drawn ({cause}); rlhf curves {directory} tries again"
    return f"curves: {directory / CURVES}"
