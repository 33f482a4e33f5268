"""The official SDK, as labelling needs it: over connections of ours, and with errors of one line.

The SDK knows paths, parameters and answers. Unless told otherwise it sends twice more what a server has answered with
an error, and so may do again what was done: here it repeats nothing. Questions are repeated while the server is away
(`ask`); what changes something there is sent once (`tell`), and the caller looks what has come of it.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from functools import cache, cached_property
from http import HTTPStatus
from typing import Any

import httpx

from data.labelling.access import Access, NoAccess
from rlhf.errors import ConfigError, LabellingError

KEY = "LABEL_STUDIO_API_KEY"
BUSY = (408, 425, 429, 502, 503, 504)  # answers after which the same request may succeed
PATIENCE_SECONDS = 60.0


class Away(LabellingError):
    """The server gave no answer, so that nobody knows what it has done."""


class Refused(LabellingError):
    """The server will not."""


class Unsent(Away):
    """There was no connection, so nothing was done."""


class Client:
    """A server's SDK, and how it is asked."""

    def __init__(self, url: str, token: str, patience: float, timeout: float, is_near: bool) -> None:
        self.url = url
        self.patience = patience
        self.asked = ""  # method and path of the last request
        # On this machine there is no proxy in between, whatever the environment says.
        self.http = httpx.Client(
            base_url=url,
            auth=Access(token),
            timeout=timeout,
            trust_env=not is_near,
            follow_redirects=False,
            event_hooks={"request": [self._note]},
        )

    @cached_property
    def sdk(self) -> Any:
        """The SDK's client, which is loaded once somebody asks for it: that takes seconds. Raises ConfigError."""
        make, _ = official()
        return make(base_url=self.url, api_key="", httpx_client=self.http)  # the token is in `Access` alone

    def ask(self, question: Callable[[Any], Any], missing: Any = None) -> Any:
        """What the SDK gives for a question, asked again while the server is away.

        missing: in the place of what is not there. Raises LabellingError where the server stays away or refuses.
        """
        since = time.monotonic()
        said = False
        while True:
            try:
                return self._answer(question, missing)
            except Away as error:
                if time.monotonic() - since > self.patience:
                    raise LabellingError(*error.problems) from error
                if not said:
                    print(f"{error}; asking again", file=sys.stderr, flush=True)
                    said = True
            time.sleep(min(max(time.monotonic() - since, 0.2), 5.0))

    def tell(self, change: Callable[[Any], Any]) -> Any:
        """Change something by the SDK; sent once. Raises Away where nobody knows whether it has arrived."""
        return self._answer(change)

    def _note(self, request: httpx.Request) -> None:
        self.asked = f"{request.method} {request.url.path}"

    def _answer(self, call: Callable[[Any], Any], missing: Any = None) -> Any:
        sdk = self.sdk
        try:
            return call(sdk)
        except httpx.TransportError as error:
            said = " ".join(str(error).split()) or type(error).__name__
            kind = Unsent if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else Away
            raise kind(f"Label Studio at {self.url}: no answer ({said}); start it, or give another --url") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LabellingError(f"Label Studio at {self.url}: {error}; check --url") from error
        except NoAccess as error:
            status = error.answer.status_code
            raise self._away(status) if status in BUSY else Refused(self._refused(status)) from error
        except ValueError as error:
            raise LabellingError(self._no_json()) from error
        except official()[1] as error:
            if error.status_code == 404 and missing is not None:
                return missing
            raise self._problem(error.status_code or 0, error.body) from error

    def _problem(self, status: int, body: Any) -> LabellingError:
        if status in BUSY or (status == 500 and "database is locked" in str(body)):
            return self._away(status)
        if status == 401:
            return Refused(self._refused(status))
        if status < 300:
            return LabellingError(self._no_json())
        reason = phrase(status) if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        said = f"{status} {' '.join(reason.split())[:300]}"
        return Refused(f"Label Studio at {self.url}: {self.asked}: {said}; check --url and the project")

    def _away(self, status: int) -> Away:
        return Away(f"Label Studio at {self.url}: {status} {phrase(status)}; give it time")

    def _refused(self, status: int) -> str:
        return f"Label Studio at {self.url}: refuses the token in {KEY} ({status}); set it to one that is valid there"

    def _no_json(self) -> str:
        return f"{self.url}: {self.asked}: its answer is not JSON; is this Label Studio?"


@cache
def official() -> tuple[Any, Any]:
    """The SDK's client and its exception. Raises ConfigError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, for the oldest part of the SDK
            from label_studio_sdk.client import LabelStudio
            from label_studio_sdk.core.api_error import ApiError
    except ImportError as error:
        raise ConfigError(
            "rlhf label: the package label-studio-sdk is not installed; in the clone: "
            "pip install -c constraints.txt -e '.[label]'"
        ) from error
    return LabelStudio, ApiError


def once(**query: Any) -> dict[str, Any]:
    """Options of a request of the SDK: sent once, and what its own arguments have no place for."""
    return {"max_retries": 0, "additional_query_parameters": query}


def plain(record: Any) -> dict[str, Any]:
    """What the server said of something: of the SDK's object, the fields that were in the answer, times as text."""
    found = {name: getattr(record, name) for name in record.model_fields_set}
    return {name: as_text(value) if isinstance(value, datetime) else value for name, value in found.items()}


def as_text(moment: datetime) -> str:
    """A time as the server writes it."""
    return moment.isoformat().replace("+00:00", "Z")


def phrase(status: int) -> str:
    """What a status means."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown"
