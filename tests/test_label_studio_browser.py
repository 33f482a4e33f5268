"""Somebody votes on the page, in a real browser: clicks, keys, a reason, a skip."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from debian import require
from label_commands import (
    a_studio,  # noqa: F401  # the fixture `studio`
    label,
    lines,
    pushed,
)
from label_studio_server import PASSWORD, Studio
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.services
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the page needs nobody else
)
SECONDS = 40


def chromium() -> None:
    """Chromium and its driver, as Debian has them."""
    if (
        os.environ.get("CI") != "true"
        and os.geteuid()
        and not (shutil.which("chromium") and shutil.which("chromedriver"))
    ):
        pytest.skip("no chromium and chromedriver; apt-get install chromium chromium-driver")
    require("chromium chromium-driver", "chromium", "chromedriver")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The label stream, as somebody sees it."""

    def __init__(self, browser: webdriver.Chrome, url: str, project: int) -> None:
        self.browser = browser
        browser.get(f"{url}/user/login/")
        browser.find_element(By.NAME, "email").send_keys("ann@example.com")
        password = browser.find_element(By.NAME, "password")
        password.send_keys(PASSWORD)
        password.submit()
        self.wait(lambda: "/user/login" not in browser.current_url)
        browser.get(f"{url}/projects/{project}/data?labeling=1")

    def wait(self, look: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                if found := look():
                    return found
            except Exception:  # what is looked at is being drawn
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, self.text[:2000]
            time.sleep(0.1)

    @property
    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def prompt(self) -> str:
        """The prompt that is shown."""
        return str(self.browser.find_element(By.CSS_SELECTOR, ".rlhf-prompt").text).strip()

    def next(self, before: str = "") -> str:
        """The next prompt, once it is there."""
        return str(self.wait(lambda: self.prompt() if self.prompt() not in ("", before) else None))

    def press(self, name: str) -> None:
        """Click a button, once nothing lies over it."""

        def click() -> bool:
            button = self.browser.find_element(By.CSS_SELECTOR, f'button[aria-label="{name}"]')
            if button.is_enabled():
                button.click()
                return True
            return False

        self.wait(click)

    def submit(self) -> None:
        self.press("Submit current annotation")

    def key(self, key: str) -> None:
        self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def is_chosen(self, choice: str) -> bool:
        return self.browser.find_element(By.CSS_SELECTOR, f'input[type=radio][name="{choice}"]').is_selected()

    def choose(self, choice: str) -> None:
        radio = self.browser.find_element(By.CSS_SELECTOR, f'input[type=radio][name="{choice}"]')
        self.browser.execute_script("arguments[0].click()", radio)
        self.wait(lambda: self.is_chosen(choice))


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
