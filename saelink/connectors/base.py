"""What every connector is: a forward map, its penalised weights and the edges one can read off it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch

from saelink import memory
from saelink.config.schema import ConnectorConfig
from saelink.errors import SaelinkError
from saelink.latents.rows import Rows

ENTRIES = 2**25
"""Entries of a matrix that are looked at in one go: a wide one has gigabytes of them."""


class StrongestEdges(NamedTuple):
    """What leads into one unit: its strongest inputs by magnitude."""

    ids: list[int]
    """Numbers of inputs of the output matrix (see `direct`), or of source latents; the strongest first."""
    weights: list[float]
    """Their weights, with signs."""


class EdgeSums(NamedTuple):
    """Of each target the edges of the output matrix that lead into it."""

    edges: torch.Tensor
    """[d_target] int64: how many,"""
    size: torch.Tensor
    """[d_target] float64: and the sum of their magnitudes."""


class SparsePrediction(NamedTuple):
    """The prediction for n tokens: `rows` [n, d_target] and, on every token, `constant` [d_target]."""

    rows: Rows
    constant: torch.Tensor | None


class SquaredLoss(NamedTuple):
    """scale/2 times the sum of squared errors, plus hidden times the sum of the hidden activations."""

    scale: float
    matching: bool = False
    """For a prediction relu(z) the matching loss, whose gradient in z is relu(z) - y."""
    hidden: float = 0.0


class Connector(torch.nn.Module, ABC):
    """A map from source latents [n, d_source] (sparse rows) to target latents [n, d_target].

    Weights are stored as x @ W takes them: row j of W is what source latent j writes. A connector may explain only
    some of the target SAE's latents: column i of its output is the latent `target_ids[i]`.
    """

    Settings: type[Any] = ConnectorConfig

    relu_output: ClassVar[bool] = False
    """Whether the prediction is relu(z) of what `maps` gives, or z itself."""

    default_solver: ClassVar[str] = "adam"
    """The solver that fits it when none is chosen."""

    target_ids: torch.Tensor
    """[d_target] int64: the target SAE's own number of every column, ascending."""

    def __init__(self, config: Any, d_source: int, target_ids: torch.Tensor):
        super().__init__()
        self.config = config
        self.d_source = d_source
        self.d_target = len(target_ids)
        self.register_buffer("target_ids", target_ids.clone())

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise SaelinkError for a setting that is out of range; most connectors have none that can be."""
        return

    @classmethod
    def shape(cls, config: Any, d_source: int, d_target: int) -> memory.Shape:
        """The sizes of such a connector, without its weights."""
        with torch.device("meta"):
            empty = cls(config, d_source, torch.zeros(d_target))
        weights = sum(parameter.numel() for parameter in empty.parameters())
        return memory.Shape(d_source, d_target, weights, empty.n_hidden, empty.direct)

    @property
    def direct(self) -> int:
        """How many source latents the output matrix reads itself. Its inputs are numbered: these, then hidden units."""
        return 0 if self.n_hidden else self.d_source

    @property
    def n_hidden(self) -> int:
        """How many hidden units there are."""
        return 0

    # ----------------------------------------------------------------------- what a connector file says

    @abstractmethod
    def randomise(self, generator: torch.Generator) -> None:
        """Fill the weights in place; the same generator state gives the same weights."""

    @abstractmethod
    def maps(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor | None]:
        """z [n, d_target], the prediction before its relu if it has one, and the hidden activations [n, d_hidden]."""

    @abstractmethod
    def penalised(self) -> list[tuple[torch.nn.Parameter, float]]:
        """The weights under the L1 penalty by matrix, output last, with what each sum of |weights| is multiplied by."""

    @abstractmethod
    def edges(self, latent: int, n: int) -> StrongestEdges:
        """The n strongest edges into a target latent, from the inputs of the output matrix."""

    def hidden_edges(self, unit: int, n: int) -> StrongestEdges | None:
        """The n strongest edges into a hidden unit; None for a connector without hidden units."""
        return None

    def hidden_penalty(self, c: float) -> float | None:
        """What l1_alpha times the mean l1 norm of the hidden activations is multiplied by; None for no such term."""
        return None

    def sparse_prediction(self, rows: Rows) -> SparsePrediction | None:
        """The prediction without its zeros, for a connector of which most is zero; None for others."""
        return None

    # ----------------------------------------------------------------------- what follows from it

    def forward(self, rows: Rows) -> torch.Tensor:
        """Predicted target latents [n, d_target]."""
        z, _ = self.maps(rows)
        return torch.relu(z) if self.relu_output else z

    def backward(self, rows: Rows, target: Rows, loss: SquaredLoss) -> torch.Tensor:
        """Set every parameter's grad to that of `loss` on these tokens; the sum of squared errors as a scalar.

        Here from `maps` by autograd; a connector may know a shorter way.
        """
        for parameter in self.parameters():
            parameter.grad = None
        z, hidden = self.maps(rows)
        error, total = residual(z.detach(), target, loss, self.relu_output)
        if hidden is not None and loss.hidden:
            torch.autograd.backward([z, hidden], [error, torch.full_like(hidden, loss.hidden)])
        else:
            torch.autograd.backward(z, error)
        return total

    def initialise(self, generator: torch.Generator, warm: Mapping[str, torch.Tensor] | None = None) -> None:
        """Set the weights where a fit starts: `warm` weights of another connector if given, else as `init` says.

        init=zero makes the map zero by its output matrix alone; with all matrices at zero nothing would ever move.
        Biases start at zero. Raises SaelinkError when `warm` does not fit.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.zero_()
                elif warm is not None and (name not in warm or warm[name].shape != parameter.shape):
                    theirs = f"{list(warm[name].shape)}" if name in warm else "no such matrix"
                    raise SaelinkError(
                        f"connector.init={self.config.init}: {name} here is {list(parameter.shape)}, there {theirs}; "
                        "start from a connector of the same shape on the same targets"
                    )
                if warm is not None and name in warm and warm[name].shape == parameter.shape:
                    parameter.copy_(warm[name])
            if warm is None:
                self.randomise(generator)
                if self.config.init == "zero":
                    self.penalised()[-1][0].zero_()

    def rescale(self, sources: torch.Tensor, target: float) -> None:
        """In place the same map in other units: source j comes divided by sources[j], the targets go times `target`.

        Holds for maps whose first and last penalised matrices read the sources and write the targets, and which in
        between are homogeneous, as relu is.
        """
        weights = [weight for weight, _ in self.penalised()]
        biases = [parameter for parameter in self.parameters() if parameter.dim() == 1]
        weights[0].mul_(sources[:, None].to(weights[0]))
        weights[-1].mul_(target)
        if self.config.bias and biases:
            biases[-1].mul_(target)

    def stuck(self) -> bool:
        """Whether no gradient can move it any more: several matrices, all of them zero, and nothing beside them."""
        weights = [weight for weight, _ in self.penalised()]
        alone = len(weights) > 1 and len(weights) == len(list(self.parameters()))
        return alone and not any(bool(weight.any()) for weight in weights)

    def column(self, latent: int) -> int:
        """The column of a target latent."""
        place = int(torch.searchsorted(self.target_ids, latent))
        assert self.target_ids[place] == latent, f"{latent} is not among this connector's targets"
        return place

    def l1(self) -> float:
        """The penalty's value for l1_alpha = 1: mean over output rows of the sum of |weights|."""
        with torch.no_grad():
            parts = ((scale, part) for weight, scale in self.penalised() for part in pieces_of(weight))
            return sum(scale * part.double().abs().sum().item() for scale, part in parts)

    def n_edges(self, threshold: float = 0.0) -> int:
        """Number of weights with magnitude above `threshold`."""
        with torch.no_grad():
            parts = (part for weight, _ in self.penalised() for part in pieces_of(weight))
            return sum(int((part.abs() > threshold).sum()) for part in parts)

    def edges_by_target(self) -> Rows:
        """[d_target, direct + n_hidden]: by target the inputs of the output matrix that lead into it, with weights."""
        return Rows.from_dense(self.output_weight().T).to("cpu")

    def edge_sums(self) -> EdgeSums:
        """By target the number of edges of the output matrix, and the sum of their magnitudes."""
        parts = pieces_of(self.output_weight())
        count = sum((part != 0).sum(0) for part in parts)
        size = sum(part.abs().double().sum(0) for part in parts)
        assert isinstance(count, torch.Tensor) and isinstance(size, torch.Tensor)
        return EdgeSums(count, size)

    def output_weight(self) -> torch.Tensor:
        """The matrix whose column i leads into target i: [direct + n_hidden, d_target]."""
        return self.penalised()[-1][0].detach()


def pieces_of(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The matrix in groups of rows of at most about ENTRIES entries; a list of weights in parts."""
    rows = max(ENTRIES // max(weight.shape[1:].numel(), 1), 1)
    return tuple(weight[first : first + rows] for first in range(0, len(weight), rows))


def strongest(column: torch.Tensor, n: int) -> StrongestEdges:
    """The n entries of largest magnitude, zeros left out, ties by id."""
    order = column.abs().sort(descending=True, stable=True).indices[:n]
    kept = [int(i) for i in order if column[i] != 0]
    return StrongestEdges(kept, [column[i].item() for i in kept])


def residual(z: torch.Tensor, target: Rows, loss: SquaredLoss, relu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss's gradient in z [n, d_target], and the sum of squared errors. The target stays sparse."""
    error = torch.relu(z) if relu else z.clone()
    error.view(-1).index_add_(0, target.row_of * target.d + target.indices, target.values, alpha=-1)
    total = torch.dot(error.view(-1), error.view(-1))
    if relu and not loss.matching:
        error.mul_(z > 0)  # the matching loss differs by lacking this mask
    return error.mul_(loss.scale), total


def uniform(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Fill x @ W's W [fan_in, fan_out] uniformly in +-1/sqrt(fan_in): a linear layer's usual start."""
    with torch.no_grad():
        weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) / weight.shape[0] ** 0.5)
