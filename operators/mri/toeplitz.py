"""The normal operator of a non-uniform Fourier transform as a filter on a grid twice as large."""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fft import fft, fftn, ifft, ifftn, ifftshift

from recon.operators.linear_map import linear_map
from recon.operators.mri.gridding import apodisation, fast_even_size, shape_parameter, taps

# Samples times weights handled at once while building: 64 MiB of each temporary.
_BUILD_CHUNK = 2**23


class Toeplitz(nn.Module):
    """``(F^H F x)_n = sum_m t_(n - m) x_m`` with ``t_l = N^-1 sum_j exp(2 pi i k_j . l / size)``.

    F is the exact transform that ``Gridding`` approximates; the sum over m is a periodic
    convolution of the image, padded to twice its size, and needs two FFTs whatever the number of
    samples (Fessler et al. 2005, doi 10.1109/TSP.2005.853152). The spectrum of t is real: what
    rounding leaves of its imaginary part is dropped, so that the operator is Hermitian to rounding.
    Acts on ``(items, *size)``.
    """

    def __init__(self, size: tuple[int, ...], trajectory: Tensor) -> None:
        super().__init__()
        self.size = size
        self._trajectory = trajectory
        self._built: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def normal(self, x: Tensor) -> Tensor:
        """``F^H F x``."""
        return linear_map(x, self._normal, self._normal)

    def _normal(self, x: Tensor) -> Tensor:
        spectrum = self._spectrum(x)
        axes = tuple(range(1, x.ndim))
        # axis by axis: lines of zeros are not transformed, nor those that are cut off
        for axis in reversed(axes):
            x = fft(x, n=2 * self.size[axis - 1], dim=axis)
        x = x * spectrum
        for axis in axes:
            x = ifft(x, dim=axis, norm="forward").narrow(axis, 0, self.size[axis - 1])
        return x.contiguous()

    def _spectrum(self, like: Tensor) -> Tensor:
        key = (like.dtype.to_real(), like.device)
        if key not in self._built:
            exact = lag_spectrum(self._trajectory, self.size)
            self._built[key] = exact.to(like.device, key[0])
        return self._built[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_built": {}}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._built.clear()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def lag_spectrum(trajectory: Tensor, size: tuple[int, ...]) -> Tensor:
    """The transform of ``t`` over ``2 * size`` points divided by their number, real, float64.

    ``t`` is the adjoint transform of ones, of an image twice the size at twice the frequencies; by
    gridding in double precision, to 1e-9 (1e-7 along three axes, where wide kernels are dear).
    """
    axes = len(size)
    width = 13 if axes < 3 else 9
    double = tuple(2 * n for n in size)
    grid = tuple(fast_even_size(3 * n) for n in size)
    sums = torch.zeros(math.prod(grid), dtype=torch.float64)
    for part in torch.split(trajectory, max(1, _BUILD_CHUNK // width**axes)):
        column = torch.zeros(len(part), 1, dtype=torch.int64)
        value = torch.ones(len(part), 1, dtype=torch.float64)
        for axis in range(axes):
            ratio = grid[axis] / double[axis]
            point, weight = taps(2 * part[:, axis] * ratio, width, shape_parameter(width, ratio))
            column = (column[:, :, None] * grid[axis] + (point % grid[axis])[:, None]).flatten(1)
            value = (value[:, :, None] * weight[:, None]).flatten(1)
        sums += torch.bincount(column.flatten(), value.flatten(), minlength=len(sums))
    over = tuple(range(axes))
    lags = ifftn(sums.view(grid), dim=over, norm="forward")
    # lag l of -n .. n - 1 stands at l modulo the grid
    for axis, n in enumerate(size):
        at = torch.arange(-n, n) % grid[axis]
        lags = lags.index_select(axis, at)
    lags = lags / (apodisation(double, grid, width) * math.prod(size))
    for axis in over:
        # lag -n occurs nowhere, and has no partner +n to be the conjugate of
        lags.select(axis, 0).zero_()
    spectrum: Tensor = fftn(ifftshift(lags, over), dim=over).real / math.prod(double)
    return spectrum
