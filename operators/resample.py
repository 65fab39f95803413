"""Lower resolution: filtered, then sampled more coarsely, as one matrix for each axis."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.closed_form import solved_by_modes
from recon.space import Space


class _Kernel(NamedTuple):
    weight: Callable[[Tensor], Tensor]
    support: float  # in pixels of the coarse grid, to either side


def _box(t: Tensor) -> Tensor:
    return ((t >= -0.5) & (t < 0.5)).to(t.dtype)


def _linear(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp(min=0)


def _bicubic(t: Tensor) -> Tensor:
    # Keys 1981 with a = -1/2, the one that reproduces quadratics
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0))


def _lanczos(t: Tensor) -> Tensor:
    return torch.where(t.abs() < 3, torch.sinc(t) * torch.sinc(t / 3), 0)


_KERNELS = {"box": _Kernel(_box, 0.5), "bilinear": _Kernel(_linear, 1),
            "bicubic": _Kernel(_bicubic, 2), "lanczos": _Kernel(_lanczos, 3)}


class Downsampling(LinearOperator):
    """Fewer pixels, antialiased: ``y = R_1 x R_2^T``, one matrix for each spatial axis.

    Coarse pixel ``i`` of an axis sums fine pixels ``j`` with weights
    ``h((j + 1/2) / factor - (i + 1/2))``, made to add up to one, those beyond the edge left out:
    pixels are areas, so that nothing shifts. These are the weights of Pillow's ``resize`` and of
    ``torch.nn.functional.interpolate(antialias=True)``; ``box`` is the mean over blocks.
    ``solve`` is a closed form, by the singular values of each axis.

    Parameters
    ----------
    space
        The fine images, real or complex, with one or more spatial dimensions.
    factor
        By which each spatial size is divided, one number or one for each spatial dimension.
    kernel
        ``h``: "box", "bilinear", "bicubic" (Keys 1981, a = -1/2) or "lanczos" (three lobes).

    Raises ValueError where a factor does not divide the size. ``solve`` with a shift of 0 gives the
    solution of least norm: what coarse images do not show cannot be known from ``y``.

    Examples
    --------
    >>> A = Downsampling(Space((1, 64, 64)), 4)
    >>> A(torch.ones(1, 64, 64)).shape
    torch.Size([1, 16, 16])
    """

    items = ()

    def __init__(self, space: Space, factor: int | tuple[int, ...],
                 kernel: str = "bicubic") -> None:
        sizes = space.shape[1:]
        if not sizes:
            raise ValueError(f"Downsampling: want a space (channel, *spatial), got {space.shape}")
        factors = (factor,) * len(sizes) if isinstance(factor, int) else tuple(factor)
        if len(factors) != len(sizes) or min(factors) < 1:
            raise ValueError(f"Downsampling: want a factor >= 1, or one for each axis of {sizes}, "
                             f"got {factor}")
        for n, f in zip(sizes, factors, strict=True):
            if n % f:
                raise ValueError(f"Downsampling: want a factor that divides the size, got {f} for "
                                 f"{n}: crop the image to {n - n % f}")
        if kernel not in _KERNELS:
            raise ValueError("Downsampling: want kernel box, bilinear, bicubic or lanczos, "
                             f"got {kernel!r}")
        coarse = tuple(n // f for n, f in zip(sizes, factors, strict=True))
        super().__init__(space, Space((space.shape[0], *coarse), space.dtype))
        self.factor, self.kernel = factors, kernel
        # one (coarse, fine) matrix, and its decomposition, for each axis, in double precision; the
        # sizes, factors and kernel say all, so that nothing of it need be saved
        self.matrices = [resampling_matrix(n, m, kernel) for n, m in zip(sizes, coarse,
                                                                         strict=True)]
        self._kept: dict[tuple[str, torch.dtype, torch.device], list[Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        return along_each(x, self._cast("rows", x))

    def adjoint(self, y: Tensor) -> Tensor:
        return along_each(y, self._cast("columns", y))

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:  # noqa: ARG002 closed form
        seen, spread = self._cast("seen", rhs), self._cast("spread", rhs)
        return solved_by_modes(rhs, self.per_item(shift, rhs), x0, self.gains(rhs).square(),
                               lambda x: along_each(x, seen), lambda m: along_each(m, spread),
                               len(self.domain.shape))

    def gains(self, like: Tensor) -> Tensor:
        """Singular values, ``(1, *coarse)``: products of those of the axes."""
        gain = torch.ones(1, dtype=torch.float64)
        for _, values, _ in self.decompositions():
            gain = gain.unsqueeze(-1) * values
        return gain.to(like.device, like.dtype.to_real())

    def decompositions(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """``(U, values, V^T)`` of the matrix of each axis, values below rounding taken for 0."""
        if not hasattr(self, "_decompositions"):
            found = []
            for matrix in self.matrices:
                U, s, Vt = torch.linalg.svd(matrix, full_matrices=False)
                rounding = torch.finfo(s.dtype).eps * max(matrix.shape) * s[0]
                found.append((U, torch.where(s > rounding, s, 0), Vt))
            self._decompositions = found
        return self._decompositions

    def _cast(self, which: str, like: Tensor) -> list[Tensor]:
        """The transposed matrix of each axis, as ``along_each`` takes it."""
        key = (which, like.dtype.to_real(), like.device)
        if key not in self._kept:
            with torch.inference_mode(False):  # or it would be useless to autograd later
                if which in ("rows", "columns"):
                    found = [R.T if which == "rows" else R for R in self.matrices]
                else:
                    found = [Vt.T if which == "seen" else Vt for *_, Vt in self.decompositions()]
                self._kept[key] = [m.to(like.device, key[1]).contiguous() for m in found]
        return self._kept[key]


def resampling_matrix(fine: int, coarse: int, kernel: str = "bicubic") -> Tensor:
    """The ``(coarse, fine)`` matrix of one axis, in double precision; each row adds up to one."""
    factor = fine / coarse
    h, support = _KERNELS[kernel]
    i = (torch.arange(coarse, dtype=torch.float64) + 0.5)[:, None]
    j = (torch.arange(fine, dtype=torch.float64) + 0.5) / factor
    near = (j - i).abs() <= support
    weights = torch.where(near, h(j - i), 0)
    return weights / weights.sum(1, keepdim=True)


def along_each(x: Tensor, matrices: list[Tensor]) -> Tensor:
    """``x`` times one ``(from, to)`` matrix along each of its last dimensions."""
    if x.is_complex():  # one product of real matrices for both parts
        parts = along_each(torch.view_as_real(x.resolve_conj()).movedim(-1, 0), matrices)
        return torch.complex(*parts.unbind(0))
    for axis, matrix in zip(range(-1, -1 - len(matrices), -1), reversed(matrices), strict=True):
        if axis == -1:
            x = x @ matrix
        elif axis == -2:
            x = matrix.T @ x
        else:
            # the axes after it as columns of one product
            tail = math.prod(x.shape[axis + 1 :])
            flat = matrix.T @ x.reshape(*x.shape[: axis + 1], tail)
            x = flat.reshape(*flat.shape[:-1], *x.shape[axis + 1 :])
    return x
