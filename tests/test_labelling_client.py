"""What the SDK is asked, how often, and what becomes of what a server answers: by a server that answers as told."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

import pytest
from answering import answering

from data.labelling.client import Away, Refused, Unsent, official
from data.labelling.server import LabelStudio
from rlhf.errors import ConfigError, LabellingError

TOKEN = "a-secret-of-forty-characters-or-so"
USER = {"id": 7, "email": "a@example.com"}
Answer = tuple[int, Any]  # a status, and an object or a text


@dataclass
class Told:
    """A server that answers as it is told, and keeps what it was asked."""

    answers: Callable[[str, int], Answer]  # of method and path, and of how often it was asked before
    url: str = ""
    asked: list[str] = field(default_factory=list)
    authorization: list[str | None] = field(default_factory=list)


@contextmanager
def told(answers: Callable[[str, int], Answer]) -> Iterator[Told]:
    state = Told(answers)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            asked = f"{self.command} {self.path.partition('?')[0]}"
            status, said = state.answers(asked, state.asked.count(asked))
            state.asked.append(asked)
            state.authorization.append(self.headers.get("Authorization"))
            body = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as listener:
        state.url = f"http://127.0.0.1:{listener.server_port}"
        yield state


CHANGES: list[Callable[[LabelStudio], object]] = [
    lambda server: server.import_tasks(1, [{"prompt": "p"}]),
    lambda server: server.create_project({"title": "one"}),
    lambda server: server.change_project(1, {"maximum_annotations": 2}),
    lambda server: server.delete_task(1),
    lambda server: server.add_webhook(1, "http://127.0.0.1:1/", {}),
    lambda server: server.delete_webhook(1),
]


def said_to(change: Callable[[LabelStudio], object], there: Told, token: str = TOKEN) -> LabellingError:
    """What a request ends in, which is one line without the token."""
    with LabelStudio(there.url, token, patience=0) as server, pytest.raises(LabellingError) as raised:
        change(server)
    said = str(raised.value)
    assert "\n" not in said and token not in said and len(said) < 500
    return raised.value


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("status", "kind"), [(429, Away), (500, Refused), (503, Away)])
def test_a_change_is_sent_once_whatever_the_server_answers(
    change: Callable[[LabelStudio], object], status: int, kind: type[Exception]
) -> None:
    """The SDK would send each of these three times."""
    with told(lambda asked, before: (status, {"detail": "no"})) as there:
        assert type(said_to(change, there)) is kind
    assert len(there.asked) == 1


def test_a_question_is_repeated_while_the_server_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    answers: list[Answer] = [(503, "busy"), (500, {"detail": "database is locked"}), (200, USER)]
    with told(lambda asked, before: answers[before]) as there, LabelStudio(there.url, TOKEN) as server:
        assert server.user() == USER
    assert there.authorization == [f"Token {TOKEN}"] * 3
    assert capsys.readouterr().err.count("503 Service Unavailable; give it time; asking again") == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"detail": "Invalid token."}), "refuses the token in LABEL_STUDIO_API_KEY (401)"),
        ((404, {"detail": "none"}), 'GET /api/current-user/whoami: 404 {"detail": "none"}; check --url'),
        ((404, "<html>\n<h1>no</h1>"), "GET /api/current-user/whoami: 404 Not Found; check --url"),
        ((302, ""), "302 Found"),
        ((200, "<html>"), "its answer is not JSON; is this Label Studio?"),
        ((200, {"hello": "world"}), "names no user; is this Label Studio?"),
        ((200, []), "names no user; is this Label Studio?"),
        ((500, {"detail": "x\ny" * 500}), "500 {"),
    ],
)
def test_an_answer_that_is_no_help_ends_in_one_line(answer: Answer, said: str) -> None:
    with told(lambda asked, before: answer) as there:
        assert said in str(said_to(LabelStudio.user, there))


@pytest.mark.parametrize(("answer", "said"), [((404, {"detail": "none"}), "404"), ((200, "<html>"), "is not JSON")])
def test_an_export_that_is_none_ends_in_one_line(answer: Answer, said: str) -> None:
    with told(lambda asked, before: answer) as there:
        assert said in str(said_to(lambda server: server.annotated(1, [2]), there))


def test_what_was_never_sent_is_told_apart() -> None:
    nobody = Told(lambda asked, before: (200, {}), "http://127.0.0.1:9")
    assert type(said_to(lambda server: server.delete_task(1), nobody)) is Unsent


def personal() -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in ({"alg": "x"}, {})]
    return ".".join([*parts, "signature"])


def test_a_personal_token_gives_access_below_a_path_too() -> None:
    def answers(asked: str, before: int) -> Answer:
        return 200, {"access": "short"} if "refresh" in asked else USER

    with told(answers) as there, LabelStudio(f"{there.url}/studio", personal()) as server:
        server.user()
        server.user()
    assert there.asked == ["POST /studio/api/token/refresh", *["GET /studio/api/current-user/whoami"] * 2]
    assert there.authorization == [None, "Bearer short", "Bearer short"]


@pytest.mark.parametrize(("status", "kind"), [(503, Away), (401, Refused)])
def test_a_personal_token_that_gives_no_access(status: int, kind: type[Exception]) -> None:
    with told(lambda asked, before: (status, "no")) as there:
        assert type(said_to(lambda server: server.delete_task(1), there, personal())) is kind
    assert there.asked == ["POST /api/token/refresh"]


@pytest.mark.parametrize("moment", ["2026-11-29T01:00:00.120000Z", "2026-11-29T01:00:00Z"])
def test_times_are_as_the_server_writes_them(moment: str) -> None:
    project = {"id": 1, "title": "one", "created_at": moment, "new_in_a_later_server": 1}
    with told(lambda asked, before: (200, project)) as there, LabelStudio(there.url, TOKEN) as server:
        assert server.create_project({"title": "one"}) == project


def test_without_the_sdk_one_line_says_what_to_install() -> None:
    official.cache_clear()
    hidden = {"label_studio_sdk": None, "label_studio_sdk.client": None}
    with (
        mock.patch.dict(sys.modules, hidden),
        LabelStudio("http://127.0.0.1:9", TOKEN) as server,
        pytest.raises(ConfigError) as raised,
    ):
        server.user()
    official.cache_clear()
    assert str(raised.value).endswith("pip install -c constraints.txt -e '.[label]'")
