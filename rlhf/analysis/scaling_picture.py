"""A picture of `rlhf bench scaling`: seconds of an update over its tokens and its operations. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.analysis.pictures import COLOURS, QUIET, plain_matplotlib, write_png

TITLES = {"batch": "responses an update", "response_length": "tokens a response", "size": "parameters"}
AXES = {"tokens": "useful tokens of an update", "operations": "useful operations of an update, GFLOP"}


def draw_scaling(result: Mapping[str, Any], output: Path) -> None:
    """Write a PNG with one panel for each sweep: its points by phase, and the line fitted through the whole."""
    with plain_matplotlib():
        from matplotlib.figure import Figure

        sweeps: Mapping[str, Any] = result["sweeps"]
        drawn = Figure(figsize=(3.2 * len(sweeps), 3.0), layout="constrained")
        for axes, (name, sweep) in zip(drawn.subplots(1, len(sweeps), squeeze=False)[0], sweeps.items(), strict=True):
            unit = 1e9 if sweep["axis"] == "operations" else 1
            points, fit = sweep["points"], sweep["fit"]
            xs = [point[sweep["axis"]] / unit for point in points]
            for number, phase in enumerate(("training", "scoring", "generation"), start=1):
                axes.plot(xs, [point["phases"][phase] for point in points], "o-", ms=3, lw=0.8, color=COLOURS[number])
                axes.annotate(
                    phase, (xs[-1], points[-1]["phases"][phase]), color=COLOURS[number], ha="right", va="bottom"
                )
            axes.plot(xs, [point["seconds"] for point in points], "o", color=COLOURS[0])
            line = [fit["fixed"] + fit["slope"] * x * unit for x in (0, xs[-1])]
            axes.plot((0, xs[-1]), line, "--", lw=0.8, color=COLOURS[0])
            for x, point in zip(xs, points, strict=True):
                axes.annotate(str(point["value"]), (x, point["seconds"]), color=QUIET, ha="right", va="bottom")
            axes.set_title(f"{TITLES[name]}: exponent {fit['exponent']:.2f}", loc="left")
            axes.set_xlabel(AXES[sweep["axis"]])
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
        drawn.axes[0].set_ylabel("seconds an update")
        write_png(drawn, output, "The cost of a PPO update")
