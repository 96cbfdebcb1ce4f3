"""Graphs, interventions and circuits over several layers, printed."""

from __future__ import annotations

from pathlib import Path

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
