"""Equal numbers of forwards on all ranks: where a model is shared out, each is a collective, and one too few hangs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rlhf.distributed import global_max

T = TypeVar("T")


def in_lockstep(work: Iterable[T | None]) -> list[T | None]:
    """A rank's pieces of work, filled with empty ones (None) up to the largest number on any rank."""
    own: list[T | None] = list(work)
    return own + [None] * (global_max(len(own)) - len(own))
