"""Graphs, interventions and circuits over several layers, printed."""

from __future__ import annotations

from pathlib import Path

from saelink.circuits.ancestors import CircuitFacts, Relative
from saelink.circuits.intervene import InterventionFacts
from saelink.circuits.stage import LayersGraphFacts
from saelink.progress import Observer
from saelink.store.artifact import Artifact

KINDS = {"attn": "attention", "source": "MLP inputs", "mlp": "MLP outputs", "logit": "next tokens"}


def print_layers_graph(observer: Observer, graph: Artifact[LayersGraphFacts], page: Path) -> None:
    """The likeliest next tokens, the most influential latents with what they are made of, scores, file and page."""
    facts = graph.facts
    chances = ", ".join(f"{token!r} {chance:.0%}" for token, chance in facts["next"][:5])
    observer.say(f"\n  next       {chances}")
    observer.say("  influence, latent, and the largest parts of what leads into it:")
    for line in facts["lines"]:
        observer.say(f"  {line}")
    observer.say(f"\n  graph      {facts['nodes']} nodes, {facts['links']} links, {facts['kept']:.0%} of all influence")
    scores = f"replacement {facts['replacement']:.2f}, completeness {facts['completeness']:.2f}"
    observer.say(f"  scores     {scores}  (1: nothing is error)")
    errors = ", ".join(f"{KINDS[kind]} {share:.0%}" for kind, share in facts["errors"].items())
    observer.say(f"  error      share of the input: {errors}")
    observer.say(f"  file       {graph.path}/{facts['slug']}.json")
    observer.say(f"  page       {page}")


def print_intervention(observer: Observer, intervention: Artifact[InterventionFacts]) -> None:
    """Next tokens before and after, in the model and by the graph; the latents that changed most."""
    for line in intervention_lines(intervention.facts):
        observer.say(line)


def intervention_lines(facts: InterventionFacts) -> list[str]:
    """The same as text."""
    lines = [""]
    for change, at in zip(facts["changes"], facts["at"], strict=True):
        lines.append(f"  {change:<16} at {printed(repr(at), 55).rstrip()}")
    lines += ["", f"  {'next token':<16} {'before':>7} {'after':>7} {'by the graph':>13} {'logit':>7} {'graph':>7}"]
    rows = sorted(facts["next"], key=lambda row: -max(row["before"], row["after"]))[:10]
    for row in rows:
        chances = f"{row['before']:>7.1%} {row['after']:>7.1%} {row['predicted']:>13.1%}"
        name = printed(repr(row["token"]), 16)
        lines.append(f"  {name} {chances} {row['logit']:>+7.2f} {row['predicted_logit']:>+7.2f}")
    if facts["latents"]:
        lines += ["", f"  {'latent':<26} {'at':<14} {'is':>7} {'gains':>7} {'graph':>7}"]
    for latent in facts["latents"]:
        where = printed(repr(latent["token"]), 14)
        figures = f"{latent['activation']:>7.2f} {latent['change']:>+7.2f} {latent['predicted']:>+7.2f}"
        lines.append(f"  {printed(latent['name'], 26)} {where} {figures}")
    if facts["cosine"]:
        cosines = ", ".join(f"layer {layer} {value:.2f}" for layer, value in facts["cosine"].items())
        lines += ["", f"  model and graph on latents, cosine: {cosines}"]
    return lines


def print_circuit(observer: Observer, circuit: Artifact[CircuitFacts]) -> None:
    """A latent's ancestors and descendants, each with what ablation did and what the graph said of it."""
    for line in circuit_lines(circuit.facts):
        observer.say(line)


def circuit_lines(facts: CircuitFacts) -> list[str]:
    """The same as text."""
    lines = [
        "",
        f"  {facts['label']}, active at {facts['places']} places of {facts['sequences']} test sequences, "
        f"mean {facts['activation']:.2f}",
        f"  into it: {facts['tokens']:.0%} straight from tokens, {facts['error']:.0%} error",
    ]
    told = (
        ("what leads to it", "adds", facts["ancestors"]),
        ("where it leads", "gets", facts["descendants"]),
    )
    for title, verb, relatives in told:
        if not relatives:
            lines += ["", f"  {title}: no latent of these layers"]
            continue
        lines += ["", f"  {title:<30} {verb:>6}  {'to or from':<12} {'ablation takes':>19} {'graph':>6}"]
        for each in _tree(relatives, facts["latent"]):
            name = printed("  " * (each["step"] - 1) + each["label"], 30)
            effect = f"{each['effect']:+.0%} [{each['low']:+.0%}, {each['high']:+.0%}]"
            lines.append(f"  {name} {each['share']:>+6.0%}  {each['by']:<12} {effect:>19} {each['predicted']:>+6.0%}")
    return lines


def _tree(relatives: list[Relative], root: str) -> list[Relative]:
    """Each behind the one it was found at."""
    found: list[Relative] = []
    for each in relatives:
        if each["by"] == root:
            found += [each, *_tree(relatives, each["name"])]
    return found


def printed(text: str, wide: int) -> str:
    """Text in a column, cut at its end; what can't be printed as a dot."""
    text = "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)
    return f"{text if len(text) <= wide else text[: wide - 1] + chr(0x2026):<{wide}}"
