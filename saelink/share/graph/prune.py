"""Influence on the next token, and what is kept by it."""

from __future__ import annotations

from typing import TypeVar

from saelink.share.graph.trace import Node, Trace

ORDER = ("logit", "target", "target_error", "source", "source_error", "token")
"""Every link leads from a later kind to an earlier one."""


def influences(trace: Trace) -> tuple[dict[Node, float], dict[Node, dict[Node, float]]]:
    """By node its influence on the next token, and by node the shares of what leads into it.

    The next tokens' influence is their probability over all that are looked at; every node hands its own down to
    what leads into it, in proportion to the absolute weights.
    """
    shares: dict[Node, dict[Node, float]] = {}
    total = sum(trace.probabilities.values())
    influence = {node: trace.probabilities[node.number] / total for node in trace.links if node.kind == "logit"}
    for kind in ORDER:
        for node in [node for node in influence if node.kind == kind]:
            into = trace.links.get(node, {})
            whole = sum(abs(weight) for weight in into.values()) or 1.0
            shares[node] = {source: abs(weight) / whole for source, weight in into.items()}
            for source, share in shares[node].items():
                influence[source] = influence.get(source, 0.0) + influence[node] * share
    return influence, shares


def without_logits(influence: dict[Node, float]) -> dict[Node, float]:
    """Of the nodes that can be left out or not."""
    return {node: value for node, value in influence.items() if node.kind != "logit"}


T = TypeVar("T")


def largest_share(scores: dict[T, float], share: float) -> dict[T, float]:
    """The largest scores that together make `share` of all, largest first, each with the share up to itself."""
    whole, so_far, kept = sum(scores.values()) or 1.0, 0.0, {}
    for item, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        if so_far >= share:
            break
        so_far += score / whole
        kept[item] = so_far
    return kept
