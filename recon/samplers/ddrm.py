"""DDRM: diffusion among the singular vectors of the operator."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recon.integrators import Step, schedules
from recon.noise import Source
from recon.operators.base import LinearOperator
from recon.operators.svd import svd
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, scaled
from recon.samplers.problem import check_problem, check_sigmas


def check_settings(*, steps: int, eta: float, eta_b: float, sigmas: Tensor | None,
                   **_: Any) -> None:
    """Refuse what no measurement could make work."""
    for name, share in (("eta", eta), ("eta_b", eta_b)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} wants a number in [0, 1], got {share}")
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def ddrm(y: Tensor, operator: LinearOperator, prior: Prior, *, noise_std: Tensor | float = 0.0,
         samples: int = 1, steps: int = 20, eta: float = 0.85, eta_b: float = 1.0,
         sigmas: Tensor | None = None, generator: Source = None,
         start: Step | None = None) -> Iterator[Step]:
    """Denoising diffusion restoration models (Kawar et al., NeurIPS 2022, arXiv 2201.11793).

    In the basis of ``A = U diag(s) V^H`` every coefficient is measured, with noise
    ``noise_std / s``, or it is not: measured ones take the place of the prior's prediction while
    the level is above their noise, and of its noise below. Returns ``(samples, *batch, channel,
    *spatial)`` for ``y`` of ``(*batch, *operator.range.shape)``. The operator must have a closed
    SVD or be small enough to be written out, see ``operators.svd``.

    Without noise, what is measured is met exactly. With noise the draws are biased, however many
    steps: of independent pixels of deviation 0.2 measured with noise 0.1, 100 linear levels make
    the deviation 0.047 where 0.089 is right, and 0.169 where nothing is measured; on a correlated
    line the whole variance came out 1.16 times the exact one. Their spread is no uncertainty.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item.
    eta
        Share of fresh noise in coefficients not measured, or measured with more noise than the
        level has.
    eta_b
        Share of the data in coefficients whose noise is below the level.
    sigmas
        Noise levels in the units of ``y``'s image, falling to 0, ``(n,)`` or ``(n, *batch)``, in
        place of ``steps``; by default the linear VP levels times ``prior.scale``.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.

    ``x`` and ``x0`` of a step are images. Departure: a coefficient noisier than the first level
    starts from pure noise, where the paper supposes that there is none.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples)
    check_settings(steps=steps, eta=eta, eta_b=eta_b, sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start)
    A = svd(operator, run.x)
    seen = A.values > 0
    s = torch.where(seen, A.values, 1)
    y_bar = torch.where(seen, A.left_adjoint(y) / s, 0)
    noise_std = noise_std.reshape(*noise_std.shape, *(1,) * run.noise.item_ndim)
    spread = torch.where(seen, noise_std / s, torch.inf)  # of y_bar about V^H x
    x = run.x
    if start is None:  # eq. 7; begin's noise is white in any orthonormal basis
        left = (1 - (spread / run.shaped[0]).square()).clamp(min=0).sqrt()
        known = spread <= run.shaped[0]
        x_bar = A.right_adjoint(x)
        x = A.right(torch.where(known, y_bar + left * x_bar, x_bar))
    for i in range(run.first, len(run.sigmas) - 1):
        sigma, sigma_next = run.shaped[i], run.shaped[i + 1]
        x_bar, predicted = A.right_adjoint(x), A.right_adjoint(prior(x, run.sigmas[i]))
        fresh = A.right_adjoint(run.noise.like(x))
        # eq. 8: not measured; measured with more noise than this level; with less
        known = spread <= sigma_next
        gap = torch.where(seen, (y_bar - predicted) / torch.where(seen & (spread > 0), spread, 1),
                          (x_bar - predicted) / sigma)
        free = predicted + (1 - eta**2) ** 0.5 * sigma_next * gap + eta * sigma_next * fresh
        drawn = predicted + eta_b * (y_bar - predicted)
        left = (sigma_next.square() - (eta_b * spread).square()).clamp(min=0).sqrt()
        x = A.right(torch.where(known, drawn + left * fresh, free))
        x0 = A.right(torch.where(spread == 0, drawn, predicted))  # the same at level 0
        yield Step(i + 1, run.sigmas[i + 1], x, x0)
