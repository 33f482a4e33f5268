"""Products of float32 matrices on CPUs by oneDNN: torch's are MKL's, which leaves AVX-512 alone on AMD's processors.

On Intel's MKL's are some 5 % faster, and gradients of weights by a third and more: there oneDNN has what it is given in
an order of its own alone.

A model's linear layers are made to (`own_products`), forward and backward. While a model does nothing but read, oneDNN
may have its weights in an order of its own (`packed`), which is what decoding few rows is fastest in. Under autocast
they keep no copies of weights (`rlhf.narrow`); elsewhere and for other dtypes they are torch's own products.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlhf.narrow import autocast_dtype, narrow_linear

# What is compiled for a shape takes half a megabyte, and each of torch and oneDNN would keep a thousand. Both ask when
# they first multiply, so this has to come before.
os.environ.setdefault("LRU_CACHE_CAPACITY", "256")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
GRAIN = 32  # rows, see `fillers`
NARROW = 16  # below it, of either width, oneDNN is no faster


class Linear(nn.Linear):
    """A linear layer that computes by `linear`."""

    packed: Tensor | None = None  # the weight as oneDNN wants it, see `packed`

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., out] of hidden [..., in]."""
        return linear(hidden, self.weight, self.bias, self.packed)


class Score(nn.Linear):
    """A head whose one number is a score or a value: in float32, whatever it is given and autocast says.

    bfloat16 knows none between 4 and 4 + 1/32, which would be ties of responses that are none.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., 1] of hidden [..., in]."""
        kind = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(kind)
            return functional.linear(hidden.to(kind), self.weight.to(kind), bias)


def own_products(model: nn.Module) -> None:
    """Have a model's linear layers compute by `linear`, and a head `score` as `Score`.

    In place, so that whoever shares or wraps them goes on to.
    """
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            module.__class__ = Score if name == "score" and module.out_features == 1 else Linear


def has_onednn(kind: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN multiplies such numbers: on x86, unless `torch.backends.mkldnn.enabled` is set to False.

    bfloat16 takes a processor with AVX-512 or avx_ne_convert.
    """
    there: Any = torch.backends.mkldnn
    return bool(there.enabled) and _works(kind)


@functools.cache
def _works(kind: torch.dtype) -> bool:
    """Whether torch has oneDNN's products here, under the names and with the arguments that are used."""
    there: Any = torch.backends.mkldnn
    if platform.machine() not in ("x86_64", "AMD64") or not there.is_available():
        return False
    one = torch.ones(NARROW, NARROW, dtype=kind)
    try:
        found = _product(one, torch.ops.mkldnn._reorder_linear_weight(one))
    except (AttributeError, RuntimeError):  # they are not part of what torch promises to keep
        return False
    return bool((found == NARROW).all())


@functools.cache
def is_intels() -> bool:
    """Whether the processor is of MKL's own maker, so that torch's products in float32 are the faster ones."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:  # no Linux
        return False


def fillers(rows: int, device: torch.device) -> int:
    """How many rows to add, so that shapes come again: oneDNN compiles a product for each, in up to a millisecond.

    Up to the next power of two where they are very few, to a multiple of a quarter of GRAIN where they are few, else of
    GRAIN, or of a 32nd of the next power of two. Never one row: its sums may be in another order than those of several.
    """
    if not rows or device.type != "cpu" or not has_onednn():
        return 0
    if rows <= GRAIN // 4:
        return max(2, 1 << (rows - 1).bit_length()) - rows
    return -rows % (GRAIN // 4 if rows <= 2 * GRAIN else max(GRAIN, 2 ** (rows - 1).bit_length() // 32))


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Tensor | None = None) -> Tensor:
    """hidden [..., in] times weight [out, in], and the bias [out]; packed: the same weight, from `packed`."""
    if packed is not None:
        return _product(hidden.to(packed.dtype), packed, None if bias is None else bias.to(packed.dtype))
    kind = autocast_dtype(weight.device)
    if kind is not None and weight.dtype == torch.float32 and torch.is_grad_enabled():
        return narrow_linear(hidden, weight, bias, kind)
    if not _takes(hidden, weight):
        return functional.linear(hidden, weight, bias)
    if torch.is_grad_enabled():
        found: Tensor = _Linear.apply(hidden, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _product(hidden, weight, bias)


def _takes(hidden: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's are the faster products of these."""
    narrow = min(weight.shape) < NARROW or not hidden.numel()
    plain = hidden.dtype == weight.dtype == torch.float32 and hidden.device.type == weight.device.type == "cpu"
    return plain and not narrow and not torch.is_autocast_enabled("cpu") and has_onednn() and not is_intels()


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    """See `linear`."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(hidden, weight)
        return _product(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = context.saved_tensors
        of_hidden, of_weight, of_bias = context.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            input_gradient(gradient, weight) if of_hidden else None,
            weight_gradient(rows, hidden.reshape(len(rows), -1)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """That of what was multiplied [..., in], of the output's gradient [..., out] and the weight [out, in]."""
    return _product(gradient, weight.t()) if _takes(gradient, weight) else gradient @ weight


def weight_gradient(gradient: Tensor, hidden: Tensor) -> Tensor:
    """The weight's [out, in], of the output's gradient [rows, out] and what was multiplied [rows, in]."""
    if not _takes(hidden, gradient.t()):
        return gradient.t() @ hidden
    # oneDNN takes one of the two transposed as it is; the other is copied.
    return _product(gradient.t().contiguous(), hidden.t())


@contextmanager
def packed(model: nn.Module, bfloat16: bool) -> Iterator[None]:
    """Inside, the linear layers of a model that only reads multiply by copies of their weights in oneDNN's order.

    Where there is none, or on another device, nothing changes. The weights must not change inside.
    """
    kind = torch.bfloat16 if bfloat16 else torch.float32
    layers = [each for each in model.modules() if isinstance(each, Linear) and _packs(each.weight, kind)]
    try:
        for layer in layers:
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(kind))
        yield
    finally:
        for layer in layers:
            layer.packed = None


def product_of(layers: Sequence[nn.Linear], bfloat16: bool) -> Callable[[Tensor], Tensor]:
    """What multiplies the same rows by the weights of several layers at once; results one behind the other.

    By copies of the weights, which must not change: in oneDNN's order on CPUs, else where autocast would make some as
    well. In float32 on a GPU there are none.
    """
    kind = torch.bfloat16 if bfloat16 else torch.float32
    weights = [layer.weight.detach() for layer in layers]
    on_cpu = all(_packs(weight, kind) for weight in weights)
    if not on_cpu and not bfloat16:
        return lambda hidden: torch.cat([functional.linear(hidden, layer.weight, layer.bias) for layer in layers], -1)
    weight, bias = torch.cat([each.to(kind) for each in weights]), None
    if any(layer.bias is not None for layer in layers):
        some = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
        bias = torch.cat([each.detach().to(kind) for each in some])
    if not on_cpu:
        return lambda hidden: functional.linear(hidden.to(kind), weight, bias)
    ordered = torch.ops.mkldnn._reorder_linear_weight(weight)
    if bfloat16:
        return lambda hidden: _product(hidden.to(kind), ordered, bias)
    return lambda hidden: _product(hidden, ordered, bias)


def _packs(weight: Tensor, kind: torch.dtype) -> bool:
    """Whether a copy of the weight, of that dtype, is had in oneDNN's order."""
    wide = weight.dtype == torch.float32 and min(weight.shape, default=0) >= NARROW
    return weight.is_cpu and wide and has_onednn(kind)
