"""torch.cuda without CUDA, for an imitated GPU: what asks for the device, and streams, events and graphs on it.

See tests/imitated_gpu.py.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from imitated_memory import CUDA, MARKS, on_gpu
from tape import Watched
from torch import Tensor
from torch.nn.attention import varlen  # imports torch's compiler, which must see torch.cuda as it is


class Stream:
    """One that does nothing."""

    device = CUDA
    cuda_stream = 0
    stream_id = 0
    device_index = CUDA.index

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...
    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...


class Event(Stream):
    """One that has happened."""

    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def elapsed_time(self, *_: Any) -> float:
        return 1.0


class Recorded(Watched):
    """A graph's operations."""

    def elsewhere(self, tensor: Tensor) -> bool:
        """See `Watched`."""
        return not on_gpu(tensor)


class Graph:
    """A CUDA graph; see tests/tape.py."""

    replays = 0  # of all

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        """Record from here on."""
        self.recorded = Recorded("cuda")
        self.recorded.__enter__()

    def capture_end(self) -> None:
        """The result cannot be used before a replay."""
        self.recorded.__exit__(None, None, None)
        with torch.inference_mode():
            for each in self.recorded.calls[-1][3] if self.recorded.calls else []:
                each.fill_(torch.nan)

    def replay(self) -> None:
        """Compute."""
        Graph.replays += 1
        with torch.inference_mode():
            self.recorded.replay()


class Generator(torch.Generator):
    """One of the CPU, wherever it shall be."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")


def device_of_storage(held: Any) -> torch.device:
    """Where memory says it is."""
    return CUDA if held._cdata in MARKS.known else torch._C.StorageBase.device.__get__(held)  # type: ignore[attr-defined]


def described(x: Tensor) -> dict[str, Any]:
    """What torch compares when it computes again."""
    return {"shape": x.shape, "dtype": x.dtype, "device": CUDA if on_gpu(x) else x.device}


def properties(*_: Any) -> Any:
    """An H200's."""
    return types.SimpleNamespace(
        name="NVIDIA H200 (imitated)", total_memory=139 * 2**30, major=9, minor=0, multi_processor_count=132
    )


def nothing() -> Callable[..., None]:
    """A function that does nothing; another each time, for torch's compiler wants to tell them apart."""
    return lambda *_, **__: None


def patches() -> Iterator[Any]:
    """What others are while a GPU is imitated."""
    for name, value in of_cuda().items():
        for module in (torch.cuda, torch.cuda.random, torch.cuda.memory):
            if hasattr(module, name):
                yield mock.patch.object(module, name, value)
    for name, value in of_accelerator().items():
        yield mock.patch.object(torch._C, name, value)
    for name in ("range_push", "range_pop", "mark"):
        yield mock.patch.object(torch.cuda.nvtx, name, nothing())
    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
        yield mock.patch.object(torch, name, with_cpu(getattr(torch, name)))
    begin = torch.amp.autocast_mode.autocast.__init__
    yield mock.patch.object(torch.amp.autocast_mode.autocast, "__init__", with_cpu(begin))
    for place in ("torch.utils._foreach_utils", "torch.nn.utils.clip_grad", "torch.optim.optimizer"):
        yield mock.patch.object(sys.modules[place], "_group_tensors_by_device_and_dtype", grouped)
    yield mock.patch.object(torch, "Generator", Generator)
    yield mock.patch.object(torch.Tensor, "record_stream", nothing())
    yield mock.patch.object(torch.UntypedStorage, "device", property(device_of_storage), create=True)
    comparing: Any = torch.utils.checkpoint._allowed_determinism_checks_to_fns  # called where no mode is
    yield mock.patch.dict(comparing, {torch.utils.checkpoint._DEFAULT_DETERMINISM_MODE: described})
    yield mock.patch.object(varlen, "varlen_attn", varlen_attn)
    join = torch.distributed.init_process_group

    def by_gloo(backend: Any = None, *args: Any, device_id: Any = None, **kwargs: Any) -> Any:
        return join("gloo", *args, **kwargs)

    yield mock.patch.object(torch.distributed, "init_process_group", by_gloo)


def of_cuda() -> dict[str, Any]:
    """torch.cuda's functions and classes."""
    idle = ("_lazy_init", "init", "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats")
    seeds = ("set_rng_state", "set_rng_state_all", "manual_seed", "manual_seed_all", "set_sync_debug_mode")
    return {name: nothing() for name in (*idle, *seeds)} | {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "current_device": lambda: CUDA.index,
        "get_device_properties": properties,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: properties().name,
        "get_arch_list": lambda: ["sm_90"],
        "is_bf16_supported": lambda *_, **__: True,
        "memory_allocated": MARKS.allocated,
        "max_memory_allocated": lambda *_: MARKS.allocated(),  # at a peak it was more
        "memory_reserved": lambda *_: MARKS.allocated(),
        "max_memory_reserved": lambda *_: MARKS.allocated(),
        "memory_stats": lambda *_: {},
        "mem_get_info": lambda *_: (100 * 2**30, 139 * 2**30),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph_pool_handle": lambda: 0,
        "current_stream": lambda *_: Stream(),
        "default_stream": lambda *_: Stream(),
        "stream": lambda *_: nullcontext(),
        "device": lambda *_: nullcontext(),
        "is_current_stream_capturing": lambda: False,
    }


def of_accelerator() -> dict[str, Any]:
    """What torch.accelerator asks."""
    idle = ("_accelerator_setDeviceIndex", "_accelerator_setStream", "_accelerator_synchronizeDevice")
    return {name: nothing() for name in idle} | {
        "_get_accelerator": lambda: CUDA,
        "_accelerator_getAccelerator": lambda: CUDA,
        "_accelerator_getDeviceIndex": lambda: CUDA.index,
        "_accelerator_getStream": lambda *_: Stream(),
        "_accelerator_exchangeDevice": lambda *_: CUDA.index,
        "_accelerator_maybeExchangeDevice": lambda *_: CUDA.index,
    }


def with_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is told "cpu" wherever it is told "cuda"."""

    def told(*args: Any, **kwargs: Any) -> Any:
        args = tuple("cpu" if isinstance(each, str) and each == "cuda" else each for each in args)
        return function(*args, **{name: "cpu" if each == "cuda" else each for name, each in kwargs.items()})

    return told


GROUPS = torch.utils._foreach_utils._group_tensors_by_device_and_dtype


def grouped(lists: Any, *args: Any, **kwargs: Any) -> Any:
    """torch's lists of tensors of one device and dtype, of which it is C++ that asks for the device."""
    found = GROUPS(lists, *args, **kwargs)
    return {(CUDA if on_gpu(each[0][0][0]) else key[0], key[1]): each for key, each in found.items()}


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """torch's kernel for variable lengths."""
    assert query.dtype in (torch.bfloat16, torch.float16) and query.is_cuda and cu_seq_q.is_cuda
    assert window_size == (-1, 0) and enable_gqa == (query.shape[1] != key.shape[1])
    return block_diagonal(query.float(), key.float(), value.float(), cu_seq_q, scale).to(query.dtype)


def block_diagonal(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float | None) -> Tensor:
    """Attention [tokens, heads, width] in one dense product, under a mask of who may see whom."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
    place = torch.arange(len(query), device=query.device)
    sequence = torch.bucketize(place, starts[1:].long(), right=True)
    seen = (sequence[:, None] == sequence[None]) & (place[None] <= place[:, None])
    scores = torch.einsum("qhw,khw->hqk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("hqk,khw->qhw", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)
