"""Autoencoders of diffusers: tiny ones, never trained, as their own pipelines use them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.operators import Identity
from recon.priors import Autoencoder, CheckpointError, Gaussian, LatentPrior
from recon.samplers import psld
from recon.space import Space

diffusers: Any = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "norm_num_groups": 2,
                         "latent_channels": 4, "block_out_channels": (4, 8),
                         "down_block_types": ("DownEncoderBlock2D",) * 2,
                         "up_block_types": ("UpDecoderBlock2D",) * 2}
UNITS: list[dict[str, Any]] = [
    {}, {"scaling_factor": 0.5}, {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    {"scaling_factor": 0.5, "latents_mean": (0.1, -0.2, 0.3, 0.0),
     "latents_std": (1.0, 2.0, 3.0, 0.5)}]


def kl(**settings: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**SMALL | settings).eval()


def vq(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = diffusers.VQModel(**SMALL | {"num_vq_embeddings": 64} | settings).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)  # its own are all nearly zero
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("units", UNITS)
@torch.no_grad()
def test_units_of_latents(units: dict[str, Any]) -> None:
    """What the pipelines decode: ``z / scaling + shift``, or with a deviation of each channel."""
    model = kl(**units)
    x = noise(2, 3, 8, 12)
    raw = model.encode(x).latent_dist.mode()
    scaling = units.get("scaling_factor", 0.18215)
    if "latents_mean" in units:
        mean, std = (torch.tensor(units[name]).view(1, 4, 1, 1)
                     for name in ("latents_mean", "latents_std"))
        z = (raw - mean) / std * scaling
    else:
        z = (raw - units.get("shift_factor", 0.0)) * scaling

    def check(one: Autoencoder) -> None:
        torch.testing.assert_close(one.encode(x), z)
        torch.testing.assert_close(one.decode(z), model.decode(raw).sample)
        torch.testing.assert_close(one.rescaled(0.5, 0.5).decode(z),
                                   model.decode(raw).sample / 2 + 0.5)

    one = Autoencoder.from_diffusers(model)
    assert (one.channels, one.latent_channels, one.factor) == (3, 4, 2)
    check(one)
    for wrong in UNITS:
        if wrong != units:
            with pytest.raises(AssertionError):
                check(Autoencoder.from_diffusers(kl(**wrong)))


def test_vector_quantised() -> None:
    """Latents before the codebook, decoded through it; the gradient goes straight on."""
    model = vq(vq_embed_dim=5, scaling_factor=2.0)
    one = Autoencoder.from_diffusers(model)
    assert one.latent_channels == 5
    x, v = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    with torch.no_grad():
        raw = model.encode(x).latents
        want = model.decode(raw).sample
        nearest = model.quantize(raw)[0]

    def check(one: Autoencoder) -> None:
        torch.testing.assert_close(one.encode(x), 2 * raw)
        torch.testing.assert_close(one.decode(2 * raw), want)
        pulled = one.codec(Space((3, 8, 8))).decode_with_pullback(2 * raw)[1](v)
        at = nearest.clone().requires_grad_()
        (inner,) = torch.autograd.grad(
            model.decode(at, force_not_quantize=True).sample, at, v)
        torch.testing.assert_close(pulled, inner / 2)

    check(one)

    def unquantised(z: Tensor) -> Tensor:
        out: Tensor = model.decode(z / 2, force_not_quantize=True).sample
        return out

    with pytest.raises(AssertionError):
        check(Autoencoder(lambda x: 2 * model.encode(x).latents, unquantised, channels=3,
                          latent_channels=5, factor=2))


@pytest.mark.parametrize("make", [kl, vq])
def test_folders(make: Callable[..., Any], tmp_path: Path) -> None:
    """Safetensors of ``save_pretrained``; pickles, other models and odd keys are refused."""
    model = make()
    model.save_pretrained(tmp_path / "vae")
    x = noise(1, 3, 8, 8)
    want = Autoencoder.from_diffusers(model).encode(x)
    assert torch.equal(Autoencoder.from_diffusers(tmp_path / "vae").encode(x), want)
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(CheckpointError, match=r"pickled: no weights of a .* in safetensors"):
        Autoencoder.from_diffusers(tmp_path / "pickled")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())

    def damaged(**changed: Any) -> Path:
        (tmp_path / "vae" / "config.json").write_text(json.dumps({**config, **changed}))
        return tmp_path / "vae"

    with pytest.raises(CheckpointError, match=r"vae holds a UNet2DModel: want AutoencoderKL"):
        Autoencoder.from_diffusers(damaged(_class_name="UNet2DModel"))
    with pytest.raises(CheckpointError, match=r"tensors do not fit its config\.json, first"):
        Autoencoder.from_diffusers(damaged(mid_block_add_attention=False))
    with pytest.raises(CheckpointError, match=r"vae: no weights of a .* that fit"):
        Autoencoder.from_diffusers(damaged(block_out_channels=(4, 4)))
    with pytest.raises(CheckpointError, match="scaling_factor of the autoencoder wants"):
        Autoencoder.from_diffusers(damaged(scaling_factor=0.0))
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no model of diffusers"):
        Autoencoder.from_diffusers(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="mostly called vae or vqvae"):
        Autoencoder.from_diffusers(tmp_path)


@pytest.mark.parametrize("make", [kl, vq])
def test_drives_a_sampler(make: Callable[..., Any]) -> None:
    """Grey images in [0, 1] through a network of colours in [-1, 1]; each item as if alone."""
    codec = Autoencoder.from_diffusers(make()).grey().rescaled(0.5, 0.5).checkpointed()
    prior = LatentPrior(Gaussian(torch.zeros(4, 4, 4), variance=1.0), codec)
    A, y = Identity(Space((1, 8, 8))), noise(2, 1, 8, 8).abs()
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    both = psld(y, A, prior, steps=3, generator=seeds)
    assert both.shape == (1, 2, 1, 8, 8)
    alone = psld(y[1], A, prior, steps=3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(both[:, 1], alone)
    assert float((both - y).square().mean()) > 0
    assert not any(p.requires_grad for p in prior.parameters())


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="wants an AutoencoderKL or VQModel of diffusers, or a"):
        Autoencoder.from_diffusers(torch.nn.Identity())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'recon\[diffusers\]'"):
        Autoencoder.from_diffusers("vae")
