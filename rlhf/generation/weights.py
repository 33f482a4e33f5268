"""A policy's weights, one by one, under the names and in the shapes in which a checkpoint would hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rlhf.adapters import is_adapted, is_few_bits
from rlhf.sharding import whole


@dataclass(frozen=True)
class Weight:
    """One of a model's weights."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]  # with all of its parts, on every rank; a collective where the model is shared out


def weights_of(policy: nn.Module) -> list[Weight]:
    """All weights of a policy, adapters merged in; what is tied occurs once. The same order on every rank."""
    model: Any = policy.get_base_model() if is_adapted(policy) else policy
    adapted = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    found = [Weight(f"{name}.weight", _shape_of_sum(layer), _maker(_sum, layer)) for name, layer in adapted.items()]
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        layer = owner.removesuffix(".base_layer")
        if ".lora_" in name or (layer in adapted and leaf == "weight"):
            continue
        found.append(Weight(f"{layer}.{leaf}", shape_of(parameter), _maker(whole, parameter)))
    return found


def _maker(make: Callable[[Any], Tensor], of: Any) -> Callable[[], Tensor]:
    return lambda: make(of).detach()


def _shape_of_sum(layer: Any) -> tuple[int, ...]:
    shape = shape_of(layer.lora_B["default"].weight)[0], shape_of(layer.lora_A["default"].weight)[1]
    return shape[::-1] if layer.fan_in_fan_out else shape


def _sum(layer: Any) -> Tensor:
    """What was frozen and what the adapter adds; GPT-2's layers keep their weights [in, out]."""
    base = layer.base_layer
    down, up = whole(layer.lora_A["default"].weight), whole(layer.lora_B["default"].weight)
    added = up.float() @ down.float() * layer.scaling["default"]
    if is_few_bits(base):
        from peft.utils.integrations import dequantize_module_weight

        frozen: Tensor = dequantize_module_weight(base)
    else:
        frozen = whole(base.weight)
    summed: Tensor = frozen.float() + (added.T if layer.fan_in_fan_out else added)
    return summed


def shape_of(parameter: Any) -> tuple[int, ...]:
    """The shape of all of a parameter, also of one that DeepSpeed holds in shares."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
