"""The command line `rlhf`."""

from __future__ import annotations

import os
import signal
import sys

import typer
from typer.exceptions import Abort, TyperException

from launch.commands import bench, data, generation, label, study
from launch.commands.chat import chat
from launch.commands.check import check
from launch.commands.consensus import consensus_command
from launch.commands.curves import curves
from launch.commands.doctor import doctor
from launch.commands.drift import drift
from launch.commands.groups import groups
from launch.commands.init import init
from launch.commands.launch import launch
from launch.commands.launched import cancel, logs, resume, status
from launch.commands.plan import plan_command
from launch.commands.run import run, stage_command
from launch.commands.scaling import scaling
from launch.commands.schema import schema
from launch.commands.sync import sync
from rlhf.errors import RLHFError

INTERRUPTED = 128 + signal.SIGINT

app = typer.Typer(
    name="rlhf",
    help="Classic RLHF, from human votes to an aligned policy: SFT, reward model, PPO with a KL penalty.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command("sft")(stage_command("sft", "Supervised fine-tuning on demonstrations."))  # type: ignore[type-var]
app.command("reward")(stage_command("reward", "Reward model on comparisons, from the SFT model."))  # type: ignore[type-var]
app.command("ppo")(stage_command("ppo", "PPO of the SFT model against the reward model."))  # type: ignore[type-var]
app.command("evaluate")(stage_command("evaluate", "The aligned policy against the SFT model."))  # type: ignore[type-var]
app.command()(init)
app.command()(schema)
app.command("plan")(plan_command)
app.command()(launch)
app.command()(status)
app.command()(logs)
app.command()(cancel)
app.command()(resume)
app.command()(chat)
app.command()(sync)
app.command()(curves)
app.command()(doctor)
bench.app.command()(scaling)
data.app.command()(check)
data.app.command("consensus")(consensus_command)
data.app.command()(drift)
data.app.command()(groups)
app.add_typer(bench.app)
app.add_typer(data.app)
app.add_typer(generation.app)
app.add_typer(label.app)
app.add_typer(study.app)


def main() -> None:
    """Entry point; an error that the user can mend is one line per problem and exit code 2, never a traceback."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="rlhf", standalone_mode=False)
        if code == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt, without a word
            raise KeyboardInterrupt
        sys.exit(code)
    except TyperException as error:  # how the command was written
        message = error.format_message().strip()
        if "\n" in message:  # the help of a group of commands that was called without one
            print(message, file=sys.stderr)
        elif message:  # none where the help of such a group has been shown already
            print(f"error: {message.rstrip('.')}; see {usage(error)}", file=sys.stderr)
    except RLHFError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
    except BrokenPipeError:  # whoever reads us, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a disk that is full, or whatever else the system refuses
        print(f"error: {error}; once that is mended, the same command goes on", file=sys.stderr)
    except (KeyboardInterrupt, Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(2)


def usage(error: TyperException) -> str:
    """The help that belongs to a wrongly written command."""
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else "rlhf --help"


if __name__ == "__main__":
    main()
