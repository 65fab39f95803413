"""Reading HDF5 files that may be damaged: every failure is a named error."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recon.datasets.errors import FormatError, read_head


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
