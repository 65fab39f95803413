"""Twisted diffusion: particles proposed by the gradient of a predicted likelihood."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from recon.guidance import check_weights, denoise_with_pullback
from recon.guidance.likelihood import spread
from recon.integrators import Step, schedules
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin
from recon.samplers.particles import (
    Particles,
    check_share,
    energy,
    moved,
    newborn,
    past_the_noise,
)
from recon.samplers.problem import check_problem, check_sigmas

Twist = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def check_settings(*, steps: int, prior_std: float | None, cg_iterations: int,
                   resample_below: float, sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(None, cg_iterations)
    check_share(resample_below)
    if prior_std is not None and not 0 < prior_std < math.inf:
        raise ValueError("prior_std wants a finite number > 0, or None for prior.scale, got "
                         f"{prior_std}")
    check_sigmas(schedules.vp(1) if sigmas is None else sigmas)
    if steps < 1:
        raise ValueError(f"steps wants at least 1, got {steps}")


@sampler_with(check_settings, joint=True)
def twisted(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
            samples: int = 4, steps: int = 100, prior_std: float | None = None,
            cg_iterations: int = 20, resample_below: float = 0.5, sigmas: Tensor | None = None,
            generator: Source = None, start: Particles | None = None) -> Iterator[Particles]:
    """Twisted diffusion sampler, TDS (Wu et al., NeurIPS 2023, arXiv 2306.17775).

    Ancestral sampling moved by the gradient, through the network, of the twist ``N(y; A D(x), s^2 +
    r^2 A A^H)``, with weights that make up for what the twist gets wrong; the last step is weighed
    by the likelihood itself. Consistent as ``samples`` grow, whatever the twist. Returns equally
    weighted draws ``(samples, *batch, channel, *spatial)``; ``twisted.run`` gives the weights and
    the evidence (``Particles``). As in ``smc``, with many measurements one particle takes all the
    weight: look at ``min_ess``.

    Parameters
    ----------
    noise_std
        ``s``, standard deviation of each real number of ``y``; one number or one per item; not 0.
    prior_std
        ``c`` of ``r^2 = sigma^2 c^2 / (sigma^2 + c^2)``, in the units of the image; None takes
        ``prior.scale``.
    cg_iterations
        Conjugate-gradient steps for the twist, where the operator has no closed form. A twist that
        is not solved to the end is another twist, and as valid.
    resample_below
        Resample an item where its effective share of the particles is less; 0 for never. The
        released code resamples at every step.
    sigmas
        Noise levels in the units of the image, falling to 0, ``(n,)`` or ``(n, *batch)``, in place
        of ``steps``; by default those of ``smc``.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Particles`` to go on from, with the settings and the generator's state then.

    Departures from the released code: no clipping, systematic resampling, and one noise level for
    all released variances.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples, noisy=True)
    check_settings(steps=steps, prior_std=prior_std, cg_iterations=cg_iterations,
                   resample_below=resample_below, sigmas=sigmas)
    if sigmas is None:
        sigmas = past_the_noise(steps, y, operator, prior, noise_std)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start and Step(*start[:4]))
    c = torch.as_tensor(prior.scale if prior_std is None else prior_std,
                        dtype=y.dtype.to_real(), device=y.device)
    twist = predicted_likelihood(y, operator, prior, noise_std, c, cg_iterations)
    item_ndim = len(operator.domain.shape)
    if start is None:
        x0, log_p, gradient = twist(run.x, run.sigmas[0])
        now = newborn(run, log_p, x0, carried=(log_p, gradient))
    else:
        now = start
    for i in range(run.first, len(run.sigmas) - 1):
        sigma, after = run.shaped[i], run.shaped[i + 1]
        log_p, gradient = now.carried
        if i + 2 == len(run.sigmas):
            gap = energy(y - operator(now.x0), len(operator.range.shape))
            log_weight = -gap / (2 * noise_std.double().square()) - log_p
            now = moved(now, now.x0, now.x0, log_weight, run, below=resample_below)
        else:
            kept, v = (after / sigma).square(), (sigma - after) * (sigma + after)
            push, variance, xi = v * gradient, kept * v, run.noise.like(now.x)
            x = now.x0 + kept * (now.x - now.x0) + push + variance.sqrt() * xi
            # log p(x | before) - log q(x | before): both Gaussian, push apart
            log_pq = (energy(xi, item_ndim) - energy(xi + push / variance.sqrt(), item_ndim)) / 2
            x0, log_p_next, gradient = twist(x, run.sigmas[i + 1])
            now = moved(now, x, x0, log_pq + log_p_next - log_p, run, below=resample_below,
                        carried=(log_p_next, gradient))
        yield now


def predicted_likelihood(y: Tensor, operator: LinearOperator, prior: Prior, noise_std: Tensor,
                         prior_std: Tensor, cg_iterations: int) -> Twist:
    """``(x, sigma) -> D(x), log p, grad_x log p`` of ``N(y; A D(x), s^2 + r^2 A A^H)``.

    Up to its normaliser, which is the same for all particles. ``(samples, *batch)`` in float64.
    """
    def twist(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0, pull = denoise_with_pullback(prior, x, sigma)
        r2 = 1 / (sigma.square().reciprocal() + prior_std.square().reciprocal())
        gap = y - operator(x0)
        e = operator.solve(operator.adjoint(gap), noise_std.square() / r2, None, cg_iterations)
        # as the least of |gap - A e|^2 / s^2 + |e|^2 / r^2, to which errors of e are second order
        misfit = energy(gap - operator(e), len(operator.range.shape)) / noise_std.double().square()
        size = energy(e, len(operator.domain.shape)) / r2.double()
        return x0, -(misfit + size) / 2, pull(e / spread(r2, operator))

    return twist
