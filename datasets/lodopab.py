"""LoDoPaB-CT (Leuschner et al. 2021, doi 10.1038/s41597-021-00893-z): simulated low-dose chest CT.

A file ``observation_<part>_<number>.hdf5`` holds up to 128 sinograms, ``ground_truth_...`` of the
same name their images, both as ``data`` in float32. An image is attenuation over the largest one,
that of 3071 HU; its axis 0 is x and its axis 1 is y, running down the CT slice. A sinogram is

    -log(max(0.1, counts) / 4096) / mu_max,   counts ~ Poisson(4096 exp(-line integrals of mu)),

of line integrals in metres along ``x cos(phi) + y sin(phi) = s``: 1000 views, 513 bins.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon.datasets.errors import FormatError, StrPath
from recon.datasets.hdf5 import dataset, opened, reading
from recon.datasets.projections import Projections
from recon.datasets.scan import Attributes, Layout, check_finite, select
from recon.datasets.write import Array, as_numbers, replacing

KEY = "data"
VIEWS, BINS, SIDE = 1000, 513, 362
SAMPLES = {"train": 35820, "validation": 3522, "test": 3553}
SAMPLES_PER_FILE = 128
FIELD_MM = 260.0
MU_WATER_PER_MM, MU_AIR_PER_MM = 0.02, 0.00002
MU_MAX_PER_MM = 3071 * (MU_WATER_PER_MM - MU_AIR_PER_MM) / 1000 + MU_WATER_PER_MM
PHOTONS, LEAST_COUNT = 4096, 0.1
SATURATION_MM = math.log(PHOTONS / LEAST_COUNT) / MU_MAX_PER_MM
MOST_COUNTS = 2 * PHOTONS  # 64 standard deviations above
UNIT = f"{MU_MAX_PER_MM:.8g}/mm"
MM_PER_M = 1000

_NAME = re.compile(r"observation_(train|validation|test)_(\d{3})\.hdf5")


def is_lodopab(file: Any) -> bool:
    """Whether an open HDF5 file holds sinograms or images of LoDoPaB's sizes."""
    import h5py

    try:
        data = file.get(KEY)
        return isinstance(data, h5py.Dataset) and \
            data.shape[1:] in ((VIEWS, BINS), (SIDE, SIDE))  # fmt: skip
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):  # a damaged table of contents
        return False


def read_lodopab(path: StrPath, slices: slice | None = None) -> Projections:
    """Read sinograms, and their images where the file of these lies beside them.

    Images are turned upright, as the CT slice they were cut from: rows are y, columns x, which
    makes the angles ``-(k + 1/2) pi / 1000``. They are in ``mu_max``, from 0 to 1; ``values`` are
    their integrals in mm, 1000 times what the file has in metres, up to ``saturation`` where no
    photon was counted. ``attributes`` has ``photons``, ``mu_max_per_mm``, with which the standard
    deviation of a value y is about ``sqrt(exp(mu_max_per_mm y) / photons) / mu_max_per_mm``, and
    ``mu_water_per_mm``, ``mu_air_per_mm``: HU are ``1000 (mu - mu_water) / (mu_water - mu_air)``.

    Rows behind the last sample of a part, which its last file may have, are never served.

    Raises
    ------
    FormatError
        The file is damaged or not in this layout, its values are outside what the simulation can
        give, or images and sinograms do not belong together.
    """
    path = Path(path)
    notes: list[str] = []
    with opened(path) as file:
        data = _observations(file, path)
        count, attributes = _samples(path, len(data), notes)
        chosen = select(slices, count)
        stored = _stored(path, data, chosen, notes)
    _check_range(path, stored, chosen)
    reference = _reference(path, count, chosen, notes)
    attributes |= {"photons": PHOTONS, "saturation": SATURATION_MM, "mu_max_per_mm": MU_MAX_PER_MM,
                   "mu_water_per_mm": MU_WATER_PER_MM, "mu_air_per_mm": MU_AIR_PER_MM}
    if notes:
        attributes["note"] = "; ".join(notes)
    angles = -(torch.arange(VIEWS, dtype=torch.float64) + 0.5) * (math.pi / VIEWS)
    return Projections(stored * MM_PER_M, angles, (SIDE, SIDE), FIELD_MM / SIDE,
                       FIELD_MM * math.sqrt(2) / BINS, 0.0, UNIT, reference, attributes, path.name,
                       "lodopab")  # fmt: skip


def layout_lodopab(path: StrPath) -> Layout:
    """How many sinograms there are, padding left out, and the array as it is stored."""
    path = Path(path)
    with opened(path) as file:
        data = _observations(file, path)
        count, _ = _samples(path, len(data), [])
        return Layout("lodopab", count, {KEY: {"shape": data.shape, "dtype": str(data.dtype)}})


def write_lodopab(folder: StrPath, values: Array, reference: Array, *, part: str = "test",
                  number: int = 0, overwrite: bool = False) -> Path:  # fmt: skip
    """Write a pair of files in LoDoPaB's layout and return that of the sinograms.

    ``values`` ``(n, 1000, 513)`` and ``reference`` ``(n, 362, 362)`` are as :func:`read_lodopab`
    gives them.
    """
    most = _most(part, number) if part in SAMPLES else 0
    if most < 1:
        raise ValueError(f"write_lodopab: want a part of {', '.join(SAMPLES)} and the number of "
                         f"one of its files, got {part!r} and {number}")  # fmt: skip
    sinograms = as_numbers("write_lodopab: values", values, complex_too=False)
    images = as_numbers("write_lodopab: reference", reference, complex_too=False)
    n = len(sinograms)
    if not (sinograms.shape == (n, VIEWS, BINS) and images.shape == (n, SIDE, SIDE)
            and 0 < n <= most):  # fmt: skip
        raise ValueError(
            f"write_lodopab: want values (n, {VIEWS}, {BINS}) and reference (n, {SIDE}, {SIDE}), "
            f"n from 1 to {most}, got {sinograms.shape} and {images.shape}")  # fmt: skip
    if not (np.isfinite(sinograms).all() and images.min() >= 0 and images.max() <= 1
            and images.any((1, 2)).all()):  # fmt: skip
        raise ValueError("write_lodopab: want finite values and a reference from 0 to 1, in units "
                         f"of mu_max = {UNIT}, no image of zeros alone")  # fmt: skip
    import h5py

    path = Path(folder) / f"observation_{part}_{number:03d}.hdf5"
    arrays = (sinograms / np.float32(MM_PER_M), images.swapaxes(1, 2))
    with replacing(path, _sibling(path), overwrite=overwrite) as parts:
        for temporary, array in zip(parts, arrays, strict=True):
            with h5py.File(temporary, "w") as file:
                file[KEY] = array
    return path


def _sibling(path: Path) -> Path:
    return path.with_name(path.name.replace("observation", "ground_truth", 1))


def _most(part: str, number: int) -> int:
    """How many samples this file of a part has; none if there is no such file."""
    return min(SAMPLES_PER_FILE, SAMPLES[part] - SAMPLES_PER_FILE * number) if number >= 0 else 0


def _observations(file: Any, path: Path) -> Any:
    data = dataset(file, path, KEY)
    if data.ndim == 3 and data.shape[1:] == (SIDE, SIDE):
        raise FormatError.about(path, "holds images, not sinograms: pass the file of the same name "
                                      "with observation in place of ground_truth", KEY)  # fmt: skip
    return _checked(path, data, (VIEWS, BINS))


def _checked(path: Path, data: Any, size: tuple[int, int]) -> Any:
    if data.ndim != 3 or data.shape[1:] != size or len(data) < 1 or data.dtype.kind != "f":
        problem = f"want (n, {size[0]}, {size[1]}) of float32, got {data.shape} of {data.dtype}"
        raise FormatError.about(path, problem, KEY)
    return data


def _samples(path: Path, rows: int, notes: list[str]) -> tuple[int, Attributes]:
    """How many of the rows are samples, and which of the data set."""
    if rows > SAMPLES_PER_FILE:
        problem = f"holds {rows} rows, want no more than {SAMPLES_PER_FILE}"
        raise FormatError.about(path, problem, KEY)
    name = _NAME.fullmatch(path.name)
    if name is None:
        notes.append("not named as in LoDoPaB, so its images, its part and how many rows are "
                     "padding are not known")  # fmt: skip
        return rows, {}
    part, number = name[1], int(name[2])
    most = _most(part, number)
    if most < 1:
        last = (SAMPLES[part] - 1) // SAMPLES_PER_FILE
        raise FormatError.about(path, f"part {part} ends with file {last:03d}: rename it")
    if rows > most:
        notes.append(f"{rows - most} rows behind the last sample are padding and were left out")
    if rows < most:
        notes.append(f"holds {rows} of the {most} samples of this file")
    return min(rows, most), {"part": part, "first_sample": SAMPLES_PER_FILE * number}


def _stored(path: Path, data: Any, chosen: slice, notes: list[str]) -> Tensor:
    with reading(path, KEY), np.errstate(over="ignore", invalid="ignore"):
        stored = torch.from_numpy(np.asarray(data[chosen], dtype=np.float32))
    if data.dtype.itemsize != 4:
        notes.append(f"{path.name} was {data.dtype.newbyteorder('=')}, cast to float32")
    check_finite(path, KEY, stored, chosen)
    return stored


def _check_range(path: Path, stored: Tensor, chosen: slice) -> None:
    """Refuse other units and other doses: they would be taken for this one."""
    low, high = -math.log(MOST_COUNTS / PHOTONS), math.log(PHOTONS / LEAST_COUNT) * (1 + 1e-6)
    mu_max = MU_MAX_PER_MM * MM_PER_M
    for number, one in zip(range(chosen.start, chosen.stop, chosen.step), stored, strict=True):
        least, most = float(one.min()) * mu_max, float(one.max()) * mu_max
        if not (low <= least and most <= high):
            raise FormatError.about(
                path,
                f"slice {number} holds values from {least / mu_max:.4g} to {most / mu_max:.4g}, "
                f"want -log(counts / {PHOTONS}) / {mu_max:.8g}, at most {high / mu_max:.5f}",
                KEY,
            )


def _reference(path: Path, count: int, chosen: slice, notes: list[str]) -> Tensor | None:
    if _NAME.fullmatch(path.name) is None:
        return None
    path = _sibling(path)
    if not path.exists():
        notes.append(f"no {path.name} beside it, so there is no reference")
        return None
    with opened(path) as file:
        data = _checked(path, dataset(file, path, KEY), (SIDE, SIDE))
        if len(data) < count:
            problem = f"holds {len(data)} images for {count} sinograms"
            raise FormatError.about(path, problem, KEY)
        images = _stored(path, data, chosen, notes)
    for number, image in zip(range(chosen.start, chosen.stop, chosen.step), images, strict=True):
        if not bool(image.any()):
            problem = f"slice {number} is all zeros, like rows never written: download it again"
            raise FormatError.about(path, problem, KEY)
        if not (float(image.min()) >= 0 and float(image.max()) <= 1):
            raise FormatError.about(
                path, f"slice {number} holds values from {float(image.min()):.4g} to "
                f"{float(image.max()):.4g}, want 0 to 1", KEY)  # fmt: skip
    return images.transpose(1, 2).contiguous()
