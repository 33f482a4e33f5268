"""A verdict as one HTML page that needs nothing else: what was found, pictures, examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment

from data.quality.verdict import Verdict
from data.records import printable
from rlhf.analysis.pictures import COLOURS, QUIET, label, plain_matplotlib, save_png
from rlhf.analysis.statistics import wilson_interval
from rlhf.store.artifact import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 20  # annotators in a picture, those with most votes

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Check of comparisons: {{ verdict }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3rem .6rem;
border-bottom: 1px solid #ddd } td.examples { overflow-wrap: anywhere }
.pass { color: #00714f } .info { color: #666 } .warn { color: #b35900 } .fail { color: #b00020 }
code { font-size: .85em; overflow-wrap: anywhere } img { max-width: 100% } summary { cursor: pointer; color: #666 }
</style></head><body>
<h1>Check of comparisons: <span class="{{ verdict }}">{{ verdict }}</span></h1>
<p>{{ headline }}</p>
<table>{% for source in summary.sources %}<tr><td>{{ source.path | printable }}</td>
<td>{{ source.format or "made here" }}</td><td>{{ "{:,}".format(source.comparisons) }} comparisons</td></tr>
{% endfor %}</table>
<p>{{ "{:,}".format(summary.pairs) }} distinct pairs, {{ "{:,}".format(summary.prompts) }} distinct prompts,
{{ "{:,}".format(summary.held_out) }} comparisons held out by {{ summary.split }}.</p>
<h2>Findings</h2>
{% if findings %}<table><tr><th></th><th>kind</th><th>what</th></tr>
{% for finding in findings %}<tr><td class="{{ finding.severity }}">{{ finding.severity }}</td>
<td>{{ finding.kind }}</td><td class="examples">{{ finding.message | printable }}; {{ finding.remedy }}
{% if finding.examples %}<details><summary>the first {{ finding.examples | length }}</summary>
{% for example in finding.examples %}<p>{% for name, value in example.items() %}
<b>{{ name }}</b> <code>{{ value | string | printable }}</code><br>{% endfor %}</p>{% endfor %}</details>{% endif %}
</td></tr>{% endfor %}</table>{% else %}<p>Nothing.</p>{% endif %}
<h2>Lengths and bias</h2>
<p><img alt="Lengths of prompts and responses, and what decides votes" src="data:image/png;base64,{{ picture }}"></p>
<p class="info">Bars are 95 % intervals (Wilson). An even chance is at one half.</p>
</body></html>
"""


def write_page(verdict: Verdict, output: Path) -> None:
    """Write the page, whole or not at all."""
    environment = Environment(autoescape=True)
    environment.filters["printable"] = printable
    page = environment.from_string(TEMPLATE).render(
        verdict=verdict.verdict,
        headline=verdict.headline(),
        summary=verdict.summary,
        findings=verdict.findings,
        picture=base64.b64encode(_picture(verdict)).decode(),
    )
    write_text(output, page)


def _picture(verdict: Verdict) -> bytes:
    """Lengths, and what decides votes: one panel for each that was measured."""
    with plain_matplotlib():
        from matplotlib.figure import Figure

        panels = [("lengths", "share of texts, by characters")]
        panels += [("The longer response wins", "by how many times as long")]
        people = _people(verdict.summary)
        panels += [(title, "by annotator") for title in people]
        drawn = Figure(figsize=(9.5, 2.8 * ((len(panels) + 1) // 2)), layout="constrained")
        axes = iter(drawn.subplots((len(panels) + 1) // 2, 2, squeeze=False).flat)
        _draw_lengths(next(axes), verdict.sizes)
        by_lead = verdict.summary["longer_wins_by_lead"]
        _draw_shares(next(axes), *panels[1], {lead: (each["wins"], each["votes"]) for lead, each in by_lead.items()})
        for title, shares in people.items():
            _draw_shares(next(axes), title, "by annotator", shares)
        for spare in axes:
            spare.set_axis_off()
        file = io.BytesIO()
        save_png(drawn, file, {"Title": "Check of comparisons"})
        return file.getvalue()


def _draw_lengths(ax: Axes, sizes: Any) -> None:
    """How long texts are; each step is twice as long as the one before."""
    label(ax, "Lengths", "characters")
    last = 1
    for colour, name in zip(COLOURS, ("prompt", "chosen", "rejected"), strict=False):
        counts = np.array(sizes[name], float)
        last = max(last, int(np.flatnonzero(counts).max(initial=0)))
        ax.step(np.arange(len(counts)), counts / max(1.0, counts.sum()), where="mid", color=colour, label=name)
    ax.set_xlim(-0.5, last + 1)
    ax.set_xticks(range(0, last + 2, 2), [f"{2**bits:,}" for bits in range(0, last + 2, 2)])
    ax.set_ylabel("share of texts")
    ax.legend(frameon=False)


def _draw_shares(ax: Axes, title: str, unit: str, shares: dict[str, tuple[int, int]]) -> None:
    """Shares with their intervals."""
    label(ax, title, unit)
    for number, (wins, votes) in enumerate(shares.values()):
        share, (low, high) = wins / votes, wilson_interval(wins, votes)
        spread = [[max(0.0, share - low)], [max(0.0, high - share)]]
        ax.errorbar(number, share, yerr=spread, fmt="o", color=COLOURS[0], capsize=2, markersize=4)
    ax.axhline(0.5, color=QUIET, linewidth=0.8, linestyle="--")
    names = [printable(name)[:16] for name in shares]
    ax.set_xticks(range(len(shares)), names, rotation=30 if len(shares) > 6 else 0, parse_math=False)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlim(-0.6, max(len(shares), 1) - 0.4)


def _people(summary: Any) -> dict[str, dict[str, tuple[int, int]]]:
    """What was measured of annotators: those with most votes."""
    most = sorted(summary["annotators"].items(), key=lambda item: -item[1]["votes"])[:MOST]
    titles = {"first_shown_wins": "The response shown first wins", "agrees_with_others": "Votes as the others do"}
    return dict(_measured(most, titles))


def _measured(most: list[tuple[str, Any]], titles: dict[str, str]) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    for key, title in titles.items():
        found = {name: (each[key]["wins"], each[key]["votes"]) for name, each in most if each[key]}
        if found:
            yield title, found
