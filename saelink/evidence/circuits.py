"""Circuits as data and as text: what leads into the best predicted target latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saelink.connectors.base import Connector, StrongestEdges
from saelink.evidence.names import Names
from saelink.job import Job

HIDDEN_SHOWN = 2
"""Hidden units that are spelt out under a circuit, for connectors that have them."""


def circuits_of(
    job: Job,
    connector: Connector,
    fvu: torch.Tensor,
    active: torch.Tensor,
    shares: torch.Tensor | None,
) -> list[dict[str, Any]]:
    """The circuits of the best predicted target latents that are active often enough to be believed.

    `fvu`, `active` and `shares` (see linear_shares) are by column; what is printed are the SAEs' own numbers. With
    several sources their order stands before a latent's number: IF0.17 is latent 17 of the first source.
    """
    names, targets = Names(job), connector.target_ids.tolist()

    def unit(kind: str, number: int) -> dict[str, Any]:
        named = names.unit(kind, number)
        label = {} if named.label is None else {"token": named.label}
        return {"unit": named.short, "id": number, **label}

    def term(number: int, inputs: int) -> dict[str, Any]:
        return unit("source", number) if number < inputs else unit("hidden", number - inputs)

    def terms(edges: StrongestEdges, inputs: int) -> list[dict[str, Any]]:
        """`inputs` source latents are numbered first, hidden units behind them."""
        return [{"weight": weight, **term(i, inputs)} for i, weight in zip(edges.ids, edges.weights, strict=True)]

    believed = (active >= job.cfg.eval.min_active) & ~fvu.isnan()
    order = torch.where(believed, fvu, torch.inf).argsort(stable=True)[
        : min(job.cfg.eval.circuits, int(believed.sum()))
    ]
    circuits = []
    for column in order.tolist():
        target = targets[column]
        edges = connector.edges(target, job.cfg.eval.edges)
        circuit = {**unit("target", target), "fvu": fvu[column].item(), "active": int(active[column])}
        circuit["terms"] = terms(edges, connector.direct)
        if shares is not None and not shares[column].isnan():
            circuit["linear"] = shares[column].item()
        if connector.n_hidden:
            units = [i - connector.direct for i in edges.ids if i >= connector.direct][:HIDDEN_SHOWN]
            inner = {i: connector.hidden_edges(i, job.cfg.eval.edges) for i in units}
            circuit["hidden"] = [
                {"unit": f"H{i}", "terms": terms(e, connector.d_source)} for i, e in inner.items() if e is not None
            ]
        circuits.append(circuit)
    return circuits


def _sum_text(terms: list[dict[str, Any]]) -> str:
    """The terms that two decimals show; each with its `mark`, if it has one, in brackets."""
    text = ""
    for term in terms:
        size = f"{abs(term['weight']):.2f}".removeprefix("0")
        if size == ".00":
            continue
        sign = ("-" if term["weight"] < 0 else "+") if text else ("-" if term["weight"] < 0 else "")
        text += (f" {sign} " if text else sign) + f"{size} {unit_text(term)}"
        text += f" ({term['mark']})" if "mark" in term else ""
    return text or "0"


def judged_terms(circuit: dict[str, Any], verdict: VerdictOf) -> list[dict[str, Any]]:
    """The circuit's terms, confirmed edges first, every other with its verdict as `mark`; hidden units have none."""
    terms: list[dict[str, Any]] = []
    for term in circuit["terms"]:
        word = None if term["unit"].startswith("H") else verdict(term["id"], circuit["id"])
        terms.append(term if word in ("confirmed", None) else {**term, "mark": word})
    return sorted(terms, key=lambda term: "mark" in term)


def unit_text(unit: dict[str, Any]) -> str:
    if "token" not in unit:
        return unit["unit"]
    token = unit["token"].encode("unicode_escape").decode() if not unit["token"].isprintable() else unit["token"]
    return f'{unit["unit"]} "{token}"'


VerdictOf = Callable[[int, int], str | None]
"""The verdict on the edge between a source and a target latent; None for what is no such edge."""


def circuit_text(circuit: dict[str, Any], verdict: VerdictOf | None = None) -> str:
    """One circuit as text: OF1064 "history" = .37 IF324 "history" + .11 IF1484 "philosophy" (no effect).

    Confirmed edges come first; every other has its verdict beside it. Without verdicts the text says unverified.
    """
    terms = circuit["terms"] if verdict is None else judged_terms(circuit, verdict)
    head = f"{unit_text(circuit)} = {_sum_text(terms)}"
    head += "   (unverified)" if verdict is None else ""
    if "linear" in circuit:
        head += f"   ({circuit['linear']:.0%} linear)"
    inner = [f"    {hidden['unit']} = relu({_sum_text(hidden['terms'])})" for hidden in circuit.get("hidden", [])]
    return "\n".join([head, *inner])
