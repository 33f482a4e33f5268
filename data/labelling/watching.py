"""New votes within seconds: the server tells us of annotations (webhooks), and we pull; and now and then without that.

A hook is a hint and no more: the server sends it once, before it answers whoever votes, and drops it where nobody
listens. So it is answered at once, its content is not read, and a pull follows; a whole pull every few minutes finds
what hooks have missed. Who calls must know a secret that only the server was told.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data.labelling.client import Refused
from data.labelling.ledger import WATCH, Busy
from data.labelling.pulling import Pulled, Puller
from data.labelling.server import LabelStudio
from rlhf.errors import ArtifactError, ConfigError, LabellingError
from rlhf.references import is_local
from rlhf.store.artifact import write_json

HEADER = "X-RLHF-Label-Token"
PATH = "/rlhf-label"
GATHER_SECONDS = 0.5  # in which more votes may come before a pull
SOCKET_SECONDS = 5.0  # that a caller may take
MOST_BYTES = 1 << 20  # of a hook, which is a few hundred


class Listener:
    """The address that hooks come to; `told` is set when one has come."""

    def __init__(self, host: str, port: int, token: str | None) -> None:
        self.secret = token or secrets.token_urlsafe(32)
        if token is None and not is_local(host):
            raise ConfigError(f"--host {host}: is open to others; set RLHF_LABEL_TOKEN, or use --host 127.0.0.1")
        self.told = threading.Event()
        self.calls = 0
        self.refused = 0
        try:
            self.server = ThreadingHTTPServer((host, port), _handler(self))
        except OSError as error:
            raise ConfigError(f"--port {port}: cannot listen at {host} ({error.strerror}); give another") from error
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, name="webhooks", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server.server_address[1])

    def __enter__(self) -> Listener:
        """Listen."""
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        self.server.shutdown()
        self.server.server_close()


def _handler(listener: Listener) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers a hook; says nothing of itself."""

        timeout = SOCKET_SECONDS
        server_version, sys_version = "rlhf", ""

        def do_POST(self) -> None:
            given = self.headers.get(HEADER, "").encode("utf-8", "replace")
            if self.path != PATH or not hmac.compare_digest(given, listener.secret.encode()):
                listener.refused += 1
                self._answer(403)
                return
            self._answer(204)
            listener.calls += 1
            listener.told.set()

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.flush()
            length = self.headers.get("Content-Length", "0")
            if length.isdigit() and int(length) <= MOST_BYTES:
                self.rfile.read(int(length))  # else the caller sees a broken connection in the place of an answer

        def log_message(self, *_: object) -> None:
            """Nothing: paths and addresses of strangers are no lines of ours."""

    return Handler


def register(server: LabelStudio, directory: Path, project: int, address: str, secret: str) -> None:
    """Have the server tell us of annotations; the hook of an execution that could not remove its own goes."""
    unregister(server, directory, project)
    url = f"{address.rstrip('/')}{PATH}"
    write_json(directory / WATCH, {"url": url})  # before the hook is there, so that it is always found again
    server.add_webhook(project, url, {HEADER: secret})


def unregister(server: LabelStudio, directory: Path, project: int) -> None:
    """Be told no more."""
    try:
        url = json.loads((directory / WATCH).read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for hook in server.webhooks(project):
        if hook["url"] == url:
            server.delete_webhook(hook["id"])
    (directory / WATCH).unlink(missing_ok=True)


class Watch:
    """Pulls whenever a hook has come, and every `every` seconds a whole one."""

    def __init__(self, puller: Puller, listener: Listener, address: str, every: float) -> None:
        self.puller = puller
        self.listener = listener
        self.address = address
        self.every = every
        self.registered = False

    def run(self, tell: Callable[[Pulled], None], warn: Callable[[str], None], stop: threading.Event) -> None:
        """Until `stop` is set. What goes wrong, such as a server that restarts, is said once and waited for."""
        whole, due, wrong = True, time.monotonic(), ""
        while not stop.is_set():
            try:
                if not self.registered:
                    self._register(warn)
                with self.puller.ledger.held(patience=0.0):
                    found = self.puller.pull(whole=whole)
            except Busy:  # a push or a pull, beside which the hook stays
                stop.wait(GATHER_SECONDS)
                continue
            except (LabellingError, ArtifactError) as error:
                if str(error) != wrong:
                    warn(f"{error}; trying again")
                # A server that comes back has its webhooks still, but maybe not the one that we mean.
                wrong, self.registered, whole = str(error), False, True
                stop.wait(2.0)
                continue
            if wrong:
                warn("the server is back")
                wrong = ""
            if whole:
                due = time.monotonic() + self.every
            if whole or found.changed:
                tell(found)
            if self._told_before(due, stop):
                stop.wait(GATHER_SECONDS)
                self.listener.told.clear()
                whole = False
            else:
                whole = True
        self.end(warn)

    def end(self, warn: Callable[[str], None]) -> None:
        """Be told no more."""
        if self.registered:
            try:
                unregister(self.puller.server, self._directory, self.puller.project.id)
            except LabellingError as error:
                warn(str(error))

    @property
    def _directory(self) -> Path:
        return self.puller.ledger.directory

    def _register(self, warn: Callable[[str], None]) -> None:
        try:
            register(self.puller.server, self._directory, self.puller.project.id, self.address, self.listener.secret)
        except Refused as error:
            warn(f"{error}; without webhooks there is a pull every {self.every:g} s")
        self.registered = True

    def _told_before(self, due: float, stop: threading.Event) -> bool:
        """Wait for a hook; False once a whole pull is due, or the watch is to stop."""
        while not stop.is_set() and (left := due - time.monotonic()) > 0:
            if self.listener.told.wait(min(left, 0.2)):
                return True
        return False
