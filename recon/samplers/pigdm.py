"""Pseudoinverse-guided diffusion: a Gaussian of one variance about each prediction."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recon.guidance import check_weights, pseudoinverse_guided
from recon.integrators import DDIM, Integrator, Step, schedules
from recon.integrators.base import ddim_noise
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, drive, scaled
from recon.samplers.problem import check_problem, check_sigmas


def check_settings(*, steps: int, eta: float, prior_std: float | None, cg_iterations: int,
                   sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(None, cg_iterations)
    ddim_noise(torch.ones(()), torch.ones(()), eta, "ddim")
    if prior_std is not None and not 0 < prior_std < math.inf:
        raise ValueError("prior_std wants a finite number > 0, or None for prior.scale, got "
                         f"{prior_std}")
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def pigdm(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
          samples: int = 1, steps: int = 100, eta: float = 1.0, prior_std: float | None = None,
          cg_iterations: int = 20, sigmas: Tensor | None = None,
          integrator: Integrator | None = None, generator: Source = None,
          start: Step | None = None) -> Iterator[Step]:
    """Pseudoinverse-guided diffusion, PiGDM (Song, Vahdat, Mardani, Kautz, ICLR 2023).

    DDIM on ``D + sigma^2 J^T A^H (r^2 A A^H + noise_std^2)^-1 (y - A D)``, where ``r^2`` stands for
    the variance of the image given ``x``. Returns ``(samples, *batch, channel, *spatial)`` for
    ``y`` of ``(*batch, *operator.range.shape)``. Exact for white Gaussian priors of deviation
    ``prior_std``, biased for all others.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item. Zero takes the
        pseudo-inverse.
    eta
        Share of fresh noise, DDIM's.
    prior_std
        Standard deviation of the pixels under the prior, in the units of the image; None takes
        ``prior.scale``. Far below the truth it overshoots at high noise.
    cg_iterations
        Conjugate-gradient steps of each inverse, unless the operator has a closed form.
    sigmas
        Noise levels in the units of the image, falling to 0, ``(n,)`` or ``(n, *batch)``, in place
        of ``steps``; by default the linear VP levels times ``prior.scale``.
    integrator
        Drives the guided prediction in place of DDIM; ``eta`` is then unused.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.

    Departure from Alg. 1, which adds ``r^2`` times the gradient to every step in full, however
    short the step: here the gradient enters the score, so that the draws converge as levels are
    added.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples)
    check_settings(steps=steps, eta=eta, prior_std=prior_std, cg_iterations=cg_iterations,
                   sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start)
    guided = pseudoinverse_guided(prior, operator, y, noise_std, cg_iterations=cg_iterations,
                                  prior_std=prior.scale if prior_std is None else prior_std)
    yield from drive(run, guided, integrator or DDIM(eta))
