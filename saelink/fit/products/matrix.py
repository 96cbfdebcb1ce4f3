"""Sparse matrices of products, and all that a lasso needs of them."""

# torch leaves arguments of some of its methods without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from saelink.latents.rows import Rows


class SparseMatrix(NamedTuple):
    """A matrix by its rows, columns ascending in each."""

    offsets: torch.Tensor
    """[n + 1] int64"""
    indices: torch.Tensor
    """[pairs] int32"""
    values: torch.Tensor
    """[pairs] float32"""

    def arrays(self) -> tuple[Any, Any, Any]:
        return self.offsets.numpy(), self.indices.numpy(), self.values.numpy()

    def rows(self, ids: torch.Tensor) -> SparseMatrix:
        """The rows `ids`, in this order."""
        picked = Rows(self.offsets, self.indices, self.values, 0).select(ids)
        return SparseMatrix(picked.offsets, picked.indices, picked.values)

    def dense(self, d: int) -> torch.Tensor:
        """[n, d] float64."""
        return Rows(self.offsets, self.indices.long(), self.values.double(), d).dense()


class SparseGram(NamedTuple):
    """Means over the N training tokens, in the units the connector sees."""

    xx: SparseMatrix
    """By source latent its products with all source latents [d_source, d_source]"""
    yx: SparseMatrix
    """and by target latent with all source latents [d_target, d_source]."""
    yy: torch.Tensor
    """[d_target] float64, of y^2"""
    x: torch.Tensor
    """[d_source] float64"""
    y: torch.Tensor
    """[d_target] float64"""

    def explain(self, target_ids: torch.Tensor) -> SparseGram:
        """Only these target latents, in this order."""
        return self._replace(yx=self.yx.rows(target_ids), yy=self.yy[target_ids], y=self.y[target_ids])

    def tensors(self) -> dict[str, torch.Tensor]:
        both = {"xx": self.xx, "yx": self.yx}
        parts = {f"{name}.{part}": tensor for name, matrix in both.items() for part, tensor in matrix._asdict().items()}
        return {**parts, "yy": self.yy, "x": self.x, "y": self.y}

    @staticmethod
    def of_tensors(tensors: dict[str, torch.Tensor]) -> SparseGram:
        xx, yx = (SparseMatrix(*(tensors[f"{name}.{part}"] for part in SparseMatrix._fields)) for name in ("xx", "yx"))
        return SparseGram(xx, yx, tensors["yy"], tensors["x"], tensors["y"])
