"""Label Studio's interface, as much of it as labelling needs: the SDK's calls, and what they leave out (for 1.23)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from data.labelling.client import KEY, PATIENCE_SECONDS, Client, once, plain
from rlhf.errors import ConfigError, LabellingError
from rlhf.references import is_loopback

URL = "LABEL_STUDIO_URL"
PAGE = 1000  # tasks in one answer
EXPORTED = 400  # tasks whose annotations come in one answer; their numbers stand in the address: proxies take 8 kB
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
        self.client = Client(self.url, token, patience, timeout, is_loopback(self.url))

    def __enter__(self) -> LabelStudio:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self.client.http.close()

    def user(self) -> dict[str, Any]:
        """Whose token it is. Raises LabellingError where it is nobody's."""
        try:
            found = self.client.ask(lambda sdk: sdk.users.whoami(request_options=once()))
        except TypeError:  # of the SDK, where the answer is no object
            found = None
        if getattr(found, "id", None) is None:
            raise LabellingError(f"{self.url}: names no user; is this Label Studio?")
        return plain(found)

    def projects(self, title: str) -> list[dict[str, Any]]:
        """The projects of exactly this title."""
        found: list[dict[str, Any]] = []
        page = 1

        def listed(sdk: Any) -> Any:
            fields = "id,title,created_at"
            return sdk.projects.list(title=title, page=page, page_size=100, include=fields, request_options=once())

        while True:
            answer = self.client.ask(listed)
            found += [plain(project) for project in answer.items or [] if project.title == title]
            if not getattr(answer.response, "next", None):  # the SDK's own paging ends with a page that is not there
                return found
            page += 1

    def project(self, number: int) -> dict[str, Any]:
        """A project by its number. Raises LabellingError where it is gone."""
        return plain(self.client.ask(lambda sdk: sdk.projects.get(number, request_options=once())))

    def create_project(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A new project."""
        return plain(self.client.tell(lambda sdk: sdk.projects.create(**settings, request_options=once())))

    def change_project(self, number: int, settings: Mapping[str, Any]) -> None:
        """Change a project's settings."""
        self.client.tell(lambda sdk: sdk.projects.update(number, **settings, request_options=once()))

    def import_tasks(self, number: int, data: Sequence[Mapping[str, str]]) -> list[int]:
        """Add tasks, and give their numbers; all of them or, where it raises, maybe all and maybe none."""
        wanted = {"request": [{"data": dict(each)} for each in data], "commit_to_project": True}
        wanted["return_task_ids"] = True
        answer = self.client.tell(lambda sdk: sdk.projects.import_tasks(number, **wanted, request_options=once()))
        if answer.task_count != len(data):
            raise LabellingError(f"{self.url}: took {answer.task_count} of {len(data)} tasks; push again")
        return list(answer.task_ids)

    def tasks(self, number: int, fields: str, newest_first: bool = False) -> Iterator[tuple[int, list[Task]]]:
        """Tasks of a project page by page: how many there are in all, and some of them. fields: id,data,...

        Of `annotations_ids` the server gives the first 500 characters, here as numbers.
        """
        query = json.dumps({"ordering": ["-tasks:updated_at" if newest_first else "tasks:id"]})
        # With fields=all, a task's annotations are read from their table. Their counts are kept beside it, and stay
        # behind where the server fails in the middle.
        asked = {"project": number, "page_size": PAGE, "fields": "all", "include": fields, "query": query}
        page = 1

        def listed(sdk: Any) -> Any:
            return sdk.tasks.list(page=page, **asked, request_options=once())

        while True:
            # Behind the last page there is none; but a project that is gone is no empty one.
            answer = self.client.ask(listed, missing=() if page > 1 else None)
            tasks = [plain(task) for task in answer.items or []] if answer else []
            for task in tasks:
                task[IDS] = sorted(map(int, re.findall(r"\d+", task.get(IDS) or "")))
            if tasks:
                yield answer.response.total, tasks
            if len(tasks) < PAGE:
                return
            page += 1

    def annotated(self, number: int, task_ids: Sequence[int]) -> list[Task]:
        """Tasks with all their annotations, skipped ones too, which no other way shows.

        The SDK's `as_json` would do a whole project in one piece, and its objects would not show what is malformed:
        of its export, the bytes are taken.
        """
        options = once(**{"exportType": "JSON", "ids[]": list(task_ids)})  # by these names the server asks for them

        def exported(sdk: Any) -> Any:
            parts = sdk.projects.exports.download_sync(number, download_all_tasks=True, request_options=options)
            return json.loads(b"".join(parts))

        found: list[Task] = self.client.ask(exported)
        return found

    def delete_task(self, number: int) -> None:
        """Remove a task."""
        self.client.tell(lambda sdk: sdk.tasks.delete(str(number), request_options=once()))

    def members(self) -> dict[str, str]:
        """The e-mail addresses of those who may vote, by the numbers of their accounts."""
        users = self.client.ask(lambda sdk: sdk.users.list(request_options=once()))
        return {str(user.id): str(user.email) for user in users}

    def webhooks(self, number: int) -> list[dict[str, Any]]:
        """The webhooks of a project."""
        found = self.client.ask(lambda sdk: sdk.webhooks.list(project=str(number), request_options=once()))
        return [plain(hook) for hook in found if hook.project == number]

    def add_webhook(self, number: int, url: str, headers: Mapping[str, str]) -> None:
        """Be told of annotations at an address."""
        wanted = {"project": number, "url": url, "headers": dict(headers), "send_payload": False}
        wanted |= {"send_for_all_actions": False, "actions": list(HOOKS)}
        self.client.tell(lambda sdk: sdk.webhooks.create(**wanted, request_options=once()))

    def delete_webhook(self, number: int) -> None:
        """Be told no more."""
        self.client.tell(lambda sdk: sdk.webhooks.delete(number, request_options=once()))


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
