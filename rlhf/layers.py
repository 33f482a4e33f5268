"""Norms and MLPs of Llama and its kind that keep less for the backward pass than transformers' own.

A norm keeps what it was given, which the residual stream keeps anyway, and what it gives, which linear layers multiply;
an MLP what its two products gave, and what it multiplies. What stands between is computed again, in a pass or two.
Results are transformers' to the rounding of sums (`tests/test_layers.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlhf.narrow import autocast_dtype
from rlhf.shapes import LEAN

READ_BY_LINEAR = ("input_layernorm", "post_attention_layernorm")  # of a block: by nothing else
CLASSES = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")  # of the architectures in LEAN


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019)."""

    weight: nn.Parameter
    variance_epsilon: float
    narrow = False  # whether only linear layers read it: under autocast it gives what these would make of it

    def forward(self, states: Tensor) -> Tensor:
        """[..., hidden] of states [..., hidden]."""
        weight, epsilon = self.weight, self.variance_epsilon
        if not states.dtype == weight.dtype == torch.float32:
            states, kind = states.float(), states.dtype
            return weight * (states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + epsilon)).to(kind)
        kind = (self.narrow and autocast_dtype(states.device)) or torch.float32
        if states.is_cuda:  # where torch's keeps as little
            return functional.rms_norm(states, weight.shape, weight, epsilon).to(kind)
        found: Tensor = _Norm.apply(states, weight, epsilon, kind)  # type: ignore[no-untyped-call]
        return found


class GatedMlp(nn.Module):
    """Shazeer 2020's SwiGLU."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, states: Tensor) -> Tensor:
        """[..., hidden] of states [..., hidden]."""
        found: Tensor = self.down_proj(gated(self.gate_proj(states), self.up_proj(states)))
        return found


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of [..., inner] each."""
    found: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return found


def keep_less(model: nn.Module) -> None:
    """Give a model of an architecture in LEAN these layers; in place, as `rlhf.products.own_products`."""
    if getattr(getattr(model, "config", None), "model_type", None) not in LEAN:
        return
    for name, module in model.named_modules():
        own = type(module).__name__
        if own in [f"{family}RMSNorm" for family in CLASSES]:
            module.__class__ = Norm
            module.narrow = name.rpartition(".")[2] in READ_BY_LINEAR
        elif own in [f"{family}MLP" for family in CLASSES] and _is_silu(module):
            module.__class__ = GatedMlp


def _is_silu(mlp: Any) -> bool:
    return type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")


class _Norm(torch.autograd.Function):
    """See `Norm`; with n = x / rms(x) the gradient of y = n w is (g w - n mean(g w n)) / rms(x)."""

    @staticmethod
    def forward(context: Any, states: Tensor, weight: Tensor, epsilon: float, kind: torch.dtype) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):  # which would round what `vecdot` is given
            squares = torch.linalg.vecdot(states, states)[..., None]
        scale = squares.div_(states.shape[-1]).add_(epsilon).rsqrt_()
        context.save_for_backward(states, weight, scale)
        found: Tensor = (states * scale).mul_(weight).to(kind)
        return found

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, scale = context.saved_tensors
        of_states, of_weight, _, _ = context.needs_input_grad
        gradient, normed = gradient.to(states.dtype), states * scale
        found = (gradient * normed).reshape(-1, len(weight)).sum(0) if of_weight else None
        if not of_states:
            return None, found, None, None
        scaled = gradient * weight
        with torch.autocast(states.device.type, enabled=False):
            mean = torch.linalg.vecdot(scaled, normed)[..., None].div_(states.shape[-1])
        return scaled.addcmul_(normed, mean, value=-1).mul_(scale), found, None, None


class _Gated(torch.autograd.Function):
    """See `gated`."""

    @staticmethod
    def forward(context: Any, gate: Tensor, up: Tensor) -> Tensor:
        context.save_for_backward(gate, up)
        found: Tensor = functional.silu(gate).mul_(up)
        return found

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = context.saved_tensors
        of_gate, of_up = context.needs_input_grad
        return (
            torch.ops.aten.silu_backward(gradient * up, gate) if of_gate else None,
            gradient * functional.silu(gate) if of_up else None,
        )
