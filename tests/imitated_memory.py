"""Where the tensors of an imitated GPU are: memory of the CPU, with a mark; see tests/imitated_gpu.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

CUDA = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def tensors(given: Any) -> list[Tensor]:
    """All that are in lists, tuples and dictionaries; for each operation, so by the quickest way."""
    found: list[Tensor] = []
    todo = [given]
    while todo:
        each = todo.pop()
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, tuple | list):
            todo.extend(reversed(each))
        elif isinstance(each, dict):
            todo.extend(reversed(each.values()))
    return found


def storage(x: Tensor) -> Any:
    """Its memory; None where it has none of its own."""
    with torch._C.DisableTorchFunction():
        local = getattr(x, "_local_tensor", None)
        if isinstance(local, Tensor):
            return storage(local)
        if x.device.type != "cpu":
            return None
        try:
            return x.untyped_storage()
        except NotImplementedError:  # oneDNN's own order, sparse tensors
            return None


class Marks:
    """Memory that is on the imitated GPU."""

    def __init__(self) -> None:
        self.known: dict[int, StorageWeakRef] = {}  # by address, which is not used again while it is referred to
        self.most = 1000

    def put(self, held: Any, here: bool) -> None:
        """Mark memory, or take its mark away."""
        if here and held._cdata not in self.known:
            self.known[held._cdata] = StorageWeakRef(held)
        elif not here:
            self.known.pop(held._cdata, None)
        if len(self.known) > self.most:
            self.known = {key: each for key, each in self.known.items() if not each.expired()}
            self.most = 2 * len(self.known) + 1000

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Inside, nobody sees them."""
        known, self.known = self.known, {}
        try:
            yield
        finally:
            self.known = known

    def allocated(self, *_: Any) -> int:
        """Bytes of what lives."""
        living = (torch.UntypedStorage._new_with_weak_ptr(each.cdata) for each in self.known.values())
        return sum(each.nbytes() for each in living if each is not None)


MARKS, PINNED = Marks(), Marks()


def on_gpu(x: Any) -> bool:
    """Whether a tensor is on the imitated GPU."""
    return (held := storage(x)) is not None and held._cdata in MARKS.known


def mark(found: Any, here: bool = True) -> Any:
    """Tensors, which are on the GPU from now on, or are not."""
    for each in tensors(found):
        if (held := storage(each)) is not None:
            MARKS.put(held, here)
    return found


class Crossing(torch.autograd.Function):
    """A copy on the other side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: bool) -> Tensor:
        ctx.there = there
        with torch._C.DisableTorchFunction():
            return mark(x.detach().clone(), there)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return mark(gradient.clone(), not ctx.there), None
