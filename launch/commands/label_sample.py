"""`rlhf label sample`: responses of a run's policy for people to compare. Loads no torch: `stages.responses` does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.commands.options import check_place
from launch.commands.run import DataDirectory
from launch.local import stage_environment
from stages.targets import find_target


def sample(
    target: Annotated[str, typer.Argument(metavar="RUN", help="Whose policy, and whose prompts.")],
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="How many prompts, at most.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The responses (.jsonl).")],
    responses: Annotated[int, typer.Option("--responses", min=2, max=16, help="To each prompt.")] = 2,
    held_out: Annotated[
        bool | None,
        typer.Option(
            "--held-out/--training", help="Only prompts whose votes measure, or only those whose votes train."
        ),
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Of RUN: sft or ppo. Default: the last that is complete.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Default: the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Of which prompts, and of the draws.")] = 0,
    reward: Annotated[
        bool, typer.Option("--reward", help="Ask the function or the server that the run names as its reward.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model, whatever its run says.")
    ] = False,
    data_directory: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Sample responses to a run's prompts, with its reward's scores, for people to compare.

    Comparisons are held out by their prompt: votes on prompts of the training part train the next reward model, those
    on the others measure it. Prompts of both parts are drawn as they come. What evaluations sample is all held out, so
    votes on it train nothing. RUN is as in rlhf chat; another round of labelling takes another --seed.

    Examples:

        rlhf label sample demo --prompts 500 --output responses.jsonl

        rlhf label sample demo --stage sft --prompts 500 --responses 4 --seed 2 --output responses.jsonl

        rlhf label sample demo --prompts 200 --held-out --output measure.jsonl
    """
    check_place("--output", output, ".jsonl")
    find_target(target, stage)  # wrong names are said at once, not after seconds of loading libraries
    given = {
        "output": output,
        "prompts": prompts,
        "responses": responses,
        "stage": stage,
        "temperature": temperature,
        "seed": seed,
        "data-directory": data_directory,
    }
    command = [sys.executable, "-m", "stages.responses", target]
    command += [f"--{name}={value}" for name, value in given.items() if value is not None]
    flags = {
        "held-out": held_out is True,
        "training": held_out is False,
        "reward": reward,
        "trust-remote-code": trust_remote_code,
        "json": as_json,
    }
    command += [f"--{name}" for name, wanted in flags.items() if wanted]
    sys.stdout.flush()
    os.execve(sys.executable, command, stage_environment(1))
