"""How models compute on the device at hand: what `auto` means in a recipe."""

from __future__ import annotations

import importlib.util

import torch

from rlhf.config import ModelConfig, Recipe
from rlhf.distributed import device


def settled(config: ModelConfig) -> ModelConfig:
    """A model's settings with every `auto` replaced by what this process's device does best."""
    dtype, attention, checkpointing = config.dtype, config.attention, config.activation_checkpointing
    on_gpu = device().type == "cuda"
    if dtype == "auto":
        dtype = "bfloat16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if attention == "auto":
        kernel = on_gpu and dtype == "bfloat16" and importlib.util.find_spec("flash_attn") is not None
        attention = "flash_attention_2" if kernel else "sdpa"
    if checkpointing == "auto":
        checkpointing = on_gpu
    return config.model_copy(update={"dtype": dtype, "attention": attention, "activation_checkpointing": checkpointing})


def settled_recipe(recipe: Recipe) -> Recipe:
    """A recipe whose model section is `settled`."""
    return recipe.model_copy(update={"model": settled(recipe.model)})
