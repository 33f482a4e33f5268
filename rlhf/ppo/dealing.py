"""A step's rows dealt out anew for each minibatch, so that every rank trains on about as many tokens.

Responses differ in length, and ranks that train in lockstep wait for the one with most. Rows are few numbers beside a
model, so every rank gets all of them, once a step, and each takes its part of a minibatch by the same rule.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from rlhf.distributed import gather_objects, world_size
from rlhf.ppo.targets import Targets
from rlhf.types import Experience

BEHIND = ("attention_mask", "tokens")  # [batch, prompt + response]: padded on both sides of where responses begin


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices into costs by rank: the dearest first, each to the rank that has least so far (Graham 1969).

    No rank has more than 4/3 of what the fairest deal would give its fullest. The same on every rank.
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    least = [(0, rank) for rank in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        cost, rank = heapq.heappop(least)
        hands[rank].append(index)
        heapq.heappush(least, (cost + costs[index], rank))
    return [sorted(hand) for hand in hands]


def gather_rows(experience: Experience, targets: Targets) -> tuple[Experience, Targets]:
    """The rows of all ranks, in the order of their global index, without `terms`. A collective; nothing to do alone.

    Every rank's are on the CPU.
    """
    if world_size() == 1:
        return experience, targets
    parts = gather_objects((_tensors(experience), _tensors(targets)))
    order = torch.cat([own["rows"] for own, _ in parts]).argsort()
    boundary = max(own["tokens"].shape[1] - own["mask"].shape[1] for own, _ in parts)
    width = max(own["mask"].shape[1] for own, _ in parts)

    def joined(number: int) -> dict[str, Tensor]:
        names = parts[0][number].keys()
        return {
            name: torch.cat([_widened(part, part[number][name], name, boundary, width) for part in parts])[order]
            for name in names
        }

    return replace(experience, **joined(0), terms={}), replace(targets, **joined(1))  # type: ignore[arg-type]


def _tensors(of: Experience | Targets) -> dict[str, Tensor]:
    found = {field.name: getattr(of, field.name) for field in fields(of)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _widened(
    part: tuple[dict[str, Tensor], dict[str, Tensor]], field: Tensor, name: str, boundary: int, width: int
) -> Tensor:
    """A rank's field as wide as the widest rank's: prompts grow on the left, responses on the right."""
    if field.ndim == 1:
        return field
    own = part[0]["mask"].shape[1]
    left = boundary - (part[0]["tokens"].shape[1] - own) if name in BEHIND else 0
    return torch.nn.functional.pad(field, (left, width - own))
