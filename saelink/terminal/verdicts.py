"""Verdicts on edges and what the next token loses, in 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelink.evidence.circuits import circuit_text
from saelink.evidence.consequences import CONSEQUENCES_FILE, TOKENS, ConsequencesFacts
from saelink.evidence.evaluate import EvaluateFacts
from saelink.evidence.moved_verdicts import FROZEN_FILE
from saelink.evidence.saturation import reason
from saelink.evidence.stability import STABLE, Stability
from saelink.evidence.verdicts import FIGURES_FILE, NULLS_FILE, QUANTILES, TOPS, VERDICTS, Verdicts
from saelink.evidence.verify import VerifyFacts
from saelink.progress import Observer
from saelink.store.artifact import Artifact
from saelink.terminal.table import Column, formula_lines, pair_lines, table_lines, terminal_width

ORDERS = {
    "spearman": "Spearman, all pairs of latents",
    "spearman_edges": "Spearman, claimed pairs",
    "auroc": "AUROC, strong effects by |claim|",
    "auroc_positive": "  strong positive by claim",
    "auroc_suppressive": "  strong suppressive by claim",
}
"""Figures of evidence.rank_agreement, and what they are called."""


def print_verdicts(
    observer: Observer, artifact: Artifact[VerifyFacts], evaluation: Artifact[EvaluateFacts], stable: Stability | None
) -> None:
    """The figures, and the circuits of confirmed (and stable) edges, in 80 columns."""
    f = artifact.json(FIGURES_FILE)

    def interval(name: str) -> str:
        if f.get(name) is None:
            return "-"
        return f"{f[name]:.2f} ({f[f'{name}_low']:.2f} to {f[f'{name}_high']:.2f})".replace("0.", ".")

    edges = max(f["edges"], 1)
    words = [f"{f['edges_' + word.replace(' ', '_')] / edges:.0%} {word}" for word in VERDICTS]
    share = f["strong_suppressive"] / max(f["strong"], 1)
    rows = [
        ("strong effects", f"{f['strong']:,} in the model, {share:.0%} of them suppressive"),
        ("claimed edges", f"{f['edges']:,}"),
        ("of these", ", ".join(words)),
        ("missed", f"{f['missed']:,} strong effects without edge, {f['missed_suppressive']:,} suppressive"),
    ]
    observer.say("")
    for line in pair_lines(rows, terminal_width() or 80):
        observer.say(line)
    observer.say("\n  The strongest claims, in multiples of the sources that were judged (95%)")
    measures = ("precision", "recall", "recall_positive", "recall_suppressive")
    names = ("precision", "recall", "  positive", "  suppressive")
    rows = [
        (name, *(interval(f"{measure}_{times}x") for times in TOPS))
        for name, measure in zip(names, measures, strict=True)
    ]
    for line in table_lines([Column(), *(Column(f"{times}x") for times in TOPS)], rows, indent=2):
        observer.say(line)
    names = {"same sign": "sign_1x", "slope": "slope_1x", "r2": "r2_1x", "rank correlation": "rank_correlation_1x"}
    observer.say("")
    for line in pair_lines([(name, interval(measure)) for name, measure in names.items()]):
        observer.say(line)
    observer.say("\n  The order of claims beside that of effects (95% over sources)")
    for line in pair_lines([(name, interval(figure)) for figure, name in ORDERS.items()]):
        observer.say(line)
    if FROZEN_FILE in artifact.files:
        _print_frozen(observer, artifact)
    _print_one_by_one(observer, f)
    if NULLS_FILE in artifact.files:
        _print_nulls(observer, artifact)
    if stable is not None:
        facts = stable.facts
        observer.say(f"\n  Chosen again in {facts['fits']} fits on halves of the documents, {facts['varied']}")
        if facts["targets"] < facts["of_targets"]:
            observer.say(f"  (edges into {facts['targets']:,} of {facts['of_targets']:,} targets)")
        share = {name: facts[name] / max(facts["n_edges"], 1) for name in ("stable", "half")}
        observer.say(
            f"  {share['stable']:.0%} of the edges in {STABLE:.0%} of them, {share['half']:.0%} in half of them"
        )
    _print_circuits(observer, Verdicts(artifact), evaluation, stable)


def _print_one_by_one(observer: Observer, figures: Mapping[str, Any]) -> None:
    """How recall and precision differ from latent to latent."""
    rows = []
    for name in ("target", "source"):
        cells = []
        for word in ("recall", "precision"):
            key = f"{word}_{max(TOPS)}x_by_{name}"
            values = [figures.get(f"{key}_{q}") for q in QUANTILES]
            cells.append(f"{word} {' / '.join(_share(v) for v in values)} of {figures[f'{key}_n']:,}")
        rows.append((f"{name}s", *cells))
    observer.say(f"\n  {max(TOPS)}x, one by one: 10% / median / 90%")
    for line in table_lines([Column()] * 3, rows, indent=2):
        observer.say(line)


def _print_frozen(observer: Observer, artifact: Artifact[VerifyFacts]) -> None:
    """The figures of the strongest claims where attention's pattern and norms are held."""
    held = artifact.json(FROZEN_FILE)
    names = {"precision 1x": "precision_1x", "recall 10x": "recall_10x", "same sign": "sign_1x", "slope": "slope_1x"}
    figures = ", ".join(f"{name} {_share(held.get(key))}" for name, key in names.items())
    observer.say(f"\n  With pattern and norms held: {figures}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("0.", ".").replace("-.00", ".00")


def _print_nulls(observer: Observer, artifact: Artifact[VerifyFacts]) -> None:
    columns = {
        "precision 1x": "precision_1x",
        "recall 10x": "recall_10x",
        "same sign": "sign_1x",
        "slope": "slope_1x",
        "r2": "r2_1x",
        "AUROC": "auroc",
    }
    found = artifact.json(NULLS_FILE)
    nulls = found.items()
    rows = [(name, *(_share(null.get(key)) for key in columns.values())) for name, null in nulls]
    observer.say("\n  Against effects that they should not agree with")
    n, most = (f(null["sources_ablated"] for null in found.values()) for f in (min, max))
    if n < most:
        observer.say(f"  (nulls measured on {n:,} of {most:,} sources)")
    for line in table_lines([Column(), *(Column(title, right=True) for title in columns)], rows, indent=2):
        observer.say(line)
    for null in found.values():
        if null.get("saturated"):
            for line in pair_lines([("saturated", reason(null))], terminal_width() or 80):
                observer.say(line)


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
        for text in lines:
            for line in formula_lines(text, terminal_width()):
                observer.say(line)


def print_consequences(observer: Observer, artifact: Artifact[ConsequencesFacts]) -> None:
    """The table, in 80 columns."""
    observer.say(f"\n  What the next token loses without it, in nats, on up to {TOKENS} test tokens each")
    words = {"edge": "", "target": "all of ", "outlier": "outlier "}
    rows = []
    for row in artifact.json(CONSEQUENCES_FILE):
        name = f"{words[row['kind']]}OF{row['target']} {_quoted_token(row['target_token'])}"
        if row["source"] is not None:
            name += f" by {row['source_name']} {_quoted_token(row['source_token'])}"
        rows.append((name, f"{row['logp']:+.4f}", f"{row['kl']:.4f}", f"{row['kl_null']:.4f}"))
    columns = [Column(wraps=True), *(Column(title, right=True) for title in ("log-prob.", "KL", "KL, other"))]
    for line in table_lines(columns, rows, terminal_width(), indent=2):
        observer.say(line)


def _quoted_token(token: str | None) -> str:
    return "" if token is None else f'"{"".join(c if c.isprintable() else "·" for c in token.strip())}"'
