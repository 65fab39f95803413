"""Blur by a kernel that changes across the image."""

from typing import Any

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.convolution import Convolution, Spectrum, kernel_tensor, refuse_kernel
from recon.space import Space


class VaryingBlur(LinearOperator):
    """Product and convolution: ``y = sum_k kernels[k] * (weights[k] x)``, ``*`` a convolution.

    A bright pixel at ``p`` becomes ``sum_k weights[k][p] kernels[k]`` about ``p``: the kernels,
    interpolated at the source (Nagy & O'Leary 1998, SIAM J. Sci. Comput. 19, 1063). One Fourier
    transform for each kernel and one back.

    Parameters
    ----------
    kernels
        ``(kernels, *spatial)``, centre ``k // 2``, as of ``Blur``.
    weights
        ``(kernels, *space.shape[1:])``; those of ``region_weights`` add up to one at each pixel.
    space
        The image space, real or complex.
    boundary
        As of ``Blur``: "periodic", "zero", "reflect", "symmetric", "replicate" or "valid". It
        applies to the weighted images.

    Examples
    --------
    >>> kernels = torch.stack([gaussian_kernel(s, 9) for s in (0.5, 1.0, 1.5, 2.0)])
    >>> A = VaryingBlur(kernels, region_weights((2, 2), (64, 64)), Space((1, 64, 64)))
    """

    items = ()
    kernels: Tensor
    weights: Tensor

    def __init__(self, kernels: Tensor, weights: Tensor, space: Space,
                 boundary: str = "periodic") -> None:
        kernels, weights = kernel_tensor("VaryingBlur", kernels), torch.as_tensor(weights)
        sizes = space.shape[1:]
        if kernels.ndim != len(sizes) + 1:
            raise ValueError(f"VaryingBlur: want kernels (kernels, *spatial) for an image "
                             f"{space.shape}, got {tuple(kernels.shape)}")
        refuse_kernel("VaryingBlur", kernels, space)
        if tuple(weights.shape) != (len(kernels), *sizes):
            raise ValueError(f"VaryingBlur: want weights {(len(kernels), *sizes)}, one image for "
                             f"each kernel, got {tuple(weights.shape)}")
        if weights.is_complex():
            raise TypeError(f"VaryingBlur: want real weights, got {weights.dtype}")
        if not bool(torch.isfinite(weights).all()):
            raise ValueError("VaryingBlur: want finite weights, got NaN or infinity")
        grid = Convolution("VaryingBlur", sizes, tuple(kernels.shape[1:]), boundary)
        super().__init__(space, Space((space.shape[0], *grid.range), space.dtype))
        self.boundary = grid.boundary
        self._grid = grid
        self.register_buffer("kernels", kernels)
        self.register_buffer("weights", weights)
        self._spectrum: Spectrum | None = None

    def forward(self, x: Tensor) -> Tensor:
        grid, total = self._grid, x.new_zeros(())
        for weight, transfer in self._terms(x):  # one at a time: few large temporaries
            total = total + transfer * grid.to_fourier(weight * x)
        return grid.from_fourier(total, not x.is_complex())

    def adjoint(self, y: Tensor) -> Tensor:
        grid, spectrum = self._grid, self._grid.to_fourier_adjoint(y)
        x = y.new_zeros(())
        for weight, transfer in self._terms(y):
            pulled = grid.from_fourier_adjoint(transfer.conj() * spectrum, not y.is_complex())
            x = x + weight * pulled
        return x

    def _terms(self, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        kept = self._grid.kept_spectrum(self.kernels, like, self._spectrum)
        if kept.stamp:
            self._spectrum = kept
        weights = self.weights.to(like.device, like.dtype.to_real())
        return list(zip(weights.unsqueeze(1), kept.transfer.unsqueeze(1), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        # a copied kernel counts its versions anew, so that the stamp would fit another one
        return self.__dict__ | {"_spectrum": None}


def region_weights(regions: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Interpolation between a grid of regions, ``(regions, *size)``, adding up to one.

    The image of ``size`` is cut into equal ``regions`` along each axis, in the order of
    ``torch.arange(...).reshape(regions)``; each weight is one at the centre of its region, falls
    linearly to zero at the centres of its neighbours, and stays constant beyond the outermost
    centres.
    """
    if len(regions) != len(size) or any(r < 1 or r > n for r, n in zip(regions, size, strict=True)):
        raise ValueError("region_weights: want from one region to one for each pixel along each "
                         f"axis of {size}, got {regions}")
    weights = torch.ones((), dtype=torch.float64)
    for r, n in zip(regions, size, strict=True):
        at = ((torch.arange(n, dtype=torch.float64) + 0.5) * r / n - 0.5).clamp(0, r - 1)
        hats = (1 - (at - torch.arange(r)[:, None]).abs()).clamp(min=0)  # (r, n)
        # grow by one axis of regions and one of pixels
        weights = torch.einsum("pq,rn->prqn", weights.reshape(*_matrix(weights)), hats)
        weights = weights.flatten(2).flatten(0, 1)
    return weights.reshape(-1, *size).to(torch.get_default_dtype())


def _matrix(weights: Tensor) -> tuple[int, int]:
    return (1, 1) if weights.ndim == 0 else (weights.shape[0], weights.shape[1])
