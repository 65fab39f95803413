"""Files of latent priors: what is written is read, and damage is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from recon import priors
from recon.priors import CheckpointError, DenoisingUNet, EDMPrior, LatentPrior, UNetSettings
from recon.priors.latent_network import AutoencoderSettings, ConvAutoencoder
from recon.priors.latent_weights import save_latent

LEVELS: dict[str, Any] = {"sigma_data": 0.8, "sigma_min": 0.02, "sigma_max": 30.0}


@pytest.fixture(scope="module")
def networks() -> tuple[DenoisingUNet, ConvAutoencoder]:
    torch.manual_seed(0)
    parts = (DenoisingUNet(UNetSettings(3, (4, 4, 4, 4), 1)),
             ConvAutoencoder(AutoencoderSettings(2, 3, (4, 8), (0, 1))))
    parts[1].spread.copy_(torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1))
    for part in parts:  # what half precision holds
        part.half().float()
    return parts


def test_what_is_written_is_read(networks: tuple[DenoisingUNet, ConvAutoencoder],
                                 tmp_path: Path) -> None:
    unet, coder = networks
    save_latent(tmp_path / "one.safetensors", unet, coder, card={"people": 2}, **LEVELS)
    prior = priors.load(tmp_path / "one.safetensors", max_batch=2)
    assert isinstance(prior, LatentPrior)
    assert (prior.channels, prior.sigma_max, prior.max_batch, prior.normalised) == (3, 30, 2, True)
    assert priors.card(tmp_path / "one.safetensors") == {"people": 2}
    generator = torch.Generator().manual_seed(0)
    z, x = torch.randn(5, 3, 4, 4, generator=generator), torch.randn(5, 2, 16, 16)

    def check(unet: DenoisingUNet, coder: ConvAutoencoder) -> None:
        torch.testing.assert_close(prior(z, 0.5), EDMPrior(unet, 3, **LEVELS)(z, 0.5))
        torch.testing.assert_close(prior.codec.decode(z), coder.decode(z))
        torch.testing.assert_close(prior.codec.encode(x), coder.encode(x))

    check(unet, coder)
    with pytest.raises(AssertionError):
        check(unet, ConvAutoencoder(coder.settings))
    with pytest.raises(AssertionError):
        check(DenoisingUNet(unet.settings), coder)
    with pytest.raises(FileExistsError, match=r"one\.safetensors exists"):
        save_latent(tmp_path / "one.safetensors", unet, coder, card={}, **LEVELS)


def test_damage_is_told(networks: tuple[DenoisingUNet, ConvAutoencoder], tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_latent(path, *networks, card={}, **LEVELS)
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["recon"])
        weights = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 no mapping
    priors.load(path, channels=2)
    with pytest.raises(CheckpointError, match=r"2 channel.*not of the 1 asked for"):
        priors.load(path, channels=1)
    first = next(k for k in weights if k.startswith("autoencoder.decoder"))
    nan = {first: torch.full_like(weights[first], torch.nan)}
    damages: list[tuple[Callable[[], tuple[dict[str, Any], dict[str, Tensor]]], str]] = [
        (lambda: (settings, {k: v for k, v in weights.items() if k != first}),
         first.removeprefix("autoencoder.")),
        (lambda: (settings, weights | {"other.weight": torch.ones(1)}), "first other.weight"),
        (lambda: (settings, weights | {first: weights[first][:1]}), "do not fit the network"),
        (lambda: (settings, weights | nan), "holds NaN or infinity"),
        (lambda: ({**settings, "format": 9}, weights), "upgrade recon"),
        (lambda: ({**settings, "autoencoder": {}}, weights), "out of range|lack or spoil|not fit"),
        (lambda: ({**settings, "autoencoder": 3}, weights), "lack or spoil"),
        (lambda: ({**settings, "denoiser": {"widths": 3}}, weights), "lack or spoil"),
        (lambda: ({**settings, "sigma_data": -1}, weights), "out of range"),
        (lambda: ({**settings, "denoiser": {**settings["denoiser"], "image_channels": 4}}, weights),
         "out of range")]
    for make, match in damages:
        described, tensors = make()
        save_file(tensors, path, metadata={"recon": json.dumps(described)})
        with pytest.raises(CheckpointError, match=match):
            priors.load(path)
