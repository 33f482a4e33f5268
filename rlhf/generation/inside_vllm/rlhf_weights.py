"""Runs inside of vLLM, in its own environment: its workers take up a policy's weights, and who may ask them to.

Imports nothing of ours. `rlhf generation serve` puts this folder on the path of the server and names the two classes;
a server that somebody starts by hand is given them as

    --worker-extension-cls rlhf_weights.Weights --middleware rlhf_weights.Guard

Weights come over a process group of its own, NCCL's between GPUs and gloo's elsewhere, rank 0 of which is the trainer;
that they come, and which, is said over HTTP (POST /collective_rpc, which vLLM serves with VLLM_SERVER_DEV_MODE=1).
"""

from __future__ import annotations

import hmac
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TOKEN = "RLHF_GENERATION_TOKEN"
STORES: Any = dist  # its stores are public, and not in its stubs
OPEN = ("/health", "/ping")  # told to everybody


def join_group(store: Any, backend: str, rank: int, size: int, seconds: float, address: str, device: Any) -> Any:
    """A process group beside all others, whose members may be of different programs. Returns when all have joined.

    address: of this process, as the others reach it; device: of what it will be given.
    """
    timeout = timedelta(seconds=seconds)
    if backend == "nccl":
        options: Any = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        group = dist.ProcessGroupNCCL(store, rank, size, options)
        store.set(f"here/{rank}", "")
        store.wait([f"here/{each}" for each in range(size)], timeout)
        # Its communicator is made by a first collective, which waits for the others for ever: hence the lines above.
        arrived(begin_broadcast(group, torch.zeros(1, device=device)), device)
        return group
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timeout
    options._devices = [gloo.create_device(hostname=address)]
    return gloo(store, rank, size, options)


def nccl_version() -> str | None:
    """That of this process's NCCL, which must be the same in all members of a group; None where torch has none."""
    if not (torch.cuda.is_available() and dist.is_nccl_available()):
        return None
    found: Any = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, found))


def begin_broadcast(group: Any, tensor: Tensor) -> Any:
    """Begin to give rank 0's tensor to all; `wait` of the result ends it, on a GPU for what follows in its stream."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return group.broadcast([tensor], options)


def arrived(begun: Any, device: torch.device) -> None:
    """Wait until what was begun is there, on a GPU too.

    NCCL's own `wait` returns at once, and its watchdog counts from the beginning: what is begun behind others that are
    still to come would have their time as well as its own.
    """
    begun.wait()
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class Weights:
    """Methods that vLLM adds to each of its workers."""

    # Of the worker that they are added to.
    rank: int
    device: torch.device
    model_config: Any
    reload_weights: Callable[..., None]

    def rlhf_state(self) -> dict[str, Any]:
        """Whose weights this worker has, and how it is to be given others."""
        return {
            "version": getattr(self, "rlhf_version", None),
            "group": getattr(self, "rlhf_group_name", None),
            "device": self.device.type,
            "dtype": str(self.model_config.dtype).removeprefix("torch."),
            "vocabulary": self.model_config.get_vocab_size(),
            "context": self.model_config.max_model_len,
            "nccl": nccl_version(),
        }

    def rlhf_join(self, question: str) -> None:
        """Join the trainer's group: {"host", "port", "name", "backend", "first", "size", "seconds"}."""
        asked = json.loads(question)
        place = (asked["host"], asked["port"])
        with socket.create_connection(place, asked["seconds"]) as way:
            address = way.getsockname()[0]
        patience = timedelta(seconds=asked["seconds"])
        store = STORES.TCPStore(*place, is_master=False, timeout=patience)
        members = STORES.PrefixStore(asked["name"], store)
        rank = asked["first"] + self.rank
        self.rlhf_group = join_group(
            members, asked["backend"], rank, asked["size"], asked["seconds"], address, self.device
        )
        self.rlhf_group_name = asked["name"]

    def rlhf_receive(self, question: str) -> int:
        """Take up weights: {"version", "weights": [[name, shape, dtype], ...]}. Returns how many there were."""
        asked = json.loads(question)
        self.rlhf_version = None  # until the last has come these are no policy's
        arriving = self._rlhf_arriving(asked["weights"])
        try:
            self.reload_weights(weights_iterator=arriving)
        finally:
            for _ in arriving:  # where one cannot be used, the trainer still gives the rest
                pass
        self.rlhf_version = asked["version"]
        return len(asked["weights"])

    def _rlhf_arriving(self, weights: list[tuple[str, list[int], str]]) -> Iterator[tuple[str, Tensor]]:
        for name, shape, kind in weights:
            tensor = torch.empty(shape, dtype=getattr(torch, kind), device=self.device)
            arrived(begin_broadcast(self.rlhf_group, tensor), self.device)
            yield name, tensor


Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]


class Guard:
    """Turns away, as ASGI middleware, who does not bring the token of the server's environment.

    vLLM's own --api-key guards the paths under /v1 alone, and not those that change weights.
    """

    def __init__(self, app: Callable[[Scope, Channel, Channel], Awaitable[None]]) -> None:
        self.app = app
        self.wanted = os.environ.get(TOKEN, "")

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """Let a request through, or answer it with 401."""
        if scope["type"] in ("http", "websocket") and self.wanted and scope["path"] not in OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self.wanted}".encode()):
                await self._refuse(scope, send)
                return
        await self.app(scope, receive, send)

    @staticmethod
    async def _refuse(scope: Scope, send: Channel) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        body = json.dumps({"error": f"this server wants the token of its {TOKEN}"}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def plain_linear(layer: Any, remove_weight: bool) -> None:
    """In place of vLLM's choice of a kernel on CPUs, which packs weights once and never sees those that come later."""
    del remove_weight
    layer.cpu_linear = torch.nn.functional.linear


def keep_weights_in_place() -> None:
    """Let layers on CPUs compute with the weights that they have, also a head that shares its embeddings'."""
    for part in ("utils", "linear", "vocab_parallel_embedding"):
        module = import_module(f"vllm.model_executor.layers.{part}")
        if hasattr(module, "dispatch_cpu_unquantized_gemm"):
            setattr(module, "dispatch_cpu_unquantized_gemm", plain_linear)  # noqa: B010  # unknown here


if __name__ == "rlhf_weights":  # imported by vLLM, not by the trainer, which takes only the group
    keep_weights_in_place()
