"""Linear layers under autocast that keep no copy of their weights for the backward pass.

Autocast rounds a float32 weight to bfloat16, and autograd keeps what was multiplied: half of all weights once more from
each forward to its backward, whole also where they are shared out over processes. Rounded again there it is the same
copy, made while it is used; that costs one pass over the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast has products computed in on a device; None where it is off."""
    kind = device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else None


def narrow_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, kind: torch.dtype) -> Tensor:
    """hidden [..., in] times weight [out, in], and the bias [out], all of them rounded to a dtype, which it gives."""
    found: Tensor = _Linear.apply(hidden, weight, bias, kind)  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    """See `narrow_linear`; each gradient in the dtype of what it is of."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, kind: torch.dtype) -> Tensor:
        narrow = hidden.to(kind)
        # The weight itself, which engines that share it out bring back for the backward.
        context.save_for_backward(narrow if context.needs_input_grad[1] else None, weight)
        context.kind, context.given = kind, (hidden.dtype, None if bias is None else bias.dtype)
        return functional.linear(narrow, weight.to(kind), None if bias is None else bias.to(kind))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = context.saved_tensors
        of_hidden, of_weight, of_bias, _ = context.needs_input_grad
        kind_of_hidden, kind_of_bias = context.given
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            (gradient @ weight.to(context.kind)).to(kind_of_hidden) if of_hidden else None,
            (rows.t() @ hidden.reshape(-1, hidden.shape[-1])).to(weight.dtype) if of_weight else None,
            rows.sum(0).to(kind_of_bias) if of_bias else None,
            None,
        )
