"""Edges inside an MLP on a prompt: what each of its source latents adds to each of its target latents.

Of a connector it is what the prediction loses without the source, in units of the target's activation. Without a
connector it is the MLP's own derivative on the prompt: gradient of the target's pre-activation x what the source
writes. What a target's activation has beyond that is its rest, an error: the connector's, what sources do only
together, and the source SAE's error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from saelink.connectors.base import Connector
from saelink.connectors.linear import LinearConnector
from saelink.connectors.wide_linear import WideLinearConnector
from saelink.latents.rows import Rows
from saelink.model.block import Steps
from saelink.saes.sae import SAE

STEP = 64
"""Tokens whose derivatives are made at a time."""


class Here(NamedTuple):
    """One MLP on one prompt."""

    x: torch.Tensor
    """[context, d] what it reads,"""
    y: torch.Tensor
    """and gives."""
    source: Rows
    """[context, d_source] latents on both sides, raw."""
    target: Rows
    kept: dict[str, torch.Tensor]
    """What is computed of them once."""


class Inside(ABC):
    """The edges of one layer's MLP."""

    @abstractmethod
    def weights(self, here: Here) -> list[torch.Tensor]:
        """By position [targets, sources], of the latents that are active there, in their order."""

    @abstractmethod
    def moved(self, here: Here, change: torch.Tensor) -> torch.Tensor:
        """[nnz of target] what the active targets gain where the active sources gain `change` [nnz of source]."""


class ByConnector(Inside):
    """A fitted connector's edges."""

    def __init__(self, connector: Connector, scales: list[float]):
        """`scales` are the units of source and target."""
        self._connector, (self._from, self._to) = connector, scales
        self._column = torch.full((int(connector.target_ids.max()) + 1,), -1)
        self._column[connector.target_ids] = torch.arange(connector.d_target)
        unit = self._to / self._from
        linear = isinstance(connector, LinearConnector) and not connector.relu_output
        self._matrix = connector.output_weight().float() * unit if linear else None
        self._edges = connector.W.rows().scaled(unit) if isinstance(connector, WideLinearConnector) else None

    def _columns(self, target: Rows) -> torch.Tensor:
        """[nnz] the connector's column of each active target; -1 for one that it does not explain."""
        inside = target.indices.clamp(max=len(self._column) - 1)
        return torch.where(target.indices < len(self._column), self._column[inside], -1)

    def weights(self, here: Here) -> list[torch.Tensor]:
        columns, found = self._columns(here.target), list[torch.Tensor]()
        for p in range(len(here.x)):
            mine, theirs = _part(here.target, p), _part(here.source, p)
            column, value = columns[mine], here.source.values[theirs]
            if self._matrix is not None:
                weights = self._matrix[here.source.indices[theirs]][:, column.clamp(min=0)].T * value
            elif self._edges is not None:
                source, target = here.source.indices[theirs], column.clamp(min=0)
                pairs = source.repeat(len(target)), target.repeat_interleave(len(source))
                weights = self._edges.at(*pairs).view(len(target), len(source)) * value
            else:
                weights = self._left_out(here.source, p, column.clamp(min=0))
            found.append(torch.where(column[:, None] >= 0, weights, 0.0))
        return found

    def _left_out(self, source: Rows, p: int, column: torch.Tensor) -> torch.Tensor:
        """[targets, sources] what the prediction loses without each source."""
        row = source.select(torch.tensor([p])).scaled(1 / self._from)
        n = len(row.indices)
        if not n:
            return torch.zeros(len(column), 0)
        others = torch.arange(n).expand(n, -1)[~torch.eye(n, dtype=torch.bool)]
        without = Rows(torch.arange(n + 1) * (n - 1), row.indices[others], row.values[others], row.d)
        with torch.inference_mode():
            lost = self._connector(row) - self._connector(without)
        return (lost * self._to)[:, column].T

    def moved(self, here: Here, change: torch.Tensor) -> torch.Tensor:
        source = here.source
        if self._matrix is not None:
            dense = torch.zeros(len(source), source.d)
            dense[source.row_of, source.indices] = change
            out = dense @ self._matrix
        else:
            after = Rows(source.offsets, source.indices, source.values + change, source.d)
            with torch.inference_mode():
                out = self._connector(after.scaled(1 / self._from)) - self._connector(source.scaled(1 / self._from))
            out = out * self._to
        column = self._columns(here.target)
        return torch.where(column >= 0, out[here.target.row_of, column.clamp(min=0)], 0.0)


class ByGradient(Inside):
    """The MLP's own derivative."""

    def __init__(self, mlp: Steps, source: SAE, target: SAE):
        self._mlp, self._source, self._target = mlp, source, target

    def _gradients(self, here: Here) -> torch.Tensor:
        """[nnz of target, d] by active target the gradient of its pre-activation in what the MLP reads."""
        if "gradient" not in here.kept:
            rows = here.target
            found = here.x.new_zeros(len(rows.indices), here.x.shape[1])
            counts = rows.offsets.diff()
            for tokens in counts.argsort(descending=True).split(STEP):  # as many latents at each token of a step
                self._of_some(here, tokens[counts[tokens] > 0], found)
            here.kept["gradient"] = found
        return here.kept["gradient"]

    def _of_some(self, here: Here, tokens: torch.Tensor, found: torch.Tensor) -> None:
        """The gradients of all latents at some tokens, into `found`: once forward, and back latent by latent."""
        if not len(tokens):
            return
        first, counts = here.target.offsets[tokens], here.target.offsets.diff()[tokens]
        with torch.enable_grad():
            x = here.x[tokens].detach().clone().requires_grad_()
            out = self._mlp(x)
            plain = self._target.input_norm == "none"
            read = out if plain else self._target.pre_acts(out)
        for place in range(int(counts.max())):
            here_too = place < counts
            nodes = first[here_too] + place
            latent = here.target.indices[nodes]
            back = torch.zeros_like(read)
            if plain:
                back[here_too] = self._target.W_enc.T[latent]
            else:
                back[here_too.nonzero().flatten(), latent] = 1.0
            (gradient,) = torch.autograd.grad(read, x, back, retain_graph=True)
            found[nodes] = gradient[here_too]

    def _written(self, here: Here) -> torch.Tensor:
        """[nnz of source, d] what each active source writes for each unit of it."""
        units = self._source.units(here.x)
        directions = self._source.W_dec[here.source.indices]
        return directions if units is None else directions * units.scale[here.source.row_of]

    def weights(self, here: Here) -> list[torch.Tensor]:
        gradient, written = self._gradients(here), self._written(here) * here.source.values[:, None]
        return [gradient[_part(here.target, p)] @ written[_part(here.source, p)].T for p in range(len(here.x))]

    def moved(self, here: Here, change: torch.Tensor) -> torch.Tensor:
        gradient, written = self._gradients(here), self._written(here) * change[:, None]
        delta = torch.zeros_like(here.x).index_add_(0, here.source.row_of, written)
        return (gradient * delta[here.target.row_of]).sum(1)


def _part(rows: Rows, p: int) -> slice:
    return slice(int(rows.offsets[p]), int(rows.offsets[p + 1]))
