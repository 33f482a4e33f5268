"""Generation servers as the trainer's main process sees them: what they hold, and how they are given other weights.

A server is vLLM's own, with `inside_vllm/rlhf_weights.py` in its workers. Weights are broadcast to all workers of all
servers by a process group beside the trainer's (`rlhf.generation.transfer`); HTTP carries their names and shapes alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import httpx
from torch import Tensor

from rlhf.beacons import patient
from rlhf.config import GenerationServerConfig
from rlhf.errors import GenerationAwayError, GenerationError
from rlhf.generation.inside_vllm.rlhf_weights import TOKEN, nccl_version
from rlhf.generation.transfer import Transfer
from rlhf.generation.weights import Weight

T = TypeVar("T")
BUSY = (408, 425, 429, 502, 503, 504)  # answers after which the same request may succeed
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds between two attempts
START = "it must be started with rlhf generation serve"


class Worker(NamedTuple):
    """One worker of a server's engine, as `rlhf_weights.Weights.rlhf_state` tells."""

    version: str | None  # whose weights it has; None: those that its server was started with
    group: str | None  # in which it waits for others
    device: str
    dtype: str
    vocabulary: int
    context: int  # tokens of a prompt and its response
    nccl: str | None = None  # its version there


class Servers:
    """All servers of a recipe."""

    def __init__(self, config: GenerationServerConfig) -> None:
        self.config = config
        self.addresses = [address.rstrip("/") for address in config.addresses]
        self.patience = {address: Patience(address, config.patience_seconds) for address in self.addresses}
        self.transfer: Transfer | None = None
        self.under_way: list[Future[Any]] = []

    def workers(self) -> list[list[Worker]]:
        """The workers of each server; waits for one that is not up yet. Raises GenerationError."""
        seconds = self.config.patience_seconds + self.config.timeout_seconds
        with patient("waits for generation servers", seconds):
            answers = together([self._begin(address, "rlhf_state") for address in self.addresses])
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
        names = {worker.group for own in workers for worker in own}
        if self.transfer is None or names != {self.transfer.name}:
            self.transfer = self._joined(workers)
        kind = workers[0][0].dtype
        self.transfer.kind = kind
        listed = [[weight.name, list(weight.shape), kind] for weight in weights]
        question = json.dumps({"version": version, "weights": listed})
        self.under_way = [self._begin(address, "rlhf_receive", question) for address in self.addresses]

    def send(self, tensor: Tensor) -> None:
        """Give all workers the next weight. What goes wrong is raised by `close`: other ranks are in step with us."""
        if self.transfer is not None:
            self.transfer.send(tensor, given_up=self._has_failed)

    def _has_failed(self) -> bool:
        """Whether a server has given up. One that has the last weight may say so before we see that it has left us."""
        return any(call.done() and call.exception() is not None for call in self.under_way)

    def close(self) -> None:
        """Wait until all workers have taken up what they were given. Raises GenerationError."""
        calls, self.under_way = self.under_way, []
        transfer, failed = self.transfer, self.transfer.failed if self.transfer else None
        try:
            together(calls)
            if failed is not None:
                raise GenerationAwayError(f"generation servers {', '.join(self.addresses)}: {failed}")
        except GenerationError:
            self.transfer = None
            if transfer is not None:
                transfer.abort()  # those that still wait in it are let go
            raise
        for address in self.addresses:  # which holds keys and values of the old weights
            self._reset(address)

    def _reset(self, address: str) -> None:
        """Have a server forget what it has read; it cannot while somebody's request holds a part of that."""
        patience = Patience(address, self.config.patience_seconds)  # another than for a server that is away
        while not self._ask(address, "reset_prefix_cache").get("success"):
            time.sleep(patience.pause("its prefix cache is held by other requests; is somebody else asking it?"))

    def _joined(self, workers: list[list[Worker]]) -> Transfer:
        """A new group with all workers of all servers. Raises GenerationError."""
        self.transfer = None
        on_gpus = all(worker.device == "cuda" for own in workers for worker in own)
        here, there = nccl_version(), {worker.nccl for own in workers for worker in own}
        if on_gpus and here is not None and there != {here}:  # of which NCCL would make no group
            versions = ", ".join(sorted(map(str, there - {here})))
            said = f"NCCL is {here} here and {versions} there; weights go over gloo, which takes longer"
            print(f"generation servers {', '.join(self.addresses)}: {said}", file=sys.stderr, flush=True)
            on_gpus = False
        transfer = Transfer(self.addresses, 1 + sum(map(len, workers)), on_gpus, self.config.timeout_seconds)
        first, calls = 1, []
        for address, own in zip(self.addresses, workers, strict=True):
            calls.append(self._begin(address, "rlhf_join", transfer.invitation(address, first)))
            first += len(own)
        together([*calls, begun(transfer.join, daemon=False)])
        return transfer

    def _begin(self, address: str, method: str, *arguments: str) -> Future[list[Any]]:
        """What each of a server's workers will have answered."""

        def call() -> list[Any]:
            body = {"method": method, "args": list(arguments)}
            again = method == "rlhf_state"  # the others are no use once somebody else has waited in vain
            answer = self._ask(address, "collective_rpc", body, again)
            found = answer.get("results") if isinstance(answer, dict) else None
            if not isinstance(found, list) or not found:
                raise GenerationError(f"generation server {address}: answered {str(answer)[:200]!r}; {START}")
            return found

        return begun(call)

    def _ask(self, address: str, path: str, body: Any = None, again: bool = True) -> Any:
        """A server's JSON, asked for again while it is away; again: whether it may be asked twice."""
        patience = self.patience[address]
        while True:
            try:
                with httpx.Client(**client_options(self.config.timeout_seconds)) as client:
                    answer = client.post(f"{address}/{path}", json=body)
                if answer.status_code not in BUSY or not again:
                    patience.over()
                    return content(address, answer)
                reason = said_by(answer)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                if not again:
                    raise GenerationAwayError(
                        f"generation server {address}: {reason}; the same command goes on"
                    ) from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise GenerationError(f"generation server {address}: {error}; {START}") from error
            time.sleep(patience.pause(reason))


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
        """Seconds until it is to be asked again. Raises GenerationAwayError once it has been away for too long."""
        now = time.monotonic()
        if self.since is None:
            self.since = now
            print(f"generation server {self.address}: {reason}; asking again", file=sys.stderr, flush=True)
        if now - self.since > self.seconds:
            raise GenerationAwayError(
                f"generation server {self.address}: no answer within ppo.generation.server.patience_seconds="
                f"{self.seconds:g} ({reason}); start it (rlhf generation serve RUN), the same command goes on"
            )
        return min(max(now - self.since, SHORTEST_PAUSE), LONGEST_PAUSE)


def begun(work: Callable[[], T], daemon: bool = True) -> Future[T]:
    """Some work in a thread of its own; daemon: it keeps no process from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=daemon, name="generation server").start()
    return future


def together(calls: Sequence[Future[Any]]) -> list[Any]:
    """The results of all calls, or the error of the first that fails: no other is waited for then."""
    done, _ = wait(calls, return_when=FIRST_EXCEPTION)
    for call in calls:
        if call in done and (error := call.exception()) is not None:
            raise error
    return [call.result() for call in calls]


def client_options(seconds: float) -> dict[str, Any]:
    """Of a client of servers: their token, if there is one, goes to them alone and to no proxy of the environment."""
    token = os.environ.get(TOKEN)
    return {
        "timeout": httpx.Timeout(seconds, pool=None),  # waiting for its turn is no fault
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "trust_env": False,
    }


def said_by(answer: httpx.Response) -> str:
    """An answer in a line."""
    return " ".join(f"{answer.status_code} {answer.reason_phrase}: {answer.text[:300]}".split()).rstrip(":")


def content(address: str, answer: httpx.Response) -> Any:
    """The JSON of an answer. Raises GenerationError where a server refuses, GenerationAwayError where it fails."""
    if not answer.is_success:
        remedy = "the server's own output says more"
        if answer.status_code in (401, 403):
            remedy = f"set {TOKEN} to the server's"
        elif answer.status_code == 404:
            remedy = START
        failed = answer.is_server_error or answer.status_code in BUSY  # else it would refuse the next time, too
        kind = GenerationAwayError if failed else GenerationError
        raise kind(f"generation server {address}: refused with {said_by(answer)}; {remedy}")
    try:
        return answer.json()
    except ValueError as error:
        said = said_by(answer)
        raise GenerationError(f"generation server {address}: answered {said!r}, which is no JSON; {START}") from error
