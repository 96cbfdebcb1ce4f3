"""The report's page in Chromium, by mouse and by keyboard."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
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


CONTROLS = """
const own = (e) => e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent || e.title;
const seen = (e) => e.getClientRects().length > 0;
const all = [...document.querySelectorAll("a, button, input, select, textarea, summary, [role=button], [tabindex]")];
const shown = all.filter((e) => seen(e) && e.id !== "main");
return shown.map((e) => [e.outerHTML.slice(0, 90), e.tabIndex, own(e).trim()]);
"""

HIDDEN = """
const told = document.querySelector("main").textContent;
const where = "main th[title], main [class^='v-'][title], main .chips [title], main li[title]";
const titles = [...document.querySelectorAll(where)].map((e) => e.title.replace(/^[a-z ]+: /, ""));
return titles.filter((title) => !told.includes(title));
"""


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

    def check_controls(self) -> None:
        """Every control in sight has a name, Tab goes through them, and no title says what only a mouse finds."""
        controls = self.run(CONTROLS)
        assert len(controls) > 8
        assert [html for html, index, name in controls if index < 0 or not name] == []
        assert self.run(HIDDEN) == []
        reached = set()
        for _ in range(30):
            self.press("TAB")
            reached.add(self.focused.get_attribute("outerHTML")[:90])
        assert len(reached & {html for html, _, _ in controls}) >= min(8, len(controls)), "Tab goes through them"

    def serious(self, places: Sequence[str]) -> list[tuple[str, bool, str, str]]:
        """What axe finds serious at these places, light and dark; the test is skipped without axe."""
        found = importlib.util.find_spec("axe_core_python")
        if found is None or not found.submodule_search_locations:
            pytest.skip("needs axe-core-python (extra test)")
        script = (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text()
        serious: list[tuple[str, bool, str, str]] = []
        for dark in (False, True):
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            for where in places:
                self.go(where)
                self.run(script)
                result = self.browser.execute_async_script("axe.run().then(arguments[0])")
                serious += [
                    (where, dark, rule["id"], node["html"][:200])
                    for rule in result["violations"]
                    if rule["impact"] in ("serious", "critical")
                    for node in rule["nodes"]
                ]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        return serious

    def width_on_phone(self, where: str) -> int:
        """How wide a place is on a phone of 390 pixels."""
        size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            self.go(where)
            return self.run("return document.documentElement.scrollWidth")
        finally:
            self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
