"""The same noisy images for a prior and for every other reading of it."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from recon.priors.base import Prior

Denoise = Callable[[Tensor, Tensor], Tensor]

_LEVELS = (0.05, 0.2, 0.6, 2.0, 6.0)  # times the images' deviation


class LevelRow(NamedTuple):
    """One noise level: root mean square error, what it must stay below, and the noise found.

    ``found`` is ``<sigma n, x - D> / |x - D|^2``, which is one for the mean of the posterior, but
    for chance: of images of few numbers it has a deviation of ``doubt``.
    """

    sigma: float
    error: float
    limit: float
    found: float
    doubt: float = 0.0

    @property
    def passed(self) -> bool:
        # where nothing is taken away any number is found, and doubt has no end
        found = 0.5 <= self.found <= 2 or (
            self.doubt < 1 and abs(self.found - 1) <= 3 * self.doubt)
        return self.error <= self.limit and found


class Trial:
    """The same noisy images for the prior and for every other reading of it."""

    def __init__(self, prior: Prior, x0: Tensor, generator: torch.Generator) -> None:
        self.x0 = x0
        real = 2 if x0.is_complex() else 1  # numbers per pixel
        self.energy = float(x0.abs().square().mean()) / real
        spread = math.sqrt(float((x0 - x0.mean()).abs().square().mean()) / real)
        if not spread > 0:
            raise ValueError("check: want images that are not constant")
        self.spread = spread
        self.sigmas = self._levels(prior)
        self.noises = [noise_like(x0, generator) for _ in self.sigmas]

    def _levels(self, prior: Prior) -> list[float]:
        unit = float(torch.as_tensor(prior.scale).max())
        low = max(_LEVELS[0] * self.spread, prior.sigma_min * unit)
        high = min(_LEVELS[-1] * self.spread, prior.sigma_max * unit)
        if not low < high:
            # of images far smaller or larger than the prior's: its own levels, to see by how much
            low, high = prior.sigma_min * unit, prior.sigma_max * unit
        between: list[float] = torch.logspace(math.log10(low), math.log10(high),
                                              len(_LEVELS)).tolist()
        inside = [s * self.spread for s in _LEVELS]
        return inside if low <= inside[0] and inside[-1] <= high else between

    def of(self, prior: Prior) -> "Trial":
        """The same images and noise at the levels that ``prior`` is meant for."""
        other = copy.copy(self)
        other.sigmas = self._levels(prior)
        return other

    def removed(self, denoise: Denoise) -> list[tuple[Tensor, Tensor]]:
        """Noise put in and taken away, at each level."""
        found = []
        for sigma, n in zip(self.sigmas, self.noises, strict=True):
            noise = sigma * n
            x = self.x0 + noise
            told = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
            found.append((noise, x - denoise(x, told)))
        return found

    def errors(self, denoise: Denoise) -> list[float]:
        """Mean squares of what each level leaves."""
        return [_mean(noise - taken) for noise, taken in self.removed(denoise)]

    def rows(self, denoise: Denoise) -> tuple[LevelRow, ...]:
        rows = []
        for sigma, (noise, taken) in zip(self.sigmas, self.removed(denoise), strict=True):
            along = float((noise.conj() * taken).real.double().mean())
            whole = float(taken.abs().square().double().mean())
            found = along / whole if whole > 0 else math.inf
            # the noise put in, whose mean square is not quite sigma^2 where numbers are few
            limit = math.sqrt(1.05 * min(_mean(noise), self.energy))
            # sum(n taken) has the variance sum(taken^2)
            doubt = sigma / math.sqrt(taken.numel() * whole) if whole > 0 else math.inf
            rows.append(LevelRow(sigma, math.sqrt(_mean(noise - taken)), limit, found, doubt))
        return tuple(rows)


def _mean(error: Tensor) -> float:
    mean = float(error.abs().square().double().mean()) / (2 if error.is_complex() else 1)
    return mean if math.isfinite(mean) else math.inf


def noise_like(like: Tensor, generator: torch.Generator) -> Tensor:
    parts = (*like.shape, 2) if like.is_complex() else like.shape
    n = torch.randn(parts, generator=generator, dtype=torch.float32).to(like.device)
    return torch.view_as_complex(n) if like.is_complex() else n
