"""The command line of a stage, under python, torchrun or deepspeed: `torchrun -m stages.STAGE --recipe RECIPE`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from rlhf.config import WatchdogConfig
from rlhf.distributed import device, join_process_group
from rlhf.errors import RLHFError
from rlhf.heap import keep_freed
from rlhf.randomness import seed_everything
from rlhf.recipe import load_recipe
from stages.adoption import adopt_missing
from stages.context import StageContext, StageOptions
from stages.problems import AWAY, report, reported, tell_code
from stages.signals import Signals, Stopped
from stages.uses import check_start
from stages.watching import Consequence

# What takes less memory, by stage (docs/gpu.md).
LOWER = {
    "sft": "lower sft.micro_batch_size or sft.max_length, or set model.activation_checkpointing=true",
    "reward": "lower reward.micro_batch_size or reward.max_length, or set model.activation_checkpointing=true",
    "ppo": "lower ppo.micro_batch_tokens (ppo.generation.batch_size where it samples), or set "
    "model.activation_checkpointing=true",
    "evaluate": "lower ppo.generation.batch_size or ppo.micro_batch_tokens",
}


def run_stage(stage: str, main: Callable[[StageContext], None]) -> None:
    """Parse the arguments, join the process group, run, and end with the exit code that says what happened.

    0: complete, or stopped as --stop-after said; 1: an error of ours, or of another process of this stage; 2: something
    the user has to mend, one line each; 70: ended by the watchdog; 74: the system refuses something (a disk that is
    full or gone), a server is away, or another process is still in the directory; 75: stopped by a signal. After 70,
    74 and 75 the same command goes on.
    """
    options = arguments(stage, main)
    signals = Signals()
    signals.install()
    quiet_libraries()
    if not several():
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)  # libraries take a single process that has a rank for one of several
        # TRL refuses to train in one process that sees several GPUs.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if device().type == "cpu":
        keep_freed()
    code = 0
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        run = options.run or Path("runs") / recipe.name
        # Left by ending: to part from it, each side waits for what the other has still to say.
        join_process_group(collective_minutes(recipe.watchdog))
        seed_everything(recipe.seed)
        chosen = StageOptions(run, options.output or run / stage, options.stop_after, options.restart)
        if stage == "reward":
            check_start(recipe, chosen.output)
        adopt_missing(recipe, stage, chosen, signals)
        StageContext(recipe, stage, chosen, signals).carry_out(main)
    except RLHFError as error:
        report(error.problems)
        code = AWAY if error.transient else 2
    except (OSError, SafetensorError) as error:  # a disk that is full or gone, or whatever else the system refuses
        report([f"{error}; once that is mended, the same command goes on from the newest checkpoint"])
        code = AWAY
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"{stage}: stopped by {stopped.reason}; the same command goes on from there", flush=True)
        report([])
        code = stopped.code
    except Consequence:  # of the end of another process, which has been told
        code = 1
    except Exception as error:
        if found_no_memory(error):
            said = ". ".join(" ".join(str(error).split()).split(". ")[:2]) or "the machine has none left"
            report([f"{stage}: out of memory ({said}); {LOWER[stage]}"])
            leave(2)
        # Of several, one whose collective has lost its other side need not say so where another one has said why.
        if not several():
            raise
        if not isinstance(error, RuntimeError) or not reported():
            traceback.print_exc()
        code = 1
    leave(code)


def found_no_memory(error: Exception) -> bool:
    """Whether a device or the machine had no memory left; torch on CPUs has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator: " in str(error)


def collective_minutes(watchdog: WatchdogConfig | None) -> float:
    """How long one rank may keep the others in a collective: for longer than the watchdog, which says why it ends."""
    return max(10.0, watchdog.abort_seconds / 60 + 5) if watchdog else 10.0


def several() -> bool:
    """Whether this process is one of several of a stage."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def leave(code: int) -> None:
    """End this process. One of several ends at once: what gloo does at the interpreter's end may wait for ever."""
    tell_code(code)
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def arguments(stage: str, main: Callable[[StageContext], None]) -> argparse.Namespace:
    """The options of a stage's command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage}",
        description=(sys.modules[main.__module__].__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: torchrun --nproc-per-node 2 -m stages.{stage} --recipe demo --run-dir runs/demo seed=1",
    )
    parser.add_argument("--recipe", required=True, help="a recipe file, or the name of a shipped recipe")
    # Two names: on Python 3.11 torchrun takes `--run` for an abbreviation of its own `--run-path` and gives up.
    parser.add_argument("--run", "--run-dir", type=Path, help="where the inputs are (default: runs/NAME)")
    parser.add_argument("--output", type=Path, help="where the result goes (default: RUN/STAGE)")
    parser.add_argument("--stop-after", type=int, metavar="N", help="write a checkpoint after step N and end")
    parser.add_argument("--restart", action="store_true", help="start from the beginning, not from a checkpoint")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # deepspeed passes it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the recipe to override")
    return parser.parse_args()


def quiet_libraries() -> None:
    """Only errors of the libraries that train for us reach the terminal; our own figures stand in their place."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if device().type == "cpu":  # DeepSpeed, which some of them load where it is installed, warns that it finds no GPU
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # PPO and evaluation do without the library
    import accelerate.utils.other
    import transformers

    # Else it imports DeepSpeed, which takes seconds, to see whether a model is wrapped in an engine of it.
    setattr(accelerate.utils.other, "is_deepspeed_available", lambda: bool(sys.modules.get("deepspeed")))  # noqa: B010
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if datasets := sys.modules.get("datasets"):  # it has read its environment
        datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("trl").setLevel(logging.ERROR)
    logging.getLogger("trl.trainer.sft_trainer").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(trl|transformers|accelerate|peft|torch)\b.*")
