"""Train and test by hash of the prompt: a prompt is in one of them, whatever else changes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlhf.types import Prompt

T = TypeVar("T")


@dataclass(frozen=True)
class Split(Generic[T]):
    """Examples for training, and those held out."""

    train: Sequence[T]
    test: Sequence[T]
    notes: tuple[str, ...] = ()  # what people should know of how they were read


def side_of(text: str) -> int:
    """A text's hash in 64 bits; read as a number in [0, 1) it is held out where it is below the fraction."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_test(prompt: Prompt, test_fraction: float) -> bool:
    """Whether a prompt is held out."""
    return side_of(prompt.text) / 2**64 < test_fraction


def held_out(sides: NDArray[np.uint64], test_fraction: float) -> NDArray[np.bool_]:
    """`is_test` of many at once, by what `side_of` made of their texts."""
    return sides.astype(np.float64) / 2.0**64 < test_fraction


def split_prompts(prompts: Sequence[Prompt], test_fraction: float) -> Split[Prompt]:
    """Split prompts in memory; their order stays, repeats are dropped. Of sources: `data.mixtures.split_parts`."""
    train: list[Prompt] = []
    test: list[Prompt] = []
    for prompt in dict.fromkeys(prompts):
        (test if is_test(prompt, test_fraction) else train).append(prompt)
    return Split(train, test)


def stable_random(key: str) -> np.random.RandomState:
    """A generator of a key alone. RandomState's streams are promised to stay, unlike those of newer generators."""
    return np.random.RandomState(int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big"))
