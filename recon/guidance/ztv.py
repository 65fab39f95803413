"""Total variation across the slices of a volume, by alternating directions on carried splits."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from recon.guidance.consistency import check_weights, proximal
from recon.operators.base import LinearOperator
from recon.operators.solve import conjugate_gradient

Directions = Literal["z", "xyz"]
Boundary = Literal["neumann", "periodic"]


class Split(NamedTuple):
    """What alternating directions carry: ``(*batch, directions, n_z, channel, *spatial)`` each."""

    z: Tensor  # stands for the differences
    u: Tensor  # multiplier over rho, never longer than lambda / rho


Coupled = Callable[[Tensor, Tensor, Split], tuple[Tensor, Split]]


class Differences:
    """``D``: from each voxel to the next, ``(*batch, n_z, channel, *spatial)`` to ``Split.z``'s.

    Along z alone, or along z and the spatial dimensions (``"xyz"``). At the end of a dimension the
    difference is 0 (``"neumann"``), or goes round to its beginning (``"periodic"``).
    """

    def __init__(self, item_ndim: int, directions: Directions = "z",
                 boundary: Boundary = "neumann") -> None:
        if directions not in ("z", "xyz"):
            raise ValueError(f'directions wants "z" or "xyz", got {directions!r}')
        if boundary not in ("neumann", "periodic"):
            raise ValueError(f'boundary wants "neumann" or "periodic", got {boundary!r}')
        self.volume_ndim = item_ndim + 1
        spatial = tuple(range(1 - item_ndim, 0)) if directions == "xyz" else ()
        self.axes = (-self.volume_ndim, *spatial)
        self.periodic = boundary == "periodic"

    def __call__(self, x: Tensor) -> Tensor:
        parts = []
        for axis in self.axes:
            d = x.roll(-1, axis) - x
            if not self.periodic:
                d.narrow(axis, x.shape[axis] - 1, 1).zero_()
            parts.append(d)
        return torch.stack(parts, -self.volume_ndim - 1)

    def adjoint(self, d: Tensor) -> Tensor:
        x = torch.zeros_like(d.select(-self.volume_ndim - 1, 0))
        for part, axis in zip(d.unbind(-self.volume_ndim - 1), self.axes, strict=True):
            if not self.periodic:
                part = part.clone()
                part.narrow(axis, part.shape[axis] - 1, 1).zero_()
            x += part.roll(1, axis) - part
        return x

    def split(self, x: Tensor) -> Split:
        """Where carried splits begin: at 0."""
        shape = (*x.shape[: x.ndim - self.volume_ndim], len(self.axes),
                 *x.shape[x.ndim - self.volume_ndim :])
        return Split(x.new_zeros(shape), x.new_zeros(shape))


def coupled(y: Tensor, operator: LinearOperator, noise_std: Tensor, D: Differences, *,
            gamma: float | None, rho: Tensor, threshold: Tensor, isotropic: bool, sweeps: int,
            cg_iterations: int) -> Coupled:
    """``(x0, sigma, split) -> (x, split)``: sweeps of alternating directions started at ``x0`` on

        ``1/2 ||A x - y||^2 + lambda ||D x||_1 + 1/(2 gamma) ||x - x0||^2``

    for volumes ``(*batch, n_z, channel, *spatial)``. Each sweep takes ``cg_iterations`` steps of
    conjugate gradients, one step size for a volume, on ``(A^H A + 1/gamma + rho D^H D) x = A^H y +
    x0/gamma + rho D^H (z - u)``, then shrinks ``D x + u`` to ``z`` by ``threshold = lambda / rho``
    and adds what was cut off to ``u`` (Chung, Lee, Ye 2024, section 4.2; Boyd et al. 2011, 6.4).
    ``gamma=None`` takes ``sigma^2 / noise_std^2``, noiseless data infinity, which is the paper's.

    ``rho`` and ``threshold`` are one for each volume, ``(*batch,)`` or one number. Where ``rho``
    is 0, or ``gamma`` is, this is ``proximal`` for each slice alone. ``isotropic`` counts the
    length of a voxel's vector of differences, else each by itself; complex ones by magnitude.
    """
    check_weights(gamma, cg_iterations)
    if gamma == 0 or not bool((rho > 0).any()):
        alone = proximal(y, operator, noise_std, gamma=gamma, cg_iterations=cg_iterations)
        return lambda x0, sigma, split: (alone(x0, sigma), split)
    pulled = operator.adjoint(y)
    item_ndim = D.volume_ndim - 1
    rho = rho.reshape(*rho.shape, *(1,) * D.volume_ndim)
    threshold = threshold.reshape(*threshold.shape, *(1,) * (D.volume_ndim + 1))

    def swept(x0: Tensor, sigma: Tensor, split: Split) -> tuple[Tensor, Split]:
        weight = (noise_std / sigma).square() if gamma is None else torch.as_tensor(1 / gamma)
        shift = weight.to(x0.device, x0.dtype.to_real())
        shift = shift.reshape(*shift.shape, *(1,) * item_ndim) if shift.ndim else shift

        def shifted(x: Tensor) -> Tensor:
            return operator.normal(x) + shift * x + rho * D.adjoint(D(x))

        x, (z, u) = x0, split
        for _ in range(sweeps):
            rhs = pulled + shift * x0 + rho * D.adjoint(z - u)
            x = conjugate_gradient(shifted, rhs, x, item_ndim=D.volume_ndim,
                                   max_iter=cg_iterations, rtol=1e-6).x
            moved = D(x) + u
            u = cut(moved, threshold, D.volume_ndim, isotropic)
            z = moved - u
        return x, Split(z, u)

    return swept


def cut(d: Tensor, threshold: Tensor, volume_ndim: int, isotropic: bool) -> Tensor:
    """What soft thresholding takes away: the nearest to ``d`` no longer than ``threshold``."""
    length = d.abs()
    if isotropic:
        length = length.square().sum(-volume_ndim - 1, keepdim=True).sqrt()
    return d * torch.where(length > threshold, threshold / length, 1)
