"""Ways to run the project from a test: the command line, or one stage in this process."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from rlhf.randomness import seed_everything
from rlhf.recipe import load_recipe
from stages.command import quiet_libraries
from stages.context import StageContext, StageOptions

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "recipes" / "tiny.yaml"


def rlhf(*arguments: str, folder: Path, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """The real command line, in a folder that is not the repository."""
    command = [sys.executable, "-P", "-m", "launch.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False)


def stage(
    name: str, recipe: Path, run: Path, output: Path, overrides: Sequence[str] = (), stop_after: int | None = None
) -> Path:
    """Run a stage in this process; its output directory. Raises Stopped behind the step at which it is to stop."""
    quiet_libraries()
    torch.set_num_threads(2)
    resolved = load_recipe(recipe, overrides)
    seed_everything(resolved.seed)
    module = importlib.import_module(f"stages.{name}")
    module.main(StageContext(resolved, name, StageOptions(run, output, stop_after)))
    return output
