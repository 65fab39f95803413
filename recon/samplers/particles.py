"""Arithmetic of weighted particles: effective number, resampling, ancestry, evidence."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from recon.operators.base import LinearOperator, Operator
from recon.operators.norm import squared_norm
from recon.priors import Prior
from recon.samplers.levels import Run


class Particles(NamedTuple):
    """Weighted draws at one noise level, and all that a later level needs.

    Until the last level ``x`` with ``log_weights`` approximates the law of this level, and ``x0``
    is the last prediction of the clean images. At the last level ``x`` with
    ``log_weights`` is the weighted ensemble of the posterior and ``x0`` equally weighted draws from
    it, by one more systematic resampling: its mean and standard deviation are the posterior's.
    """

    index: int  # type: ignore[assignment]  # levels done; hides tuple.index
    sigma: Tensor
    x: Tensor  # (samples, *batch, channel, *spatial)
    x0: Tensor
    log_weights: Tensor  # (samples, *batch), float64, up to a constant for each item
    log_evidence: Tensor  # (*batch,), float64: log E exp(-||y - A x||^2 / (2 noise_std^2)) so far
    ancestors: Tensor  # (samples, *batch): which of the first particles each descends from
    ess: Tensor  # (*batch,): effective share of the particles before this level's resampling
    min_ess: Tensor  # (*batch,): the least so far
    resamplings: Tensor  # (*batch,)
    carried: tuple[Tensor, ...] = ()  # of each particle, where a sampler needs more than its image

    @property
    def weights(self) -> Tensor:
        """Normalised over the samples, ``(samples, *batch)``."""
        return self.log_weights.softmax(0)

    @property
    def distinct_ancestors(self) -> Tensor:
        """How many of the first particles have descendants, ``(*batch,)``."""
        return 1 + (self.ancestors.sort(0).values.diff(dim=0) > 0).sum(0)


def newborn(run: Run, log_weights: Tensor | None = None, x0: Tensor | None = None,
            carried: tuple[Tensor, ...] = ()) -> Particles:
    """Particles at the first level of a run, of equal weight unless ``(samples, *batch)`` given."""
    samples, batch = run.x.shape[0], run.x.shape[1 : run.x.ndim - run.noise.item_ndim]
    first = torch.arange(samples, device=run.x.device).view(-1, *(1,) * len(batch))
    zeros = torch.zeros(batch, dtype=torch.float64, device=run.x.device)
    if log_weights is None:
        log_weights = zeros.expand(samples, *batch)
    ess = effective(log_weights)
    return Particles(0, run.sigmas[0], run.x, run.x if x0 is None else x0, log_weights,
                     log_weights.logsumexp(0) - math.log(samples), first.expand(samples, *batch),
                     ess, ess, zeros.long(), carried)


def effective(log_weights: Tensor) -> Tensor:
    """``(sum w)^2 / (n sum w^2)`` over the first dimension: from 1 / n to 1, exactly 1 if equal."""
    w = (log_weights - log_weights.amax(0)).exp()
    return w.sum(0).square() / (len(w) * w.square().sum(0))


def systematic(log_weights: Tensor, u: Tensor) -> Tensor:
    """Which particle each draw takes, sorted, ``(samples, *batch)``; one ``u`` in [0, 1) per item.

    Particle i is taken ``floor(n w_i)`` or ``ceil(n w_i)`` times, ``n w_i`` on average over ``u``.
    """
    n = len(log_weights)
    w = log_weights.softmax(0).movedim(0, -1).contiguous()
    ends = w.cumsum(-1)
    combs = (u.unsqueeze(-1) + torch.arange(n, device=u.device)) / n
    # ends[-1] is 1 but for rounding
    return torch.searchsorted(ends, combs, right=True).clamp(max=n - 1).movedim(-1, 0)


def taken(x: Tensor, ancestors: Tensor) -> Tensor:
    """``x[ancestors]`` for each item: ``x`` ``(samples, *batch, *item)``."""
    n, items = len(x), ancestors[0].numel()
    flat = x.reshape(n, items, -1)
    rows = torch.arange(items, device=x.device)
    return flat[ancestors.reshape(n, items), rows].reshape(x.shape)


def moved(old: Particles, x: Tensor, x0: Tensor, log_weight: Tensor, run: Run, *, below: float,
          carried: tuple[Tensor, ...] = ()) -> Particles:
    """The particles one level further: weighted, and resampled where the effective share is low.

    ``log_weight`` ``(samples, *batch)`` is what the step adds; a particle for which it is not a
    number dies. Items whose effective share is less than ``below`` are resampled; one uniform
    number is drawn for each item whether it is needed or not, so that nothing is read back.
    """
    index, last = old.index + 1, old.index + 2 == len(run.sigmas)
    dead = torch.full_like(log_weight, -torch.inf)
    log_weights = old.log_weights + torch.where(log_weight.isnan(), dead, log_weight)
    evidence = old.log_evidence + log_weights.logsumexp(0) - old.log_weights.logsumexp(0)
    ess = effective(log_weights)
    stay = torch.arange(len(x), device=x.device).view(-1, *(1,) * ess.ndim)
    drawn = systematic(log_weights, run.noise.uniform(x))
    if last:
        _judge(log_weights, torch.minimum(old.min_ess, ess), old.distinct_ancestors)
        x0 = taken(x, torch.where(ess < 1, drawn, stay))
        drawn, below = stay.expand_as(drawn), 0.0
    else:
        drawn = torch.where(ess < below, drawn, stay)
        x0 = taken(x0, drawn)
    log_weights = torch.where(ess < below, 0.0, log_weights)
    return Particles(index, run.sigmas[index], taken(x, drawn), x0, log_weights, evidence,
                     taken(old.ancestors, drawn), ess, torch.minimum(old.min_ess, ess),
                     old.resamplings + (ess < below), tuple(taken(c, drawn) for c in carried))


def _judge(log_weights: Tensor, min_ess: Tensor, distinct: Tensor) -> None:
    """Refuse items without a living particle; warn of those that hang on one."""
    n, alive = len(log_weights), torch.isfinite(log_weights).any(0)
    if not bool(alive.all()):
        raise ValueError(f"every particle{_first(~alive)} has weight zero: take more samples, more "
                         "levels or a larger noise_std")
    poor = (n * min_ess < 2) | (distinct < 2)
    if n > 1 and bool(poor.any()):
        warnings.warn(f"the {n} draws{_first(poor)} hang on fewer than two particles, by weight at "
                      "some level or by descent: their spread is not the posterior's. Take more "
                      "samples; for images see the help of samplers.smc", stacklevel=5)


def _first(flags: Tensor) -> str:
    return f" of item {tuple(int(i) for i in flags.nonzero()[0])}" if flags.ndim else ""


def log_normal(left: Tensor, variance: Tensor, parts: int) -> Tensor:
    """``log N(left; 0, variance)`` for each number, in float64, without its ``log 2 pi``.

    ``parts`` is 2 for complex numbers, whose real and imaginary part have that variance each.
    """
    variance = variance.double()
    return -0.5 * (_squared(left) / variance + parts * variance.log())


def energy(x: Tensor, item_ndim: int) -> Tensor:
    """``sum |x|^2`` of each item in float64, ``(*leading,)``."""
    return _squared(x).sum(tuple(range(-item_ndim, 0)))


def _squared(x: Tensor) -> Tensor:
    x = x.to(torch.complex128) if x.is_complex() else x.double()
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def past_the_noise(steps: int, y: Tensor, operator: Operator, prior: Prior,
                   noise_std: Tensor) -> Tensor:
    """Levels in the units of the image that end below the noise of the data, then 0.

    Those of Karras et al. 2022 from the lesser of 80 and ``prior.sigma_max`` to the lesser of 0.01
    and ``0.3 noise_std / ||A||``, not below ``prior.sigma_min``, times ``prior.scale``. For a
    nonlinear operator ``||A||`` is counted as 1. ``(steps + 1,)`` or ``(steps + 1, *batch)``.
    """
    scale = torch.as_tensor(prior.scale, dtype=torch.float64, device=y.device)
    high = min(80.0, prior.sigma_max) * scale
    low = 0.3 * noise_std.double()
    if isinstance(operator, LinearOperator):
        gain = squared_norm(operator, operator.adjoint(y)).double().sqrt()
        low = torch.where(gain > 0, low / torch.where(gain > 0, gain, 1), torch.inf)
    low = torch.maximum(torch.minimum(low, 0.01 * scale), prior.sigma_min * scale)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64, device=y.device)
    ramp = ramp.view(-1, *(1,) * low.ndim)
    top, bottom = high ** (1 / 7), low ** (1 / 7)
    falling = (top + ramp * (bottom - top)) ** 7
    return torch.cat([falling, torch.zeros_like(falling[:1])])


def check_share(resample_below: float) -> None:
    """Refuse a threshold that is no share of the particles."""
    if not 0 <= resample_below <= 1:
        raise ValueError(f"resample_below wants a share of the particles in [0, 1], got "
                         f"{resample_below}")
