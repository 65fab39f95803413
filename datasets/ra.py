"""Reading and writing ``.ra`` files (RawArray), which BART takes in place of its file pairs.

Six little-endian 64-bit numbers (the letters ``rawarray``, flags, kind of number, its bytes, bytes
of data, count of dimensions), then the dimensions, then the data, first dimension fastest; anything
may follow. The dimensions are BART's, see ``datasets/bart.py``.
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.bart import DIMENSIONS, arranged, scan_of
from recon.datasets.errors import FormatError, StrPath, read_head
from recon.datasets.scan import Layout, Scan
from recon.datasets.write import on_host, replacing

MAGIC = b"rawarray"
KINDS = {0: "records", 1: "integers", 2: "unsigned integers", 3: "floats", 4: "complex numbers",
         5: "brain floats"}  # fmt: skip
COMPLEX = 4
BIG_ENDIAN = 1
HEADER = struct.Struct("<8s5Q")


def is_ra(head: bytes) -> bool:
    """Whether a file begins as a RawArray, in either order of bytes."""
    return head.startswith((MAGIC, MAGIC[::-1]))


def _mapped(path: StrPath, notes: list[str]) -> NDArray[Any]:
    """The array in BART's 16 dimensions, still on disk."""
    head = read_head(path)
    if not is_ra(head):
        raise FormatError.about(path, "does not begin with `rawarray`")
    if len(head) < HEADER.size:
        raise FormatError.about(path, "cut short within its header")
    magic, flags, kind, size, length, count = HEADER.unpack_from(head)
    if magic != MAGIC or flags & BIG_ENDIAN:
        raise FormatError.about(path, "big-endian numbers are not supported", "flags")
    if flags:
        raise FormatError.about(path, f"want none, got {flags:#x}", "flags")
    if kind != COMPLEX or size not in (8, 16):
        told = f"{KINDS.get(kind, f'unknown kind {kind}')} of {size} bytes"
        raise FormatError.about(path, f"want complex numbers of 8 bytes, got {told}", "eltype")
    if not 1 <= count <= DIMENSIONS:
        raise FormatError.about(path, f"want 1 to {DIMENSIONS} dimensions, got {count}", "ndims")
    start, there = HEADER.size + 8 * count, Path(path).stat().st_size
    if len(head) < start:
        raise FormatError.about(path, "cut short within its dimensions")
    dims = struct.unpack_from(f"<{count}Q", head, HEADER.size)
    told = " x ".join(str(n) for n in dims)
    if min(dims) < 1:
        raise FormatError.about(path, f"want positive numbers, got {told}", "dimensions")
    if length != size * math.prod(dims):
        problem = f"{told} complex numbers are not the {length} bytes promised: damaged"
        raise FormatError.about(path, problem, "dimensions")
    if there < start + length:
        problem = f"holds {there} bytes but promises {start + length} ({told}): it is cut short"
        raise FormatError.about(path, problem)
    if there > start + length:
        notes.append(f"{there - start - length} bytes after the array left out")
    shape = dims + (1,) * (DIMENSIONS - count)
    return np.memmap(path, f"<c{size}", "r", start, shape, "F")


def read_ra(path: StrPath, slices: slice | None = None) -> Scan:
    """Read BART k-space; the two image dimensions of x, y, z become H and W in this order.

    The format has no mask: points that are exactly zero in every coil are taken as unsampled; where
    they differ from slice to slice, read one at a time.

    Raises
    ------
    FormatError
        The file is damaged, big-endian or not complex, has dimensions beyond x, y, z, coil and
        slice, is 3-D, holds NaN or infinity, or its slices are undersampled differently.
    """
    notes: list[str] = []
    scan = scan_of(path, arranged(path, _mapped(path, notes)), slices, "ra")
    if not notes:
        return scan
    told = [*notes, *([str(scan.attributes["note"])] if scan.attributes else [])]
    return scan._replace(attributes={"note": "; ".join(told)})


def layout_ra(path: StrPath) -> Layout:
    """Kind and dimensions of a RawArray, from its header and size."""
    array = _mapped(path, [])
    about = {"shape": array.shape, "dtype": str(array.dtype)}
    return Layout("ra", len(arranged(path, array)), {"ra": about})


def write_ra(path: StrPath, array: Tensor | NDArray[Any], *, overwrite: bool = False) -> None:
    """Write a ``.ra`` file: axis i of the array is BART's dimension i, values are complex64.

    ``datasets.to_bart_axes`` brings ``(slices, coils, H, W)`` into that order. Real input is stored
    with zero imaginary part.
    """
    plain = on_host(array)
    if plain.dtype.kind not in "cfiub":
        raise TypeError(f"write_ra: want numbers, got {plain.dtype}")
    if not 1 <= plain.ndim <= DIMENSIONS or plain.size == 0:
        raise ValueError(f"write_ra: want 1 to {DIMENSIONS} axes, none empty, got {plain.shape}")
    header = HEADER.pack(MAGIC, 0, COMPLEX, 8, 8 * plain.size, plain.ndim)
    with replacing(path, overwrite=overwrite) as (part,):
        part.write_bytes(header + struct.pack(f"<{plain.ndim}Q", *plain.shape)
                         + plain.astype("<c8").tobytes(order="F"))  # fmt: skip
