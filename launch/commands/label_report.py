"""`rlhf label report`: how labelling goes. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from data.labelling.ledger import Ledger, directory_of
from data.labelling.reporting import Report, report_of
from rlhf.store.artifact import write_text
from rlhf.tracking.console import wide_console

PAGE = "report.html"
COLUMNS = ("annotator", "votes", "seconds", "gold right", "agreement", "first shown", "ties", "skips", "rejected")


def report(
    title: Annotated[str, typer.Option("--project", metavar="TITLE", help="The project's title on the server.")],
    directory: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: labels/TITLE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Say how labelling goes, as of the last pull: progress, agreement, each annotator, and what needs attention.

    Agreement is Krippendorff's alpha with a bootstrap interval. Of each annotator: right answers on gold pairs,
    agreement with others, seconds, ties, skips, how often the response shown first wins, drift from the first half of
    the votes to the second. The page DIR/report.html has the same with pictures.

    Examples:

        rlhf label report --project "demo, round 1"

        rlhf label report --project helpful --json
    """
    from data.labelling.report_page import page_of

    ledger = Ledger.open(directory_of(title, directory))
    found, account = report_of(ledger)
    path = ledger.directory / PAGE
    write_text(path, page_of(found, account))
    if as_json:
        typer.echo(json.dumps({"page": str(path), **found.record()}, indent=2))
        return
    print_report(found, path)


def print_report(found: Report, path: Path) -> None:
    """The report, for people."""
    from data.labelling.report_page import cells

    console = wide_console()
    console.print(Text(found.title, style="bold"))
    classes = ", ".join(f"{count:,} {kind}" for kind, count in found.classes.items() if count)
    console.print(Text(f"annotations: {classes or 'none'}"), soft_wrap=True)
    console.print(f"pairs with votes: {found.pairs_with_votes:,} of {found.pairs:,}", highlight=False)
    if found.alpha is not None and found.alpha_interval is not None:
        low, high = found.alpha_interval
        alpha = f"{found.alpha:.2f}, 95 % interval {low:.2f} to {high:.2f}, on {found.same.of:,} pairs"
        console.print(f"Krippendorff's alpha: {alpha}", highlight=False)
    if found.annotators:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for number, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for habits in found.annotators:
            table.add_row(*(Text(cell) for cell in cells(habits)))
        console.print(table)
    console.print("needs attention:" if found.attention else "needs attention: nothing", highlight=False)
    for line in found.attention:
        console.print(Text(f"  {line}"), soft_wrap=True)
    console.print(Text(str(path)), soft_wrap=True)
