"""Label Studio's page in a real browser, for tests: somebody logs in and answers what the label stream shows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from debian import require
from label_studio_server import PASSWORD
from selenium import webdriver
from selenium.webdriver.common.by import By

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


@contextmanager
def opened(folder: Path) -> Iterator[webdriver.Chrome]:
    """A headless browser of its own, with its profile in a folder."""
    chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
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
