"""`rlhf data consensus`: many people's votes on the same pairs become soft labels. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from data.annotators.consensus import METHODS, Consensus, consensus, records, write_consensus
from data.annotators.reliability import MEANING, Reliability
from data.annotators.tables import tabulate
from data.progress import counted
from data.quality.votes import Votes, votes_of_files
from data.records import BadRecord, printable
from launch.commands.data import source_of
from launch.commands.options import check_bad, check_place
from launch.commands.run import DataDirectory
from rlhf.config import DataConfig
from rlhf.errors import ConfigError, DataError
from rlhf.tracking.console import wide_console

SHOWN = 40  # annotators


def consensus_command(
    files: Annotated[list[str], typer.Argument(metavar="FILES…", help="Files, directories, or org/name@COMMIT.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="A record for each pair (.jsonl).")],
    method: Annotated[
        str, typer.Option("--method", metavar="METHOD", help=f"One of {', '.join(METHODS)}.")
    ] = "dawid-skene",
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="Default: told by the fields.")] = "auto",
    prompt: Annotated[str | None, typer.Option("--prompt", help="What rated texts without a prompt answer.")] = None,
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave bad records out, and count them.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw the annotators (.png).")
    ] = None,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Put the votes on each pair together: a soft label, a weight, and how far each annotator can be relied on.

    majority counts votes. dawid-skene learns what each annotator says when the first is better, the second, or neither;
    one-coin a single figure of each. bradley-terry fits scores of responses and reliabilities together, so that votes
    on other pairs of a response count too. All but majority give who votes at random little weight, and turn round who
    votes against the others.

    Examples:

        rlhf data consensus votes.jsonl --output consensus.jsonl

        rlhf data consensus labels/round-1/votes.jsonl votes/ --method bradley-terry --output both.jsonl

        rlhf data consensus votes.jsonl --output consensus.jsonl --picture annotators.png --json
    """
    if method not in METHODS:
        raise ConfigError(f"--method={method}: not known; choose from {', '.join(METHODS)}")
    for name, path, suffix in (("output", output, ".jsonl"), ("picture", picture, ".png")):
        if path is not None:
            check_place(f"--{name}", path, suffix)
    source = source_of(files[0], form).model_copy(update={"bad_records": "drop", "prompt": prompt})
    votes = votes_of_files(files, source, DataConfig(directory=data_directory))
    if any(file.path.resolve() == output.resolve() for file in votes.files()):
        raise ConfigError(f"--output={output}: would replace a file that is read; give another name")
    found, bad = put_together(votes, method, drop_bad)
    write_consensus(output, records(found, (vote.comparison for vote in counted(votes.read(), "writing"))))
    if picture is not None:
        from data.annotators.picture import draw_annotators

        draw_annotators(found.annotators, picture)
    figures = {**found.figures(), "bad": bad, "output": str(output)}
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    console = wide_console()
    console.print(table_of(found))
    for line in said_of(found, figures):
        console.print(Text(line), soft_wrap=True)


def put_together(votes: Votes, method: str, drop_bad: bool) -> tuple[Consensus, int]:
    """The consensus, and how many bad records were left out. Raises DataError for them unless they may be dropped."""
    bad: list[BadRecord] = []
    read = votes.read(lambda _, record: bad.append(record))
    table = tabulate(vote.comparison for vote in counted(read, "reading votes"))
    check_bad(bad, drop_bad)
    if not table.pairs:
        raise DataError("no votes; give files that hold some")
    return consensus(table, method), len(bad)


def table_of(found: Consensus) -> Table:
    """The annotators, for people: those who deserve a look first."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("annotator")
    for column in ("votes", "ties", "compared", "agree", "right", "95 %", "worth"):
        table.add_column(column, justify="right")
    table.add_column("")
    order = sorted(found.annotators, key=lambda one: (one.finding == "reliable", one.reliability))
    for one in order[:SHOWN]:
        low, high = one.interval
        agree = "" if one.agreement is None else f"{one.agreement:.0%}"
        interval, worth = f"{low:.2f} to {high:.2f}", 1.0 if found.method == "majority" else one.worth
        counts = f"{one.votes:,}", f"{one.ties:,}", f"{one.compared:,}"
        row = *counts, agree, f"{one.reliability:.2f}", interval, f"{worth:.2f}", remark(one, found.method)
        table.add_row(Text(printable(one.name)[:40]), *row)
    return table


def remark(one: Reliability, method: str) -> str:
    """What people should know of an annotator."""
    if one.finding == "against":
        return MEANING["against"] + (", counted as it is" if method == "majority" else ": turned round")
    return MEANING[one.finding]


def said_of(found: Consensus, figures: dict[str, Any]) -> list[str]:
    """What has come of it, for people."""
    lines = [f"{len(found.annotators) - SHOWN:,} more annotators, all in --json"] * (len(found.annotators) > SHOWN)
    if found.agreement is not None:
        alpha, interval = found.agreement.alpha, found.agreement.alpha_ci
        told = (
            "" if alpha is None or interval is None else f", alpha {alpha:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"
        )
        lines.append(f"{found.agreement.share:.1%} of votes on {found.agreement.units:,} shared pairs are equal{told}")
    else:
        lines.append("no pair has two votes: nothing tells who is right, and every vote counts alike")
    for name, what in (
        ("repeated", "votes left out: cast again by the same annotator"),
        ("bad", "bad records left out"),
    ):
        if figures[name]:
            lines.append(f"{figures[name]:,} {what}")
    by_majority = "" if found.method == "majority" else f", {figures['overruled']:,} against the majority"
    return [*lines, f"wrote {figures['output']}: {figures['pairs']:,} pairs, {figures['even']:,} even{by_majority}"]
