"""`rlhf study`: experiments that say what may be expected of PPO. Loads no torch: what needs it runs as a child."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.commands.options import check_output, numbers
from launch.commands.overoptimization import overoptimization
from launch.local import stage_environment
from rlhf.errors import ConfigError
from stages.variants import EXACT, OTHERWISE

app = typer.Typer(name="study", help="Experiments that say what may be expected of PPO.", no_args_is_help=True)
app.command()(overoptimization)


@app.command()
def optimum(
    advantage: Annotated[str, typer.Option("--advantage", help="Estimators that should find it.")] = ",".join(EXACT),
    variants: Annotated[
        str, typer.Option("--variants", help=f"Settings that may settle elsewhere: all, or of {', '.join(OTHERWISE)}.")
    ] = "",
    beta: Annotated[str, typer.Option("--beta", help="Coefficients of the KL penalty, reward per nat.")] = "0.5",
    seeds: Annotated[str, typer.Option("--seeds", help="Of rewards, first weights and samples.")] = "1,2,3,4,5",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Of PPO. Default: the variant's own.")] = None,
    output: Annotated[Path, typer.Option("--output", help="Where results go.")] = Path("runs/studies/optimum"),
) -> None:
    """Run PPO in a world small enough to count, and compare its policy with the optimum that theory knows.

    The world has two prompts and 43 responses with random rewards, the policy is a tiny Llama, and the code is PPO's
    own. The optimum is pi_ref(y|x) exp(r(x,y) / beta) / Z(x). Says how far away each variant ends: total variation,
    and the share of the objective's possible gain that is missing. Writes OUTPUT/optimum.json and .png. Seeds that are
    complete are not run again, so the command can be ended and given again, also with more of anything.

    Examples:

        rlhf study optimum

        rlhf study optimum --beta 0.25,0.5,1

        rlhf study optimum --advantage rloo --variants rloo:k3,grpo:k3 --seeds 1,2,3 --output runs/studies/losses
    """
    names = chosen("--advantage", advantage, list(EXACT))
    names += list(OTHERWISE) if variants == "all" else chosen("--variants", variants, list(OTHERWISE))
    if not names:
        raise ConfigError(f"--advantage={advantage} with --variants={variants}: nothing to run; name one at least")
    if 0 in numbers("--beta", beta):
        raise ConfigError(f"--beta={beta}: without a penalty the optimum is one response; use --beta 0.25")
    numbers("--seeds", seeds, whole=True)
    check_output(output)
    command = [sys.executable, "-m", "stages.study", f"--variants={','.join(names)}", f"--betas={beta}"]
    sys.stdout.flush()
    command += [f"--seeds={seeds}", f"--output={output}", *([] if steps is None else [f"--steps={steps}"])]
    os.execve(sys.executable, command, stage_environment(1))


def chosen(option: str, text: str, known: list[str]) -> list[str]:
    """A comma-separated list of names. Raises ConfigError for one that there is not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ConfigError(f"{option}={text}: there is no {name}; choose from {', '.join(known)}")
    return list(dict.fromkeys(names))
