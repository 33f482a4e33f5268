"""The complete state of PPO between two steps: what a checkpoint holds.

Prompts and noise need nothing of their own: both follow from the seed and the step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from rlhf.distributed import is_main, rank
from rlhf.engine import Engine, Writer
from rlhf.ppo.safety import Breaker, is_sound
from rlhf.randomness import random_state, set_random_state
from rlhf.store.artifact import write_json
from stages.cast import Cast
from stages.checkpoints import attempt, first
from stages.held_out import HeldOut


class PpoState:
    """Policy, value model, optimizers, schedules, KL controller, normaliser, breaker, random states, evaluations."""

    def __init__(self, cast: Cast, held_out: HeldOut, breaker: Breaker) -> None:
        self.cast = cast
        self.held_out = held_out
        self.breaker = breaker
        self.figures: dict[str, float] = {}  # of the last step that has them

    @property
    def engines(self) -> dict[str, Engine]:
        """What learns, by name: the policy, and the value model if it has an engine of its own."""
        own = self.cast.value if self.cast.value is not self.cast.policy else None
        return {"policy": self.cast.policy} | ({"value": own} if own else {})

    def note(self, figures: Mapping[str, float]) -> None:
        """Take in a step's figures; where one is missing or not finite, that of an earlier step stays."""
        # Another dictionary: the one before may still be on its way to the disk.
        self.figures = self.figures | {name: value for name, value in figures.items() if math.isfinite(value)}

    def save(self, directory: Path) -> None:
        """Write everything below a directory; every rank calls. Raises RuntimeError where a model is not sound."""
        self._require_sound()
        self._writer([engine.save for engine in self.engines.values()])(directory)

    def snapshot(self) -> Writer | None:
        """A copy of everything, to write while training goes on; None where an engine cannot. Every rank calls.

        Raises RuntimeError where a model is not sound.
        """
        self._require_sound()
        copies = [engine.snapshot() for engine in self.engines.values()]
        able = [copy for copy in copies if copy is not None]
        return self._writer(able) if len(able) == len(copies) else None

    def _writer(self, writers: Sequence[Writer]) -> Writer:
        """Writes the engines by the given functions, and all else as it is now."""
        random = random_state()
        state = {"kl": self.cast.kl.state_dict(), "figures": self.figures, "held_out": self.held_out.state()}
        state["breaker"] = self.breaker.state_dict()
        if self.cast.running:
            state["running"] = self.cast.running.state_dict()

        def write(directory: Path) -> None:
            # A rank that cannot write one of them owes the others its calls in the next.
            causes = [
                attempt(partial(write_engine, directory / name))
                for name, write_engine in zip(self.engines, writers, strict=True)
            ]
            if cause := first(causes):
                raise OSError(cause)
            torch.save(random, directory / f"random-{rank()}.pt")
            if is_main():
                write_json(directory / "ppo.json", state)

        return write

    def load(self, directory: Path) -> None:
        """Take up what `save` wrote. A rank that was not there then keeps the seed's random state."""
        for name, engine in self.engines.items():
            engine.load(directory / name)
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
        for name, engine in self.engines.items():
            if not is_sound(engine, self.cast.probe):
                raise RuntimeError(f"the {'policy' if name == 'policy' else 'value model'} gives what is not finite")
