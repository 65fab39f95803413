"""Noise levels from largest to zero, in units of the prior's scale."""

import math
from numbers import Integral

import torch
from torch import Tensor


def vp(steps: int, train_steps: int = 1000, beta_min: float = 1e-4,
       beta_max: float = 0.02) -> Tensor:
    """The levels of a linear variance-preserving schedule visited by ``steps`` equal strides.

    ``sigma = sqrt((1 - abar_t) / abar_t)`` at ``t = (steps - 1) s, ..., s, 0`` rounded down, with
    ``s = train_steps / steps``, then 0; ``(steps + 1,)`` in double precision. Always ``steps``
    levels, also where ``steps`` does not divide ``train_steps`` (the released DDS code takes more).
    """
    _positive(steps)
    if steps > train_steps:
        raise ValueError(f"vp wants at most {train_steps} steps, got {steps}")
    betas = torch.linspace(beta_min, beta_max, train_steps, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    visited = torch.arange(steps - 1, -1, -1) * train_steps // steps
    return _ended(((1 - abar) / abar).sqrt()[visited])


def geometric(steps: int, sigma_min: float = 0.01, sigma_max: float = 100.0) -> Tensor:
    """Levels falling by one factor from ``sigma_max`` to ``sigma_min``, then 0 (VE)."""
    _positive(steps, sigma_min, sigma_max)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return _ended(sigma_max * (sigma_min / sigma_max) ** ramp)


def karras(steps: int, sigma_min: float = 0.01, sigma_max: float = 80.0,
           rho: float = 7.0) -> Tensor:
    """The levels of Karras et al. 2022, equation 5, then 0."""
    _positive(steps, sigma_min, sigma_max)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _ended((high + ramp * (low - high)) ** rho)


def _positive(steps: int, sigma_min: float = 1.0, sigma_max: float = 2.0) -> None:
    if not isinstance(steps, Integral):
        raise TypeError(f"steps wants a whole number, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps wants at least 1, got {steps}")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"want 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")


def _ended(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])
