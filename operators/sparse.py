"""Sparse matrices stored by rows, each beside its adjoint, for products with dense columns."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

# On a CPU, MKL's product with more single-precision columns takes 2 to 5 times embedding_bag's.
_FEW = 8


class Rows(NamedTuple):
    """A sparse matrix by rows: entries of row r stand at ``start[r]:start[r + 1]``."""

    start: Tensor  # (rows + 1,) int64
    column: Tensor  # (entries,) int32
    value: Tensor  # (entries,)


def rows_of(matrix: Any) -> Rows:
    """A SciPy sparse matrix in any format, entries at the same place added up.

    Integers and booleans become the default floating dtype.
    """
    rows = matrix.tocsr(copy=True)
    rows.sum_duplicates()
    values = torch.from_numpy(rows.data)
    if not (values.is_floating_point() or values.is_complex()):
        values = values.to(torch.get_default_dtype())
    return Rows(torch.from_numpy(rows.indptr.astype("int64")),
                torch.from_numpy(rows.indices.astype("int32")), values)


class SparsePair(nn.Module):
    """A sparse matrix and its adjoint, both by rows, for products with dense columns.

    The adjoint is stored because multiplying with a transposed view is many times slower. Indices
    and values are plain buffers, because sparse tensors survive neither ``deepcopy`` nor
    ``state_dict``; those are made when first wanted. Values of single or double precision, real or
    complex, are used in the precision of the operand, so A and A^H have the same weights in each.

    Parameters
    ----------
    rows
        Of the matrix, ``len(rows.start) - 1`` of them.
    n_columns
        Of the matrix.
    saved
        Whether the buffers belong to ``state_dict``: not where they are computed from a geometry.

    Raises ValueError for more entries than 32-bit indices count: 64-bit ones are up to three
    times slower.
    """

    start: Tensor
    column: Tensor
    value: Tensor
    start_t: Tensor
    column_t: Tensor
    value_t: Tensor

    def __init__(self, rows: Rows, n_columns: int, saved: bool = False) -> None:
        super().__init__()
        # scipy's transposition is one counting sort; torch's sorts 64-bit keys
        from scipy.sparse import csr_matrix

        entries = len(rows.value)
        if entries > torch.iinfo(torch.int32).max:
            raise ValueError(f"sparse matrix: want at most 2**31 - 1 entries, got {entries}: use "
                             "fewer views or samples, or a smaller grid")
        self.shape = (len(rows.start) - 1, n_columns)
        matrix = csr_matrix(
            (rows.value.numpy(), rows.column.numpy(), rows.start.to(torch.int32).numpy()),
            shape=self.shape,
        )
        transposed = matrix.tocsc()
        if not matrix.has_sorted_indices:
            matrix = transposed.tocsr()  # sorts by a second counting sort
        for suffix, m, data in (("", matrix, matrix.data),
                                ("_t", transposed, transposed.data.conj())):
            for name, array in (("start", m.indptr), ("column", m.indices), ("value", data)):
                self.register_buffer(name + suffix, torch.from_numpy(array), persistent=saved)
        self._built: dict[tuple[bool, bool, torch.dtype], tuple[tuple[object, ...], Tensor]] = {}

    def multiply(self, dense: Tensor, adjoint: bool = False) -> Tensor:
        """``A @ dense`` or ``A^H @ dense`` for ``(n, k)`` columns or one ``(n,)``."""
        real = dense.dtype.to_real()
        parts = [self._csr(adjoint, False, real)]
        if self.value.is_complex():
            parts.append(self._csr(adjoint, True, real))
        # products exist for one kind of number: real and imaginary parts are columns
        columns = torch.view_as_real(dense.resolve_conj()).flatten(1) if dense.is_complex() else (
            dense)
        products = [_product(part, columns.contiguous()) for part in parts]
        if dense.is_complex():
            products = [torch.view_as_complex(p.reshape(len(p), *dense.shape[1:], 2))
                        for p in products]
        if len(products) == 1:
            return products[0]
        return products[0] + 1j * products[1] if dense.is_complex() else torch.complex(*products)

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._built.clear()
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("value", "value_t"):
            moved, was = self._buffers[name], kept[name]
            if moved is not None and (moved.is_complex() != was.is_complex()
                                      or moved.dtype.to_real() not in (torch.float32,
                                                                       torch.float64)):
                # half precision would spoil the weights, and no product exists in it
                self._buffers[name] = was.to(moved.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_built": {}}


def _product(matrix: Tensor, columns: Tensor) -> Tensor:
    many = columns.ndim == 2 and columns.shape[1] > _FEW
    if many and columns.is_cpu and columns.dtype == torch.float32:
        return embedding_bag(matrix.col_indices(), columns, matrix.crow_indices(), mode="sum",
                             per_sample_weights=matrix.values(), include_last_offset=True)
    return matrix @ columns
