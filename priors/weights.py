"""Weights in and out: safetensors files that say what they are; nothing in a file is executed."""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.loaders import is_folder, open_checkpoint
from recon.priors.loaders.declared import Declared, Predicts, ValueRange, ends
from recon.priors.loaders.files import called
from recon.priors.network import DenoisingUNet, EDMPrior, UNetSettings
from recon.priors.parameterisation import Schedule

SHIPPED = ("brain-mri", "chest-ct")
FORMAT = 1


def save(path: str | Path, network: DenoisingUNet, *, sigma_data: float, sigma_min: float,
         sigma_max: float, is_complex: bool, card: dict[str, Any], overwrite: bool = False) -> None:
    """Write a network and what is needed to use it, in half precision, as one safetensors file.

    ``is_complex`` says that its channels are real parts, then imaginary parts. ``card`` is free
    text about data, training and licence. An existing file is kept unless ``overwrite``.
    """
    settings = {"format": FORMAT, "network": "drunet", **network.settings._asdict(),
                "sigma_data": sigma_data, "sigma_min": sigma_min, "sigma_max": sigma_max,
                "is_complex": is_complex, "card": card}
    write(Path(path), network.state_dict(), settings, overwrite)


def write(path: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any],
          overwrite: bool) -> None:
    """One safetensors file of weights in half precision and of what they mean."""
    from safetensors.torch import save_file

    if path.exists() and not overwrite:
        raise FileExistsError(f"{path.name} exists: choose another name or pass overwrite=True")
    described = json.dumps(settings)
    weights = {k: v.detach().cpu().half().contiguous() for k, v in tensors.items()}
    bad = [k for k, v in weights.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise ValueError(f"{path.name}: {bad[0]} is not finite in half precision: train it again")
    part = path.with_name(path.name + ".part")
    try:
        save_file(weights, part, metadata={"recon": described})
        part.chmod(0o644)  # safetensors makes files only their owner can read
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(name_or_path: str | Path, *, value_range: ValueRange | None = None,
         is_complex: bool = False, channels: int | None = None, schedule: Schedule | None = None,
         predicts: Predicts | None = None, sigma_data: float | None = None,
         head_channels: int | None = None,
         attention_order: Literal["legacy", "new"] | None = None,
         network: nn.Module | None = None, entry: str | None = None,
         precision: torch.dtype = torch.float32, max_batch: int | None = None,
         device: torch.device | str = "cpu") -> Prior:
    """Open a prior that ships with the package, a file of ``save``, or a public checkpoint.

    A name (``"brain-mri"``) or a safetensors file of ``save`` says all about itself. Checkpoints of
    guided-diffusion, score_sde's NCSN++, NCSNv2, EDM, EDM2, InverseBench, denoising-diffusion-
    pytorch and deepinv, folders of diffusers and ONNX networks are recognised by their keys and
    opened strictly, averaged weights first; what they do not say is declared, and asked for where
    it is missing, here or in ``checkpoint.pt.json`` beside the file. The prior is then of images
    from 0 to 1. ``docs/priors.md`` tells what each wants. Nothing in a file is executed, and
    nothing is downloaded.

    Parameters
    ----------
    value_range
        Values of black and white in training, ``(-1, 1)`` or ``(0, 1)``; or ``"normalised"``: a
        high quantile of each image's magnitude was one, and stays it. Of complex images
        ``(-a, a)`` for each part, or ``"normalised"``.
    is_complex
        Whether channels are real parts, then imaginary parts.
    channels
        Image channels of the network that the caller expects; others are refused.
    schedule
        Noise levels it was trained for, and how it was told them.
    predicts
        What the network makes: ``"eps"``, ``"score"``, ``"v"``, ``"x0"`` or ``"flow"``.
    sigma_data
        The deviation that EDM's preconditioning was made for.
    head_channels, attention_order
        Of guided-diffusion's attention: channels of each head, and how they stand in its keys.
    network
        A network of one's own, to be filled with the file's weights.
    entry
        Which entry of the file is the network, where several may be.
    precision
        What the network computes in; bfloat16 is about twice as fast where the processor has it.

    Raises CheckpointError, in one sentence, for files that are damaged, incomplete, of no known
    layout or missing something that must be declared, and for pickles of more than plain data.
    """
    said = Declared(ends(value_range), is_complex, channels, schedule, predicts, sigma_data,
                    head_channels, attention_order, network, precision, max_batch)
    path = _path(name_or_path)
    if path.is_dir() or not _is_own(path):
        return open_checkpoint(path, said, entry).to(device).eval()
    settings, weights = _read(path)
    declared = [word for word, value in said._asdict().items()
                if word not in ("channels", "precision", "max_batch")
                and value is not None and value is not False]
    if declared or entry is not None:
        raise CheckpointError(f"{path.name} says all about itself: leave "
                              f"{(declared or ['entry'])[0]}= out")
    if settings.get("network") == "latent":
        from recon.priors.latent_weights import built

        return built(path.name, settings, weights, channels, precision, max_batch).to(device).eval()
    unet, levels, packed = _settings(path.name, settings)
    with torch.device("meta"):  # sizes only: a spoilt file must not claim the memory
        network = DenoisingUNet(unet)
    fill(path.name, network, weights)
    network.requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    prior: Prior = EDMPrior(
        network, unet.image_channels, sigma_data=levels["sigma_data"],
        sigma_min=levels["sigma_min"], sigma_max=levels["sigma_max"], precision=precision,
        max_batch=max_batch)
    if channels not in (None, unet.image_channels):
        raise CheckpointError(f"{path.name} is of images of {unet.image_channels} channel(s), not "
                              f"of the {channels} asked for: take another prior")
    if packed:
        prior = prior.as_complex("channels")
    return prior.to(device).eval()


def fill(name: str, network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put a file's weights, and no others, into a network without any."""
    wanted = network.state_dict()
    odd = sorted(wanted.keys() ^ weights.keys())
    odd += sorted(k for k in wanted.keys() & weights.keys()
                  if wanted[k].shape != weights[k].shape or not weights[k].is_floating_point())
    if odd:
        raise CheckpointError(f"{name}: {len(odd)} tensors do not fit the network its "
                              f"settings describe, first {odd[0]}: the file is damaged or edited")
    bad = [k for k, v in weights.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise CheckpointError(f"{name}: {bad[0]} holds NaN or infinity: copy the file again")
    network.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)


def card(name_or_path: str | Path) -> dict[str, Any]:
    """The model card of a prior: data, people, steps, held-out figures, licence."""
    path = _path(name_or_path)
    if path.is_dir() or not _is_own(path):
        raise CheckpointError(f"{called(path)} has no card: priors that ship with the package and "
                              "files of recon train and priors.save have")
    found: dict[str, Any] = _read(path)[0].get("card", {})
    return found


def _path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if str(name_or_path) in SHIPPED:
        folder = Path(str(resources.files("recon.priors"))) / "pretrained"
        path = folder / f"{name_or_path}.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{path.name} is missing from this installation: install again")
    if not path.is_file() and not is_folder(path):
        raise CheckpointError(f"no prior {str(name_or_path)!r}: want one of {', '.join(SHIPPED)} "
                              "or the path of a .safetensors file, of a public checkpoint or of a "
                              "folder of diffusers")
    return path


def _is_own(path: Path) -> bool:
    """Whether a file is one of ``save``, or damaged in a way that its reader tells."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return "recon" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return path.suffix == ".safetensors"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        head = file.read(8)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise CheckpointError(f"{path.name} is a pickled checkpoint, which can run code when "
                              "opened, and is refused: convert its weights with "
                              "scripts/convert_pickle.py, where you trust who made it")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is damaged or no safetensors file ({error}): "
                              "copy it again") from error
    if "recon" not in metadata:
        raise CheckpointError(f"{path.name} holds weights but not what they mean (no 'recon' entry "
                              "in its metadata): write it with recon.priors.save")
    try:
        settings = json.loads(metadata["recon"])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: its settings are no JSON ({error})") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path.name}: its settings want names and values, got "
                              f"{type(settings).__name__}")
    return settings, weights


def _settings(name: str, found: dict[str, Any]) -> tuple[UNetSettings, dict[str, float], bool]:
    """What the file says of its network, its levels and its images, checked."""
    if found.get("format") != FORMAT or found.get("network") != "drunet":
        raise CheckpointError(f"{name}: format {found.get('format')!r} of network "
                              f"{found.get('network')!r} is not known: upgrade recon")
    try:
        unet = UNetSettings(found["image_channels"], tuple(found["widths"]), found["blocks"])
        levels = {k: float(found[k]) for k in ("sigma_data", "sigma_min", "sigma_max")}
        is_complex = found["is_complex"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: its settings lack or spoil {error}") from error
    counts = (unet.image_channels, *unet.widths, unet.blocks)
    sizes = len(unet.widths) == 4 and all(type(n) is int and 0 < n <= 4096 for n in counts)
    data, low, high = levels.values()
    if not (sizes and unet.blocks <= 64 and isinstance(is_complex, bool)
            and 0 < data < math.inf and 0 < low < high < math.inf
            and not (is_complex and unet.image_channels % 2)):
        raise CheckpointError(f"{name}: its settings are out of range: {unet}, {levels}, "
                              f"is_complex {is_complex}: the file is damaged or edited")
    return unet, levels, is_complex
