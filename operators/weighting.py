"""Measurements that count more or less than others."""

from typing import NamedTuple

import torch
from torch import Tensor

from recon.operators.base import LinearOperator, Space


class Weighting(LinearOperator):
    """``y = weights * x``, each number by a weight of its own.

    Parameters
    ----------
    weights
        Real and finite, broadcastable to ``(*batch, *space.shape)``; leading dimensions give each
        item its own weights.
    space
        Of the measurements; real or complex.
    """

    weights: Tensor

    def __init__(self, weights: Tensor, space: Space) -> None:
        super().__init__(space, space)
        weights = torch.as_tensor(weights)
        if weights.is_complex() or not bool(torch.isfinite(weights).all()):
            raise ValueError("Weighting: want real, finite weights, got "
                             + (f"{weights.dtype}" if weights.is_complex() else "NaN or infinity"))
        tail = tuple(weights.shape[-len(space.shape) :])
        if any(m not in (1, n) for m, n in zip(tail[::-1], space.shape[::-1], strict=False)):
            raise ValueError(f"Weighting: weights {tuple(weights.shape)} do not fit {space.shape}")
        self.register_buffer("weights", weights)
        self.items = tuple(weights.shape[: -len(space.shape)])

    def forward(self, x: Tensor) -> Tensor:
        return self.weights.to(x.dtype.to_real()) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.weights.to(y.dtype.to_real()) * y

    def solve(self, rhs: Tensor, shift: Tensor | float,
              x0: Tensor | None = None,  # noqa: ARG002 closed form
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:  # noqa: ARG002
        gain = self.weights.to(rhs.dtype.to_real()).square() + self.per_item(shift, rhs)
        # shift 0: nothing is known where nothing was measured, and 0 / 0 is not an answer
        return torch.where(gain == 0, 0, rhs / torch.where(gain == 0, 1, gain))


class Whitened(NamedTuple):
    """A measurement with noise of one size: what a sampler is called with."""

    y: Tensor
    operator: LinearOperator
    noise_std: Tensor  # (*batch,), or one number


def whitened(y: Tensor, operator: LinearOperator, noise_std: Tensor) -> Whitened:
    """``W y`` and ``W A`` with white noise, from ``y = A x`` with ``noise_std`` at each number.

    ``W`` multiplies by ``noise_std_w / noise_std``. Of every item, the mean square of ``W`` is 1,
    so that the size of measurements, and of settings relative to them, stays; ``noise_std_w`` is
    then the root of one over the mean of ``1 / noise_std^2``.

    Parameters
    ----------
    y
        ``(*batch, *operator.range.shape)``.
    noise_std
        Of each real number of ``y``, above 0, of the shape of ``y`` or one that broadcasts to it;
        infinite where nothing was measured. One number per item needs no whitening.
    """
    operator.range.check(y, "whitened")
    ndim = len(operator.range.shape)
    std = torch.as_tensor(noise_std, device=y.device)
    if std.is_complex() or std.ndim < ndim:
        raise ValueError("whitened: want a real noise_std for each number of y, "
                         f"{tuple(y.shape)}, got {tuple(std.shape)}: one per item goes to the "
                         "sampler as it is")
    if not bool((std > 0).all()):  # false for NaN as well
        raise ValueError("whitened: want noise_std > 0 everywhere, got "
                         f"{float(std[~(std > 0)][0])} at {int((~(std > 0)).sum())} numbers")
    try:
        std = std.to(y.dtype.to_real()).expand(*std.shape[:-ndim], *operator.range.shape)
        torch.broadcast_to(std, y.shape)
    except RuntimeError:
        raise ValueError(f"whitened: noise_std {tuple(noise_std.shape)} does not fit y, "
                         f"{tuple(y.shape)}") from None
    precision = std.double().square().reciprocal().mean(tuple(range(-ndim, 0)))
    if not bool((precision > 0).all()):
        raise ValueError("whitened: want some measurement with finite noise_std in every item")
    common = precision.rsqrt()
    weights = (common[(...,) + (None,) * ndim] / std).to(std.dtype)
    return Whitened(weights * torch.where(torch.isinf(std), 0, y),
                    Weighting(weights, operator.range) @ operator, common.to(std.dtype))
