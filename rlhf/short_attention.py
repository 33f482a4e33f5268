"""Causal attention of short sequences on CPUs, written out: scores, softmax, means.

torch's kernel for CPUs never holds all scores, which pays off for long sequences alone. Here heads that share keys are
queries of one head, so that nothing is repeated, and tokens are moved once, from the row that they stand in to the
order that products want: less time up to some hundred tokens, above all backward (`tests/attending.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf.blocks import Block

SHORT = 96  # tokens of the longest sequence: behind it there is less to gain, and all weights are kept for the backward
NOTHING = torch.zeros(1, 1, 1)  # what products are added to


def is_short(block: Block, device: torch.device) -> bool:
    """Whether this is the faster attention for a block's sequences."""
    return device.type == "cpu" and 0 < block.width <= SHORT


def short_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], scaling: float | None
) -> Tensor:
    """[tokens, heads, width of values] of query [tokens, heads, width], key and value [tokens, groups, width].

    In float32 or wider, whatever is given. What stands behind the last block gets zeros.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found: Tensor = _Attention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    return found


class _Attention(torch.autograd.Function):
    """See `short_attention`."""

    @staticmethod
    def forward(
        context: Any, query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Block, ...], scale: float
    ) -> Tensor:
        groups = key.shape[1]
        found, kept = _room(query, blocks, value.shape[-1]), []
        learns = any(context.needs_input_grad)
        with torch.autocast("cpu", enabled=False):
            for block in blocks:
                asking, keys, values = (_ordered(part, block, groups) for part in (query, key, value))
                behind = torch.ones(block.width, block.width, dtype=torch.bool).triu_(1)
                scores = torch.baddbmm(NOTHING.to(asking), asking, keys.transpose(1, 2), beta=0, alpha=scale)
                scores.masked_fill_(behind.repeat(asking.shape[1] // block.width, 1), -torch.inf)
                weights = torch.softmax(scores, -1)
                _return(torch.bmm(weights, values), found, block)
                kept += [asking, keys, values, weights] if learns else []
        if learns:
            context.save_for_backward(*kept)
            context.blocks, context.scale, context.groups = blocks, scale, groups
            context.kinds = query.dtype, key.dtype, value.dtype
        return found

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        blocks, groups, kept = context.blocks, context.groups, context.saved_tensors
        width, of_values = kept[0].shape[-1], gradient[:, :groups]
        of_query, of_key = _room(gradient, blocks, width), _room(of_values, blocks, width)
        of_value = _room(of_values, blocks, gradient.shape[-1])
        with torch.autocast("cpu", enabled=False):
            for number, block in enumerate(blocks):
                asking, keys, values, weights = kept[4 * number : 4 * number + 4]
                upstream = _ordered(gradient, block, groups, fill=True)
                of_weights = torch.bmm(upstream, values.transpose(1, 2))
                _return(torch.bmm(weights.transpose(1, 2), upstream), of_value, block)
                of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).mul_(context.scale)
                _return(torch.bmm(of_scores, keys), of_query, block)
                _return(torch.bmm(of_scores.transpose(1, 2), asking), of_key, block)
        found = zip((of_query, of_key, of_value), context.kinds, strict=True)
        return *(part.to(kind) for part, kind in found), None, None


def _room(like: Tensor, blocks: tuple[Block, ...], width: int) -> Tensor:
    """Room for [tokens, heads, width], zeros where there are no tokens of a block; like [tokens, heads, any]."""
    found = like.new_empty(*like.shape[:2], width, dtype=torch.promote_types(like.dtype, torch.float32))
    found[blocks[-1].end :].zero_()
    return found


def _ordered(part: Tensor, block: Block, groups: int, fill: bool = False) -> Tensor:
    """[sequences * groups, heads in each * longest, width] of a block's tokens; part [tokens, heads, width].

    Places that are no token's take a sequence's last one, which nobody sees there. fill: or zeros, as gradients must.
    """
    heads, width = part.shape[1:]
    rows, order = part[block.begin : block.end].reshape(-1, width), block.order(heads)
    if fill and block.spread is not None:
        found = rows.new_zeros(len(order.there), width).index_copy_(0, order.back, rows)
    else:
        found = rows.index_select(0, order.there)
    return found.to(torch.promote_types(found.dtype, torch.float32)).view(block.count * groups, -1, width)


def _return(found: Tensor, target: Tensor, block: Block) -> None:
    """Write [sequences * groups, heads in each * longest, width] where `_ordered` would take it from."""
    heads, width = target.shape[1:]
    out = target[block.begin : block.end].view(-1, width)
    torch.index_select(found.view(-1, width), 0, block.order(heads).back, out=out)
