"""Compressed sensing with rows of the Hadamard matrix, as of a single-pixel camera."""

import math

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.closed_form import solved_by_modes
from recon.space import Space

_RADIX = 4  # bits of the transform that one small matrix product does


class Hadamard(LinearOperator):
    """``y[i] = sum_j H[rows[i], j] signs[j] x[j] / sqrt(n)`` over the pixels ``j`` of a channel.

    ``H`` is Sylvester's matrix of order n, that of ``scipy.linalg.hadamard``, entries 1 and -1, and
    n the number of pixels, a power of two. It is applied in ``O(n log n)``. Rows are orthonormal:
    ``A A^H = I``, the norm is 1 and ``solve`` a closed form.

    Parameters
    ----------
    rows
        Which patterns are shown, ``(measurements,)``, none twice. ``torch.randperm(n)[:m]`` are
        random; ``sequency(n)[:m]`` the m with the fewest changes of sign.
    space
        The image space, real or complex, its spatial sizes multiplying to a power of two.
    signs
        1 or -1 for each pixel, ``space.shape[1:]``, which spreads smooth images over all patterns
        (a scrambled Hadamard ensemble); None for none.

    Measurements are ``(*batch, channel, measurements)``.

    Examples
    --------
    >>> A = Hadamard(sequency(64)[:16], Space((1, 8, 8)))
    >>> A(torch.ones(1, 8, 8)).shape
    torch.Size([1, 16])
    """

    items = ()
    rows: Tensor
    signs: Tensor | None

    def __init__(self, rows: Tensor, space: Space, signs: Tensor | None = None) -> None:
        rows, n = torch.as_tensor(rows), math.prod(space.shape[1:])
        if n & (n - 1) or len(space.shape) < 2:
            raise ValueError(f"Hadamard: want a number of pixels that is a power of two, got {n} "
                             f"of {space.shape}: crop or pad the image")
        if rows.ndim != 1 or rows.is_floating_point() or rows.is_complex() or not len(rows):
            raise ValueError("Hadamard: want rows as whole numbers (measurements,), "
                             f"got {rows.dtype} {tuple(rows.shape)}")
        if int(rows.min()) < 0 or int(rows.max()) >= n:
            raise ValueError(f"Hadamard: want rows from 0 to {n - 1}, "
                             f"got {int(rows.min())} to {int(rows.max())}")
        if len(torch.unique(rows)) != len(rows):
            raise ValueError("Hadamard: want each row once: "
                             f"{len(rows) - len(torch.unique(rows))} of {len(rows)} repeat others")
        if signs is not None:
            signs = torch.as_tensor(signs)
            if tuple(signs.shape) != space.shape[1:] or not bool((signs.abs() == 1).all()):
                raise ValueError(f"Hadamard: want signs of 1 and -1, {space.shape[1:]}, "
                                 f"got {tuple(signs.shape)}")
            signs = signs.to(torch.int8)
        super().__init__(space, Space((space.shape[0], len(rows)), space.dtype))
        self.register_buffer("rows", rows.to(torch.int64))
        self.register_buffer("signs", signs)

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x)[..., self.rows]

    def adjoint(self, y: Tensor) -> Tensor:
        n = math.prod(self.domain.shape[1:])
        z = y.new_zeros(*y.shape[:-1], n).index_copy(-1, self.rows, y)
        return self.transform_adjoint(z)

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:  # noqa: ARG002 closed form
        # A^H A is a projection: its modes may stay images, and all have the gain 1
        gain = rhs.new_ones((), dtype=rhs.dtype.to_real())
        return solved_by_modes(rhs, self.per_item(shift, rhs), x0, gain, self.normal,
                               lambda seen: seen, len(self.domain.shape))

    def transform(self, x: Tensor) -> Tensor:
        """All of ``H D x / sqrt(n)``, ``(*batch, channel, n)``: every pattern."""
        x = x if self.signs is None else self.signs * x
        return walsh_hadamard(x.flatten(1 - len(self.domain.shape)))

    def transform_adjoint(self, z: Tensor) -> Tensor:
        x = walsh_hadamard(z).reshape(*z.shape[:-1], *self.domain.shape[1:])
        return x if self.signs is None else self.signs * x


def walsh_hadamard(x: Tensor) -> Tensor:
    """Sylvester's Hadamard transform of the last dimension, orthonormal, its own inverse.

    The dimension is a power of two. Not in place.
    """
    n = x.shape[-1]
    if n & (n - 1):
        raise ValueError(f"walsh_hadamard: want a power of two along the last dimension, got {n}")
    bits = n.bit_length() - 1
    if bits == 0:
        return x.clone()
    shape, batch = x.shape, math.prod(x.shape[:-1])
    kind = x.dtype
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj()).movedim(-1, 0)
        batch *= 2
    # H of order 2^bits is the Kronecker product of small ones: one product for each few bits
    before = 1
    while bits:
        step = min(_RADIX, bits)
        bits -= step
        small = _sylvester(step, x)
        x = small @ x.reshape(batch * before, 2**step, n // before // 2**step)
        before *= 2**step
    x = x * n**-0.5  # once, so that only whole numbers came before
    if kind.is_complex:
        return torch.complex(*x.reshape(2, *shape).unbind(0))
    return x.reshape(shape)


def sequency(n: int) -> Tensor:
    """Rows of the Hadamard matrix of order ``n`` by their number of changes of sign, ``(n,)``."""
    if n < 1 or n & (n - 1):
        raise ValueError(f"sequency: want a power of two, got {n}")
    changes = torch.arange(n)
    gray = changes ^ (changes >> 1)
    row = torch.zeros_like(gray)
    for bit in range(n.bit_length() - 1):  # reversed bits of the Gray code
        row = (row << 1) | ((gray >> bit) & 1)
    return row


def _sylvester(bits: int, like: Tensor) -> Tensor:
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=like.dtype, device=like.device)
    matrix = pair
    for _ in range(bits - 1):
        matrix = torch.kron(pair, matrix)
    return matrix
