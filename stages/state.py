"""The complete state of PPO between two steps: what a checkpoint holds.

Prompts and noise need nothing of their own: both follow from the seed and the step.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rlhf.distributed import is_main, rank
from rlhf.randomness import random_state, set_random_state
from rlhf.store.artifact import write_json
from stages.cast import Cast


class PpoState:
    """Policy, value model, their optimizers and schedules, KL controller, every rank's random state, last figures."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.figures: dict[str, float] = {}  # of the last step

    def save(self, directory: Path) -> None:
        """Write everything below a directory; every rank calls."""
        self.cast.policy.save(directory / "policy")
        self.cast.value.save(directory / "value")
        torch.save(random_state(), directory / f"random-{rank()}.pt")
        if is_main():
            write_json(directory / "ppo.json", {"kl": self.cast.kl.state_dict(), "figures": self.figures})

    def load(self, directory: Path) -> None:
        """Take up what `save` wrote. A rank that was not there then keeps the seed's random state."""
        self.cast.policy.load(directory / "policy")
        self.cast.value.load(directory / "value")
        self.cast.actors.generator.load(self.cast.policy.module)
        state = json.loads((directory / "ppo.json").read_text(encoding="utf-8"))
        self.cast.kl.load_state_dict(state["kl"])
        self.figures = state["figures"]
        own = directory / f"random-{rank()}.pt"
        if own.is_file():
            set_random_state(torch.load(own, weights_only=True))
