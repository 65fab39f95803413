"""Autoencoders of diffusers, with the units their pipelines give to latents."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recon.priors.errors import CheckpointError

KINDS = ("AutoencoderKL", "VQModel")


class _Opened(nn.Module):
    """Encoder and decoder of a model, latents in units of its diffusion network."""

    centre: Tensor
    spread: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config: Any = model.config
        self.is_vq = type(model).__name__ == "VQModel"
        self.model = model.eval().requires_grad_(False)
        self.channels: int = config.in_channels
        self.latent_channels: int = config.latent_channels
        if self.is_vq and config.vq_embed_dim is not None:
            self.latent_channels = config.vq_embed_dim
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        # z = (latent - centre) / spread
        scaling = float(config.scaling_factor)
        if not 0 < scaling < math.inf:
            raise CheckpointError(f"scaling_factor of the autoencoder wants a number > 0, got "
                                  f"{scaling}")
        means, stds = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        centre, spread = torch.zeros(1), torch.full((1,), 1 / scaling)
        if means is not None and stds is not None:
            centre, spread = torch.tensor(means), torch.tensor(stds) / scaling
        if (shift := getattr(config, "shift_factor", None)) is not None:
            centre = centre + shift
        self.register_buffer("centre", centre.view(-1, 1, 1))
        self.register_buffer("spread", spread.view(-1, 1, 1))

    def encode(self, x: Tensor) -> Tensor:
        model: Any = self.model
        found = model.encode(x.to(model.dtype))
        z: Tensor = found.latents if self.is_vq else found.latent_dist.mode()
        return (z.to(x.dtype) - self.centre) / self.spread

    def decode(self, z: Tensor) -> Tensor:
        model: Any = self.model
        x: Tensor = model.decode((z * self.spread + self.centre).to(model.dtype)).sample
        return x.to(z.dtype)


def opened(model: Any) -> _Opened:
    """A model of diffusers, or one read from a folder that ``save_pretrained`` wrote."""
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("autoencoders of diffusers want the extra diffusers: "
                          "pip install 'recon[diffusers]'") from error
    kinds = tuple(getattr(diffusers, kind) for kind in KINDS)
    if isinstance(model, str | Path):
        model = _read(Path(model), dict(zip(KINDS, kinds, strict=True)))
    if not isinstance(model, kinds):
        raise TypeError(f"from_diffusers wants an {' or '.join(KINDS)} of diffusers, or a folder "
                        f"of one, got {type(model).__name__}: wrap others, priors.Autoencoder("
                        "encode, decode, ...)")
    return _Opened(model)


def _read(folder: Path, kinds: dict[str, Any]) -> nn.Module:
    import json

    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{folder.name}: no config.json: pass the folder of the autoencoder "
                              "itself, mostly called vae or vqvae")
    try:
        kind = json.loads(config.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder.name}/config.json names no model of diffusers "
                              f"({error}): copy it again") from error
    if kind not in kinds:
        raise CheckpointError(f"{folder.name} holds a {kind}: want {' or '.join(kinds)}")
    try:
        found, report = kinds[kind].from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False,
            output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder.name}: no weights of a {kind} in safetensors that fit its "
                              f"config.json ({str(error).splitlines()[0]})") from error
    odd = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if odd:
        raise CheckpointError(f"{folder.name}: {len(odd)} tensors do not fit its config.json, "
                              f"first {odd[0]}: copy it again")
    model: nn.Module = found
    return model
