"""What lies in a file of weights, read without running anything from it."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon.priors.errors import CheckpointError


def called(path: Path) -> str:
    """The name that a path was given, which tells more than that of a blob it links to."""
    return path.resolve().name if path.name in ("", "..") else path.name


def read(path: Path) -> Any:
    """What a checkpoint holds: tensors, numbers and texts, nested as they were saved.

    Reads safetensors and the files of ``torch.save``, new and old. Raises CheckpointError for
    anything else, and for pickles that hold more than plain data, which stay unread.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head[:1] == b"\x80" or head[:2] == b"PK" or path.suffix in (".pt", ".pth", ".tar"):
        return _read_torch(path, head)
    return _read_safetensors(path, head)


def _read_torch(path: Path, head: bytes) -> Any:
    _refuse_stand_ins(path, head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was written
            # mapped, so that of optimiser states and the like nothing is read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=head[:2] == b"PK")
    except Exception as error:  # damaged pickles raise anything
        whole = head[:1] == b"\x80" or head[:2] == b"PK"
        if isinstance(error, pickle.UnpicklingError) and whole and "truncated" not in str(error):
            raise CheckpointError(
                f"{path.name} is a pickled checkpoint, which can run code when opened, and is "
                "refused: where you trust who made it, convert its weights with "
                "scripts/convert_pickle.py") from error
        told = str(error).split(". ")[0].strip() or type(error).__name__
        raise CheckpointError(f"{path.name} is damaged or no checkpoint ({told}): copy it again"
                              ) from error


def _read_safetensors(path: Path, head: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    _refuse_stand_ins(path, head)
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is damaged or no safetensors file ({error}): "
                              "copy it again") from error


def _refuse_stand_ins(path: Path, head: bytes) -> None:
    if not head:
        raise CheckpointError(f"{path.name} is empty: copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path.name} is a git-lfs pointer, not the weights: run git lfs "
                              "pull where it came from")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path.name} is a web page, not the weights: download it again, "
                              "signed in where that is asked for")
