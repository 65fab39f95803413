"""Global heaps of HDF5 files, where values of variable length lie, checked before they are read.

The HDF5 library (2.0) believes a heap's sizes: one damaged byte makes it loop for ever or ask for
gigabytes. Layout from the HDF5 File Format Specification 3.0, III.E.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.datasets.errors import FormatError

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""What stands in an array for a value of variable length."""

OBJECT = struct.Struct("<HHIQ")  # index, references, reserved, size


def check_heaps(path: Path, key: str, addresses: NDArray[np.uint64]) -> None:
    """Walk the heaps at these positions of the file, from object to object; 0 stands for none.

    Raises
    ------
    FormatError
        There is no heap, it does not end within the file, or its objects do not fill it.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for start in np.unique(addresses[addresses > 0]).tolist():
            if not _sound(whole, start):
                raise FormatError.about(path, "points to a damaged part of the file", key)


def _sound(whole: mmap.mmap, start: int) -> bool:
    if start > len(whole) - 16 or whole[start : start + 5] != b"GCOL\x01":
        return False
    (size,) = struct.unpack_from("<Q", whole, start + 8)
    at, end = start + 16, start + size
    if not at <= end <= len(whole):
        return False
    while end - at >= OBJECT.size:
        index, _, _, size = OBJECT.unpack_from(whole, at)
        # number 0 is the free space, whose size counts its own head
        step = size if index == 0 else OBJECT.size + (size + 7) // 8 * 8
        if not OBJECT.size <= step <= end - at:
            return False
        at += step
    return True


def check_one(path: Path, key: str, data: Any) -> None:
    """The same for an array of one value, such as a text, that lies unpacked in the file."""
    offset, sizes = data.id.get_offset(), data.file.id.get_create_plist().get_sizes()
    if offset is None or sizes[0] != 8 or data.id.get_storage_size() != REFERENCE.itemsize:
        return
    with path.open("rb") as file:
        file.seek(offset)
        reference = np.frombuffer(file.read(REFERENCE.itemsize), REFERENCE)
    if reference["length"].sum() > path.stat().st_size:
        raise FormatError.about(path, "promises more than the file holds", key)
    filled = reference["address"][reference["length"] > 0]
    check_heaps(path, key, filled + np.uint64(data.file.userblock_size))
