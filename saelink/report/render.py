"""The page as one file: template, style, script and the data in pieces."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelink.report.join import joined

SCHEMA = 1
"""Of the data in the page, as in page/pieces.js: raise both when the script must read something else."""

DATA_FILE = "data.zip"

PAGE_FILE = "report.html"


def packed(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)


def render(head: Mapping[str, object], pieces: Mapping[str, bytes]) -> bytes:
    """The page: template, style, script, the head with its schema, and the pieces in base64."""
    import jinja2
    import plotly

    folder = Path(__file__).parent / "page"
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True)
    script = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").read_bytes()
    encoded = {name: base64.b64encode(piece).decode() for name, piece in pieces.items() if name != "head"}
    encoded["plotly"] = base64.b64encode(gzip.compress(script, 9, mtime=0)).decode()
    page = environment.get_template("report.html").render(
        head={**head, "schema": SCHEMA},
        style=(folder / "report.css").read_text("utf-8"),
        script=joined(folder, "main"),
        pieces=encoded,
    )
    return page.encode("utf-8", "replace")  # a name may hold half a pair of surrogates
