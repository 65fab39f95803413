"""Decomposed diffusion sampling: conjugate gradients between the denoiser and the noise."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recon.guidance import check_weights, proximal
from recon.integrators import Integrator, Step, schedules
from recon.integrators.base import Rule, ddim_noise
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, drive, scaled
from recon.samplers.problem import check_problem, check_sigmas


def check_settings(*, steps: int, cg_iterations: int, gamma: float | None, eta: float, rule: Rule,
                   sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(gamma, cg_iterations)
    ddim_noise(torch.ones(()), torch.ones(()), eta, rule)
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def dds(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
        samples: int = 1, steps: int = 50, cg_iterations: int = 5, gamma: float | None = None,
        eta: float = 0.85, rule: Rule = "ddim", sigmas: Tensor | None = None,
        integrator: Integrator | None = None, generator: Source = None,
        start: Step | None = None) -> Iterator[Step]:
    """Decomposed diffusion sampling (Chung, Lee, Ye, ICLR 2024, arXiv 2303.05754).

    Each level denoises, pulls the prediction to the data by ``cg_iterations`` conjugate-gradient
    steps, and adds noise for the next level: part predicted, part fresh. Returns
    ``(samples, *batch, channel, *spatial)`` for ``y`` of ``(*batch, *operator.range.shape)``.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item.
    gamma
        Weight of the data against the prediction, a plain number that counts as ``gamma ||A||^2``:
        what is ``gamma`` for ``A`` is ``gamma / c^2`` for ``c A``. None takes
        ``sigma^2 / noise_std^2`` (noiseless data: infinity). The released scripts use 1.
    eta, rule
        Share of fresh noise: ``"ddim"`` is DDIM's, ``"released"`` that of the published code.
    sigmas
        Noise levels in the units of ``y``'s image, falling to 0, ``(n,)`` or ``(n, *batch)``, in
        place of ``steps``; by default the linear VP levels times ``prior.scale``. VE schedules are
        ``schedules.geometric`` and ``schedules.karras`` times it.
    integrator
        Drives the data-consistent prediction in place of the paper's update, in which the noise is
        predicted from the prediction before the data; ``eta`` and ``rule`` are then unused.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.

    Departures from the released code, which is wrong for complex data: inner products conjugate,
    one step size per item, the last level is not denoised twice, and every level is used.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples)
    check_settings(steps=steps, cg_iterations=cg_iterations, gamma=gamma, eta=eta, rule=rule,
                   sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start)
    consistent = proximal(y, operator, noise_std, gamma=gamma, cg_iterations=cg_iterations)
    if integrator is not None:
        yield from drive(run, lambda x, sigma: consistent(prior(x, sigma), sigma), integrator)
        return
    x = run.x
    for i in range(run.first, len(run.sigmas) - 1):
        sigma, sigma_next = run.shaped[i], run.shaped[i + 1]
        predicted = prior(x, run.sigmas[i])  # Tweedie
        eps = (x - predicted) / sigma  # from the prediction before the data
        x0 = consistent(predicted, run.sigmas[i])
        kept, fresh = ddim_noise(sigma, sigma_next, eta, rule)
        x = x0 + kept * eps
        if eta > 0:
            x = x + fresh * run.noise.like(x)
        yield Step(i + 1, run.sigmas[i + 1], x, x0)
