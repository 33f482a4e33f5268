"""The complete state of PPO between two steps: what a checkpoint holds.

Prompts and noise need nothing of their own: both follow from the seed and the step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from rlhf.distributed import is_main, rank
from rlhf.engine import Engine
from rlhf.ppo.safety import Breaker, is_sound
from rlhf.randomness import random_state, set_random_state
from rlhf.store.artifact import write_json
from stages.cast import Cast
from stages.held_out import HeldOut


class PpoState:
    """Policy, value model, optimizers, schedules, KL controller, normaliser, breaker, random states, evaluations."""

    def __init__(self, cast: Cast, held_out: HeldOut, breaker: Breaker) -> None:
        self.cast = cast
        self.held_out = held_out
        self.breaker = breaker
        self.figures: dict[str, float] = {}  # of the last step that has them

    @property
    def own_value(self) -> Engine | None:
        """The value model's engine, if it has one of its own."""
        return None if self.cast.value is self.cast.policy else self.cast.value

    def note(self, figures: Mapping[str, float]) -> None:
        """Take in a step's figures; where one is missing or not finite, that of an earlier step stays."""
        self.figures |= {name: value for name, value in figures.items() if math.isfinite(value)}

    def save(self, directory: Path) -> None:
        """Write everything below a directory; every rank calls. Raises RuntimeError where a model is not sound."""
        self._require_sound()
        self.cast.policy.save(directory / "policy")
        if self.own_value:
            self.own_value.save(directory / "value")
        torch.save(random_state(), directory / f"random-{rank()}.pt")
        if is_main():
            state = {"kl": self.cast.kl.state_dict(), "figures": self.figures, "held_out": self.held_out.state()}
            state["breaker"] = self.breaker.state_dict()
            if self.cast.running:
                state["running"] = self.cast.running.state_dict()
            write_json(directory / "ppo.json", state)

    def load(self, directory: Path) -> None:
        """Take up what `save` wrote. A rank that was not there then keeps the seed's random state."""
        self.cast.policy.load(directory / "policy")
        if self.own_value:
            self.own_value.load(directory / "value")
        self.cast.actors.generator.load(self.cast.actors.policy)
        state = json.loads((directory / "ppo.json").read_text(encoding="utf-8"))
        self.cast.kl.load_state_dict(state["kl"])
        if self.cast.running:
            self.cast.running.load_state_dict(state["running"])
        self.figures = state["figures"]
        self.held_out.load_state(state["held_out"])
        if "breaker" in state:  # written since there is one
            self.breaker.load_state_dict(state["breaker"])
        own = directory / f"random-{rank()}.pt"
        if own.is_file():
            set_random_state(torch.load(own, weights_only=True))

    def _require_sound(self) -> None:
        """A step whose own figures were finite can still leave weights that are not, or that give what is not."""
        for name, engine in {"policy": self.cast.policy, "value model": self.own_value}.items():
            if engine and not is_sound(engine, self.cast.probe):
                raise RuntimeError(f"the {name} gives what is not finite")
