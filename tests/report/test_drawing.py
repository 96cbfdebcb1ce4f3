"""The drawing of a prompt's graph."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from saelink.report.drawing import LINKS, draw_graph


def node(name: str, kind: str, layer: str, token: int, label: str, **more: Any) -> dict[str, Any]:
    found = {"node_id": name, "feature_type": kind, "layer": layer, "ctx_idx": token, "clerp": label}
    return {**found, "influence": 0.5, "activation": 1.25, "token_prob": 0.0, **more}


GRAPH = {
    "metadata": {"prompt_tokens": ["<|end|>", " a", " b"]},
    "nodes": [
        node("E_1", "embedding", "E", 1, '" a"'),
        node("s", "cross layer transcoder", "1", 1, 'IF3 "<script>"', influence=0.1),
        node("s2", "cross layer transcoder", "1", 1, "IF4 second", influence=0.9),
        node("e", "mlp reconstruction error", "1", 1, "not from single sources", influence=0.0),
        node("t", "cross layer transcoder", "2", 2, "OF5 target", activation=None),
        node("o", "logit", "31", 2, "Output likely", token_prob=0.7),
        node("o2", "logit", "31", 2, "Output other", token_prob=0.1),
    ],
    "links": [
        {"source": "E_1", "target": "s", "weight": 0.5},
        {"source": "s", "target": "t", "weight": -2.0},
        {"source": "t", "target": "o", "weight": 1.0},
    ],
}


def test_every_node_and_link_is_there_and_escaped() -> None:
    drawn = draw_graph(GRAPH)
    assert "<script>" not in drawn
    svg = ElementTree.fromstring(drawn)
    assert len(svg.findall("circle")) == 7 and len(svg.findall("line")) == 3
    titles = [title.text for title in svg.iter("title")]
    assert 'IF3 "<script>", 1.25' in titles and "OF5 target" in titles
    assert 'IF3 "<script>" to OF5 target: -2' in titles
    rows = {circle.find("title").text: float(circle.attrib["cy"]) for circle in svg.findall("circle")}  # type: ignore[union-attr]
    order = ["Output likely, 1.25", "OF5 target", 'IF3 "<script>", 1.25', '" a", 1.25']
    assert sorted(order, key=lambda name: rows[name]) == order


def test_of_each_row_the_node_that_matters_most_is_named() -> None:
    svg = ElementTree.fromstring(draw_graph(GRAPH))
    assert {text.text for text in svg.findall("text")} == {'" a"', 'IF3 "<script>"', "OF5 target", "Output likely"}


def test_only_the_strongest_links_are_drawn() -> None:
    links = [{"source": "s", "target": "t", "weight": i + 1} for i in range(LINKS + 50)]
    svg = ElementTree.fromstring(draw_graph({**GRAPH, "links": links}))
    drawn = {title.text for line in svg.findall("line") for title in line.iter("title")}
    assert len(drawn) == LINKS and f'IF3 "<script>" to OF5 target: +{LINKS + 50}' in drawn


def test_nothing_to_draw_is_a_drawing_too() -> None:
    ElementTree.fromstring(draw_graph({"metadata": {"prompt_tokens": []}, "nodes": [], "links": []}))
