"""STSL: inner descents on the data and on the prior's curvature, from an inverted first image."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon.guidance import denoise_with_pullback
from recon.guidance.gradient import Pullback
from recon.integrators import Step, schedules
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.operators.norm import squared_norm
from recon.priors import Codec, Prior
from recon.samplers.base import sampler_with
from recon.samplers.latent import check_latent, item_norm, seen, spread, unit_of
from recon.samplers.levels import Run, begin, scaled
from recon.samplers.problem import check_sigmas
from recon.space import Space

Descent = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Pullback]]


class LatentStep(NamedTuple):
    """As ``Step``, with the calls made so far and the distance from the measurements."""

    index: int  # type: ignore[assignment]  # levels done; hides tuple.index
    sigma: Tensor  # level of ``x``
    x: Tensor  # the latent, (samples, *batch, *latent)
    x0: Tensor  # the decoded prediction
    forwards: int  # runs of the network on the whole batch, the inversion's included
    backwards: int  # the same, backward
    residual: Tensor  # (samples, *batch), root mean square of y - A x0, to compare with noise_std


def check_settings(*, steps: int, inner_steps: int, guidance: float, hessian_weight: float,
                   probe: float, discrepancy: float | None, start_noise: float,
                   cg_iterations: int, sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    for name, least, value in (("inner_steps", 0, inner_steps), ("cg_iterations", 1, cg_iterations),
                               ("guidance", 0, guidance)):
        if not value >= least:
            raise ValueError(f"{name} wants at least {least}, got {value}")
    if not 0 <= hessian_weight < math.inf:
        raise ValueError(f"hessian_weight wants a finite number >= 0, got {hessian_weight}")
    if not 0 < probe < math.inf:
        raise ValueError(f"probe wants a finite number > 0, got {probe}")
    if not 0 <= start_noise <= 1:
        raise ValueError(f"start_noise wants a number in [0, 1], got {start_noise}")
    if discrepancy is not None and not 0 < discrepancy < math.inf:
        raise ValueError("discrepancy wants a finite number > 0, or None for no stopping, got "
                         f"{discrepancy}")
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def stsl(y: Tensor, operator: LinearOperator, prior: Prior, *, codec: Codec | None = None,
         noise_std: Tensor | float = 0.0, samples: int = 1, steps: int = 50, inner_steps: int = 5,
         guidance: float = 1.0, hessian_weight: float = 0.02, probe: float = 1.0,
         discrepancy: float | None = None, start_noise: float = 0.0, cg_iterations: int = 10,
         sigmas: Tensor | None = None, generator: Source = None,
         start: LatentStep | None = None) -> Iterator[LatentStep]:
    """Second-order Tweedie sampler from a surrogate loss (Rout et al. 2024, arXiv 2312.00852).

    Inverts DDIM from the encoded pseudo-inverse of ``y``, then descends ``inner_steps`` times per
    level on ``||y - A D(z0)||^2`` plus ``hessian_weight / d eps^T (s(z + eps) - s(z))``, a probe of
    the trace of the Hessian of the log-density with score ``s`` in ``d`` dimensions, and takes a
    DDIM step. Returns ``(samples, *batch, channel, *spatial)``.

    The result is an estimate, not a posterior draw: with ``hessian_weight`` 0 and ``start_noise`` 0
    nothing is random and all samples are equal, and what spread there is otherwise is not the
    posterior's. Each inner step costs one run of the network forward and one backward, with the
    trace term two and three; each level one more forward, and as many the inversion.

    Parameters
    ----------
    codec
        The autoencoder whose latents the prior is of, in the units of the image: for measurements
        in other units ``codec.rescaled``, not ``prior.rescaled``. None: that of a ``LatentPrior``,
        whose ``rescaled`` does both; for other priors no latents.
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item.
    guidance
        Factor of the data's step. With 1 the inner steps of a level add up to the step of the
        probability flow, ``(sigma^2 - sigma'^2) / 2`` times the gradient of the log-likelihood of
        variance ``noise_std^2 + sigma^2 v``, where ``sigma^2 v`` is what prediction and prior leave
        open of ``y`` along the residual. One step length serves all of ``y``: exact for a single
        number and a Gaussian prior, too short for what ``A`` sees weakly. No step goes further
        than where one along the largest singular vector of ``A`` meets the data; ``inf`` goes
        there always. The paper has a constant weight, of order ``1 / noise_std^2``.
    hessian_weight
        The paper's eta. On exact priors no benefit of this term was found; for Gaussian ones it
        is zero.
    probe
        Length of the probe, the difference divided by it; in units of noised latents of unit
        variance. The paper's is 1, a trace only where the noised density is smooth on that scale.
    discrepancy
        Where ``||y - A x||^2 / (m noise_std^2)`` over the ``m`` real numbers measured falls to
        this, the item's data steps end, at every level anew; they are then as long as is stable,
        whatever ``guidance``. 1 fits the data as well as the noise allows.
    start_noise
        Share of fresh noise in the start, by amplitude: 0 is the inversion, 1 the encoded
        pseudo-inverse in fresh noise. The inversion keeps what is wrong with the first image:
        where it is aliased, as in accelerated MRI, ``start_noise=1, discrepancy=1`` removed more.
    cg_iterations
        Conjugate-gradient steps on ``A^H A x = A^H y`` for the first image. The paper takes
        ``A^H y``, which has the wrong scale for tomography and for downsampling.
    sigmas
        Noise levels in the units of the latents, falling to 0, ``(n,)`` or ``(n, *batch)``, in
        place of ``steps``; by default the linear VP levels times ``prior.scale``.
    generator
        Of the probes and the start's noise. One, or one per item of the flattened batch.
    start
        A saved ``LatentStep`` to go on from, with the settings and the generator's state it was
        saved at.

    Warns at the end where the residual of an item is below half of ``noise_std``: noise was fitted.
    A step's ``x`` is the latent, its ``x0`` the decoded prediction.
    """
    codec, noise_std = check_latent(y, operator, prior, codec, noise_std, samples=samples,
                                    noisy=discrepancy is not None)
    check_settings(steps=steps, inner_steps=inner_steps, guidance=guidance, probe=probe,
                   hessian_weight=hessian_weight, discrepancy=discrepancy, start_noise=start_noise,
                   cg_iterations=cg_iterations, sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    batch, latent = operator.range.batch_of(y), codec.latent
    if start is None:  # a place for the inverted image: ``begin`` would draw noise for it
        kind = y.dtype.to_complex() if latent.is_complex else y.dtype.to_real()
        z = torch.zeros(samples, *batch, *latent.shape, dtype=kind, device=y.device)
        run = begin(y, batch, latent, sigmas, samples=samples, generator=generator,
                    start=Step(0, sigmas[0], z, z))
        first = operator.solve_cg(operator.adjoint(y), 0.0, max_iter=cg_iterations).x
        codec.refuse_draws(first)
        encoded = codec.encode(first)
        z, forwards, backwards = inverted(prior, encoded, run).expand_as(z), len(run.sigmas) - 1, 0
        if start_noise > 0:
            z = encoded + math.sqrt(1 - start_noise**2) * (z - encoded)
            z = z + start_noise * run.shaped[0] * run.noise.like(z)
    else:
        run = begin(y, batch, latent, sigmas, samples=samples, generator=generator,
                    start=Step(*start[:4]))
        z, forwards, backwards = run.x, start.forwards, start.backwards
    numbers = measured_numbers(y, operator)
    goal = None if discrepancy is None else (discrepancy * numbers).sqrt() * noise_std
    towards_data = descent(y, operator, prior, codec, noise_std, guidance / max(inner_steps, 1),
                           goal)

    def descended(z: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        moved, pull = towards_data(z, sigma, sigma_next)
        if hessian_weight > 0:
            eps = run.noise.like(z)
            moved = moved - hessian_weight * trace_gradient(prior, z, sigma, eps, probe, pull)
        return moved

    for i in range(run.first, len(run.sigmas) - 1):
        sigma, sigma_next = run.shaped[i], run.shaped[i + 1]
        for _ in range(inner_steps):
            z = descended(z, run.sigmas[i], run.sigmas[i + 1])
        z0 = prior(z, run.sigmas[i])
        z = z0 + sigma_next / sigma * (z - z0)  # DDIM
        x0 = codec.decode(z0)
        forwards += inner_steps * (2 if hessian_weight > 0 else 1) + 1
        backwards += inner_steps * (3 if hessian_weight > 0 else 1)
        residual = item_norm(y - operator(x0), operator.range) / numbers.sqrt()
        yield LatentStep(i + 1, run.sigmas[i + 1], z, x0, forwards, backwards, residual)
    _warn_overfit(residual, noise_std)


def descent(y: Tensor, operator: LinearOperator, prior: Prior, codec: Codec, noise_std: Tensor,
            guidance: float, goal: Tensor | None) -> Descent:
    """``(z, sigma, sigma_next) ->`` ``z`` moved towards the data, and the denoiser's pullback.

    ``guidance`` 1 is a step of the probability flow; with a ``goal`` for ``||y - A D(z0)||`` the
    steps are as long as is stable and do not go below it. One length for each item.
    """
    gain = squared_norm(operator, operator.adjoint(y))

    def descended(z: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Pullback]:
        now = seen(y, operator, prior, codec, z, sigma)
        pulled = now.through_decoder(now.rise)
        gradient = now.through_prior(pulled)  # of ||y - A D(z0)||
        # <p, J p>, times sigma^2: what the prior leaves open of y along the residual, since J is
        # the exact denoiser's covariance over sigma^2
        unknown = inner(pulled, gradient, codec.latent).clamp(min=0)
        slope = item_norm(gradient, codec.latent).square()
        # the same for the largest singular vector of A; a step of 1 over it meets the data there
        size = item_norm(now.rise, codec.image).square()
        stiffest = gain * torch.maximum(unknown, slope) / torch.where(size > 0, size, 1)
        longest = 1 / torch.where(stiffest > 0, stiffest, 1)
        if goal is not None:  # a shorter step than this leaves no less than the goal
            left = (1 - goal / torch.where(now.misfit > 0, now.misfit, 1)).clamp(min=0)
            length = torch.minimum(longest, left / torch.where(slope > 0, slope, 1))
        elif guidance == math.inf:
            length = longest
        else:
            variance = noise_std.square() + sigma.square() * unknown
            flow = (sigma - sigma_next) * (sigma + sigma_next) / 2
            length = guidance * flow / torch.where(variance > 0, variance, 1)
            length = torch.minimum(torch.where(variance > 0, length, longest), longest)
        length = torch.where(slope > 0, length * now.misfit, 0)
        return z - spread(length, codec.latent) * gradient, now.through_prior

    return descended


def inverted(prior: Prior, z: Tensor, run: Run) -> Tensor:
    """DDIM run backwards from clean latents ``(*batch, *latent)`` to the first level."""
    at = run.sigmas.flip(0)[1:]  # rising, without the 0
    shaped = run.shaped.flip(0)
    for i in range(len(at)):
        j = max(i - 1, 0)  # the level z is at; the clean one passes for the least
        eps = (z - prior(z, at[j])) / shaped[j + 1]
        z = z + (shaped[i + 1] - shaped[i]) * eps
    return z


def trace_gradient(prior: Prior, z: Tensor, sigma: Tensor, eps: Tensor, probe: float,
                   pull: Pullback) -> Tensor:
    """Gradient of ``eps^T (s(Z + probe eps) - s(Z)) / (d probe)`` as a step of one on ``z``.

    ``Z = z / r``, ``r^2 = scale^2 + sigma^2``, are latents noised to unit variance, ``s`` the score
    of their density. A step on ``Z`` against its gradient is ``r^2`` times one on ``z``. ``pull``
    is that of the denoiser at ``z``.
    """
    ones = (1,) * prior.item_ndim
    d = z.shape[-prior.item_ndim :].numel() * (2 if z.is_complex() else 1)
    r = (unit_of(prior.scale, z).square() + sigma.square()).sqrt()
    r, sigma_shaped = (t.reshape(*t.shape, *ones) if t.ndim else t for t in (r, sigma))
    _, pull_there = denoise_with_pullback(prior, z + probe * r * eps, sigma)
    # the score is (D - z) / sigma^2: the identities cancel
    return r * (r / sigma_shaped).square() / (d * probe) * (pull_there(eps) - pull(eps))


def inner(a: Tensor, b: Tensor, space: Space) -> Tensor:
    """``Re <a, b>`` of each item."""
    return (a.conj() * b).real.sum(tuple(range(-len(space.shape), 0)))


def measured_numbers(y: Tensor, operator: LinearOperator) -> Tensor:
    """Real numbers measured in each item: entries that the operator reaches, or that hold data."""
    kind = y.dtype.to_complex() if operator.domain.is_complex else y.dtype.to_real()
    x = operator.domain.randn(generator=torch.Generator(y.device).manual_seed(0), dtype=kind,
                              device=y.device)
    reached = operator(x.expand(*operator.range.batch_of(y), *x.shape)) != 0
    count = (reached | (y != 0)).sum(tuple(range(-len(operator.range.shape), 0)))
    return (count.clamp(min=1) * (2 if y.is_complex() else 1)).to(y.dtype.to_real())


def _warn_overfit(residual: Tensor, noise_std: Tensor) -> None:
    least = float(torch.where(noise_std > 0, residual / noise_std, 1).min())
    if least < 0.5:
        warnings.warn(f"the residual y - A x is {least:.2g} of noise_std in an item: noise is "
                      "fitted; lower guidance, or pass discrepancy=1",
                      stacklevel=6)  # the sampler's caller
