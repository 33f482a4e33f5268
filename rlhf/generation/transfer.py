"""The process group that carries weights from the trainer to the workers of generation servers.

NCCL's where all of it is on GPUs, which must be others than the trainer's own, and gloo's elsewhere. It stands beside
the trainer's group, and its members are of different programs: they meet at a store of the trainer's.
"""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.distributed import device
from rlhf.errors import GenerationAwayError
from rlhf.generation.inside_vllm.rlhf_weights import begin_broadcast, join_group

STORES: Any = dist  # its stores are public, and not in its stubs
LOOK_SECONDS = 0.0002  # between two looks whether a tensor has gone
# For one tensor, the trainer's gathering of it included, and for all to join. Also for so long a group that has lost a
# member cannot be left: gloo's waits for what it has begun.
LONGEST_SECONDS = 60.0


class Transfer:
    """One group, with the trainer's main process as rank 0."""

    kind = "float32"  # of the servers' weights

    def __init__(self, addresses: Sequence[str], size: int, on_gpus: bool, seconds: float) -> None:
        """Listen for the others. Raises GenerationAwayError where there is no way to them."""
        self.name = uuid.uuid4().hex
        self.size = size
        self.seconds = min(seconds, LONGEST_SECONDS)
        on_gpus = on_gpus and device().type == "cuda"
        self.place = device() if on_gpus else torch.device("cpu")
        self.backend = "nccl" if on_gpus else "gloo"
        self.own = {address: own_address(address) for address in addresses}
        self.failed: str | None = None
        self.group: Any = None
        self.unsent: Any = None
        known = set(self.own.values())
        self.host = known.pop() if len(known) == 1 else ""  # at the one address that all servers know, else at all
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listening = socket.create_server((self.host, 0), family=family, backlog=size)
            self.store = STORES.TCPStore(
                self.host or "127.0.0.1",
                listening.getsockname()[1],
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=self.seconds),
                master_listen_fd=listening.detach(),
            )
        except (OSError, RuntimeError) as error:
            raise GenerationAwayError(
                f"generation servers: cannot be met at {self.host} ({one_line(error)})"
            ) from error

    def invitation(self, address: str, first: int) -> str:
        """What a server's workers are told, the first of which has rank `first`."""
        asked = {"host": self.own[address], "port": self.store.port, "name": self.name, "backend": self.backend}
        return json.dumps({**asked, "first": first, "size": self.size, "seconds": self.seconds})

    def join(self) -> None:
        """Wait for the others. Raises GenerationAwayError."""
        members = STORES.PrefixStore(self.name, self.store)
        try:
            address = next(iter(self.own.values()))
            self.group = join_group(members, self.backend, 0, self.size, self.seconds, address, self.place)
        except RuntimeError as error:
            raise GenerationAwayError(f"generation servers: no process group with them ({one_line(error)})") from error

    def send(self, tensor: Tensor, given_up: Callable[[], bool]) -> None:
        """Give all workers a tensor; `failed` says why that was not possible, and then nothing more is sent.

        given_up: whether somebody has left meanwhile, in which case there is nobody to wait for.
        """
        if self.failed is not None or given_up():
            return
        try:
            sent = tensor.to(self.place, getattr(torch, self.kind)).contiguous()
            work, until = begin_broadcast(self.group, sent), time.monotonic() + self.seconds
            while not work.is_completed():
                if given_up() or time.monotonic() > until:
                    self.failed = "weights did not get there in time; the same command goes on"
                    self.unsent = work  # which holds the group; it goes with it
                    return
                time.sleep(LOOK_SECONDS)
            work.wait()  # raises what went wrong
        except RuntimeError as error:
            self.failed = f"weights did not get there ({one_line(error)}); the same command goes on"

    def abort(self) -> None:
        """Leave the group, whose connections break then: whoever waits in it is told."""
        left, self.group, self.unsent = [self.unsent, self.group], None, None
        with suppress(AttributeError, RuntimeError):
            left[1].abort()  # NCCL's; gloo's does nothing
        # In a thread that the process waits for at its end: cut off there, it would end the process with an abort.
        Thread(target=left.clear, name="leaves generation servers").start()


def own_address(server: str) -> str:
    """This machine's address as a server sees it. Raises GenerationAwayError where there is no way there."""
    parts = urlsplit(server)
    place = (parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80))
    try:
        with socket.create_connection(place, timeout=30) as way:
            return str(way.getsockname()[0])
    except OSError as error:
        raise GenerationAwayError(
            f"generation server {server}: {error}; start it: rlhf generation serve RUN"
        ) from error


def one_line(error: BaseException) -> str:
    """What an error says, not too much of it."""
    return " ".join(str(error).split())[:200]
