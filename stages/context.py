"""What all stages share around their algorithm: arguments, inputs, trackers, progress, and handing on a result."""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from rlhf.config import Recipe
from rlhf.distributed import barrier, is_main, process_group, world_size
from rlhf.errors import RLHFError
from rlhf.models import save_model
from rlhf.recipe import load_recipe
from rlhf.store.artifact import PARTIAL, Artifact, Lineage, clear, load_artifact, publish
from rlhf.tokenization import Tokenization
from rlhf.tracking import NullTracker, open_tracker
from rlhf.tracking.console import StageProgress
from rlhf.types import Tracker
from stages.lineage import STAGES, lineage_of


class StageContext:
    """One execution of one stage."""

    def __init__(self, recipe: Recipe, stage: str, run: Path, output: Path) -> None:
        self.recipe = recipe
        self.stage = stage
        self.output = output
        self.started = psutil.Process().create_time()  # loading the libraries is part of a stage's time
        self.inputs: dict[str, Artifact] = {name: load_artifact(run / name) for name in STAGES[stage].inputs}
        self.lineage: Lineage = lineage_of(recipe, stage, run)
        barrier()  # every rank has read the inputs before the main one makes room
        self.partial = output / PARTIAL
        if is_main():
            clear(output)
        self.tracker: Tracker = open_tracker(recipe, stage, output) if is_main() else NullTracker()
        barrier()

    def progress(self, total: int) -> StageProgress:
        """A progress display of this stage."""
        return StageProgress(self.stage, total, enabled=is_main())

    def say(self, line: str) -> None:
        """Tell people one thing."""
        if is_main():
            print(f"{self.stage}: {line}", flush=True)

    def finish(
        self,
        results: Mapping[str, Any],
        model: nn.Module | None = None,
        tokenization: Tokenization | None = None,
        **record: Any,
    ) -> None:
        """Save the model if there is one, close the trackers and make the artifact complete."""
        if is_main():
            if model is not None and tokenization is not None:
                save_model(model, tokenization, self.partial / "model")
            self.tracker.close()
            publish(
                self.output,
                self.lineage,
                {
                    "recipe": self.recipe.model_dump(),
                    "contract": tokenization.contract if tokenization else None,
                    "results": dict(results),
                    "seconds": round(time.time() - self.started, 2),
                    "processes": world_size(),
                    **record,
                },
            )
        barrier()


def seed_everything(seed: int) -> None:
    """Seed the generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run_stage(stage: str, main: Callable[[StageContext], None]) -> None:
    """The command line of a stage: `python -m stages.STAGE` or `torchrun -m stages.STAGE`."""
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
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # deepspeed passes it
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields of the recipe to override")
    options = parser.parse_args()
    quiet_libraries()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # TRL refuses to train in one process that sees several GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        run = options.run or Path("runs") / recipe.name
        with process_group():
            seed_everything(recipe.seed)
            main(StageContext(recipe, stage, run, options.output or run / stage))
    except RLHFError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"error: {stage} was interrupted; the same command runs it again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def quiet_libraries() -> None:
    """Only errors of the libraries that train for us reach the terminal; our own figures stand in their place."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    logging.getLogger("trl.trainer.sft_trainer").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(trl|transformers|accelerate|peft|torch)\b.*")
