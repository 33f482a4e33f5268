"""Keys and values of sequences that are decoded together, each in a slot of memory that the next one takes over.

The memory is made once, and a token is written to its place; nothing is copied as sequences grow. What attends is a row
of new tokens: whole prompts first, packed, then one token of each sequence that decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlhf.packing import Packing, attend


@dataclass(frozen=True, eq=False)
class Turn:
    """One forward: where its tokens are written, and what they see."""

    places: Tensor  # [tokens] into the memory of [slots * capacity] tokens
    prompts: Packing | None  # of the first tokens
    prompt_tokens: int
    decoding: int  # sequences that decode: those of the first slots
    longest: int  # tokens in the longest of them
    mask: Tensor | None  # [decoding, 1, 1, longest] to add to scores: 0 for its tokens, -inf behind them


class Slots:
    """The memory of all layers; a layer's is made when it is first written to."""

    def __init__(self, slots: int, capacity: int, kind: torch.dtype) -> None:
        self.slots = slots
        self.capacity = capacity
        self.kind = kind  # that attention computes in
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}
        self.turn: Turn | None = None

    def attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, by_flash: bool = False
    ) -> Tensor:
        """Write what is new, and attend; query [1, heads, tokens, width], result [1, tokens, heads, width].

        by_flash: see `rlhf.packing.attend`, of prompts.
        """
        turn = self.turn
        assert turn is not None
        given = value.dtype
        query, key, value = (part.to(self.kind) for part in (query, key, value))
        if layer not in self.memory:
            shape = (self.slots * self.capacity, key.shape[1], key.shape[3])
            self.memory[layer] = zeros(shape, key), zeros(shape, value)
        keys, values = self.memory[layer]
        keys.index_copy_(0, turn.places, key[0].transpose(0, 1))
        values.index_copy_(0, turn.places, value[0].transpose(0, 1))
        parts = []
        if turn.prompts is not None:
            asking, new_keys, new_values = (part[:, :, : turn.prompt_tokens] for part in (query, key, value))
            parts.append(attend(asking, new_keys, new_values, scaling, turn.prompts, by_flash))
        if turn.decoding:
            parts.append(self._decode(query[0, :, turn.prompt_tokens :], keys, values, turn, scaling))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).to(given)

    def _decode(self, query: Tensor, keys: Tensor, values: Tensor, turn: Turn, scaling: float | None) -> Tensor:
        """query [heads, decoding, width]; result [1, decoding, heads, width]."""
        used, longest = turn.decoding * self.capacity, turn.longest
        seen_keys, seen_values = (
            part[:used].view(turn.decoding, self.capacity, *part.shape[1:])[:, :longest].transpose(1, 2)
            for part in (keys, values)
        )
        # Heads that share keys are queries of one head: nothing is repeated.
        rows = query.transpose(0, 1)
        shared = rows.reshape(turn.decoding, keys.shape[1], -1, rows.shape[-1])
        with torch.autocast(query.device.type, enabled=False):  # which would round what is kept in float32
            found = scaled_dot_product_attention(shared, seen_keys, seen_values, attn_mask=turn.mask, scale=scaling)
        return found.flatten(1, 2).unsqueeze(0)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy tokens [n] from places of the memory to others."""
        for parts in self.memory.values():
            for part in parts:
                part.index_copy_(0, target, part.index_select(0, source))

    def move(self, source: int, target: int, length: int) -> None:
        """Move a sequence of so many tokens from one slot to another."""
        there, here = target * self.capacity, source * self.capacity
        for parts in self.memory.values():
            for part in parts:
                part[there : there + length] = part[here : here + length]


def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Memory of zeros: what is behind a sequence's end counts nothing, but 0 times what is not finite would.

    On CPUs, pages that are never written to are never taken: few sequences are as long as they may be.
    """
    if like.is_cpu and like.dtype == torch.float32:
        return torch.from_numpy(np.zeros(shape, np.float32))
    return like.new_zeros(shape)


def additive_mask(lengths: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
    """See `Turn.mask`; lengths [decoding]."""
    columns = torch.arange(longest, device=lengths.device)
    mask = torch.zeros(len(lengths), longest, dtype=dtype, device=lengths.device)
    return mask.masked_fill_(columns >= lengths[:, None], -torch.inf)[:, None, None]
