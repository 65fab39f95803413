"""What numbers depend on besides settings and data: the prior, the code and its surroundings."""

import functools
import hashlib
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import recon
from recon import datasets, operators, priors
from recon.evaluation.settings import PRECISIONS, Settings, needs_prior
from recon.priors import Prior

OF_FOLDERS = ("recon.json", "config.json", "unet/config.json", "unet_ema/config.json",
              "scheduler_config.json", "scheduler/scheduler_config.json",
              "../scheduler/scheduler_config.json")  # the last beside a unet given alone
"""What the loader of diffusers' folders reads beside weights; others may come and go."""


def prior_of(settings: Settings) -> Prior | None:
    """The prior on the CPU, None where no sampler needs one."""
    if not any(map(needs_prior, settings.samplers)):
        return None
    return priors.load(settings.prior, precision=PRECISIONS[settings.precision])


def prior_hash(settings: Settings, prior: Prior | None) -> str:
    """SHA-256 of :func:`prior_of`, empty for None."""
    return "" if prior is None else hash_of(prior, _files(settings.prior))


def _files(prior: str) -> list[Path]:
    """A checkpoint and the JSON files that say what it means; of a folder the latter alone."""
    path = Path(prior)
    if prior in priors.SHIPPED:
        return []  # its numbers and its weights say all
    if path.is_dir():
        return [path / name for name in OF_FOLDERS if (path / name).is_file()]
    if path.suffix == ".onnx":  # large weights may lie beside the network, in files named after it
        return sorted(p for p in path.parent.iterdir()
                      if p.is_file() and p.name.startswith(path.name))
    words = path.with_name(f"{path.name}.json")
    return [path, words] if words.is_file() else [path]


def hash_of(prior: Prior, read_from: Sequence[Path] = ()) -> str:
    """SHA-256 of whatever decides what a prior computes, and of the files it was read from.

    Weights alone do not: the same ones mean another denoiser where their units, their noise levels
    or what they predict are others. Counted are the names and bits of all tensors, the classes of
    all modules and the versions of the packages they are of, and the numbers of priors, schedules
    and networks written here. The files' bytes hold what no object shows, such as an ONNX network.
    """
    told = hashlib.sha256()
    for name, module in prior.named_modules():
        told.update(f"\n{name}: {type(module).__qualname__}".encode())
        if isinstance(module, Prior) or _is_ours(module):
            for part in _numbers_of(module):
                told.update(part)
    for name, tensor in (*prior.named_parameters(), *prior.named_buffers()):
        told.update(f"\n{name} ".encode() + _bits(tensor))
    for package in sorted({type(one).__module__.partition(".")[0] for module in prior.modules()
                           for one in (module, *vars(module).values())}):
        told.update(f"\n{package} {getattr(sys.modules.get(package), '__version__', '')}".encode())
    for path in read_from:
        told.update(f"\n{path.name} ".encode())
        with path.open("rb") as file:
            told.update(hashlib.file_digest(file, "sha256").digest())
    return told.hexdigest()


def _is_ours(one: Any) -> bool:
    return type(one).__module__.startswith("recon.priors")


def _numbers_of(one: Any) -> Iterator[bytes]:
    """Attributes that are numbers, tensors or functions, by name, and those of its schedules."""
    for name, value in sorted(vars(one).items()):
        if value is None or isinstance(value, bool | int | float | complex):
            yield f"\n{name} = {value!r}".encode()
        elif isinstance(value, Tensor):
            yield f"\n{name} = ".encode() + _bits(value)
        elif isinstance(value, FunctionType | BuiltinFunctionType):
            yield f"\n{name} = {value.__qualname__}".encode()
        elif _is_ours(value) and not isinstance(value, nn.Module) and hasattr(value, "__dict__"):
            yield f"\n{name} = {type(value).__qualname__}".encode()
            yield from _numbers_of(value)


def _bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + flat.view(torch.uint8).numpy(
        ).tobytes()


@functools.cache  # once: what is loaded does not follow the files
def source_hash() -> str:
    """SHA-256 of the program itself: its version stays the same while it is worked on."""
    found: dict[str, Path] = {}
    for package, room in ((recon, ""), (operators, "operators/"), (priors, "priors/"),
                          (datasets, "datasets/")):
        (folder, *_) = package.__path__  # in a checkout rooms lie behind links, installed inside
        found |= {room + path.relative_to(folder).as_posix(): path
                  for path in Path(folder).rglob("*.py") if path.is_file()}
    told = hashlib.sha256()
    for name, path in sorted(found.items()):
        told.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return told.hexdigest()


def environment(settings: Settings) -> dict[str, str]:
    """What else numbers depend on, to the last bit."""
    device = settings.device
    if device.startswith("cuda"):
        device = f"{device}: {torch.cuda.get_device_name(device)}"
    used = {name: version(name) for name in ("scipy", "scikit-image", "PyWavelets")}
    return {"recon": recon.__version__, "source code": source_hash()[:16],
            "torch": torch.__version__, "numpy": np.__version__, **used,
            "python": platform.python_version(), "machine": platform.machine(), "device": device,
            "vector instructions": torch.backends.cpu.get_cpu_capability()}
