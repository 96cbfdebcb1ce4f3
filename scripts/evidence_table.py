"""Puts the tables of benchmarks/evidence.json into docs/results/evidence.md, where it has `<!-- evidence: ... -->`.

python scripts/evidence_table.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

RANKS = {
    "spearman": "Spearman, all pairs", "spearman_edges": "claimed pairs", "auroc": "AUROC, strong",
    "auroc_positive": "strong positive", "auroc_suppressive": "strong suppressive",
}  # fmt: skip

SHOWN = {
    "n_tokens": "test tokens", "fvu": "FVU", "fvu_typical": "FVU typical", "n_targets_active": "targets active",
    "fvu_median_latent": "FVU, median latent", "fraction_predicted": "FVU < .5",
    "strong": "strong effects", "sources_judged": "sources judged", "precision_1x": "precision 1x",
    "recall_10x": "recall 10x", "sign_1x": "same sign",
    "slope_1x": "slope", "spearman": "Spearman, all pairs", "auroc": "AUROC, strong",
}  # fmt: skip

SPLICES = {
    "sae": "target SAE's reconstruction", "connector": "exact linear, 8e-4",
    "connector_with_error": "  + the SAE's error",
    "oracle": "oracle", "oracle_with_error": "  + the SAE's error", "mean": "mean ablation", "zero": "zero ablation",
}  # fmt: skip


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def with_interval(row: dict[str, Any], name: str, digits: int = 2) -> str:
    """A figure, with its 95% interval where it has one."""
    if row.get(name) is None:
        return ""
    if f"{name}_low" not in row:
        return f"{row[name]:,}" if isinstance(row[name], int) else number(row[name], 3)
    low, high = (number(row[f"{name}_{end}"], digits) for end in ("low", "high"))
    return f"{number(row[name], digits)} ({low} to {high})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def ranks(found: dict[str, Any]) -> str:
    every = {**found.get("ranks", {}), **found.get("causal", {})}
    rows = [[name, f"{row['edges']:,}", *(with_interval(row, key) for key in RANKS)] for name, row in every.items()]
    return table(["edges of", "edges", *RANKS.values()], rows)


def outputs(found: dict[str, Any]) -> str:
    given, facts = found["outputs"], found["outputs"]["facts"]
    beside = given["spearman_with_effectiveness"]
    carried = ", ".join(f"{facts[f'carried_{percent}']:.2%} have {percent}%" for percent in (50, 90, 99))
    helps, harms = (f"{facts[name]:.1%}" for name in ("helpful_clearly", "harmful_clearly"))
    clearly = f"{helps} by two standard errors or more; {harms} harm by as much"
    return (
        f"{facts['edges']:,} edges, estimated on {facts['tokens']:,} test tokens with one draw a sequence. Of all "
        f"effectiveness so few edges have so much: {carried}. {facts['helpful']:.1%} of the edges help on average, "
        f"{clearly} (about 2.3% each would by chance). Spearman with effectiveness over all edges: |weight| "
        f"{beside['weight']:.2f}, helpfulness {beside['helpfulness']:.2f}."
    )


def removed(found: dict[str, Any]) -> str:
    given = found["removed"]
    return (
        f"The model run without each of {given['edges']} edges, on {given['tokens']:,} tokens, beside estimates from 8 "
        f"draws on the same tokens: Spearman of effectiveness with the divergence "
        f"{with_interval(given, 'spearman_effectiveness')}, of helpfulness with the rise of the loss "
        f"{with_interval(given, 'spearman_helpfulness')}. The sum of the estimates over that of the divergences is "
        f"{given['ratio_effectiveness']:.2f}, the rise of the loss over its first order "
        f"{given['slope_helpfulness']:.2f} (least squares); without the one edge that has "
        f"{given['largest_share']:.2%} of all divergence "
        f"{given['rest_ratio_effectiveness']:.2f} and {given['rest_slope_helpfulness']:.2f}."
    )


def pruned(found: dict[str, Any]) -> str:
    rows = found["pruned"]["rows"]
    orders = list(dict.fromkeys(row["order"] for row in rows))
    at = {(row["order"], row["kept"]): row for row in rows}
    cells = [
        [f"{share:.0%}", *(with_interval(at[order, share], "cost", 4) for order in orders)]
        for share in sorted({row["kept"] for row in rows})
    ]
    title = f"Rise of the cross-entropy in nats, {found['pruned']['tokens']:,} test tokens (95% over documents):"
    return f"{title}\n\n{table(['edges kept', *(f'by {order}' for order in orders)], cells)}"


def transfer(found: dict[str, Any]) -> str:
    effects = found.get("transfer_effects", {})
    given = {name: row | effects.get(name, {}) for name, row in found["transfer"].items()}
    rows = [[text, *(with_interval(row, key) for row in given.values())] for key, text in SHOWN.items()]
    return table(["", *given], [row for row in rows if any(row[1:])])


def splice(found: dict[str, Any]) -> str:
    given = found["splice"]
    rows = [
        [
            text,
            number(given[key]["ce"], 4),
            *(with_interval(given[key], name, 3) for name in ("recovered", "kl", "top1")),
        ]
        for key, text in SPLICES.items()
    ]
    return table(["at the target hook", "CE", "recovered", "KL", "top-1"], rows)


PIECES = {
    "ranks": ranks, "outputs": outputs, "removed": removed, "pruned": pruned, "transfer": transfer, "splice": splice
}  # fmt: skip


def _kept(text: str) -> Callable[[re.Match[str]], str]:
    """As a replacement that is taken as it is."""
    return lambda _: text


def main() -> None:
    result = json.loads((ROOT / "benchmarks" / "evidence.json").read_text())
    path = ROOT / "docs" / "results" / "evidence.md"
    text = path.read_text()
    for layer, found in result.items():
        for piece, make in PIECES.items():
            mark = f"<!-- evidence: {layer} {piece} -->"
            if piece in found and mark in text:
                text = re.sub(rf"{mark}\n(?:.*\n)*?<!-- end -->", _kept(f"{mark}\n{make(found)}\n<!-- end -->"), text)
    path.write_text(text)


if __name__ == "__main__":
    main()
