"""Builds the documentation into site/: `make docs`. Broken links, images and anchors are errors.

The tool finds broken links between pages; what it leaves out is looked for here in what it has built: images, links in
generated pages, pages that the navigation lacks, and anything a browser would fetch from elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
SITE = ROOT / "site"


class References(HTMLParser):
    """What one built page refers to, and what can be referred to in it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next") and "href" in given:
            self.fetched.append(given["href"])
        elif "src" in given:
            self.fetched.append(given["src"])


def read(path: Path) -> References:
    """A page's references."""
    found = References()
    found.feed(path.read_text())
    return found


def broken(site: Path) -> list[str]:
    """One line for each reference that leads nowhere, and for each file that a browser would fetch from elsewhere."""
    pages = {path: read(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    lines = []
    for path, page in pages.items():
        where = path.relative_to(site)
        for reference in (*page.links, *page.fetched):
            parts = urlsplit(reference)
            if parts.scheme or parts.netloc:
                if reference in page.fetched and parts.scheme != "data":
                    lines.append(f"{where}: fetches {reference}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                lines.append(f"{where}: {reference} is missing")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                lines.append(f"{where}: {reference}: no such place on that page")
    return lines


def placed(entries: list[Any]) -> set[str]:
    """The pages of a navigation."""
    found: set[str] = set()
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found |= placed(value) if isinstance(value, list) else {value}
    return found


def lost(config: dict[str, Any], docs: Path) -> list[str]:
    """One line for each page that the navigation lacks, or has without there being one."""
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    there = placed(config["project"]["nav"])
    return [f"zensical.toml: {page} is in docs/ or in nav, not in both" for page in sorted(pages ^ there)]


def main() -> int:
    config = tomllib.loads((ROOT / "zensical.toml").read_text())
    lines = lost(config, ROOT / "docs")
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=ROOT, env={**os.environ, "NO_COLOR": "1"}, check=False,
    )  # fmt: skip
    if built.returncode == 0:
        lines += broken(SITE)
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines or built.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
