"""The losses of classic RLHF; pure functions of tensors.

The PPO losses divide by the number of response tokens in the whole optimizer step, over ranks and micro-batches, so
that the losses of micro-batches add up to the step's, however it was cut.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.kl import Estimator, estimate


class PolicyLoss(NamedTuple):
    """The policy's loss, and its share of the step's statistics; shares of micro-batches add up."""

    loss: Tensor
    clip_fraction: Tensor  # share of tokens where the clipped surrogate is the active one
    approx_kl: Tensor  # KL(old policy || policy), k3 estimate, nats per token


class ValueLoss(NamedTuple):
    """The value model's loss, and its share of the step's statistics."""

    loss: Tensor
    clip_fraction: Tensor


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    n_tokens: Tensor | float,
    *,
    clip_high: float | None = None,
    ratio: Literal["token", "sequence"] = "token",
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate (Schulman et al. 2017, eq. 7), to minimise: the ratio is held in [1 - clip, 1 + clip_high].

    logprobs, old_logprobs, advantages, mask [batch, response], mask True = response. n_tokens: True positions in the
    whole step, over ranks and micro-batches. clip_high: None for `clip`; larger leaves rare tokens room to become
    likely (Yu et al. 2025, "DAPO", eq. 10). ratio: of each token, or for all tokens of a response its geometric mean
    (Zheng et al. 2025, "GSPO", eq. 7; the gradient stays each token's, eq. 15). weights [batch, response]: of
    importance, constants.
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    advantages = advantages.masked_fill(~mask, 0.0)
    if weights is not None:
        advantages = advantages * weights.masked_fill(~mask, 0.0)
    exponent = log_ratio
    if ratio == "sequence":
        mean = log_ratio.detach().sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        exponent = (mean + log_ratio - log_ratio.detach()).masked_fill(~mask, 0.0)
    factor = exponent.exp()
    unclipped = -advantages * factor
    clipped = -advantages * factor.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss = torch.maximum(unclipped, clipped).sum() / n_tokens
    with torch.no_grad():
        clip_fraction = (clipped > unclipped).sum() / n_tokens
        # Tokens come from the old policy, so k3 of KL(old || new) has r = new / old.
        approx_kl = (log_ratio.expm1() - log_ratio).sum() / n_tokens
    return PolicyLoss(loss, clip_fraction, approx_kl)


def kl_loss(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kind: Estimator, n_tokens: Tensor | float) -> Tensor:
    """The KL penalty as a loss, before its coefficient: the estimates' mean over the step's tokens.

    logprobs, ref_logprobs, mask [batch, response]; n_tokens as in `ppo_policy_loss`. Raises ValueError on k1: its
    gradient is the score function, whose expectation is zero. At each state by itself k2 has the gradient of
    KL(policy || reference), k3 that of KL(reference || policy); neither sees the KL of later states (docs/ppo.md).
    """
    if kind == "k1":
        raise ValueError("kind='k1' as a loss has an expected gradient of zero; use k2, or k1 in the reward")
    # Before the estimate: where padding makes it infinite, a mask behind it leaves a gradient of 0 times infinity.
    new, reference = (part.masked_fill(~mask, 0.0) for part in (logprobs, ref_logprobs))
    return estimate(new, reference, kind).sum() / n_tokens


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None, n_tokens: Tensor | float
) -> ValueLoss:
    """Clipped squared error (Schulman et al. 2017, as in the authors' code), to minimise.

    0.5 * max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2); clip None: 0.5 * (V - R)^2. values, old_values,
    returns, mask [batch, response]. n_tokens as in `ppo_policy_loss`.
    """
    values = values.masked_fill(~mask, 0.0)
    old_values = old_values.masked_fill(~mask, 0.0)
    returns = returns.masked_fill(~mask, 0.0)
    unclipped = (values - returns).square()
    if clip is None:
        return ValueLoss(0.5 * unclipped.sum() / n_tokens, torch.zeros_like(unclipped.sum().detach()))
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    loss = 0.5 * torch.maximum(unclipped, clipped).sum() / n_tokens
    return ValueLoss(loss, (clipped > unclipped).sum().detach() / n_tokens)


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of votes (Bradley & Terry 1952), one loss per pair, [batch].

    chosen, rejected [batch] scores in nats; P(chosen wins) = sigmoid(chosen - rejected - margin). target [batch] is
    the wanted P(chosen wins): 1 for a vote (the default), 0.5 for a tie. label_smoothing mixes the target with its
    opposite (Mitchell 2023, "cDPO", for votes that are wrong with that probability). weight [batch] scales a pair.
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    target = torch.ones_like(difference) if target is None else target
    target = target * (1 - label_smoothing) + (1 - target) * label_smoothing
    loss = -(target * logsigmoid(difference) + (1 - target) * logsigmoid(-difference))
    return loss if weight is None else loss * weight
