"""A picture of drift: each measure over the batches, beside what a batch was compared with. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data.drift.report import MEASURES, Change, Drift
from rlhf.analysis.pictures import COLOURS, QUIET, label, plain_matplotlib, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 12  # batches whose names stand below


def draw_drift(found: Drift, output: Path) -> None:
    """Write a PNG with a panel for each measure that was taken; what has drifted is vermilion."""
    panels = {
        measure: points
        for measure in MEASURES
        if (points := {i: c for i, batch in enumerate(found.batches) for c in batch.changes if c.measure == measure})
    }
    names = [batch.name for batch in found.batches]
    with plain_matplotlib():
        from matplotlib.figure import Figure

        rows = (len(panels) + 1) // 2
        drawn = Figure(figsize=(9.5, 2.4 * rows), layout="constrained")
        axes = iter(drawn.subplots(rows, 2, squeeze=False).flat)
        for measure, points in panels.items():
            _draw(next(axes), measure, points, names)
        for spare in axes:
            spare.set_axis_off()
        compared = "the batches before" if found.options.against == "before" else "all other batches"
        drawn.supxlabel(
            f"filled: the batch, vermilion where it has drifted; hollow: {compared}; 95 % intervals", fontsize=8
        )
        write_png(drawn, output, "Drift between batches of votes")


def _draw(ax: Axes, measure: str, points: dict[int, Change], names: list[str]) -> None:
    label(ax, measure.capitalize(), "geometric mean" if measure == "seconds" else "share of votes")
    for number, change in points.items():
        for figure, shift, filled in ((change.before, -0.12, False), (change.after, 0.12, True)):
            if figure is None:
                continue
            low, high = figure.interval
            colour = QUIET if not filled else COLOURS[1] if change.drifted else COLOURS[0]
            spread = [[max(0.0, figure.value - low)], [max(0.0, high - figure.value)]]
            face = colour if filled else "white"
            ax.errorbar(
                number + shift, figure.value, yerr=spread, fmt="o", color=colour, mfc=face, capsize=2, markersize=4
            )
    step = -(-len(names) // MOST_NAMED)
    shown = range(0, len(names), step)
    ax.set_xticks(list(shown), [names[i][:14] for i in shown], rotation=25 if len(names) > 5 else 0, parse_math=False)
    ax.set_xlim(-0.6, len(names) - 0.4)
