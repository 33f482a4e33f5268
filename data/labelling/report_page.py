"""The report as a page of HTML that needs nothing else: no script, no address, its pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from data.labelling.attention import Habits, Share
from data.labelling.reporting import Report
from data.labelling.votes import Account
from rlhf.analysis.pictures import COLOURS, QUIET, label, plain_matplotlib, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN = 24  # annotators with a line in the pictures, those with most votes
STYLE = """
body {font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222}
table {border-collapse: collapse; margin: 1em 0} td, th {padding: 3px 12px 3px 0; text-align: right}
th {border-bottom: 1px solid #bbb; font-weight: 600} td:first-child, th:first-child {text-align: left}
img {max-width: 100%} .quiet {color: #666} li {margin: 2px 0}
"""


def page_of(report: Report, account: Account) -> str:
    """The page."""
    alpha = "not yet: no pair has two votes" if report.same.of == 0 else _alpha(report)
    classes = ", ".join(f"{count:,} {kind}" for kind, count in report.classes.items() if count)
    overlap = ", ".join(f"{pairs:,} with {votes}" for votes, pairs in report.votes_per_pair.items())
    facts = [
        ("annotations", classes or "none"),
        ("pairs with votes", f"{report.pairs_with_votes:,} of {report.pairs:,}" + (f" ({overlap})" if overlap else "")),
        ("agreement", alpha),
    ]
    if report.kinds:
        kinds = (f"{kind} {voted:,} of {of:,}" for kind, (voted, of) in report.kinds.items())
        facts.append(("kinds of prompts", ", ".join(kinds)))
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    attention = "".join(f"<li>{escape(line)}</li>" for line in report.attention) or "<li>nothing</li>"
    picture = base64.b64encode(draw(report, account)).decode() if report.annotators else ""
    shown = f'<img alt="votes by day, and annotators" src="data:image/png;base64,{picture}">' if picture else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(report.title)}</title>"
        f"<style>{STYLE}</style><h1>{escape(report.title)}</h1><table>{rows}</table>"
        f"<h2>Needs attention</h2><ul>{attention}</ul>{shown}<h2>Annotators</h2>{_table(report.annotators)}"
        "<p class=quiet>In brackets 95 % intervals: Wilson's for shares, a bootstrap over pairs for agreement.</p>"
        "</html>\n"
    )


def _alpha(report: Report) -> str:
    if report.alpha is None or report.alpha_interval is None:
        return f"all {report.same.of:,} pairs with two votes have equal ones"
    low, high = report.alpha_interval
    return (
        f"Krippendorff's alpha {report.alpha:.2f} ({low:.2f} to {high:.2f}); equal votes {told(report.same)}, on "
        f"{report.same.of:,} pairs with two votes or more"
    )


def _table(annotators: Sequence[Habits]) -> str:
    names = ("annotator", "votes", "seconds", "gold right", "agreement", "first shown", "ties", "skips", "rejected")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(habits)) + "</tr>" for habits in annotators
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def cells(habits: Habits) -> tuple[str, ...]:
    """An annotator as a row of a table."""
    classes = habits.classes
    rejected = sum(classes[kind] for kind in ("malformed", "duplicate", "edited", "deleted"))
    seconds = "-" if habits.seconds is None else f"{habits.seconds:.1f}"
    shares = (habits.gold, habits.agreement, habits.first, habits.tie, habits.skip)
    return habits.name, f"{classes['valid'] + classes['tie']:,}", seconds, *map(told, shares), f"{rejected:,}"


def told(share: Share) -> str:
    """A share with its interval, for people."""
    return "-" if share.share is None else f"{share.share:.2f} ({share.interval[0]:.2f} to {share.interval[1]:.2f})"


def draw(report: Report, account: Account) -> bytes:
    """A PNG: votes by time, and of each annotator gold answers, agreement, position and seconds, with intervals."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    people = report.annotators[:DRAWN]
    with plain_matplotlib():
        canvas = Figure(figsize=(9.6, 3.0 + 0.2 * len(people)), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
        axes: Any = canvas.subplots(2, 4, height_ratios=(1.0, 0.25 + 0.14 * len(people)))
        whole = canvas.add_subplot(axes[0][0].get_gridspec()[0, :])
        for ax in axes[0]:
            ax.remove()
        _draw_time(whole, account, people)
        panels = (("gold right", "gold", 0.0), ("agreement", "agreement", 0.0), ("first shown", "first", 0.5))
        for ax, (title, name, line) in zip(axes[1], panels, strict=False):
            _draw_shares(ax, [getattr(habits, name) for habits in people], line)
            label(ax, title, "share")
        _draw_seconds(axes[1][3], account, people)
        axes[1][0].set_yticks(range(len(people)), [_short(habits.name) for habits in people], parse_math=False)
        for ax in axes[1][1:]:
            ax.set_yticks(range(len(people)), [""] * len(people))
        for ax in axes[1]:
            ax.set_ylim(len(people) - 0.5, -0.5)
        file = io.BytesIO()
        save_png(canvas, file, {"Title": report.title})
    return file.getvalue()


def _draw_time(ax: Axes, account: Account, people: Sequence[Habits]) -> None:
    for number, habits in enumerate(people):
        times = sorted(each.annotation.time for each in account.votes if each.annotation.annotator == habits.annotator)
        moments: Any = [datetime.fromtimestamp(time, UTC) for time in times]
        ax.step(moments, range(1, len(times) + 1), where="post", color=COLOURS[number % len(COLOURS)], linewidth=1.2)
        if times:
            ax.annotate(_short(habits.name), (moments[-1], len(times)), fontsize=6.5, color=QUIET, parse_math=False)
    label(ax, "votes of each annotator", "UTC")


def _draw_shares(ax: Axes, shares: Sequence[Share], line: float) -> None:
    for row, share in enumerate(shares):
        if share.share is not None:
            low, high = share.interval
            ax.plot([low, high], [row, row], color=COLOURS[5], linewidth=2.0, solid_capstyle="butt")
            ax.plot([share.share], [row], "o", color=COLOURS[0], markersize=3.5)
    if line:
        ax.axvline(line, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set_xlim(-0.02, 1.02)


def _draw_seconds(ax: Axes, account: Account, people: Sequence[Habits]) -> None:
    for row, habits in enumerate(people):
        mine = (each.annotation for each in account.votes if each.annotation.annotator == habits.annotator)
        seconds = [annotation.seconds for annotation in mine if annotation.seconds]
        if seconds:
            ax.boxplot([seconds], positions=[row], orientation="horizontal", widths=0.6, sym="", whis=(5, 95))
    ax.set_xscale("log")
    label(ax, "time of a vote", "s, 5 to 95 %")


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:20]}..."
