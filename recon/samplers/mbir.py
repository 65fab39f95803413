"""Volumes from a prior of slices: total variation couples what the prior denoises apart."""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon.guidance import check_weights
from recon.guidance.ztv import Boundary, Differences, Directions, Split, coupled
from recon.integrators import Step, schedules
from recon.integrators.base import Rule, ddim_noise
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.operators.norm import squared_norm
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, scaled
from recon.samplers.problem import check_problem, check_sigmas
from recon.samplers.slices import Device, check_slices, sliced_operator, sliced_prior


class VolumeStep(NamedTuple):
    """A ``Step`` with the splits of the differences, which are shared by all levels."""

    index: int  # type: ignore[assignment]  # levels done; hides tuple.index
    sigma: Tensor
    x: Tensor
    x0: Tensor
    z: Tensor  # (samples, *batch, directions, n_z, channel, *spatial)
    u: Tensor


def check_mbir(*, steps: int, weight: float, rho: float, sweeps: int, cg_iterations: int,
               gamma: float | None, eta: float, rule: Rule, directions: Directions,
               boundary: Boundary, max_slices: int | None, sigmas: Tensor | None,
               **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(gamma, cg_iterations)
    ddim_noise(torch.ones(()), torch.ones(()), eta, rule)
    check_volume(weight, rho, sweeps, directions, boundary, max_slices)
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_mbir)
def mbir(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
         samples: int = 1, steps: int = 50, weight: float = 1e-4, rho: float = 0.026,
         sweeps: int = 1, cg_iterations: int = 5, gamma: float | None = None, eta: float = 0.85,
         rule: Rule = "ddim", directions: Directions = "z", isotropic: bool = False,
         boundary: Boundary = "neumann", max_slices: int | None = None, device: Device = None,
         sigmas: Tensor | None = None, generator: Source = None,
         start: VolumeStep | None = None) -> Iterator[VolumeStep]:
    """DDS of volumes, total variation along z in its data step (arXiv 2303.05754, section 4.2).

    Each level denoises slice by slice, moves the prediction of the volume by ``sweeps`` of
    alternating directions on ``1/2 ||A x - y||^2 + lambda ||D_z x||_1 + 1/(2 gamma) ||x - x0||^2``,
    and adds noise as ``dds`` does. The splits are shared by all levels: one sweep a level suffices.
    Returns ``(samples, *batch, n_z, channel, *spatial)`` for ``y`` of
    ``(*batch, n_z, *operator.range.shape)``; the operator acts on slices.

    Parameters
    ----------
    noise_std, gamma, eta, rule, sigmas
        As for ``dds``; the paper has no last term (noiseless data, or ``gamma=inf``).
    weight, rho
        ``lambda = weight ||A||^2 prior.scale`` and the penalty of the splitting
        ``rho ||A||^2``: both are pure numbers. A sweep shrinks differences by
        ``weight / rho`` of the prior's scale. ``rho=0`` decouples the slices, the result is that
        of ``dds``; ``weight=0`` does not: the splits then remember the level before. Where the
        prior's scale or the operator differs between slices, the largest counts.
    directions, isotropic, boundary
        ``"xyz"`` penalises differences within the slices too, each by itself or, ``isotropic``,
        the length of their vector. ``"periodic"``, the released code, ties the last slice to the
        first.
    max_slices, device
        How many slices the prior and the operator see at once, and the device they are on where
        ``y`` is elsewhere; all else happens where ``y`` is.
    generator
        One generator, or one per slice of the flattened batch.
    start
        A saved ``VolumeStep`` to go on from.

    Departures from the released code: as ``dds``; one CG step size per volume; no coupling of the
    last slice to the first; weights relative to the operator's norm and the prior's scale. The
    defaults are the released weights for CT, 0.04 and 10, over the norm of its operator, 390.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples)
    check_mbir(steps=steps, weight=weight, rho=rho, sweeps=sweeps, cg_iterations=cg_iterations,
               gamma=gamma, eta=eta, rule=rule, directions=directions, boundary=boundary,
               max_slices=max_slices, sigmas=sigmas)
    operator = sliced_operator(operator, max_slices, device, y)
    D = Differences(len(operator.domain.shape), directions, boundary)
    penalty, threshold = in_units(y, operator, prior, weight, rho)
    consistent = coupled(y, operator, noise_std, D, gamma=gamma, rho=penalty, threshold=threshold,
                         isotropic=isotropic, sweeps=sweeps, cg_iterations=cg_iterations)
    denoise = sliced_prior(prior, max_slices, device)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=None if start is None else Step(*start[:4]))
    x, split = run.x, D.split(run.x) if start is None else Split(start.z, start.u)
    for i in range(run.first, len(run.sigmas) - 1):
        sigma, sigma_next = run.shaped[i], run.shaped[i + 1]
        predicted = denoise(x, run.sigmas[i])  # Tweedie
        eps = (x - predicted) / sigma
        x0, split = consistent(predicted, run.sigmas[i], split)
        kept, fresh = ddim_noise(sigma, sigma_next, eta, rule)
        x = x0 + kept * eps
        if eta > 0:
            x = x + fresh * run.noise.like(x)
        yield VolumeStep(i + 1, run.sigmas[i + 1], x, x0, *split)


def in_units(y: Tensor, operator: LinearOperator, prior: Prior, weight: float,
             rho: float) -> tuple[Tensor, Tensor]:
    """The penalty of the splitting and ``lambda`` over it, of each volume, in the units of ``y``.

    Raises ValueError where ``y`` is one slice.
    """
    if not operator.range.batch_of(y):
        raise ValueError("volumes want y (*batch, n_z, *operator.range.shape), got one slice "
                         f"{tuple(y.shape)}: use samplers.dds, or y[None]")
    scale = torch.as_tensor(prior.scale, dtype=y.dtype.to_real(), device=y.device)
    scale = scale.amax(-1) if scale.ndim else scale
    if rho == 0:
        return torch.zeros_like(scale), scale
    norm = squared_norm(operator, operator.adjoint(y)).amax(-1)
    return rho * norm.to(scale), weight / rho * scale


def check_volume(weight: float, rho: float, sweeps: int, directions: Directions,
                 boundary: Boundary, max_slices: int | None) -> None:
    """Refuse settings of the coupling and of the slices that no volume could make work."""
    for name, value in (("weight", weight), ("rho", rho)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} wants a finite number >= 0, got {value}")
    if sweeps < 1:
        raise ValueError(f"sweeps wants at least 1, got {sweeps}")
    Differences(3, directions, boundary)
    check_slices(max_slices)
    if rho > 0 and weight == 0:
        warnings.warn("weight=0 does not decouple the slices, the splits then remember the level "
                      "before: pass rho=0", stacklevel=7)  # the sampler's caller
