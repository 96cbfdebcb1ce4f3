"""saelink: how one set of SAE latents computes the next.

The stages as functions are `configure` and what stands beside it in `__all__`; docs/guides/python.md shows them at
work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from saelink.api import (
        cache_acts,
        configure,
        encode_latents,
        evaluate_connector,
        export_connector,
        fit_connector,
        make_report,
        prompt_graph,
        verify_edges,
    )
    from saelink.connectors.exported import ExportedConnector
    from saelink.errors import SaelinkError
    from saelink.progress import Observer
    from saelink.report.notebook import Opened

from saelink._version import __version__ as __version__

__all__ = [
    "Observer",
    "SaelinkError",
    "cache_acts",
    "configure",
    "encode_latents",
    "evaluate_connector",
    "export_connector",
    "fit_connector",
    "load_connector",
    "make_report",
    "open",
    "prompt_graph",
    "verify_edges",
]


def __getattr__(name: str) -> Any:
    """The functions of `api`, imported when one is first asked for: `saelink --help` has no use for them."""
    if name in __all__:
        from saelink import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open(key: str, outputs: str = "outputs") -> Opened:
    """A report's cards in Python: saelink.open("33654d08d11b").target(1064) shows one in a notebook.

    `key` is that of a report or of the connector it is about, or its first digits. Raises SaelinkError for none.
    """
    from saelink.report.notebook import open_report

    return open_report(key, outputs)


def load_connector(place: str | Path) -> ExportedConnector:
    """A connector that `saelink export` wrote: load_connector("folder")(source_latents) predicts target latents.

    `place` is its folder, or hf://owner/repository[@revision]. Raises SaelinkError for none.
    """
    from saelink.connectors.exported import load_connector as load

    return load(place)
