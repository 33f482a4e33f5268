"""`rlhf label push` and `pull`: pairs to people, votes from them. Loads no torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from data.labelling.annotations import CLASSES
from data.labelling.client import PATIENCE_SECONDS
from data.labelling.ledger import Ledger, directory_of
from data.labelling.order import ordered
from data.labelling.page import check_dimensions
from data.labelling.pairs import KIND, Pair, Pairs, read_gold, read_pairs
from data.labelling.pulling import Pulled, Puller, server_of
from data.labelling.pushing import BATCH, Settings, find_project, push
from data.labelling.sampled import pairs_of_run
from data.labelling.server import URL, connect
from launch.commands.generation import is_run
from launch.commands.judge import judge
from launch.commands.label_report import report
from launch.commands.label_sample import sample
from launch.commands.label_up import up
from launch.commands.label_watch import watch
from launch.commands.run import DataDirectory
from launch.commands.select import select_command
from rlhf.errors import ConfigError, DataError
from rlhf.tracking.console import StageProgress, wide_console
from stages.targets import RUNS

app = typer.Typer(name="label", help="Preferences from people, by Label Studio.", no_args_is_help=True)

LOCAL = "http://127.0.0.1:8080"
TitleOption = Annotated[str, typer.Option("--project", metavar="TITLE", help="The project's title on the server.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help=f"The server. Default: ${URL}, else {LOCAL}.")
]
MovedOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help=f"The server. Default: ${URL}, else that pushed to.")
]
DirectoryOption = Annotated[
    Path | None, typer.Option("--directory", metavar="DIR", help="Where its files are. Default: labels/TITLE.")
]
PatienceOption = Annotated[
    float, typer.Option("--patience", min=0, help="Seconds for which a server that is away is asked again.")
]
app.command()(up)
app.command()(watch)
app.command()(report)
app.command()(sample)
app.command("select")(select_command)
app.command()(judge)
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]
MEANING = {
    "valid": "one response is better",
    "tie": "neither is",
    "skipped": "the annotator passed",
    "malformed": "no answer of the page",
    "duplicate": "the annotator has said something newer",
    "edited": "written over by somebody else",
    "deleted": "pulled once, gone from the server",
}


@app.command("push")
def push_command(
    sources: Annotated[list[str], typer.Argument(metavar="FILES…|RUN", help="Comparisons, responses, or a run.")],
    title: TitleOption,
    url: UrlOption = None,
    overlap: Annotated[int | None, typer.Option(min=1, help="Annotators for each pair. Default: 1.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="At most so many pairs, by proportion of kinds.")] = None,
    gold: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Comparisons whose answers are known.")] = None,
    gold_share: Annotated[float, typer.Option(min=0, max=0.5, help="Share of gold pairs among all.")] = 0.1,
    rate: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Rate by this too, such as honesty.")] = None,
    instructions: Annotated[Path | None, typer.Option(metavar="FILE", help="A text to read before labelling.")] = None,
    kind_field: Annotated[
        str, typer.Option("--stratify", metavar="FIELD", help="The field with a prompt's kind.")
    ] = KIND,
    stage: Annotated[
        str | None, typer.Option(help="Of a run: evaluate or ppo. Default: the last with samples.")
    ] = None,
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave bad records out, and count them.")] = False,
    batch: Annotated[int, typer.Option(min=1, max=1000, help="Tasks in one request.")] = BATCH,
    seed: Annotated[int, typer.Option(help="Of the order, and of which response is A.")] = 0,
    directory: DirectoryOption = None,
    data_directory: DataDirectory = None,
    patience: PatienceOption = PATIENCE_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Put pairs of responses to people: tasks of a Label Studio project, which is made if there is none.

    People see a prompt and two responses, A and B, and answer A, B or tie. Which response is A is drawn for each pair;
    that, and which pairs are gold, stands on this side alone, in DIR/ledger.jsonl. A pair is pushed once, whatever file
    it stands in: the command may be given again, with more files, and after an interruption. The prompts of a RUN's
    samples are held out: votes on them measure a reward model, those on what rlhf label sample writes train one. The
    token is read from LABEL_STUDIO_API_KEY.

    Examples:

        rlhf label push demo --project "demo, round 1"

        rlhf label push responses.jsonl --project helpful --overlap 3 --gold gold.jsonl --gold-share 0.1

        rlhf label push votes/ --project again --count 500 --stratify category --rate helpfulness --rate harmlessness
    """
    pairs = find_pairs(sources, stage, data_directory, kind_field, drop_bad)
    gold_pairs = read_gold(gold, data_directory, kind_field) if gold else Pairs()
    chosen = ordered(pairs.found.values(), gold_pairs.found.values(), seed, count, gold_share if gold else 0.0)
    settings = Settings(title, overlap, check_dimensions(rate or []), read_instructions(instructions), seed)
    with connect(address_of(url), patience) as server:
        server.user()
        ledger = Ledger(directory_of(title, directory))
        with ledger.held():
            ledger = Ledger.open(ledger.directory)
            project = find_project(server, ledger, settings)
            entries = ledger.add(chosen, project.seed)
            with StageProgress("push", len(entries), enabled=not as_json) as bar:
                pushed = push(server, ledger, project, entries, batch, lambda done, _: bar.update(done, {}))
    record = {
        "project": project.id,
        "url": f"{project.url}/projects/{project.id}/data",
        "directory": str(ledger.directory),
        "pushed": pushed.pushed,
        "there": pushed.there,
        "gold": sum(entry.pair.answer is not None for entry in entries),
        "removed": pushed.removed,
        "turned": pushed.turned,
        "repeated": pairs.repeated,
        "identical": pairs.identical,
        "bad": len(pairs.bad),
    }
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for line in said_of_push(record, gold_pairs.found, chosen):
        typer.echo(line)
    if len(sources) == 1 and is_run(sources[0]):
        typer.echo(
            f"votes on these prompts, which are held out, measure a reward model of {sources[0]} and train none; "
            f"to train one: rlhf label sample {sources[0]}"
        )


@app.command("pull")
def pull_command(
    title: TitleOption,
    url: MovedOption = None,
    directory: DirectoryOption = None,
    again: Annotated[bool, typer.Option("--all", help="Fetch every annotation again, whatever has changed.")] = False,
    patience: PatienceOption = PATIENCE_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Fetch what people have said, and write the votes: DIR/votes.jsonl, which a recipe reads as comparisons.

    Every annotation is in one class: valid, tie, skipped, malformed, duplicate, edited (by somebody else), deleted.
    What gives no vote stands in DIR/rejects.jsonl with the reason. Only what has changed since the last pull is
    fetched. Votes on gold pairs are in DIR/calibration.jsonl.

    Examples:

        rlhf label pull --project "demo, round 1"

        rlhf label pull --project helpful --json
    """
    ledger = Ledger(directory_of(title, directory))
    server = server_of(ledger, url, patience)
    with server, ledger.held(), StageProgress("pull", 0, enabled=not as_json) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.bar.update(bar.task, total=total)
            bar.update(done, {})

        pulled = Puller(server, ledger).pull(again=again, progress=progress)
    where = {"directory": str(ledger.directory)}
    if as_json:
        typer.echo(
            json.dumps({**where, "changed": pulled.changed, "doubled": pulled.doubled, **pulled.counts}, indent=2)
        )
        return
    console = wide_console()
    console.print(table_of(pulled))
    console.print(Text(said_of_pull(pulled, ledger.directory)), soft_wrap=True)
    if pulled.doubled:
        told = f"{pulled.doubled:,} pairs stand in several tasks; a push removes those that nobody has annotated"
        console.print(Text(told), soft_wrap=True)


def find_pairs(
    sources: list[str], stage: str | None, data_directory: str | None, kind_field: str, drop_bad: bool
) -> Pairs:
    """What is to be labelled: samples of a run, or files."""
    if len(sources) == 1 and is_run(sources[0]):
        if stage not in (None, "evaluate", "ppo"):
            raise ConfigError(f"--stage {stage}: its samples are no pairs; use evaluate or ppo")
        path = Path(sources[0])
        return pairs_of_run(path if (path / "recipe.yaml").is_file() else RUNS / path, stage)
    if stage is not None:
        raise ConfigError(f"--stage {stage}: is for a run, and {sources[0]} is none; leave it out")
    return read_pairs(sources, data_directory, kind_field, drop_bad)


def address_of(url: str | None) -> str:
    """The server's address."""
    return url or os.environ.get(URL) or LOCAL


def read_instructions(path: Path | None) -> str:
    """A text for people. Raises DataError where there is none."""
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--instructions {path}: cannot be read ({error}); give a text in UTF-8") from error


def said_of_push(record: dict[str, Any], gold: dict[str, Pair], chosen: list[Pair]) -> list[str]:
    """What has come of a push, for people."""
    with_gold = f", {record['gold']:,} of {len(gold):,} gold pairs among them" if gold else ""
    lines = [f"{record['pushed']:,} pairs pushed, {record['there']:,} were there{with_gold}"]
    left_out = {"repeated": "on a pair that stands there already", "identical": "of two equal responses"}
    lines += [f"{record[name]:,} records left out: {why}" for name, why in left_out.items() if record[name]]
    if record["bad"]:
        lines.append(f"{record['bad']:,} bad records left out")
    if record["removed"]:
        lines.append(f"{record['removed']:,} tasks that had come twice removed")
    if record["turned"]:
        lines.append(f"{record['turned']:,} pairs stand there the other way round, which was taken over")
    kinds = sorted({pair.kind for pair in chosen if pair.kind})
    if kinds:
        lines.append(f"kinds of prompts: {', '.join(kinds[:12])}" + (", ..." if len(kinds) > 12 else ""))
    return [*lines, f"to label: {record['url']}?labeling=1", f"files: {record['directory']}"]


def table_of(pulled: Pulled) -> Table:
    """How many annotations there are of each class."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("annotations")
    table.add_column("", justify="right")
    table.add_column("")
    for kind in CLASSES:
        table.add_row(kind, f"{pulled.counts[kind]:,}", MEANING[kind])
    return table


def said_of_pull(pulled: Pulled, directory: Path) -> str:
    """What a pull has found, in a line."""
    counts = pulled.counts
    gold = f" and {counts['votes_on_gold']:,} on gold pairs" if counts["votes_on_gold"] else ""
    labelled = f"{counts['pairs_with_votes']:,} of {counts['pairs']:,} pairs have one or more"
    rejects = len(pulled.account.rejects)
    why = f"; why {rejects:,} annotations give none: {directory / 'rejects.jsonl'}" if rejects else ""
    return f"{counts['votes']:,} votes{gold} in {directory}; {labelled}{why}"
