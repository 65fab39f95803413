"""Reading HDF5 files that may be damaged: every failure is a named error."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from recon.datasets.errors import FormatError, read_head
from recon.datasets.hdf5_heaps import check_heaps

HEADER_BYTES = 1 << 16  # of an object; attributes beyond this are kept elsewhere


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    import h5py

    read_head(path)
    try:
        # best-effort: shared folders mounted read-only often refuse the lock
        file = h5py.File(path, "r", locking="best-effort")
    except OSError as error:
        problem = f"not a whole HDF5 file, copy or download it again ({error})"
        raise FormatError.about(path, problem) from error
    with file:
        yield file


@contextmanager
def reading(path: Path, key: str) -> Iterator[None]:
    """Damage inside an HDF5 file shows only when the damaged part is read, in many guises."""
    try:
        yield
    except FormatError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FormatError.about(path, f"cannot be read, the file is damaged ({error})", key) \
            from error  # fmt: skip
    except MemoryError as error:
        problem = f"too large for this machine's memory, or damaged ({error})"
        raise FormatError.about(path, problem, key) from error


def has(file: Any, path: Path, key: str) -> bool:
    with reading(path, key):
        return key in file


def dataset(file: Any, path: Path, key: str) -> Any:
    """A dataset that lies in this file: its links must not lead to other files of the machine."""
    import h5py

    if not has(file, path, key):
        with reading(path, "its table of contents"):
            there = ", ".join(sorted(str(name) for name in file)) or "nothing"
            inner = file.get("dataset")
            ismrmrd = isinstance(inner, h5py.Group) and {"data", "xml"} <= set(inner)
        if ismrmrd:
            raise FormatError.about(path, "an ISMRMRD raw file: read_ismrmrd reads it")
        raise FormatError.about(path, f"no such key, or a broken link; the file holds {there}", key)
    with reading(path, key):
        found = file[key]
    if not isinstance(found, h5py.Dataset):
        raise FormatError.about(path, "want an array, got a group", key)
    if found.is_virtual or found.external or found.file.filename != file.filename:
        raise FormatError.about(path, "its values lie in other files: copy them in", key)
    with reading(path, key):
        _ = found.dtype  # names in it may be damaged
    return found


def check_attributes(file: Any, path: Path) -> None:
    """Refuse attributes whose texts lie in a damaged heap, which the library follows for ever.

    Whatever in the object's header, or in a continuation of it, looks like the address of a heap is
    taken for one: an address of something else has no heap's signature.
    """
    import h5py

    with reading(path, "attributes"):
        about, base = h5py.h5o.get_info(file.id), file.userblock_size
    heaps: set[int] = set()
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        blocks = [(int(about.addr) + base, min(int(about.hdr.space.total), HEADER_BYTES))]
        for start, size in blocks:  # grows: continuations
            block = np.frombuffer(whole[start : start + size], np.uint8)
            if len(block) < 16 or len(blocks) > 64:
                continue
            pairs = np.lib.stride_tricks.sliding_window_view(block, 16).copy().view("<u8")
            for address, length in pairs[(pairs[:, 0] > 0) & (pairs[:, 0] < len(whole))].tolist():
                at = address + base
                if whole[at : at + 4] == b"GCOL":
                    heaps.add(at)
                elif 16 <= length <= HEADER_BYTES and at + length <= len(whole) and \
                        (at, length) not in blocks:  # fmt: skip
                    blocks.append((at, length))
    check_heaps(path, "attributes", np.array(sorted(heaps), np.uint64))
