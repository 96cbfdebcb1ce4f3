"""The page as one file: template, style, script and the data in pieces."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelink.report.join import joined

SCHEMA = 4
"""Of the data in the page, as in page/pieces.js: raise both when the script must read something else."""

DATA_FILE = "data.zip"

PAGE_FILE = "report.html"

FOLDER = Path(__file__).parent / "page"
"""Templates, style and script."""


def packed(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)


def render(head: Mapping[str, object], pieces: Mapping[str, bytes]) -> bytes:
    """The page: template, style, script, the head with its schema, and the pieces in base64."""
    import plotly

    script = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()
    encoded = {name: base64.b64encode(piece).decode() for name, piece in pieces.items() if name != "head"}
    encoded["plotly"] = base64.b64encode(gzip.compress(script, 9, mtime=0)).decode()
    return _filled("report.html", "main", head={**head, "schema": SCHEMA}, pieces=encoded)


def render_graph(graph: Mapping[str, object]) -> bytes:
    """The page of a prompt's graph, from the graph's file."""
    return _filled("prompt.html", "prompt", graph=graph)


def _filled(template: str, script: str, **values: object) -> bytes:
    """A template with the style, the script that begins with a module, and these values."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True)
    style = (FOLDER / "report.css").read_text("utf-8")
    page = environment.get_template(template).render(style=style, script=joined(FOLDER, script), **values)
    return page.encode("utf-8", "replace")  # a name may hold half a pair of surrogates
