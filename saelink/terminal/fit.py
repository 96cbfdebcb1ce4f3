"""A fitted connector as lines: what it came to, and where it stands among others."""

from __future__ import annotations

from typing import Any

from saelink.connectors.exported import CONFIG_FILE
from saelink.evidence.compared import Row, differing, series_of
from saelink.fit.train import TrainFacts
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.evaluation import edges_text
from saelink.terminal.table import pair_lines, terminal_width


def map_rows(config: dict[str, Any]) -> list[tuple[str, str]]:
    """What maps what to what, of a connector's cfg.json."""
    sources = " + ".join(source["hook_name"] for source in config["sources"])
    return [
        ("connector", f"{config['connector']['name']}, l1_alpha {config['l1_alpha']:g}, by {config['solver']['name']}"),
        ("link", f"{sources} -> {config['target']['hook_name']}"),
    ]


def fit_rows(connector: Artifact[TrainFacts]) -> list[tuple[str, str]]:
    """What there is to say of a fitted connector: a name and a text for each line."""
    facts, config = connector.facts, connector.json(CONFIG_FILE)
    d_source = sum(source["d"] for source in config["sources"])
    rows = [
        *map_rows(config),
        ("latents", f"{d_source:,} sources, {facts['n_targets']:,} of {config['target']['d']:,} targets explained"),
        ("FVU", f"{facts['validation_fvu']:.3f} on validation documents (0 is perfect, 1 predicts the mean)"),
        ("edges", edges_text(facts)),
        ("L1", f"{facts['l1']:.3f}"),
    ]
    if "relative_gap" in facts:
        rows.append(("gap", f"{facts['relative_gap']:.1e} of the training objective, at most"))
    return rows


def frontier_text(connector: Artifact[TrainFacts], rows: list[Row]) -> str:
    """Where it stands among `rows`, the fits that it can be compared with, itself among them."""
    mine = next(row for row in rows if row["train"] == connector.key)
    others = f"{len(rows) - 1} other {'fit' if len(rows) == 2 else 'fits'} of the same latents"
    if mine["fvu"] >= 1:
        return "worse than predicting every target's mean"
    if mine["pareto"]:
        return f"on it, beside {others}" if len(rows) > 1 else "the first fit of these latents"
    better = [row for row in rows if row["pareto"] and row["mse"] <= mine["mse"] and row["l1"] <= mine["l1"]]
    best = min(better, key=lambda row: row["mse"])
    name = f"{series_of(best, differing(rows))}, l1_alpha {best['l1_alpha']:g}"
    return f"not on it: {best['train']} has FVU {best['fvu']:.3f} at L1 {best['l1']:.3g} ({name})"


def print_fit(observer: Observer, connector: Artifact[TrainFacts], rows: list[Row], then: str | None) -> None:
    """What a fit came to; `then` is the command that goes on from here. One line for one of a sweep, without."""
    if then is None:
        mine = next(row for row in rows if row["train"] == connector.key)
        figures = f"FVU {mine['fvu']:.3f}, L1 {mine['l1']:.3g}, {mine['n_edges']:,} edges"
        place = "on" if mine["pareto"] else "not on"
        observer.say(f"  l1_alpha {mine['l1_alpha']:g}: {figures}, {place} the frontier of {len(rows)}")
        return
    observer.say("")
    for line in pair_lines([*fit_rows(connector), ("frontier", frontier_text(connector, rows))], terminal_width()):
        observer.say(line)
    observer.say(f"\n  {connector.path}\n  next: {then}")
