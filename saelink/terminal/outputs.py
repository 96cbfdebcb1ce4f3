"""What the model's output owes to the edges: effectiveness, helpfulness, edges removed, prune curves."""

from __future__ import annotations

from typing import Any

from saelink.evidence.effectiveness import EffectivenessFacts
from saelink.evidence.pruned import ORDERS, PRUNED_FILE, SHARES
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.table import Column, pair_lines, table_lines


def print_outputs(
    observer: Observer,
    outputs: Artifact[EffectivenessFacts],
    removed: Artifact[Any] | None,
    pruned: Artifact[Any] | None,
) -> None:
    """Figures over all edges, what running the model without some says of them, and the cost of pruning."""
    f = outputs.facts
    draws = "" if f["draws"] == 1 else f", {f['draws']} draws each"
    observer.say(f"\n  What the output owes to the edges, by gradients on {f['tokens']:,} test tokens{draws}")
    carried = ", ".join(f"{f[f'carried_{percent}']:.1%} have {percent}%" for percent in (50, 90, 99))
    rows = [
        ("effectiveness", f"{carried} of all divergence without single edges"),
        (
            "helpfulness",
            f"{f['helpful']:.0%} of the edges help on average; {f['helpful_clearly']:.0%} by two standard errors, "
            f"{f['harmful_clearly']:.0%} harm by as much",
        ),
    ]
    if removed is not None:
        r = removed.facts
        for name in ("effectiveness", "helpfulness"):
            value, low, high = (r[f"spearman_{name}{end}"] for end in ("", "_low", "_high"))
            beside = f"Spearman {value:.2f} ({low:.2f} to {high:.2f}) on {r['edges']:,} edges taken out"
            rows.append((f"  {name} checked", beside))
    for line in pair_lines(rows, 80):
        observer.say(line)
    if pruned is not None:
        _print_pruned(observer, pruned)


def _print_pruned(observer: Observer, pruned: Artifact[Any]) -> None:
    """The rise of the cross-entropy by share of edges kept, an order a column."""
    found = {(row["order"], row["kept"]): row for row in pruned.json(PRUNED_FILE)}
    orders = [order for order in ORDERS if (order, 1.0) in found]
    n, shared = pruned.facts["tokens"], pruned.facts["shared"]
    observer.say(f"\n  Rise of the cross-entropy without the least edges, {n:,} test tokens")
    if shared:
        observer.say(f"  (the orders are from {shared:,} of them too: there is too little other text)")
    rows = [
        (f"{share:.0%}", f"{found[orders[0], share]['edges']:,}", *(f"{found[o, share]['cost']:+.4f}" for o in orders))
        for share in SHARES
    ]
    columns = [Column("kept", right=True), Column("edges", right=True), *(Column(o, right=True) for o in orders)]
    for line in table_lines(columns, rows, indent=2):
        observer.say(line)
