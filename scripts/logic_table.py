"""Puts the tables of benchmarks/logic.json, joint.json and planted.json into docs/results/logic.md.

python scripts/logic_table.py

A table goes behind each mark such as `<!-- logic: layer 1 -->`, in the place of the one that is there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

OUTCOMES = ("holds", "fails", "undecided")


def short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".").replace("-.00", ".00")


def interval(value: float, low: float, high: float) -> str:
    return f"{short(value)} ({short(low)} to {short(high)})"


def lines_of(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def logic(found: dict[str, Any]) -> str:
    """By reading, ablation and word how many circuits hold."""
    rows = []
    for reading, each in found.items():
        for ablation in ("zero", "resample"):
            for word, row in each.get(ablation, {}).items():
                cells = [f"{row[name]:,}" for name in ("circuits", *OUTCOMES)]
                rows.append([reading, ablation, word, *cells, interval(row["share"], row["low"], row["high"])])
    return lines_of(["counts", "ablation", "word", "circuits", *OUTCOMES, "holds (95%)"], rows)


def silence(found: dict[str, Any]) -> str:
    """What the fall of the margin is made of."""
    rows = []
    for reading, each in found.items():
        for name, part in each["silence"]["parts"].items():
            share = interval(part["median"], part["low"], part["high"])
            rows.append([reading, name, share, f"{part['leads']} of {each['silence']['circuits']}"])
    return lines_of(["counts", "part", "share of the fall, median (95%)", "largest part in"], rows)


def tries(found: dict[str, Any]) -> str:
    """What brings the target on."""
    rows = []
    for reading, each in found.items():
        for name, row in each["silence"]["brings it on"].items():
            closed = row["closed"]
            cells = [interval(row["mean"], row["low"], row["high"])]
            rows.append([reading, name, *cells, interval(closed["median"], closed["low"], closed["high"])])
    return lines_of(["counts", "taken out", "target on (95%)", "share of the lack made up, median (95%)"], rows)


def joint(found: dict[str, Any]) -> str:
    """By connector how its claims agree with joint effects."""
    kinds = list(next(iter(found["rows"].values())))
    first = next(iter(found["rows"].values()))
    rows = [["sum of single effects", *(_rank(first[kind]["sum"]) for kind in kinds)]]
    rows += [[name, *(_rank(row[kind]["claim"]) for kind in kinds)] for name, row in found["rows"].items()]
    sets = [["(sets)", *(f"{first[kind]['sets']:,}" for kind in kinds)]]
    notable = [["(interactions of a tenth or more)", *(f"{first[kind]['notable']:.0%}" for kind in kinds)]]
    less = [["(of these, less than the sum)", *(f"{first[kind]['less']:.0%}" for kind in kinds)]]
    return lines_of(["rank correlation with joint effects", *kinds], [*sets, *notable, *less, *rows])


def _rank(figures: dict[str, float]) -> str:
    return interval(figures["rank_r"], figures["rank_r_low"], figures["rank_r_high"]) if figures else ""


def protocol(found: dict[str, Any]) -> str:
    """What hypotheses come to."""
    rows = []
    for name, row in found.items():
        if isinstance(row, dict):
            rows.append([name, f"{row['hits']} of {row['of']}", f"{short(row['low'])} to {short(row['high'])}"])
        elif name != "circuits":
            rows.append([name, short(row), ""])
    return lines_of(["", "", "95%"], rows)


def planted(found: dict[str, Any]) -> str:
    """By noise and kind what counts, trials and verdicts make of what was planted."""
    rows = []
    for noise, kinds in found.items():
        for name, row in kinds.items():
            counts, checked, tested, edges = (row[k] for k in ("counts", "without refuted edges", "tested", "edges"))
            held = [f"{tested[f'{right} holds']} of {_n(tested, right)}" for right in ("right", "wrong")]
            cells = [f"{counts['right']} / {counts['wrong']}", f"{checked['right']} / {checked['wrong']}"]
            false = f"{edges['false confirmed']} of {edges['false judged']}"
            judged = [f"{edges['confirmed']} of {edges['true']}", false]
            rows.append([noise, name, str(counts["targets"]), *cells, *held, *judged])
    head = [
        "noise", "planted", "targets", "word by counts: right / wrong", "refuted edges out", "right words that hold",
        "wrong words that hold", "true edges confirmed", "false claims confirmed",
    ]  # fmt: skip
    return lines_of(head, rows)


def _n(tested: dict[str, int], right: str) -> int:
    return sum(tested[f"{right} {outcome}"] for outcome in OUTCOMES)


def main() -> None:
    path = ROOT / "docs" / "results" / "logic.md"
    text = path.read_text()
    names = ("logic", "joint", "planted", "protocol")
    files = {name: ROOT / "benchmarks" / f"{name}.json" for name in names}
    read = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    for layer, found in read.get("logic", {}).items():
        for name, table in (("logic", logic), ("silence", silence), ("tries", tries)):
            text = _put(text, f"{name}: {layer}", table(found))
    for layer, found in read.get("joint", {}).items():
        text = _put(text, f"joint: {layer}", joint(found))
    for layer, found in read.get("protocol", {}).items():
        text = _put(text, f"protocol: {layer}", protocol(found))
    if "planted" in read:
        text = _put(text, "planted", planted(read["planted"]))
    path.write_text(text)


def _put(text: str, name: str, table: str) -> str:
    mark = f"<!-- {name} -->"
    assert mark in text, mark
    return re.sub(rf"{re.escape(mark)}\n+(?:\|.*\n)*\n*", lambda _: f"{mark}\n\n{table}\n\n", text).rstrip() + "\n"


if __name__ == "__main__":
    main()
