"""What a CUDA graph is, on a CPU: operations as they were once called, on the same tensors, and no Python in between.

Whatever a step computes in Python (a number, a shape, a choice) is fixed when it is recorded, and a replay writes into
the tensors of the recording, as a graph does. What no graph may hold is an error while it records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What waits for the device, or has a result whose shape the device decides.
FORBIDDEN = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique2",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "bincount",
    "equal",
    "is_nonzero",
}


class NotInAGraph(Exception):
    """An operation that a graph cannot hold."""


class Watched(TorchDispatchMode):
    """Lets operations pass that a graph can hold, on one device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []  # operation, what it was given, results

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        indexed = name in ("index", "index_put", "index_put_") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_leaves(args)
        )
        if name in FORBIDDEN or indexed:
            raise NotInAGraph(name)
        with self:  # in inference mode what is made of other operations arrives as a whole
            parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        found = function(*args, **kwargs)
        for each in tree_leaves((args, kwargs, found)):
            if isinstance(each, Tensor) and self.elsewhere(each):
                raise NotInAGraph(f"{name} of a tensor on another device")
        self.calls.append((function, args, kwargs, tree_leaves(found)))
        return found

    def elsewhere(self, tensor: Tensor) -> bool:
        """Whether a tensor is on another device than the graph."""
        return tensor.device.type != self.device

    def replay(self) -> None:
        """Call all of them once more."""
        for function, args, kwargs, results in self.calls:
            again(function, args, kwargs, results)


class Tape:
    """A recorder (`rlhf.generation.graphs.Recorder`) of operations on a CPU."""

    def __init__(self) -> None:
        self.once_computed = self.replayed = 0
        self.recorded: list[Any] = []  # the steps

    def once(self, step: Callable[[], Tensor]) -> Tensor:
        """The step's result."""
        self.once_computed += 1
        return step()

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What computes the step again. As a graph does, recording itself leaves nothing that could be used."""
        with Watched("cpu") as watched:
            found = step()
        self.recorded.append(step)
        with torch.inference_mode():  # in which the decoder computes: its results are written to in no other
            found.fill_(torch.nan)

        @torch.inference_mode()
        def replay() -> Tensor:
            watched.replay()
            self.replayed += 1
            return found

        return replay


def again(function: Any, args: Any, kwargs: Any, results: list[Any]) -> None:
    """Call an operation once more, into the results of its first call."""
    given = {memory(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
    for before, now in zip(results, tree_leaves(function(*args, **kwargs)), strict=True):
        if isinstance(before, Tensor) and memory(before) not in given:  # no view, and not written in place
            before.copy_(now)


def memory(tensor: Tensor) -> int:
    """Which memory a tensor is in; of oneDNN's own, which are never written to, which tensor."""
    return id(tensor) if tensor.layout is torch._mkldnn else tensor.untyped_storage().data_ptr()
