"""Error and edges against L1: pictures, and W&B's own charts of the same points."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from saelink.evidence.compared import Row, differing, mean_predictor, series_of

Y = {"mse": "validation MSE", "fvu": "validation FVU", "n_edges": "edges"}
"""What is drawn against L1."""

L1_LABEL = "L1 (mean over targets of the sum of |weights|)"

TABLE = [
    "name",
    "pareto",
    "mse",
    "fvu",
    "l1",
    "n_edges",
    "n_edges_above_0.01",
    "l1_alpha",
    "connector",
    "solver",
    "train",
]
"""Columns of the table; further ones are those by which its rows differ."""


class Bounds(NamedTuple):
    """Levels that are drawn beside the fits of one place."""

    mean: Row
    """A row to take the mean predictor's error from."""
    oracle: float | None
    """The oracle's squared error; None where it was not measured."""

    def levels(self, y: str) -> dict[str, float]:
        """Name -> height, for errors; edges have none."""
        if y == "n_edges":
            return {}
        mean = mean_predictor(self.mean)
        unit = mean if y == "fvu" else 1.0
        return {"mean predictor": mean / unit} | ({} if self.oracle is None else {"oracle": self.oracle / unit})


def lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by what tells them apart, each line from the smallest L1 on."""
    names = differing(rows)
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["l1"]):
        found.setdefault(series_of(row, names), []).append(row)
    return dict(sorted(found.items()))


def picture(rows: Sequence[Row], bounds: Bounds | None = None, mark: str | None = None, dpi: int = 150) -> bytes:
    """A PNG with log axes: MSE, FVU and edges against L1, a line for each setting; `mark` is the key of one fit."""
    from matplotlib.figure import Figure  # not pyplot: a notebook keeps its own backend
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    drawn = lines([row for row in rows if row["l1"] > 0])
    figure = Figure(figsize=(11, 4.2 + 0.16 * len(drawn)), layout="constrained")
    panels = figure.subplots(1, len(Y))
    for axes, (y, label) in zip(panels, Y.items(), strict=True):
        for number, (name, line) in enumerate(drawn.items()):
            colour = f"C{number % 10}"
            axes.plot([row["l1"] for row in line], [row[y] for row in line], "-", color=colour, linewidth=1)
            for filled in (True, False):
                part = [row for row in line if row["pareto"] == filled]
                xs, ys = [row["l1"] for row in part], [row[y] for row in part]
                face = colour if filled else "white"
                axes.plot(xs, ys, "o", color=colour, markerfacecolor=face, markersize=5)
            axes.plot([], [], "o-", color=colour, label=name)
            if y == "mse":
                for row in line:
                    at = (row["l1"], row[y])
                    axes.annotate(f"{row['l1_alpha']:g}", at, textcoords="offset points", xytext=(5, 4), fontsize=7)
        for (name, level), style in zip((bounds.levels(y) if bounds else {}).items(), (":", "--"), strict=False):
            axes.axhline(level, color="grey", linestyle=style, linewidth=1, label=name)
        for row in rows:
            if row["train"] == mark and row["l1"] > 0:
                axes.plot([row["l1"]], [row[y]], "o", color="black", markerfacecolor="none", markersize=11)
        axes.set(xlabel=L1_LABEL if y == "fvu" else "L1", ylabel=label)
        if drawn:
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    note = "filled: on the frontier of its targets; numbers: l1_alpha"
    figure.suptitle(f"Error and edges against L1 ({note}{'; circled: this fit' if mark else ''})", fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi, metadata={"Software": None})
    return data.getvalue()


def columns(rows: Sequence[Row]) -> list[str]:
    """The table's columns for these rows."""
    return [*TABLE, *(name for name in differing(rows) if name not in TABLE)]


def wandb_charts(rows: Sequence[Row], bounds: Bounds | None = None, mark: str | None = None) -> dict[str, Any]:
    """What a run logs of these fits: `pareto/...` a table, charts of MSE, FVU and edges against L1, the picture.

    The axes of W&B's presets are linear, so they show logarithms; the panels of `saelink wandb workspace` and the
    picture have log axes.
    """
    import wandb
    from PIL import Image

    names = columns(rows)
    table = wandb.Table(
        columns=[*names, "log10_l1", "log10_mse", "this_run"],
        data=[
            [*(row.get(name) for name in names), _log10(row["l1"]), _log10(row["mse"]), row["train"] == mark]
            for row in rows
        ],
    )
    logged: dict[str, Any] = {
        "pareto/table": table,
        "pareto/points": wandb.plot.scatter(table, "log10_l1", "log10_mse", title="log10 MSE against log10 L1"),
        "pareto/picture": wandb.Image(Image.open(io.BytesIO(picture(rows, bounds, mark)))),
    }
    drawn = lines([row for row in rows if row["l1"] > 0])
    if not drawn:
        return logged
    ends = [min(row["l1"] for line in drawn.values() for row in line)]
    ends.append(max(row["l1"] for line in drawn.values() for row in line))
    for y, label in Y.items():
        series = {name: ([row["l1"] for row in line], [row[y] for row in line]) for name, line in drawn.items()}
        series |= {name: (ends, [level, level]) for name, level in (bounds.levels(y) if bounds else {}).items()}
        logged[f"pareto/{y}"] = wandb.plot.line_series(
            xs=[[_log10(x) for x in xs] for xs, _ in series.values()],
            ys=[[_log10(value) for value in ys] for _, ys in series.values()],
            keys=list(series),
            title=f"log10 {label} against log10 L1",
            xname="log10 L1",
        )
    return logged


def _log10(value: float) -> float | None:
    return math.log10(value) if value > 0 else None
