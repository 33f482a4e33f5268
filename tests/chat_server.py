"""A chat endpoint in a thread, of the protocol that OpenAI documents: it can be slow, busy, garbled or gone.

What it answers is a rule of the two responses, so that what a judge should make of it is known.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from answering import answering

Rule = Callable[[str, str], str | None]  # of what stands as A and as B, to what is said
Fault = tuple[int, dict[str, str], str]  # status, headers, body
PARTS = re.compile(r"^(#\w+) response A\n(.*?)\n\1 response B\n(.*?)\n\1 the end$", re.M | re.S)


def longer(a: str, b: str) -> str:
    """Prefers what is longer, wherever it stands."""
    return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


class Server(ThreadingHTTPServer):
    """What it was asked, and what it is to do wrong."""

    daemon_threads = True

    def __init__(self, rule: Rule = longer, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.rule = rule
        self.token = ""  # without it there is no answer
        self.usage = True
        self.seconds = 0.0  # that an answer takes
        self.faults: list[Fault] = []  # given in turn in place of answers
        self.refuses: Callable[[str, str], bool] = lambda a, b: False  # such as what is beyond the context
        self.bodies: list[dict[str, Any]] = []  # of answered questions
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []  # of all requests
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that were killed are no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self) -> list[tuple[str, str]]:
        """What stood as A and as B in the questions that were answered."""
        return [shown(body) for body in self.bodies]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.times.append(time.monotonic())
            server.headers.append(dict(self.headers))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            fault = server.faults.pop(0) if server.faults else None
        time.sleep(server.seconds)
        with server.lock:
            server.at_once -= 1
        if fault:
            self.send(*fault)
        elif self.path != "/v1/chat/completions":
            self.send(404, {}, '{"error": {"message": "Not Found"}}')
        elif server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
            self.send(401, {}, '{"error": {"message": "Incorrect API key provided"}}')
        elif server.refuses(*shown(body)):
            self.send(400, {}, '{"error": {"message": "maximum context length is 8 tokens"}}')
        else:
            with server.lock:
                server.bodies.append(body)
            self.send(200, {}, json.dumps(completion(body, server.rule(*shown(body)), server.usage)))

    def send(self, status: int, headers: dict[str, str], text: str) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """What stands as A and as B in a question."""
    found = PARTS.search(body["messages"][0]["content"])
    assert found, body
    return found[2], found[3]


def completion(body: dict[str, Any], text: str | None, usage: bool) -> dict[str, Any]:
    """An answer, as https://platform.openai.com/docs/api-reference/chat/object has it; ten tokens a question."""
    message = {"role": "assistant", "content": text, "refusal": None}
    made = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"]}
    made["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    if usage:
        made["usage"] = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    return made


@contextmanager
def serving(rule: Rule = longer, port: int = 0) -> Iterator[Server]:
    """A server while the block runs."""
    with answering(Server(rule, port)) as server:
        yield server
