"""The centred orthonormal 2-D Fourier transform, and its shifts as multiplications."""

import math

import torch
from torch import Tensor
from torch.fft import fft2, fftshift, ifft2, ifftshift

_PLANE = (-2, -1)


def fft2c(x: Tensor) -> Tensor:
    """``fftshift(fft2(ifftshift(x), norm="ortho"))`` over the last two dimensions.

    Image to k-space with both centres at index ``n // 2``, as fastMRI and ``bart fft -u`` have
    it, for odd sizes too. Input ``(*batch, height, width)``, real or complex; unitary.
    """
    y: Tensor = fftshift(fft2(ifftshift(x, _PLANE), norm="ortho"), _PLANE)
    return y


def ifft2c(y: Tensor) -> Tensor:
    """``fftshift(ifft2(ifftshift(y), norm="ortho"))``: the inverse and adjoint of ``fft2c``."""
    x: Tensor = fftshift(ifft2(ifftshift(y, _PLANE), norm="ortho"), _PLANE)
    return x


def centring(like: Tensor, ndim: int = 2) -> Tensor:
    """Phases ``p`` with ``fftc(x) = p * fftn(p * x, norm="ortho")`` over the last ``ndim`` axes.

    ``fftc`` is the centred transform, ``fft2c`` in two dimensions. Shifting by ``c = n // 2`` on
    one side of a transform multiplies the other side by ``exp(2 pi i c m / n)``; the constant
    ``exp(-2 pi i c c / n)`` is shared between the two sides. Size, precision and device are those
    of the complex ``like``. Unlike shifts, which copy every coil, phases can be applied to the one
    image that all coils share.
    """
    phase = _phase(like, -ndim)
    for dim in range(1 - ndim, 0):
        phase = phase[..., None] * _phase(like, dim)
    return phase


def _phase(like: Tensor, dim: int) -> Tensor:
    n = like.shape[dim]
    c = n // 2
    # in half turns modulo 2 n, in integers: the angle stays exact however large n is
    turns = (2 * c * torch.arange(n, device=like.device) - c * c) % (2 * n)
    angle = turns.to(like.dtype.to_real()) * (math.pi / n)
    return torch.polar(torch.ones_like(angle), angle)
