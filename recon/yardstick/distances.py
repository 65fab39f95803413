"""How far weighted draws are from a Gaussian mixture that is known exactly.

Everything is in float64 and in real coordinates: a complex image is its real parts, then its
imaginary parts.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recon.priors import Gaussian, GaussianMixture

_QUANTILE_STEPS = 52  # bisections: a double's mantissa


class Law(NamedTuple):
    """A Gaussian mixture in real coordinates: ``(k,)``, ``(k, d)`` and ``(k, d, d)``."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        gap = self.means - self.mean
        between = (self.weights[:, None] * gap).mT @ gap
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + between


class Line(NamedTuple):
    """Gaussian mixtures on lines, one for each of ``p`` directions: ``(k,)``, ``(p, k)`` twice."""

    weights: Tensor
    means: Tensor
    stds: Tensor


def law_of(exact: Gaussian | GaussianMixture) -> Law:
    """The law of an exact prior or posterior in real coordinates."""
    if isinstance(exact, GaussianMixture):
        weights, means, covariances = exact.weights, exact.means, exact.covariances
    else:
        weights, means, covariances = torch.ones(1), exact.mean[None], exact.covariance[None]
    if means.is_complex():
        real, imaginary = covariances.real, covariances.imag
        covariances = torch.cat([torch.cat([real, -imaginary], -1),
                                 torch.cat([imaginary, real], -1)], -2)
    return Law(weights.double(), in_reals(means, means.ndim - 1), covariances.double())


def in_reals(x: Tensor, item_ndim: int) -> Tensor:
    """``(*batch, *item)`` as real vectors ``(*batch, d)`` in float64."""
    flat = x.flatten(x.ndim - item_ndim)
    return (torch.cat([flat.real, flat.imag], -1) if flat.is_complex() else flat).double()


def directions(d: int, count: int, seed: int = 0) -> Tensor:
    """``count`` random unit vectors, ``(count, d)``, always the same for one ``seed``."""
    u = torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return u / torch.linalg.vector_norm(u, dim=-1, keepdim=True)


def on_lines(law: Law, along: Tensor) -> Line:
    """The law of ``<u, x>`` for each row ``u`` of ``along``, ``(p, d)``."""
    kept = law.weights > 1e-15  # others move nothing in double precision
    weights, means, covariances = (part[kept] for part in law)
    variances = torch.einsum("pi,kij,pj->pk", along, covariances, along)
    return Line(weights / weights.sum(), along @ means.mT, variances.clamp(min=0).sqrt())


def moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(d,)`` and unbiased covariance ``(d, d)`` of draws ``(n, d)`` of weights ``(n,)``.

    Weights sum to one; the covariance is divided by ``1 - sum w^2``, ``(n - 1) / n`` for equal
    ones. A single draw has none: NaN.
    """
    mean = weights @ x
    gap = x - mean
    return mean, (weights[:, None] * gap).mT @ gap / (1 - weights.square().sum())


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """``sum |p - q| / 2`` over the last dimension."""
    return (p - q).abs().sum(-1) / 2


def wasserstein2(points: Tensor, weights: Tensor | None, line: Line) -> Tensor:
    """Squared 2-Wasserstein distances on each line, ``(*runs, p)``: points ``(*runs, p, n)``.

    ``sum_i int (x_i - t)^2 dF(t)`` over the part of the law between the quantiles of the weights
    accumulated before and after ``x_i``, each integral in closed form: the law is not sampled.
    ``weights`` are ``(*runs, n)`` and sum to one; None for equal ones.
    """
    # centred and scaled, so that the partial moments cancel little
    centre = (line.means @ line.weights)[:, None]
    wide = (line.stds + (line.means - centre).abs()).amax(-1, keepdim=True)
    wide = torch.where(wide > 0, wide, 1)
    unit = Line(line.weights, (line.means - centre) / wide, (line.stds / wide).clamp(min=1e-9))
    p, n = points.shape[-2:]
    runs = ((points - centre) / wide).reshape(-1, p, n)
    if weights is None:
        ends = torch.arange(1, n, dtype=runs.dtype, device=runs.device) / n
        parts = _parts(ends.expand(p, -1), unit)
        costs = [_cost(x.sort(-1).values, parts) for x in runs]
    else:
        costs = []
        for x, w in zip(runs, weights.reshape(-1, n), strict=True):
            x, order = x.sort(-1)
            ends = w[order].cumsum(-1)[:, :-1].clamp(max=1.0)
            costs.append(_cost(x, _parts(ends, unit)))
    return (torch.stack(costs) * wide.squeeze(-1).square()).view(points.shape[:-1])


def _cost(x: Tensor, parts: list[Tensor]) -> Tensor:
    zero, one, two = parts
    return (x.square() * zero - 2 * x * one + two).sum(-1).clamp(min=0)


def _parts(ends: Tensor, line: Line) -> list[Tensor]:
    """Moments 0, 1, 2 of the parts of the law between the quantiles of ``ends``, ``(p, n)``."""
    below = _partial_moments(_quantiles(ends, line), line)
    moments = (torch.ones_like(line.means), line.means, line.means.square() + line.stds.square())
    whole = [(moment @ line.weights)[:, None] for moment in moments]
    return [torch.cat([torch.zeros_like(total), part, total], -1).diff(dim=-1)
            for part, total in zip(below, whole, strict=True)]


def _quantiles(levels: Tensor, line: Line) -> Tensor:
    low = (line.means - 9 * line.stds).amin(-1, keepdim=True).expand_as(levels)
    high = (line.means + 9 * line.stds).amax(-1, keepdim=True).expand_as(levels)
    for _ in range(_QUANTILE_STEPS):
        middle = (low + high) / 2
        share = torch.special.ndtr((middle[..., None] - line.means[:, None]) / line.stds[:, None])
        below = share @ line.weights < levels
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _partial_moments(t: Tensor, line: Line) -> tuple[Tensor, ...]:
    """``int_{-inf}^t s^j dF(s)`` for j = 0, 1, 2, each like ``t``, ``(p, n)``."""
    m, s, w = line.means[:, None], line.stds[:, None], line.weights
    z = (t[..., None] - m) / s
    share = torch.special.ndtr(z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return (share @ w, (m * share - s * density) @ w,
            ((m.square() + s.square()) * share - s * (t[..., None] + m) * density) @ w)


def uniformity(ranks: Tensor, draws: int) -> Tensor:
    """p value of Pearson's chi-square test that ranks in ``0..draws`` are uniform, ``(...)``.

    Ranks ``(n, ...)``; at least five expected in each bin, of at most 20. One minus the chi-square
    law's distribution function, its large-sample form. Talts et al. 2018, arXiv 1804.06788.
    """
    n, values = len(ranks), draws + 1
    sizes = [b for b in range(2, 21) if values % b == 0 and n >= 5 * b]
    if not sizes:
        raise ValueError(f"uniformity wants at least 10 ranks and an even number of values, got "
                         f"{n} ranks of {values} values")
    bins = sizes[-1]
    which = ranks * bins // values
    counts = torch.nn.functional.one_hot(which, bins).sum(0).double()
    statistic = ((counts - n / bins).square() / (n / bins)).sum(-1)
    half = torch.full_like(statistic, (bins - 1) / 2)
    return torch.special.gammaincc(half, statistic / 2)
