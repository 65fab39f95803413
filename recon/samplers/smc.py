"""Sequential Monte Carlo along tilted noisy priors: particles, weights and resampling."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from recon.integrators import Step, schedules
from recon.noise import Source
from recon.operators.base import Operator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.kernels import Kernel, OdeCorrector, tilted_path
from recon.samplers.levels import begin
from recon.samplers.particles import Particles, check_share, moved, newborn, past_the_noise
from recon.samplers.problem import check_problem, check_sigmas


def check_settings(*, steps: int, resample_below: float, sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_share(resample_below)
    check_sigmas(schedules.vp(1) if sigmas is None else sigmas)
    if steps < 1:
        raise ValueError(f"steps wants at least 1, got {steps}")


@sampler_with(check_settings, joint=True)
def smc(y: Tensor, operator: Operator, prior: Prior, *, noise_std: Tensor | float = 0.0,
        samples: int = 64, steps: int = 200, kernel: Kernel | None = None,
        resample_below: float = 0.5, sigmas: Tensor | None = None, generator: Source = None,
        start: Particles | None = None) -> Iterator[Particles]:
    """Ensembles along ``p_sigma(x) exp(-alpha mu(x))`` (AFDPS, Chen et al., arXiv 2506.03979).

    ``samples`` weighted particles follow the noisy prior tilted by the likelihood ``mu = ||y - A
    x||^2 / (2 noise_std^2)`` of the particle itself, down to the posterior; the network is never
    differentiated. Consistent: the error falls as ``samples^-1/2``, to that of the levels and of
    the kernel. Returns equally weighted draws ``(samples, *batch, channel, *spatial)``; the last
    step of ``smc.run`` holds the weighted ensemble and its evidence (``Particles``).

    For images read this first. The spread of the log-weights grows as the square root of the
    number of measurements; with more than some tens of them and few particles all the weight lies
    on one or two (``ess`` near ``1 / samples``), resampling copies those, and the weights say which
    particle is luckiest, not how probable it is. Look at ``min_ess`` and ``distinct_ancestors``: a
    standard deviation over descendants of one particle is not the posterior's. There
    ``resample_below=0`` with the unweighted ``x`` of the last step is guided Langevin sampling.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item; not 0.
    kernel
        How particles move and are weighed; by default ``OdeCorrector()``, which takes ``1 +
        ula_steps`` evaluations of the prior a level. ``AnnealedSde`` and ``FullyAdapted`` take one.
    resample_below
        Resample an item where its effective share of the particles is less; 0 for never, 1 for
        always unless the weights are equal.
    sigmas
        Noise levels in the units of the image, falling to 0, ``(n,)`` or ``(n, *batch)``, in place
        of ``steps``; by default those of Karras et al. from 80 times ``prior.scale`` (or the
        prior's ``sigma_max``) to the noise of the data or 0.01 times it, whichever is less. The
        first must be far above the spread of the prior.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Particles`` to go on from, with the settings and the generator's state then.

    Departures: the likelihood is annealed, ``alpha = (1 - sigma^2 / sigma_0^2) / (1 + ||A||^2
    sigma^2 / noise_std^2)``, with the value term in the weights. Plain noise is then the right
    start, and no step is stiff however small the noise; the paper has ``alpha = 1``, which for
    small noise wants millions of steps. Resampling is systematic.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples, linear=False,
                              noisy=True)
    check_settings(steps=steps, resample_below=resample_below, sigmas=sigmas)
    if sigmas is None:
        sigmas = past_the_noise(steps, y, operator, prior, noise_std)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start and Step(*start[:4]))
    path = tilted_path(y, operator, prior, noise_std, run)
    step = (OdeCorrector() if kernel is None else kernel).along(path)
    now = newborn(run) if start is None else start
    for i in range(run.first, len(run.sigmas) - 1):
        x, x0, log_weight = step(now.x, i, run.noise)
        now = moved(now, x, x0, log_weight, run, below=resample_below)
        yield now
