"""`rlhf chat`: talk to a model. Loads no torch: `stages.chat` takes this process's place."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from launch.local import stage_environment
from stages.targets import find_target


def chat(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Whom to talk to.")],
    against: Annotated[str | None, typer.Option(metavar="RUN|MODEL", help="Another one, asked the same.")] = None,
    stage: Annotated[str | None, typer.Option(help="Of RUN: sft or ppo. Default: the last that is complete.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0: the most probable token. Default: the recipe's.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer. Default: the recipe's, of a MODEL 256.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws; the same for both models.")] = 0,
    system: Annotated[str | None, typer.Option(help="A system turn before the conversation.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Answer this and end; may be repeated.")
    ] = None,
    conversation: Annotated[
        bool, typer.Option("--conversation", help="The prompts are the turns of one conversation.")
    ] = False,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="Leave the reward alone.")] = False,
    reward: Annotated[
        bool, typer.Option("--reward", help="Ask the function or the server that the run names as its reward.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model, whatever its run says.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each prompt, for programs.")] = False,
) -> None:
    """Talk to a model in the terminal, side by side with another, each answer with its score.

    RUN is a run's directory or its name under runs/: its aligned policy, or what is complete of it. RUN/sft is a stage,
    RUN:best the policy with the best held-out score. MODEL is a directory or org/name@COMMIT. The score is that of the
    run's reward, as PPO saw it, where that is a model (else with --reward); KL is the log-probability of the answer
    less that under the other model.

    Without a terminal, each line of standard input is a prompt of its own.

    Examples:

        rlhf chat demo

        rlhf chat demo --against demo/sft

        rlhf chat ./Qwen2.5-0.5B-Instruct --temperature 0.7 --system "Be brief."

        rlhf chat demo --against demo/sft --prompt "What is the capital of Tarn?" --json
    """
    find_target(target, stage)  # wrong names are said at once, not after seconds of loading libraries
    if against is not None:
        find_target(against)
    command = [sys.executable, "-m", "stages.chat", target, f"--seed={seed}"]
    given = {
        "against": against,
        "stage": stage,
        "temperature": temperature,
        "max-new-tokens": max_new_tokens,
        "system": system,
    }
    command += [f"--{name}={value}" for name, value in given.items() if value is not None]
    command += [f"--prompt={text}" for text in prompt or ()]
    flags = {
        "conversation": conversation,
        "no-scores": no_scores,
        "reward": reward,
        "trust-remote-code": trust_remote_code,
        "json": as_json,
    }
    command += [f"--{name}" for name, wanted in flags.items() if wanted]
    sys.stdout.flush()
    os.execve(sys.executable, command, stage_environment(1))
