"""Plug-and-play restoration along the levels: a data step on each prediction, then new noise."""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from recon.guidance import check_weights, proximal
from recon.integrators import DDIM, Integrator, Step, schedules
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, drive, scaled
from recon.samplers.problem import check_problem, check_sigmas


def check_settings(*, steps: int, lambda_: float, zeta: float, cg_iterations: int,
                   sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(None, cg_iterations)
    if not 0 < lambda_ < math.inf:
        raise ValueError(f"lambda_ wants a finite number > 0, got {lambda_}")
    if not 0 <= zeta <= 1:
        raise ValueError(f"zeta wants a number in [0, 1], got {zeta}")
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def diffpir(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
            samples: int = 1, steps: int = 100, lambda_: float = 1.0, zeta: float = 0.1,
            cg_iterations: int = 20, sigmas: Tensor | None = None,
            integrator: Integrator | None = None, generator: Source = None,
            start: Step | None = None) -> Iterator[Step]:
    """DiffPIR (Zhu et al., CVPR workshops 2023, arXiv 2305.08995, Alg. 1).

    Each level denoises, takes the image nearest to data and prediction, and noises it again by
    ``sqrt(1 - zeta)`` of the noise that this image predicts and ``sqrt(zeta)`` of fresh noise.
    Returns ``(samples, *batch, channel, *spatial)`` for ``y`` of ``(*batch,
    *operator.range.shape)``. A restoration method: its spread is not the posterior's.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item. Zero takes the
        image nearest to the prediction among those that agree with the data best.
    lambda_
        Weight of the prediction: the data step minimises ``||y - A x||^2 + rho ||x - D||^2`` with
        ``rho = lambda_ noise_std^2 / sigma^2``.
    zeta
        Share of fresh noise in the variance. The released settings are 0.1 for deblurring and 1 for
        inpainting, both with ``lambda_ = 1``.
    cg_iterations
        Conjugate-gradient steps of each data step, unless the operator has a closed form.
    sigmas
        Noise levels in the units of the image, falling to 0, ``(n,)`` or ``(n, *batch)``, in place
        of ``steps``; by default the linear VP levels times ``prior.scale``.
    integrator
        Drives the consistent prediction in place of the paper's update; ``zeta`` is then unused.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.

    Departures from the released code: it starts from pure noise, not from the data; its levels are
    those of equal strides; the last level has a data step too; image and noise are in one unit
    (there, images in [0, 1] meet levels of images in [-1, 1], which makes a ``lambda_`` of 1 our
    1/4).
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples)
    check_settings(steps=steps, lambda_=lambda_, zeta=zeta, cg_iterations=cg_iterations,
                   sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start)
    # gamma = sigma^2 / (lambda_ noise_std^2)
    consistent = proximal(y, operator, math.sqrt(lambda_) * noise_std, gamma=None,
                          cg_iterations=cg_iterations)
    yield from drive(run, lambda x, sigma: consistent(prior(x, sigma), sigma),
                     integrator or DDIM(math.sqrt(zeta), "released"))
