"""`rlhf label judge`: votes of a language model. Loads no torch."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from data.judging.asking import Outcome, Settings, ask_all
from data.judging.journal import SUFFIX, Answer, Journal
from data.judging.questions import FRAME_DIGEST, Question, both_orders
from data.judging.report import JUDGES, Bias, WithPeople, people_votes, position_bias, with_people
from data.judging.votes import Verdict, verdicts, vote_record
from data.labelling.ledger import write_lines
from data.labelling.order import ordered
from data.labelling.pairs import KIND, Pair
from data.records import shown
from launch.commands.judge_settings import settings_of
from launch.commands.run import DataDirectory
from rlhf.config import JudgeConfig
from rlhf.errors import ArtifactError, ConfigError, LabellingError
from rlhf.tracking.console import StageProgress, wide_console

STOPPED_SHORT = 3  # exit code: the budget is used up, and pairs are left
NAMED = 5  # answers that cannot be read, or questions that were refused, that a report names
DEFAULT = JudgeConfig()


def judge(
    sources: Annotated[list[str], typer.Argument(metavar="FILES…|RUN", help="Comparisons, responses, or a run.")],
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name at the endpoint.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="What its labelling.judge says stands where no option does.")
    ] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help=f"The endpoint. Default: {DEFAULT.url}.")] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where the votes go.")] = Path("judged.jsonl"),
    rubric: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What makes a response better, in your words.")
    ] = None,
    people: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="People's votes on such pairs, to compare with.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="At most so many pairs, by proportion of kinds.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order, and so of which pairs --count takes.")] = 0,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=256, help=f"Questions in flight at once. Default: {DEFAULT.concurrency}.")
    ] = None,
    requests_per_minute: Annotated[float | None, typer.Option(min=0.01, help="At most so many.")] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop before OUTPUT has cost more, prompts and answers together.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help=f"Of one answer; more for a model that thinks first. Default: {DEFAULT.max_tokens}."),
    ] = None,
    request: Annotated[
        str | None, typer.Option(metavar="JSON", help="Fields of each request besides; null takes one out.")
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0, help=f"Seconds for which a failing endpoint is asked again. Default: {DEFAULT.patience:g}."
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, help=f"Seconds that one answer may take. Default: {DEFAULT.timeout:g}.")
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Send the token in clear to another machine.")
    ] = False,
    stage: Annotated[
        str | None, typer.Option(help="Of a run: evaluate or ppo. Default: the last with samples.")
    ] = None,
    kind_field: Annotated[
        str, typer.Option("--stratify", metavar="FIELD", help="The field with a prompt's kind.")
    ] = KIND,
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave bad records out, and count them.")] = False,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Have a language model vote: any OpenAI-compatible chat endpoint, as the annotator judge:NAME.

    Every pair is asked in both orders. A response wins where it is preferred in both; where the order changed the
    answer the vote is a tie. How often that is, and with --people the agreement with people, comes with intervals.

    Each answer is kept in OUTPUT.answers as it comes. After an interruption, or with more files, give the command
    again: it asks what is missing. The token, if one is needed, is read from RLHF_JUDGE_TOKEN, or else
    OPENAI_API_KEY. Exit code 3: the budget is used up, and pairs are left.

    Examples:

        rlhf label judge demo --model Qwen/Qwen2.5-7B-Instruct

        rlhf label judge pairs.jsonl --model judge --output judged.jsonl --people labels/round-1/votes.jsonl

        rlhf label judge demo --recipe my.yaml    (its labelling.judge: whom to ask, and by which rubric)

        rlhf label judge pairs.jsonl --url https://api.openai.com/v1 --model gpt-4.1-mini --count 500
        --requests-per-minute 300 --budget-tokens 1000000 --rubric constitution.txt
    """
    from launch.commands.label import find_pairs  # which registers this command

    if output.suffix != ".jsonl":
        raise ConfigError(f"--output {output}: is read as comparisons by its name; give one that ends in .jsonl")
    given: dict[str, Any] = {
        "url": url,
        "model": model,
        "max_tokens": max_tokens,
        "request": request,
        "concurrency": concurrency,
    }
    given |= {"requests_per_minute": requests_per_minute, "budget_tokens": budget_tokens}
    given |= {"patience": patience, "timeout": timeout}
    settings = settings_of(recipe, given, rubric, data_directory, allow_http)
    name = JUDGES + settings.model
    votes = people_votes(people, data_directory, drop_bad) if people else None
    pairs = find_pairs(sources, stage, data_directory, kind_field, drop_bad)
    chosen = ordered(pairs.found.values(), (), seed, count, 0.0)
    questions = list(both_orders(chosen))
    journal = open_journal(output, settings)
    try:
        outcome = asked(questions, journal, settings, show=not as_json)
    except KeyboardInterrupt:
        kept = f"{len(journal.answers):,} answers are in {journal.path}"
        typer.echo(f"interrupted: {kept}, and the same command goes on", err=True)
        raise SystemExit(128 + signal.SIGINT) from None  # said; `rlhf` would say it again
    finally:  # also after Ctrl-C, and where the endpoint is gone: what is there can be used
        found = verdicts(chosen, journal.answers)
        if found:
            write_lines(output, (vote_record(verdict, name) for verdict in found))
        journal.close()
    unparsed = [answer for key, answer in answers_to(questions, journal) if answer.choice is None]
    record = summary(chosen, found, unparsed, outcome)
    record |= {"judge": name, "output": str(output), "answers": str(journal.path)}
    record |= {"tokens": journal.tokens, "identical": pairs.identical, "bad": len(pairs.bad)}
    bias = position_bias(found)
    beside = with_people(found, votes) if votes is not None else None
    record |= {"position": asdict(bias) if bias else None, "people": beside.record() if beside else None}
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        console = wide_console()
        for line in [*said_of(record), *said_of_bias(bias), *(said_of_people(beside) if votes is not None else [])]:
            console.print(Text(line), soft_wrap=True)
    if not found and not outcome.out_of_budget:
        raise LabellingError(no_vote(unparsed, outcome))
    if outcome.out_of_budget:
        raise typer.Exit(STOPPED_SHORT)


def asked(questions: Sequence[Question], journal: Journal, settings: Settings, show: bool) -> Outcome:
    """Ask what is missing, with a bar."""
    if journal.cut and show:
        typer.echo(f"{journal.path}: half a line at its end, of a command that was killed; it was cut off")
    done = len(answers_to(questions, journal))
    with StageProgress("judge", len(questions), enabled=show, done=done) as bar:

        def progress() -> None:
            nonlocal done
            done += 1
            bar.update(done, {"tokens": float(journal.tokens)})

        return asyncio.run(ask_all(questions, journal, settings, progress))


def open_journal(output: Path, settings: Settings) -> Journal:
    """The journal of an output. Raises ArtifactError where the output is somebody else's, or of other questions."""
    path = output.with_name(output.name + SUFFIX)
    if output.exists() and not path.exists():
        raise ArtifactError(f"{output}: was not written by this command ({path} is missing); give another --output")
    asks = {"max_tokens": settings.max_tokens, "request": dict(settings.extra), "frame": FRAME_DIGEST}
    return Journal.open(path, {"model": settings.model, "rubric": settings.rubric, **asks})


def answers_to(questions: Sequence[Question], journal: Journal) -> list[tuple[tuple[str, bool], Answer]]:
    """The answers that there are, of these questions."""
    keys = [question.key for question in questions]
    return [(key, journal.answers[key]) for key in keys if key in journal.answers]


def summary(pairs: Sequence[Pair], found: list[Verdict], unparsed: list[Answer], out: Outcome) -> dict[str, Any]:
    """The counts of a report."""
    ties = sum(verdict.prefers == "tie" for verdict in found)
    return {
        "pairs": len(pairs),
        "votes": len(found),
        "preferences": len(found) - ties,
        "ties": ties,
        "ties_by_order": sum(verdict.lean != 0 for verdict in found),
        "unparsed": len(unparsed),
        "unparsed_cut": sum(answer.finish == "length" for answer in unparsed),
        "unparsed_examples": [{"pair": each.pair, "said": each.said} for each in unparsed[:NAMED]],
        "refused": len(out.refused),
        "refused_examples": [{"pair": key[0], "why": why} for key, why in list(out.refused.items())[:NAMED]],
        "retries": out.retries,
        "out_of_budget": out.out_of_budget,
    }


def said_of(record: dict[str, Any]) -> list[str]:
    """The counts, for people."""
    ties = f"{record['ties']:,} ties, {record['ties_by_order']:,} of them because the order changed the answer"
    lines = [f"{record['judge']}: {record['votes']:,} of {record['pairs']:,} pairs judged; {ties}"]
    lines.append(f"{record['tokens']:,} tokens by the endpoint's count; {record['retries']:,} requests sent again")
    if record["out_of_budget"]:
        lines.append("--budget-tokens is used up: raise it, and the same command goes on")
    if record["unparsed"]:
        lines.append(f"{record['unparsed']:,} answers are not exactly A, B or tie and do not count{hint(record)}:")
        lines += [f"  {each['pair']}: {told(each['said'])}" for each in record["unparsed_examples"]]
    if record["refused"]:
        lines.append(f"{record['refused']:,} questions were refused; the same command asks them again:")
        lines += [f"  {each['pair']}: {each['why']}" for each in record["refused_examples"]]
    return [*lines, f"votes: {record['output']}" if record["votes"] else "no votes"]


def hint(record: dict[str, Any]) -> str:
    """What may help where answers were cut."""
    cut: int = record["unparsed_cut"]
    return f" ({cut:,} were cut off: a model that thinks first needs a larger --max-tokens)" if cut else ""


def told(said: str | None) -> str:
    """An answer in a short line."""
    return "no text" if said is None else shown(said, 80)


def no_vote(unparsed: Sequence[Answer], outcome: Outcome) -> str:
    """Why there is no vote at all."""
    if unparsed:
        cut = any(answer.finish == "length" for answer in unparsed)
        remedy = "give a larger --max-tokens or another model" if cut else "give another model"
        return f"no pair has two answers that are A, B or tie (one was {told(unparsed[0].said)}); {remedy}"
    return f"no vote: {next(iter(outcome.refused.values()), 'nothing was asked')}"


def said_of_bias(bias: Bias | None) -> list[str]:
    """What the order does, for people."""
    if bias is None:
        return []
    moved = f"{bias.to_first:,} moved to the response shown first, {bias.to_second:,} to the second"
    return [
        f"same answer in both orders: {bias.consistency:.3f} of pairs{interval(bias.consistency_ci)}; {moved}",
        f"position bias: {bias.bias:+.3f}{interval(bias.bias_ci)}; 0: none, 1: always the first; not in the votes",
    ]


def said_of_people(beside: WithPeople | None) -> list[str]:
    """Agreement with people, for people."""
    if beside is None:
        return ["people: no pair of these has votes of people that decide it"]
    alpha = "not defined" if beside.alpha is None else f"{beside.alpha:.3f}{interval(beside.alpha_ci)}"
    among = "" if beside.people_alpha is None else f"; of people among themselves {beside.people_alpha:.3f}"
    undecided = f"; {beside.undecided:,} more where people are undecided" if beside.undecided else ""
    same = f"same as people: {beside.share:.3f} of {beside.pairs:,} pairs{interval(beside.share_ci)}{undecided}"
    lines = [same, f"Krippendorff's alpha with people: {alpha}{among}"]
    if beside.decided_share is not None:
        without = f"{beside.decided_share:.3f} of {beside.decided:,} pairs{interval(beside.decided_ci)}"
        lines.insert(1, f"same where neither says tie: {without}")
    return lines


def interval(bounds: tuple[float, float] | None) -> str:
    """An interval behind its figure."""
    if bounds is None or any(math.isnan(bound) for bound in bounds):
        return ""
    return f" (95 %: {bounds[0]:.3f} to {bounds[1]:.3f})"
