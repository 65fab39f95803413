"""Latent diffusion posterior sampling: DPS through the decoder of a latent prior."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recon.integrators import Step, schedules
from recon.integrators.base import ddim_noise
from recon.noise import Source
from recon.operators.base import Operator
from recon.priors import Codec, Prior
from recon.samplers.base import sampler_with
from recon.samplers.latent import check_latent, seen, spread, unit_of, vp_step
from recon.samplers.levels import begin, scaled
from recon.samplers.problem import check_sigmas


def check_settings(*, steps: int, zeta: float, eta: float, sigmas: Tensor | None,
                   **_: Any) -> None:
    """Refuse what no measurement could make work."""
    if not 0 <= zeta < math.inf:
        raise ValueError(f"zeta wants a finite number >= 0, got {zeta}")
    ddim_noise(torch.ones(()), torch.ones(()), eta, "ddim")
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def latent_dps(y: Tensor, operator: Operator, prior: Prior, *, codec: Codec | None = None,
               noise_std: Tensor | float = 0.0, samples: int = 1, steps: int = 1000,
               zeta: float = 1.0, eta: float = 0.0, sigmas: Tensor | None = None,
               generator: Source = None, start: Step | None = None) -> Iterator[Step]:
    """DPS on latents: DDIM, each step moved against the gradient of ``||y - A(D(z0))||``.

    The baseline of PSLD (Rout et al., NeurIPS 2023, arXiv 2307.00619), which is this with
    ``gamma`` 0; without a codec and with ``eta`` 1 it is ``samplers.dps``. Any operator, also
    nonlinear. Returns ``(samples, *batch, channel, *spatial)``. The step ignores ``noise_std``:
    biased, and its spread is not the posterior's.

    Parameters
    ----------
    codec
        The autoencoder whose latents the prior is of, in the units of the image: for measurements
        in other units ``codec.rescaled``, not ``prior.rescaled``. None: that of a ``LatentPrior``,
        whose ``rescaled`` does both; for other priors no latents.
    noise_std
        Standard deviation of each real number of ``y``; looked at, not used.
    zeta
        Length of a step in units of the prior's scale, for images of the codec's scale and
        operators of norm about one.
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
    last ``x0`` is the end of the chain, decoded.
    """
    codec, noise_std = check_latent(y, operator, prior, codec, noise_std, samples=samples,
                                    linear=False)
    check_settings(steps=steps, zeta=zeta, eta=eta, sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), codec.latent, sigmas, samples=samples,
                generator=generator, start=start)
    weight = spread(zeta / unit_of(codec.scale, y), codec.image)

    def rise(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        now = seen(y, operator, prior, codec, z, sigma)
        return now.z0, now.x0, now.through_prior(now.through_decoder(weight * now.rise))

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
