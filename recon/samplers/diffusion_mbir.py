"""Volumes from a prior of slices: the noisy volume corrected level by level."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recon.guidance import check_weights
from recon.guidance.ztv import Boundary, Differences, Directions, Split, coupled
from recon.integrators import Step, schedules
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, scaled
from recon.samplers.mbir import VolumeStep, check_volume, in_units
from recon.samplers.problem import check_problem, check_sigmas
from recon.samplers.slices import Device, sliced_operator, sliced_prior


def check_diffusion_mbir(*, steps: int, weight: float, rho: float, sweeps: int, cg_iterations: int,
                         snr: float, directions: Directions, boundary: Boundary,
                         max_slices: int | None, sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(None, cg_iterations)
    check_volume(weight, rho, sweeps, directions, boundary, max_slices)
    if rho > 0 and cg_iterations > 1:
        raise ValueError(f"diffusion_mbir wants cg_iterations=1, got {cg_iterations}: shared "
                         "splits of noisy differences make it diverge; use samplers.mbir, or rho=0")
    if not 0 <= snr < float("inf"):
        raise ValueError(f"snr wants a finite number >= 0, got {snr}")
    check_sigmas(schedules.geometric(steps) if sigmas is None else sigmas)


@sampler_with(check_diffusion_mbir)
def diffusion_mbir(y: Tensor, operator: LinearOperator, prior: Prior, *,
                   noise_std: Tensor | float = 0.0, samples: int = 1, steps: int = 2000,
                   weight: float = 1e-4, rho: float = 0.026, sweeps: int = 1,
                   cg_iterations: int = 1, snr: float = 0.16, directions: Directions = "z",
                   isotropic: bool = False, boundary: Boundary = "neumann",
                   max_slices: int | None = None, device: Device = None,
                   sigmas: Tensor | None = None, generator: Source = None,
                   start: VolumeStep | None = None) -> Iterator[VolumeStep]:
    """DiffusionMBIR, variables shared (Chung et al., CVPR 2023, arXiv 2211.10655, Alg. 2).

    Predictor, corrector and a sweep of alternating directions on the noisy volume itself, level by
    level: it wants very many, and two calls of the network each. ``mbir`` couples the prediction
    instead and is to be preferred. Arguments and shapes are those of ``mbir``, and besides:

    Parameters
    ----------
    noise_std
        Not used: as in the paper, data are taken to be without noise.
    cg_iterations
        More than 1 makes the shared variables diverge and is refused unless ``rho`` is 0.
    snr
        Signal-to-noise ratio of the Langevin corrector (Song et al. 2021, Alg. 4).
    sigmas
        By default geometric from 378 to 0.01 times ``prior.scale``.

    Departures from the released code: the corrector's norms are per slice, so that results do not
    depend on chunks; the last level takes the mean, without fresh noise and correction; no coupling
    of the last slice to the first; no step of SIRT at the end.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples)
    check_diffusion_mbir(steps=steps, weight=weight, rho=rho, sweeps=sweeps, snr=snr,
                         cg_iterations=cg_iterations, directions=directions, boundary=boundary,
                         max_slices=max_slices, sigmas=sigmas)
    operator = sliced_operator(operator, max_slices, device, y)
    D = Differences(len(operator.domain.shape), directions, boundary)
    penalty, threshold = in_units(y, operator, prior, weight, rho)
    consistent = coupled(y, operator, noise_std, D, gamma=math.inf, rho=penalty,
                         threshold=threshold, isotropic=isotropic, sweeps=sweeps,
                         cg_iterations=cg_iterations)
    denoise = sliced_prior(prior, max_slices, device)
    if sigmas is None:
        sigmas = scaled(schedules.geometric(steps, 0.01, 378.0), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=None if start is None else Step(*start[:4]))
    x, split = run.x, D.split(run.x) if start is None else Split(start.z, start.u)
    dims = tuple(range(-len(operator.domain.shape), 0))
    last = len(run.sigmas) - 2
    for i in range(run.first, last + 1):
        sigma = run.shaped[i]
        gap = sigma.square() - run.shaped[i + 1].square()
        x0 = denoise(x, run.sigmas[i])
        x = x + gap * (x0 - x) / sigma.square()  # predictor
        if i < last:
            x = x + gap.sqrt() * run.noise.like(x)
            g = (denoise(x, run.sigmas[i]) - x) / sigma.square()  # corrector
            n = run.noise.like(x)
            size, white = (torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (g, n))
            e = torch.where(size > 0, 2 * (snr * white / size).square(), 0)
            x = x + e * g + (2 * e).sqrt() * n
        x, split = consistent(x, run.sigmas[i], split)
        yield VolumeStep(i + 1, run.sigmas[i + 1], x, x0 if i < last else x, *split)
