"""How well a prior denoises images it was not trained on."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from recon.priors.base import Prior
from recon.priors.training.examples import Stack

CHECKED = (0.05, 0.1, 0.2, 0.4)
"""Noise levels of the check, in units of the prior."""


def held_out_images(stacks: Sequence[Stack], *, phase: bool = False,
                    most: int = 6, side: int = 256) -> list[Tensor]:
    """A few planes of stacks not trained on, ``(1, height, width)``, always the same.

    Spread over the middle of the slices and, of cubes, over the other two directions; the 99.5 %
    quantile of the magnitude is 0.85, as ``recon.reconstruct`` scales data for a prior. Planes with
    a side over ``side`` are averaged down to it. With ``phase`` real ones get a fixed smooth phase.
    """
    places = []
    for stack in stacks:
        spacing = stack.spacing_mm or (1.0, 2.0, 2.0)
        axes = (0, 1, 2) if max(spacing) < 1.3 * min(spacing) else (0,)
        each = max(1, most // (len(stacks) * len(axes)))
        places += [(stack, axis, (i + 1) / (each + 1)) for axis in axes for i in range(each)]
    images = []
    for stack, axis, part in places[:: max(1, len(places) // most)]:
        depth = stack.values.shape[axis]
        # the middle 60 %: volumes end in air, or above the head
        image = stack.values.select(axis, round((0.2 + 0.6 * part) * (depth - 1)))
        image = _within(image, side)
        top = torch.quantile(image.abs().flatten()[:: max(1, image.numel() >> 20)], 0.995)
        if float(top) > 0:
            image = image * (0.85 / top)
            images.append((_with_phase(image) if phase else image)[None])
    if not images:
        raise ValueError("the images held out are all zero: want others")
    return images


def _within(image: Tensor, side: int) -> Tensor:
    if max(image.shape) <= side:
        return image
    size = [max(1, round(n * side / max(image.shape))) for n in image.shape]
    parts = torch.view_as_real(image).movedim(-1, 0) if image.is_complex() else image[None]
    small = interpolate(parts[None], size=size, mode="bilinear", antialias=True)[0]
    return torch.complex(small[0], small[1]) if image.is_complex() else small[0]


def _with_phase(magnitude: Tensor) -> Tensor:
    height, width = (torch.linspace(-1, 1, n) for n in magnitude.shape)
    down = height[:, None]
    angle = 0.4 + 0.9 * down - 0.5 * width + 0.5 * torch.cos(2 * down * width)
    return torch.polar(magnitude.abs(), angle + math.pi * (magnitude < 0))


@torch.no_grad()
def denoising_psnr(prior: Prior, images: Sequence[Tensor]) -> list[float]:
    """Mean denoising PSNR in dB at each of ``CHECKED``: peak one, error per real number.

    Images are ``(channels, height, width)``, of any sizes; every level has the same noise.
    """
    found = []
    device = next((p.device for p in prior.parameters()), torch.device("cpu"))
    for sigma in CHECKED:
        generator, total = torch.Generator().manual_seed(0), 0.0
        for x0 in images:
            error = prior((x0 + sigma * noise_like(x0, generator)).to(device), sigma).cpu() - x0
            total += -10 * math.log10(float(per_number(error)))
        found.append(total / len(images))
    return found


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers; of complex images in each part."""
    if x.is_complex():
        return torch.complex(*torch.randn(2, *x.shape, generator=generator))
    return torch.randn(x.shape, generator=generator)


def per_number(error: Tensor) -> Tensor:
    """The mean square of the real numbers of a real or complex image."""
    return error.abs().square().mean() / (2 if error.is_complex() else 1)
