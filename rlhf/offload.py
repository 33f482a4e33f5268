"""What waits in the CPU's memory while it is not used: weights of models that only answer, and an optimizer's state.

Tensors stay the objects that they are, with whoever holds them, FSDP among them; only what they hold goes and comes
back. A model that is called while its weights are away raises. The same on every device, so that a CPU shows that
nothing is used which is not there; memory is saved on a GPU, where copies are pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.heads import scoring_parts
from rlhf.sharding import own_part


class Offloaded:
    """Some tensors, or this rank's part of those that are shared out, each away or at hand."""

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], changing: bool) -> None:
        """tensors: those there are at the time; changing: they learn, so what is kept of them must be renewed."""
        self.tensors = tensors
        self.changing = changing
        self.kept: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}  # by its object: a storage, and its copy
        self.away = False

    @torch.no_grad()
    def release(self) -> None:
        """Put all away."""
        if self.away:
            return
        storages = {storage._cdata: storage for storage in map(storage_of, self.tensors())}
        if self.changing or not self.kept:
            self.kept = {key: (storage, _copy(storage, self.kept.get(key))) for key, storage in storages.items()}
        for storage in storages.values():
            storage.resize_(0)
        self.away = True

    @torch.no_grad()
    def fetch(self) -> None:
        """Bring all back."""
        if not self.away:
            return
        for storage, copy in self.kept.values():
            storage.resize_(copy.numel())
            _bytes(storage).copy_(copy, non_blocking=True)
        self.away = False

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Inside, all are there; they are away behind it."""
        self.fetch()
        try:
            yield
        finally:
            self.release()


def offloaded_models(models: Iterable[nn.Module]) -> Offloaded:
    """The weights of models that only answer, away from now on. Each is called as `rlhf.heads.scoring_parts` says."""
    called = list(models)
    parameters = [parameter for model in called for parameter in model.parameters()]
    for parameter in parameters:
        if not storage_of(parameter).resizable():  # it is that of a file, which only a CPU computes from
            parameter.data = parameter.data.clone()
    found = Offloaded(lambda: parameters, changing=False)
    found.release()

    def require_here(part: nn.Module, _: Any) -> None:
        if found.away:
            raise RuntimeError(f"{type(part).__name__} is called while its weights are in the CPU's memory")

    for part in (part for model in called for part in scoring_parts(model)):
        part.register_forward_pre_hook(require_here, prepend=True)  # before FSDP's, which reads them
    return found


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """Where this rank's part of a tensor is."""
    return own_part(tensor.detach()).untyped_storage()


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _copy(storage: torch.UntypedStorage, before: tuple[torch.UntypedStorage, Tensor] | None) -> Tensor:
    """A storage's bytes in the CPU's memory: in the place of the copy before, if there is one."""
    size = storage.nbytes()
    if before is None or before[1].numel() != size:
        copy = torch.empty(size, dtype=torch.uint8, pin_memory=storage.device.type == "cuda")
    else:
        copy = before[1]
    # Ordered on the device before whatever takes the memory next, and before the copy back.
    return copy.copy_(_bytes(storage), non_blocking=True)
