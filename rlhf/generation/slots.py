"""Keys and values of sequences that are decoded together, each in a slot of memory that the next one takes over.

The memory is made once, and a token is written to its place; nothing is copied as sequences grow. What attends is a row
of new tokens: whole prompts first, packed, then one token of each sequence that decodes.
"""

from __future__ import annotations

from contextlib import nullcontext
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
        self.memory: dict[int, Tensor] = {}  # [slots * capacity, groups of keys and as many of values, width]
        self.turn: Turn | None = None

    def attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, by_flash: bool = False
    ) -> Tensor:
        """As `attend`, of what models hand over: [1, heads, tokens, width]; result [1, tokens, heads, width]."""
        heads = torch.cat([query[0], key[0], value[0]]).transpose(0, 1)
        return self.attend(layer, heads, query.shape[1], scaling, by_flash).to(value.dtype)[None]

    def attend(self, layer: int, heads: Tensor, queries: int, scaling: float | None, by_flash: bool = False) -> Tensor:
        """Write what is new, and attend; heads [tokens, queries, then groups of keys and of values, width].

        Result [tokens, queries, width]; by_flash: see `rlhf.packing.attend`, of prompts.
        """
        turn = self.turn
        assert turn is not None
        if heads.dtype != self.kind:  # to ask is cheaper than to convert for nothing, some thousand times
            heads = heads.to(self.kind)
        both = heads[:, queries:]
        memory = self.memory.get(layer)
        if memory is None:
            with torch.inference_mode(False), torch.no_grad():  # written to from outside as well
                memory = self.memory[layer] = zeros((self.slots * self.capacity, *both.shape[1:]), both)
        memory.index_copy_(0, turn.places, both)
        if turn.prompts is None:
            return self._decode(heads, queries, memory, turn, scaling)
        groups = both.shape[1] // 2
        parts = heads[: turn.prompt_tokens].split_with_sizes([queries, groups, groups], dim=1)
        query, key, value = (part.transpose(0, 1)[None] for part in parts)
        found = attend(query, key, value, scaling, turn.prompts, by_flash)[0]
        if turn.decoding:
            decoded = self._decode(heads[turn.prompt_tokens :], queries, memory, turn, scaling)
            found = torch.cat([found, decoded.to(found.dtype)])
        return found

    def _decode(self, heads: Tensor, queries: int, memory: Tensor, turn: Turn, scaling: float | None) -> Tensor:
        """heads [decoding, queries and more, width]; result [decoding, queries, width]."""
        groups, width = memory.shape[1] // 2, memory.shape[2]
        # Views by one call each, of which there are hundreds in a step. Heads that share keys are queries of one head:
        # nothing is repeated.
        row, token = self.capacity * 2 * groups * width, 2 * groups * width
        shape, strides = (turn.decoding, groups, turn.longest, width), (row, width, token, 1)
        keys = memory.as_strided(shape, strides)
        values = memory.as_strided(shape, strides, memory.storage_offset() + groups * width)
        asking = heads[:, :queries].view(turn.decoding, groups, -1, width)
        # Autocast would round what is kept in float32. To turn it off where it is off takes longer than to ask.
        on = torch.is_autocast_enabled(heads.device.type)
        with torch.autocast(heads.device.type, enabled=False) if on else nullcontext():
            found = scaled_dot_product_attention(asking, keys, values, attn_mask=turn.mask, scale=scaling)
        return found.flatten(1, 2)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy tokens [n] from places of the memory to others."""
        for part in self.memory.values():
            part.index_copy_(0, target, part.index_select(0, source))

    def move(self, source: int, target: int, length: int) -> None:
        """Move a sequence of so many tokens from one slot to another."""
        there, here = target * self.capacity, source * self.capacity
        for part in self.memory.values():
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
