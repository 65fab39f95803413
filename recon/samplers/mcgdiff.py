"""MCGDiff: each singular value's measurement is a pixel seen without noise at its own level."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon.guidance.likelihood import spread
from recon.integrators import Step, schedules
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.operators.svd import SVD, svd
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin
from recon.samplers.particles import (
    Particles,
    check_share,
    energy,
    log_normal,
    moved,
    newborn,
    past_the_noise,
)
from recon.samplers.problem import check_problem, check_sigmas


def check_settings(*, steps: int, resample_below: float, sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_share(resample_below)
    check_sigmas(schedules.vp(1) if sigmas is None else sigmas)
    if steps < 1:
        raise ValueError(f"steps wants at least 1, got {steps}")


@sampler_with(check_settings, joint=True)
def mcgdiff(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
            samples: int = 64, steps: int = 100, resample_below: float = 1.0,
            sigmas: Tensor | None = None, generator: Source = None,
            start: Particles | None = None) -> Iterator[Particles]:
    """Monte Carlo guided diffusion (Cardoso et al., ICLR 2024, arXiv 2308.07983).

    Along each singular vector of ``A`` the measurement ``y / s`` is the image with noise of level
    ``tau = noise_std / s``: the noisy image of that level, seen without noise. Above it particles
    are drawn towards where the noise took ``y / s``, below it they go on unguided. Consistent as
    ``samples`` grow. Returns equally weighted draws ``(samples, *batch, channel, *spatial)``;
    ``mcgdiff.run`` gives the weights and the evidence (``Particles``). As in ``smc``, with many
    measurements one particle takes all the weight: look at ``min_ess``.

    Operators want a singular value decomposition, ``operators.svd``; directions with ``tau`` above
    the first level, noisier than the start, count as not measured.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item; not 0.
    resample_below
        Resample an item where its effective share of the particles is less; the paper resamples at
        every step.
    sigmas
        Noise levels in the units of the image, falling to 0, ``(n,)`` or ``(n, *batch)``, in place
        of ``steps``; by default those of ``smc``.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Particles`` to go on from, with the settings and the generator's state then.

    Departures: where the released code moves ``tau`` to a level and widens what is seen there by
    ``kappa``, the step across ``tau`` stops there, with the exact weight, for each direction alone;
    no weight is divided by a narrow potential at the end. Resampling is systematic.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples, noisy=True)
    check_settings(steps=steps, resample_below=resample_below, sigmas=sigmas)
    if sigmas is None:
        sigmas = past_the_noise(steps, y, operator, prior, noise_std)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start and Step(*start[:4]))
    of = svd(operator, run.x)
    seen = _seen(y, operator, noise_std, of)
    now = start
    if now is None:
        top = run.shaped[0]
        z = of.right_adjoint(run.x / top)
        x, log_p = seen.drawn(torch.zeros_like(z), top.square(), top, z, seen.above(top))
        constant = seen.density(seen.above(top))
        now = newborn(run, log_p + constant)._replace(x=of.right(x))
    for i in range(run.first, len(run.sigmas) - 1):
        sigma, after = run.shaped[i], run.shaped[i + 1]
        x0 = prior(now.x, run.sigmas[i])
        x, d, xi = of.right_adjoint(now.x), of.right_adjoint(x0), run.noise.like(x0)
        above = seen.above(sigma)
        # to the next level, or to tau where that lies between
        stop = torch.maximum(after, torch.where(above, seen.tau, 0))
        kept = (stop / sigma).square()
        variance = kept * (sigma - stop) * (sigma + stop)
        before = seen.potential(x, sigma)
        x, log_p = seen.drawn(d + kept * (x - d), variance, stop, xi, above)
        kept = (after / torch.where(stop > 0, stop, 1)).square()
        x = d + kept * (x - d) + (kept * (stop - after) * (stop + after)).sqrt() * xi
        now = moved(now, of.right(x), x0, log_p - before, run, below=resample_below)
        yield now


class _Seen(NamedTuple):
    """What is seen along each singular vector: the image noised to ``tau``, and nothing else."""

    tau: Tensor  # infinite where nothing is measured
    value: Tensor  # (*batch, *domain.shape)
    unseen: Tensor  # (*batch,): what no image explains, ||y - U U^H y||^2 / (2 s^2)
    item_ndim: int

    def above(self, level: Tensor) -> Tensor:
        """Where ``tau`` lies clearly below: what lies within rounding counts as reached."""
        return level > self.tau * (1 + 8 * torch.finfo(self.tau.dtype).eps)

    def spread_at(self, level: Tensor) -> Tensor:
        """``level^2 - tau^2``: of the noisier image of ``level`` about ``value``; 0 at ``tau``."""
        return torch.where(self.above(level), (level - self.tau) * (level + self.tau), 0)

    def potential(self, x: Tensor, level: Tensor) -> Tensor:
        """``log N(x; value, level^2 - tau^2)`` over what is still to be reached."""
        above = self.above(level)
        spread = torch.where(above, self.spread_at(level), 1)
        return self._summed(log_normal(x - self.value, spread, self._parts), above)

    def drawn(self, mean: Tensor, variance: Tensor, level: Tensor, xi: Tensor,
              active: Tensor) -> tuple[Tensor, Tensor]:
        """From ``N(mean, variance)`` times the potential at ``level``; the product's integral."""
        spread, gap = self.spread_at(level), self.value - mean
        total = torch.where(active, variance + spread, 1)
        gain = torch.where(active, variance / total, 0)
        left = torch.where(active, variance * spread / total, variance)
        log_p = self._summed(log_normal(gap, total, self._parts), active)
        return mean + torch.where(active, gain * gap, 0) + left.sqrt() * xi, log_p

    def density(self, active: Tensor) -> Tensor:
        """From densities of ``value`` to ``exp(-||y - A x||^2 / (2 s^2))``, in logarithms."""
        width = torch.where(active, self.tau, 1).double().log() * self._parts
        return self._summed(width.expand(self.value.shape), active) - self.unseen

    @property
    def _parts(self) -> int:
        return 2 if self.value.is_complex() else 1

    def _summed(self, each: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, each, 0).flatten(-self.item_ndim).sum(-1)


def _seen(y: Tensor, operator: LinearOperator, noise_std: Tensor, of: SVD) -> _Seen:
    u, s = of.left_adjoint(y), torch.where(of.values > 0, of.values, 1)
    tau = torch.where(of.values > 0, spread(noise_std, operator) / s, torch.inf)
    left = energy(y - of.left(u), len(operator.range.shape))
    return _Seen(tau, u / s, left / (2 * noise_std.double().square()),
                 len(operator.domain.shape))
