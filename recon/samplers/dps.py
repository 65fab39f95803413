"""Diffusion posterior sampling: the gradient of the data misfit through the network."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from recon.guidance import annealed_guided, misfit_descent, norm_guided
from recon.integrators import DDIM, Integrator, Step, schedules
from recon.integrators.base import ddim_noise
from recon.noise import Source
from recon.operators.base import LinearOperator, Operator
from recon.operators.norm import squared_norm
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, drive, scaled
from recon.samplers.problem import check_problem, check_sigmas

Weighing = Literal["norm", "annealed"]


def check_settings(*, steps: int, zeta: float, rule: Weighing, gain: float | None,
                   sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    if not 0 <= zeta < math.inf:
        raise ValueError(f"zeta wants a finite number >= 0, got {zeta}")
    if rule not in ("norm", "annealed"):
        raise ValueError(f'rule wants "norm" or "annealed", got {rule!r}')
    if gain is not None and not 0 < gain < math.inf:
        raise ValueError(f"gain wants a finite number > 0, or None to measure it, got {gain}")
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def dps(y: Tensor, operator: Operator, prior: Prior, *, noise_std: Tensor | float = 0.0,
        samples: int = 1, steps: int = 1000, zeta: float = 1.0, rule: Weighing = "norm",
        gain: float | None = None, sigmas: Tensor | None = None,
        integrator: Integrator | None = None, generator: Source = None,
        start: Step | None = None) -> Iterator[Step]:
    """Diffusion posterior sampling (Chung et al., ICLR 2023, arXiv 2209.14687).

    Ancestral sampling, with each step moved against the gradient of ``||y - A(D(x))||`` through
    the network. Any operator, also nonlinear. Returns ``(samples, *batch, channel, *spatial)`` for
    ``y`` of ``(*batch, *operator.range.shape)``. Biased, and its spread is not the posterior's:
    ``"norm"`` ignores ``noise_std``, ``"annealed"`` is near exact for Gaussian priors only.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item.
    zeta
        ``"norm"``: length of a step in units of ``prior.scale``, for operators of norm about one;
        the published settings are 0.3 to 1. ``"annealed"``: factor of the log-likelihood.
    rule
        ``"norm"`` is the released code's step ``zeta grad ||y - A(D)||`` (half that of the paper's
        equation), fixed whatever the number of steps. ``"annealed"`` follows the likelihood of
        variance ``noise_std^2 + gain sigma^2`` and converges as levels are added.
    gain
        ``||A||^2`` for ``"annealed"``; None measures it. A nonlinear operator wants the largest
        squared gain it has.
    sigmas
        Noise levels in the units of the image, falling to 0, ``(n,)`` or ``(n, *batch)``, in place
        of ``steps``; by default the linear VP levels times ``prior.scale``.
    integrator
        Drives the guided prediction in place of the ancestral step; ``"norm"`` then takes the
        strength that 1000 steps would have, whatever their number.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.

    Departures from the released code: one norm per item, and the last step is ``x0`` itself.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples, linear=False)
    check_settings(steps=steps, zeta=zeta, rule=rule, gain=gain, sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start)
    if rule == "annealed":
        squared = gain if gain is not None else _measured(operator, y)
        guided = annealed_guided(prior, operator, y, noise_std, zeta=zeta, gain=squared)
        yield from drive(run, guided, integrator or DDIM(1.0))
        return
    if integrator is not None:
        yield from drive(run, norm_guided(prior, operator, y, zeta=zeta), integrator)
        return
    scale = torch.as_tensor(prior.scale, dtype=run.shaped.dtype, device=y.device)
    scale = scale.reshape(*scale.shape, *(1,) * len(operator.domain.shape)) if scale.ndim else scale
    x = run.x
    for i in range(run.first, len(run.sigmas) - 1):
        sigma, sigma_next = run.shaped[i], run.shaped[i + 1]
        predicted, descent = misfit_descent(prior, operator, y, x, run.sigmas[i])
        # Alg. 1, line 7, of x sqrt(abar): both its gradient and its step are in other units
        length = zeta * scale * ((1 + (sigma / scale).square())
                                 * (1 + (sigma_next / scale).square())).sqrt()
        share = (sigma - sigma_next) * (sigma + sigma_next) / sigma.square()
        x0 = predicted + length / share * descent  # what the step takes as its prediction
        kept, fresh = ddim_noise(sigma, sigma_next, 1.0, "ddim")
        x = x0 + kept * (x - x0) / sigma + fresh * run.noise.like(x)  # line 6
        yield Step(i + 1, run.sigmas[i + 1], x, x0)


def _measured(operator: Operator, y: Tensor) -> Tensor:
    if not isinstance(operator, LinearOperator):
        raise ValueError(f"{operator.label()} is not linear: pass gain=, the largest squared gain "
                         'it has, or take rule="norm"')
    return squared_norm(operator, operator.adjoint(y))
