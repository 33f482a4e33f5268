"""A reward that is a function over text: a rule, a classifier of one's own, a call to a service."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf.errors import RewardError, raised
from rlhf.types import Completion, Scorer


@dataclass(frozen=True)
class FunctionReward:
    """See `rlhf.types.Reward`. Scores are (raw - mean) / deviation; 0 and 1 leave them raw."""

    name: str
    function: Scorer
    mean: float = 0.0
    deviation: float = 1.0
    strict: bool = True  # refuse scores that are not finite; to PPO one is a fault of its step, and no end
    early: bool = False  # another thread may call it, for responses that have ended while others are sampled
    patience: ClassVar[float] = 0.0  # see `rlhf.types.TextReward`: nobody knows how long a function takes
    timeout: ClassVar[float] = 240.0

    def scores(self, completions: Sequence[Completion], deadline: float) -> Tensor:
        """See `rlhf.types.TextReward`; a function cannot be told of a deadline."""
        return self(completions)

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch]. Raises RewardError where the function raises, or gives something else than scores."""
        prompts, responses = [c.prompt.text for c in completions], [c.response for c in completions]
        try:
            raw = self.function(prompts, responses)
        except Exception as error:
            code = getattr(inspect.unwrap(getattr(self.function, "func", self.function)), "__code__", None)
            reason = raised(error, code.co_filename if code else None)
            raise RewardError(f"reward {self.name}: raised {reason}; mend it, the same command goes on") from error
        return (scores_of(raw, completions, self.name, self.strict) - self.mean) / self.deviation


def scores_of(raw: Any, completions: Sequence[Completion], name: str, strict: bool = True) -> Tensor:
    """One score [batch] per completion, finite where strict, or a RewardError that names the first that is none."""
    try:
        if isinstance(raw, str | bytes | Mapping):  # which float() would read letter by letter, key by key
            raise TypeError(f"a {type(raw).__name__}")
        values = [float(value) for value in raw]
    except (TypeError, ValueError) as error:
        raise RewardError(f"reward {name}: gave no list of numbers ({error}); return one score a response") from error
    if len(values) != len(completions):
        raise RewardError(
            f"reward {name}: gave {len(values)} scores for {len(completions)} responses; return one score a response"
        )
    scores = torch.tensor(values, dtype=torch.float32)
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad and strict:
        first = completions[bad[0]]
        raise RewardError(
            f"reward {name}: gave {values[bad[0]]} for the response {first.response[:60]!r} to the prompt "
            f"{first.prompt.text[:60]!r}; every score must be a finite number"
        )
    return scores
