"""Whether a reward of one's own can be trained against: what any reward must keep, and what most of them know.

A reward must give every response one finite score that does not depend on which others it was scored with; else PPO
would learn noise. That it prefers an answer to an empty one, to another prompt's and to scrambled words is no law, and
is said, not enforced: a rule that rewards brevity is right to prefer the empty one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf.analysis.statistics import wilson_interval
from rlhf.errors import RewardError
from rlhf.types import Completion, Reward

ALONE = 6  # responses that are also scored by themselves
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # of two scores of one response, in deviations of the scores


@dataclass(frozen=True)
class Sanity:
    """What was seen of a reward."""

    scores: Tensor  # [responses] raw
    preferred: Mapping[str, float]  # share of answers that score above the same answer spoiled; ties count half
    answers: int

    @property
    def constant(self) -> bool:
        """Whether all responses score alike, so that there is nothing to learn."""
        return bool((self.scores == self.scores[0]).all())

    def warnings(self) -> list[str]:
        """What people should know before they spend GPUs on it."""
        found = []
        if self.constant:
            found.append(f"scores all {len(self.scores)} responses {float(self.scores[0]):.3g}: nothing can be learned")
        found += [
            f"prefers {name} to the answer itself in {1 - share:.0%} of {self.answers} probes"
            for name, share in self.preferred.items()
            if wilson_interval(share * self.answers, self.answers)[1] < 0.5  # no accident
        ]
        return found


@dataclass(frozen=True)
class Examination:
    """How a reward is examined."""

    name: str  # of the reward, for people
    tolerance: float  # see TOLERANCE
    encode: Callable[[str], Sequence[int]]  # a response's tokens, as the policy would have sampled them
    seed: int

    def __call__(self, reward: Reward, sampled: Sequence[Completion]) -> Sanity:
        """Score responses of the policy to different prompts, and the same responses spoiled.

        Raises RewardError where a score is not finite or depends on the batch.
        """
        scores = finite(reward(sampled), sampled, self.name)
        require_independence(reward, sampled, scores, self.name, self.tolerance)
        kept = [i for i, completion in enumerate(sampled) if completion.response.strip()]
        answers = [sampled[i] for i in kept]
        preferred = {}
        for kind, texts in spoiled(answers, self.seed).items():
            worse = [
                replace(answer, response=text, response_tokens=tuple(self.encode(text)), finished=True)
                for answer, text in zip(answers, texts, strict=True)
            ]
            share = torch.sign(scores[kept] - finite(reward(worse), worse, self.name)) / 2 + 0.5
            preferred[kind] = float(share.mean()) if answers else 0.5
        return Sanity(scores, preferred, len(answers))


def finite(scores: Tensor, completions: Sequence[Completion], name: str) -> Tensor:
    """The scores, or a RewardError that names the first response whose score is not finite."""
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward {name}: gave {float(scores[bad[0]])} for the response {completions[bad[0]].response[:60]!r}; "
            "every score must be a finite number"
        )
    return scores


def require_independence(
    reward: Reward, completions: Sequence[Completion], scores: Tensor, name: str, tolerance: float
) -> None:
    """Raise RewardError where a response alone, or in another order, scores otherwise than in the batch."""
    alone = torch.cat([finite(reward([c]), [c], name) for c in completions[:ALONE]])
    turned = finite(reward(list(reversed(completions))), completions, name).flip(0)
    spread = float(scores.std()) if len(scores) > 1 else 0.0
    allowed = tolerance * max(spread, 1e-3 * float(scores.abs().max()), 1e-6)
    for again, how in ((alone, "alone"), (turned, "in another order")):
        apart = (again - scores[: len(again)]).abs()
        worst = int(apart.argmax())
        if float(apart[worst]) > allowed:
            raise RewardError(
                f"reward {name}: gave the response {completions[worst].response[:60]!r} {float(scores[worst]):.6g} "
                f"in a batch and {float(again[worst]):.6g} {how}; a score must depend on its own prompt and response"
            )


def spoiled(answers: Sequence[Completion], seed: int) -> dict[str, list[str]]:
    """Texts in place of the answers, worse in ways that most people would call worse."""
    generator = random.Random(f"{seed}/probes")

    def scrambled(text: str) -> str:
        words = text.split()
        generator.shuffle(words)
        return " ".join(words)

    order = generator.sample(range(len(answers)), len(answers))
    after = dict(zip(order, [*order[1:], *order[:1]], strict=True))  # no answer is its own other
    return {
        "an empty response": ["" for _ in answers],
        "an answer to another prompt": [answers[after[i]].response for i in range(len(answers))],
        "its words in any order": [scrambled(answer.response) for answer in answers],
    }
