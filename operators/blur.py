"""Blur by convolution with a known kernel."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.space import Space


class _Spectrum(NamedTuple):
    """The kernel's Fourier transform, its power, and which kernel and precision it belongs to."""

    transfer: Tensor
    power: Tensor
    kernel: Tensor
    stamp: tuple[object, ...]


class Blur(LinearOperator):
    """Convolve: ``y[i] = sum_j kernel[j] x[i + c - j]``, the centre ``c = k // 2`` on each axis.

    A true convolution, not a correlation: an image of one bright pixel becomes the kernel, centred
    on that pixel. The centre element ``kernel[k // 2]`` is no shift, for odd and even ``k``. It is
    ``scipy.ndimage.convolve`` with mode "wrap" or "constant", and for odd kernels
    ``scipy.signal.convolve2d`` with mode "same" and boundary "wrap" or "fill".

    Parameters
    ----------
    kernel
        Weights in real space, ``(height, width)`` or ``(*batch, 1, height, width)`` or
        ``(*batch, channel, height, width)``; leading dimensions give each item its own. Not larger
        than the image. Complex ones want a complex space. Not normalised.
    space
        The image space, real or complex; one, two or three spatial dimensions, or more.
    boundary
        What lies beyond the edge: "periodic" repeats the image, and ``normal`` and ``solve`` are
        closed forms; "zero" is empty, and ``solve`` takes conjugate gradients.

    Examples
    --------
    >>> from recon.operators import Blur, Space, gaussian_kernel
    >>> A = Blur(gaussian_kernel(1.5), Space((1, 64, 64)))
    >>> y = A(torch.ones(1, 64, 64))
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, space: Space, boundary: str = "periodic") -> None:
        super().__init__(space, space)
        if boundary not in ("periodic", "zero"):
            raise ValueError(f"Blur: want boundary 'periodic' or 'zero', got {boundary!r}")
        kernel = torch.as_tensor(kernel)
        if not (kernel.is_floating_point() or kernel.is_complex()):
            kernel = kernel.to(torch.get_default_dtype())
        _refuse_misfit(kernel, space)
        self.boundary = boundary
        self.register_buffer("kernel", kernel)
        sizes = space.shape[1:]
        self._axes = tuple(-n for n in range(len(sizes), 0, -1))
        self._grid = sizes if boundary == "periodic" else tuple(
            # no wrapped sample may land in the image: the longer arm of the kernel fits beside it
            _fast_length(n + max(k // 2, k - 1 - k // 2))
            for n, k in zip(sizes, kernel.shape[-len(sizes) :], strict=True)
        )
        self._spectrum: _Spectrum | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self._filter(x, self._spectrum_for(x).transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._spectrum_for(y).transfer.conj())

    def normal(self, x: Tensor) -> Tensor:
        if self.boundary == "zero":  # the crop in between keeps the two filters apart
            return super().normal(x)
        return self._filter(x, self._spectrum_for(x).power)

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:
        if self.boundary == "zero":
            return super().solve(rhs, shift, x0, max_iter, rtol)
        gain = self._spectrum_for(rhs).power + self.per_item(shift, rhs)
        # shift 0: a frequency the kernel removes is not in a consistent rhs either
        return self._filter(rhs, torch.where(gain == 0, 0, 1 / torch.where(gain == 0, 1, gain)))

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        y: Tensor
        if not x.is_complex():
            spectrum = torch.fft.rfftn(x, s=self._grid, dim=self._axes)
            y = torch.fft.irfftn(gain * spectrum, s=self._grid, dim=self._axes)
        else:
            spectrum = torch.fft.fftn(x, s=self._grid, dim=self._axes)
            y = torch.fft.ifftn(gain * spectrum, s=self._grid, dim=self._axes)
        for axis, n in zip(self._axes, self.domain.shape[1:], strict=True):
            y = torch.narrow(y, axis, 0, n)  # off the padding, where there is any
        return y

    def _spectrum_for(self, x: Tensor) -> _Spectrum:
        kernel = self.kernel
        if kernel.requires_grad or kernel.is_inference():
            # a graph must not be kept, and inference tensors cannot say when they change
            return self._transform(kernel, x, ())
        # the kernel's version rises when load_state_dict or a caller writes into it
        stamp = (x.dtype, x.device, kernel._version)
        kept = self._spectrum
        if kept is None or kept.kernel is not kernel or kept.stamp != stamp:
            with torch.inference_mode(False):  # or it would be useless to autograd later
                kept = self._spectrum = self._transform(kernel, x, stamp)
        return kept

    def _transform(self, kernel: Tensor, like: Tensor, stamp: tuple[object, ...]) -> _Spectrum:
        dtype = like.dtype if kernel.is_complex() else like.dtype.to_real()
        centred = kernel.to(device=like.device, dtype=dtype)
        sizes = kernel.shape[-len(self._axes) :]
        padding = [p for n, k in zip(self._grid, sizes, strict=True) for p in (n - k, 0)]
        centred = torch.nn.functional.pad(centred, padding[::-1])
        centred = centred.roll([-(k // 2) for k in sizes], self._axes)
        transform = torch.fft.fftn if like.is_complex() else torch.fft.rfftn
        transfer = transform(centred, dim=self._axes)
        return _Spectrum(transfer, transfer.real**2 + transfer.imag**2, kernel, stamp)


def gaussian_kernel(std: float, size: int | None = None) -> Tensor:
    """``exp(-(i^2 + j^2) / (2 std^2))``, ``(size, size)``, summing to one.

    ``std`` in pixels; ``size`` is odd, and reaches four standard deviations unless given, as
    scipy.ndimage.gaussian_filter does.
    """
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"gaussian_kernel: want a finite std > 0 in pixels, got {std}")
    size = 2 * int(4 * std + 0.5) + 1 if size is None else size
    if size < 1 or size % 2 == 0:
        raise ValueError(f"gaussian_kernel: want an odd size >= 1, got {size}: "
                         "an even one has no central pixel and would shift the image")
    i = torch.arange(size, dtype=torch.float64) - size // 2
    profile = torch.exp(-((i / std) ** 2) / 2)
    profile = profile / profile.sum()
    return torch.outer(profile, profile).to(torch.get_default_dtype())


def _refuse_misfit(kernel: Tensor, space: Space) -> None:
    sizes = space.shape[1:]
    if not sizes:
        raise ValueError(f"Blur: want a space (channel, *spatial), got {space.shape}")
    if kernel.ndim < len(sizes):
        raise ValueError(f"Blur: want a kernel of {len(sizes)} spatial dimensions for an image "
                         f"{space.shape}, got {tuple(kernel.shape)}")
    if kernel.ndim > len(sizes) and kernel.shape[-len(sizes) - 1] not in (1, space.shape[0]):
        raise ValueError(f"Blur: want a kernel (*batch, 1 or {space.shape[0]}, *spatial), "
                         f"got {tuple(kernel.shape)}: add a channel dimension before the spatial")
    kernel_sizes = tuple(kernel.shape[-len(sizes) :])
    if any(k > n or k < 1 for k, n in zip(kernel_sizes, sizes, strict=True)):
        raise ValueError(f"Blur: want a kernel no larger than the image {sizes}, "
                         f"got {kernel_sizes}: crop it, or pad the image")
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError("Blur: want finite kernel weights, got NaN or infinity")
    if kernel.is_complex() and not space.is_complex:
        raise TypeError("Blur: a complex kernel wants a complex space, got a real one")


def _fast_length(n: int) -> int:
    # the next length with no prime factor above 5, on which every FFT library is quick
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
