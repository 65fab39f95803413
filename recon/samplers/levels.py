"""Where a run of levels begins and how an integrator is driven along it."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from recon.integrators import Integrator, Step
from recon.integrators.base import Denoise, levels
from recon.noise import Noise, Source
from recon.priors import Prior
from recon.samplers.problem import check_sigmas, check_start
from recon.space import Space


class Run(NamedTuple):
    """Levels, noise and the first image of a run, new or resumed."""

    sigmas: Tensor  # (steps + 1, *items), as priors and guidance take them
    shaped: Tensor  # the same, shaped to multiply ``x``
    noise: Noise
    x: Tensor  # (samples, *batch, channel, *spatial) at sigmas[first]
    first: int  # levels done

    def plain(self, sigma: Tensor) -> Tensor:
        """One level of ``shaped`` as a prior takes it."""
        return sigma.reshape(sigma.shape[: sigma.ndim - self.noise.item_ndim])


def scaled(grid: Tensor, prior: Prior) -> Tensor:
    """Levels of a schedule in the units of the image: times ``prior.scale``, per item."""
    scale = torch.as_tensor(prior.scale, dtype=torch.float64, device="cpu")
    return grid.view(-1, *(1,) * scale.ndim) * scale


def begin(y: Tensor, batch: tuple[int, ...], space: Space, sigmas: Tensor, *, samples: int,
          generator: Source, start: Step | None) -> Run:
    """A run of images of ``space`` from pure noise of ``sigmas[0]``, or from a saved step.

    Raises ValueError for levels that do not fall to 0 or do not fit ``batch``, and for a ``start``
    of other draws or other levels.
    """
    check_sigmas(sigmas, batch)
    noise = Noise(generator, samples_ndim=1, item_ndim=len(space.shape))
    plain = sigmas.to(y.device, y.dtype.to_real())
    shaped = levels(sigmas, y, noise.item_ndim)
    shape = (samples, *batch, *space.shape)
    if start is not None:
        check_start(start, shape, plain)
        return Run(plain, shaped, noise, start.x, start.index)
    kind = y.dtype.to_complex() if space.is_complex else y.dtype.to_real()
    x = shaped[0] * noise.like(torch.empty(shape, dtype=kind, device=y.device))
    return Run(plain, shaped, noise, x, 0)


def drive(run: Run, denoise: Denoise, integrator: Integrator) -> Iterator[Step]:
    """The steps of an integrator on a guided denoiser, called with levels as priors take them."""
    x = x0 = run.x

    def noted(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal x0
        x0 = denoise(x, run.plain(sigma))
        return x0

    integrator.reset()
    for i in range(run.first, len(run.sigmas) - 1):
        x = integrator.step(noted, x, run.shaped[i], run.shaped[i + 1], run.noise)
        yield Step(i + 1, run.sigmas[i + 1], x, x0)
