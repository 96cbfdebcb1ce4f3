"""The whole block from its parts: attention's output at the same token, or what heads move. Table in results/attention.

    python -m benchmarks.block [layer [overrides]]     # half an hour on 2 cores; writes benchmarks/block.json

Targets are the latents of the residual stream behind the block. SAEs that are missing are trained. Artifacts are taken
from the folder `outputs` where they are there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import configured
from saelink.attention.stage import MovedStage
from saelink.compose import register
from saelink.evidence.evaluate import EvaluateStage
from saelink.job import Job
from saelink.latents.link import moved_forms
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver

LINKS = {
    "resid": "the stream before the block alone",
    "block": "and what attention and the MLP add, at the same token",
    "block_ov": "of attention what heads move, in its output's place",
}

ALPHAS = ("8e-4", "3e-3")

KEPT = ("fvu", "fvu_typical", "fvu_median_latent", "fraction_predicted", "n_edges", "n_targets", "n_tokens")


def row_of(job: Job) -> dict[str, Any]:
    """The connector's figures on test tokens, and what the moved latents hold."""
    metrics = EvaluateStage(job).pull().json("metrics.json")
    row = {name: metrics[name] for name in KEPT}
    for place, form in enumerate(moved_forms(job.cfg)):
        if form:
            facts = MovedStage(job.cfg, job.store, place).pull().facts
            row["moved"] = {name: facts[name] for name in ("per_token", "kept", "held", "parts", "off")}
    return row


def main() -> None:
    register()
    layer, *overrides = sys.argv[1:] or ["1"]
    path = Path(__file__).with_name("block.json")
    result = json.loads(path.read_text()) if path.exists() else {}
    entry = result[f"layer {layer}"] = {"settings": overrides, "links": {}}
    store = Store("outputs", observer=TerminalObserver())
    for link in LINKS:
        for alpha in ALPHAS:
            job = Job(configured([f"layer={layer}", f"link={link}", f"l1_alpha={alpha}", *overrides]), store)
            entry["links"].setdefault(link, {})[alpha] = row_of(job)
            entry["saes"] = {
                side.facts["hook_name"]: {name: side.facts[name] for name in ("d_sae", "l0", "fvu", "dead")}
                for side in [*job.encoded.sources, job.encoded.target]
            } | entry.get("saes", {})
            path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| layer | from | l1_alpha | FVU | median latent | FVU < .5 | edges |", "|---" * 7 + "|"]
    for layer, entry in result.items():
        for link, rows in entry["links"].items():
            for alpha, row in rows.items():
                cells = [layer.removeprefix("layer "), LINKS[link], alpha, f"{row['fvu']:.3f}"]
                cells += [f"{row['fvu_median_latent']:.3f}", f"{row['fraction_predicted']:.0%}", f"{row['n_edges']:,}"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
