"""Generation servers as the trainer's main process sees them: what they hold, and how they are given other weights.

A server is vLLM's own, with `inside_vllm/rlhf_weights.py` in its workers. Weights are broadcast to all workers of all
servers by a process group beside the trainer's, NCCL's where all of it is on GPUs and gloo's elsewhere; HTTP carries
their names and shapes alone.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.beacons import patient
from rlhf.config import GenerationServerConfig
from rlhf.distributed import device
from rlhf.errors import GenerationError
from rlhf.generation.inside_vllm.rlhf_weights import TOKEN, broadcast, join_group
from rlhf.generation.weights import Weight

BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers after which the same request may succeed
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds between two attempts
START = "it must be started with rlhf generation serve"
STORES: Any = dist  # its stores are public, and not in its stubs


class Worker(NamedTuple):
    """One worker of a server's engine, as `rlhf_weights.Weights.rlhf_state` tells."""

    version: str | None  # whose weights it has; None: those that its server was started with
    group: str | None  # in which it waits for others
    device: str
    dtype: str
    vocabulary: int
    context: int  # tokens of a prompt and its response


class Servers:
    """All servers of a recipe."""

    def __init__(self, config: GenerationServerConfig) -> None:
        self.config = config
        self.addresses = [address.rstrip("/") for address in config.addresses]
        self.patience = {address: Patience(address, config.patience_seconds) for address in self.addresses}
        self.threads = ThreadPoolExecutor(len(self.addresses), "generation server")
        self.group: Any = None
        self.group_name = ""
        self.store: Any = None
        self.under_way: list[Future[Any]] = []
        self.failed: Exception | None = None

    def workers(self) -> list[list[Worker]]:
        """The workers of each server; waits for one that is not up yet. Raises GenerationError."""
        seconds = self.config.patience_seconds + self.config.timeout_seconds
        with patient("waits for generation servers", seconds):
            answers = list(self.threads.map(lambda address: self._call(address, "rlhf_state"), self.addresses))
        return [[Worker(**state) for state in states] for states in answers]

    def open(self, weights: Sequence[Weight], version: str, vocabulary: int) -> None:
        """Tell all workers what will come. Raises GenerationError."""
        workers = self.workers()
        for address, own in zip(self.addresses, workers, strict=True):
            if own[0].vocabulary != vocabulary:
                raise GenerationError(
                    f"generation server {address}: serves a model of {own[0].vocabulary:,} tokens where the policy has "
                    f"{vocabulary:,}; start it with this run: rlhf generation serve RUN"
                )
        if self.group is None or {worker.group for own in workers for worker in own} != {self.group_name}:
            self._join(workers)
        kind = workers[0][0].dtype
        self.kind = getattr(torch, kind)
        listed = [[weight.name, list(weight.shape), kind] for weight in weights]
        question = json.dumps({"version": version, "weights": listed})
        self.failed = None
        self.under_way = [
            self.threads.submit(self._call, address, "rlhf_receive", question) for address in self.addresses
        ]

    def send(self, tensor: Tensor) -> None:
        """Give all workers the next weight. What goes wrong is raised by `close`: other ranks are in step with us."""
        if self.failed is None and not any(call.done() for call in self.under_way):
            try:
                broadcast(self.group, tensor.to(self.place, self.kind).contiguous())
            except RuntimeError as error:
                self.failed = error

    def close(self) -> None:
        """Wait until all workers have taken up what they were given. Raises GenerationError."""
        calls, self.under_way = self.under_way, []
        try:
            for call in calls:
                call.result()
        except GenerationError:
            self._leave()
            raise
        if self.failed is not None:
            self._leave()
            reason = " ".join(str(self.failed).split())[:200]
            raise GenerationError(f"{self._shown}: weights did not get there ({reason}); the same command goes on")
        for address in self.addresses:  # which holds keys and values of the old weights
            self._ask(address, "reset_prefix_cache")

    @property
    def _shown(self) -> str:
        return f"generation servers {', '.join(self.addresses)}"

    def _call(self, address: str, method: str, *arguments: str) -> list[Any]:
        """What each of a server's workers answers."""
        body = {"method": method, "args": list(arguments)}
        again = method == "rlhf_state"  # the others are no use once somebody else has waited in vain
        answer = self._ask(address, "collective_rpc", body, again)
        found = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(found, list) or not found:
            raise GenerationError(f"generation server {address}: answered {str(answer)[:200]!r}; {START}")
        return found

    def _ask(self, address: str, path: str, body: Any = None, again: bool = True) -> Any:
        """A server's JSON, asked for again while it is away; again: whether it may be asked twice."""
        patience = self.patience[address]
        while True:
            try:
                with httpx.Client(timeout=self.config.timeout_seconds, headers=headers()) as client:
                    answer = client.post(f"{address}/{path}", json=body)
                if answer.is_success or answer.status_code not in BUSY or not again:
                    patience.over()
                    return content(address, answer)
                reason = f"{answer.status_code} {answer.reason_phrase}"
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                if not again:
                    raise GenerationError(f"generation server {address}: {reason}; the same command goes on") from error
            time.sleep(patience.pause(reason))

    def _join(self, workers: list[list[Worker]]) -> None:
        """A new group with all workers of all servers."""
        self._leave()
        on_gpus = device().type == "cuda" and all(worker.device == "cuda" for own in workers for worker in own)
        self.place = device() if on_gpus else torch.device("cpu")
        own = {address: own_address(address) for address in self.addresses}
        size, name, seconds = 1 + sum(map(len, workers)), uuid.uuid4().hex, self.config.timeout_seconds
        backend = "nccl" if on_gpus else "gloo"
        listening = socket.create_server((only(own.values()), 0), backlog=size)
        store = STORES.TCPStore(
            "localhost",
            listening.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
            master_listen_fd=listening.detach(),
        )
        first, calls = 1, []
        for address, states in zip(self.addresses, workers, strict=True):
            asked = {"host": own[address], "port": store.port, "name": name, "backend": backend}
            question = json.dumps({**asked, "first": first, "size": size, "seconds": seconds})
            calls.append(self.threads.submit(self._call, address, "rlhf_join", question))
            first += len(states)
        members = STORES.PrefixStore(name, store)
        try:
            self.group = join_group(members, backend, 0, size, seconds, next(iter(own.values())))
            for call in calls:
                call.result()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise GenerationError(f"{self._shown}: no process group with them ({reason})") from error
        self.store, self.group_name = store, name

    def _leave(self) -> None:
        self.group, self.store, self.group_name = None, None, ""


def own_address(server: str) -> str:
    """This machine's address as a server sees it. Raises GenerationError where there is no way there."""
    parts = urlsplit(server)
    place = (parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80))
    try:
        with socket.create_connection(place, timeout=30) as way:
            return str(way.getsockname()[0])
    except OSError as error:
        raise GenerationError(f"generation server {server}: {error}; start it: rlhf generation serve RUN") from error


def only(addresses: Any) -> str:
    """Where to listen: at the one address that all servers know, else at all."""
    found = set(addresses)
    return str(found.pop()) if len(found) == 1 else ""


def headers() -> dict[str, str]:
    """The bearer token of the environment, if there is one."""
    token = os.environ.get(TOKEN)
    return {"Authorization": f"Bearer {token}"} if token else {}


class Patience:
    """With one server: it is asked again for a while, ever more seldom, and that is said once."""

    def __init__(self, address: str, seconds: float) -> None:
        self.address = address
        self.seconds = seconds
        self.since: float | None = None  # when it went away

    def over(self) -> None:
        """It has answered."""
        self.since = None

    def pause(self, reason: str) -> float:
        """Seconds until it is to be asked again. Raises GenerationError once it has been away for too long."""
        now = time.monotonic()
        if self.since is None:
            self.since = now
            print(f"generation server {self.address}: {reason}; asking again", file=sys.stderr, flush=True)
        if now - self.since > self.seconds:
            raise GenerationError(
                f"generation server {self.address}: no answer within ppo.generation.server.patience_seconds="
                f"{self.seconds:g} ({reason}); start it (rlhf generation serve RUN), the same command goes on"
            )
        return min(max(now - self.since, SHORTEST_PAUSE), LONGEST_PAUSE)


def content(address: str, answer: httpx.Response) -> Any:
    """The JSON of an answer. Raises GenerationError where a server refuses."""
    said = " ".join(answer.text[:300].split())
    if not answer.is_success:
        remedy = f"set {TOKEN} to the server's" if answer.status_code in (401, 403) else START
        raise GenerationError(
            f"generation server {address}: refused with {answer.status_code} {answer.reason_phrase}: {said}; {remedy}"
        )
    try:
        return answer.json()
    except ValueError as error:
        raise GenerationError(f"generation server {address}: answered {said!r}, which is no JSON; {START}") from error
