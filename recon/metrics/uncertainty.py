"""Whether the spread of posterior samples is the error's: scores, coverage, ranks, sparsification.

Samples are ``(samples, *shape)``, the truth ``(*shape)``. Where both are complex they are compared
by magnitude; one complex and one real is refused. ``region``, bool, fits ``shape`` and says which
pixels count: in air, samples are nearly constant and every measure here is distorted. Numbers are
float64. Neighbouring pixels are dependent, so the pixels of one image do not make the standard
errors and p values of as many independent trials.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recon.metrics.region import chosen_pixels
from recon.operators.base import Operator


class CRPS(NamedTuple):
    """Continuous ranked probability score, in the units of the image; smaller is better."""

    mean: float
    """Over the counted pixels."""
    pixels: int
    map: Tensor
    """``(*shape)``, NaN where not counted."""


class Coverage(NamedTuple):
    """Central intervals between order statistics, one entry per level, float64 ``(levels,)``."""

    levels: Tensor
    """As asked for."""
    nominal: Tensor
    """What the interval taken covers of exchangeable samples and truth, at least the level."""
    empirical: Tensor
    """Share of the pixels whose truth lies within."""
    width: Tensor
    """Mean width, in the units of the image."""
    interval_score: Tensor
    """Mean of ``u - l + 2 / alpha`` times the distance outside, ``alpha = 1 - nominal``."""
    pixels: int
    constant: int
    """Pixels whose samples are all equal: they have no interval."""


class RankHistogram(NamedTuple):
    """How many samples lie below the truth, counted over pixels."""

    counts: Tensor
    """int64 ``(samples + 1,)``; flat where truth and samples are exchangeable."""
    statistic: float
    """Pearson's chi square against the flat histogram."""
    p_value: float
    """Of that many independent pixels; NaN where fewer than five are expected per rank."""
    pixels: int


class Sparsification(NamedTuple):
    """Mean absolute error of the pixels that remain as the most uncertain are removed."""

    removed: Tensor
    """Share of the pixels removed, ``(points,)``."""
    curve: Tensor
    """Removing by ``std``; in the units of the image."""
    oracle: Tensor
    """Removing by the error itself: no order does better."""
    ause: float
    """Area between the two curves, in the units of the image; divide by ``curve[0]`` to compare."""
    correlation: float
    """Pearson's, of absolute error and ``std``; NaN where either is constant."""
    pixels: int


class Residual(NamedTuple):
    """``||y - A x|| / (noise_std sqrt(m))``, near 1 for draws from the posterior."""

    ratio: Tensor
    """float64 ``(samples, *batch)``."""
    numbers: Tensor
    """``m``, the measured real numbers, two for each complex entry: int64 ``(*batch,)``."""


def crps(samples: Tensor, truth: Tensor, fair: bool = False, *,
         region: Tensor | None = None) -> CRPS:
    """``mean |x_i - y| - sum_ij |x_i - x_j| / (2 M^2)`` over ``M`` samples.

    That is the score of the samples as they are. ``fair`` divides by ``2 M (M - 1)``: its
    expectation is the score of the distribution they come from, whatever ``M`` (Ferro 2014,
    10.1002/qj.2270), and a single value may be negative.
    """
    x, y, chosen = _compared("crps", samples, truth, region)
    m = len(x)
    if fair and m < 2:
        raise ValueError("crps: the fair score wants at least 2 samples, got 1")
    x = x.sort(0).values
    # sum_ij |x_i - x_j| of sorted values, without the M^2 differences
    weight = 2 * (2 * torch.arange(m, dtype=x.dtype) - m + 1)
    spread = torch.einsum("m,mn->n", weight, x - x[:1])
    score = (x - y).abs().mean(0) - spread / (2 * m * (m - 1 if fair else m))
    return _mapped(score, chosen)


def gaussian_crps(mean: Tensor, std: Tensor, truth: Tensor, *,
                  region: Tensor | None = None) -> CRPS:
    """CRPS of ``N(mean, std^2)``: ``std (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))``.

    ``z = (truth - mean) / std``; the absolute error where ``std`` is 0. All real, of one shape
    (Gneiting and Raftery 2007, 10.1198/016214506000001437).
    """
    if std.is_complex() or mean.is_complex() or truth.is_complex():
        raise TypeError("gaussian_crps wants real tensors: pass mean and std of magnitudes")
    if not mean.shape == std.shape == truth.shape:
        raise ValueError(f"gaussian_crps wants one shape, got mean {tuple(mean.shape)}, std "
                         f"{tuple(std.shape)} and truth {tuple(truth.shape)}")
    both = torch.stack([mean.double(), std.double()])
    (centre, wide), y, chosen = _compared("gaussian_crps", both, truth, region, "mean and std")
    if bool((wide < 0).any()):
        raise ValueError("gaussian_crps wants std >= 0")
    z = (y - centre) / torch.where(wide > 0, wide, 1)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    spread = z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)
    return _mapped(torch.where(wide > 0, wide * spread, (y - centre).abs()), chosen)


def interval_coverage(samples: Tensor, truth: Tensor, levels: Sequence[float] = (0.5, 0.8, 0.9), *,
                      region: Tensor | None = None) -> Coverage:
    """How often the truth lies in central intervals ``[x_(k), x_(M + 1 - k)]`` of the samples.

    For truth and samples that are exchangeable these cover ``(M + 1 - 2 k) / (M + 1)``, not the
    share of samples they hold: smallest to largest of 9 cover 80 %. The narrowest with at least the
    level is taken. Raises ValueError for a level that ``M`` samples do not reach, saying how many
    do. Truth on an interval's end counts as covered, hence constant pixels that agree do.
    """
    x, y, chosen = _compared("interval_coverage", samples, truth, region)
    m = len(x)
    if not len(levels):
        raise ValueError("interval_coverage wants at least one level")
    x = x.sort(0).values
    rows = []
    for level in levels:
        if not 0 < level < 1:
            raise ValueError(f"interval_coverage: levels want numbers within 0 and 1, got {level}")
        # the largest k that still covers the level; rounding must not cost one
        k = min(math.floor((m + 1) * (1 - level) / 2 + 1e-9), m // 2)
        if k < 1:
            need = math.ceil((1 + level) / (1 - level) - 1e-9)
            raise ValueError(f"interval_coverage: {m} samples reach a level of "
                             f"{(m - 1) / (m + 1):.4g} at most, {level:g} wants {need}: draw more")
        low, high = x[k - 1], x[m - k]
        alpha = 2 * k / (m + 1)
        outside = (low - y).clamp(min=0) + (y - high).clamp(min=0)
        width = (high - low).mean()
        rows.append((level, 1 - alpha, float((outside == 0).double().mean()), float(width),
                     float(width + 2 / alpha * outside.mean())))
    wanted, nominal, empirical, widths, scores = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return Coverage(wanted, nominal, empirical, widths, scores, int(chosen.sum()),
                    int((x[0] == x[-1]).sum()))


def reliability(coverage: Coverage) -> float:
    """Mean over the levels of ``|empirical - nominal|``; 0 where calibrated."""
    return float((coverage.empirical - coverage.nominal).abs().mean())


def rank_histogram(samples: Tensor, truth: Tensor, generator: torch.Generator, *,
                   region: Tensor | None = None) -> RankHistogram:
    """Ranks of the truth among the samples; among equal values the rank is drawn uniformly."""
    from scipy.stats import chisquare

    x, y, _ = _compared("rank_histogram", samples, truth, region)
    n, ranks = y.numel(), len(x) + 1
    ties = (x == y).sum(0)
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    rank = (x < y).sum(0) + torch.minimum((u * (ties + 1)).long(), ties)
    counts = torch.bincount(rank, minlength=ranks)
    statistic, p = chisquare(counts.numpy())
    return RankHistogram(counts, float(statistic), float(p) if n >= 5 * ranks else math.nan, n)


def sparsification(error: Tensor, std: Tensor, *, region: Tensor | None = None,
                   points: int = 20) -> Sparsification:
    """Whether a large ``std`` says where the error is large (Ilg et al. 2018, arXiv 1802.07095).

    ``error``, of any sign or complex, counts by magnitude; ``std`` is real. Pixels of equal ``std``
    leave in random order, of which the curve is the expectation. The area is over all pixels,
    whatever ``points``.
    """
    if error.shape != std.shape:
        raise ValueError(f"sparsification wants one shape, got error {tuple(error.shape)} and std "
                         f"{tuple(std.shape)}")
    if std.is_complex():
        raise TypeError("sparsification wants a real std")
    if points < 1:
        raise ValueError(f"sparsification: points wants at least 1, got {points}")
    wide = torch.complex128 if error.is_complex() else torch.float64  # abs() of -128 wraps
    error = error.detach().cpu().to(wide).abs()
    (error,), std, _ = _compared("sparsification", error[None], std, region, "error", "std")
    if bool((std < 0).any()):
        raise ValueError("sparsification wants std >= 0")
    _, group = std.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    size = torch.bincount(group)
    shared = (torch.bincount(group, error) / size).repeat_interleave(size)
    n = error.numel()
    left = torch.arange(1, n + 1, dtype=torch.float64)
    # entry r - 1: the mean over the r pixels that remain
    curve, oracle = (v.cumsum(0) / left for v in (shared, error.sort().values))
    removed = torch.arange(points, dtype=torch.float64) / points
    at = n - 1 - (removed * n).long()
    ause = float((curve - oracle).mean())
    return Sparsification(removed, curve[at], oracle[at], ause, _correlation(error, std), n)


@torch.no_grad()
def residual_over_noise(y: Tensor, operator: Operator, samples: Tensor,
                        noise_std: Tensor | float, *, region: Tensor | None = None) -> Residual:
    """``||y - A x|| / (noise_std sqrt(m))`` of each sample, over what was measured.

    ``y`` ``(*batch, *range)``, samples ``(samples, *batch, *domain)``, ``noise_std`` per real
    number, one or ``(*batch,)``. Of draws from the posterior it is distributed as that of the
    truth: 1 with a standard deviation of ``1 / sqrt(2 m)``. Larger says the data are not met,
    smaller that noise was fitted; a posterior mean lies below 1.

    ``region``, bool, fits ``y`` and says what was measured. Without it an entry was not measured
    where ``y`` is 0 and the operator gives 0 whatever the image, tried on noise and its negative:
    columns that a mask leaves out are not counted, rays past the image are where they hold noise.
    """
    operator.range.check(y, "residual_over_noise: y")
    operator.domain.check(samples, "residual_over_noise: samples")
    batch = operator.range.batch_of(y)
    given = operator.domain.batch_of(samples)
    if len(given) != len(batch) + 1 or given[1:] != batch or not given[0]:
        raise ValueError("residual_over_noise wants samples (samples, *batch, *domain) for the "
                         f"batch {batch} of y, got {tuple(samples.shape)}")
    noise = torch.as_tensor(noise_std, dtype=torch.float64).cpu()
    usable = bool((torch.isfinite(noise) & (noise > 0)).all())
    if not usable or tuple(noise.shape) not in ((), batch):
        raise ValueError("residual_over_noise: noise_std wants finite numbers > 0, one or one per "
                         f"item {batch}, got {noise_std}")
    for name, x in (("y", y), ("samples", samples)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"residual_over_noise: {name} hold NaN or infinity")
    # what the operator's products round must stay below the noise
    y, samples = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (y, samples))
    measured = (_measured(y, operator) if region is None
                else chosen_pixels(region, y.shape).to(y.device))
    item = tuple(range(-len(operator.range.shape), 0))
    numbers = (measured.sum(item) * (2 if y.is_complex() else 1)).cpu()
    if not bool((numbers > 0).all()):
        raise ValueError("residual_over_noise: nothing was measured of an item")
    wide = torch.complex128 if y.is_complex() else torch.float64
    left = torch.stack([
        torch.where(measured, y - operator(x), 0).cpu().to(wide).abs().square().sum(item).sqrt()
        for x in samples])
    return Residual(left / (noise * numbers.double().sqrt()), numbers)


def _measured(y: Tensor, operator: Operator) -> Tensor:
    source = torch.Generator().manual_seed(0)
    batch = operator.range.batch_of(y)
    kind = y.dtype.to_complex() if operator.domain.is_complex else y.dtype.to_real()
    noise = operator.domain.randn(*batch, generator=source, dtype=kind).to(y.device)
    # of an operator that is not linear, one sign alone may give zeros
    return (y != 0) | (operator(noise) != 0) | (operator(-noise) != 0)


def _compared(call: str, samples: Tensor, truth: Tensor, region: Tensor | None,
              first: str = "samples", second: str = "truth") -> tuple[Tensor, Tensor, Tensor]:
    """The counted pixels, ``(samples, n)`` and ``(n,)``, and where they are, ``(*shape)``."""
    if samples.ndim < 1 or samples.shape[1:] != truth.shape or not len(samples):
        raise ValueError(f"{call} wants {first} (samples, *shape) and {second} (*shape), got "
                         f"{tuple(samples.shape)} and {tuple(truth.shape)}")
    if samples.is_complex() != truth.is_complex():
        kinds = ("complex", "real") if samples.is_complex() else ("real", "complex")
        raise TypeError(f"{call}: {first} are {kinds[0]}, {second} is {kinds[1]}: pass magnitudes "
                        "of both, or the part you mean")
    chosen = chosen_pixels(region, truth.shape)
    found = []
    for name, x, where in ((first, samples, (slice(None), chosen)), (second, truth, (chosen,))):
        x = x.detach().cpu()[where]
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{call}: NaN or infinity in {name} where it counts")
        found.append(x.to(torch.complex128).abs() if x.is_complex() else x.double())
    return found[0], found[1], chosen


def _mapped(score: Tensor, chosen: Tensor) -> CRPS:
    full = torch.full(chosen.shape, torch.nan, dtype=score.dtype)
    full[chosen] = score
    return CRPS(float(score.mean()), score.numel(), full)


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return float(a @ b) / size if size > 0 else math.nan
