"""A small autoencoder of convolutions alone: any image size, a bounded receptive field."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class AutoencoderSettings(NamedTuple):
    """What it takes to build the networks again; kept beside the weights."""

    image_channels: int = 1
    latent_channels: int = 4
    widths: tuple[int, ...] = (32, 64)  # each halves the image once more
    blocks: tuple[int, int] = (1, 2)  # of the encoder and of the decoder, at each width


class ConvAutoencoder(nn.Module):
    """Encoder and decoder of residual convolutions, without normalisation or attention.

    Sizes are halved by packing 2 x 2 pixels into channels, and doubled by unpacking them. Nothing
    looks further than ``radius`` latent pixels, so tiles with that halo are exactly the whole.
    Latents are brought to mean 0 and deviation 1 by the ``centre`` and ``spread`` of each channel.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.settings = settings
        image, latent, widths, (before, behind) = settings
        down: list[nn.Module] = []
        up: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 3, padding=1)]
        for of, width in zip((image, *widths[:-1]), widths, strict=True):
            down += [nn.PixelUnshuffle(2), nn.Conv2d(4 * of, width, 3, padding=1),
                     *[_Block(width) for _ in range(before)]]
        for to, width in zip((image, *widths[:-1])[::-1], widths[::-1], strict=True):
            up += [*[_Block(width) for _ in range(behind)],
                   nn.Conv2d(width, 4 * to, 3, padding=1), nn.PixelShuffle(2)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], 2 * latent, 3, padding=1))
        self.decoder = nn.Sequential(*up)
        self.register_buffer("centre", torch.zeros(latent, 1, 1))
        self.register_buffer("spread", torch.ones(latent, 1, 1))

    @property
    def factor(self) -> int:
        """Image pixels along one side of a latent pixel."""
        return 2 ** len(self.settings.widths)

    @property
    def radius(self) -> int:
        """How many latent pixels away an image or latent pixel may still matter."""
        before, behind = self.settings.blocks
        levels = range(1, len(self.settings.widths) + 1)
        encoded = 1 + sum(2**k * (1 + 2 * before) for k in levels) / self.factor
        decoded = 1 + sum(2**k * (1 + 2 * behind) for k in levels) / self.factor
        return math.ceil(max(encoded, decoded))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the raw latents of ``x``, ``(n, channels, height, width)``."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance.clamp(-20, 5)

    def encode(self, x: Tensor) -> Tensor:
        """The mean latent, brought to mean 0 and deviation 1."""
        return (self.posterior(x.to(self.spread.dtype))[0] - self.centre) / self.spread

    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent."""
        image: Tensor = self.decoder(z.to(self.spread.dtype) * self.spread + self.centre)
        return image


class _Block(nn.Module):
    """``x + conv(silu(conv(silu(x))))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
        return out
