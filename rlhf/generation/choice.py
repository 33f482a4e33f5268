"""Choosing tokens by one uniform number each, so that the noise can be keyed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
    largest = logits.amax(-1, keepdim=True)
    weights = (logits - largest).exp_()
    kept = _nucleus(weights, top_p) if top_p < 1.0 else weights
    # Sums of the vocabulary's length are float32's of parts, added up in float64.
    sums = _sums(kept)
    tokens = _invert(kept, sums, noise)
    total = (sums if top_p >= 1.0 else _sums(weights)).sum(-1)
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1) - largest.squeeze(-1)
    log_kept = torch.zeros_like(chosen) if top_p >= 1.0 else (sums.sum(-1) / total).log().float()
    return Choice(tokens, (chosen.double() - total.log()).float(), log_kept)


def _sums(weights: Tensor) -> Tensor:
    """Sums [batch, parts] of PART neighbours, the last part padded with nothing; float64."""
    whole = weights.shape[-1] // PART * PART
    sums = weights[:, :whole].reshape(len(weights), -1, PART).sum(-1).double() if whole else weights[:, :0].double()
    return torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True).double()], dim=-1)


def _invert(weights: Tensor, sums: Tensor, noise: Tensor) -> Tensor:
    """The first token [batch] whose cumulative weight exceeds noise times the sum: first its part, then within it."""
    cumulative = sums.cumsum(-1)
    target = noise[:, None] * cumulative[:, -1:]
    # right=True steps over what has no weight, whose cumulative value equals its neighbour's.
    part = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[-1] - 1)
    before = torch.where(part > 0, cumulative.gather(-1, (part - 1).clamp(min=0)), 0.0)
    places = part * PART + torch.arange(PART, device=weights.device)
    size = weights.shape[-1]
    inside = weights.gather(-1, places.clamp(max=size - 1)).masked_fill(places >= size, 0.0)
    within = before + inside.double().cumsum(-1)
    found = torch.searchsorted(within, target, right=True).clamp(max=PART - 1)
    tokens = part * PART + found
    # Where rounding leaves the target behind a part's end, the part's last token of any weight is the one.
    last = PART - 1 - inside.gt(0).flip(-1).int().argmax(-1, keepdim=True)
    tokens = torch.minimum(tokens, part * PART + last)
    return tokens.clamp(max=size - 1).squeeze(-1)  # where nothing is finite, any token will do


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Weights, 0 for all but the smallest set that has top_p of their sum."""
    ordered, order = weights.double().sort(dim=-1, descending=True)
    cumulative = ordered.cumsum(-1)
    beyond = cumulative - ordered >= top_p * cumulative[:, -1:]
    return weights.masked_fill(beyond.scatter(-1, order, beyond), 0.0)
