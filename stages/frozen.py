"""Models that only answer."""

from __future__ import annotations

import torch
from torch import nn

from rlhf.config import Recipe
from rlhf.distributed import device
from rlhf.models import is_quantized


def freeze(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A model on this rank's device that only answers, in the dtype of computation; one of few bits as it is."""
    placed = model if is_quantized(model) else model.to(device(), getattr(torch, recipe.model.dtype))
    return placed.eval().requires_grad_(False)
