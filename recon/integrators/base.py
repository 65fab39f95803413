"""Reverse-time integrators of ``dx / dsigma = (x - D(x; sigma)) / sigma``, and their loop."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from recon.noise import Noise, Source, white_like

Denoise = Callable[[Tensor, Tensor], Tensor]
Rule = Literal["ddim", "released"]


class Step(NamedTuple):
    """What is carried from one noise level to the next, and nothing besides."""

    index: int  # type: ignore[assignment]  # levels done; hides tuple.index
    sigma: Tensor  # level of ``x``
    x: Tensor
    x0: Tensor  # the last prediction of the clean image


class Integrator(Protocol):
    """Moves ``x`` from one noise level to the next; knows neither measurements nor operators."""

    def reset(self) -> None:
        """Forget what is carried between steps: after any jump of ``x`` or of the denoiser."""

    def step(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor,
             generator: Source | Noise) -> Tensor:
        """``x`` at ``sigma_next``; levels are shaped to multiply ``x``; ``sigma_next`` may be 0."""


def ddim_noise(sigma: Tensor, sigma_next: Tensor, eta: float, rule: Rule) -> tuple[Tensor, Tensor]:
    """How much predicted and how much fresh noise a DDIM(eta) step leaves, in units of ``x``.

    ``"ddim"`` (Song et al. 2021, eq. 16, divided by ``sqrt(abar)``): the fresh part is
    ``eta sigma_next sqrt(1 - sigma_next^2 / sigma^2)``; eta 1 is ancestral sampling. ``"released"``
    is the rule of the DDS code: ``eta sigma_next``, under-dispersed for every eta > 0, however many
    steps. The squares of both parts add up to ``sigma_next^2``.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta wants a number in [0, 1], got {eta}")
    if rule == "released":
        fresh = eta * sigma_next
    elif rule == "ddim":
        fresh = eta * sigma_next * (1 - (sigma_next / sigma).square()).clamp(min=0).sqrt()
    else:
        raise ValueError(f'rule wants "ddim" or "released", got {rule!r}')
    return (sigma_next.square() - fresh.square()).clamp(min=0).sqrt(), fresh


class DDIM:
    """DDIM with stochasticity ``eta`` (Song et al. 2021) on the denoiser it is given."""

    def __init__(self, eta: float = 0.0, rule: Rule = "ddim") -> None:
        ddim_noise(torch.ones(1), torch.ones(1), eta, rule)  # refuses bad settings here
        self.eta, self.rule = eta, rule

    def reset(self) -> None:
        pass

    def step(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor,
             generator: Source | Noise) -> Tensor:
        x0 = denoise(x, sigma)
        kept, fresh = ddim_noise(sigma, sigma_next, self.eta, self.rule)
        x = x0 + kept * (x - x0) / sigma
        if self.eta > 0:
            x = x + fresh * white_like(x, generator)
        return x


class Euler:
    """Euler's method on ``dx / dsigma = (x - D) / sigma``; equals ``DDIM(0)`` to rounding."""

    def reset(self) -> None:
        pass

    def step(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor,
             generator: Source | Noise) -> Tensor:  # noqa: ARG002 draws nothing
        x0 = denoise(x, sigma)
        return x + (sigma_next - sigma) * (x - x0) / sigma


def levels(sigmas: Tensor, x: Tensor, item_ndim: int) -> Tensor:
    """``(steps + 1, *batch)`` levels in the precision of ``x``, shaped to multiply it."""
    found = sigmas.to(x.device, x.dtype.to_real())
    return found.reshape(*found.shape, *(1,) * item_ndim) if found.ndim > 1 else found


@torch.no_grad()
def integrate(denoise: Denoise, x: Tensor, sigmas: Tensor, integrator: Integrator,
              generator: Source | Noise = None, callback: Callable[[Step], None] | None = None,
              *, item_ndim: int = 3) -> Tensor:
    """Drive ``x`` from ``sigmas[0]`` to ``sigmas[-1]`` and return the clean image.

    ``sigmas`` falls, ``(steps + 1,)`` or ``(steps + 1, *batch)`` for levels per item; where it ends
    above 0, one more denoising gives the result. ``callback`` sees each ``Step``. ``item_ndim`` is
    the number of dimensions of one item, its channels and its image.

    Examples
    --------
    >>> sigmas, x = schedules.karras(10), 80 * torch.randn(4, 1, 8, 8)
    >>> integrate(lambda x, sigma: x / (1 + sigma**2), x, sigmas, DDIM()).shape
    torch.Size([4, 1, 8, 8])
    """
    if sigmas.ndim < 1 or not len(sigmas) or not bool((sigmas.diff(dim=0) < 0).all()):
        raise ValueError("integrate wants falling sigmas (steps + 1, *batch), got "
                         f"{_short(sigmas)}")
    if not bool((sigmas >= 0).all()):
        raise ValueError(f"integrate wants sigmas >= 0, got {_short(sigmas)}")
    if not isinstance(generator, Noise):
        generator = Noise(generator, item_ndim=item_ndim)
    shaped = levels(sigmas, x, item_ndim)
    last: list[Tensor] = [x]

    def noted(x: Tensor, sigma: Tensor) -> Tensor:
        last[0] = denoise(x, _plain(sigma, item_ndim))
        return last[0]

    integrator.reset()
    for i in range(len(shaped) - 1):
        x = integrator.step(noted, x, shaped[i], shaped[i + 1], generator)
        if callback is not None:
            callback(Step(i + 1, sigmas[i + 1], x, last[0]))
    return x if bool((sigmas[-1] == 0).all()) else noted(x, shaped[-1])


def _plain(sigma: Tensor, item_ndim: int) -> Tensor:
    """Levels as a prior takes them: without the trailing ones."""
    return sigma.reshape(sigma.shape[: sigma.ndim - item_ndim]) if sigma.ndim else sigma


def _short(sigmas: Tensor) -> str:
    if sigmas.ndim < 1 or not len(sigmas):
        return f"{tuple(sigmas.shape)}"
    return f"{tuple(sigmas.shape)} from {sigmas[0].tolist()} to {sigmas[-1].tolist()}"
