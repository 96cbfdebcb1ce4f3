"""Where a layer's heads look and which pairs of latents decide it: the tables in docs/results/attention-qk.md.

    python -m benchmarks.attention_qk [layer] [overrides]

Writes benchmarks/attention_qk.json and puts the tables where the page has `<!-- qk: layer 1 -->`. One head is one
artifact, so a run that was stopped goes on where it was. With qk.targets=true also what attn_out's latents change.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import saelink
from saelink.evidence.names import Names
from saelink.job import Job
from saelink.looks.causal import DELETIONS
from saelink.looks.deletions import DELETIONS_FILE, QKDeletionsStage
from saelink.looks.stage import HEADS_FILE, STRONGEST, TARGETS_FILE, QKStage, QKTargetsStage, before_attention
from saelink.looks.text import MODES
from saelink.model.load import load_hf
from saelink.store.store import Store
from saelink.terminal.progress import TerminalObserver
from saelink.terminal.qk import label, offsets, percent, short, thousandths

ROOT = Path(__file__).parent.parent

RESULT = ROOT / "benchmarks" / "attention_qk.json"

PAGE = ROOT / "docs" / "results" / "attention-qk.md"


def measured(layer: int, overrides: list[str]) -> dict[str, Any]:
    """What is known of each head of a layer, its pairs with their names."""
    cfg = saelink.configure(f"layer={layer}", "wandb.mode=disabled", *overrides)
    job = before_attention(Job(cfg, Store(cfg.runtime.outputs, TerminalObserver())))
    n_heads = load_hf(cfg.model, job.model.artifact).hf_model.config.get_text_config().num_attention_heads
    names, heads = Names(job), []
    facts: Any = None
    for head in range(n_heads):
        artifact = QKStage(job, head).pull()
        found = artifact.json(HEADS_FILE)[0]
        found["deletions"] = QKDeletionsStage(job, artifact).pull().json(DELETIONS_FILE)[0]
        if cfg.qk.targets:
            found["targets"] = QKTargetsStage(job, artifact).pull().json(TARGETS_FILE)[0]["together"]
        for pairs in found["pairs"].values():
            for pair in pairs:
                hook = artifact.facts["hook_name"]
                pair["names"] = [label(names, hook, pair["query"]), label(names, hook, pair["key"])]
                del pair["examples"]
        del found["leading"]
        heads.append(found)
        facts = artifact.facts
    return {"sequences": facts["sequences"], "n_tokens": facts["n_tokens"], "heads": heads}


def tables(found: dict[str, Any]) -> str:
    """Heads with controls and nulls, then each head's pairs."""
    mode, heads = MODES[1], found["heads"]
    groups = [str(each["pairs"]) for each in heads[0]["together"][mode]]
    nulls = list(heads[0]["together"][mode][0]["nulls"])
    targets = "targets" in heads[0]
    lines = [
        f"{found['sequences']} test sequences; judged on {found['n_tokens']:,} queries; without sinks.",
        "",
        row("head", "kind", "sinks", "self", "previous", "latent x latent", "latent x rest", "rest x latent",
            "rest x rest", "frozen r", "free r", "free slope", "pair alone, free r"),
        "|---" * 13 + "|",
    ]  # fmt: skip
    for head in heads:
        looks, shares, deleted = head["looks"], head["shares"][mode], head["deleted"]
        rest = [sum(shares[0][1:]), shares[1][0] + shares[2][0], sum(shares[1][1:]) + sum(shares[2][1:])]
        lines.append(
            row(head["head"], ", ".join(head["kinds"]) or "-", short(looks["sinks"]), short(looks["current"]),
                short(looks["previous"]), short(shares[0][0]), *map(short, rest), f"{deleted['frozen_r']:.6f}",
                short(deleted["free_r"]), short(deleted["free_slope"]), short(deleted["pair_free_r"]))
        )  # fmt: skip
    head_cells = ["head", *(f"{n} out (control)" for n in groups), "100 out, chosen on less text", *nulls]
    head_cells += [f"attn_out's latents, {n} out (control)" for n in groups] * targets
    lines += ["", "How far the pattern moves, mean total variation over all queries that count:", "", row(*head_cells)]
    lines.append("|---" * len(head_cells) + "|")
    for head in heads:
        together = head["together"][mode]
        cells = [f"{percent(each['variation'])} ({percent(each['control'])})" for each in together]
        cells += [percent(together[-1]["less_text"]), *(percent(together[-1]["nulls"][name]) for name in nulls)]
        if targets:
            cells += [f"{percent(each['change'])} ({percent(each['control'])})" for each in head["targets"]]
        lines.append(row(head["head"], *cells))
    if "deletions" in heads[0]:
        lines += deletions_table(heads)
    for kind, title in ((mode, "most in all"), (STRONGEST, "strongest where they are")):
        lines += ["", f"Pairs of each head, {title}:", ""]
        lines += [row("head", "query", "key", "offset", "queries", "moved", "control", "attention"), "|---" * 8 + "|"]
        for head in heads:
            for pair in head["pairs"][kind][:3]:
                weak = "" if pair["more_than_control"] else " (no more)"
                lines.append(
                    row(head["head"], *pair["names"], offsets(pair["offsets"]), f"{pair['rows']:,}",
                        thousandths(pair["variation"]), thousandths(pair["control"]) + weak,
                        f"{pair['attention']:+.3f}".replace("0.", "."))
                )  # fmt: skip
    return "\n".join(lines)


def deletions_table(heads: list[dict[str, Any]]) -> list[str]:
    """The leading pairs' latents deleted in the model, beside their controls."""
    titles = {"key": "key's latent goes", "query": "query's latent goes", "both": "both go"}
    cells = ["head", "pairs", "places", *(f"{titles[name]} (control)" for name in DELETIONS), "more, both"]
    lines = [
        "",
        "Latents of the leading pairs deleted in the model, norms free: total variation of the pattern at the query, "
        "mean over places, (with other latents of the same tokens deleted); pairs that do more than their control:",
        "",
        row(*cells),
        "|---" * len(cells) + "|",
    ]
    for head in heads:
        found = head["deletions"]
        moved = [found["deletions"][name] for name in DELETIONS]
        shown = [f"{percent(each['pair'])} ({percent(each['control'])})" for each in moved]
        more = f"{found['more_than_control']} of {found['compared']}"
        lines.append(row(head["head"], found["pairs"], found["places"], *shown, more))
    return lines


def row(*cells: Any) -> str:
    """A row of a table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    words = sys.argv[1:]
    layer = int(words.pop(0)) if words and words[0].isdigit() else 1
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result[f"layer {layer}"] = measured(layer, words)
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    text = PAGE.read_text()
    for name, found in result.items():
        mark = f"<!-- qk: {name} -->"
        text = re.sub(
            f"{mark}.*?<!-- end -->",
            lambda _, m=mark, f=found: f"{m}\n{tables(f)}\n<!-- end -->",
            text,
            flags=re.DOTALL,
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
