"""A prompt's graph in a few lines."""

from __future__ import annotations

from pathlib import Path

from saelink.progress import Observer
from saelink.share.graph.stage import GraphFacts
from saelink.store.artifact import Artifact


def print_graph(observer: Observer, graph: Artifact[GraphFacts], page: Path) -> None:
    """The likeliest next tokens, the strongest targets with what they are made of, the file and its page."""
    facts = graph.facts
    chances = ", ".join(f"{token!r} {chance:.0%}" for token, chance in facts["next"][:5])
    observer.say(f"\n  next       {chances}")
    for line in facts["lines"]:
        observer.say(f"  {line}")
    observer.say(f"\n  graph      {facts['nodes']} nodes, {facts['links']} links")
    observer.say(f"  file       {graph.path}/{facts['slug']}.json")
    observer.say(f"  page       {page}")
