"""What a prior is trained on: folders of files of any kind as stacks of images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from recon import datasets
from recon.datasets import FormatError, Projections, Scan, Volume
from recon.datasets.nrrd import data_file
from recon.datasets.open import WITHOUT_UNIT
from recon.mri import cropped, problem, undersampling
from recon.priors.training import Stack

IMAGES = "images"  # the key of an npz file
WINDOW_HU = (-1000.0, 2000.0)


def read_stacks(folder: Path, *, unit: str | None = None,
                window_hu: tuple[float, float] = WINDOW_HU, leave_out: Sequence[Path] = (),
                say: Callable[[str], None] = lambda _: None) -> list[Stack]:
    """Every file and DICOM series in a folder, or the one given, by name; sub-folders are series.

    Images come from DICOM, NIfTI, NRRD and ISMRMRD images; from ``.npy`` arrays and ``images`` of
    ``.npz``, ``(height, width)`` or ``(slices, height, width)``, real or complex; and from fully
    sampled k-space, whose coils are combined by their ESPIRiT maps to complex images. ``unit`` says
    ``HU`` or ``arbitrary`` of NIfTI, NRRD and arrays, which do not say. CT becomes
    ``1 + HU / 1000`` within the window, everything else is divided by the 99.8 % quantile of its
    bright part. Raises ValueError for what is no image, for files of another unit than ``unit``,
    for NaN and for a mixture of real and complex images, or of HU and other units.
    """
    low, high = window_hu
    if not -1000 <= low < 0 < high:
        raise ValueError(f"window_hu wants -1000 <= low < 0 < high, got {window_hu}")
    if unit not in (None, "HU", "arbitrary"):
        raise ValueError(f"unit wants HU or arbitrary, got {unit!r}")
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist: want a folder of images, or one file")
    left_out = {path.resolve() for path in leave_out}
    paths = [path for path in _files(folder) if path.resolve() not in left_out]
    if not paths:
        raise ValueError(f"{folder.name} holds no files: want images, or fully sampled k-space")
    stacks = []
    for path in paths:
        stack = _stack(path, unit, window_hu)
        if unit is not None and stack.in_hu != (unit == "HU"):
            raise ValueError(f"{path.name} {'is' if stack.in_hu else 'is not'} in HU, but unit is "
                             f"{unit!r}: leave --unit out, or leave that file out")
        pixel = "" if stack.spacing_mm is None else f", {stack.spacing_mm[2]:.3g} mm pixels"
        kind = "complex" if stack.values.is_complex() else "HU" if stack.in_hu else "real"
        say(f"{path.name}: {len(stack.values)} slice(s) of {stack.values.shape[1]} x "
            f"{stack.values.shape[2]}{pixel}, {kind}")
        stacks.append(stack)
    check_alike(stacks)
    return stacks


def check_alike(stacks: Sequence[Stack]) -> None:
    """Raise ValueError for real and complex images, or HU and other units, side by side."""
    for what, flags in [("complex", [s.values.is_complex() for s in stacks]),
                        ("in HU", [s.in_hu for s in stacks])]:
        yes, no = ([s.name for s, flag in zip(stacks, flags, strict=True) if flag is wanted]
                   for wanted in (True, False))
        if yes and no:
            advice = "; if it is in HU, say so with --unit HU" if what == "in HU" else ""
            raise ValueError(f"{yes[0]} is {what} and {no[0]} is not: a prior is of one kind of "
                             f"images, put them in folders of their own{advice}")


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return [folder]
    found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if found and all(p.is_file() and _is_dicom(p) for p in found):
        return [folder]  # a series itself
    # BART's pairs and NRRD's are named by their header
    data = {data_file(p) for p in found if p.is_file()}
    return [p for p in found if p not in data
            and not (p.suffix == ".cfl" and p.with_suffix(".hdr").exists())]


def _is_dicom(path: Path) -> bool:
    try:
        return datasets.recognise(path) == "dicom"
    except FormatError:
        return False


def _stack(path: Path, unit: str | None, window_hu: tuple[float, float]) -> Stack:
    array = _array(path)
    if array is not None:
        if unit == "HU":
            return _hounsfield(array, None, path.name, window_hu)
        return Stack(_normalised(array, path.name), None, path.name)
    kind = datasets.recognise(path)
    found: Any = datasets.open(path, unit=unit if kind in WITHOUT_UNIT else None)
    if isinstance(found, Projections):
        raise ValueError(f"{path.name} holds projections: want images to train on")
    if isinstance(found, Scan):
        return Stack(_normalised(_combined(found), path.name), None, path.name)
    volume: Volume = found
    values, spacing = squared(volume.values, volume.spacing_mm)
    if volume.unit == "HU":
        return _hounsfield(values, spacing, path.name, window_hu)
    return Stack(_normalised(values, path.name), spacing, path.name)


def _hounsfield(values: Tensor, spacing: tuple[float, float, float] | None, name: str,
                window_hu: tuple[float, float]) -> Stack:
    if values.is_complex():
        raise ValueError(f"{name} is complex: HU are real, leave --unit out")
    _finite(values, name)
    low, high = (1 + end / 1000 for end in window_hu)
    return Stack((1 + values / 1000).clamp(low, high), spacing, name, in_hu=True)


def _array(path: Path) -> Tensor | None:
    """Images of a numpy file; None where it is none, or holds k-space by name."""
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if path.suffix == ".npz":
                if IMAGES not in found.files:
                    return None
                found = found[IMAGES]
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise FormatError.about(path, f"damaged, or no array of numbers ({error})") from error
    if found.ndim not in (2, 3) or not found.size or found.dtype.kind not in "iufc":
        raise ValueError(f"{path.name} holds {found.dtype} of shape {found.shape}: want numbers "
                         "(height, width) or (slices, height, width)")
    kind = np.complex64 if found.dtype.kind == "c" else np.float32
    values = torch.from_numpy(found.astype(kind))
    return values if values.ndim == 3 else values[None]


def _combined(scan: Scan) -> Tensor:
    """Complex images of fully sampled k-space, coils combined by their maps."""
    mask = undersampling(scan, None)
    if not bool(mask.all()):
        raise ValueError(f"{scan.name} is undersampled: want fully sampled k-space, or images, to "
                         "train on")
    images = []
    for i in range(len(scan.kspace)):
        case = problem(scan, i, mask, noise_std=0.0)
        images.append(cropped(case.operator.adjoint(case.y)[0], scan))
    return torch.stack(images)


def squared(values: Tensor, spacing: tuple[float, float, float] | None
            ) -> tuple[Tensor, tuple[float, float, float] | None]:
    """Square pixels of the longer side, where they are oblong."""
    if spacing is None or abs(spacing[1] - spacing[2]) < 1e-3 * spacing[2]:
        return values, spacing
    side = max(spacing[1:])
    size = [max(1, round(n * mm / side)) for n, mm in zip(values.shape[1:], spacing[1:],
                                                        strict=True)]
    parts = torch.view_as_real(values).movedim(-1, 1) if values.is_complex() else values[:, None]
    parts = interpolate(parts, size=size, mode="bilinear", antialias=True)
    moved = (torch.complex(parts[:, 0], parts[:, 1]) if values.is_complex() else parts[:, 0])
    return moved.contiguous(), (spacing[0], side, side)


def _normalised(values: Tensor, name: str) -> Tensor:
    _finite(values, name)
    size = values.abs()
    inside = size[size > 0.1 * size.max()]
    if not inside.numel():
        raise ValueError(f"{name} is all zero: want images")
    stride = max(1, inside.numel() >> 20)  # quantile() takes at most 2^24 numbers
    return values / torch.quantile(inside[::stride], 0.998)


def _finite(values: Tensor, name: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds NaN or infinity: mend it, or leave it out")
