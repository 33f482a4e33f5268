"""An OpenAI-compatible chat endpoint over HTTP (POST URL/chat/completions, not streamed).

What a server may answer better the next time is asked again: 408, 425, 429, 5xx, no answer at all, with the wait that
Retry-After names or one that doubles. What it will never answer better ends the command, or costs one question.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from data.judging.pacing import Pace
from data.records import printable
from rlhf.errors import ConfigError, LabellingError
from rlhf.references import is_loopback

TOKENS = ("RLHF_JUDGE_TOKEN", "OPENAI_API_KEY")  # the first that is set
BUSY = (408, 425, 429, 500, 502, 503, 504, 529)
FOR_ALL = (429, 503, 529)  # of these: that the server wants fewer requests, whoever sends them
ONE_QUESTION = (400, 413, 422)  # the server will not have this question, such as one beyond its context
GARBLED = 3  # answers in a row that are none, until it is taken for another kind of server
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between two tries, unless the server names some


@dataclass(frozen=True)
class Reply:
    """What the endpoint has answered."""

    text: str | None
    finish: str | None
    prompt_tokens: int | None
    answer_tokens: int | None
    seconds: float  # of the request that was answered


class Refused(LabellingError):
    """The server will not have this question."""


class Endpoint:
    """A chat endpoint, with a pace and a patience."""

    def __init__(self, url: str, token: str | None, pace: Pace, patience: float, timeout: float) -> None:
        self.url = checked_url(url)
        self.token = token
        self.pace = pace
        self.patience = patience
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        # On this machine there is no proxy in between, whatever the environment says.
        self.client = httpx.AsyncClient(
            headers=headers, timeout=timeout, trust_env=not is_loopback(self.url), follow_redirects=False
        )
        self.retries = 0

    async def close(self) -> None:
        """Close its connections."""
        await self.client.aclose()

    async def ask(self, body: bytes) -> Reply:
        """The answer to a request. Raises Refused for this question alone, LabellingError where none will do better."""
        failing_since: float | None = None
        garbled = 0
        for tries in itertools.count():
            await self.pace.turn()
            started = time.monotonic()
            asked_to_wait = None
            try:
                answer = await self.client.post(f"{self.url}/chat/completions", content=body)
                if answer.status_code not in BUSY:
                    return self._read(answer, time.monotonic() - started)
                problem = self._told(answer)
                asked_to_wait = wait_of(answer.headers.get("retry-after"))
            except Garbled as error:
                garbled += 1
                problem = str(error)
                if garbled == GARBLED:
                    raise LabellingError(f"{problem}; is --url right? It usually ends in /v1") from error
            except httpx.TransportError as error:
                said = " ".join(str(error).split()) or type(error).__name__
                problem, answer = f"{self.url}: no answer ({said})", None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise LabellingError(f"{self.url}: {error}; check --url") from error
            now = time.monotonic()
            failing_since = started if failing_since is None else failing_since
            wait = min(FIRST_WAIT * 2 ** min(tries, 10), LONGEST_WAIT) * (1 + random.random() / 4)
            if asked_to_wait is not None:
                wait = asked_to_wait + random.random() / 4
            if now - failing_since + wait > self.patience:
                wants = f", and asks to wait {asked_to_wait:.0f} s" if asked_to_wait else ""
                raise LabellingError(f"{problem}{wants}; the same command goes on (--patience {self.patience:g})")
            self.retries += 1
            if answer is not None and answer.status_code in FOR_ALL:
                self.pace.hold(wait)
            else:
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _read(self, answer: httpx.Response, seconds: float) -> Reply:
        status = answer.status_code
        if status in (401, 403):
            remedy = "it needs another token" if self.token else "it needs one"
            raise LabellingError(f"{self.url}: refuses us ({status}); {remedy}: set {TOKENS[0]}")
        if status in ONE_QUESTION:
            raise Refused(self._told(answer))
        if status != 200:
            raise LabellingError(f"{self._told(answer)}; check --url and --model")
        return read_reply(self.url, answer, seconds)

    def _told(self, answer: httpx.Response) -> str:
        """A status and the server's own words for it, without the token should they hold it."""
        text = answer.text if "json" in answer.headers.get("content-type", "") else answer.reason_phrase
        text = " ".join((message_of(text) or answer.reason_phrase).split())[:300]
        text = text.replace(self.token, "...") if self.token else text
        return f"{self.url}: {answer.status_code} {printable(text)}".rstrip()


class Garbled(Exception):
    """An answer that is none of a chat endpoint."""


def read_reply(url: str, answer: httpx.Response, seconds: float) -> Reply:
    """A chat completion. Raises Garbled for anything else."""
    try:
        record = answer.json()
        choice = record["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        usage = record.get("usage") or {}
        asked, said = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Garbled(f"{url}: its answer is no chat completion") from error
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise Garbled(f"{url}: its answer is no chat completion")
    known = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in (asked, said))
    return Reply(text, finish, asked if known else None, said if known else None, seconds)


def message_of(text: str) -> str:
    """The words of an error, out of the shapes that servers put them in."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "detail", "message"):
        if isinstance(record, dict) and name in record:
            record = record[name]
    return record if isinstance(record, str) else json.dumps(record)


def wait_of(header: str | None) -> float | None:
    """Seconds that Retry-After names, as a number or a date (RFC 9110, 10.2.3); None where it names none."""
    if not header:
        return None
    try:
        return max(0.0, float(header)) if header.strip().isdigit() else _until(parsedate_to_datetime(header))
    except ValueError:
        return None


def _until(moment: datetime) -> float:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def checked_url(url: str) -> str:
    """The address of an endpoint without a slash at its end. Raises ConfigError for what is none."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
        right = right and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right:
        raise ConfigError(f"--url {url}: not the address of a server; give one such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ConfigError(f"--url: holds a password that others could see; leave it out, and set {TOKENS[0]}")
    return url.rstrip("/").removesuffix("/chat/completions")


def token_for(url: str, allow_http: bool, environment: Mapping[str, str] = os.environ) -> str | None:
    """The environment's token, if it has one. Raises ConfigError where it would go in clear to another machine."""
    name = next((name for name in TOKENS if environment.get(name, "").strip()), None)
    if name is None:
        return None
    if not url.startswith("https:") and not is_loopback(url) and not allow_http:
        raise ConfigError(f"--url {url}: {name} would go over http in clear; use https, unset it, or give --allow-http")
    token = environment[name].strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"{name}: holds characters that no token has; set it again")
    return token


def request_of(model: str, text: str, max_tokens: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request, and what the user wants in it besides; null takes a field out."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": max_tokens}
    return {name: value for name, value in (body | dict(extra)).items() if value is not None}
