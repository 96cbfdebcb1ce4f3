"""What heads move, as others read it: the strongest computed edges of a link from moved latents, by head."""

from __future__ import annotations

from typing import Any

from saelink.evidence.moved_cards import MovedCards
from saelink.evidence.names import Names
from saelink.store.draft import Draft
from saelink.store.files import csv_bytes

HEADS_CSV, HEADS_JSON = "heads.csv", "heads.json"

COLUMNS: list[str] = [
    "target", "source", "head", "share", "claim", "effect", "alone", "nearest", "farthest", "target_token",
    "source_token",
]  # fmt: skip

ABOUT_HEADS = """
`heads.csv` has the strongest computed edges into each target by head: the head's share of the edge's claim (all heads'
shares sum to 1), what the target loses without the source as computed (`claim`) and, after `saelink verify`, as
measured (`effect`, through this head alone: `alone`), of its mean activation, and the distances in tokens, `nearest` to
`farthest` before the query, that hold most of it. `heads.json` has the same by edge with the share of every distance,
and each head's own.
"""


def write_heads(draft: Draft, cards: MovedCards, names: Names) -> None:
    """`heads.csv`, a row for each head of an edge; `heads.json`, `edges` by target and `heads`."""
    rows: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    for target, into in cards.edges.items():
        token = names.unit("target", target).token
        for edge in into:
            common = {
                "target": target, "source": int(edge.name.removeprefix("IF")), "claim": edge.claim,
                "effect": edge.effect, "nearest": edge.near, "farthest": edge.far, "target_token": token,
                "source_token": edge.token,
            }  # fmt: skip
            alone = edge.alone or {}
            rows += [
                {**common, "head": head, "share": share, "alone": alone.get(head)} for head, share in edge.heads.items()
            ]
            edges.append(
                {**common, "heads": edge.heads, "alone": edge.alone, "distances": edge.distances, "from": edge.tokens}
            )
    heads = [
        {
            "head": card.head, "share": card.share, "group": card.group, "nearest": card.near, "farthest": card.far,
            "distances": card.distances,
            "sources": [{"source": int(name.removeprefix("IF")), "share": share} for name, _, share in card.sources],
        }
        for card in cards.heads
    ]  # fmt: skip
    draft.save_bytes(HEADS_CSV, csv_bytes(COLUMNS, rows))
    draft.save_json(HEADS_JSON, {"edges": edges, "heads": heads})
