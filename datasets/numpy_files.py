"""Reading k-space saved with numpy: ``.npz`` with named arrays, ``.npy`` with k-space alone."""

import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.attributes import of_the_acquisition, told
from recon.datasets.errors import FormatError, StrPath, read_head
from recon.datasets.scan import (
    Attributes,
    Layout,
    Scan,
    check_complex,
    check_finite,
    infer_mask,
    select,
    to_complex64,
    to_maps,
    to_mask,
    to_reference,
    zero_outside,
)

ALIASES = {
    "kspace": ("kspace", "ksp", "k_space", "rawdata"),
    "mask": ("mask", "pattern", "sampling"),
    "maps": ("maps", "sens", "smaps", "sens_maps", "csm", "sensitivities"),
    "reference": ("reference", "target", "ground_truth", "gt", "reconstruction_rss"),
}
"""Names accepted in an npz file for each part; the first is the one to write."""

# What numpy and zipfile raise on files cut short, altered or not theirs.
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, KeyError, SyntaxError, OverflowError,
           zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # fmt: skip


def read_npy(path: StrPath, slices: slice | None = None) -> Scan:
    """Read k-space from an npy file, mapped, so that only the chosen slices are loaded.

    Shapes ``(H, W)``, ``(coils, H, W)`` and ``(slices, coils, H, W)`` are understood: three axes
    are always coils, never slices. Points that are exactly zero in every coil are taken as
    unsampled; where they differ from slice to slice, read one at a time.

    Raises
    ------
    FormatError
        The file is damaged, holds Python objects or real numbers, has another shape, holds NaN or
        infinity, or slices without a mask are undersampled differently.
    """
    path = Path(path)
    return _scan(path, {"kspace": _load(path)}, slices, "npy", {}, [])


def read_npz(path: StrPath, slices: slice | None = None) -> Scan:
    """Read k-space and what belongs to it from an npz file; see ``ALIASES`` for the key names.

    ``kspace`` is as in :func:`read_npy`; ``mask`` is ``(W,)`` or ``(H, W)``; ``maps`` is
    ``(coils, H, W)`` or has slices in front; ``reference`` is ``(h, w)`` or ``(slices, h, w)``,
    real. Single numbers and texts that speak of the acquisition, by the list in
    ``datasets.attributes``, become attributes; other arrays are left out and noted.

    Raises
    ------
    FormatError
        As for :func:`read_npy`, or there is no k-space, or two names for one part.
    """
    path = Path(path)
    attributes: Attributes = {}
    parts: dict[str, NDArray[Any]] = {}
    ignored, unknown = [], []
    with _archive(path) as archive:
        names = _names(path, archive.files)
        for key in archive.files:
            if key in names:
                parts[names[key]] = _member(path, archive, key)
                continue
            value = _member(path, archive, key)
            if value.ndim or value.dtype.kind not in "biufU":
                ignored.append(key)
            elif of_the_acquisition(key, value):
                attributes[key] = value.item()
            else:
                unknown.append(key)
    notes = [f"left out: {', '.join(ignored)}"] if ignored else []
    notes += told(unknown)
    return _scan(path, parts, slices, "npz", attributes, notes)


def layout_npy(path: StrPath) -> Layout:
    """Kind, shape and dtype from the header of an npy file."""
    array = _load(Path(path))
    keys = {"kspace": {"shape": array.shape, "dtype": str(array.dtype)}}
    return Layout("npy", _four(path, array).shape[0], keys)


def layout_npz(path: StrPath) -> Layout:
    """Kind, shapes and dtypes; numpy unpacks each array to tell."""
    path = Path(path)
    with _archive(path) as archive:
        arrays = {key: _member(path, archive, key) for key in archive.files}
        names = _names(path, archive.files)
    keys = {key: {"shape": a.shape, "dtype": str(a.dtype)} for key, a in arrays.items()}
    kspace = next(arrays[key] for key, part in names.items() if part == "kspace")
    return Layout("npz", _four(path, kspace).shape[0], keys)


def _scan(path: Path, parts: dict[str, NDArray[Any]], slices: slice | None, kind: str,
          attributes: Attributes, notes: list[str]) -> Scan:  # fmt: skip
    check_complex(path, parts["kspace"])
    array = _four(path, parts["kspace"])
    chosen = select(slices, len(array))
    kspace = to_complex64(path, "kspace", array[chosen], notes)
    check_finite(path, "kspace", kspace, chosen)
    if "mask" in parts:
        size = (kspace.shape[-2], kspace.shape[-1])
        mask: Tensor | None = to_mask(path, parts["mask"], size)
    else:
        mask = infer_mask(path, kspace, notes, points=True)
    kspace = zero_outside(kspace, mask, notes)
    maps = reference = crop = None
    if "maps" in parts:
        maps = to_maps(path, parts["maps"], chosen, len(array), kspace, notes)
    if "reference" in parts:
        image = parts["reference"]
        image = image[None] if image.ndim == 2 else image
        if image.ndim != 3 or len(image) != len(array):
            raise FormatError.about(
                path,
                f"want ({len(array)}, h, w), got {image.shape}; k-space with three axes is "
                "(coils, H, W), so save several slices as (slices, coils, H, W)",
                "reference",
            )
        reference = to_reference(path, "reference", image[chosen], chosen)
        height, width = reference.shape[-2:]
        if height <= kspace.shape[-2] and width <= kspace.shape[-1]:
            crop = (height, width)
        else:
            notes.append(f"the reference is {height} x {width}, larger than the k-space")
    if notes:
        attributes["note"] = "; ".join(notes)
    return Scan(kspace, mask, maps, reference, crop, attributes, path.name, kind)


def _four(path: StrPath, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        problem = f"want (H, W), (coils, H, W) or (slices, coils, H, W), got {array.shape}"
        raise FormatError.about(path, problem, "kspace")
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _names(path: Path, files: list[str]) -> dict[str, str]:
    """Which part each key of the file is."""
    names: dict[str, str] = {}
    for part, aliases in ALIASES.items():
        there = [key for key in aliases if key in files]
        if len(there) > 1:
            problem = f"two names for one array, keep one: {', '.join(there)}"
            raise FormatError.about(path, problem, part)
        names.update(dict.fromkeys(there, part))
    if "kspace" not in names.values():
        known = " or ".join(ALIASES["kspace"])
        held = ", ".join(sorted(files)) or "nothing"
        raise FormatError.about(path, f"want a key {known}, the file holds {held}", "kspace")
    return names


@contextmanager
def _archive(path: Path) -> Iterator[Any]:
    if not read_head(path).startswith(b"PK"):
        raise FormatError.about(path, "not an npz file")
    with path.open("rb") as file:  # given a name, numpy leaves a damaged file open
        try:
            archive = np.load(file, allow_pickle=False)
        except _DAMAGE as error:
            raise FormatError.about(path, f"damaged npz file ({error})") from error
        with archive:
            yield archive


def _member(path: Path, archive: Any, key: str) -> NDArray[Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # files of Python 2 are as good
            value = archive[key]
    except _DAMAGE as error:
        raise FormatError.about(path, _why(error), key) from error
    except MemoryError as error:
        problem = f"too large for this machine's memory, or damaged ({error})"
        raise FormatError.about(path, problem, key) from error
    if not isinstance(value, np.ndarray):  # numpy hands out other files in the archive as bytes
        raise FormatError.about(path, "not a numpy array", key)
    return value


def _load(path: Path) -> NDArray[Any]:
    if not read_head(path).startswith(b"\x93NUMPY"):
        raise FormatError.about(path, "not an npy file")
    try:
        with warnings.catch_warnings(action="ignore"):  # as above
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGE as error:
        raise FormatError.about(path, _why(error), "kspace") from error
    return array


def _why(error: BaseException) -> str:
    if "allow_pickle" in str(error) or "Python objects" in str(error):
        return "holds Python objects, which are never loaded as they can run code: save numbers"
    return f"cannot be read, the file is damaged ({error})"
