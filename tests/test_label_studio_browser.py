"""Somebody votes on the page, in a real browser: clicks, keys, a reason, a skip."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from label_commands import (
    a_studio,  # noqa: F401  # the fixture `studio`
    label,
    lines,
    pushed,
)
from label_studio_page import Page, opened
from label_studio_server import Studio
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.services


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with opened(tmp_path / "browser") as driver:
        yield driver


def test_people_click_press_keys_give_reasons_and_skip(
    studio: Studio, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    number, ledger, _ = pushed(studio, tmp_path, "browser", 8, "--rate", "honesty")
    studio.person("ann")
    page = Page(browser, studio.url, number)
    texts = {entry.data()["prompt"]: entry for entry in ledger.entries.values()}
    asked = [page.next()]
    shown = [each.text.strip() for each in browser.find_elements(By.CSS_SELECTOR, ".rlhf-response")]
    assert tuple(shown) == texts[asked[0]].responses  # A left, B right, as the ledger has them

    page.choose("B")  # clicked, with a reason and a star
    browser.find_element(By.NAME, "reason").send_keys("it answers", Keys.SPACE, "the question")
    page.submit()
    asked.append(page.next(asked[-1]))

    page.key("3")  # a tie, by its key
    page.wait(lambda: page.is_chosen("tie"))
    page.submit()
    asked.append(page.next(asked[-1]))

    page.press("skip-task")
    asked.append(page.next(asked[-1]))

    page.key("1")
    page.wait(lambda: page.is_chosen("A"))
    page.key("2")  # and then better
    page.wait(lambda: page.is_chosen("B") and not page.is_chosen("A"))
    page.submit()
    page.next(asked[-1])

    counts = json.loads(label(studio, tmp_path, "pull", "--project", "browser", "--json"))
    assert {name: counts[name] for name in ("valid", "tie", "skipped", "malformed")} == {
        "valid": 2,
        "tie": 1,
        "skipped": 1,
        "malformed": 0,
    }
    votes = {vote["prompt"]: vote for vote in lines(ledger.directory / "votes.jsonl")}
    assert set(votes) == {asked[0], asked[1], asked[3]}
    assert votes[asked[0]]["chosen"] == texts[asked[0]].responses[1] and votes[asked[1]]["tie"]
    assert votes[asked[0]]["reason"] == "it answers the question" and "reason" not in votes[asked[1]]
    assert votes[asked[3]]["chosen"] == texts[asked[3]].responses[1]
    assert all(0 < vote["seconds"] < 120 for vote in votes.values())
