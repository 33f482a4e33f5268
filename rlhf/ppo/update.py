"""The optimisation of one PPO step: epochs, minibatches, micro-batches, in lockstep over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.batching import split_by_tokens
from rlhf.config import PpoConfig
from rlhf.distributed import global_sum, rank, world_size
from rlhf.engine import Engine
from rlhf.lockstep import in_lockstep
from rlhf.logprobs import response_logprobs, response_values
from rlhf.packing import packs
from rlhf.ppo.dealing import deal, gather_rows
from rlhf.ppo.experience import MicroBatch, trim
from rlhf.ppo.objective import Objective
from rlhf.ppo.safety import Fault, examine, examine_minibatch
from rlhf.ppo.targets import Targets
from rlhf.sharding import device_of
from rlhf.types import Experience


class Update(NamedTuple):
    """What came of a step."""

    statistics: dict[str, float]  # means over its minibatches, over all ranks
    fault: Fault | None  # what was not finite, so that the step, or the rest of it, was not learned from


def update(
    policy: Engine,
    value: Engine | None,
    experience: Experience,
    targets: Targets,
    config: PpoConfig,
    key: tuple[int, int],
    learn_policy: bool = True,
) -> Update:
    """Train the policy, and the value model if there is one, on one rollout.

    value: None, an engine of its own, or the policy's, whose model then has a value head. key: (seed, step), from which
    the order of rows is drawn: the same for every number of ranks. learn_policy: False while the value model warms up.
    From what is not finite neither model learns, nor from what follows it in the step; schedules go on as planned.
    """
    engines = {"policy": policy} | ({} if value is policy or value is None else {"value": value})
    seen: list[Tensor] = []  # of each minibatch, this rank's shares of the statistics
    norms: list[dict[str, float]] = []  # of each minibatch, the whole gradients'
    updates, names, planned = 0, [""], config.epochs * config.minibatches
    fault = examine(experience, targets)
    packed = all(packs(engine.module) for engine in engines.values())
    every, targets = (experience, targets) if fault else gather_rows(experience, targets)
    for rows in () if fault else minibatches(config, key):
        objective = Objective(config, targets, float(every.mask[rows].sum()), learn_policy)
        work = micro_batches_in_lockstep(every, own_share(every, rows), config.micro_batch_tokens, packed)
        shares = _gradient(engines.values(), work, partial(_micro_step, policy, value, every, objective=objective))
        names = list(shares)
        seen.append(torch.stack(list(shares.values())))
        if _too_far(shares["policy/approxkl"], config.target_kl):
            break  # measured before this minibatch's update, which is dropped with all that would follow
        learning = {role: engine for role, engine in engines.items() if learn_policy or role != "policy"}
        norms.append({role: engine.norm() for role, engine in learning.items()})
        # Of both models, before either is updated.
        if fault := examine_minibatch(_losses(shares), _gradients(norms[-1]), torch.isin(experience.rows, rows)):
            break
        for role, engine in engines.items():
            engine.step() if role in learning else engine.skip()
        updates += 1
    for engine in engines.values():
        engine.skip(planned - updates)
        engine.rest()
    dropped = float(planned - updates if fault else 0)
    statistics = _means(seen, names)
    for role in engines:
        if seen:
            statistics[f"{role}/grad_norm"] = sum(norm.get(role, 0.0) for norm in norms) / max(1, len(norms))
        statistics[f"{role}/skipped_steps"] = dropped
    if config.target_kl is not None:
        statistics["policy/updates"] = updates
    return Update(statistics, fault)


def _gradient(
    engines: Collection[Engine],
    work: Sequence[MicroBatch | None],
    learn: Callable[[MicroBatch | None], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Add up the gradients of a minibatch; this rank's shares of the statistics."""
    shares: dict[str, Tensor] = {}
    for i, batch in enumerate(work):
        with ExitStack() as stack:
            for engine in engines:
                stack.enter_context(engine.micro_batch(last=i == len(work) - 1))
            found = learn(batch)
        shares = {name: shares.get(name, 0) + share.double() for name, share in found.items()}
    return shares


def _means(seen: list[Tensor], names: list[str]) -> dict[str, float]:
    """Statistics over minibatches and ranks, of each minibatch's shares on this rank."""
    if not seen:
        return {}
    shares = torch.stack(seen)
    means, first = global_sum(torch.stack([shares.mean(0), shares[0]])).tolist()
    statistics = dict(zip(names, means, strict=True))
    statistics["policy/approxkl_first"] = dict(zip(names, first, strict=True))["policy/approxkl"]  # on policy: 0
    return statistics


def _losses(shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: share for name, share in shares.items() if name.startswith("loss/") or name == "policy/approxkl"}


def _gradients(norms: Mapping[str, float]) -> dict[str, float]:
    return {f"{role}/grad_norm": norm for role, norm in norms.items()}


def _too_far(share: Tensor, target: float | None) -> bool:
    """Whether the policy has left the one that sampled by more than the target; the same on every rank.

    A distance that is not finite is a fault, not an early end.
    """
    distance = math.nan if target is None else float(global_sum(share.clone()))
    return target is not None and math.isfinite(distance) and distance > target


def minibatches(config: PpoConfig, key: tuple[int, int]) -> Iterator[Tensor]:
    """Each minibatch of each epoch, as indices into the global batch: the same however many ranks there are."""
    shuffle = torch.Generator().manual_seed((key[0] * 1_000_003 + key[1]) % 2**63)
    for _ in range(config.epochs):
        yield from torch.randperm(config.responses_per_step, generator=shuffle).chunk(config.minibatches)


def own_share(every: Experience, rows: Tensor) -> Tensor:
    """What this rank trains on of some rows of the global batch; see `rlhf.ppo.dealing`."""
    lengths = every.attention_mask[rows].sum(-1).tolist()
    return rows[torch.tensor(deal(lengths, world_size())[rank()], dtype=torch.long)]


def micro_batches_in_lockstep(
    experience: Experience, rows: Tensor, budget: int, packed: bool = False
) -> list[MicroBatch | None]:
    """This rank's micro-batches, filled with empty work (None) up to the largest number on any rank."""
    responses = experience.mask.sum(-1)
    prompts = experience.attention_mask.sum(-1) - responses
    widths = list(zip(prompts[rows].tolist(), responses[rows].tolist(), strict=True))
    return in_lockstep(
        trim(rows[indices], experience.tokens, experience.attention_mask, experience.mask)
        for indices in split_by_tokens(widths, budget, packed)
    )


def _micro_step(
    policy: Engine, value: Engine | None, experience: Experience, batch: MicroBatch | None, objective: Objective
) -> dict[str, Tensor]:
    """Forward and backward of one micro-batch; its shares of the statistics."""
    empty = batch is None
    if batch is None:  # one row that counts nothing, so that this rank makes the same calls as the others
        batch = trim(torch.zeros(1, dtype=torch.long), experience.tokens, experience.attention_mask, experience.mask)
    device, length, config = _device(policy), batch.response_length, objective.config

    def of(field: Tensor) -> Tensor:
        return field[batch.rows, :length].to(device)

    mask = of(experience.mask) & (not empty)
    temperature, with_entropy = config.generation.temperature, config.entropy_bonus > 0
    shared = value is policy
    with torch.set_grad_enabled(objective.learn_policy):
        new = response_logprobs(policy, *batch.inputs, temperature, with_entropy)  # type: ignore[arg-type]
        loss, shares = objective.policy(new, experience, mask, of)
    if objective.learn_policy and not shared:
        # Before the value model's forward, so that the activations of the two never stand side by side.
        policy.backward(loss)
    if value is None:
        return shares
    values = new.values if shared else response_values(value, *batch.inputs)  # type: ignore[arg-type]
    assert values is not None
    of_values = objective.value(values, experience, mask, of)
    value.backward(loss + config.value_coef * of_values.loss if shared else of_values.loss)
    return shares | {"loss/value": of_values.loss.detach(), "value/clipfrac": of_values.clip_fraction}


def _device(engine: Engine) -> torch.device:
    return device_of(engine.module)
