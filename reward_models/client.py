"""A reward that a server gives over HTTP, asked in batches and with patience.

    POST ADDRESS   {"prompts": [text, ...], "responses": [text, ...], "finished": [true, ...],
                    "messages": [[{"role": "user", "content": text}, ...], ...]}
    200            {"scores": [number, ...]}

`finished` is false for a response that ran out of length; `messages` are the prompts' turns. A server that says
"rewards" in place of "scores" is understood. With RLHF_REWARD_TOKEN in the environment, requests carry it as a bearer
token.
"""

from __future__ import annotations

import functools
import os
import re
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from torch import Tensor

from reward_models.rules import scores_of
from rlhf.beacons import patient
from rlhf.config import RewardServerConfig
from rlhf.errors import RewardAwayError, RewardError
from rlhf.references import is_loopback
from rlhf.types import Completion

TOKEN = "RLHF_REWARD_TOKEN"
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers after which the same request may succeed
LONGEST_PAUSE = 10.0  # seconds between two attempts


@dataclass(frozen=True)
class HttpReward:
    """See `rlhf.types.Reward`. Scores are (raw - mean) / deviation; 0 and 1 leave them raw."""

    address: str
    config: RewardServerConfig
    mean: float = 0.0
    deviation: float = 1.0
    strict: bool = True  # refuse scores that are not finite; to PPO one is a fault of its step, and no end
    early: bool = False  # asked by another thread about responses that have ended, while others are sampled

    @property
    def patience(self) -> float:
        """See `rlhf.types.TextReward`."""
        return self.config.patience_seconds

    @property
    def timeout(self) -> float:
        """See `rlhf.types.TextReward`."""
        return self.config.timeout_seconds

    @property
    def shown(self) -> str:
        """The address without user, password and query: what is said of it ends in terminals and in files."""
        scheme, separator, rest = self.address.partition("://")
        host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
        return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Scores [batch]. Raises RewardAwayError where the server stays away, RewardError where it gives no scores."""
        with patient(f"asks {self.shown}", self.patience + self.timeout):
            return self.scores(completions, time.monotonic() + self.patience)

    def scores(self, completions: Sequence[Completion], deadline: float) -> Tensor:
        """The same, from any thread; deadline: by time.monotonic(), for all batches together."""
        size = self.config.batch_size
        parts = [torch.empty(0)]
        # On this machine there is no proxy in between, whatever the environment says.
        proxies = not is_loopback(self.address)
        with httpx.Client(timeout=self.timeout, headers=headers(), verify=certificates(), trust_env=proxies) as client:
            for start in range(0, len(completions), size):
                batch = completions[start : start + size]
                parts.append(scores_of(self._asked(client, batch, deadline), batch, self.shown, self.strict))
        return (torch.cat(parts) - self.mean) / self.deviation

    def _asked(self, client: httpx.Client, batch: Sequence[Completion], deadline: float) -> Any:
        """What the server gives for a batch, asked again while it is away or busy."""
        question, pause, said = body(batch), 0.1, False
        while True:
            try:
                left = max(deadline - time.monotonic(), 1.0)
                answer = client.post(self.address, json=question, timeout=min(self.config.timeout_seconds, left))
                reason = f"{answer.status_code} {answer.reason_phrase}"
                if answer.status_code not in BUSY:
                    return self._scores(answer)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            except httpx.InvalidURL as error:
                raise RewardError(f"reward {self.shown}: {error}; mend reward.use") from error
            except httpx.DecodingError as error:  # not what its Content-Encoding says
                raise RewardError(
                    f"reward {self.shown}: gave an answer that cannot be decoded ({error}); the answer must be "
                    '{"scores": [number, ...]}'
                ) from error
            if time.monotonic() + pause > deadline:
                raise RewardAwayError(
                    f"reward {self.shown}: no answer within reward.server.patience_seconds="
                    f"{self.config.patience_seconds:g} ({reason}); start the server, the same command goes on"
                )
            if not said:
                print(f"reward {self.shown}: {reason}; asking again", file=sys.stderr, flush=True)
                said = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _scores(self, answer: httpx.Response) -> Any:
        if answer.is_success:
            try:
                content = answer.json()
                return content["scores"] if "scores" in content else content["rewards"]
            except (ValueError, KeyError, TypeError) as error:
                shown = " ".join(answer.text[:80].split())
                raise RewardError(
                    f'reward {self.shown}: answered {shown!r}; the answer must be {{"scores": [number, ...]}}'
                ) from error
        remedy = f"set {TOKEN}" if answer.status_code in (401, 403) else "mend reward.use or the server"
        raise RewardError(f"reward {self.shown}: refused with {answer.status_code} {answer.reason_phrase}; {remedy}")


def body(batch: Sequence[Completion]) -> dict[str, Any]:
    """The question about a batch of completions."""
    contents = [c.prompt.content for c in batch]
    return {
        "prompts": [c.prompt.text for c in batch],
        "responses": [c.response for c in batch],
        "finished": [c.finished for c in batch],
        "messages": [
            [{"role": "user", "content": content}]
            if isinstance(content, str)
            else [{"role": turn.role, "content": turn.content} for turn in content]
            for content in contents
        ],
    }


@functools.cache
def certificates() -> ssl.SSLContext:
    """Whom a server's certificate must be signed by; reading them takes longer than many an answer."""
    return httpx.create_ssl_context()


def headers() -> dict[str, str]:
    """The bearer token of the environment, if there is one."""
    token = os.environ.get(TOKEN)
    return {"Authorization": f"Bearer {token}"} if token else {}
