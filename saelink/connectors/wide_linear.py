"""The linear connector between so many latents that only its edges are kept: fitted from sparse products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from saelink.connectors.base import Connector, EdgeSums, SparsePrediction, StrongestEdges, strongest
from saelink.connectors.linear import LinearSettings
from saelink.kernels import in_parts
from saelink.latents.rows import Rows, offsets_of
from saelink.runtime import need_memory

WIDE_WEIGHTS = 2**26
"""Entries of a weight matrix above which a stored one by its edges stays so in memory: 256 MB of them."""

STEP = 256
"""Tokens of one piece of work."""


class EdgeList(torch.nn.Module):
    """A matrix [n, m] by its rows, in the tensors that a connector's file has of a large one."""

    shape: torch.Tensor
    """[2] int64"""
    offsets: torch.Tensor
    """[n + 1] int64"""
    indices: torch.Tensor
    """[edges] int32, ascending in each row"""
    values: torch.nn.Parameter
    """[edges] float32"""

    def __init__(self, n: int, m: int):
        super().__init__()
        self.register_buffer("shape", torch.tensor([n, m]))
        self.set(Rows(torch.zeros(n + 1, dtype=torch.int64), torch.zeros(0), torch.zeros(0), m))

    def set(self, rows: Rows) -> None:
        """Take these entries instead."""
        self.register_buffer("offsets", rows.offsets)
        self.register_buffer("indices", rows.indices.int())
        self.values = torch.nn.Parameter(rows.values.float())

    def rows(self) -> Rows:
        return Rows(self.offsets.cpu(), self.indices.long().cpu(), self.values.detach().cpu(), int(self.shape[1]))


class WideLinearConnector(Connector):
    """y = x W (+ b) as `LinearConnector`, of which only the edges are in memory. It has no gradient.

    A prediction that is wanted densely is one like any other; `sparse_prediction` is what costs as much as the edges.
    """

    Settings = LinearSettings
    default_solver = "exact"

    def __init__(self, config: LinearSettings, d_source: int, target_ids: torch.Tensor):
        super().__init__(config, d_source, target_ids)
        self.W = EdgeList(d_source, self.d_target)
        self.b = torch.nn.Parameter(torch.zeros(self.d_target)) if config.bias else None
        self._by_target: Rows | None = None

    def set_edges(self, source: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> None:
        """Take these edges [n_edges], of columns `target`, in any order, no pair twice."""
        order = (source * self.d_target + target).argsort()
        pairs = source[order], target[order], weight[order]
        self.W.set(Rows.from_pairs(*pairs, n=self.d_source, d=self.d_target))
        self._by_target = None

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take a file's tensors, which say how many edges there are."""
        parts = (tensors[f"W.{part}"] for part in ("offsets", "indices", "values"))
        self.W.set(Rows(*parts, d=self.d_target))
        self._by_target = None
        self.load_state_dict(tensors)

    def randomise(self, generator: torch.Generator) -> None:
        raise AssertionError("edges come from a solver that needs no start")

    def maps(self, rows: Rows) -> tuple[torch.Tensor, None]:
        found = self.sparse_prediction(rows)
        z = found.rows.dense()
        return (z if found.constant is None else z.add_(found.constant)).to(rows.values.device), None

    def sparse_prediction(self, rows: Rows) -> SparsePrediction:
        from saelink.kernels.sparse_products import product_rows

        weights, n = self.W.rows(), len(rows)
        of_token = tuple(tensor.cpu().numpy() for tensor in (rows.offsets, rows.indices, rows.values))
        of_source = weights.offsets.numpy(), weights.indices.numpy(), weights.values.numpy()
        parts: dict[int, tuple[Any, Any, Any]] = {}

        def work(first: int, last: int) -> None:
            parts[first] = product_rows(first, last, *of_token, *of_source, self.d_target, 1.0)

        in_parts(n, STEP, work)
        each = zip(*(parts[first] for first in sorted(parts)), strict=True)
        lengths, indices, values = (torch.as_tensor(np.concatenate(list(arrays))) for arrays in each)
        constant = None if self.b is None else self.b.detach().cpu()
        return SparsePrediction(Rows(offsets_of(lengths), indices.long(), values, self.d_target), constant)

    def penalised(self) -> list[tuple[torch.nn.Parameter, float]]:
        """Its edges' weights alone: what is not there is zero."""
        return [(self.W.values, 1 / self.d_target)]

    def edges(self, latent: int, n: int) -> StrongestEdges:
        found = self.edges_by_target().select(torch.tensor([self.column(latent)]))
        order = strongest(found.values, n)
        return StrongestEdges([int(found.indices[i]) for i in order.ids], order.weights)

    def edges_by_target(self) -> Rows:
        if self._by_target is None:
            self._by_target = self.W.rows().transposed()
        return self._by_target

    def edge_sums(self) -> EdgeSums:
        column, values = self.W.indices.long().cpu(), self.W.values.detach().cpu()
        count = torch.bincount(column[values != 0], minlength=self.d_target)
        return EdgeSums(count, torch.bincount(column, values.abs().double(), minlength=self.d_target))

    def output_weight(self) -> torch.Tensor:
        """[d_source, d_target]. Raises SaelinkError where so large a matrix does not fit."""
        what = f"connector: all {self.d_source:,} x {self.d_target:,} weights, zeros too,"
        need_memory(what, 4 * self.d_source * self.d_target, "what reads only its edges works at this width")
        return self.W.rows().dense()

    def rescale(self, sources: torch.Tensor, target: float) -> None:
        self.W.values.mul_(sources.to(self.W.values)[self.W.rows().row_of]).mul_(target)
        self._by_target = None
        if self.b is not None:
            self.b.mul_(target)
