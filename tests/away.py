"""Servers of trackers that are away, each in its own way, on real sockets of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

AWAY = ("closed", "hanging", "failing", "slow")
LATENCY_SECONDS = 10.0


@contextmanager
def away(how: str) -> Iterator[str]:
    """The address of a server: its port is closed, it never answers, it answers 503, or so after ten seconds."""
    if how in ("closed", "hanging"):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            if how == "hanging":
                listener.listen(64)  # the kernel accepts, and nobody reads
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        return
    with failing(LATENCY_SECONDS if how == "slow" else 0.0) as address:
        yield address


@contextmanager
def failing(seconds: float) -> Iterator[str]:
    """The address of a server that answers 503 after some seconds."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(seconds)
            self.send_error(503)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
