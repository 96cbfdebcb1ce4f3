"""saelink fits sparse maps between the SAE latents on two sides of a layer and tests which edges are causal.

    import saelink
    job = saelink.configure("layer=1", "l1_alpha=8e-4")  # what to do: settings as on the command line
    fitted = saelink.fit_connector(job)                  # a sparse map from source to target latents
    saelink.evaluate_connector(job)                      # its error and circuits on held-out documents

What you call, in this order; each function computes what is missing and reuses what exists:

    configure            settings -> job, which every function below takes
    cache_acts           the model's activations
    encode_latents       SAE latents on all tokens
    fit_connector        one connector                    sweep_connectors, open_sweep: several penalties
    evaluate_connector   held-out figures, circuits
    verify_edges         which edges hold when sources are ablated in the model
    make_report, open    an HTML page; its cards in Python: open(report.key).target(5)
    export_connector     a folder for others              load_connector: reads one, predicts
    prompt_graph         one prompt's attribution graph, of one layer or several
    intervene            latents changed on a prompt, in the model and by its graph
    circuit              what leads to a latent over several layers, and where it leads
    test                 is a circuit what computes its target: test(job, "OF138")
    qk                   which pairs of latents decide where a layer's heads look

Results are artifacts: `key`, `path`, `facts` (figures), `files`, `json(name)`, `tensors(name)`. They show
themselves in a notebook. A user's mistake raises SaelinkError, one line. `observer=saelink.Observer()` keeps a
function quiet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from saelink.api import (
        cache_acts,
        circuit,
        configure,
        encode_latents,
        evaluate_connector,
        export_connector,
        fit_connector,
        intervene,
        make_report,
        prompt_graph,
        qk,
        sweep_connectors,
        test,
        verify_edges,
    )
    from saelink.errors import SaelinkError
    from saelink.progress import Observer
    from saelink.report.notebook import Opened
    from saelink.report.shown import LoadedConnector, Sweep

from saelink._version import __version__ as __version__

__all__ = [
    "Observer",
    "SaelinkError",
    "cache_acts",
    "circuit",
    "configure",
    "encode_latents",
    "evaluate_connector",
    "export_connector",
    "fit_connector",
    "intervene",
    "load_connector",
    "make_report",
    "open",
    "open_sweep",
    "prompt_graph",
    "qk",
    "sweep_connectors",
    "test",
    "verify_edges",
]


def __getattr__(name: str) -> Any:
    """The functions of `api`, imported when one is first asked for: `saelink --help` has no use for them."""
    if name in __all__:
        from saelink import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What `help` and completion list: the functions of `api` too."""
    return sorted({*globals(), *__all__})


def open(key: str, outputs: str = "outputs") -> Opened:
    """A report's cards in Python: saelink.open("33654d08d11b").target(1064) shows one in a notebook.

    `key` is that of a report or of the connector it is about, or its first digits. Raises SaelinkError for none.
    """
    from saelink.report.notebook import open_report

    return open_report(key, outputs)


def open_sweep(sweep_id: str, outputs: str = "outputs") -> Sweep:
    """A sweep that a command or `sweep_connectors` made, by the name it ended with: open_sweep("sweep6e79526d").

    Raises SaelinkError for one that does not exist or has no connector yet.
    """
    from saelink.report.shown import Sweep
    from saelink.store.store import Store

    return Sweep(Store(outputs), sweep_id)


def load_connector(place: str | Path) -> LoadedConnector:
    """A connector that `saelink export` wrote: load_connector("folder")(source_latents) predicts target latents.

    Source latents are [tokens, d_source], all sources side by side, predictions [tokens, d_target]; both in the raw
    units of their SAEs. `place` is its folder, or hf://owner/repository[@revision]. Raises SaelinkError for none.
    """
    from saelink.report.shown import LoadedConnector

    return LoadedConnector(place)
