"""The token in every request: as it is or, where it is a personal one, the access tokens that it gives."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Generator

import httpx

REFRESH_SECONDS = 240.0  # an access token lives five minutes


class NoAccess(Exception):
    """The server gives no access token; `answer` is what it says instead."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        super().__init__(answer.status_code)


class Access(httpx.Auth):
    """Authorization for a token of either kind.

    The SDK has its own, which is not used: it asks this machine's clock whether an access token is still valid, so that
    where the clock is behind the server's, the last requests of every five minutes are refused; and it does not tell a
    server that is away from one that refuses.
    """

    requires_response_body = True

    def __init__(self, token: str) -> None:
        self.token = token
        self.is_personal = _is_personal(token)
        self.access = ""
        self.refreshed = -REFRESH_SECONDS

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Set the header, from an access token that is still valid. Raises NoAccess."""
        if not self.is_personal:
            request.headers["Authorization"] = f"Token {self.token}"
        else:
            if time.monotonic() - self.refreshed >= REFRESH_SECONDS:
                yield from self._refresh(request)
            request.headers["Authorization"] = f"Bearer {self.access}"
        yield request

    def _refresh(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        root = request.url.path.partition("/api/")[0]  # of a server that is not at the root of its host
        where = request.url.copy_with(path=f"{root}/api/token/refresh", query=None)
        extensions = {"timeout": request.extensions["timeout"]}
        answer = yield httpx.Request("POST", where, json={"refresh": self.token}, extensions=extensions)
        if answer.status_code != 200:
            raise NoAccess(answer)
        self.access = answer.json()["access"]
        self.refreshed = time.monotonic()


def _is_personal(token: str) -> bool:
    """Whether a token is a personal one, which is signed (JWT) and gives access to access tokens."""
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token):
        return False
    try:
        header = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))
    except ValueError:
        return False
    return isinstance(header, dict) and "alg" in header
