"""Edges through attention whose weights are computed, not fitted: the stage `ov`.

    claim_ij = sum over heads h of V_ij^h  mean over the queries j is moved to of  m_j^h(q) [i active at q]

the mean part that j's being moved has in i's pre-activation where i is active: what i loses there without j as long as
the pattern holds and i stays active. Which queries j counts as moved to, moved.moved_most says. The sum over heads is
exact, and so are the heads' shares of an edge. Queries are of training documents, and m is of the kept pairs, see
attention.stage.
"""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import torch

from saelink import memory
from saelink.attention.heads import load_attention
from saelink.attention.moved import Moves, moved_most, only_moved
from saelink.attention.stage import MovedStage, open_moves, pull_linked
from saelink.config.schema import Config
from saelink.errors import SaelinkError
from saelink.latents.encode import EncodeStage
from saelink.latents.link import counted_split, link_of, pull_sides
from saelink.latents.rows import Rows, sparse_transposed
from saelink.model.describe import model_info
from saelink.model.dimensions import dimensions_of, size_of
from saelink.progress import Observer
from saelink.runtime import device_of, need_memory
from saelink.saes.widths import widths_ahead
from saelink.store.artifact import Artifact
from saelink.store.draft import Draft
from saelink.store.stage import Need, Stage
from saelink.store.store import Store

EDGES_FILE = "edges.safetensors"

TOKENS = 65_536
"""Training tokens that activity together is counted on, evenly spread."""

KEPT = 24
"""Edges of each target whose shares by head are kept, the strongest by their claim."""

STEP = 2048

WAY_OUT = "computed edges are dense in heads, sources and targets: use SAEs with fewer latents"


class OVFacts(TypedDict):
    tokens: int
    """Training tokens that were counted."""
    edges: int
    """Pairs of latents that are ever active together through a head."""


class OVEdges(NamedTuple):
    """Computed edges; claims in units of the target's scale."""

    claim: torch.Tensor
    """[d_source, d_target] what the target loses without the source, where both are active."""
    ungated: torch.Tensor
    """[d_source, d_target] the same of the pre-activation, whether the target is active or not."""
    queries: torch.Tensor
    """[d_source] queries that each source was moved to."""
    source: torch.Tensor
    """[d_target, n] the sources of the strongest edges, by the size of their claim,"""
    by_head: torch.Tensor
    """[d_target, n, n_heads] and the part of the claim that each head makes; they sum to it."""


class OVStage(Stage[OVFacts]):
    """The computed edges of a link from moved latents by head.

    File `edges.safetensors`: see OVEdges. Raises SaelinkError for a link that is not from `ov` alone.
    """

    name = "ov"
    version = 2

    def __init__(self, cfg: Config, store: Store):
        self.cfg, self.store = cfg, store
        if cfg.link.sources != ["ov"]:
            raise SaelinkError(f"link={cfg.link.name}: weights are computed for link=ov, by head and latent")
        self._moved = MovedStage(cfg, store, 0)

    @property
    def device(self) -> str:
        return device_of(self.cfg)

    def recipe(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "tokens": TOKENS,
            "latent_scale": cfg.latent_scale.name,
            "drop_positions": cfg.data.drop_positions,
            "max_norm_ratio": cfg.data.max_norm_ratio,
        }

    def inputs(self) -> dict[str, str]:
        target = EncodeStage(self.cfg, self.store, link_of(self.cfg, self.store).target)
        return {"moved": self._moved.key, "target": target.key}

    def about(self) -> str:
        return self._moved.about()

    def _need_ahead(self, size: memory.ModelSize) -> None:
        """Raise SaelinkError before latents are made where the widths of the SAEs are known, and too large."""
        cfg, link = self.cfg, link_of(self.cfg, self.store)
        try:
            model = dimensions_of(cfg.model, model_info(cfg, self.store).artifact)
        except SaelinkError:  # the model's config is not at hand any more
            return
        known = widths_ahead(cfg, model, [link.sources[0], link.target])
        if known is not None:
            pairs = memory.computed_pairs(size, *known)
            need_memory(f"{self.name}: {self.about()}, {known[0]:,} latents on {known[1]:,}", pairs, WAY_OUT)

    def need(self) -> Need:
        cfg, info = self.cfg, model_info(self.cfg, self.store)
        self._need_ahead(size_of(cfg.model, info.artifact))
        (source,), target = pull_sides(cfg, self.store).sizes
        needed = memory.computed_edges(size_of(cfg.model, info.artifact), source, target, TOKENS, cfg.link.kept)
        return Need(needed, WAY_OUT)

    def make(self, draft: Draft) -> OVFacts:
        cfg, store = self.cfg, self.store
        link, sides = link_of(cfg, store), pull_linked(cfg, store)
        pieces = counted_split(cfg, sides, "train").spread(TOKENS)
        attention = load_attention(cfg, model_info(cfg, store), cfg.layer, "cpu")
        moves = open_moves(cfg, store, attention, link.sources[0], link.target)
        facts = EncodeStage(cfg, store, link.sources[0]).pull().facts
        together, alone, queries = counted_together(
            [(piece.source, piece.target) for piece in pieces], moves.reach(), round(facts["l0"]), store.observer
        )
        with torch.inference_mode():
            edges = computed(moves, together * sides.scales[0], alone * sides.scales[0], queries, sides.scales[-1])
        draft.save_tensors(EDGES_FILE, edges._asdict())
        return {"tokens": sum(len(piece) for piece in pieces), "edges": int((edges.claim != 0).sum())}


def load_ov(artifact: Artifact[OVFacts]) -> OVEdges:
    return OVEdges(**artifact.tensors(EDGES_FILE))


def counted_together(
    pieces: list[tuple[Rows, Rows]], reach: torch.Tensor, most: int, observer: Observer
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over tokens of moved columns with targets: where the target is active, everywhere, and queries.

    [columns, d_target], [columns] and [d_source]; a query is a token that the latent is moved to, see moved_most.
    """
    d_source = reach.shape[1]
    columns, d_target = pieces[0][0].d, pieces[0][1].d
    together, alone = torch.zeros(columns, d_target), torch.zeros(columns, dtype=torch.float64)
    queries = torch.zeros(d_source, dtype=torch.int64)
    total = sum(len(source) for source, _ in pieces)
    with observer.progress("ov", total) as bar:
        for source, target in pieces:
            for first in range(0, len(source), STEP):
                rows = torch.arange(first, min(first + STEP, len(source)))
                moved, fired = source.select(rows), target.select(rows)
                latents = moved_most(moved, reach, most)
                moved = only_moved(moved, latents)
                together += sparse_transposed(moved, (fired.dense() > 0).float())
                alone += torch.bincount(moved.indices, moved.values.double(), minlength=columns)
                queries += torch.bincount(latents.indices, minlength=d_source)
                bar.advance(len(rows))
    return together, alone.float(), queries


def computed(
    moves: Moves, together: torch.Tensor, alone: torch.Tensor, queries: torch.Tensor, unit: float
) -> OVEdges:  # fmt: skip
    """The edges of sums as in counted_together, in raw units; `unit` is the target's scale."""
    d_source, n_heads = moves.source.d_sae, moves.heads.n_heads
    n = queries.clamp(min=1)[:, None] * unit
    claim, ungated = (torch.zeros(d_source, moves.target.d_sae) for _ in range(2))
    for head in range(n_heads):
        rows = slice(head * d_source, (head + 1) * d_source)
        weight = moves.weight(head).cpu()
        claim += weight * together[rows] / n
        ungated += weight * alone[rows, None] / n
    source = claim.abs().topk(min(KEPT, d_source), dim=0).indices.T.contiguous()
    by_head = torch.zeros(*source.shape, n_heads)
    target = torch.arange(len(source))[:, None].expand_as(source)
    for head in range(n_heads):
        weight = moves.weight(head).cpu()
        by_head[..., head] = (weight[source, target] * together[head * d_source + source, target]) / n[source, 0]
    return OVEdges(claim, ungated, queries, source, by_head)
