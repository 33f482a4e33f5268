"""The optimisation of one PPO step: epochs, minibatches, micro-batches, in lockstep over ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    The policy learns from no minibatch in which anything is not finite, the value model from none in which it is not
    itself; neither from what follows in the step. Schedules go on as planned.
    """
    # In this order: the gradients of one are gone before the other's come, and the policy looks at both.
    engines = ({} if value is policy or value is None else {"value": value}) | {"policy": policy}
    tally, planned = _Tally(engines), config.epochs * config.minibatches
    fault = examine(experience, targets)
    packed = all(packs(engine.module) for engine in engines.values())
    every, targets = (experience, targets) if fault else gather_rows(experience, targets)
    for rows in () if fault else minibatches(config, key):
        objective = Objective(config, targets, float(every.mask[rows].sum()), learn_policy)
        work = micro_batches_in_lockstep(every, own_share(every, rows), config.micro_batch_tokens, packed)
        going_on, fault = _learn(engines, every, _Minibatch(objective, work, torch.isin(experience.rows, rows)), tally)
        if not going_on:
            break
    for role, engine in engines.items():
        engine.skip(planned - tally.updates[role])
        engine.rest()
    statistics = tally.statistics()
    for role in reversed(engines):
        if norms := tally.norms[role]:
            statistics[f"{role}/grad_norm"] = sum(norms) / len(norms)
        statistics[f"{role}/skipped_steps"] = float(planned - tally.updates[role] if fault else 0)
    if config.target_kl is not None:
        statistics["policy/updates"] = tally.updates["policy"]
    return Update(statistics, fault)


class _Minibatch(NamedTuple):
    objective: Objective
    work: list[MicroBatch | None]  # this rank's
    own: Tensor  # [batch] bool, True = in it, of the rows that this rank sampled


class _Tally:
    """What is known of a step's minibatches."""

    def __init__(self, roles: Iterable[str]) -> None:
        self.seen: dict[str, list[Tensor]] = {}  # of each minibatch, this rank's shares of the statistics
        self.norms: dict[str, list[float]] = {role: [] for role in roles}  # of each, the whole gradient's
        self.updates = dict.fromkeys(self.norms, 0)

    def add(self, shares: Mapping[str, Tensor]) -> None:
        """Take in a minibatch's."""
        for name, share in shares.items():
            self.seen.setdefault(name, []).append(share)

    def statistics(self) -> dict[str, float]:
        """Means over minibatches and ranks, the policy's first. A collective, unless there was none."""
        if not self.seen:
            return {}
        names = sorted(self.seen, key=lambda name: "value" in name)
        means = torch.stack([torch.stack(self.seen[name]).mean(0) for name in names])
        first = torch.stack([self.seen[name][0] for name in names])
        means, first = global_sum(torch.stack([means, first])).tolist()
        statistics = dict(zip(names, means, strict=True))
        if "policy/approxkl" in statistics:  # on policy: 0
            statistics["policy/approxkl_first"] = first[names.index("policy/approxkl")]
        return statistics


def _learn(
    engines: Mapping[str, Engine], every: Experience, minibatch: _Minibatch, tally: _Tally
) -> tuple[bool, Fault | None]:
    """Update each model by a minibatch; whether the step goes on, and what was not finite."""
    objective = minibatch.objective
    for role, engine in engines.items():
        learn = partial(_micro_step, role, engine, every, objective)
        shares = _gradient(engine, minibatch.work, learn)
        tally.add(shares)
        if role == "policy" and _too_far(shares["policy/approxkl"], objective.config.target_kl):
            return False, None  # measured before this minibatch's update, which is dropped with all that would follow
        learns = role == "value" or objective.learn_policy
        norm = engine.norm() if learns else 0.0
        tally.norms[role].append(norm)
        if fault := examine_minibatch(_losses(shares), {f"{role}/grad_norm": norm}, minibatch.own):
            return False, fault
        engine.step() if learns else engine.skip()
        tally.updates[role] += 1
    return True, None


def _gradient(
    engine: Engine, work: Sequence[MicroBatch | None], learn: Callable[[MicroBatch | None], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Add up the gradients of a minibatch; this rank's shares of the statistics."""
    shares: dict[str, Tensor] = {}
    for i, batch in enumerate(work):
        with engine.micro_batch(last=i == len(work) - 1):
            found = learn(batch)
        shares = {name: shares.get(name, 0) + share.double() for name, share in found.items()}
    return shares


def _losses(shares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: share for name, share in shares.items() if name.startswith("loss/") or name == "policy/approxkl"}


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
    role: str, engine: Engine, experience: Experience, objective: Objective, batch: MicroBatch | None
) -> dict[str, Tensor]:
    """Forward and backward of one micro-batch; its shares of the statistics."""
    empty = batch is None
    if batch is None:  # one row that counts nothing, so that this rank makes the same calls as the others
        batch = trim(torch.zeros(1, dtype=torch.long), experience.tokens, experience.attention_mask, experience.mask)
    device, length, config = _device(engine), batch.response_length, objective.config

    def of(field: Tensor) -> Tensor:
        return field[batch.rows, :length].to(device, non_blocking=True)

    mask = of(experience.mask) & (not empty)
    if role == "value":
        values = response_values(engine, *batch.inputs)  # type: ignore[arg-type]
        loss, shares = objective.value(values, experience, mask, of)
        engine.backward(loss)
        return shares
    temperature, with_entropy = config.generation.temperature, config.entropy_bonus > 0
    with torch.set_grad_enabled(objective.learn_policy):
        new = response_logprobs(engine, *batch.inputs, temperature, with_entropy)  # type: ignore[arg-type]
        loss, shares = objective.policy(new, experience, mask, of)
    if new.values is not None:  # of a head on the policy
        of_values, more = objective.value(new.values, experience, mask, of)
        loss, shares = loss + config.value_coef * of_values, shares | more
    if objective.learn_policy:
        engine.backward(loss)
    return shares


def _device(engine: Engine) -> torch.device:
    return device_of(engine.module)
