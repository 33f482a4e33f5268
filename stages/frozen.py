"""Models that only answer."""

from __future__ import annotations

import torch
from torch import nn

from rlhf.config import Recipe
from rlhf.distributed import device
from rlhf.models import is_quantized
from rlhf.sharding import Sharding


def freeze(model: nn.Module, recipe: Recipe, sharding: Sharding | None = None, scores: bool = False) -> nn.Module:
    """A model on this rank's device that only answers, in the dtype of computation; one of few bits as it is.

    sharding: shares it out over processes, unless it has few bits. scores: it is a reward model, which is called part
    by part. Buffers stay as they are: rotary frequencies in bfloat16 are off by a radian at position 1,000.
    """
    if is_quantized(model):
        sharding = None
    else:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, recipe.model.dtype))
        if sharding is None:
            model = model.to(device())
    model = model.eval().requires_grad_(False)
    if sharding is None:
        return model
    return sharding.shard_frozen(model, scores)
