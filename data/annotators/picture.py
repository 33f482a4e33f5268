"""A picture of annotators: how often each is right, with the interval. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.annotators.reliability import Finding, Reliability
from data.records import printable
from rlhf.analysis.pictures import COLOURS, QUIET, plain_matplotlib, write_png

COLOUR: dict[Finding, str] = {
    "reliable": COLOURS[0],
    "random": COLOURS[4],
    "against": COLOURS[1],
    "unknown": QUIET,
}
MOST = 60  # rows


def draw_annotators(annotators: Sequence[Reliability], output: Path) -> None:
    """Write a PNG with a bar for each annotator, those with the lowest reliability first, no more than MOST."""
    shown = sorted(annotators, key=lambda one: one.reliability)[:MOST]
    with plain_matplotlib():
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(6.0, 0.9 + 0.22 * len(shown)), layout="constrained")
        axes = drawn.subplots()
        for row, one in enumerate(reversed(shown)):
            low, high = one.interval
            axes.barh(row, one.reliability - 0.5, left=0.5, height=0.6, color=COLOUR[one.finding])
            axes.plot((low, high), (row, row), color="black", lw=0.8)
        axes.set_yticks(range(len(shown)), [f"{printable(one.name)[:24]} ({one.votes:,})" for one in reversed(shown)])
        axes.axvline(0.5, color=QUIET, lw=0.8)
        axes.set_xlim(0, 1)
        axes.set_xlabel("probability of a right vote, 95 % interval; 0.5: a coin (votes in brackets)")
        write_png(drawn, output, "Annotators")
