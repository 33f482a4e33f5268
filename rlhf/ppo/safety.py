"""What is not finite in a step of PPO: found by each rank in its own rows, decided by all ranks together, counted.

A step with such a fault is not learned from: where the rollout has it nothing is; where a minibatch has it for a model,
that model's update by it is dropped, and the rest of the step for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.distributed import gather_objects, global_max
from rlhf.engine import Engine
from rlhf.ppo.targets import Targets
from rlhf.sharding import device_of, own_part
from rlhf.types import Experience

PER_TOKEN = ("old_logprobs", "sampler_logprobs", "ref_logprobs", "values")
CLEAN, IN_TARGETS, IN_ROLLOUT = range(3)  # what ranks find; the largest wins


@dataclass(frozen=True)
class Fault:
    """What is not finite in a step that all ranks give up together, as far as this rank has it."""

    found: Mapping[str, Tensor]  # by name, True = not finite: [batch] or [batch, response]; none: another rank has it
    part: str = ""  # of the step that is given up: all of it, or what is left of it


def not_finite(fields: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Where fields [batch] or [batch, response] are not finite, of those that are so anywhere under the mask."""
    found = {name: ~field.isfinite() & (mask if field.ndim > 1 else True) for name, field in fields.items()}
    return {name: where for name, where in found.items() if where.any()}


def examine(experience: Experience, targets: Targets) -> Fault | None:
    """The fault of a rollout, if any rank's has one. A collective, the only one of a good step's rollout.

    Targets are looked at where every rank's rollout is sound: normalising would spread one rank's fault over all.
    """
    fields = {"scores": experience.scores, **{name: getattr(experience, name) for name in PER_TOKEN}}
    fields |= {f"scores_{name}": scores for name, scores in experience.terms.items()}
    in_rollout = not_finite(fields, experience.mask)
    in_targets = not_finite({"advantages": targets.advantages, "returns": targets.returns}, experience.mask)
    worst = global_max(IN_ROLLOUT if in_rollout else IN_TARGETS if in_targets else CLEAN)
    return Fault(in_rollout if worst == IN_ROLLOUT else in_targets) if worst else None


def examine_minibatch(losses: Mapping[str, Tensor], norms: Mapping[str, float], rows: Tensor) -> Fault | None:
    """The fault of a minibatch before a model learns from it, if there is one. A collective.

    losses: this rank's shares; norms: of the whole gradients, equal on all ranks. rows [batch] bool, True = in it, of
    those that this rank sampled, whoever trains on them. A loss can be infinite where its gradient is finite, and a
    gradient NaN where the loss is finite: 0 times infinity.
    """
    finite = torch.stack([loss.isfinite() for loss in losses.values()]).tolist()  # one question to the device
    own = [name for name, is_finite in zip(losses, finite, strict=True) if not is_finite]
    if global_max(len(own)):
        found = dict.fromkeys(name for names in gather_objects(own) for name in names)
    else:
        found = dict.fromkeys(name for name, norm in norms.items() if not math.isfinite(norm))
    return Fault(dict.fromkeys(found, rows), "what is left of ") if found else None


def is_sound(engine: Engine, tokens: Sequence[int]) -> bool:
    """Whether a model's weights, and what it says of a text, are finite on every rank. A collective."""
    inputs = torch.tensor([list(tokens)], device=device_of(engine.module))
    with torch.no_grad():
        output: Any = engine(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False)  # type: ignore[arg-type]
    said = [output.logits, getattr(output, "state_values", None)]  # the latter of a head beside the logits
    weights = [own_part(parameter).detach() for parameter in engine.module.parameters()]
    sound = all(bool(tensor.isfinite().all()) for tensor in (*said, *weights) if tensor is not None)
    return not global_max(int(not sound))


class Breaker:
    """Counts faulty steps, all and in a row; open once there are `limit` in a row."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.total = 0
        self.in_a_row = 0

    @property
    def is_open(self) -> bool:
        """Whether training must stop."""
        return self.limit is not None and self.in_a_row >= self.limit

    def count(self, faulty: bool) -> None:
        """Take in a step."""
        self.total += faulty
        self.in_a_row = self.in_a_row + 1 if faulty else 0

    def figures(self) -> dict[str, float]:
        """What is logged, from the first faulty step on."""
        if not self.total:
            return {}
        return {"safety/skipped_steps": self.total, "safety/faults_in_a_row": self.in_a_row}

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint must hold."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up a checkpoint's state."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]
