"""saelink: how one set of SAE latents computes the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from saelink.export import Loaded
    from saelink.report import Opened

__version__ = "0.1.0"


def open(key: str, outputs: str = "outputs") -> Opened:
    """A report's cards in Python: saelink.open("33654d08d11b").target(1064) shows one in a notebook.

    `key` is that of a report or of the connector it is about, or its first digits. Raises SaelinkError for none.
    """
    from saelink.report import open_report

    return open_report(key, outputs)


def load_connector(place: str | Path) -> Loaded:
    """A connector that `saelink export` wrote: load_connector("folder")(source_latents) predicts target latents.

    `place` is its folder, or hf://owner/repository[@revision]. Raises SaelinkError for none.
    """
    from saelink.export import load_connector as load

    return load(place)
