"""Off-resonance during the readout: a field map in Hz, as a few weighted transforms."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

# Pixels times instants handled at once: 64 MiB of each complex temporary.
_BUILD_CHUNK = 2**22


class Transform(Protocol):
    """What ``Gridding`` and ``Finufft`` are."""

    def transform(self, x: Tensor) -> Tensor: ...
    def adjoint(self, y: Tensor) -> Tensor: ...


class OffResonance(nn.Module):
    """``y_j = N^-1/2 sum_n x_n exp(-2 pi i (k_j . (n - c) / size + f_n t_j))``.

    The phase is split into ``sum_l b_l(t_j) c_l(n)`` and each term transformed alone, so that the
    adjoint is exact. The ``b`` are the leading left singular vectors of ``exp(-2 pi i f t)`` over
    the instants and a fine grid of frequencies, the best basis there is; the ``c`` of each pixel
    are the projection of its own phase (Fessler et al. 2005, doi 10.1109/TSP.2005.853152, where
    both are fitted alike). Terms are added until no pixel is off by more than ``tolerance`` at any
    instant; ``error`` is the largest such difference.

    Parameters
    ----------
    inner
        The transform without off-resonance.
    field
        Frequencies in Hz, ``size``; a spin at +f turns by ``exp(-2 pi i f t)``.
    times
        Of the samples, in seconds since the echo (spins in phase), ``(samples,)``.
    """

    times_basis: Tensor
    images: Tensor

    def __init__(self, inner: Transform, field: Tensor, times: Tensor, tolerance: float) -> None:
        super().__init__()
        self.inner = inner
        instants, place = torch.unique(times, return_inverse=True)
        basis, images, self.error = separated(field, instants, tolerance)
        self.register_buffer("times_basis", basis.T[:, place].contiguous(), persistent=False)
        self.register_buffer("images", images, persistent=False)

    def transform(self, x: Tensor) -> Tensor:
        """``(items, *size)`` to ``(items, samples)``."""
        y: Tensor | None = None
        for b, c in zip(self.times_basis.to(x.dtype), self.images.to(x.dtype), strict=True):
            term = b * self.inner.transform(c * x)
            y = term if y is None else y + term
        assert y is not None  # there is at least one term
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        """``(items, samples)`` to ``(items, *size)``."""
        x: Tensor | None = None
        for b, c in zip(self.times_basis.to(y.dtype), self.images.to(y.dtype), strict=True):
            term = c.conj() * self.inner.adjoint(b.conj() * y)
            x = term if x is None else x + term
        assert x is not None
        return x


def separated(field: Tensor, times: Tensor, tolerance: float) -> tuple[Tensor, Tensor, float]:
    """``exp(-2 pi i f t)`` as ``(times, terms)``, ``(terms, *field.shape)``, and the largest error.

    In double precision; ``tolerance`` is held at every time and pixel.
    """
    low, high = field.min(), field.max()
    # two frequencies a turn over all instants, and a few: the rank is about as large
    turns = float((high - low) * (times.max() - times.min()))
    grid = torch.linspace(float(low), float(high), 4 * math.ceil(turns) + 33, dtype=torch.float64)
    left, s, _ = torch.linalg.svd(_phases(times[:, None], grid), full_matrices=False)
    # from the first count whose residual on the grid is within reach of the tolerance
    scale = math.sqrt(len(times) * len(grid))
    tail = s.square().flip(0).cumsum(0).flip(0).sqrt() / scale
    for terms in range(max(1, int((tail > tolerance).sum())), len(s) + 1):
        basis = left[:, :terms]
        if _worst(basis, times, grid) > tolerance and terms < len(s):
            continue
        flat = field.flatten()
        parts = torch.split(flat, max(1, _BUILD_CHUNK // len(times)))
        images = torch.cat([basis.mH @ _phases(times[:, None], f) for f in parts], 1)
        error = max(_worst(basis, times, f) for f in parts)
        if error <= tolerance or terms == len(s):
            break
    return basis, images.view(terms, *field.shape), error


def _phases(times: Tensor, field: Tensor) -> Tensor:
    angle = -2 * math.pi * times * field
    return torch.polar(torch.ones_like(angle), angle)


def _worst(basis: Tensor, times: Tensor, field: Tensor) -> float:
    exact = _phases(times[:, None], field)
    return float((exact - basis @ (basis.mH @ exact)).abs().max())
