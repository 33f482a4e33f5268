"""Label Studio's interface over HTTP, as much of it as labelling needs (written for 1.23).

Plain httpx: the official SDK holds numpy below 2.3, and sends an import again where it has got no answer to the first.
Questions are repeated while the server is away; what changes something there is sent once, and the caller looks
what has come of it.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from rlhf.errors import ConfigError, LabellingError

KEY = "LABEL_STUDIO_API_KEY"
URL = "LABEL_STUDIO_URL"
BUSY = (408, 425, 429, 502, 503, 504)  # answers after which the same request may succeed
PAGE = 1000  # tasks in one answer
EXPORTED = 400  # tasks whose annotations come in one answer; their numbers stand in the address: proxies take 8 kB
REFRESH_SECONDS = 240.0  # an access token lives five minutes
PATIENCE_SECONDS = 60.0
ANSWER_SECONDS = 120.0  # for which an answer is waited for
HOOKS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")
IDS = "annotations_ids"
Task = dict[str, Any]


class LabelStudio:
    """A server, as the user of a token."""

    def __init__(
        self, url: str, token: str, patience: float = PATIENCE_SECONDS, timeout: float = ANSWER_SECONDS
    ) -> None:
        self.url = checked_url(url)
        self.patience = patience
        self.refresh = token if _is_personal(token) else None
        self.refreshed = -REFRESH_SECONDS
        # On this machine there is no proxy in between, whatever the environment says.
        self.client = httpx.Client(
            base_url=self.url, timeout=timeout, trust_env=not is_loopback(self.url), follow_redirects=False
        )
        if self.refresh is None:
            self.client.headers["Authorization"] = f"Token {token}"

    def __enter__(self) -> LabelStudio:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self.client.close()

    def user(self) -> dict[str, Any]:
        """Whose token it is. Raises LabellingError where it is nobody's."""
        found: dict[str, Any] = self.get("/api/current-user/whoami")
        return found

    def projects(self, title: str) -> list[dict[str, Any]]:
        """The projects of exactly this title."""
        found, page = [], 1
        while True:
            asked = {"title": title, "page": page, "page_size": 100, "include": "id,title,created_at"}
            answer = self.get("/api/projects/", asked)
            found += [project for project in answer["results"] if project["title"] == title]
            if not answer.get("next"):
                return found
            page += 1

    def project(self, number: int) -> dict[str, Any]:
        """A project by its number. Raises LabellingError where it is gone."""
        found: dict[str, Any] = self.get(f"/api/projects/{number}/")
        return found

    def create_project(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A new project."""
        found: dict[str, Any] = self.send("POST", "/api/projects/", settings)
        return found

    def change_project(self, number: int, settings: Mapping[str, Any]) -> None:
        """Change a project's settings."""
        self.send("PATCH", f"/api/projects/{number}/", settings)

    def import_tasks(self, number: int, data: Sequence[Mapping[str, str]]) -> None:
        """Add tasks; all of them or, where it raises, maybe all and maybe none."""
        tasks = [{"data": dict(each)} for each in data]
        answer = self.send("POST", f"/api/projects/{number}/import?commit_to_project=true", tasks)
        if answer.get("task_count") != len(data):
            raise LabellingError(f"{self.url}: took {answer.get('task_count')} of {len(data)} tasks; push again")

    def tasks(self, number: int, fields: str, newest_first: bool = False) -> Iterator[tuple[int, list[Task]]]:
        """Tasks of a project page by page: how many there are in all, and some of them. fields: id,data,...

        Of `annotations_ids` the server gives the first 500 characters, here as numbers.
        """
        order = "-tasks:updated_at" if newest_first else "tasks:id"
        query = json.dumps({"ordering": [order]})
        seen, page = 0, 1
        while True:
            # With fields=all, a task's annotations are read from their table. Their counts are kept beside it, and stay
            # behind where the server fails in the middle.
            asked = {"project": number, "page": page, "page_size": PAGE, "fields": "all", "include": fields}
            asked["query"] = query
            # Behind the last page there is none; but a project that is gone is no empty one.
            answer = self.get("/api/tasks", asked, missing={"total": seen, "tasks": []} if page > 1 else None)
            for task in answer["tasks"]:
                task[IDS] = sorted(map(int, re.findall(r"\d+", task.get(IDS) or "")))
            if answer["tasks"]:
                yield answer["total"], answer["tasks"]
            seen += len(answer["tasks"])
            if len(answer["tasks"]) < PAGE:
                return
            page += 1

    def annotated(self, number: int, task_ids: Sequence[int]) -> list[Task]:
        """Tasks with all their annotations, skipped ones too, which no other way shows."""
        asked = {"exportType": "JSON", "download_all_tasks": "true", "ids[]": list(task_ids)}
        found: list[Task] = self.get(f"/api/projects/{number}/export", asked)
        return found

    def delete_task(self, number: int) -> None:
        """Remove a task."""
        self.send("DELETE", f"/api/tasks/{number}/")

    def members(self) -> dict[str, str]:
        """The e-mail addresses of those who may vote, by the numbers of their accounts."""
        return {str(user["id"]): str(user["email"]) for user in self.get("/api/users")}

    def webhooks(self, number: int) -> list[dict[str, Any]]:
        """The webhooks of a project."""
        found: list[dict[str, Any]] = self.get("/api/webhooks/", {"project": number})
        return [hook for hook in found if hook.get("project") == number]

    def add_webhook(self, number: int, url: str, headers: Mapping[str, str]) -> None:
        """Be told of annotations at an address."""
        body = {"project": number, "url": url, "headers": dict(headers), "send_payload": False}
        self.send("POST", "/api/webhooks/", body | {"send_for_all_actions": False, "actions": list(HOOKS)})

    def delete_webhook(self, number: int) -> None:
        """Be told no more."""
        self.send("DELETE", f"/api/webhooks/{number}/")

    def get(self, path: str, asked: Mapping[str, Any] | None = None, missing: Any = None) -> Any:
        """What the server answers, asked again while it is away; missing: in the place of what is not there."""
        since = time.monotonic()
        said = False
        while True:
            try:
                return self._answer("GET", path, params=asked, missing=missing)
            except Away as error:
                if time.monotonic() - since > self.patience:
                    raise LabellingError(*error.problems) from error
                if not said:
                    print(f"{error}; asking again", file=sys.stderr, flush=True)
                    said = True
            time.sleep(min(max(time.monotonic() - since, 0.2), 5.0))

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Change something; sent once. Raises Away where nobody knows whether it has arrived."""
        return self._answer(method, path, json=body)

    def _answer(self, method: str, path: str, missing: Any = None, **content: Any) -> Any:
        try:
            self._keep_access()
            answer = self.client.request(method, path, **content)
        except httpx.TransportError as error:
            said = " ".join(str(error).split()) or type(error).__name__
            kind = Unsent if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else Away
            raise kind(f"Label Studio at {self.url}: no answer ({said}); start it, or give another --url") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LabellingError(f"Label Studio at {self.url}: {error}; check --url") from error
        if answer.status_code in BUSY or (answer.status_code == 500 and "database is locked" in answer.text):
            raise Away(f"Label Studio at {self.url}: {answer.status_code} {answer.reason_phrase}; give it time")
        if answer.status_code == 404 and missing is not None:
            return missing
        if answer.status_code >= 300:
            raise Refused(self._refusal(method, path, answer))
        if not answer.content:
            return {}
        try:
            return answer.json()
        except ValueError as error:
            raise LabellingError(f"{self.url}{path}: its answer is not JSON; is this Label Studio?") from error

    def _refusal(self, method: str, path: str, answer: httpx.Response) -> str:
        if answer.status_code == 401:
            return self._refused(answer.status_code)
        reason = answer.text if "json" in answer.headers.get("content-type", "") else answer.reason_phrase
        where = f"Label Studio at {self.url}: {method} {path.partition('?')[0]}"
        return f"{where}: {answer.status_code} {' '.join(reason.split())[:300]}; check --url and the project"

    def _refused(self, status: int) -> str:
        return f"Label Studio at {self.url}: refuses the token in {KEY} ({status}); set it to one that is valid there"

    def _keep_access(self) -> None:
        """With a personal token: an access token that is still valid."""
        if self.refresh is None or time.monotonic() - self.refreshed < REFRESH_SECONDS:
            return
        answer = self.client.post("/api/token/refresh", json={"refresh": self.refresh}, headers={"Authorization": ""})
        if answer.status_code in BUSY:
            raise Away(f"Label Studio at {self.url}: {answer.status_code} {answer.reason_phrase}; give it time")
        if answer.status_code != 200:
            raise LabellingError(self._refused(answer.status_code))
        self.client.headers["Authorization"] = f"Bearer {answer.json()['access']}"
        self.refreshed = time.monotonic()


class Away(LabellingError):
    """The server gave no answer, so that nobody knows what it has done."""


class Refused(LabellingError):
    """The server will not."""


class Unsent(Away):
    """There was no connection, so nothing was done."""


def connect(url: str, patience: float = PATIENCE_SECONDS) -> LabelStudio:
    """The server of an address, as the user whose token is in the environment. Raises ConfigError without a token."""
    token = os.environ.get(KEY, "").strip()
    if not token:
        raise ConfigError(f"{KEY} is not set; set it to your token of {url}, from its page Account & Settings")
    return LabelStudio(url, token, patience)


def checked_url(url: str) -> str:
    """The address of a server without a slash at its end. Raises ConfigError for what is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"--url {url}: not the address of a server; give one such as http://127.0.0.1:8080")
    if parts.username or parts.password:
        raise ConfigError(f"--url: holds a password that others could see; leave it out, the token is in {KEY}")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's alone."""
    return is_local(urlsplit(url).hostname or "")


def is_local(host: str) -> bool:
    """Whether a host is this machine, seen from itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_personal(token: str) -> bool:
    """Whether a token is a personal one, which is signed (JWT) and gives access to access tokens."""
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token):
        return False
    try:
        header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    except ValueError:
        return False
    return isinstance(header, dict) and "alg" in header
