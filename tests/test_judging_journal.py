"""What a judge has answered is kept, and its pace and its budget are kept to."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from data.judging.endpoint import wait_of
from data.judging.journal import Answer, Journal
from data.judging.pacing import Budget, Pace
from rlhf.errors import ArtifactError


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


# The journal.


def journal(**other: Any) -> Journal:
    return Journal.open(Path("judged.jsonl.answers"), {"model": "m", "rubric": "r" * 80, **other})


def test_half_a_line_is_cut_off_and_the_rest_stands() -> None:
    first = journal()
    first.add(Answer("p", False, "A"))
    first.close()
    with first.path.open("ab") as file:
        file.write(b'{"pair": "p", "swapp')
    again = journal()
    assert (again.answers, again.cut) == ({("p", False): Answer("p", False, "A")}, 20)
    again.add(Answer("p", True, "\udc80 \u2028 no"))
    again.close()
    last = journal()
    assert (len(last.answers), last.cut) == (2, 0)
    last.close()


def test_answers_to_other_questions_are_not_mixed() -> None:
    journal().close()
    with pytest.raises(ArtifactError, match=r'\(model: "m", now "n"\); give another --output'):
        journal(model="n")
    with pytest.raises(ArtifactError, match=r"\(rubric\)"):
        journal(rubric="s")
    held = journal()
    with pytest.raises(ArtifactError, match="in use by another"):
        journal()
    held.close()
    with held.path.open("ab") as file:
        file.write(b"[]\n")
    with pytest.raises(ArtifactError, match="judged.jsonl.answers:2: damaged"):
        journal()


# Pace and budget.


def test_turns_come_at_the_pace_that_is_given() -> None:
    async def turns() -> float:
        pace = Pace(per_minute=1200)
        await asyncio.gather(*(pace.turn() for _ in range(5)))
        return time.monotonic()

    started = time.monotonic()
    assert asyncio.run(turns()) - started >= 4 * 0.05


def test_a_budget_waits_for_what_is_in_flight_and_is_never_passed() -> None:
    async def spend() -> list[int | None]:
        budget = Budget(100)
        first = await budget.reserve(60, 10)
        assert first == 71
        waiting = asyncio.create_task(budget.reserve(60, 10))
        await asyncio.sleep(0)
        assert not waiting.done()
        await budget.settle(first, 60, 15, 5)
        second = await waiting  # a quarter of a token for a byte, as is known now
        third = await budget.reserve(60, 10)
        assert second is not None and third is not None
        await budget.settle(second, 60, 15, 10)
        await budget.settle(third, 60, 15, 10)
        assert budget.spent == 70
        fourth = await budget.reserve(100, 10)
        return [second, third, fourth]

    assert asyncio.run(spend()) == [26, 26, None]


def test_retry_after_is_seconds_or_a_date() -> None:
    assert wait_of("7") == 7
    assert 50 < (wait_of(format_datetime(datetime.now(UTC) + timedelta(minutes=1))) or 0) <= 60
    assert wait_of("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert wait_of("soon") is None and wait_of(None) is None and wait_of("-3") is None
