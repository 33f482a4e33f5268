"""Norms and MLPs of Llama and its kind that keep less for the backward pass than transformers' own.

A norm keeps what it was given, which the residual stream keeps anyway, and what it gives, which linear layers multiply;
an MLP what its first two products gave. What stands between is computed again, in a pass or two.
Results are transformers' to the rounding of sums (`tests/test_layers.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlhf.narrow import autocast_dtype
from rlhf.products import Linear, input_gradient, linear, weight_gradient
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
        gate, up = self.gate_proj(states), self.up_proj(states)
        own = isinstance(self.down_proj, Down)  # unless adapters or quantization have wrapped or replaced it
        found: Tensor = self.down_proj(gate, up) if own else self.down_proj(gated(gate, up))
        return found


class Down(Linear):
    """The last product of a `GatedMlp`, which keeps of what it multiplies only what that was made from.

    A module of its own still, for engines that share weights out bring them back before its forward.
    """

    def forward(self, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """[..., out] of silu(gate) * up, [..., in] each; without up, of its first argument."""
        if up is None:
            return super().forward(gate)
        if self.packed is not None or not torch.is_grad_enabled():
            return super().forward(gated(gate, up))
        kind = autocast_dtype(gate.device) or gate.dtype
        found: Tensor = _Down.apply(gate, up, self.weight, self.bias, kind)  # type: ignore[no-untyped-call]
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
            if type(module.down_proj) in (nn.Linear, Linear):
                module.down_proj.__class__ = Down


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
            _before_silu(gradient * up, gate) if of_gate else None,
            functional.silu(gate).mul_(gradient) if of_up else None,
        )


class _Down(torch.autograd.Function):
    """See `Down`; what is multiplied is made once more in the backward, of silu(gate), which is needed there anyway."""

    @staticmethod
    def forward(
        context: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, kind: torch.dtype
    ) -> Tensor:
        # The weight itself, which engines that share it out bring back for the backward.
        context.save_for_backward(gate, up, weight)
        context.kind, context.kind_of_bias = kind, None if bias is None else bias.dtype
        inner = functional.silu(gate).mul_(up).to(kind)
        return linear(inner, weight.to(kind), None if bias is None else bias.to(kind))

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = context.saved_tensors
        of_gate, of_up, of_weight, of_bias, _ = context.needs_input_grad
        kind, rows = context.kind, gradient.reshape(-1, gradient.shape[-1])
        activated = functional.silu(gate)
        of_this = None
        if of_weight:
            inner = (activated * up).to(kind)
            of_this = weight_gradient(rows, inner.reshape(-1, inner.shape[-1])).to(weight.dtype)
            del inner
        of_inner = input_gradient(gradient, weight.to(kind)).to(gate.dtype)
        found_bias = rows.sum(0).to(context.kind_of_bias) if of_bias else None
        found_up = activated.mul_(of_inner) if of_up else None
        found_gate = _before_silu(of_inner.mul_(up), gate) if of_gate else None
        return found_gate, found_up, of_this, found_bias, None


def _before_silu(gradient: Tensor, gate: Tensor) -> Tensor:
    """The gradient of gate, of that of silu(gate), in whose place it is."""
    found: Tensor = torch.ops.aten.silu_backward.grad_input(gradient, gate, grad_input=gradient)
    return found
