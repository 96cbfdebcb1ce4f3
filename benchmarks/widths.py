"""One block, the same text and the same recipe at several widths of SAE: what a user waits for, and how figures change.

    python -m benchmarks.widths FOLDER [width ...]    # 1,024, 4,096 and 16,384 unless given; hours at 16,384
    python -m benchmarks.widths --tables              # prints what benchmarks/widths.json holds

The SAEs (TopK 32, one pass over all of the default text) are trained where FOLDER has none and stay there. Then
`saelink run sae=folder` runs in a store of its own, with the kernel's peak memory, and what a connector between the
latents says is read from that store: percent linear, error against edges, verdicts. A wider SAE has fewer tokens a
latent, so its error, L0 and dead latents stand beside every figure.

Writes benchmarks/widths.json, each part as soon as it is done; the same command goes on.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.families import edges, frontier, job_of, percent_linear
from benchmarks.wide import measured
from saelink.compose import register

RESULT = Path(__file__).with_name("widths.json")

WIDTHS = (1024, 4096, 16384)

LAYER, TEXT, QUIET = "layer=1", "data.max_tokens=null", "wandb.mode=disabled"

RECIPE = ["sae.k=32", "sae.epochs=1", "sae.batch_tokens=4096", "sae.lr=1e-3", "sae.dead_after_steps=50"]

JUDGED = ("edges_confirmed", "edges_weaker", "edges_no_effect", "edges_opposite")
"""Edges whose source was ablated on enough tokens, and whose claim is large enough, for a verdict."""

JUDGED_ON = "verify.tokens_per_source=64"
"""As many tokens as a verdict needs: effects of 16,384 sources on 256 tokens each take hours."""

SOURCES = {"exact linear, 8e-4": ["l1_alpha=8e-4"], "exact linear, 3e-3": ["l1_alpha=3e-3"]}
"""Connectors whose edges are judged."""

EQUAL = "fvu at edges for each living target"

EDGES_PER_LATENT = (3, 10, 30)
"""Edges for each target that is not dead at which the errors of widths are compared."""


def trained(folder: Path, width: int) -> tuple[Path, dict[str, float]]:
    """The folder of both hooks' SAEs, and by hook the seconds that training it took."""
    measured("sae", ["sae=train", f"sae.d_sae={width}", *RECIPE, TEXT, LAYER, QUIET], folder)
    saes, seconds = folder / f"saes-{width}", dict[str, float]()
    saes.mkdir(exist_ok=True)
    for manifest in (folder / "outputs" / "sae").glob("*/manifest.json"):
        found = json.loads(manifest.read_text())
        if found["recipe"]["d_sae"] == width:
            hook = found["facts"]["hook_name"]
            seconds[hook] = found["provenance"]["seconds"]
            if not (saes / hook).exists():
                (saes / hook).symlink_to(manifest.parent)
    return saes, seconds


def at_edges(points: dict[str, dict[str, float]], wanted: float) -> float | None:
    """The FVU at a number of edges, between two penalties on a line over the logarithm of edges; None outside."""
    found = sorted((point["n_edges"], point["fvu"]) for point in points.values())
    for (fewer, worse), (more, better) in itertools.pairwise(found):
        if fewer <= wanted <= more:
            share = (math.log(wanted) - math.log(fewer)) / (math.log(more) - math.log(fewer))
            return worse + share * (better - worse)
    return None


def kept(width: int, more: dict[str, Any]) -> dict[str, Any]:
    """What the result file says of a width, with more of it."""
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    entry = result.setdefault(f"{width:,} latents", {})
    entry |= more
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return entry


def run(folder: Path, width: int) -> None:
    saes, seconds = trained(folder, width)
    store = folder / f"outputs-{width}"
    words = ["sae=folder", f"sae.path={saes}", TEXT, LAYER, QUIET, f"runtime.outputs={store}"]
    kept(width, {"training of the SAEs, seconds": seconds, "cores": os.cpu_count()})
    if not store.exists():
        kept(width, {"saelink run": measured("run", words, folder)})
    job = job_of(words)
    sides = [*job.sides.sources, job.sides.target]
    names = ("d_sae", "fvu", "l0", "dead")
    kept(width, {"saes": {side.facts["hook_name"]: {name: side.facts[name] for name in names} for side in sides}})
    alive = width - job.sides.target.facts["dead"]
    points = kept(width, frontier(words, job))["frontier"]
    kept(width, {EQUAL: {str(each): at_edges(points, each * alive) for each in EDGES_PER_LATENT}})
    kept(width, edges([*words, JUDGED_ON], job_of([*words, JUDGED_ON]), SOURCES))
    kept(width, percent_linear(job))


def rows_of(entry: dict[str, Any]) -> dict[str, str]:
    """What the table says of one width, by row, as far as it was measured."""
    rows: dict[str, str] = {}
    for hook, facts in entry["saes"].items():
        name = hook.split("hook_")[-1]
        rows[f"SAE {name}: FVU"] = f"{facts['fvu']:.3f}"
        rows[f"SAE {name}: dead"] = f"{facts['dead']:,} ({facts['dead'] / facts['d_sae']:.0%})"
    for yardstick, (percent, low, high) in entry.get("percent linear", {}).items():
        rows[f"percent linear, by {yardstick}"] = f"{percent:.1f} ({low:.1f}-{high:.1f})"
    for alpha, point in entry["frontier"].items():
        rows[f"l1_alpha {alpha}: FVU, edges"] = f"{point['fvu']:.3f}, {point['n_edges']:,}"
    for each, value in entry[EQUAL].items():
        rows[f"FVU at {each} edges a living target"] = "" if value is None else f"{value:.3f}"
    for name, found in entry.get("edges", {}).items():
        judged = sum(found[key] for key in JUDGED)
        rows[f"{name}: of judged edges confirmed"] = f"{found['edges_confirmed'] / max(judged, 1):.2f} of {judged:,}"
        rows[f"{name}: top 1x strong, right sign"] = f"{found['precision_1x']:.2f}"
        rows[f"{name}: found by them"] = f"{found['recall_1x']:.2f}"
    return rows


def tables(result: dict[str, Any]) -> str:
    """Markdown: a column for each width."""
    columns = {width: rows_of(entry) for width, entry in result.items()}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(name for rows in columns.values() for name in rows):
        lines.append(f"| {name} | {' | '.join(rows.get(name, '') for rows in columns.values())} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] == ["--tables"]:
        print(tables(json.loads(RESULT.read_text())))
        return
    register()
    folder = Path(sys.argv[1]).resolve()
    for width in [int(word) for word in sys.argv[2:]] or WIDTHS:
        run(folder, width)


if __name__ == "__main__":
    main()
