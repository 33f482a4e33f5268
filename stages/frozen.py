"""Models that only answer."""

from __future__ import annotations

import torch
from torch import nn

from rlhf.config import Recipe
from rlhf.distributed import device
from rlhf.models import is_quantized


def freeze(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A model on this rank's device that only answers, in the dtype of computation; one of few bits as it is.

    Buffers stay as they are: rotary frequencies in bfloat16 are off by a radian at position 1,000.
    """
    if not is_quantized(model):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, recipe.model.dtype))
        model = model.to(device())
    return model.eval().requires_grad_(False)
