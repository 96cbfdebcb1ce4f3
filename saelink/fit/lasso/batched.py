"""The lasso of many targets on sparse products with a block of targets stepped together: a GPU's way."""

# torch leaves arguments of some of its methods without types. Matrices have capital names.
# pyright: reportUnknownMemberType=false, reportConstantRedefinition=false

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import torch

from saelink.fit.lasso.coordinate import unheard
from saelink.fit.lasso.sparse import SparseLasso, SparseSolution
from saelink.fit.products.matrix import SparseGram, SparseMatrix
from saelink.latents.rows import offsets_of

BLOCK_ENTRIES = 2**24
"""Entries of the gradient [targets, sources] of one block of targets."""

JOINING = 64
"""Sources of a target that join its working set in a round, the most violating first."""

PAIRS = 2**25
"""Pairs of products that are read at a time."""

STEPS = 50
"""Proximal steps between two looks at the gradient over all sources."""

RIDGE = 1e-10
"""As `kernels.sparse_lasso.RIDGE`."""


class BatchedLasso(SparseLasso):
    """`SparseLasso` by proximal gradient steps on the working sets of a block of targets, on any device.

    The steps are `DenseLasso`'s, in float64, target by target on its own sources; a target goes down its own path of
    penalties. The products stay sparse; of them only those among a target's working set are laid out densely.
    """

    def __init__(self, products: SparseGram, centred: bool = False, positive: bool = False, device: str = "cpu"):
        super().__init__(products, centred, positive)
        self.device = device
        self.xx = SparseMatrix(*(tensor.to(device) for tensor in products.xx))
        self.x = products.x.to(device)
        """[p] the sources' means."""

    def solve(
        self, lam: float, tolerance: float, max_sweeps: int, debias: bool = False,
        done: Callable[[int], object] = unheard,
    ) -> SparseSolution:  # fmt: skip
        """As `SparseLasso.solve`; a sweep is a step of all of a target's weights."""
        assert lam > 0
        p, m = len(self.x), len(self.yy)
        step = max(BLOCK_ENTRIES // p, 1)
        parts: list[tuple[torch.Tensor, ...]] = []
        for first in range(0, m, step):
            targets = torch.arange(first, min(first + step, m))
            block = _Block(self, targets, lam, tolerance)
            block.descend(max_sweeps)
            parts.append(tuple(tensor.cpu() for tensor in block.solution(debias)))
            done(len(targets))
        lengths, source, weight, gaps, errors = (torch.cat(each) for each in zip(*parts, strict=True))
        return SparseSolution(offsets_of(lengths), source, weight, gaps, errors)

    def rows_of(self, sources: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of X'X the rows of these sources [n], one after another: which of the n, column, product [pairs]."""
        starts = self.xx.offsets[sources]
        lengths = self.xx.offsets[sources + 1] - starts
        place = torch.repeat_interleave(torch.arange(len(sources), device=self.device), lengths)
        pairs = torch.arange(len(place), device=self.device) - (lengths.cumsum(0) - lengths)[place] + starts[place]
        return place, self.xx.indices[pairs].long(), self.xx.values[pairs].double()

    def row_lengths(self, sources: torch.Tensor) -> torch.Tensor:
        return self.xx.offsets[sources + 1] - self.xx.offsets[sources]


class _Block:
    """Some targets while they are solved. Their working sets [b, s] are padded: where `real` is false."""

    def __init__(self, lasso: BatchedLasso, targets: torch.Tensor, lam: float, tolerance: float):
        self.lasso, self.lam, device = lasso, lam, lasso.device
        p, b = len(lasso.x), len(targets)
        products = lasso.products.yx.rows(targets)
        row = torch.repeat_interleave(torch.arange(b), products.offsets.diff())
        c = torch.zeros(b, p, dtype=torch.float64)
        c[row, products.indices.long()] = products.values.double()
        self.c = c.to(device)
        if lasso.centred:
            self.c -= lasso.products.y[targets].to(device)[:, None] * lasso.x
        self.yy = lasso.yy[targets].to(device)
        self.allowed = tolerance * self.yy / 2
        self.q = self.c.clone()
        self.chosen = torch.zeros(b, 0, dtype=torch.int64, device=device)
        self.real = torch.zeros(b, 0, dtype=torch.bool, device=device)
        self.joined = torch.zeros(b, p, dtype=torch.bool, device=device)
        self.w = torch.zeros(b, 0, dtype=torch.float64, device=device)
        self.G = torch.zeros(b, 0, 0, dtype=torch.float64, device=device)

    def _size(self, q: torch.Tensor) -> torch.Tensor:
        """By how much a gradient asks for a weight."""
        return q.clamp(min=0) if self.lasso.positive else q.abs()

    def _at_chosen(self, matrix: torch.Tensor) -> torch.Tensor:
        """[b, s] of a matrix [b, p], zero where the working sets are padded."""
        return torch.where(self.real, matrix.gather(1, self.chosen), 0.0)

    def gaps(self) -> torch.Tensor:
        """[b] duality gaps over all sources, as `gaps_of`."""
        wc, wq = (self.w * self._at_chosen(self.c)).sum(1), (self.w * self._at_chosen(self.q)).sum(1)
        rr = self.yy - wc - wq
        scale = (self.lam / self._size(self.q).amax(1).clamp(min=1e-300)).clamp(max=1)
        primal = rr / 2 + self.lam * self.w.abs().sum(1)
        return primal - (scale * (self.yy - wc) - scale.square() * rr / 2)

    def descend(self, max_sweeps: int) -> None:
        """All targets down their paths to the wanted penalty, until each gap is small enough or the sweeps are done."""
        from saelink.kernels.lasso import KNOT, KNOT_SLACK

        top = self._size(self.q).amax(1)
        going = (top > self.lam) & (self.gaps() > self.allowed)
        level = KNOT ** (top.clamp(min=1e-300).log() / math.log(KNOT)).floor()
        level = torch.where(going, (level * KNOT).clamp(min=self.lam), self.lam)
        for _ in range(0, max_sweeps, STEPS):
            if not going.any():
                return
            last = level <= self.lam
            cut = level * torch.where(last, 1.0, 1 + KNOT_SLACK)
            self._join(self._size(self.q) - torch.where(going, cut, torch.inf)[:, None])
            self._step(torch.where(going, level, 0.0), going)
            size = self._size(self.q)
            outside = (torch.where(self.joined, 0.0, size).amax(1) - cut).clamp(min=0)
            off = self._residual(level).amax(1) if self.w.shape[1] else torch.zeros_like(level)
            settled = (outside == 0) & (off <= KNOT_SLACK * level) & ~last
            going &= ~(last & (self.gaps() <= self.allowed))
            level = torch.where(settled, (level * KNOT).clamp(min=self.lam), level)

    def _residual(self, level: torch.Tensor) -> torch.Tensor:
        """[b, s] how far each weight is from its optimality condition at its target's penalty."""
        q, bound = self._at_chosen(self.q), level[:, None]
        at_zero = (self._size(q) - bound).clamp(min=0)
        return torch.where(self.real, torch.where(self.w == 0, at_zero, (q - bound * self.w.sign()).abs()), 0.0)

    def _join(self, excess: torch.Tensor) -> None:
        """Take in the sources [b, p] whose excess is above zero, the JOINING largest of each target."""
        excess = torch.where(self.joined, -torch.inf, excess)
        found = excess.topk(min(JOINING, excess.shape[1]), dim=1)
        width = int((found.values > 0).sum(1).amax())
        if not width:
            return
        new, is_new = found.indices[:, :width], found.values[:, :width] > 0
        before = self.chosen.shape[1]
        self.chosen, self.real = torch.cat([self.chosen, new], 1), torch.cat([self.real, is_new], 1)
        self.joined[is_new.nonzero()[:, 0], new[is_new]] = True
        self.w = torch.nn.functional.pad(self.w, (0, width))
        self.G = torch.nn.functional.pad(self.G, (0, width, 0, width))
        place = torch.full(self.q.shape, -1, dtype=torch.int32, device=self.q.device)
        target, at = self.real.nonzero(as_tuple=True)
        place[target, self.chosen[target, at]] = at.int()
        target, at = is_new.nonzero(as_tuple=True)
        for part in self._portions(new[target, at]):
            entry, column, product = self.lasso.rows_of(new[target[part], at[part]])
            mine, row = target[part][entry], before + at[part][entry]
            column = place[mine, column].long()
            met = column >= 0
            mine, row, column, product = mine[met], row[met], column[met], product[met]
            self.G[mine, row, column] = product
            self.G[mine, column, row] = product
        if self.lasso.centred:
            x = torch.where(self.real, self.lasso.x[self.chosen], 0.0)
            both = self.real[:, :, None] & self.real[:, None, :]
            both[:, :before, :before] = False
            self.G -= torch.where(both, x[:, :, None] * x[:, None, :], 0.0)
        self._rate = self._rates()

    def _portions(self, sources: torch.Tensor) -> list[slice]:
        """Runs of these sources [n] that have about PAIRS products each."""
        bounds = self.lasso.row_lengths(sources).cumsum(0).div(PAIRS, rounding_mode="floor")
        ends = cast("Any", torch).unique_consecutive(bounds, return_counts=True)[1].cumsum(0).tolist()
        return [slice(first, last) for first, last in itertools.pairwise([0, *ends])]

    def _rates(self) -> torch.Tensor:
        """[b, s] the step of each weight: one over the largest eigenvalue of G in the metric of its diagonal."""
        diagonal = self.G.diagonal(dim1=1, dim2=2).clamp(min=0)
        root = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
        vector = self.real.double()
        norm = vector.square().sum(1, keepdim=True).sqrt()
        for _ in range(30):
            vector = _times(self.G, vector / norm.clamp(min=1e-300) / root) / root
            norm = vector.square().sum(1, keepdim=True).sqrt()
        return torch.where(self.real & (diagonal > 0), 1 / (1.1 * norm.clamp(min=1e-300) * root.square()), 0.0)

    def _step(self, level: torch.Tensor, going: torch.Tensor) -> None:
        """STEPS steps of the targets that are `going`, each at its own penalty; the gradient follows."""
        if not self.w.shape[1]:
            return
        rate, bound = self._rate * going[:, None], level[:, None] * self._rate
        start, step = self.w, rate * self._at_chosen(self.q)
        D = torch.zeros_like(start)
        ahead, t = D, torch.ones(len(D), 1, dtype=D.dtype, device=D.device)
        for _ in range(STEPS):
            z = start + (ahead + step - rate * _times(self.G, ahead))
            new = z - (z.clamp(max=bound) if self.lasso.positive else z.clamp(-bound, bound))
            new = torch.where(going[:, None], new, start) - start
            uphill = ((ahead - new) * (new - D) / rate.clamp(min=1e-300)).sum(1, keepdim=True) > 0
            t = torch.where(uphill, 1.0, t)
            later = (1 + (1 + 4 * t.square()).sqrt()) / 2
            ahead = new + torch.where(uphill, 0.0, (t - 1) / later) * (new - D)
            D, t = new, later
        self.w = torch.where(start + D == 0, 0.0, start + D)
        self._follow(self.q, self.w - start)

    def _follow(self, q: torch.Tensor, change: torch.Tensor) -> None:
        """Take from the gradient q [b, p], in place, what a change of the weights [b, s] does to it."""
        target, at = change.nonzero(as_tuple=True)
        sources, changes = self.chosen[target, at], change[target, at]
        for part in self._portions(sources):
            entry, column, product = self.lasso.rows_of(sources[part])
            index = target[part][entry] * q.shape[1] + column
            q.view(-1).index_add_(0, index, product * changes[part][entry], alpha=-1)
        if self.lasso.centred:
            q += (change * self.lasso.x[self.chosen]).sum(1, keepdim=True) * self.lasso.x

    def solution(self, debias: bool) -> tuple[torch.Tensor, ...]:
        """Edges by target [b], their sources and weights [edges], the targets' gaps and squared errors [b]."""
        self.q = self.c.clone()  # without what was rounded on the way
        self._follow(self.q, self.w)
        gaps = self.gaps().clamp(min=0)
        w = self._refitted() if debias and self.w.shape[1] else self.w
        c = self._at_chosen(self.c)
        error = self.yy - 2 * (w * c).sum(1) + (w * _times(self.G, w)).sum(1)
        order = torch.where(w != 0, self.chosen, self.q.shape[1]).argsort(dim=1, stable=True)
        chosen, w = self.chosen.gather(1, order), w.gather(1, order)
        return (w != 0).sum(1), chosen[w != 0], w[w != 0], gaps, error

    def _refitted(self) -> torch.Tensor:
        """[b, s] least squares on each target's support."""
        support = self.w != 0
        both = support[:, :, None] & support[:, None, :]
        eye = torch.eye(support.shape[1], dtype=self.G.dtype, device=self.G.device)
        diagonal = torch.where(support, self.G.diagonal(dim1=1, dim2=2), 0.0)
        ridge = RIDGE * diagonal.sum(1) / support.sum(1).clamp(min=1)
        G = torch.where(both, self.G, 0.0)
        G = G + eye * torch.where(support, ridge[:, None], 1.0)[:, None, :]
        c = torch.where(support, self._at_chosen(self.c), 0.0)
        return torch.where(support, cast("torch.Tensor", torch.linalg.solve(G, c)), 0.0)


def _times(G: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """[b, s]: of every target its own matrix [s, s] times its vector."""
    return torch.bmm(G, w[:, :, None]).squeeze(2)
