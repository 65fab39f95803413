"""Tweedie moment projection: the covariance of each prediction from the network's Jacobian."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from recon.guidance import check_weights, moment_guided, row_sum_guided
from recon.integrators import DDIM, Integrator, Step, schedules
from recon.integrators.base import ddim_noise
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, drive, scaled
from recon.samplers.problem import check_problem, check_sigmas

Covariance = Literal["row sums", "full"]


def check_settings(*, steps: int, eta: float, covariance: Covariance, iterations: int,
                   sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(None, iterations)
    ddim_noise(torch.ones(()), torch.ones(()), eta, "ddim")
    if covariance not in ("row sums", "full"):
        raise ValueError(f'covariance wants "row sums" or "full", got {covariance!r}')
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def tmpd(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
         samples: int = 1, steps: int = 1000, eta: float = 1.0,
         covariance: Covariance = "row sums", iterations: int = 20,
         sigmas: Tensor | None = None, integrator: Integrator | None = None,
         generator: Source = None, start: Step | None = None) -> Iterator[Step]:
    """Tweedie moment projected diffusion (Boys et al., TMLR 2024, arXiv 2310.06721).

    DDIM on ``D + sigma^2 J^T A^H (A sigma^2 J A^H + noise_std^2)^-1 (y - A D)``, with ``sigma^2 J``
    the covariance of the image given ``x`` and ``J`` the Jacobian of the denoiser. Returns
    ``(samples, *batch, channel, *spatial)`` for ``y`` of ``(*batch, *operator.range.shape)``.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item.
    eta
        Share of fresh noise, DDIM's; 1 is ancestral sampling, as in the paper.
    covariance
        ``"row sums"``, the paper's diagonal in place of ``A sigma^2 J A^H``, is for images measured
        pixel by pixel; ``"full"`` solves with the matrix, and is exact for Gaussian priors.
    iterations
        Of ``"full"``: minimal-residual steps, each one run of the network backward; two tensors
        like ``y`` are kept of each.
    sigmas
        Noise levels in the units of the image, falling to 0, ``(n,)`` or ``(n, *batch)``, in place
        of ``steps``; by default the linear VP levels times ``prior.scale``.
    integrator
        Drives the guided prediction in place of DDIM; ``eta`` is then unused.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples)
    check_settings(steps=steps, eta=eta, covariance=covariance, iterations=iterations,
                   sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start)
    if covariance == "full":
        guided = moment_guided(prior, operator, y, noise_std, iterations=iterations)
    else:
        guided = row_sum_guided(prior, operator, y, noise_std)
    yield from drive(run, guided, integrator or DDIM(eta))
