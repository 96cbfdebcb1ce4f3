"""Circuits as data and as text: what leads into the best predicted target latents."""

from __future__ import annotations

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
    text = ""
    for term in terms:
        sign = ("-" if term["weight"] < 0 else "+") if text else ("-" if term["weight"] < 0 else "")
        size = f"{abs(term['weight']):.2f}".removeprefix("0")
        text += (f" {sign} " if text else sign) + f"{size} {unit_text(term)}"
    return text or "0"


def unit_text(unit: dict[str, Any]) -> str:
    if "token" not in unit:
        return unit["unit"]
    token = unit["token"].encode("unicode_escape").decode() if not unit["token"].isprintable() else unit["token"]
    return f'{unit["unit"]} "{token}"'


def circuit_text(circuit: dict[str, Any]) -> str:
    """One circuit as text: OF1064 "history" = .37 IF324 "history" + .11 IF1484 "philosophy"."""
    head = f"{unit_text(circuit)} = {_sum_text(circuit['terms'])}"
    if "linear" in circuit:
        head += f"   ({circuit['linear']:.0%} linear)"
    inner = [f"    {hidden['unit']} = relu({_sum_text(hidden['terms'])})" for hidden in circuit.get("hidden", [])]
    return "\n".join([head, *inner])
