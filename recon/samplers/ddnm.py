"""Denoising diffusion null-space model: the data replace what they determine."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recon.guidance import check_weights, completing_noise, proximal
from recon.integrators import Integrator, Step, schedules
from recon.integrators.base import Rule, ddim_noise
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, drive, scaled
from recon.samplers.problem import check_problem, check_sigmas


def check_settings(*, steps: int, eta: float, rule: Rule, cg_iterations: int,
                   sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(None, cg_iterations)
    ddim_noise(torch.ones(()), torch.ones(()), eta, rule)
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def ddnm(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
         samples: int = 1, steps: int = 100, eta: float = 0.85, rule: Rule = "released",
         cg_iterations: int = 10, sigmas: Tensor | None = None,
         integrator: Integrator | None = None, generator: Source = None,
         start: Step | None = None) -> Iterator[Step]:
    """Denoising diffusion null-space model (Wang, Yu, Zhang, ICLR 2023, arXiv 2212.00490).

    Without noise each prediction becomes ``D + A^+ (y - A D)``: what is measured from the data,
    the rest from the prior. With noise (DDNM+) the data come in only as far as their own noise
    stays below that of the level, and that much less fresh noise is added. Returns ``(samples,
    *batch, channel, *spatial)`` for ``y`` of ``(*batch, *operator.range.shape)``. With noise the
    draws fit it too closely and spread too little: the same data come in anew at every level.

    DDNM+ takes each singular component ``s_i`` of the correction as far as its noise, ``noise_std /
    s_i``, stays within the noise added. Without singular values a Wiener filter keeps that bound:
    beside fresh noise of deviation ``f`` the correction is ``(A^H A + rho)^-1 A^H (y - A D)`` with
    ``rho = (noise_std / (2 f))^2``, whose noise is at most ``f``, reached where ``s_i^2 = rho``;
    ``f (I - 2 rho (A^H A + rho)^-1) n`` is what is lacking to ``f`` in every direction.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item.
    eta, rule
        Share of fresh noise: ``"released"`` is that of the published code, ``"ddim"`` DDIM's, under
        which noisy data of ill-conditioned operators are fitted too closely. Noisy data want ``eta
        > 0``: their noise takes the place of fresh noise.
    cg_iterations
        Conjugate-gradient steps of each inverse, unless the operator has a closed form. Without
        noise they start at the prediction, so that an ill-conditioned ``A`` is inverted only as far
        as they go.
    sigmas
        Noise levels in the units of the image, falling to 0, ``(n,)`` or ``(n, *batch)``, in place
        of ``steps``; by default the linear VP levels times ``prior.scale``.
    integrator
        Drives the corrected prediction, with ``rho = (noise_std / sigma)^2``, in place of the
        paper's update, in which the noise is predicted from the prediction before the data; ``eta``
        and ``rule`` are then unused.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.

    Departures: the Wiener filter above, in place of which the paper scales the predicted noise too;
    no time travel; at the last level, which no noise follows, ``f`` is its ``sigma``, where the
    paper would leave the data out.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples)
    check_settings(steps=steps, eta=eta, rule=rule, cg_iterations=cg_iterations, sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start)
    if integrator is not None:
        consistent = proximal(y, operator, noise_std, gamma=None, cg_iterations=cg_iterations)
        yield from drive(run, lambda x, sigma: consistent(prior(x, sigma), sigma), integrator)
        return
    if eta == 0 and bool((noise_std > 0).any()):
        raise ValueError("ddnm wants eta > 0 with noisy data, whose noise takes the place of fresh "
                         "noise, got eta 0: pass eta=0.85, or noise_std=0 to fit the noise too")
    consistent = proximal(y, operator, noise_std / 2, gamma=None, cg_iterations=cg_iterations)
    lacking = completing_noise(operator, noise_std / 2, cg_iterations=cg_iterations)
    x, last = run.x, len(run.sigmas) - 2
    for i in range(run.first, last + 1):
        sigma, sigma_next = run.shaped[i], run.shaped[i + 1]
        kept, fresh = ddim_noise(sigma, sigma_next, eta, rule)
        level = run.plain(fresh if i < last else sigma)
        predicted = prior(x, run.sigmas[i])  # Alg. 2, line 3
        x0 = consistent(predicted, level)  # line 4
        x = x0 + kept * (x - predicted) / sigma
        if eta > 0:
            x = x + fresh * lacking(run.noise.like(x), level)  # line 5
        yield Step(i + 1, run.sigmas[i + 1], x, x0)
