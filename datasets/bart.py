"""Reading BART's file pairs: ``name.hdr`` says the dimensions, ``name.cfl`` holds the numbers.

The numbers are complex64, little-endian, first dimension fastest. Of BART's 16 dimensions these
are read: 0, 1, 2 = x, y, z; 3 = coil; 13 = slice.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.errors import FormatError, StrPath, read_head
from recon.datasets.scan import (
    Attributes,
    Layout,
    Scan,
    check_finite,
    infer_mask,
    select,
    to_complex64,
    to_maps,
    zero_outside,
)

DIMENSIONS = 16
COIL, SLICE = 3, 13
NAMES = {4: "maps", 5: "echo time", 6: "coefficients", 10: "time"}
HEADER_BYTES = 1 << 20  # the command that made the file is kept in it, and may be long


def bart_paths(path: StrPath) -> tuple[Path, Path]:
    """``(name.hdr, name.cfl)`` from either of them or from ``name``."""
    path = Path(path)
    base = path.with_suffix("") if path.suffix in (".hdr", ".cfl") else path
    # not with_suffix: BART's own `scan.v2` has the pair scan.v2.hdr and scan.v2.cfl
    return base.with_name(base.name + ".hdr"), base.with_name(base.name + ".cfl")


def read_dimensions(path: StrPath) -> tuple[int, ...]:
    """The 16 dimensions in a header, those left out being one."""
    header, _ = bart_paths(path)
    read_head(header)
    with header.open("rb") as file:
        lines = file.read(HEADER_BYTES).decode("utf-8", "replace").splitlines()
    lines = [line.strip() for line in lines]
    if "# Dimensions" not in lines:
        problem = "no `# Dimensions` line: not a BART header (NIfTI and Analyze also use .hdr)"
        raise FormatError.about(header, problem)
    for key in ("# SizesDimensions", "# MultiDimensions"):  # its `# Dimensions` are then one list
        if key in lines:
            problem = "several arrays in one pair are not supported: write them apart"
            raise FormatError.about(header, problem, key)
    at = lines.index("# Dimensions") + 1
    words = lines[at].split() if at < len(lines) else []
    # Twelve digits are a terabyte along one axis; int() on endless digits is slow by design.
    if not words or not all(w.isascii() and w.isdigit() and len(w) <= 12 for w in words):
        raise FormatError.about(header, f"want whole numbers, got {words}", "# Dimensions")
    dims = [int(w) for w in words]
    if len(dims) > DIMENSIONS or min(dims) < 1:
        problem = f"want 1 to {DIMENSIONS} positive numbers, got {dims}"
        raise FormatError.about(header, problem, "# Dimensions")
    return tuple(dims + [1] * (DIMENSIONS - len(dims)))


def _mapped(path: StrPath) -> NDArray[np.complex64]:
    dims = read_dimensions(path)
    header, data = bart_paths(path)
    want, got = 8 * math.prod(dims), data.stat().st_size
    if got != want:
        raise FormatError.about(
            data,
            f"holds {got} bytes but {header.name} promises {want} "
            f"({' x '.join(str(n) for n in dims if n > 1) or 1} complex numbers): "
            "the pair is cut short or not a pair",
        )
    return np.memmap(data, dtype="<c8", mode="r", shape=dims, order="F")


def read_cfl(path: StrPath) -> Tensor:
    """Any cfl array as complex64 in BART's own dimensions, trailing ones dropped.

    Raises
    ------
    FormatError
        The header is not BART's, or the data file is shorter or longer than it says.
    FileNotFoundError
        One of the two files is missing.
    """
    array = _mapped(path)
    used = max((i + 1 for i, n in enumerate(array.shape) if n > 1), default=1)
    return torch.from_numpy(np.array(array.reshape(array.shape[:used], order="F"), order="C"))


def arranged(path: StrPath, array: NDArray[Any]) -> NDArray[Any]:
    """An array of BART's 16 dimensions as ``(slices, coils, H, W)``, still on disk."""
    others = [i for i in range(4, DIMENSIONS) if array.shape[i] > 1 and i != SLICE]
    if others:
        told = ", ".join(f"{i} ({NAMES.get(i, 'other')}) = {array.shape[i]}" for i in others)
        problem = f"only x, y, z, coil and slice are supported, this file also has {told}"
        raise FormatError.about(path, problem, "dimensions")
    image = [i for i in range(3) if array.shape[i] > 1]
    if len(image) > 2:
        raise FormatError.about(
            path,
            f"3-D data {array.shape[:3]} is not supported yet: want one of x, y, z to be 1 "
            "(`bart fft -iu 1` along the readout, then `bart slice 0 n`, gives 2-D k-space)",
            "dimensions",
        )
    spare = [i for i in range(3) if i not in image]
    height, width = sorted(image + spare[: 2 - len(image)])
    # The dimensions left out are all one, so this moves axes and copies nothing.
    order = [SLICE, COIL, height, width]
    rest = [i for i in range(DIMENSIONS) if i not in order]
    return array.transpose(order + rest).reshape([array.shape[i] for i in order])


def read_bart(path: StrPath, slices: slice | None = None, maps: StrPath | None = None) -> Scan:
    """Read BART k-space; the two image dimensions of x, y, z become H and W in this order.

    ``path`` is the pair's name with or without ``.hdr`` or ``.cfl``; ``maps`` is a second pair with
    one set of coil sensitivities. The format has no mask: points that are exactly zero in every
    coil are taken as unsampled; where they differ from slice to slice, read one at a time.

    Raises
    ------
    FormatError
        The pair is damaged, has dimensions beyond x, y, z, coil and slice, is 3-D, holds NaN or
        infinity, or its slices are undersampled differently.
    FileNotFoundError
        One of the two files is missing.
    """
    name = bart_paths(path)[1]
    array = arranged(name, _mapped(path))
    scan = scan_of(name, array, slices, "bart")
    if maps is None:
        return scan
    where = bart_paths(maps)[1]
    sensitivities = to_maps(where, arranged(where, _mapped(maps)), select(slices, len(array)),
                            len(array), scan.kspace, [])  # fmt: skip  # complex64: nothing to note
    return scan._replace(maps=sensitivities)


def scan_of(path: StrPath, array: NDArray[Any], slices: slice | None, kind: str) -> Scan:
    """k-space ``(slices, coils, H, W)`` on disk as a scan, its mask where it is zero."""
    chosen = select(slices, len(array))
    notes: list[str] = []
    kspace = to_complex64(path, "kspace", array[chosen], notes)
    check_finite(path, "kspace", kspace, chosen)
    mask = infer_mask(path, kspace, notes, points=True)
    kspace = zero_outside(kspace, mask, notes)
    attributes: Attributes = {"note": "; ".join(notes)} if notes else {}
    return Scan(kspace, mask, None, None, None, attributes, Path(path).name, kind)


def layout_bart(path: StrPath) -> Layout:
    """Kind and dimensions of a BART pair, from its header and the size of its data."""
    array = _mapped(path)
    slices = len(arranged(bart_paths(path)[1], array))
    return Layout("bart", slices, {"cfl": {"shape": array.shape, "dtype": "complex64"}})


def to_bart_axes(x: Tensor) -> Tensor:
    """``(slices, coils, H, W)`` or images ``(slices, H, W)`` in BART's dimensions, for writing.

    Gives ``(H, W, 1, coils, 1, ..., slices)`` with slices in dimension 13. k-space, images and coil
    sensitivities alike.
    """
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if x.ndim != 4:
        raise ValueError(
            f"to_bart_axes: want (slices, coils, H, W) or (slices, H, W), got {tuple(x.shape)}"
        )
    slices, coils, height, width = x.shape
    return x.permute(2, 3, 1, 0).reshape(height, width, 1, coils, *[1] * (SLICE - 4), slices)
