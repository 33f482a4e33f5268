"""`rlhf data drift`: whether votes change from batch to batch, in what, and which batch it was. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.drift.batches import by_field, by_time, of_files, read_batches, seconds_of
from data.drift.report import MEANING, Batch, Change, Drift, Figure, Options, drift_of
from data.drift.table import BatchedVotes, gather, in_order
from data.progress import counted
from data.records import BadRecord
from launch.commands.data import source_of
from launch.commands.options import check_bad, check_place
from launch.commands.run import DataDirectory
from rlhf.config import DataConfig
from rlhf.errors import ConfigError, DataError
from rlhf.tracking.console import wide_console

DRIFTED = 3


def drift(
    files: Annotated[list[str], typer.Argument(metavar="FILES…", help="A batch each, in order of time.")],
    batch_field: Annotated[
        str | None,
        typer.Option(
            "--batch-field",
            metavar="FIELD",
            help="Batches by a field of the records instead, in order of their first votes' times, or else of names.",
        ),
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", metavar="TIME", help="Batches of so much time instead: 12h, 7d, 2w.")
    ] = None,
    against: Annotated[
        str, typer.Option("--against", help="What a batch is compared with: the batches before, or all others.")
    ] = "before",
    level: Annotated[float, typer.Option("--level", help="Chance of a false alarm, over the whole report.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of permutations.")] = 0,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="Default: told by the fields.")] = "auto",
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave bad records out, and count them.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw what was measured over batches (.png).")
    ] = None,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Test whether votes change from one batch to the next, and say which batch has changed, in what.

    Looked at are what people prefer (whether a model of the other batches predicts their votes), how often they tie,
    take the first or the longer response, how long they take, and what they say of pairs that were voted on before.
    The exit code is 0 where nothing has changed more than by chance, 3 where something has.

    Examples:

        rlhf data drift january.jsonl february.jsonl march.jsonl

        rlhf data drift votes.jsonl --every 7d --picture drift.png

        rlhf data drift votes.jsonl --batch-field batch --against others --json
    """
    if against not in ("before", "others"):
        raise ConfigError(f"--against={against}: not known; choose before or others")
    if not 0 < level < 1:
        raise ConfigError(f"--level={level:g}: is no probability; give one between 0 and 1, such as 0.05")
    if batch_field and every:
        raise ConfigError("--batch-field and --every cannot both say what a batch is; give one of them")
    if picture is not None:
        check_place("--picture", picture, ".png")
    seconds = None if every is None else seconds_of(every)
    bad: list[BadRecord] = []
    votes = _read(files, form, data_directory, (batch_field, seconds), bad)
    check_bad(bad, drop_bad)
    if len(votes.names) < 2:
        raise DataError(
            f"one batch ({votes.names[0]}): nothing to compare; give more files, or say --batch-field or --every"
        )
    found = drift_of(votes, Options(against, level, seed))  # type: ignore[arg-type]
    if picture is not None:
        from data.drift.picture import draw_drift

        draw_drift(found, picture)
    if as_json:
        typer.echo(json.dumps({**found.as_json(), "bad": len(bad)}, indent=2))
    else:
        _show(found, len(bad), wide_console())
        if picture is not None:
            typer.echo(f"wrote {picture}")
    if found.drifted:
        raise typer.Exit(DRIFTED)


def _read(
    files: list[str], form: str, directory: str | None, split: tuple[str | None, float | None], bad: list[BadRecord]
) -> BatchedVotes:
    source = source_of(files[0], form).model_copy(update={"bad_records": "drop"})
    field, seconds = split
    batches = of_files(files, source, DataConfig(directory=directory))
    batched = counted(read_batches(batches, lambda _, record: bad.append(record)), "reading votes")
    if field is not None:
        return in_order(gather(by_field(batched, field)))
    return gather(batched if seconds is None else by_time(batched, seconds))


def _show(found: Drift, bad: int, console: Console) -> None:
    """For people: batches, what was measured of each, and what has changed."""
    console.print(table_of(found))
    for count, what in (
        (found.repeated, "votes left out: cast again by the same annotator in the same batch"),
        (bad, "bad records left out"),
    ):
        if count:
            console.print(Text(f"{count:,} {what}"))
    for batch, change in found.drifted:
        console.print(Text(said(batch, change, found.options.against), style="bold red"), soft_wrap=True)
    if not found.drifted:
        console.print(Text(f"no drift: {found.tests} tests, none below {found.options.level:g} (Holm)"))


def table_of(found: Drift) -> Table:
    """What was measured of each batch beside what it is compared with."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("batch", "votes", "measured"):
        table.add_column(column, justify="right" if column == "votes" else "left", no_wrap=True)
    for column in (found.options.against, "here", "p", "p, Holm"):
        table.add_column(column, justify="right", no_wrap=True)
    for batch in found.batches:
        for number, change in enumerate(batch.changes):
            head = (batch.name[:24], f"{batch.votes:,}") if number == 0 else ("", "")
            ps = ("" if p is None else f"{p:.4f}" for p in (change.p, change.adjusted))
            figures = ("" if each is None else told(change.measure, each) for each in (change.before, change.after))
            style = "bold red" if change.drifted else None
            table.add_row(*map(Text, head), Text(change.measure), *map(Text, (*figures, *ps)), style=style)
    return table


def told(measure: str, figure: Figure) -> str:
    """A figure with its interval."""
    low, high = figure.interval
    if measure == "seconds":
        return f"{figure.value:.1f} ({low:.1f} to {high:.1f})"
    return f"{figure.value:.1%} ({low:.1%} to {high:.1%})"


def said(batch: Batch, change: Change, against: str) -> str:
    """What has changed, in a line."""
    assert change.before is not None and change.adjusted is not None  # it was tested
    line = (
        f"{batch.name}: {change.measure} ({MEANING[change.measure]}): {told(change.measure, change.before)} {against}, "
    )
    line += f"{told(change.measure, change.after)} here"
    if change.after.expected is not None:
        line += f", where {change.after.expected:.1%} was to be expected of these pairs"
    line += f"; p = {change.adjusted:.2g} by Holm"
    if change.same_annotators is not None:
        one, other = (
            f"{value:.1f}" if change.measure == "seconds" else f"{value:.1%}" for value in change.same_annotators
        )
        line += f"; of annotators who voted in both {one} and {other}"
    return line
