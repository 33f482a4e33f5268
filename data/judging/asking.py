"""All questions that the journal has no answer to, several at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.judging.endpoint import Endpoint, Refused, request_of
from data.judging.journal import Answer, Journal
from data.judging.pacing import Budget, Pace
from data.judging.questions import Question
from rlhf.errors import ConfigError, LabellingError

REFUSALS = 10  # in a row, until it is not for the questions that they are refused


@dataclass(frozen=True)
class Settings:
    """Whom to ask, and how."""

    url: str
    model: str
    rubric: str
    max_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields of a request besides
    token: str | None = field(default=None, repr=False)
    concurrency: int = 8
    requests_per_minute: float | None = None
    budget_tokens: int | None = None  # of prompts and answers, those in the journal included
    patience: float = 600.0  # seconds of failures that one question may meet
    timeout: float = 120.0  # seconds that one answer may take


@dataclass
class Outcome:
    """What came of asking."""

    refused: dict[tuple[str, bool], str] = field(default_factory=dict)  # questions that the server would not have
    out_of_budget: bool = False
    retries: int = 0


async def ask_all(
    questions: Sequence[Question], journal: Journal, settings: Settings, progress: Callable[[], None]
) -> Outcome:
    """Ask what is missing in the journal. Raises LabellingError where the endpoint answers nothing more."""
    missing = [question for question in questions if question.key not in journal.answers]
    budget = Budget(settings.budget_tokens, journal.tokens)
    pace = Pace(settings.requests_per_minute)
    endpoint = Endpoint(settings.url, settings.token, pace, settings.patience, settings.timeout)
    asking = Asking(iter(missing), journal, settings, budget, endpoint, progress)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(settings.concurrency, len(missing))):
                group.create_task(asking.work())
    except ExceptionGroup as errors:  # the first is why the others were called off
        raise errors.exceptions[0] from None
    finally:
        await endpoint.close()
    asking.outcome.retries = endpoint.retries
    return asking.outcome


class Asking:
    """What the workers share."""

    def __init__(
        self,
        missing: Iterator[Question],
        journal: Journal,
        settings: Settings,
        budget: Budget,
        endpoint: Endpoint,
        progress: Callable[[], None],
    ) -> None:
        self.missing = missing
        self.journal = journal
        self.settings = settings
        self.budget = budget
        self.endpoint = endpoint
        self.progress = progress
        self.outcome = Outcome()
        self.refused_in_a_row = 0

    async def work(self) -> None:
        """Ask one question after another until there is none, or no budget."""
        for question in self.missing:
            text = question.text(self.settings.rubric)
            request = request_of(self.settings.model, text, self.settings.max_tokens, self.settings.extra)
            body, size = json.dumps(request).encode("ascii"), len(text.encode("utf-8", "surrogatepass"))
            reserved = await self.budget.reserve(size, answer_limit(request))
            if reserved is None or self.outcome.out_of_budget:
                self.outcome.out_of_budget = True
                return
            try:
                await self._ask(question, body, size, reserved)
            except BaseException:
                await self.budget.settle(reserved)
                raise

    async def _ask(self, question: Question, body: bytes, size: int, reserved: int) -> None:
        try:
            reply = await self.endpoint.ask(body)
        except Refused as error:
            self.outcome.refused[question.key] = str(error)
            self.refused_in_a_row += 1
            await self.budget.settle(reserved)
            if self.refused_in_a_row == REFUSALS:
                remedy = "see --request and --max-tokens"
                raise LabellingError(f"{error} ({REFUSALS} questions in a row); {remedy}") from error
            return
        self.refused_in_a_row = 0
        pair, swapped = question.key
        seconds = round(reply.seconds, 3)
        counts = reply.prompt_tokens, reply.answer_tokens
        # Nothing is awaited between the answer and the disk: whoever calls us off here cannot lose it.
        self.journal.add(Answer(pair, swapped, reply.text, reply.finish, *counts, seconds, time.time()))
        self.progress()
        if self.settings.budget_tokens is not None and reply.prompt_tokens is None:
            raise LabellingError(f"{self.settings.url}: its answers have no usage; leave --budget-tokens out")
        await self.budget.settle(reserved, size, reply.prompt_tokens or 0, reply.answer_tokens or 0)


def answer_limit(request: Mapping[str, Any]) -> int:
    """Tokens that an answer may have at most. Raises ConfigError where a request sets no limit."""
    limits = [request[name] for name in ("max_completion_tokens", "max_tokens") if name in request]
    if not limits or not isinstance(limits[0], int):
        raise ConfigError("--request: sets no limit to answers; give max_tokens or max_completion_tokens a number")
    return int(limits[0])
