"""The command line `rlhf`."""

from __future__ import annotations

import sys

import typer

from launch.commands.run import run, stage_command
from rlhf.errors import RLHFError

app = typer.Typer(
    name="rlhf",
    help="Classic RLHF, from human votes to an aligned policy: SFT, reward model, PPO with a KL penalty.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command("sft")(stage_command("sft", "Supervised fine-tuning on demonstrations."))  # type: ignore[type-var]
app.command("reward")(stage_command("reward", "Reward model on comparisons, from the SFT model."))  # type: ignore[type-var]
app.command("ppo")(stage_command("ppo", "PPO of the SFT model against the reward model."))  # type: ignore[type-var]
app.command("evaluate")(stage_command("evaluate", "The aligned policy against the SFT model."))  # type: ignore[type-var]


def main() -> None:
    """Entry point; an error that the user can mend is one line per problem and exit code 2."""
    try:
        app()
    except RLHFError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
