"""A real Label Studio for tests, started by our own code, and people who vote through its interface.

Its environment (1 GB) and its tables are made once, in $XDG_CACHE_HOME/rlhf (default: ~/.cache/rlhf): `label-studio-*`.
The first time takes minutes, later ones about ten seconds. Remove the folders to make them anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock

from data.labelling.client import Refused
from data.labelling.page import QUESTION, REASON
from data.labelling.server import LabelStudio
from launch.label_studio import LOG, Server, environment_folder, install
from launch.local import free_port

TOKEN = "0123456789abcdef0123456789abcdef01234567"
PASSWORD = "a password of tests"
JUNK = ("cache", "export", "test_data", LOG)


def template() -> Path:
    """The directory of a server that has its tables and its owner."""
    folder = environment_folder().with_name(f"{environment_folder().name}-template")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        command = install(lambda line: None)
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            (folder / "token").write_text(TOKEN)
            (folder / "password").write_text(PASSWORD)
            with Server(folder, free_port(), command) as server:
                server.wait()
            for name in JUNK:
                path = folder / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            (folder / "complete").touch()
    return folder


@contextmanager
def running(folder: Path) -> Iterator[Studio]:
    """A server of its own, and what it said if anything goes wrong."""
    directory = folder / "label-studio"
    shutil.copytree(template(), directory)
    with Server(directory, free_port()) as server:
        server.wait()
        studio = Studio(server)
        try:
            yield studio
        except BaseException:
            print((directory / LOG).read_text(errors="replace")[-4000:])
            raise
        finally:
            for person in studio.people.values():
                person.client.http.close()


@dataclass
class Studio:
    """A running server, its owner's client, and its annotators."""

    server: Server
    people: dict[str, Person] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def owner(self) -> Hand:
        return Hand(self.url, self.server.owner.token, patience=30)

    def kill(self) -> None:
        """SIGKILL, as by a lack of memory."""
        process = self.server.process
        assert process is not None
        process.send_signal(signal.SIGKILL)
        process.wait()

    def restart(self) -> None:
        """Start it again, at the same place."""
        self.server.start()
        self.server.wait()

    def person(self, name: str) -> Person:
        """An annotator, who has signed up by an invitation and has a token of their own."""
        if name not in self.people:
            self.people[name] = Person(self.url, name, sign_up(self, name))
        return self.people[name]


def sign_up(studio: Studio, name: str) -> str:
    """Sign up by an invitation; the new user's personal token."""
    with studio.owner as owner:
        invitation = owner.get("/api/invite")["invite_url"]
    token = re.search(r"token=([\w-]+)", invitation)
    assert token is not None
    with httpx.Client(base_url=studio.url, trust_env=False, timeout=30) as client:
        page = f"/user/signup/?token={token[1]}"
        form = {"email": f"{name}@example.com", "password": PASSWORD, "csrfmiddlewaretoken": csrf(client, page)}
        answer = client.post(page, data=form, headers={"Referer": studio.url})
        assert answer.status_code == 302, answer.text[:500]
        headers = {"Referer": studio.url, "X-CSRFToken": client.cookies["csrftoken"]}
        made: str = client.post("/api/token", headers=headers).json()["token"]
        return made


def csrf(client: httpx.Client, page: str) -> str:
    """What a form of a page must bring back."""
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', client.get(page).text)
    assert found is not None
    return found[1]


class Hand(LabelStudio):
    """A user who may send anything, also what the SDK would not."""

    def get(self, path: str) -> Any:
        return self.send("GET", path)

    def send(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.client.http.request(method, path, json=body)
        if answer.status_code >= 300:
            raise Refused(f"{answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else {}


class Person(Hand):
    """An annotator who works through the interface of programs."""

    def __init__(self, url: str, name: str, token: str) -> None:
        super().__init__(url, token, patience=30)
        self.name = name
        self.number = str(self.user()["id"])

    def annotate(self, task: int, result: Any, **fields: Any) -> int:
        """Whatever one may send for a task; the annotation's number."""
        body = {"result": result, "lead_time": 4.5, **fields}
        return int(self.send("POST", f"/api/tasks/{task}/annotations/", body)["id"])

    def vote(self, task: int, choice: str, reason: str = "", **fields: Any) -> int:
        """A vote as the page sends it."""
        result = [chosen(choice)]
        if reason:
            result.append({"from_name": REASON, "to_name": "prompt", "type": "textarea", "value": {"text": [reason]}})
        return self.annotate(task, result, **fields)

    def change(self, annotation: int, result: Any) -> None:
        """Write over an annotation, one's own or another's."""
        self.send("PATCH", f"/api/annotations/{annotation}/", {"result": result})

    def withdraw(self, annotation: int) -> None:
        """Delete an annotation."""
        self.send("DELETE", f"/api/annotations/{annotation}/")


def chosen(choice: Any) -> dict[str, Any]:
    """The answer to the question, as a result has it."""
    return {"from_name": QUESTION, "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}


def tasks_of(studio: Studio, project: int) -> dict[str, list[int]]:
    """The numbers of a project's tasks by the ids of their pairs."""
    found: dict[str, list[int]] = {}
    with studio.owner as owner:
        for _, tasks in owner.tasks(project, "id,data"):
            for task in tasks:
                found.setdefault(task["data"]["pair_id"], []).append(task["id"])
    return found


@dataclass
class Between:
    """Stands between a client and the server, and does something to chosen requests."""

    target: str
    act: Callable[[str, str], str | None]  # of method and path: None, or what happens: "lost", "answer lost"
    url: str = ""

    def __enter__(self) -> Between:
        self.listener = ThreadingHTTPServer(("127.0.0.1", 0), _passing_on(self))
        self.url = f"http://127.0.0.1:{self.listener.server_address[1]}"
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown()
        self.listener.server_close()


def _passing_on(between: Between) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            happens = between.act(self.command, self.path)
            if happens != "lost":
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                try:
                    answer = httpx.request(
                        self.command,
                        between.target + self.path,
                        content=body,
                        headers=headers,
                        timeout=60,
                        trust_env=False,
                    )
                except httpx.HTTPError:
                    happens = "lost"
            if happens is not None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("content-type", "text/plain"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked may be dead
                self.wfile.write(answer.content)

        do_GET = do_POST = do_PATCH = do_DELETE = _pass_on

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def environment(studio: Studio, **more: str) -> dict[str, str]:
    """What the commands need to know."""
    own = {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": studio.server.owner.token}
    return {**os.environ, **own, **more}
