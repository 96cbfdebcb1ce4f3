"""The docs' pictures of the report's page, from a report and a prompt's page, by Chromium.

    python scripts/page_pictures.py REPORT.html PROMPT.html TARGET COMPARED    # docs/report.png, card.png, ...

TARGET is the number of the target latent whose card and graph are shown, COMPARED of the one in two connectors.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"

SIZE = (1180, 900)

PHONE = (390, 844)


def browser() -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or sys.exit("needs chromium and chromedriver")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


class Camera:
    """One page in a browser."""

    def __init__(self, chrome: Any, page: Path):
        self.chrome, self.page = chrome, page

    def take(
        self, name: str, where: str, size: tuple[int, int] = SIZE, dark: bool = False, element: str | None = None
    ) -> None:
        """A picture of a place of the page, or of one element there, as docs/NAME.png."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size is PHONE}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.chrome.get("about:blank")
        self.chrome.get(f"{self.page.resolve().as_uri()}{where}")
        for _ in range(300):
            if self.chrome.find_elements("css selector", "main h1"):
                break
            time.sleep(0.1)
        time.sleep(2)  # plots
        seen = self.chrome.find_element("css selector", element) if element else self.chrome
        path = DOCS / f"{name}.png"
        path.write_bytes(seen.screenshot_as_png if element else seen.get_screenshot_as_png())
        print(path)


def main() -> None:
    match sys.argv[1:]:
        case [report, prompt, target, compared]:
            chrome = browser()
            try:
                camera = Camera(chrome, Path(report))
                camera.take("report", "#/")
                camera.take("list", "#/circuits?verdict=confirmed&sort=-effect")
                camera.take("card", f"#/target/{target}", (1180, 1500))
                camera.take("graph", f"#/target/{target}", element="figure.drawing")
                camera.take("comparison", f"#/compare/{compared}")
                camera.take("phone", f"#/target/{target}", PHONE)
                camera.take("dark", f"#/target/{target}", dark=True)
                Camera(chrome, Path(prompt)).take("prompt", "", (1180, 1000))
            finally:
                chrome.quit()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
