"""The picture of over-optimisation: gold above, proxy below, a column for each size of the reward model's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf.analysis.overoptimization import Fit, Outcome, fit
from rlhf.analysis.pictures import COLOURS, QUIET, label, plain_matplotlib, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(outcomes: Sequence[Outcome], output: Path) -> None:
    """Write the picture as a PNG, whole or not at all."""
    with plain_matplotlib():
        write_png(picture(outcomes), output, "over-optimisation")


def picture(outcomes: Sequence[Outcome]) -> Figure:
    """Means over seeds as lines with points, single seeds as thin lines, fits dotted, gold's peaks as rings."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    sizes = sorted({outcome.pairs for outcome in outcomes})
    colours = dict(zip(sorted({outcome.coefficient for outcome in outcomes}), COLOURS * len(outcomes), strict=False))
    canvas = Canvas(figsize=(3.0 * len(sizes) + 0.6, 5.0), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08))
    axes: Any = canvas.subplots(2, len(sizes), sharex=True, sharey="row", squeeze=False)
    fits = fit(outcomes)
    for column, pairs in enumerate(sizes):
        own = [outcome for outcome in outcomes if outcome.pairs == pairs]
        for row, name in enumerate(("gold", "proxy")):
            draw_panel(axes[row][column], own, name, colours)
        if pairs in fits:
            draw_fit(axes[0][column], own, fits[pairs])
        label(axes[0][column], f"{pairs:,} comparisons", "gold score")
        label(axes[1][column], "", "reward model's score, deviations of SFT")
    canvas.supxlabel("distance from the reference: root of the KL in nats per response", fontsize=8, color=QUIET)
    add_legend(canvas, colours)
    return canvas


def draw_panel(ax: Axes, outcomes: Sequence[Outcome], name: str, colours: Mapping[float, str]) -> None:
    """One kind of score under each coefficient."""
    for outcome in outcomes:
        colour = colours[outcome.coefficient]
        for trajectory in outcome.trajectories:
            ax.plot(root(trajectory.kl), getattr(trajectory, name), color=colour, linewidth=0.6, alpha=0.35)
        distance, score = root(outcome.means("kl")), outcome.means(name)
        ax.plot(distance, score, color=colour, linewidth=1.4, marker="o", markersize=2.5)
        peak = int(np.argmax(score))
        ax.plot([distance[peak]], [score[peak]], color=colour, marker="o", markersize=8, fillstyle="none", zorder=4)


def draw_fit(ax: Axes, outcomes: Sequence[Outcome], curve: Fit) -> None:
    """The curve of Gao et al. over the distances that were reached."""
    farthest = max(max(root(trajectory.kl)) for outcome in outcomes for trajectory in outcome.trajectories)
    distances = np.linspace(0, farthest, 100)
    ax.plot(distances, [curve(d) for d in distances], color=QUIET, linewidth=1.0, linestyle=":", zorder=1)


def root(kl: Sequence[float]) -> list[float]:
    """Distances of KLs, which in a sample may be a little below zero."""
    return [max(value, 0.0) ** 0.5 for value in kl]


def add_legend(canvas: Figure, colours: Mapping[float, str]) -> None:
    """What the colours mean, once for all panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linewidth=1.4, marker="o", markersize=2.5, label=f"KL coefficient {value:g}")
        for value, colour in colours.items()
    ]
    handles.append(Line2D([], [], color=QUIET, marker="o", markersize=8, fillstyle="none", linestyle="", label="peak"))
    handles.append(Line2D([], [], color=QUIET, linewidth=1.0, linestyle=":", label="d (a - b log d)"))
    canvas.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=7.5)
