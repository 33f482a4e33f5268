"""Process groups and collectives that are identities in a single process, so that algorithms never ask."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.beacons import patient
from rlhf.beacons.collectives import ASIDE

T = TypeVar("T")


def rank() -> int:
    """This process's index, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def counted(processes: int) -> str:
    """A number of processes, for people."""
    return "1 process" if processes == 1 else f"{processes} processes"


def is_main() -> bool:
    """Whether this process writes files and talks to people."""
    return rank() == 0


def device() -> torch.device:
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join_process_group(timeout_minutes: float = 10.0, alone: bool = False) -> None:
    """Join the group that torchrun or deepspeed announced in the environment; nothing to join in a single process.

    alone: a single process makes a group of its own, for what works in groups only.
    """
    single = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if dist.is_initialized() or (single and not alone):
        return
    if device().type == "cuda":
        torch.cuda.set_device(device())
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    if single:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, timeout=timeout, store=store, rank=0, world_size=1)
    else:
        dist.init_process_group(backend, timeout=timeout)


@contextmanager
def process_group(timeout_minutes: float = 10.0) -> Iterator[None]:
    """`join_process_group`, and leave it again."""
    joined = not dist.is_initialized()
    join_process_group(timeout_minutes)
    try:
        yield
    finally:
        if joined and dist.is_initialized():
            dist.destroy_process_group()


def global_sum(x: Tensor) -> Tensor:
    """Sum over ranks, in place; the identity in a single process."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def global_max(x: int) -> int:
    """The largest of one integer per rank."""
    if not dist.is_initialized():
        return x
    value = torch.tensor(x, device=device())
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def gather_objects(x: Any, group: Any = None) -> list[Any]:
    """One picklable object per rank, in rank order, on every rank; group: see `group_aside`."""
    if not dist.is_initialized():
        return [x]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, x, group=group)
    return gathered


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first(hours: float = 24.0) -> Iterator[None]:
    """Let the main process through alone, then the others, which find what it made; nothing in a single process.

    The others wait for hours: reading a data set may take longer than any collective. An error of the main process
    lets them through as well, into the same error.
    """
    if not dist.is_initialized():
        yield
        return
    group = _own_group(dist.group.WORLD, "main first", hours)
    if not is_main():
        dist.barrier(group)
    try:
        with patient("does what one rank alone does", hours * 3600) if is_main() else nullcontext():
            yield
    finally:
        if is_main():
            dist.barrier(group)


def patient_group(hours: float = 24.0) -> Any:
    """A group of all processes in which one may keep the others waiting for hours; None in a single process."""
    return _own_group(dist.group.WORLD, "patient", hours) if dist.is_initialized() else None


def from_main(work: Callable[[], T]) -> T:
    """What the main process makes of some work that may take hours, on every rank; its error is everybody's."""
    made: T | None = None
    error: Exception | None = None
    with main_first():
        if is_main():
            try:
                made = work()
            except Exception as failure:
                error = failure
    made, error = gather_objects((made, error))[0]
    if error is not None:
        raise error
    return cast(T, made)


def group_aside(hours: float = 1.0) -> Any:
    """A group of all processes, on their CPUs, for one other thread of each; None in a single process.

    Collectives of two threads would meet in one group in an order that differs between ranks. Only the main thread may
    ask, and every rank does: the first call is a collective. hours: one may keep the others waiting for so long.
    """
    return _own_group(dist.group.WORLD, ASIDE, hours) if dist.is_initialized() else None


@functools.cache
def _own_group(world: Any, purpose: str, hours: float) -> Any:
    """A gloo group of all processes for one purpose; one for each world there is."""
    return dist.new_group(backend="gloo", timeout=timedelta(hours=hours), group_desc=purpose)
