"""Blur by convolution with a known kernel."""

from typing import Any

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.blur_kernels import gaussian_kernel
from recon.operators.convolution import Convolution, Spectrum, kernel_tensor, refuse_kernel
from recon.space import Space

__all__ = ["Blur", "gaussian_kernel"]


class Blur(LinearOperator):
    """Convolve: ``y[i] = sum_j kernel[j] x[i + c - j]``, the centre ``c = k // 2`` on each axis.

    A true convolution, not a correlation: an image of one bright pixel becomes the kernel, centred
    on that pixel. The centre element ``kernel[k // 2]`` is no shift, for odd and even ``k``. It is
    ``scipy.ndimage.convolve``, and for odd kernels ``scipy.signal.convolve2d``.

    Parameters
    ----------
    kernel
        Weights in real space, ``(height, width)`` or ``(*batch, 1, height, width)`` or
        ``(*batch, channel, height, width)``; leading dimensions give each item its own. Not larger
        than the image. Complex ones want a complex space. Not normalised.
    space
        The image space, real or complex; one, two or three spatial dimensions, or more.
    boundary
        What lies beyond the edge of ``a b c d``: "periodic" (or "circular") repeats the image,
        ``c d|a b c d|a b``, and ``normal`` and ``solve`` are closed forms; "zero" is empty;
        "reflect" ``c b|a b c d|c b`` (numpy's and torch's name, ndimage's "mirror"); "symmetric"
        ``b a|a b c d|d c`` (ndimage's "reflect"); "replicate" ``a a|a b c d|d d`` (ndimage's
        "nearest"); "valid" measures only what needs nothing from there, ``n - k + 1`` pixels of
        ``n`` on each axis. All but "periodic" solve by conjugate gradients.

    With "periodic", ``solve`` leaves out frequencies at which the kernel's transform and the shift
    are both zero: they cannot be known from ``y``.

    Examples
    --------
    >>> from recon.operators import Blur, Space, gaussian_kernel
    >>> A = Blur(gaussian_kernel(1.5), Space((1, 64, 64)))
    >>> y = A(torch.ones(1, 64, 64))
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, space: Space, boundary: str = "periodic") -> None:
        kernel = kernel_tensor("Blur", kernel)
        refuse_kernel("Blur", kernel, space)
        sizes = space.shape[1:]
        if kernel.ndim > len(sizes) and kernel.shape[-len(sizes) - 1] not in (1, space.shape[0]):
            raise ValueError(f"Blur: want a kernel (*batch, 1 or {space.shape[0]}, *spatial), "
                             f"got {tuple(kernel.shape)}: add a channel dimension before the "
                             "spatial")
        grid = Convolution("Blur", sizes, tuple(kernel.shape[-len(sizes) :]), boundary)
        super().__init__(space, Space((space.shape[0], *grid.range), space.dtype))
        self.boundary = grid.boundary
        self._grid = grid
        self.register_buffer("kernel", kernel)
        self.items = tuple(kernel.shape[: -len(space.shape)])
        self._spectrum: Spectrum | None = None

    def forward(self, x: Tensor) -> Tensor:
        grid = self._grid
        if grid.is_summed(self.kernel, x):
            return grid.summed(self.kernel, x)
        transfer = self._spectrum_for(x).transfer
        return grid.from_fourier(transfer * grid.to_fourier(x), not x.is_complex())

    def adjoint(self, y: Tensor) -> Tensor:
        grid = self._grid
        if grid.is_summed(self.kernel, y):
            return grid.summed_adjoint(self.kernel, y)
        transfer = self._spectrum_for(y).transfer
        return grid.from_fourier_adjoint(transfer.conj() * grid.to_fourier_adjoint(y),
                                         not y.is_complex())

    def normal(self, x: Tensor) -> Tensor:
        if self.boundary != "periodic":  # the crop in between keeps the two filters apart
            return super().normal(x)
        return self._filter(x, self._spectrum_for(x).power)

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:
        if self.boundary != "periodic":
            return super().solve(rhs, shift, x0, max_iter, rtol)
        gain = self._spectrum_for(rhs).power + self.per_item(shift, rhs)
        # shift 0: a frequency the kernel removes is not in a consistent rhs either
        return self._filter(rhs, torch.where(gain == 0, 0, 1 / torch.where(gain == 0, 1, gain)))

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        grid = self._grid
        return grid.from_fourier(gain * grid.to_fourier(x), not x.is_complex())

    def _spectrum_for(self, x: Tensor) -> Spectrum:
        kept = self._grid.kept_spectrum(self.kernel, x, self._spectrum)
        if kept.stamp:
            self._spectrum = kept
        return kept

    def __getstate__(self) -> dict[str, Any]:
        # a copied kernel counts its versions anew, so that the stamp would fit another one
        return self.__dict__ | {"_spectrum": None}
