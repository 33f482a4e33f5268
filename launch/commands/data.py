"""`rlhf data`: look at files of examples before training on them. Loads no torch."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.inspection import Inspection, inspect_source
from data.records import printable
from launch.commands.run import DataDirectory
from rlhf.config import FormatName, SourceConfig
from rlhf.errors import DataError

app = typer.Typer(name="data", help="Look at files of examples.", no_args_is_help=True)


@app.command()
def show(
    files: Annotated[list[str], typer.Argument(metavar="FILES…", help="Files, directories, or org/name@COMMIT.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 2 if any record is bad.")] = False,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="Default: told by the fields.")] = "auto",
    records: Annotated[int, typer.Option("--records", min=0, help="How many of the first records to show.")] = 3,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """Say what files hold: format, counts, lengths, annotators, bad records by place, the first records.

    Examples:

        rlhf data show votes.jsonl demonstrations.parquet

        rlhf data show votes/ --strict --records 0

        rlhf data show transcripts.csv --format hh --json
    """
    console = Console()
    found: list[Inspection] = []
    problems: list[str] = []
    for name in files:
        try:
            inspection = inspect_source(source_of(name, form), records, data_directory)
        except DataError as error:
            problems += error.problems
            continue
        if strict:
            problems += inspection.problems
        found.append(inspection)
        if not as_json:
            print_inspection(inspection, console)
    if as_json:
        typer.echo(json.dumps([inspection.as_json() for inspection in found], indent=2))
    if problems:
        raise DataError(*problems)


def source_of(name: str, form: str) -> SourceConfig:
    """A file as a recipe would name it; DataError for a format that there is not."""
    known = FormatName.__args__  # type: ignore[attr-defined]
    if form not in known:
        raise DataError(f"--format {form}: not a known format; choose from {', '.join(known)}")
    return SourceConfig.model_construct(path=name, format=form)


def print_inspection(inspection: Inspection, console: Console) -> None:
    """A file's account, for people."""
    console.print(Text(printable(inspection.path), style="bold"), soft_wrap=True)
    facts = Table.grid(padding=(0, 2))
    for name, value in inspection.facts():
        facts.add_row(Text(name), Text(value))
    console.print(facts)
    if inspection.lengths:
        lengths = Table("length of", "", box=None, padding=(0, 2, 0, 0))
        for figure in ("median", "95 %", "max"):
            lengths.add_column(figure, justify="right")
        for text, by_unit in inspection.lengths.items():
            for unit, figures in by_unit.items():
                lengths.add_row(text, unit, *(f"{value:,}" for value in figures.values()))
        console.print(lengths)
    for problem in inspection.problems:
        console.print(Text(f"bad: {problem}"), soft_wrap=True)
    for number, record in enumerate(inspection.first, start=1):
        console.print(Text(f"{number}. {record.place}"), soft_wrap=True)
        for field, value in record.fields.items():
            console.print(Text(f"   {field}: {value}"), soft_wrap=True)
    console.print()
