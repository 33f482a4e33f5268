"""Sequences of similar lengths in a row of tokens, to be attended to as if all were as long as the longest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

SIMILAR = 0.75  # the shortest sequence of a block, in lengths of its longest


@dataclass(frozen=True, eq=False)
class Order:
    """From rows [tokens * heads] to [sequences, heads, longest], and back."""

    there: Tensor  # [count * heads * width] the row that each place takes
    back: Tensor  # [tokens * heads] the place of each row


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbours in the row that attend together."""

    begin: int  # first token
    end: int  # one behind the last
    count: int  # sequences
    width: int  # tokens of the longest
    spread: Tensor | None  # [count * width] the token that each place takes; None: all are as long, nothing to move
    back: Tensor | None  # [end - begin] the place of each token
    orders: dict[int, Order] = field(default_factory=dict)  # by heads, once they were asked for

    def alone(self) -> Block:
        """The same for a row that has no other tokens."""
        return replace(self, begin=0, end=self.end - self.begin)

    def order(self, heads: int) -> Order:
        """Where the heads of tokens stand if those of a sequence are one behind the other; the same in all layers."""
        if heads not in self.orders:
            places, head = torch.arange(self.count * self.width), torch.arange(heads)
            tokens = (places if self.spread is None else self.spread).view(self.count, 1, self.width)
            back = places if self.back is None else self.back
            sequence, column = back[:, None] // self.width, back[:, None] % self.width
            self.orders[heads] = Order(
                (tokens * heads + head[:, None]).flatten(), ((sequence * heads + head) * self.width + column).flatten()
            )
        return self.orders[heads]


def blocks_of(bounds: list[int], device: torch.device) -> tuple[Block, ...]:
    """The blocks of sequences that stand between bounds, as long as they are given neighbours of similar length."""
    lengths = [after - before for before, after in pairwise(bounds)]
    first, shortest, longest = [0], lengths[0], lengths[0]
    for i, length in enumerate(lengths):
        shortest, longest = min(shortest, length), max(longest, length)
        if shortest < SIMILAR * longest:
            first.append(i)
            shortest = longest = length
    return tuple(_block(bounds[a : b + 1], device) for a, b in pairwise([*first, len(lengths)]))


def _block(bounds: list[int], device: torch.device) -> Block:
    lengths = [after - before for before, after in pairwise(bounds)]
    begin, width = bounds[0], max(lengths)
    if min(lengths) == width:
        return Block(begin, bounds[-1], len(lengths), width, None, None)
    of_each = torch.tensor(lengths)[:, None]
    columns = torch.arange(width)[None]
    inside = columns < of_each
    # What stands behind a sequence's end is never looked at by it: any token will do.
    spread = (torch.tensor(bounds[:-1])[:, None] - begin + torch.minimum(columns, of_each - 1)).flatten()
    back = inside.flatten().nonzero().squeeze(-1)
    spread, back = (part.to(device, non_blocking=True) for part in (spread, back))
    return Block(begin, bounds[-1], len(lengths), width, spread, back)
