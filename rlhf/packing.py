"""Sequences of different lengths one behind another in a single row of tokens, so that no padding is computed.

Linear layers and norms see real tokens alone. Attention keeps the sequences apart: by kernels for variable lengths
where the device has them, else in blocks of similar lengths, padded on the right, where being causal is mask enough.
An attention of a name of ours is given to each architecture in ARCHITECTURES (`accept`); called with a mask and without
`packing`, it is scaled dot product attention as ever. The kernel is torch's, or flash-attn's where the recipe asks for
flash_attention_2.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.blocks import Block, blocks_of
from rlhf.layers import keep_less
from rlhf.products import fillers, own_products
from rlhf.shapes import ARCHITECTURES
from rlhf.short_attention import is_short, short_attention
from rlhf.tied import tie
from rlhf.token_head import head_of_tokens

ATTENTION, BY_FLASH = "rlhf_packed", "rlhf_packed_2"  # a name with "flash" in it would have transformers' own ways
NAMES = {"sdpa": ATTENTION, "flash_attention_2": BY_FLASH}  # of model.attention
LARGEST_HEAD = 256  # of the kernel for variable lengths, which also wants multiples of 8
WIDE = 256  # tokens from which attention on CPUs is faster in bfloat16 than in float32


@dataclass(frozen=True, eq=False)
class Packing:
    """Where sequences begin and end in a row."""

    starts: Tensor  # [sequences + 1] int32: the first token of each, and the number of all tokens
    longest: int
    blocks: tuple[Block, ...]
    added: int = 0  # rows behind the last sequence that are none


def pack(lengths: list[int], device: torch.device, added: int = 0) -> Packing:
    """The packing of sequences of so many tokens each, in this order; neighbours should be of similar length."""
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    starts = torch.tensor(bounds, dtype=torch.int32).to(device, non_blocking=True)
    return Packing(starts, max(lengths), blocks_of(bounds, device), added)


class _Spread(torch.autograd.Function):
    """Rows of a tensor by index; the gradient comes back by the inverse index.

    Faster than what autograd does for an index, which must add: here each row is used once, or its gradient is 0.
    """

    @staticmethod
    def forward(context: Any, tensor: Tensor, spread: Tensor, back: Tensor) -> Tensor:
        context.save_for_backward(back)
        return tensor.index_select(0, spread)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = context.saved_tensors
        return gradients[0].index_select(0, back), None, None


class _Return(torch.autograd.Function):
    """Rows of a tensor by index, some of them never; their gradient is 0."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, back: Tensor) -> Tensor:
        context.save_for_backward(back)
        context.rows = len(tensor)
        return tensor.index_select(0, back)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (back,) = context.saved_tensors
        gradient = gradients[0]
        return gradient.new_zeros(context.rows, *gradient.shape[1:]).index_copy_(0, back, gradient), None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    slots: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of packed sequences, or of what is decoded in slots (`rlhf.generation.slots`), or transformers'.

    query [1, heads, tokens, width], key and value [1, groups, tokens, width]; result [1, tokens, heads, width].
    """
    by_flash = module.config._attn_implementation == BY_FLASH  # type: ignore[union-attr]
    if packing is not None:
        return attend(query, key, value, scaling, packing, by_flash), None
    if slots is not None:
        found: Tensor = slots.attention(module.layer_idx, query, key, value, scaling, by_flash)
        return found, None
    if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and query.shape[2] > 1:
        raise RuntimeError("this architecture keeps `packing` from its attention: sequences would see each other")
    output: Tensor = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )[0]
    return output, None


def attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing, by_flash: bool = False
) -> Tensor:
    """See `attention`; by_flash: with flash-attn's kernel in place of torch's, where there is one."""
    kind = query.dtype
    if torch.is_autocast_enabled(query.device.type):  # rotary positions come in float32, values in autocast's dtype
        kind = torch.get_autocast_dtype(query.device.type)
    if has_kernel(query, kind):
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        return (_by_flash if by_flash else _by_torch)(query, key, value, scaling, packing)
    query, key, value = (part.transpose(1, 2)[0] for part in (query, key, value))
    if all(is_short(block, query.device) for block in packing.blocks):
        return short_attention(query, key, value, packing.blocks, scaling).to(kind).unsqueeze(0)
    parts = []
    for block in packing.blocks:
        asking, keys, values = (part[block.begin : block.end] for part in (query, key, value))
        if is_short(block, query.device):
            parts.append(short_attention(asking, keys, values, (block.alone(),), scaling).to(kind))
        else:
            parts.append(_block_attention(asking, keys, values, block, scaling, kind))
    if packing.added:
        parts.append(parts[0].new_zeros(packing.added, *parts[0].shape[1:]))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)


def _block_attention(
    query: Tensor, key: Tensor, value: Tensor, block: Block, scaling: float | None, kind: torch.dtype
) -> Tensor:
    """By torch's own attention; query [tokens, heads, width], key and value [tokens, groups, width]."""
    repeats, computed = query.shape[1] // key.shape[1], kind_of_attention(kind, query.device, block.width)
    rows = query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    asking, keys, values = (_blocked(row.to(computed), block) for row in rows)
    with torch.autocast(query.device.type, enabled=False):  # which would round again
        seen = scaled_dot_product_attention(asking, keys, values, is_causal=True, scale=scaling)
    found: Tensor = seen.transpose(1, 2).flatten(0, 1).to(kind)
    if block.back is not None:
        found = _Return.apply(found, block.back)  # type: ignore[no-untyped-call]
    return found


def kind_of_attention(kind: torch.dtype, device: torch.device, width: int) -> torch.dtype:
    """What attention over so many tokens computes in: up to some width bfloat16 is the slower one on CPUs."""
    return torch.float32 if device.type == "cpu" and kind == torch.bfloat16 and width < WIDE else kind


def _blocked(part: Tensor, block: Block) -> Tensor:
    """Tokens [tokens, heads, width] as a block [sequences, heads, longest, width]."""
    if block.spread is not None and block.back is not None:
        part = _Spread.apply(part, block.spread, block.back)  # type: ignore[no-untyped-call]
    return part.reshape(block.count, block.width, *part.shape[1:]).transpose(1, 2)


def has_kernel(query: Tensor, kind: torch.dtype) -> bool:
    """Whether a kernel for variable lengths takes queries [..., width] of that dtype, where they are."""
    narrow = kind in (torch.float16, torch.bfloat16)
    return query.is_cuda and narrow and query.shape[-1] % 8 == 0 and query.shape[-1] <= LARGEST_HEAD


def _by_flash(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing) -> Tensor:
    """By the package flash-attn (Dao 2023), whose heads may share keys."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]  # on machines with a GPU alone

    asking, keys, values = (part.transpose(1, 2)[0].contiguous() for part in (query, key, value))
    starts, longest = packing.starts, packing.longest
    found: Tensor = flash_attn_varlen_func(
        asking, keys, values, starts, starts, longest, longest, dropout_p=0.0, softmax_scale=scaling, causal=True
    )
    return found.unsqueeze(0)


def _by_torch(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing) -> Tensor:
    """Flash attention for variable lengths, part of torch on CUDA devices."""
    from torch.nn.attention.varlen import varlen_attn

    asking, keys, values = (part.transpose(1, 2)[0].contiguous() for part in (query, key, value))
    starts, longest = packing.starts, packing.longest
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0)}
    if _asks_for_groups(varlen_attn):
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    found: Any = varlen_attn(asking, keys, values, starts, starts, longest, longest, **options)
    result: Tensor = found.unsqueeze(0)
    return result


@functools.cache
def _asks_for_groups(kernel: Callable[..., object]) -> bool:
    """Whether torch's kernel wants to be told that heads share keys; 2.11's takes them as they come."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def packed_inputs(tokens: Tensor, positions: Tensor, lengths: list[int], device: torch.device) -> dict[str, Any]:
    """What a model that packs is called with, for sequences in a row: tokens, positions [tokens].

    On CPUs rows stand behind them of which nobody asks anything: see `rlhf.products.fillers`.
    """
    added = fillers(len(tokens), device)
    return {
        "input_ids": pad(tokens, (0, added))[None].to(device, non_blocking=True),
        "position_ids": pad(positions, (0, added))[None].to(device, non_blocking=True),
        "attention_mask": unmasked(device),
        "packing": pack(lengths, device, added),
    }


def unmasked(device: torch.device) -> Tensor:
    """What a packed forward gives as its mask: of four dimensions, which transformers hands on as it is, and unread.

    Without one it would make a mask of [tokens, tokens], and with `position_ids` alone find the sequences for it.
    """
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def accept(model: Any) -> None:
    """Have a causal model take packed sequences, if its architecture can and it computes by an attention in NAMES.

    Its linear layers become ours, whatever it can, and so do norms and MLPs of the architectures in LEAN.
    """
    own_products(model)
    keep_less(model)
    config = model.config
    windows = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    own = config._attn_implementation
    name = NAMES.get(own, own if own in NAMES.values() else None)
    if config.model_type in ARCHITECTURES and name is not None and windows is None:
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, sdpa_mask)
        model.set_attn_implementation(name)
        if head := head_of_tokens(model):
            tie(model.get_input_embeddings(), head)


def packs(model: Any) -> bool:
    """Whether a model takes packed sequences: `packing`, `unmasked`, and no cache."""
    config = getattr(getattr(model, "policy", model), "config", None)
    return getattr(config, "_attn_implementation", None) in NAMES.values()


__all__ = ["ARCHITECTURES", "ATTENTION", "Packing", "accept", "attend", "pack", "packed_inputs", "packs", "unmasked"]
