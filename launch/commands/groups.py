"""`rlhf data groups`: who votes and on what, by groups of annotators or of prompts. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from data.groups import Group, Groups, Share, by_annotator, by_field, read_annotators, read_reference, report_of
from data.progress import counted
from data.quality.votes import votes_of_files
from data.records import BadRecord
from launch.commands.data import source_of
from launch.commands.options import check_bad, check_place
from launch.commands.run import DataDirectory
from rlhf.config import DataConfig
from rlhf.tracking.console import wide_console

SHOWN = 40  # groups


def groups(
    files: Annotated[list[str], typer.Argument(metavar="FILES…", help="Files, directories, or org/name@COMMIT.")],
    by: Annotated[str, typer.Option("--by", metavar="FIELD", help="Of the records, or annotator.")] = "kind",
    annotators: Annotated[
        str | None,
        typer.Option("--annotators", metavar="FILE", help="Records with annotator and FIELD: who is in which group."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="FILE", help='Shares there should be: {"group": 0.5, ...}.')
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="Default: told by the fields.")] = "auto",
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave bad records out, and count them.")] = False,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE", help="Draw the groups (.png).")] = None,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Say how votes are spread over groups of annotators or kinds of prompts, and how far groups agree.

    Of each group: its votes and their share, beside the share that there should be where --reference says it; pairs,
    prompts, annotators, ties; how often two of its votes on one pair are equal, and one of its own with one of another
    group; and on how many pairs its majority is opposed to that of all others. Groups of few votes are marked.

    Examples:

        rlhf data groups votes.jsonl --by kind

        rlhf data groups votes.jsonl --by language --annotators people.csv --reference census.json

        rlhf data groups votes/ --by annotator --picture groups.png --json
    """
    if picture is not None:
        check_place("--picture", picture, ".png")
    directory = data_directory
    people = None if annotators is None else read_annotators(annotators, by, directory)
    wanted = None if reference is None else read_reference(reference)
    source = source_of(files[0], form).model_copy(update={"bad_records": "drop"})
    bad: list[BadRecord] = []
    votes = votes_of_files(files, source, DataConfig(directory=directory))
    read = counted(votes.read(lambda _, record: bad.append(record)), "reading votes")
    grouped = by_field(read, by) if people is None else by_annotator(read, people)
    found = report_of(grouped, wanted, of_people=people is not None or by == "annotator")
    check_bad(bad, drop_bad)
    if picture is not None:
        from data.groups_picture import draw_groups

        draw_groups(found, picture)
    if as_json:
        typer.echo(json.dumps({"by": by, **found.as_json(), "bad": len(bad)}, indent=2))
        return
    console = wide_console()
    console.print(table_of(found, by))
    for line in said_of(found, len(bad)):
        console.print(Text(line), soft_wrap=True)
    if picture is not None:
        typer.echo(f"wrote {picture}")


COLUMNS = (
    *("votes", "share", "reference", "pairs", "prompts", "people", "ties"),
    *("alpha", "equal", "others", "opposed"),
)


def table_of(found: Groups, by: str) -> Table:
    """The groups, for people; without columns that nothing is known of."""
    shown = found.groups[:SHOWN]
    rows = [cells(group) for group in shown]
    known = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(by, min_width=min(24, max(len(group.name) for group in shown)), overflow="ellipsis")
    for i in known:
        table.add_column(COLUMNS[i], justify="right")
    table.add_column("")
    for group, row in zip(shown, rows, strict=True):
        table.add_row(Text(group.name[:40]), *(row[i] for i in known), group.remark)
    return table


def cells(group: Group) -> list[str]:
    """A group's figures for people, by COLUMNS."""
    low, high = group.share.interval
    return [
        f"{group.votes:,}",
        f"{group.share.share:.1%} ({low:.0%} to {high:.0%})",
        "" if group.reference is None else f"{group.reference:.1%}",
        f"{group.pairs:,}",
        f"{group.prompts:,}",
        f"{group.annotators:,}" if group.annotators else "",
        f"{group.ties.share:.1%}",
        "" if group.alpha is None else f"{group.alpha:.2f}",
        *(_of(share) for share in (group.within, group.between, group.contrary)),
    ]


def _of(share: Share | None) -> str:
    return "" if share is None else f"{share.share:.0%} of {share.of:,}"


def said_of(found: Groups, bad: int) -> list[str]:
    """What else people should know."""
    lines = [f"{len(found.groups) - SHOWN:,} more groups, all in --json"] * (len(found.groups) > SHOWN)
    lines += [f"no votes of {', '.join(found.absent)}, which the reference has"] * bool(found.absent)
    told = ((found.repeated, "votes left out: cast again by the same annotator"), (bad, "bad records left out"))
    return lines + [f"{count:,} {what}" for count, what in told if count]
