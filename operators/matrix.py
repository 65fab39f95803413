"""Operators written out as matrices, dense or sparse."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from recon.operators.base import LinearOperator
from recon.operators.linear_map import linear_map
from recon.space import Space


class Matrix(LinearOperator):
    """``y = M x``, images taken as vectors in the order of ``reshape(-1)``.

    Parameters
    ----------
    matrix
        ``(m, n)``, a tensor or a ``CSR``; complex ones want a complex range.
    domain, range
        Of n and of m numbers.

    Values are used in the precision of the input.
    """

    matrix: Tensor
    sparse: "CSR | None"

    def __init__(self, matrix: "Tensor | CSR", domain: Space,
                 range: Space) -> None:  # noqa: A002 the field's word
        super().__init__(domain, range)
        shape = tuple(matrix.shape)
        want = (math.prod(range.shape), math.prod(domain.shape))
        if shape != want:
            raise ValueError(f"Matrix: want {want} for {self.label()}, got {shape}")
        self.sparse = matrix if isinstance(matrix, CSR) else None
        self.register_buffer("matrix", None if isinstance(matrix, CSR) else matrix)

    def forward(self, x: Tensor) -> Tensor:
        items = x.reshape(-1, math.prod(self.domain.shape))
        y = linear_map(items, self._times, self._times_adjoint)
        return y.reshape(*self.domain.batch_of(x), *self.range.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        items = y.reshape(-1, math.prod(self.range.shape))
        x = linear_map(items, self._times_adjoint, self._times)
        return x.reshape(*self.range.batch_of(y), *self.domain.shape)

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


class CSR(nn.Module):
    """A sparse matrix and its adjoint by rows, as plain buffers.

    Sparse tensors survive neither ``deepcopy`` nor ``state_dict`` and are made when first wanted.
    Both are stored, since multiplying with a transposed view is many times slower; 32-bit indices
    are several times faster than 64-bit ones.
    """

    start: Tensor
    column: Tensor
    value: Tensor
    start_t: Tensor
    column_t: Tensor
    value_t: Tensor

    def __init__(self, matrix: Any) -> None:
        super().__init__()
        rows = matrix.tocsr()
        rows.sum_duplicates()
        columns = rows.conj().T.tocsr()
        self.shape: tuple[int, int] = (int(rows.shape[0]), int(rows.shape[1]))
        if rows.nnz > torch.iinfo(torch.int32).max:
            raise ValueError(f"CSR: want at most 2**31 - 1 entries, got {rows.nnz}")
        for suffix, m in (("", rows), ("_t", columns)):
            values = torch.from_numpy(m.data.copy())
            if not (values.is_floating_point() or values.is_complex()):
                values = values.to(torch.get_default_dtype())
            self.register_buffer("start" + suffix, torch.from_numpy(m.indptr.astype("int32")))
            self.register_buffer("column" + suffix, torch.from_numpy(m.indices.astype("int32")))
            self.register_buffer("value" + suffix, values)
        self._built: dict[tuple[bool, bool, torch.dtype], tuple[tuple[object, ...], Tensor]] = {}

    def multiply(self, dense: Tensor, adjoint: bool = False) -> Tensor:
        """``M @ dense`` or ``M^H @ dense`` for ``(n, k)`` columns, real or complex."""
        real = dense.dtype.to_real()
        parts = [self._csr(adjoint, False, real)]
        if self.value.is_complex():
            parts.append(self._csr(adjoint, True, real))
        # products exist for one kind of number: real and imaginary parts are columns
        columns = torch.view_as_real(dense.resolve_conj()).flatten(1) if dense.is_complex() else (
            dense)
        products = [part @ columns.contiguous() for part in parts]
        if dense.is_complex():
            products = [torch.view_as_complex(p.reshape(len(p), -1, 2)) for p in products]
        if len(products) == 1:
            return products[0]
        return torch.complex(*products) if not dense.is_complex() else (
            products[0] + 1j * products[1])

    def _csr(self, adjoint: bool, imaginary: bool, dtype: torch.dtype) -> Tensor:
        start, column, value = (self.start_t, self.column_t, self.value_t) if adjoint else (
            self.start, self.column, self.value)
        # load_state_dict and callers write into the buffers, which raises their version
        stamp = (value.data_ptr(), value.device, *(
            None if t.is_inference() else t._version for t in (start, column, value)))
        key = (adjoint, imaginary, dtype)
        kept = self._built.get(key)
        if kept is None or kept[0] != stamp:
            if value.is_complex():
                value = value.imag if imaginary else value.real
            shape = self.shape[::-1] if adjoint else self.shape
            with warnings.catch_warnings():
                # torch announces once per process that sparse tensors are in beta
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
                built = torch.sparse_csr_tensor(start, column, value.to(dtype).contiguous(), shape,
                                                check_invariants=False)
            kept = self._built[key] = stamp, built
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_built": {}}


def _mixed(matrix: Tensor, columns: Tensor) -> Tensor:
    """``matrix @ columns`` where either may be complex."""
    if matrix.is_complex() == columns.is_complex():
        return matrix @ columns
    if matrix.is_complex():
        return torch.complex(matrix.real @ columns, matrix.imag @ columns)
    return torch.complex(matrix @ columns.real, matrix @ columns.imag)
