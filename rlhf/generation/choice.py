"""Choosing tokens by one uniform number each, so that the noise can be keyed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

PART = 128  # logits whose probabilities are added up before they are searched


class Choice(NamedTuple):
    """Chosen tokens."""

    tokens: Tensor  # [batch] ids
    logprobs: Tensor  # [batch] nats, float32, of the whole distribution
    log_kept: Tensor  # [batch] nats, float32: log of the probability that top-p has kept


def choose(logits: Tensor, noise: Tensor, top_p: float = 1.0) -> Choice:
    """Tokens by inversion: the first whose cumulative probability exceeds the noise.

    logits [batch, vocabulary] at the sampling temperature, float32; noise [batch] uniform in [0, 1), float64. top_p < 1
    keeps the smallest set of tokens with that much probability (Holtzman et al. 2020).
    """
    largest, size = logits.amax(-1, keepdim=True), logits.shape[-1]
    if beyond := -size % PART:
        weights = logits.new_zeros(len(logits), size + beyond)
        torch.sub(logits, largest, out=weights[:, :size]).exp_()
    else:
        weights = (logits - largest).exp_()
    kept = _nucleus(weights, top_p) if top_p < 1.0 else weights
    cumulative = _cumulative(kept)
    tokens = _invert(kept, cumulative, noise).clamp_(max=size - 1)  # where nothing is finite, any token will do
    of_kept = cumulative[:, -1]
    total = of_kept if top_p >= 1.0 else _cumulative(weights)[:, -1]
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1) - largest.squeeze(-1)
    log_kept = torch.zeros_like(chosen) if top_p >= 1.0 else (of_kept / total).log().float()
    return Choice(tokens, (chosen.double() - total.log()).float(), log_kept)


def _cumulative(weights: Tensor) -> Tensor:
    """Sums [batch, 1 + parts] of all weights before a part of PART neighbours, and of all; float64.

    Sums of the vocabulary's length are float32's of parts, added up in float64.
    """
    parts = weights.view(len(weights), -1, PART).sum(-1)
    return functional.pad(parts, (1, 0)).cumsum(-1, dtype=torch.float64)


def _invert(weights: Tensor, cumulative: Tensor, noise: Tensor) -> Tensor:
    """The first token [batch] whose cumulative weight exceeds noise times the sum: first its part, then within it."""
    target = noise[:, None] * cumulative[:, -1:]
    # right=True steps over what has no weight, whose cumulative value equals its neighbour's.
    part = torch.searchsorted(cumulative, target, right=True).sub_(1).clamp_(0, cumulative.shape[-1] - 2)
    inside = weights.gather(-1, part * PART + torch.arange(PART, device=weights.device))
    within = inside.cumsum(-1, dtype=torch.float64).add_(cumulative.gather(-1, part))
    found = torch.searchsorted(within, target, right=True)
    # Where rounding leaves the target behind a part's end, the part's last token of any weight is the one.
    last = torch.searchsorted(within, within[:, -1:].contiguous())
    return torch.minimum(found, last).add_(part * PART).squeeze(-1)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Weights, 0 for all but the smallest set that has top_p of their sum."""
    ordered, order = weights.double().sort(dim=-1, descending=True)
    cumulative = ordered.cumsum(-1)
    beyond = cumulative - ordered >= top_p * cumulative[:, -1:]
    return weights.masked_fill(beyond.scatter(-1, order, beyond), 0.0)
