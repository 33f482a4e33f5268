"""`rlhf label select`: which pairs of responses people should label next. Loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from data.labelling.pairs import read_pairs
from data.locations import files_of
from data.reading import NAMED
from data.selection import BY, Pool, answers_of_files, answers_of_run, pool_of_files, pool_of_run, select
from launch.commands.generation import is_run
from launch.commands.options import check_place
from launch.commands.run import DataDirectory
from launch.local import stage_environment
from rlhf.errors import ConfigError, DataError
from rlhf.store.artifact import write_text
from stages.targets import RUNS


def select_command(
    sources: Annotated[list[str], typer.Argument(metavar="FILES…|RUN", help="Responses with scores, or a run.")],
    budget: Annotated[int, typer.Option("--budget", min=1, help="How many pairs.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The pairs, for label push (.jsonl).")],
    by: Annotated[str, typer.Option("--by", metavar="WAY", help=f"One of {', '.join(BY)}.")] = "margin",
    rewards: Annotated[
        list[str] | None,
        typer.Option("--rewards", metavar="RUN", help="Have the reward model of another run score the responses too."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="FILE", help="Votes on pairs that need no more.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of pairs that are equal otherwise.")] = 0,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Choose pairs of responses to label: where reward models are least sure or differ, at random, or of other prompts.

    Of a run the pairs are a prompt's held-out responses at different steps of PPO, with their scores. With --rewards,
    which may be repeated, the reward models of RUN and of those runs score them all, in text and in nats, and of files
    those of the runs alone, in place of the scores there. A file has
    records {"prompt": "...", "responses": [...], "scores": [...]}, and kind for the stratum of the prompt; scores are a
    figure for each response, or a list with one of each reward model. Each kind has its share of the budget. A run's
    held-out prompts train no reward model: for that, take what rlhf label sample writes.

    Examples:

        rlhf label select demo --budget 200 --output next.jsonl

        rlhf label select responses.jsonl --rewards one --rewards two --by disagreement --budget 200 --output next.jsonl

        rlhf label select responses.jsonl --budget 500 --by diverse --output next.jsonl

        rlhf label select responses.jsonl --budget 200 --without labels/round-1/votes.jsonl --output next.jsonl
    """
    if by not in BY:
        raise ConfigError(f"--by={by}: not known; choose from {', '.join(BY)}")
    check_place("--output", output, ".jsonl")
    read = [*([] if is_run(sources[0]) else sources), *(without or [])]
    if any(file.path.resolve() == output.resolve() for name in read for file in files_of(name, data_directory)):
        raise ConfigError(f"--output={output}: would replace a file that is read; give another name")
    pool = _scored(sources, rewards, data_directory) if rewards else _pool(sources, data_directory)
    if not pool.candidates:
        raise DataError(f"{', '.join(sources)}: no pair of two different responses; give more responses")
    if without:
        pool = _left(pool, without, data_directory)
    chosen = select(pool, budget, by, seed)
    write_text(output, "".join(json.dumps(one.record(), ensure_ascii=False) + "\n" for one in chosen))
    chances = [max(p, 1 - p) for one in chosen if (p := one.probability) is not None]
    differ = [each for one in chosen if (each := one.disagreement) is not None]
    figures = {
        "by": by,
        "pairs": len(pool.candidates),
        "alike": pool.alike,
        "labelled": pool.labelled,
        "chosen": len(chosen),
        "prompts": len({one.prompt for one in chosen}),
        "kinds": len({one.kind for one in chosen}),
        "mean_confidence": sum(chances) / len(chances) if chances else None,
        "mean_disagreement": sum(differ) / len(differ) if differ else None,
        "output": str(output),
    }
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
        return
    sure = f"; the reward model is {figures['mean_confidence']:.0%} sure of them on average" if chances else ""
    sure += f", and models differ by {figures['mean_disagreement']:.3f} nats" if differ else ""
    left_out = f", {pool.alike:,} of nearly equal responses left out" if pool.alike else ""
    left_out += f", {pool.labelled:,} that are labelled left out" if pool.labelled else ""
    typer.echo(f"{len(chosen):,} of {len(pool.candidates):,} pairs chosen by {by}{left_out}{sure}")
    typer.echo(f"wrote {output}: {figures['prompts']:,} prompts; to label: rlhf label push {output} --project TITLE")


def _left(pool: Pool, without: list[str], data_directory: str | None) -> Pool:
    labelled = read_pairs(without, data_directory, drop_bad=True)
    if labelled.bad:
        raise DataError(*(f"--without: {bad}; mend or remove it" for bad in labelled.bad[:NAMED]))
    left = pool.without(labelled.found)
    if not left.candidates:
        raise DataError(f"--without {', '.join(without)}: holds all {left.labelled:,} pairs; give more responses")
    return left


def _pool(sources: list[str], data_directory: str | None) -> Pool:
    if len(sources) == 1 and is_run(sources[0]):
        return pool_of_run(_run(sources[0]))
    return pool_of_files(sources, data_directory)


def _scored(sources: list[str], rewards: list[str], data_directory: str | None) -> Pool:
    """Pairs with a score of each reward model, a run's own first; `stages.opinions` loads them."""
    for name in rewards:
        if not is_run(name):
            raise ConfigError(f"--rewards={name}: no run; give runs, whose reward models score the responses")
    own = [_run(sources[0]).resolve()] if is_run(sources[0]) else []
    if own and len(sources) > 1:
        raise ConfigError(f"--rewards={rewards[0]}: scores the responses of one run, or of files; give one run")
    runs = [*own, *(_run(name).resolve() for name in rewards)]
    if len(set(runs)) < len(runs):
        raise ConfigError(f"--rewards={', '.join(rewards)}: a run is given twice; give others, each once")
    given = [str(own[0])] if own else sources
    where = [] if data_directory is None else ["--data-dir", data_directory]
    if own:
        answers_of_run(own[0])  # where there are none, no model is loaded
    else:
        answers_of_files(sources, data_directory)
    with tempfile.TemporaryDirectory(prefix="rlhf-opinions-") as folder:
        output = Path(folder) / "scored.jsonl"
        command = [sys.executable, "-m", "stages.opinions", *given, "--rewards", *map(str, runs), *where]
        # What its libraries say is not for whoever reads our JSON.
        done = subprocess.run([*command, "--output", str(output)], env=stage_environment(1), stdout=sys.__stderr__)
        if done.returncode:
            raise typer.Exit(done.returncode)  # which has said why
        return pool_of_files([str(output)])


def _run(name: str) -> Path:
    path = Path(name)
    return path if (path / "recipe.yaml").is_file() else RUNS / path
