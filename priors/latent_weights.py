"""Files of latent priors: the weights of a denoiser of latents and of their autoencoder."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon.priors.errors import CheckpointError
from recon.priors.latent_autoencoder import Autoencoder
from recon.priors.latent_network import AutoencoderSettings, ConvAutoencoder
from recon.priors.latent_prior import LatentPrior
from recon.priors.network import DenoisingUNet, EDMPrior, UNetSettings
from recon.priors.weights import FORMAT, fill, write


def save_latent(path: str | Path, network: DenoisingUNet, autoencoder: ConvAutoencoder, *,
                sigma_data: float, sigma_min: float, sigma_max: float, card: dict[str, Any],
                overwrite: bool = False) -> None:
    """Write a denoiser of latents and their autoencoder as ``priors.save`` writes one network."""
    settings = {"format": FORMAT, "network": "latent", "denoiser": network.settings._asdict(),
                "autoencoder": autoencoder.settings._asdict(), "sigma_data": sigma_data,
                "sigma_min": sigma_min, "sigma_max": sigma_max, "card": card}
    parts = {"denoiser": network, "autoencoder": autoencoder}
    tensors = {f"{name}.{k}": v for name, part in parts.items()
               for k, v in part.state_dict().items()}
    write(Path(path), tensors, settings, overwrite)


def built(name: str, settings: dict[str, Any], weights: dict[str, Tensor], channels: int | None,
          precision: torch.dtype, max_batch: int | None) -> LatentPrior:
    """The prior of a file of ``save_latent``; CheckpointError where it is damaged or edited."""
    unet, coder, (data, low, high) = _settings(name, settings)
    if channels not in (None, coder.image_channels):
        raise CheckpointError(f"{name} is of images of {coder.image_channels} channel(s), not of "
                              f"the {channels} asked for: take another prior")
    with torch.device("meta"):  # sizes only: a spoilt file must not claim the memory
        network, autoencoder = DenoisingUNet(unet), ConvAutoencoder(coder)
    parts = {"denoiser.": network, "autoencoder.": autoencoder}
    for part, inner in parts.items():  # keys of neither are refused with both
        fill(name, inner, {k.removeprefix(part): v for k, v in weights.items()
                           if k.startswith(part) or not k.startswith(tuple(parts))})
        inner.requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    prior = EDMPrior(network, unet.image_channels, sigma_data=data, sigma_min=low, sigma_max=high,
                     precision=precision, max_batch=max_batch, normalised=False)
    codec = Autoencoder(autoencoder.encode, autoencoder.decode, channels=coder.image_channels,
                        latent_channels=coder.latent_channels, factor=autoencoder.factor,
                        module=autoencoder, max_batch=max_batch)
    return LatentPrior(prior, codec, normalised=True)


def _settings(name: str, found: dict[str, Any],
              ) -> tuple[UNetSettings, AutoencoderSettings, tuple[float, float, float]]:
    """What the file says of its networks and levels, checked."""
    if found.get("format") != FORMAT:
        raise CheckpointError(f"{name}: format {found.get('format')!r} is not known: upgrade recon")
    try:
        parts: list[dict[str, Any]] = [
            {k: tuple(v) if k == "widths" or (k, of) == ("blocks", "autoencoder") else v
             for k, v in found[of].items()} for of in ("denoiser", "autoencoder")]
        unet, coder = UNetSettings(**parts[0]), AutoencoderSettings(**parts[1])
        data, low, high = (float(found[k]) for k in ("sigma_data", "sigma_min", "sigma_max"))
        counts = (unet.image_channels, *unet.widths, unet.blocks, coder.image_channels,
                  coder.latent_channels, *coder.widths, *(1 + n for n in coder.blocks))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{name}: its settings lack or spoil {error}") from error
    if not (len(unet.widths) == 4 and 1 <= len(coder.widths) <= 8 and len(coder.blocks) == 2
            and all(type(n) is int and 0 < n <= 4096 for n in counts)
            and max(unet.blocks, *coder.blocks) <= 64
            and unet.image_channels == coder.latent_channels
            and 0 < data < math.inf and 0 < low < high < math.inf):
        raise CheckpointError(f"{name}: its settings are out of range: {unet}, {coder}, levels "
                              f"{data}, {low}, {high}: the file is damaged or edited")
    return unet, coder, (data, low, high)
