"""Whether a stage is to run now: asked on a node before anything is started there. Loads no torch.

    python -P -m launch.clusters.due --run RUN STAGE [--wait SECONDS]

Exit code 0: it is due; 10: its result stands already; 2: its inputs are not complete, or something else is wrong, in
a line; 74: the file system refuses, or a process of an earlier try is still in the stage's directory. With --wait
inputs may still come.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rlhf.errors import ConfigError, InUseError, RLHFError
from rlhf.recipe import load_recipe
from rlhf.store.unfinished import is_held
from stages.lineage import STAGES, is_current, used_by
from stages.problems import AWAY

COMPLETE = 10
LOOK_SECONDS = 2.0
HELD_SECONDS = 120.0  # what processes of an earlier try get to let go of the stage's directory


def due(run: Path, stage: str, wait_seconds: float = 0.0) -> bool:
    """Whether a stage has to run: False where its result stands and is what recipe, data and inputs give.

    Raises ConfigError where its inputs are not complete within wait_seconds.
    """
    recipe = load_recipe(run / "recipe.yaml")
    deadline = time.monotonic() + wait_seconds
    while missing := [
        name for name in STAGES[stage].inputs if not used_by(recipe, name) and not is_current(recipe, run, name)
    ]:
        if time.monotonic() >= deadline:
            raise ConfigError(f"{stage}: needs {' and '.join(missing)}, not complete in {run}; run that first")
        time.sleep(LOOK_SECONDS)
    return not is_current(recipe, run, stage)


def await_free(directory: Path, seconds: float = HELD_SECONDS) -> None:
    """Wait until no process is in a directory. Raises InUseError where one stays for longer."""
    deadline = time.monotonic() + seconds
    while is_held(directory):
        if time.monotonic() >= deadline:
            raise InUseError(f"{directory}: in use by another rlhf process, for {seconds:g} s now; wait, or end it")
        time.sleep(min(LOOK_SECONDS, seconds))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m launch.clusters.due")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("stage", choices=list(STAGES))
    options = parser.parse_args()
    try:
        await_free(options.run / options.stage)
        sys.exit(0 if due(options.run, options.stage, options.wait) else COMPLETE)
    except (RLHFError, OSError) as error:
        for line in getattr(error, "problems", (str(error),)):
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2 if isinstance(error, RLHFError) and not error.transient else AWAY)


if __name__ == "__main__":
    main()
