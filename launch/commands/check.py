"""`rlhf data check`: whether comparisons can be trusted, before a reward model learns from them.

Loads torch only where token lengths or a classifier are asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.quality.check import Checked, check_votes
from data.quality.cleaning import DROPPABLE, DROPPED, clean
from data.quality.flags import flagging_of
from data.quality.survey import Tokens
from data.quality.verdict import Verdict
from data.quality.votes import Votes, votes_of_files
from data.records import printable
from launch.commands.data import source_of
from launch.commands.run import DataDirectory, resolve
from rlhf.config import CheckConfig, ClassifierConfig, Recipe
from rlhf.errors import ConfigError
from rlhf.tracking.console import wide_console
from stages.token_lengths import tokens_of

FAILED = 3
COLOURS = {"pass": "green", "info": "default", "warn": "yellow", "fail": "red"}


def check(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILES…", help="Files, directories, or org/name@COMMIT.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Its comparisons (without FILES), limits, split and tokenizer.")
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="Default: told by the fields.")] = "auto",
    prompt: Annotated[str | None, typer.Option("--prompt", help="What rated texts without a prompt answer.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="A model's directory; default: the recipe's.")
    ] = None,
    words: Annotated[
        Path | None, typer.Option("--words", metavar="FILE", help="Flag responses with one of its words, one a line.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option("--classifier", metavar="DIR", help="Flag responses by a text classifier.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME", help="The classifier's label of offensive texts.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with pictures and examples.")] = None,
    cleaned: Annotated[Path | None, typer.Option("--clean", help="Write the votes that are sound (.jsonl).")] = None,
    drop: Annotated[
        str | None, typer.Option("--drop", metavar="KIND,…", help=f"What --clean leaves out: {', '.join(DROPPABLE)}.")
    ] = None,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Check comparisons: repeats, contradictions, leakage, bias, agreement, cut texts, left-over templates.

    The verdict is pass, warn or fail; the limits are the recipe's (data.check). The exit code is 0 for pass and warn,
    3 for fail, 2 where something cannot be read. The same check runs before every reward training.

    Examples:

        rlhf data check votes.jsonl

        rlhf data check train.jsonl test.jsonl --html check.html

        rlhf data check --recipe my.yaml --json

        rlhf data check votes.jsonl --words words.txt --classifier models/toxicity --label toxic

        rlhf data check votes/ --recipe my.yaml --clean clean.jsonl --drop duplicate,contradiction,leakage
    """
    kinds = _kinds(drop)
    _require_places(html, cleaned)
    settings = resolve(recipe, None, data_directory) if recipe else _bare(data_directory)
    votes = _votes(files or [], recipe, settings, form, prompt)
    config = _flagged_by(settings.data.check, words, classifier, label or [])
    if config.classifier:
        from stages.command import quiet_libraries

        quiet_libraries()
    flagging = flagging_of(config, settings.data.directory, models=True)
    tokens = tokens_of(settings, tokenizer) if recipe or tokenizer else None
    checked = check_votes(votes, config, tokens, flagging)
    if as_json:
        typer.echo(json.dumps(checked.verdict.as_json(), indent=2))
    else:
        show(checked.verdict, wide_console())
    _write(checked, votes, tokens, html, cleaned, kinds, as_json)
    if checked.verdict.verdict == "fail":
        raise typer.Exit(FAILED)


def _kinds(drop: str | None) -> tuple[str, ...]:
    kinds = DROPPED if drop is None else tuple(kind.strip() for kind in drop.split(",") if kind.strip())
    if unknown := [kind for kind in kinds if kind not in DROPPABLE]:
        raise ConfigError(f"--drop={unknown[0]}: not a kind that can be left out; choose from {', '.join(DROPPABLE)}")
    return kinds


def _flagged_by(config: CheckConfig, words: Path | None, classifier: Path | None, labels: list[str]) -> CheckConfig:
    """A recipe's check with what the command gives instead; paths of the command start where it is given."""
    if labels and not classifier:
        raise ConfigError(f"--label={labels[0]}: is of a classifier; give its directory with --classifier")
    changes: dict[str, Any] = {"words": str(words.absolute())} if words else {}
    if classifier:
        changes["classifier"] = ClassifierConfig(path=str(classifier.absolute()), labels=labels)
    return config.model_copy(update=changes)


def _require_places(*outputs: Path | None) -> None:
    """Raise ConfigError for what could not be written in the end, before anything is read."""
    for output in outputs:
        if output and output.is_dir():
            raise ConfigError(f"{output}: a directory; give the name of a file")
        if output and not output.parent.is_dir():
            raise ConfigError(f"{output}: no such directory {output.parent}; make it first")


def _bare(data_directory: str | None) -> Recipe:
    recipe = Recipe()
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"directory": data_directory})})


def _votes(files: list[str], recipe: str | None, settings: Recipe, form: str, prompt: str | None) -> Votes:
    if not files:
        if recipe is None:
            raise ConfigError("nothing to check; give FILES, or a recipe with --recipe")
        if form != "auto" or prompt:
            raise ConfigError("--format and --prompt are for FILES; a recipe says both beside path")
        if all(source.path == "on-policy" for source in settings.data.comparisons):
            raise ConfigError(f"--recipe={recipe}: its votes are made in the reward stage, which checks them")
        return Votes(settings.data, settings.seed)
    source = source_of(files[0], form).model_copy(update={"bad_records": "drop", "prompt": prompt})
    return votes_of_files(files, source, settings.data, settings.seed)


def show(verdict: Verdict, console: Console) -> None:
    """A verdict on one page, for people."""
    console.print(
        Text.assemble((verdict.verdict, f"bold {COLOURS[verdict.verdict]}"), verdict.headline()[len(verdict.verdict) :])
    )
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(verdict):
        facts.add_row(Text(name), Text(value))
    console.print(facts)
    if not verdict.findings:
        return
    table = Table("", "kind", box=None, padding=(0, 2, 0, 0))
    table.add_column("what", overflow="fold")
    table.add_column("first at", overflow="fold")
    for finding in verdict.findings:
        place = next((example["place"] for example in finding.examples if "place" in example), "")
        table.add_row(
            Text(finding.severity, style=COLOURS[finding.severity]),
            Text(finding.kind),
            Text(printable(f"{finding.message}; {finding.remedy}")),
            Text(printable(place)),
        )
    console.print(table)


def _facts(verdict: Verdict) -> list[tuple[str, str]]:
    summary = verdict.summary
    found = [
        (printable(source["path"]), f"{source['format'] or 'made here'}, {source['comparisons']:,} comparisons")
        for source in summary["sources"]
    ]
    found.append(("distinct", f"{summary['pairs']:,} pairs, {summary['prompts']:,} prompts"))
    found.append(("held out", f"{summary['held_out']:,} comparisons, by {summary['split']}"))
    for name, key in (("longer wins", "longer_wins"), ("first shown wins", "first_shown_wins")):
        if (share := summary[key]) and share["votes"]:
            low, high = share["share_ci"]
            found.append((name, f"{share['share']:.1%} of {share['votes']:,} ({low:.1%} to {high:.1%})"))
    if together := summary["agreement"]:
        alpha, interval = together["alpha"], together["alpha_ci"]
        told = f"alpha {alpha:.2f} ({interval[0]:.2f} to {interval[1]:.2f}), " if interval else ""
        found.append(
            ("agreement", f"{told}{together['share']:.1%} of votes on {together['units']:,} shared pairs equal")
        )
    if flagged := summary["offensive"]:
        found.append(("flagged", f"{flagged['chosen']:,} chosen, {flagged['rejected']:,} rejected"))
    if summary["longest_tokens"]:
        found.append(("longest", f"{summary['longest_tokens']:,} tokens"))
    return found


def _write(
    checked: Checked,
    votes: Votes,
    tokens: Tokens | None,
    html: Path | None,
    cleaned: Path | None,
    kinds: tuple[str, ...],
    quiet: bool,
) -> None:
    """The files that were asked for; what was written is said on standard error where standard output is JSON."""
    if html:
        from data.quality.page import write_page

        write_page(checked.verdict, html)
        typer.echo(f"wrote {html}", err=quiet)
    if cleaned:
        done = clean(votes, checked, cleaned, kinds, tokens)
        typer.echo(f"wrote {cleaned}: {done}; each one left out, and why: {done.report}", err=quiet)
