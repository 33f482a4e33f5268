"""A picture of groups: their shares, ties, and how far they agree. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data.groups import Group, Groups, Share
from rlhf.analysis.pictures import COLOURS, QUIET, label, plain_matplotlib, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 30  # groups, those with most votes


def draw_groups(found: Groups, output: Path) -> None:
    """Write a PNG: a row for each group, no more than MOST; hollow marks are the reference's shares."""
    shown = found.groups[:MOST]
    panels: list[tuple[str, str, Callable[[Group], Share | None]]] = [
        ("Votes", "share of all; hollow: reference", lambda group: group.share),
        ("Ties", "share of the group's votes", lambda group: group.ties),
        ("Agreement in the group", "equal votes on one pair", lambda group: group.within),
        ("Agreement with others", "equal votes on one pair", lambda group: group.between),
    ]
    panels = [panel for panel in panels if any(panel[2](group) for group in shown)]
    with plain_matplotlib():
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(2.9 * len(panels) + 0.8, 0.9 + 0.26 * len(shown)), layout="constrained")
        for axes, (title, unit, figure) in zip(
            drawn.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True
        ):
            label(axes, title, "")
            axes.set_xlabel(unit)
            _draw(axes, shown, figure)
            if title == "Votes":
                for row, group in enumerate(shown):
                    if group.reference is not None:
                        axes.plot(group.reference, row, "o", color=QUIET, mfc="white", markersize=5)
        write_png(drawn, output, "Groups of votes")


def _draw(axes: Axes, shown: tuple[Group, ...], figure: Callable[[Group], Share | None]) -> None:
    for row, group in enumerate(shown):
        if (share := figure(group)) is None:
            continue
        low, high = share.interval
        spread = [[max(0.0, share.share - low)], [max(0.0, high - share.share)]]
        colour = QUIET if group.few else COLOURS[0]
        axes.errorbar(share.share, row, xerr=spread, fmt="o", color=colour, capsize=2, markersize=4)
    names = [f"{group.name[:20]} ({group.votes:,})" for group in shown]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
