"""A network prior: a fully convolutional UNet with EDM preconditioning, for any image size."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recon.priors.base import Prior


class UNetSettings(NamedTuple):
    """What it takes to build the network again; kept beside the weights."""

    image_channels: int = 2
    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    blocks: int = 2


class DenoisingUNet(nn.Module):
    """deepinv's DRUNet (Zhang et al. 2021) without weights, told the noise level by a channel.

    It has no normalisation and no attention, so one set of weights serves every image size; sizes
    that are no multiple of 8 are padded by their edge values and cropped again. A channel of ones
    stands in for the biases the network does not have.
    """

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        from deepinv.models import DRUNet  # seconds to import: only where a network is built

        self.settings = settings
        self.unet = DRUNet(in_channels=settings.image_channels + 1,
                           out_channels=settings.image_channels, nc=tuple(settings.widths),
                           nb=settings.blocks, pretrained=None)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        maps = level.view(-1, 1, 1, 1).expand(-1, 1, height, width)
        inner = torch.cat([x, maps, torch.ones_like(maps)], 1)
        inner = nn.functional.pad(inner, [0, -width % 8, 0, -height % 8], mode="replicate")
        inner = inner.contiguous(memory_format=torch.channels_last)
        out: Tensor = self.unet.forward_unet(inner)
        return out[..., :height, :width]


class EDMPrior(Prior):
    """``D(x; s) = c_skip x + c_out F(c_in x; log(s) / 4)`` (Karras et al. 2022, Table 1, "ours").

    Parameters
    ----------
    network
        ``F``; sees real images ``(n, channels, *spatial)`` and one number per item.
    channels
        Image channels.
    sigma_data
        Standard deviation of the training images per real number.
    precision
        What the network computes in; the preconditioning stays in the precision of ``x``.

    Examples
    --------
    >>> prior = EDMPrior(DenoisingUNet(UNetSettings(2)), 2, sigma_data=0.25)
    >>> prior.as_complex("channels")(torch.zeros(1, 13, 17, dtype=torch.complex64), 0.1).shape
    torch.Size([1, 13, 17])
    """

    def __init__(self, network: nn.Module, channels: int, *, sigma_data: float,
                 sigma_min: float = 0.003, sigma_max: float = 40.0, spatial_ndim: int = 2,
                 precision: torch.dtype = torch.float32, max_batch: int | None = None,
                 normalised: bool = True) -> None:
        super().__init__(channels=channels, is_complex=False, spatial_ndim=spatial_ndim,
                         sigma_min=sigma_min, sigma_max=sigma_max, max_batch=max_batch,
                         normalised=normalised)
        if precision not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(f"precision wants float32, bfloat16 or float16, got {precision}")
        if not (0 < sigma_data < math.inf and 0 < sigma_min < sigma_max < math.inf):
            raise ValueError("EDMPrior wants finite sigma_data > 0 and 0 < sigma_min < sigma_max, "
                             f"got {sigma_data}, {sigma_min}, {sigma_max}")
        self.network, self.sigma_data, self.precision = network, sigma_data, precision

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, *(1,) * self.item_ndim)
        total = (s.square() + self.sigma_data**2).sqrt()
        # below its trained range the network is told sigma_min; c_out still vanishes with sigma
        level = sigma.clamp(self.sigma_min, self.sigma_max).log() / 4
        kind = next((p.dtype for p in self.network.parameters()), torch.float32)
        inner, level = (x / total).to(kind), level.to(kind)
        if self.precision == torch.float32:
            out: Tensor = self.network(inner, level)
        else:
            with torch.autocast(x.device.type, self.precision):
                out = self.network(inner, level)
        return (self.sigma_data / total) ** 2 * x + s * self.sigma_data / total * out.to(x.dtype)
