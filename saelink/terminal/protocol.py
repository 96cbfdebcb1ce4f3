"""Tests of circuits, in 80 columns."""

from __future__ import annotations

from typing import Any

from saelink.evidence.names import Names
from saelink.evidence.protocol import LEVEL, TESTS_FILE, CircuitTestsFacts
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.table import Column, pair_lines, table_lines, terminal_width


def print_tests(observer: Observer, artifact: Artifact[CircuitTestsFacts], names: Names) -> None:
    """By circuit what the hypotheses come to, with p-values corrected for all that were asked."""
    tests: list[dict[str, Any]] = artifact.json(TESTS_FILE)
    edges = sum(edge["p"] is not None for test in tests for edge in test["edges"])
    for test in tests:
        unit = names.unit("target", test["target"])
        sources = [names.unit("source", number) for number in test["sources"]]
        observer.say(f"\n  {unit.short} {_token(unit.label)}")
        rows = [("sources", ", ".join(f"{source.short} {_token(source.label)}".strip() for source in sources))]
        rows.append(("tokens", f"{test['tokens']:,}, one a document; it fires on {test['fires']:,}"))
        if test["equivalence_p"] is None:
            rows.append(("", "too few to test"))
        else:
            rows += _rows(test)
        for line in pair_lines(rows, terminal_width() or 80, indent=4):
            observer.say(line)
        cells = [
            (source.short, _token(source.label), f"{edge['tokens']:,}", *_edge_cells(edge))
            for source, edge in zip(sources, test["edges"], strict=True)
        ]
        columns = [
            Column("edge from"),
            Column(wraps=True),
            *(Column(t, right=True) for t in ("tokens", "more", "p", "")),
        ]
        for line in table_lines(columns, cells, terminal_width() or 80, indent=4):
            observer.say(line)
    observer.say(f"\n  p-values are corrected (Holm) for {len(tests):,} circuits and {edges:,} edges.")
    observer.say(f"  Ablation: {artifact.facts['ablation']}. What is not refuted is not proven: see the tokens.")


def _rows(test: dict[str, Any]) -> list[tuple[str, str]]:
    silent = test["tokens"] - test["fires"]
    alone = (
        f"alone it fires on {test['fires_alone']:,} of {test['fires']:,}, and on {test['fires_else']:,} of {silent:,}"
    )
    correlation = "" if test["correlation"] is None else f"; r {test['correlation']:.2f}"
    equivalent = f"{_refuted(test['equivalence_p_corrected'])}; {alone}{correlation}"
    left = f"without it fires on {test['fires_without']:,} of {test['fires']:,}; HSIC {test['hsic']:.2f}"
    return [("equivalence", equivalent), ("independence", f"{_refuted(test['independence_p_corrected'])}; {left}")]


def _refuted(p: float) -> str:
    return f"{'refuted' if p < LEVEL else 'not refuted'}, p {_p(p)}"


def _edge_cells(edge: dict[str, Any]) -> tuple[str, str, str]:
    if edge["p"] is None:
        return "-", "-", "too few"
    needed = edge["p_corrected"] < LEVEL
    return f"{edge['more']:.0%}", _p(edge["p_corrected"]), "needed" if needed else "not shown"


def _p(p: float) -> str:
    return "< .001" if p < 1e-3 else f"{p:.3f}".replace("0.", ".")


def _token(label: str | None) -> str:
    return "" if label is None else f'"{"".join(c if c.isprintable() else "·" for c in label)}"'
