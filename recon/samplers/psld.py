"""Posterior sampling with latent diffusion: latent DPS held on the encoder's fixed points."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recon.integrators import Step, schedules
from recon.integrators.base import ddim_noise
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.priors import Codec, Prior
from recon.samplers.base import sampler_with
from recon.samplers.latent import check_latent, item_norm, seen, spread, unit_of, vp_step
from recon.samplers.levels import begin, scaled
from recon.samplers.problem import check_sigmas


def check_settings(*, steps: int, omega: float, gamma: float, eta: float, sigmas: Tensor | None,
                   **_: Any) -> None:
    """Refuse what no measurement could make work."""
    for name, value in (("omega", omega), ("gamma", gamma)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} wants a finite number >= 0, got {value}")
    ddim_noise(torch.ones(()), torch.ones(()), eta, "ddim")
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def psld(y: Tensor, operator: LinearOperator, prior: Prior, *, codec: Codec | None = None,
         noise_std: Tensor | float = 0.0, samples: int = 1, steps: int = 1000, omega: float = 1.0,
         gamma: float = 0.1, eta: float = 0.0, sigmas: Tensor | None = None,
         generator: Source = None, start: Step | None = None) -> Iterator[Step]:
    """Posterior sampling with latent diffusion (Rout et al., NeurIPS 2023, arXiv 2307.00619).

    DDIM, each step moved against the gradient of ``omega ||y - A x|| + gamma ||E(x') - z0||``, with
    ``x = D(z0)`` and ``x' = A^H y + x - A^H A x``, the image with its measured part glued in.
    Returns ``(samples, *batch, channel, *spatial)``. Gluing replaces what is measured where
    ``A^H A`` is a projection (masks, single-coil Fourier sampling); scale other ``A`` and ``y`` to
    norm about one. The steps ignore ``noise_std``: biased, and the spread is not the posterior's.

    Parameters
    ----------
    codec
        The autoencoder whose latents the prior is of, in the units of the image: for measurements
        in other units ``codec.rescaled``, not ``prior.rescaled``. None: that of a ``LatentPrior``,
        whose ``rescaled`` does both; for other priors no latents.
    noise_std
        Standard deviation of each real number of ``y``; looked at, not used.
    omega, gamma
        Lengths of the two gradient steps, in units of the prior's scale, for images of the codec's
        scale. The released settings are 1 and 0.1, or 0.1 and 0.01 for boxes.
    eta
        Share of fresh noise, by DDIM's rule.
    sigmas
        Noise levels in the units of the latents, falling to 0, ``(n,)`` or ``(n, *batch)``, in
        place of ``steps``; by default the linear VP levels times ``prior.scale``.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.

    A step's ``x`` is the latent, its ``x0`` the decoded prediction before its gradient step; the
    last ``x0`` is the end of the chain, decoded. Departures from the released code: the true
    adjoint (it returns blurred images as they are), norms per item, encoding to the mean, no noise
    added to ``A x``, no classifier-free guidance.
    """
    codec, noise_std = check_latent(y, operator, prior, codec, noise_std, samples=samples)
    check_settings(steps=steps, omega=omega, gamma=gamma, eta=eta, sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), codec.latent, sigmas, samples=samples,
                generator=generator, start=start)
    pulled = operator.adjoint(y)
    if gamma > 0:
        codec.refuse_draws(pulled)
    weight = spread(omega / unit_of(codec.scale, y), codec.image)

    def rise(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        now = seen(y, operator, prior, codec, z, sigma)
        if gamma == 0:
            return now.z0, now.x0, now.through_prior(now.through_decoder(weight * now.rise))
        glued, through_encoder = codec.encode_with_pullback(
            pulled + now.x0 - operator.normal(now.x0))
        gap = glued - now.z0
        norm = item_norm(gap, codec.latent)
        unit = gap / spread(torch.where(norm > 0, norm, 1), codec.latent)
        kept = through_encoder(gamma * unit)
        image = weight * now.rise + kept - operator.normal(kept)
        return now.z0, now.x0, now.through_prior(now.through_decoder(image) - gamma * unit)

    z = run.x
    for i in range(run.first, len(run.sigmas) - 1):
        sigma, sigma_next = run.shaped[i], run.shaped[i + 1]
        z0, x0, gradient = rise(z, run.sigmas[i])
        kept, fresh = ddim_noise(sigma, sigma_next, eta, "ddim")
        z = z0 + kept * (z - z0) / sigma - vp_step(sigma, sigma_next, prior, z) * gradient
        if eta > 0:
            z = z + fresh * run.noise.like(z)
        last = i + 2 == len(run.sigmas)
        yield Step(i + 1, run.sigmas[i + 1], z, codec.decode(z) if last else x0)
