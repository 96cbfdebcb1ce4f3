"""Verdicts on edges and what the next token loses, in 80 columns."""

from __future__ import annotations

from saelink.evidence.circuits import circuit_text
from saelink.evidence.consequences import CONSEQUENCES_FILE, TOKENS, ConsequencesFacts
from saelink.evidence.evaluate import EvaluateFacts
from saelink.evidence.stability import STABLE, Stability
from saelink.evidence.verdicts import FIGURES_FILE, NULLS_FILE, QUANTILES, TOPS, VERDICTS, Verdicts
from saelink.evidence.verify import VerifyFacts
from saelink.progress import Observer
from saelink.store.artifact import Artifact


def print_verdicts(
    observer: Observer, artifact: Artifact[VerifyFacts], evaluation: Artifact[EvaluateFacts], stable: Stability | None
) -> None:
    """The figures, and the circuits of confirmed (and stable) edges, in 80 columns."""
    f = artifact.json(FIGURES_FILE)

    def interval(name: str) -> str:
        if f.get(name) is None:
            return "-"
        return f"{f[name]:.2f} ({f[f'{name}_low']:.2f} to {f[f'{name}_high']:.2f})".replace("0.", ".")

    observer.say("")
    share = f["strong_suppressive"] / max(f["strong"], 1)
    observer.say(f"  strong effects {f['strong']:,} in the model, {share:.0%} of them suppressive")
    edges = max(f["edges"], 1)
    words = [f"{f['edges_' + word.replace(' ', '_')] / edges:.0%} {word}" for word in VERDICTS]
    observer.say(f"  claimed edges  {f['edges']:,}")
    observer.say(f"  of these       {', '.join(words[:3])},")
    observer.say(f"                 {', '.join(words[3:])}")
    observer.say(
        f"  missed         {f['missed']:,} strong effects without edge, {f['missed_suppressive']:,} suppressive"
    )
    observer.say("\n  The strongest claims, in multiples of the sources that were judged (95%)")
    observer.say(f"  {'':12} {'1x':20} {'3x':20} {'10x':20}")
    for label, name in (
        ("precision", "precision"),
        ("recall", "recall"),
        ("  positive", "recall_positive"),
        ("  suppressive", "recall_suppressive"),
    ):
        observer.say(f"  {label:13} " + " ".join(f"{interval(f'{name}_{times}x'):20}" for times in TOPS))
    observer.say("")
    for label, name in (
        ("same sign", "sign_1x"),
        ("slope", "slope_1x"),
        ("r2", "r2_1x"),
        ("rank correlation", "rank_correlation_1x"),
    ):
        observer.say(f"  {label:17} {interval(name)}")
    observer.say(f"\n  {max(TOPS)}x, one by one: 10% / median / 90%")
    for name in ("target", "source"):
        cells = []
        for word in ("recall", "precision"):
            key = f"{word}_{max(TOPS)}x_by_{name}"
            values = [f.get(f"{key}_{q}") for q in QUANTILES]
            text = " / ".join("-" if v is None else f"{v:.2f}".replace("0.", ".") for v in values)
            cells.append(f"{word} {text} of {f[f'{key}_n']:,}")
        observer.say(f"  {name + 's':9} {cells[0]:34} {cells[1]}")
    if NULLS_FILE in artifact.files:
        _print_nulls(observer, artifact)
    if stable is not None:
        facts = stable.facts
        observer.say(f"\n  Chosen again in {facts['fits']} fits on halves of the documents, {facts['varied']}")
        share = {name: facts[name] / max(facts["n_edges"], 1) for name in ("stable", "half")}
        observer.say(
            f"  {share['stable']:.0%} of the edges in {STABLE:.0%} of them, {share['half']:.0%} in half of them"
        )
    _print_circuits(observer, Verdicts(artifact), evaluation, stable)


def _print_nulls(observer: Observer, artifact: Artifact[VerifyFacts]) -> None:
    observer.say("\n  Against effects that they should not agree with")
    observer.say(f"  {'':18} {'precision 1x':>12} {'recall 10x':>11} {'same sign':>10} {'slope':>6} {'r2':>6}")
    for name, null in artifact.json(NULLS_FILE).items():
        shown = [null.get(key) for key in ("precision_1x", "recall_10x", "sign_1x", "slope_1x", "r2_1x")]
        cells = ["-" if v is None else f"{v:.2f}".replace("0.", ".").replace("-.00", ".00") for v in shown]
        line = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, (12, 11, 10, 6, 6), strict=True))
        observer.say(f"  {name:18} {line}")


def _print_circuits(
    observer: Observer, verdicts: Verdicts, evaluation: Artifact[EvaluateFacts], stable: Stability | None
) -> None:
    """Of the evaluation's circuits the edges that are confirmed, and chosen again."""
    lines = []
    for circuit in evaluation.json("circuits.json"):
        kept = []
        for term in circuit["terms"]:
            if term["unit"].startswith("H"):
                continue
            found = verdicts.of(term["id"], circuit["id"])
            chosen = None if stable is None else stable.of(term["id"], circuit["id"])
            if found is not None and found[2] == "confirmed" and (chosen is None or chosen >= STABLE):
                kept.append(term)
        if kept:
            bare = {name: value for name, value in circuit.items() if name not in ("hidden", "linear")}
            lines.append(circuit_text({**bare, "terms": kept}, verdicts.word))
    if lines:
        observer.say(f"\n  Circuits of confirmed{'' if stable is None else ' and stable'} edges")
        for line in lines:
            observer.say(f"  {line}")


def print_consequences(observer: Observer, artifact: Artifact[ConsequencesFacts]) -> None:
    """The table, in 80 columns."""
    observer.say(f"\n  What the next token loses without it, in nats, on up to {TOKENS} test tokens each")
    observer.say(f"  {'':42} {'log-prob.':>10} {'KL':>8} {'KL, other':>9}")
    words = {"edge": "", "target": "all of ", "outlier": "outlier "}
    for row in artifact.json(CONSEQUENCES_FILE):
        name = f"{words[row['kind']]}OF{row['target']} {_quoted_token(row['target_token'])}"
        if row["source"] is not None:
            name += f" by {row['source_name']} {_quoted_token(row['source_token'])}"
        observer.say(f"  {name[:42]:42} {row['logp']:+10.4f} {row['kl']:8.4f} {row['kl_null']:9.4f}")


def _quoted_token(token: str | None) -> str:
    return "" if token is None else f'"{"".join(c if c.isprintable() else "·" for c in token.strip())}"'
