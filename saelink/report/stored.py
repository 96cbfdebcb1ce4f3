"""Cards as the page's data hold them, and back: edges in columns, every text once, no name that the index has.

page/stored.js reads them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from saelink.latents.stream import WINDOW
from saelink.report.levels import (
    gaps,
    rise_at,
    rise_code,
    share_at,
    share_code,
    spread,
    weight_codes,
    weights_at,
)
from saelink.report.structure import EdgeColumns, Example, StoredExamples, Stretch

FEW = {"both": int, "chosen": float, "effectiveness": float, "helpfulness": float, "helpfulness_error": float}
"""What only the edges of a card are told by, beside what all have."""


# --------------------------------------------------------------------------- edges


def edge_columns(rows: Mapping[int, Sequence[Mapping[str, Any]]], verdicts: Sequence[str], shown: int) -> EdgeColumns:
    """Edges by latent, each with the `number` of its other end, in columns.

    Of the first `shown` of each latent also `both`, `chosen` and their like; `token` only where the index lacks it.
    """
    every = [edge for edges in rows.values() for edge in edges]
    columns: EdgeColumns = {
        "latent": list(rows),
        "n": [len(edges) for edges in rows.values()],
        "number": [edge["number"] for edge in every],
        "weight": [code for edges in rows.values() for code in weight_codes(edge["weight"] for edge in edges)],
        "rise": [rise_code(edge["rise"]) for edge in every],
        "shown": shown,
        "few": {},
    }
    if any("verdict" in edge for edge in every):
        columns["verdict"] = [verdicts.index(edge["verdict"]) if "verdict" in edge else None for edge in every]
        columns["claim"] = [share_code(edge.get("claim")) for edge in every]
        columns["effect"] = [share_code(edge.get("effect")) for edge in every]
    first = [edge for edges in rows.values() for edge in edges[:shown]]
    for name, kind in FEW.items():
        if any(name in edge for edge in first):
            columns["few"][name] = [
                None if name not in edge else edge[name] if kind is int else float(f"{edge[name]:.3g}")
                for edge in first
            ]
    for name in ("token", "edges"):
        if any(name in edge for edge in first):
            columns["few"][name] = [edge.get(name) for edge in first]
    return columns


def edges_at(columns: EdgeColumns, latent: int, verdicts: Sequence[str]) -> list[dict[str, Any]] | None:
    """The edges of one latent out of its columns; None for a latent that has no place there."""
    if latent not in columns["latent"]:
        return None
    place, shown = columns["latent"].index(latent), columns["shown"]
    first, few = sum(columns["n"][:place]), sum(min(n, shown) for n in columns["n"][:place])
    mine = slice(first, first + columns["n"][place])
    edges: list[dict[str, Any]] = [
        {"number": number, "weight": weight, "rise": rise_at(rise)}
        for number, weight, rise in zip(
            columns["number"][mine], weights_at(columns["weight"][mine]), columns["rise"][mine], strict=True
        )
    ]
    if "verdict" in columns and "claim" in columns and "effect" in columns:
        told = zip(columns["claim"][mine], columns["effect"][mine], columns["verdict"][mine], strict=True)
        for edge, (claim, effect, verdict) in zip(edges, told, strict=True):
            if verdict is not None:
                edge |= {"claim": share_at(claim), "effect": share_at(effect), "verdict": verdicts[verdict]}
    for name, values in columns["few"].items():
        for edge, value in zip(edges[:shown], values[few:], strict=False):
            if value is not None:
                edge[name] = value
    return edges


def number_of(name: str) -> int:
    """What stands for OF12 or H3 at the other end of a source's edge: 12, −4."""
    return int(name[2:]) if name.startswith("OF") else -1 - int(name[1:])


# --------------------------------------------------------------------------- examples


def examples_stored(examples: Sequence[Example]) -> StoredExamples:
    """Examples without their text, which is found by their places."""
    return {
        "kind": [example["kind"] for example in examples],
        "place": [example["place"] for example in examples],
        "value": [float(f"{example['value']:.3g}") for example in examples],
        "values": [gaps(example["values"]) for example in examples],
    }


def beside_stored(beside: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Predictions and inputs under a target's examples, the inputs' names once."""
    return {
        "names": [each["name"] for each in beside[0]["inputs"]] if beside else [],
        "rows": [[gaps(under["predicted"]), *(gaps(each["values"]) for each in under["inputs"])] for under in beside],
    }


def beside_at(stored: Mapping[str, Any], examples: Sequence[Example]) -> list[dict[str, Any]]:
    """What stands under these examples."""
    found: list[dict[str, Any]] = []
    for example, (predicted, *inputs) in zip(examples, stored["rows"], strict=True):
        length = len(example["tokens"])
        named = [
            {"name": name, "values": spread(values, length)}
            for name, values in zip(stored["names"], inputs, strict=True)
        ]
        found.append({"predicted": spread(predicted, length), "inputs": named})
    return found


def stretches(places: np.ndarray[Any, Any], context: int) -> list[tuple[int, int, int]]:
    """Sequence, first and last position of the text that examples at these sorted places show, none of it twice."""
    found: list[tuple[int, int, int]] = []
    for place in places.tolist():
        sequence, position = divmod(place, context)
        first, last = max(position - WINDOW, 0), min(position + WINDOW, context - 1)
        if found and found[-1][0] == sequence and found[-1][2] >= first - 1:
            found[-1] = (sequence, found[-1][1], last)
        else:
            found.append((sequence, first, last))
    return found


def examples_at(
    stored: StoredExamples, text: Callable[[int], Sequence[Stretch]], context: int, sequences: Sequence[tuple[str, int]]
) -> list[Example]:
    """Examples with their text, of which `text` gives the stretches of a sequence, counted over all splits."""
    found: list[Example] = []
    columns = (stored["kind"], stored["place"], stored["value"], stored["values"])
    for kind, place, value, values in zip(*columns, strict=True):
        sequence, position = divmod(place, context)
        around = text(sequence)
        ends = np.cumsum([n for _, n in sequences])
        split, _ = sequences[int(np.searchsorted(ends, sequence, side="right"))]
        stretch = next(each for each in around if each["at"] <= position < each["at"] + len(each["tokens"]))
        here = position - stretch["at"]
        first = max(here - WINDOW, 0)
        tokens = stretch["tokens"][first : here + WINDOW + 1]
        example = {
            "kind": kind, "split": split, "place": place, "position": position, "value": value, "at": here - first,
            "document": [document for begin, document in stretch["documents"] if begin <= here][-1],
            "tokens": tokens, "values": spread(values, len(tokens)),
        }  # fmt: skip
        found.append(cast("Example", example))
    return found
