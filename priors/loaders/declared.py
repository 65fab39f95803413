"""What no checkpoint says and its user must, and what is made of it."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.network import EDMPrior
from recon.priors.parameterisation import (
    EpsilonPrior,
    FlowPrior,
    Interpolant,
    InterpolantPrior,
    Schedule,
    ScorePrior,
    VelocityPrior,
    X0Prior,
)

Predicts = Literal["eps", "score", "v", "x0", "flow"]
ValueRange = tuple[float, float] | Literal["normalised"]

_WRAPPERS = {"eps": EpsilonPrior, "score": ScorePrior, "v": VelocityPrior, "x0": X0Prior,
             "flow": FlowPrior}


class Declared(NamedTuple):
    """The words of whoever opens a checkpoint; None where nothing was said."""

    value_range: ValueRange | None = None
    is_complex: bool = False
    channels: int | None = None
    schedule: Schedule | None = None
    predicts: Predicts | None = None
    sigma_data: float | None = None
    head_channels: int | None = None
    attention_order: Literal["legacy", "new"] | None = None
    network: nn.Module | None = None
    precision: torch.dtype = torch.float32
    max_batch: int | None = None

    def refuse_others(self, name: str, layout: str, used: tuple[str, ...]) -> None:
        """Raise CheckpointError for a word that this layout has no use for."""
        for word in ("schedule", "predicts", "sigma_data", "head_channels", "attention_order"):
            if getattr(self, word) is not None and word not in used:
                raise CheckpointError(f"{word}= says nothing about {name}, which is {layout}: "
                                      "leave it out")


class Run(nn.Module):
    """A network in its own precision, whatever the images' is.

    ``multiple`` is what heights and widths must be a multiple of. The time comes in single
    precision or more: an index of bfloat16 has steps of four.
    """

    def __init__(self, network: nn.Module, precision: torch.dtype, multiple: int = 1) -> None:
        super().__init__()
        if precision not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"precision wants float32, bfloat16 or float16, got {precision}")
        self.network, self.precision, self.multiple = network, precision, multiple

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if any(size % self.multiple for size in x.shape[2:]):
            raise ValueError(f"this prior's network wants heights and widths that are multiples of "
                             f"{self.multiple}, got {tuple(x.shape[2:])}: crop or pad the images")
        kind = next((p.dtype for p in self.network.parameters() if p.is_floating_point()),
                    torch.float32)
        told = self.told(time, kind)
        if self.precision == torch.float32:
            out: Tensor = self.network(x.to(kind), told)
        else:
            with torch.autocast(x.device.type, self.precision):
                out = self.network(x.to(kind), told)
        return out.to(x.dtype)

    def told(self, time: Tensor, kind: torch.dtype) -> Tensor:
        """The time as a network of precision ``kind`` hears it."""
        return time.to(torch.promote_types(kind, torch.float32))


def wrapped(network: nn.Module, channels: int, predicts: Predicts, schedule: Schedule,
            max_batch: int | None) -> Prior:
    """The denoiser of a network, by what it predicts."""
    if predicts not in _WRAPPERS:
        raise ValueError(f"predicts wants one of {', '.join(_WRAPPERS)}, got {predicts!r}")
    if predicts == "flow" and isinstance(schedule, Interpolant):
        return InterpolantPrior(network, schedule, channels, max_batch=max_batch)
    return _WRAPPERS[predicts](network, schedule, channels, max_batch=max_batch)


def preconditioned(network: nn.Module, channels: int, sigma_data: float,
                   max_batch: int | None) -> Prior:
    """The denoiser of a network in EDM's preconditioning, for the noise of its releases."""
    return EDMPrior(network, channels, sigma_data=sigma_data, sigma_min=0.002, sigma_max=80.0,
                    max_batch=max_batch, normalised=False)


def smallest(sigma: Tensor) -> float:
    """The least level to divide by: the noise over it, times a smaller one's square, is zero."""
    return float(torch.finfo(sigma.dtype).tiny) ** 0.5


def counted(name: str, channels: int, outputs: int, said: Declared) -> int:
    """The image channels, once the network's ends and the caller agree about them."""
    if outputs not in ((channels,) if said.sigma_data is not None else (channels, 2 * channels)):
        raise CheckpointError(
            f"{name} maps {channels} channels to {outputs}: want as many"
            f"{'' if said.sigma_data is not None else ', or twice as many for a learned variance'}"
            ": it is made for something other than EDM's preconditioning or conditioned on more "
            "than noise")
    if said.channels is not None and said.channels != channels:
        raise CheckpointError(f"{name} is of images of {channels} channel(s), not of the "
                              f"{said.channels} asked for: take another checkpoint")
    return channels


def in_units(name: str, prior: Prior, said: Declared) -> Prior:
    """From the values a network was trained with to images from 0 to 1, complex where they are."""
    values = said.value_range
    if values is None:
        raise CheckpointError(
            f"{name} does not say which values its training images had, and wrong ones give wrong "
            "images: pass value_range=(-1, 1), (0, 1) or 'normalised' (a high quantile of the "
            "magnitude is one)")
    if values == "normalised":
        prior.normalised = True
        return prior.as_complex("channels") if said.is_complex else prior
    low, high = values
    if said.is_complex:
        if low != -high:
            raise ValueError(f"value_range of complex images wants (-a, a) for real and imaginary "
                             f"parts, or 'normalised', got {values}: their zero must stay zero")
        prior = prior.as_complex("channels")
        return prior if high == 1 else prior.rescaled(1 / high)
    return prior if (low, high) == (0, 1) else prior.rescaled(1 / (high - low), -low / (high - low))


def ends(values: Any) -> ValueRange | None:
    """The words ``value_range=`` in one form, whichever sequence or tensor they came in."""
    if values is None:
        return None
    if isinstance(values, str) and values == "normalised":
        return "normalised"
    try:
        low, high = (float(v) for v in values)
    except (TypeError, ValueError):
        low = high = math.nan
    if isinstance(values, str) or not (-math.inf < low < high < math.inf):
        raise ValueError("value_range wants the values of black and white, (low, high), or "
                         f"'normalised', got {values!r}")
    return low, high
