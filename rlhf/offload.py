"""What waits in the CPU's memory while it is not used: weights of models that only answer, and an optimizer's state.

Tensors stay the objects that they are, with whoever holds them, FSDP among them; only what they hold goes and comes
back. A model that is called while its weights are away raises. The same on every device, so that a CPU shows that
nothing is used which is not there; memory is saved on a GPU, where copies are pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.heads import scoring_parts
from rlhf.sharding import own_part

BLOCK = 2**30  # bytes of the CPU's memory that are taken at once
ALIGNED = 512  # bytes: where a copy may begin


class Offloaded:
    """Some tensors, or this rank's part of those that are shared out, each away or at hand."""

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], changing: bool) -> None:
        """tensors: those there are at the time; changing: they learn, so what is kept of them must be renewed."""
        self.tensors = tensors
        self.changing = changing
        self.kept: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}  # by its object: a storage, and its copy
        self.room: list[Tensor] = []  # for the copies
        self.away = False

    @torch.no_grad()
    def release(self) -> None:
        """Put all away."""
        if self.away:
            return
        storages = {storage._cdata: storage for storage in map(storage_of, self.tensors())}
        if self.changing or not self.kept:
            self._keep(storages)
        for storage in storages.values():
            storage.resize_(0)
        self.away = True

    def _keep(self, storages: Mapping[int, torch.UntypedStorage]) -> None:
        sizes = [storage.nbytes() for storage in storages.values()]
        if [place.numel() for place in self.room] != sizes:
            self.kept, self.room = {}, []  # the old one goes before there is another
            self.room = room_for(sizes, pinned=any(each.device.type == "cuda" for each in storages.values()))
        self.kept = {key: (storages[key], place) for key, place in zip(storages, self.room, strict=True)}
        for storage, place in self.kept.values():
            # Ordered on the device before whatever takes the memory next, and before the copy back.
            place.copy_(_bytes(storage), non_blocking=True)

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


def room_for(sizes: Iterable[int], pinned: bool) -> list[Tensor]:
    """Places of so many bytes in the CPU's memory, several to a block.

    torch rounds what it pins up to a power of two, so that a place for each would take up to twice the room.
    """
    filled: list[int] = []  # bytes of each block
    places: list[tuple[int, int, int]] = []  # block, first byte, size
    for size in sizes:
        aligned = -(-size // ALIGNED) * ALIGNED
        block = next((i for i, taken in enumerate(filled) if taken + aligned <= BLOCK), len(filled))
        if block == len(filled):
            filled.append(0)
        places.append((block, filled[block], size))
        filled[block] += aligned
    blocks = [torch.empty(taken, dtype=torch.uint8, pin_memory=pinned) for taken in filled]
    return [blocks[block][begin : begin + size] for block, begin, size in places]


def storage_of(tensor: Tensor) -> torch.UntypedStorage:
    """Where this rank's part of a tensor is."""
    return own_part(tensor.detach()).untyped_storage()


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
