"""Matrices and linear operators of SciPy."""

from typing import Any

import numpy as np
import torch

from recon.operators.base import LinearOperator
from recon.operators.foreign import Array, Foreign, through_numpy
from recon.operators.matrix import Matrix
from recon.operators.sparse import SparsePair, rows_of
from recon.space import Space

__all__ = ["from_scipy"]


def from_scipy(operator: Any, domain: Space | None = None,
               range: Space | None = None) -> LinearOperator:  # noqa: A002 the field's word
    """A SciPy sparse matrix or ``LinearOperator``, or a NumPy matrix, ``(m, n)``.

    ``domain`` and ``range`` hold n and m numbers, in the order of ``reshape(-1)``; without them
    ``(1, n)`` and ``(1, m)``, real or complex as the matrix is. A sparse matrix becomes buffers and
    its products torch's, both ways by rows, for a batch at once, on any device; a dense one a
    buffer. A ``LinearOperator`` stays in SciPy: its ``matmat`` and ``rmatmat`` see a batch as
    columns (SciPy's own loop over them, where they are not written), on the CPU.

    Examples
    --------
    >>> import scipy.sparse
    >>> A = from_scipy(scipy.sparse.diags_array([2.0, 0.0, 1.0, 3.0]), Space((1, 2, 2)),
    ...                Space((1, 2, 2)))
    """
    from scipy.sparse import issparse
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    is_array = isinstance(operator, np.ndarray)
    if not (issparse(operator) or is_array or isinstance(operator, ScipyOperator)):
        raise TypeError("from_scipy: want a sparse matrix, a NumPy matrix or a "
                        f"scipy.sparse.linalg.LinearOperator, got {type(operator).__name__}")
    if len(operator.shape) != 2:
        raise ValueError(f"from_scipy: want a matrix (m, n), got {operator.shape}")
    m, n = operator.shape
    kind = torch.complex64 if np.issubdtype(operator.dtype, np.complexfloating) else torch.float32
    domain = Space((1, n), kind) if domain is None else domain
    range = Space((1, m), kind) if range is None else range  # noqa: A001 the field's word
    for name, space, size in (("domain", domain, n), ("range", range, m)):
        if int(np.prod(space.shape)) != size:
            raise ValueError(f"from_scipy: want a {name} of {size} numbers for a matrix {(m, n)}, "
                             f"got {space.shape}")
    if kind.is_complex and not range.is_complex:
        raise TypeError(f"from_scipy: a complex matrix wants a complex range, got {range.dtype}")
    if domain.is_complex and not range.is_complex:
        raise TypeError("from_scipy: a complex domain wants a complex range")
    if isinstance(operator, ScipyOperator):
        return _in_scipy(operator, domain, range)
    values = operator.data if issparse(operator) else operator
    if not np.isfinite(values).all():
        raise ValueError("from_scipy: want finite entries, got NaN or infinity")
    return Matrix(SparsePair(rows_of(operator), n, saved=True) if issparse(operator) else
                  torch.from_numpy(np.require(operator, requirements=["C", "W"])), domain, range)


def _in_scipy(operator: Any, domain: Space, range: Space) -> LinearOperator:  # noqa: A002
    def forward(items: Array) -> Array:
        return operator.matmat(items.reshape(len(items), -1).T).T.reshape(-1, *range.shape)

    def adjoint(items: Array) -> Array:
        return operator.rmatmat(items.reshape(len(items), -1).T).T.reshape(-1, *domain.shape)

    return Foreign(through_numpy("from_scipy", forward, range, batched=True),
                   through_numpy("from_scipy", adjoint, domain, batched=True, real_part=True),
                   domain, range)
