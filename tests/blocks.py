"""The ppo stage, whose checkpoints change from block to block: `python blocks.py FILE ORDER --recipe ...`.

A block is ten steps behind a moment at which a checkpoint may be due. ORDER says for each block, by its first letter,
whether none is written (n), a synchronous one (s) or an asynchronous one (a). FILE gets a line of JSON for each block.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from stages.checkpoints import Checkpoints, State
from stages.command import run_stage
from stages.ppo import main

STEPS = 10


class Blocks:
    """Takes the time of blocks."""

    def __init__(self, file: Path, order: str) -> None:
        self.file = file
        self.order = order
        self.after = Checkpoints.after
        self.began = self.processor = self.blocked = 0.0

    def __call__(
        self, checkpoints: Checkpoints, step: int, state: State, score: float | None = None, last: bool = False
    ) -> None:
        """In place of `Checkpoints.after`."""
        block, within = divmod(step, STEPS)
        if within == 0:
            assert checkpoints.in_flight is None or checkpoints.in_flight.done(), (
                "ten steps are too short for this disk"
            )
            if block > 1:
                self.record(block - 2)
            self.began, self.processor, self.blocked = time.perf_counter(), time.process_time(), 0.0
        kind = self.order[block - 1] if 0 < block <= len(self.order) else "n"
        due = {"every_steps": None if kind == "n" else STEPS, "asynchronous": kind == "a"}
        checkpoints.config = checkpoints.config.model_copy(update=due)
        started = time.perf_counter()
        try:
            self.after(checkpoints, step, state, score, last)
        finally:
            self.blocked += time.perf_counter() - started

    def record(self, block: int) -> None:
        """Write down the block that has ended."""
        figures = {
            "kind": self.order[block],
            "wall": time.perf_counter() - self.began,
            "processor": time.process_time() - self.processor,
            "blocked": self.blocked,
            "load": os.getloadavg()[0],
        }
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    blocks = Blocks(Path(sys.argv.pop(1)), sys.argv.pop(1))
    Checkpoints.after = lambda *arguments, **named: blocks(*arguments, **named)  # type: ignore[method-assign]
    run_stage("ppo", main)
