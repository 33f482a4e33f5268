"""Scores of sampled responses by a trained reward model, and how well its scores predict held-out votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reward_models.pairs import encode_comparison
from rlhf.batching import pad, split_by_tokens
from rlhf.models import context_of, sequence_scores
from rlhf.tokenization import Tokenization
from rlhf.types import Comparison, Completion


@dataclass(frozen=True)
class RewardModel:
    """See `rlhf.types.Reward`. Scores are (raw - mean) / deviation; 0 and 1 leave them raw."""

    model: nn.Module
    tokenization: Tokenization  # the reward model's own
    batch_tokens: int  # padded tokens per forward
    mean: float = 0.0
    deviation: float = 1.0
    by_text: bool = False  # the policy has another tokenizer, so completions are rendered and encoded again

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch], by default of the very tokens that were sampled: encoding them again could change them."""
        if self.by_text:
            return self.score_tokens([self.encode(completion) for completion in completions])
        return self.score_tokens([[*c.prompt_tokens, *c.response_tokens] for c in completions])

    def encode(self, completion: Completion) -> list[int]:
        """A completion in the reward model's own template and tokens, its beginning cut off to fit the context."""
        prompt = self.tokenization.prompt(completion.prompt)
        response = self.tokenization.response(completion.response, completion.finished)
        return [*prompt, *response][-context_of(self.model) :]

    @torch.no_grad()
    def score_tokens(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Scores [batch] of token rows, at each row's last token."""
        device = next(self.model.parameters()).device
        scores = torch.zeros(len(rows))
        for indices in split_by_tokens([(len(row), 0) for row in rows], self.batch_tokens):
            tokens, mask = pad([rows[i] for i in indices], self.tokenization.pad_id, "right")
            scores[indices] = sequence_scores(self.model, tokens.to(device), mask.to(device)).cpu()
        return (scores - self.mean) / self.deviation


@dataclass(frozen=True)
class HeldOut:
    """A reward model against votes it was not trained on; ties are left out of all figures but the score's spread."""

    votes: int
    correct: int  # the chosen response scored higher
    log_loss: float  # nats per vote
    calibration_error: float  # expected calibration error of P(chosen wins), ten bins
    margin: float  # mean of chosen less rejected
    score_mean: float  # over all responses
    score_deviation: float

    @property
    def accuracy(self) -> float:
        """Share of votes predicted."""
        return self.correct / max(1, self.votes)


def judge_held_out(model: RewardModel, comparisons: Sequence[Comparison]) -> HeldOut:
    """Score both responses of held-out comparisons and compare with the votes."""
    encoded = [encode_comparison(comparison, model.tokenization) for comparison in comparisons]
    rows = [row["chosen_ids"] for row in encoded] + [row["rejected_ids"] for row in encoded]
    scores = model.score_tokens(rows)
    chosen, rejected = scores.chunk(2)
    difference = (chosen - rejected)[torch.tensor([not c.tie for c in comparisons], dtype=torch.bool)]
    return HeldOut(
        votes=len(difference),
        correct=int((difference > 0).sum()),
        log_loss=float(nn.functional.softplus(-difference).mean()),
        calibration_error=calibration_error(difference),
        margin=float(difference.mean()),
        score_mean=float(scores.mean()),
        score_deviation=float(scores.std()),
    )


def calibration_error(difference: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015) of the favoured response's probability, [0.5, 1] in bins.

    difference [votes]: score of the chosen less that of the rejected response, nats.
    """
    confidence = torch.sigmoid(difference.abs())
    right = (difference > 0).float()
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    error = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            error += float((confidence[inside].mean() - right[inside].mean()).abs() * inside.float().mean())
    return error
