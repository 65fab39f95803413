"""Operators written out as matrices, dense or sparse."""

import math

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.linear_map import Map, linear_map
from recon.operators.sparse import SparsePair
from recon.space import Space


class Matrix(LinearOperator):
    """``y = M x``, images taken as vectors in the order of ``reshape(-1)``.

    Parameters
    ----------
    matrix
        ``(m, n)``, a tensor or a ``SparsePair``; complex ones want a complex range.
    domain, range
        Of n and of m numbers.

    Values are used in the precision of the input. A dense matrix may require gradients.
    """

    items = ()
    matrix: Tensor
    sparse: SparsePair | None

    def __init__(self, matrix: Tensor | SparsePair, domain: Space,
                 range: Space) -> None:  # noqa: A002 the field's word
        super().__init__(domain, range)
        shape = tuple(matrix.shape)
        want = (math.prod(range.shape), math.prod(domain.shape))
        if shape != want:
            raise ValueError(f"Matrix: want {want} for {self.label()}, got {shape}")
        self.sparse = matrix if isinstance(matrix, SparsePair) else None
        self.register_buffer("matrix", None if isinstance(matrix, SparsePair) else matrix)

    def forward(self, x: Tensor) -> Tensor:
        items = x.reshape(-1, math.prod(self.domain.shape))
        y = self._mapped(items, self._times, self._times_adjoint)
        return y.reshape(*self.domain.batch_of(x), *self.range.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        items = y.reshape(-1, math.prod(self.range.shape))
        x = self._mapped(items, self._times_adjoint, self._times)
        return x.reshape(*self.range.batch_of(y), *self.domain.shape)

    def _mapped(self, items: Tensor, apply: Map, adjoint: Map) -> Tensor:
        if self.sparse is None and self.matrix.requires_grad:
            return apply(items)  # recorded as it is, for the gradient of the matrix
        return linear_map(items, apply, adjoint)

    def _times(self, x: Tensor) -> Tensor:
        return self._product(x, adjoint=False, kind=self.range)

    def _times_adjoint(self, y: Tensor) -> Tensor:
        return self._product(y, adjoint=True, kind=self.domain)

    def _product(self, items: Tensor, adjoint: bool, kind: Space) -> Tensor:
        if self.sparse is not None:
            found = self.sparse.multiply(items.T, adjoint).T
        else:
            matrix = self.matrix.mH if adjoint else self.matrix
            dtype = items.dtype.to_complex() if matrix.is_complex() else items.dtype.to_real()
            found = _mixed(matrix.to(items.device, dtype), items.T).T
        if found.is_complex() and not kind.is_complex:  # the adjoint of a map from real to complex
            return found.real.contiguous()
        return found.to(items.dtype.to_complex()) if kind.is_complex else found


def _mixed(matrix: Tensor, columns: Tensor) -> Tensor:
    """``matrix @ columns`` where either may be complex."""
    if matrix.is_complex() == columns.is_complex():
        return matrix @ columns
    if matrix.is_complex():
        return torch.complex(matrix.real @ columns, matrix.imag @ columns)
    return torch.complex(matrix @ columns.real, matrix @ columns.imag)
