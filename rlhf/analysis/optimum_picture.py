"""How PPO came near the known optimum, in one picture: total variation by step, a line for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf.analysis.pictures import COLOURS, QUIET, label, plain_matplotlib, write_png

TOLERANCE = 0.03


class Line(NamedTuple):
    """The courses of one variant."""

    name: str
    steps: Sequence[int]
    distances: Sequence[Sequence[float]]  # [seeds][steps] total variation from the optimum


def draw(panels: Mapping[float, Sequence[Line]], output: Path) -> None:
    """Write a PNG, whole or not at all: a panel for each beta, of each variant the mean over seeds and their range."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    with plain_matplotlib():
        canvas = Figure(figsize=(1.6 + 2.6 * len(panels), 3.4), layout=ConstrainedLayoutEngine(w_pad=0.06))
        axes: Any = canvas.subplots(1, len(panels), sharey=True, squeeze=False)
        handles: dict[str, Line2D] = {}
        for ax, (beta, lines) in zip(axes[0], panels.items(), strict=True):
            for line in lines:
                style = look(len(handles)) if line.name not in handles else look(list(handles).index(line.name))
                handles.setdefault(line.name, Line2D([], [], label=line.name, linewidth=1.4, **style))
                columns = list(zip(*line.distances, strict=True))
                low, high = [min(column) for column in columns], [max(column) for column in columns]
                ax.fill_between(line.steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
                ax.plot(line.steps, [sum(column) / len(column) for column in columns], linewidth=1.4, **style)
            ax.axhline(TOLERANCE, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            ax.set_yscale("log")
            label(ax, f"beta {beta:g}", "")
        axes[0][0].set_ylabel("total variation from the optimum", color=QUIET)
        canvas.supxlabel("step of PPO", fontsize=8, color=QUIET)
        canvas.legend(handles=list(handles.values()), loc="outside right center", frameon=False, fontsize=7.5)
        write_png(canvas, output, "optimum")


def look(number: int) -> dict[str, Any]:
    """Colour and dashes of the variant of a number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": ("-", "--")[number // len(COLOURS) % 2]}
