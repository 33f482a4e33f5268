"""Train and test by hash of the prompt: a prompt is in one of them, whatever else changes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlhf.types import Comparison, Demonstration, Prompt

T = TypeVar("T")
Record = TypeVar("Record", Demonstration, Comparison)


@dataclass(frozen=True)
class Split(Generic[T]):
    """Examples for training, and those held out."""

    train: list[T]
    test: list[T]


def is_test(prompt: Prompt, test_fraction: float) -> bool:
    """Whether a prompt is held out: its hash, read as a number in [0, 1), is below the fraction."""
    head = hashlib.sha256(prompt.text.encode()).digest()[:8]
    return int.from_bytes(head, "big") / 2**64 < test_fraction


def split_prompts(prompts: Sequence[Prompt], test_fraction: float) -> Split[Prompt]:
    """Split prompts; their order stays, repeats are dropped."""
    unique = list(dict.fromkeys(prompts))
    split: Split[Prompt] = Split([], [])
    for prompt in unique:
        (split.test if is_test(prompt, test_fraction) else split.train).append(prompt)
    return split


def split_records(records: Sequence[Record], test_fraction: float) -> Split[Record]:
    """Split records by their prompts; their order stays."""
    split: Split[Record] = Split([], [])
    for record in records:
        (split.test if is_test(record.prompt, test_fraction) else split.train).append(record)
    return split
