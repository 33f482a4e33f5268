"""How well a reward's scores predict votes that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reward_models.pairs import encode_comparison
from reward_models.scoring import RewardModel
from rlhf.analysis.statistics import wilson_interval
from rlhf.types import Comparison, Completion, Reward

MOST_LABELS = 100  # strata, or sources, in a manifest


@dataclass(frozen=True)
class HeldOut:
    """A reward model against votes it was not trained on; ties are left out of all figures but the score's spread."""

    votes: int
    correct: int  # the chosen response, of a soft label the likelier one, scored higher
    log_loss: float  # nats per vote
    calibration_error: float  # expected calibration error of P(chosen wins), ten bins
    margin: float  # mean of chosen less rejected
    score_mean: float  # over all responses
    score_deviation: float
    right: tuple[bool | None, ...] = ()  # of each comparison whether it was predicted; None for a tie

    @property
    def accuracy(self) -> float:
        """Share of votes predicted."""
        return self.correct / max(1, self.votes)

    def by(self, labels: Sequence[str | None]) -> dict[str, Any]:
        """Votes and accuracy of each label, such as a prompt's kind, with the 95 % interval; labels [comparisons].

        Of MOST_LABELS at most, those with most votes; what has no label counts for none.
        """
        counts: dict[str, list[int]] = {}
        for label, right in zip(labels, self.right, strict=True):
            if label is not None and right is not None:
                count = counts.setdefault(label, [0, 0])
                count[0] += right
                count[1] += 1
        most = sorted(counts, key=lambda label: -counts[label][1])[:MOST_LABELS]
        return {label: _share(*counts[label]) for label in most}

    def figures(self) -> dict[str, Any]:
        """What a manifest keeps, the accuracy with its 95 % interval."""
        return {
            "accuracy": self.accuracy,
            "accuracy_ci": list(wilson_interval(self.correct, self.votes)),
            "votes": self.votes,
            "log_loss": self.log_loss,
            "ece": self.calibration_error,
            "margin": self.margin,
            "score_mean": self.score_mean,
            "score_deviation": self.score_deviation,
        }


def _share(correct: int, votes: int) -> dict[str, Any]:
    return {"accuracy": correct / votes, "accuracy_ci": list(wilson_interval(correct, votes)), "votes": votes}


def judge_held_out(model: RewardModel, comparisons: Sequence[Comparison]) -> HeldOut:
    """Score both responses of held-out comparisons and compare with the votes."""
    encoded = [encode_comparison(comparison, model.tokenization) for comparison in comparisons]
    rows = [row["chosen_ids"] for row in encoded] + [row["rejected_ids"] for row in encoded]
    return held_out_of(model.score_tokens(rows), [comparison.wanted for comparison in comparisons])


def judge_pairs(reward: Reward, pairs: Sequence[tuple[Completion, Completion]], targets: Sequence[float]) -> HeldOut:
    """Any reward's scores of chosen and rejected completions, compared with the votes; targets as in `held_out_of`."""
    return held_out_of(reward([pair[0] for pair in pairs] + [pair[1] for pair in pairs]), targets)


def held_out_of(scores: Tensor, targets: Sequence[float]) -> HeldOut:
    """The figures of scores [2 * votes], those of the chosen responses first.

    targets [votes]: P(chosen wins), 1 for a vote, 0.5 for a tie, which is left out. Of a soft label between them the
    response that is likelier to win is to score higher, and the log loss is the cross-entropy.
    """
    chosen, rejected = scores.chunk(2)
    target = torch.tensor(list(targets), dtype=scores.dtype)
    voted = target != 0.5
    gaps = chosen - rejected
    difference, target = gaps[voted], target[voted]
    losses = target * nn.functional.softplus(-difference) + (1 - target) * nn.functional.softplus(difference)
    return HeldOut(
        votes=len(difference),
        correct=int((difference > 0).sum()),
        log_loss=float(losses.mean()),
        calibration_error=calibration_error(difference, target),
        margin=float(difference.mean()),
        score_mean=float(scores.mean()),
        score_deviation=float(scores.std()),
        right=tuple(bool(gap > 0) if told else None for gap, told in zip(gaps.tolist(), voted.tolist(), strict=True)),
    )


def calibration_error(difference: Tensor, target: Tensor | None = None, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015) of the favoured response's probability, [0.5, 1] in bins.

    difference [votes]: score of the chosen less that of the rejected response, nats. target [votes]: P(chosen wins),
    by default 1: the favoured response is right with that probability, or with the rest.
    """
    confidence = torch.sigmoid(difference.abs())
    target = torch.ones_like(difference) if target is None else target
    right = torch.where(difference > 0, target, 1 - target)
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    error = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            error += float((confidence[inside].mean() - right[inside].mean()).abs() * inside.float().mean())
    return error
