"""The ppo stage, whose checkpoints wait in front of their first byte: `python held_up.py FOLDER --recipe ...`.

That of step N waits until FOLDER/N or FOLDER/all is there, in whatever thread it is written.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rlhf.store.checkpoint import CheckpointStore
from stages.command import run_stage
from stages.ppo import main

if __name__ == "__main__":
    gate = Path(sys.argv.pop(1))
    begin = CheckpointStore.begin

    def late(store: CheckpointStore, step: int) -> Path:
        """In place of `CheckpointStore.begin`."""
        partial = begin(store, step)
        while not (gate / str(step)).exists() and not (gate / "all").exists():
            time.sleep(0.01)
        return partial

    CheckpointStore.begin = late  # type: ignore[method-assign]
    run_stage("ppo", main)
