"""A prompt's graph as a drawing for a notebook: SVG, nothing fetched, every text escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, ROW, TOP = 920, 96, 34
"""Pixels: of the drawing, from one row of nodes to the next, and above the first."""

ROWS = ("logit", "target", "source", "embedding")
"""From the next tokens at the top down to the prompt's own."""

LINKS, SIGNS = 150, 14
"""Links that are drawn, the strongest; letters of a name."""

POSITIVE, NEGATIVE = "#2a6fb0", "#c0504d"


def draw_graph(graph: Mapping[str, Any]) -> str:
    """The nodes of a graph file by token and layer, its strongest links between them: blue adds, red takes away.

    Of each row the node of a token that matters most is named; a pointer over any node or link shows what it is.
    """
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    first = min(
        (_layer(node) for node in nodes.values() if node["feature_type"] not in ("embedding", "logit")), default=0
    )
    row_of = {name: ROWS.index(_kind(node, first)) for name, node in nodes.items()}
    places = _places(graph, nodes, row_of)
    links = sorted(graph["links"], key=lambda link: -abs(link["weight"]))[:LINKS]
    strongest = max((abs(link["weight"]) for link in links), default=1.0) or 1.0
    parts = [_line(link, places, nodes, strongest) for link in reversed(links)]
    named = _named(nodes, row_of)
    middle = {name: 20 + _column(graph) * (int(node["ctx_idx"]) + 0.5) for name, node in nodes.items()}
    parts += [_dot(node, places[name], middle[name] if name in named else None) for name, node in nodes.items()]
    height = TOP + ROW * (len(ROWS) - 1) + 40
    style = 'style="max-width:100%;font:11px sans-serif" role="img" aria-label="attribution graph of a prompt"'
    return f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" {style}>{"".join(parts)}</svg>'


def _layer(node: Mapping[str, Any]) -> int:
    return int(node["layer"]) if str(node["layer"]).isdigit() else -1


def _kind(node: Mapping[str, Any], first: int) -> str:
    if node["feature_type"] in ("embedding", "logit"):
        return str(node["feature_type"])
    return "source" if _layer(node) == first else "target"


def _column(graph: Mapping[str, Any]) -> float:
    """How wide the column of a token is."""
    return (WIDTH - 40) / max(len(graph["metadata"]["prompt_tokens"]), 1)


def _places(
    graph: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]], row_of: Mapping[str, int]
) -> dict[str, tuple[float, float]]:
    """Where each node stands: a column for each token, those of one row and token beside each other."""
    column = _column(graph)
    together: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, node in nodes.items():
        together[row_of[name], int(node["ctx_idx"])].append(name)
    places = {}
    for (row, position), names in together.items():
        for i, name in enumerate(names):
            x = 20 + column * (position + (i + 1) / (len(names) + 1))
            places[name] = (x, TOP + ROW * row)
    return places


def _named(nodes: Mapping[str, Mapping[str, Any]], row_of: Mapping[str, int]) -> set[str]:
    """Of each row and token the node that comes first by influence, which the file counts up from the strongest."""
    best: dict[tuple[int, int], tuple[float, str]] = {}
    for name, node in nodes.items():
        place = (row_of[name], int(node["ctx_idx"]))
        likely = -float(node["token_prob"])
        rank = likely if node["feature_type"] == "logit" else float(node.get("influence") or 0.0)
        if "error" not in node["feature_type"]:
            best[place] = min(best.get(place, (rank, name)), (rank, name))
    return {name for _, name in best.values()}


def _line(
    link: Mapping[str, Any],
    places: Mapping[str, tuple[float, float]],
    nodes: Mapping[str, Mapping[str, Any]],
    strongest: float,
) -> str:
    weight = float(link["weight"])
    (x1, y1), (x2, y2) = places[link["source"]], places[link["target"]]
    share = (abs(weight) / strongest) ** 0.5
    colour = POSITIVE if weight > 0 else NEGATIVE
    says = f"{nodes[link['source']]['clerp']} to {nodes[link['target']]['clerp']}: {weight:+.3g}"
    return (
        f'<line x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" stroke="{colour}" stroke-width="{0.4 + 3 * share:.2f}" '
        f'stroke-opacity="{0.15 + 0.7 * share:.2f}"><title>{escape(says)}</title></line>'
    )


def _dot(node: Mapping[str, Any], place: tuple[float, float], text_at: float | None) -> str:
    x, y = place
    label = str(node["clerp"])
    fill = "#b5b5bd" if "error" in node["feature_type"] else "#33333d"
    activation = node.get("activation")
    says = label if activation is None else f"{label}, {activation:.3g}"
    dot = f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{fill}"><title>{escape(says)}</title></circle>'
    if text_at is None:
        return dot
    below = node["feature_type"] == "embedding"
    short = label if len(label) <= SIGNS else label[: SIGNS - 1] + "…"
    at = f'x="{text_at:.1f}" y="{y + 20 if below else y - 10}"'
    return f'{dot}<text {at} text-anchor="middle" fill="currentColor">{escape(short)}</text>'
