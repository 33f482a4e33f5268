"""How models compute on the device at hand: what `auto` means in a recipe, and what a device cannot do.

dtype: bfloat16 on a GPU that has its arithmetic (compute capability 8.0 or more), else float32; float16 never, whose
range needs a loss scale that PPO's ratios would not survive. attention: flash_attention_2 where the package is
installed and the GPU, the dtype and the heads allow it, else sdpa; both read the boundaries of packed rows from their
positions. activation_checkpointing: on where `rlhf.memory` says that the stage would not fit the GPU without.

What learns stays in float32, bfloat16 is reached by autocast. TF32 is off: float32 means float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from rlhf.config import ModelConfig, Recipe
from rlhf.distributed import device, world_size
from rlhf.errors import ConfigError
from rlhf.memory import usable
from rlhf.recipe_memory import estimate
from rlhf.shapes import Shape

AMPERE = (8, 0)  # first compute capability with bfloat16 arithmetic, and the first that flash attention 2 is built for
LARGEST_HEAD = 256  # of flash attention 2, which also wants multiples of 8


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What one process computes on."""

    name: str  # "cpu", or as the driver calls it
    index: int | None = None  # of a GPU
    memory: int = 0  # bytes of a GPU
    capability: tuple[int, int] = (0, 0)  # of a GPU
    flash: bool = False  # the package of flash attention 2 is there
    threads: int = 1  # of a CPU

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.index is not None

    @property
    def has_bfloat16(self) -> bool:
        """Whether bfloat16 runs, on a CPU slowly."""
        return not self.is_gpu or self.capability >= AMPERE

    def __str__(self) -> str:
        """For people."""
        if not self.is_gpu:
            return f"cpu, {self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"cuda:{self.index} {self.name} {self.memory / 2**30:.0f} GiB"


def hardware() -> Hardware:
    """What this process computes on."""
    here = device()
    if here.type != "cuda":
        return Hardware(name="cpu", threads=torch.get_num_threads())
    found = torch.cuda.get_device_properties(here)
    return Hardware(
        name=found.name,
        index=here.index,
        memory=found.total_memory,
        capability=(found.major, found.minor),
        flash=bool(is_flash_attn_2_available()),
    )


def settled(config: ModelConfig, on: Hardware | None = None, shape: Shape | None = None) -> ModelConfig:
    """A model's settings without `auto`, but for activation checkpointing, which takes a whole recipe.

    Raises ConfigError where a setting is one that the device cannot do.
    """
    on = on or hardware()
    if config.dtype == "bfloat16" and not on.has_bfloat16:
        raise ConfigError(
            f"model.dtype=bfloat16: {on} has compute capability {on.capability[0]}.{on.capability[1]} and no bfloat16 "
            "arithmetic; use model.dtype=float32, or auto"
        )
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if on.is_gpu and on.has_bfloat16 else "float32"
    obstacle = flash_obstacle(on, dtype, shape)
    if config.attention == "flash_attention_2" and obstacle:
        raise ConfigError(f"model.attention=flash_attention_2: {obstacle}; use model.attention=sdpa, or auto")
    attention = config.attention
    if attention == "auto":
        attention = "sdpa" if obstacle else "flash_attention_2"
    return config.model_copy(update={"dtype": dtype, "attention": attention})


def flash_obstacle(on: Hardware, dtype: str, shape: Shape | None) -> str | None:
    """Why flash attention 2 cannot run here; None if it can."""
    if not on.is_gpu:
        return "this process computes on a CPU"
    if on.capability < AMPERE:
        return f"{on} has compute capability {on.capability[0]}.{on.capability[1]}, less than 8.0"
    if not on.flash:
        return "the package flash-attn (2.3.3 or newer) is not installed"
    if dtype != "bfloat16":
        return f"it has no kernels for {dtype}"
    if shape and (shape.head > LARGEST_HEAD or shape.head % 8):
        return f"heads of size {shape.head} are not a multiple of 8 up to {LARGEST_HEAD}"
    return None


def settled_recipe(
    recipe: Recipe, stage: str, shape: Shape | None = None, on: Hardware | None = None, processes: int | None = None
) -> Recipe:
    """A recipe whose model section has no `auto` left, for a stage and a model's shape.

    Where the shape is not known, activation checkpointing is on whenever there is a GPU.
    """
    on = on or hardware()
    model = settled(recipe.model, on, shape)
    if model.activation_checkpointing == "auto":
        plain = model.model_copy(update={"activation_checkpointing": False})
        if shape is None or not on.is_gpu:
            needed = on.is_gpu
        else:
            trial = recipe.model_copy(update={"model": plain})
            needed = estimate(trial, stage, shape, processes or world_size()).total > usable(on.memory)
        model = model.model_copy(update={"activation_checkpointing": needed})
    return recipe.model_copy(update={"model": model})


@dataclass(frozen=True)
class Computation:
    """What a stage computes with, for people and for its manifest."""

    model: ModelConfig  # settled
    on: Hardware
    processes: int

    def __str__(self) -> str:
        """One line."""
        dtype = self.model.dtype + (" (master weights float32)" if self.model.dtype != "float32" else "")
        parts = [dtype, self.model.attention]
        if self.on.is_gpu:
            parts.append(f"activation checkpointing {'on' if self.model.activation_checkpointing else 'off'}")
        parts += [str(self.on), f"{self.processes} process{'es' if self.processes != 1 else ''}"]
        return ", ".join(parts)

    def record(self) -> Mapping[str, Any]:
        """The manifest's account."""
        return {
            "dtype": self.model.dtype,
            "master_weights": "float32",
            "tf32": False,
            "attention": self.model.attention,
            "activation_checkpointing": self.model.activation_checkpointing,
            "device": "cuda" if self.on.is_gpu else "cpu",
            "device_name": self.on.name,
            "device_memory": self.on.memory or None,  # bytes
            "threads": self.on.threads if not self.on.is_gpu else None,
            "processes": self.processes,
        }


def keep_to_one_gpu(arguments: Any) -> None:
    """Have transformers' trainer, of these arguments, take no more than the first of the GPUs that it sees.

    In a process of its own it would spread over all of them by `DataParallel`, which TRL refuses. To hide the others by
    CUDA_VISIBLE_DEVICES is too late once a library has asked CUDA, as bitsandbytes does when it is imported.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)


def use_plain_float32() -> None:
    """Switch TF32 off in matrix products, also where an image's environment switched it on."""
    torch.set_float32_matmul_precision("highest")
