"""The optimisation of one PPO step: epochs, minibatches, micro-batches, in lockstep over ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.batching import split_by_tokens
from rlhf.config import PpoConfig
from rlhf.distributed import global_max, global_sum
from rlhf.engine import Engine
from rlhf.logprobs import response_logprobs, response_values
from rlhf.losses import ppo_policy_loss, ppo_value_loss
from rlhf.ppo.experience import MicroBatch, trim
from rlhf.types import Experience

NAMES = ("loss/policy", "policy/clipfrac", "policy/approxkl", "loss/value", "value/clipfrac", "objective/entropy")


@dataclass(frozen=True)
class Targets:
    """What the update fits."""

    advantages: Tensor  # [batch, response], whitened
    returns: Tensor  # [batch, response]


def update(
    policy: Engine, value: Engine, experience: Experience, targets: Targets, config: PpoConfig, key: tuple[int, int]
) -> dict[str, float]:
    """Train both models on one rollout; the statistics' means over optimizer steps.

    key: (seed, step), from which the order of rows is drawn: the same for every number of ranks.
    """
    totals = torch.zeros(len(NAMES), dtype=torch.float64)
    norms: list[tuple[float, float]] = []
    for rows in minibatches(experience.rows, config, key):
        n_tokens = float(global_sum(experience.mask[rows].sum().to(_device(policy))))
        work = micro_batches_in_lockstep(experience, rows, config.micro_batch_tokens)
        for i, batch in enumerate(work):
            with policy.micro_batch(last=i == len(work) - 1), value.micro_batch(last=i == len(work) - 1):
                totals += _micro_step(policy, value, experience, targets, batch, config, n_tokens)
        norms.append((policy.step(), value.step()))
    steps = config.epochs * config.minibatches
    means = global_sum(totals.to(_device(policy))) / steps
    policy_norms, value_norms = zip(*norms, strict=True)
    return {
        **dict(zip(NAMES, means.tolist(), strict=True)),
        "policy/grad_norm": sum(policy_norms) / steps,
        "value/grad_norm": sum(value_norms) / steps,
        # Engines drop a step whose gradient is not finite, on all ranks alike.
        "policy/skipped_steps": sum(not math.isfinite(norm) for norm in policy_norms),
        "value/skipped_steps": sum(not math.isfinite(norm) for norm in value_norms),
    }


def minibatches(rows: Tensor, config: PpoConfig, key: tuple[int, int]) -> Iterator[Tensor]:
    """This rank's share of each minibatch of each epoch, as indices into its experience.

    rows [batch]: the global index of each local row. The global batch is permuted and cut, then each rank takes the
    rows it owns, so that a minibatch holds the same prompts however many ranks there are.
    """
    owned = {int(row): i for i, row in enumerate(rows)}
    shuffle = torch.Generator().manual_seed((key[0] * 1_000_003 + key[1]) % 2**63)
    for _ in range(config.epochs):
        order = torch.randperm(config.prompts_per_step, generator=shuffle)
        for part in order.chunk(config.minibatches):
            yield torch.tensor([owned[int(row)] for row in part if int(row) in owned], dtype=torch.long)


def micro_batches_in_lockstep(experience: Experience, rows: Tensor, budget: int) -> list[MicroBatch | None]:
    """This rank's micro-batches, filled with empty work (None) up to the largest number on any rank."""
    responses = experience.mask.sum(-1)
    prompts = experience.attention_mask.sum(-1) - responses
    widths = list(zip(prompts[rows].tolist(), responses[rows].tolist(), strict=True))
    work: list[MicroBatch | None] = [
        trim(rows[indices], experience.tokens, experience.attention_mask, experience.mask)
        for indices in split_by_tokens(widths, budget)
    ]
    return work + [None] * (global_max(len(work)) - len(work))


def _micro_step(
    policy: Engine,
    value: Engine,
    experience: Experience,
    targets: Targets,
    batch: MicroBatch | None,
    config: PpoConfig,
    n_tokens: float,
) -> Tensor:
    """Forward and backward of one micro-batch; its shares of the statistics, in the order of NAMES."""
    empty = batch is None
    if batch is None:  # one row that counts nothing, so that this rank makes the same calls as the others
        batch = trim(torch.zeros(1, dtype=torch.long), experience.tokens, experience.attention_mask, experience.mask)
    device, length = _device(policy), batch.response_length
    inputs = batch.tokens.to(device), batch.attention_mask.to(device), length

    def of(field: Tensor) -> Tensor:
        return field[batch.rows, :length].to(device)

    mask = of(experience.mask) & (not empty)
    new = response_logprobs(policy, *inputs, config.generation.temperature)  # type: ignore[arg-type]
    policy_loss = ppo_policy_loss(
        new.logprobs, of(experience.old_logprobs), of(targets.advantages), mask, config.clip, n_tokens
    )
    policy.backward(policy_loss.loss)
    values = response_values(value, *inputs)  # type: ignore[arg-type]
    value_loss = ppo_value_loss(values, of(experience.values), of(targets.returns), mask, config.value_clip, n_tokens)
    value.backward(value_loss.loss)
    entropy = new.entropy.masked_fill(~mask, 0.0).sum() / n_tokens
    shares = (*policy_loss, *value_loss, entropy)
    return torch.stack([share.detach().double().cpu() for share in shares])


def _device(engine: Engine) -> torch.device:
    return next(engine.module.parameters()).device
