"""The report's page in Chromium, by mouse and by keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def chromium(downloads: Path) -> Any:
    """A browser without a window; the test is skipped where there is none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium chromium-driver)")
    pytest.importorskip("selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


class Visit:
    """A page in a browser."""

    def __init__(self, browser: Any, page: Path):
        self.browser, self.page = browser, page

    def go(self, where: str = "#/") -> str:
        """Load the page at a place; the text of it, once it is there."""
        self.browser.get("about:blank")
        self.browser.get(f"file://{self.page}{where}")
        self.wait(lambda: self.one("main h1"))
        return self.text

    @property
    def text(self) -> str:
        return self.one("main").text

    @property
    def here(self) -> str:
        """The place, from # on."""
        return "#" + self.browser.current_url.partition("#")[2]

    @property
    def focused(self) -> Any:
        return self.browser.switch_to.active_element

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def link(self, text: str) -> Any:
        return self.browser.find_element("link text", text)

    def wait(self, condition: Callable[[], Any]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 30, ignored_exceptions=[Exception]).until(lambda _: condition())

    def at(self, title: str) -> None:
        """Wait for the view whose heading begins so."""
        self.wait(lambda: self.one("main h1").text.startswith(title))

    def press(self, *keys: str) -> None:
        """Keys on what has the focus: a character, or a name such as ENTER."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        chain = ActionChains(self.browser)
        for key in keys:
            chain.send_keys(getattr(Keys, key) if key.isupper() and len(key) > 1 else key)
        chain.perform()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def search(self, text: str) -> None:
        field = self.one("#query")
        field.clear()
        field.send_keys(text)
        field.submit()

    def complaints(self) -> list[str]:
        """Warnings and errors of the console since this was asked last."""
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]
