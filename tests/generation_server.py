"""A generation server in a thread: the protocol of vLLM's, the real methods of its workers, and a model of ours.

Real vLLM has other kernels and takes a minute to start: `tests/soak/test_vllm_server.py` asks that one the same.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import torch
from answering import answering
from torch import Tensor, nn

from rlhf.generation.inside_vllm.rlhf_weights import Weights


class Worker(Weights):
    """A worker with a model of transformers."""

    def __init__(self, model: Any, rank: int) -> None:
        self.rank = rank
        self.device = torch.device("cpu")
        self.model = model
        self.model_runner = self
        vocabulary = model.config.vocab_size
        self.model_config = SimpleNamespace(dtype=torch.float32, max_model_len=128, get_vocab_size=lambda: vocabulary)

    @torch.no_grad()
    def reload_weights(self, weights_iterator: Iterator[tuple[str, Tensor]]) -> None:
        """As vLLM's runner does: what comes under a name of the model's is copied there."""
        own = dict(self.model.named_parameters())
        for name, tensor in weights_iterator:
            own[name].copy_(tensor)


class Server(ThreadingHTTPServer):
    """What it has been asked, and what it is to do wrong."""

    daemon_threads = True

    def __init__(self, model: Any, port: int = 0, workers: int = 1, token: str = "") -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.workers = [Worker(model, rank) for rank in range(workers)]
        self.token = token
        self.calls: list[str] = []  # paths, and methods of workers
        self.answers: list[Any] = []  # given in turn in place of responses; an int is a status
        self.forgets_after: int | None = None  # responses until its workers are as if freshly started
        self.resets_refused = 0  # of the cache, until one is done
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that have had enough are no news."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def call(self, method: str, arguments: list[str]) -> list[Any]:
        """A method of all workers at a time."""
        found: list[Any] = [None] * len(self.workers)

        def one(index: int) -> None:
            try:
                found[index] = getattr(self.workers[index], method)(*arguments)
            except Exception as error:
                found[index] = error

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in found:
            if isinstance(each, Exception):
                raise each
        return found

    @torch.no_grad()
    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Sample a response, one forward of everything for each token."""
        with self.lock:
            if self.forgets_after is not None:
                self.forgets_after -= 1
                if self.forgets_after == 0:
                    for worker in self.workers:
                        worker.rlhf_version, worker.rlhf_group_name = None, None
            draws = torch.Generator().manual_seed(asked["seed"])
            tokens, response, logprobs = list(asked["prompt"]), [], []
            while len(response) < asked["max_tokens"] and (not response or response[-1] not in asked["stop_token_ids"]):
                logits = self.workers[0].model(torch.tensor([tokens])).logits[0, -1]
                known = (logits / asked["temperature"]).log_softmax(-1)
                token = int(torch.multinomial(known.exp(), 1, generator=draws))
                tokens.append(token)
                response.append(token)
                logprobs.append(float(known[token]))
        return {"choices": [{"token_ids": response, "logprobs": {"token_logprobs": logprobs}}]}


class Handler(BaseHTTPRequestHandler):
    """vLLM's paths."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer."""
        length = int(self.headers.get("content-length", 0))
        asked = json.loads(self.rfile.read(length) or b"{}")
        if self.server.token and self.headers.get("authorization") != f"Bearer {self.server.token}":
            return self.answer(401, {"error": "no"})
        try:
            if self.path == "/collective_rpc":
                self.server.calls.append(asked["method"])
                return self.answer(200, {"results": self.server.call(asked["method"], asked["args"])})
            self.server.calls.append(self.path)
            if self.path == "/reset_prefix_cache":
                self.server.resets_refused -= 1
                return self.answer(200, {"success": self.server.resets_refused < 0})
            if self.path == "/v1/completions":
                if self.server.answers:
                    instead = self.server.answers.pop(0)
                    return self.answer(instead, {}) if isinstance(instead, int) else self.answer(200, instead)
                return self.answer(200, self.server.complete(asked))
        except Exception as error:
            return self.answer(500, {"error": f"{type(error).__name__}: {error}"})
        return self.answer(404, {"detail": "Not Found"})

    def answer(self, status: int, content: Any) -> None:
        """One JSON answer."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def serving(model: nn.Module, **options: Any) -> Iterator[Server]:
    """A server for a while."""
    with answering(Server(model, **options)) as server:
        yield server
