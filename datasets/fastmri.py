"""Reading fastMRI's HDF5 layout: one volume a file, its scan header as XML inside."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch
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
    to_mask,
    to_reference,
    zero_outside,
)

HEADER = "ismrmrd_header"
HEADER_BYTES = 1 << 20  # fastMRI's are a few kilobytes


class Header(NamedTuple):
    """What a reconstruction needs of the scan header; sizes are ``(x, y, z)``, x the readout."""

    encoded_size: tuple[int, int, int] | None = None
    recon_size: tuple[int, int, int] | None = None
    recon_fov_mm: tuple[float, float, float] | None = None
    padding: tuple[int, int] | None = None
    """Columns ``[left, right)`` were acquired; the rest of the encoded width never was."""


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities can only be declared in a DOCTYPE, so refusing it rules out their expansion."""

    def doctype(self, *_: object) -> None:
        raise ValueError("a DOCTYPE is not allowed")


def parse_header(path: StrPath, raw: object) -> Header:
    """Read the XML of an ISMRMRD header, whatever its namespace prefix.

    ``raw`` is what h5py gives: bytes, str, a fixed-length or opaque scalar, or an array of one.
    Elements that are absent leave None. ``path`` serves the error messages.
    """
    if isinstance(raw, np.ndarray):
        if raw.size != 1:
            raise FormatError.about(path, f"want one XML text, got shape {raw.shape}", HEADER)
        raw = raw.reshape(-1)[0]
    text = raw.tobytes() if isinstance(raw, np.void) else raw
    data = text.encode() if isinstance(text, str) else text
    if not isinstance(data, bytes):
        raise FormatError.about(path, f"want XML text, got {type(raw).__name__}", HEADER)
    if len(data) > HEADER_BYTES:
        raise FormatError.about(path, f"{len(data)} bytes is too large for a header", HEADER)
    try:
        parser = ElementTree.XMLParser(target=_NoDoctype())
        root = ElementTree.fromstring(data.rstrip(b"\0"), parser)
    except (ValueError, LookupError, ElementTree.ParseError) as error:  # LookupError: encodings
        raise FormatError.about(path, f"not a readable XML header ({error})", HEADER) from error

    def triple(space: str, field: str) -> tuple[float, float, float] | None:
        x, y, z = (_number(path, root, space, field, axis) for axis in "xyz")
        return None if x is None or y is None else (x, y, 1.0 if z is None else z)

    encoded, recon = (_whole(triple(s, "matrixSize")) for s in ("encodedSpace", "reconSpace"))
    limits = ("encodingLimits", "kspace_encoding_step_1")
    centre, last = (_number(path, root, *limits, end) for end in ("center", "maximum"))
    padding = None
    if encoded is not None and centre is not None and last is not None:
        left = encoded[1] // 2 - int(centre)
        padding = (left, left + int(last) + 1)
    return Header(encoded, recon, triple("reconSpace", "fieldOfView_mm"), padding)


def _number(path: StrPath, element: ElementTree.Element, *names: str) -> float | None:
    """The number at a chain of element names, each the first match at any depth."""
    found: ElementTree.Element | None = element
    for name in names:
        if found is None:
            return None
        found = next((e for e in found.iter() if e.tag.rpartition("}")[2] == name), None)
    if found is None:
        return None
    try:
        value = float(found.text or "")
    except ValueError:
        value = np.nan
    if not 0 <= value < 1e6:
        raise FormatError.about(path, f"want a number, got {found.text!r}",
                                f"{HEADER}: {'/'.join(names)}")  # fmt: skip
    return value


def _whole(size: tuple[float, float, float] | None) -> tuple[int, int, int] | None:
    return None if size is None else (int(size[0]), int(size[1]), int(size[2]))


def read_fastmri(path: StrPath, slices: slice | None = None) -> Scan:
    """Read one fastMRI volume, multi-coil ``(slices, coils, H, W)`` or single-coil without coils.

    Only the chosen ``slices`` are read. Without a ``mask`` in the file, columns that are exactly
    zero in all coils of these slices are taken as unsampled. Columns that the header says were
    never acquired, and which are zero, are removed from the mask. ``crop`` is the reference's size,
    else the header's; where the k-space is narrower than that it is the square ``(W, W)``.

    Raises
    ------
    FormatError
        The file is damaged or is not in this layout, its arrays do not fit one another, or its
        k-space holds NaN or infinity.
    """
    path = Path(path)
    notes: list[str] = []
    with _opened(path) as file:
        data = _dataset(file, path, "kspace")
        _check_kspace(path, data)
        chosen = select(slices, data.shape[0])
        size: tuple[int, int] = (data.shape[-2], data.shape[-1])
        header = _header(file, path, notes)
        _check_axes(path, header, size, notes)
        with _reading(path, "kspace"):
            kspace = to_complex64(path, "kspace", data[chosen], notes)
        multicoil = kspace.ndim == 4
        kspace = kspace if multicoil else kspace.unsqueeze(1)
        check_finite(path, "kspace", kspace, chosen)
        if _has(file, path, "mask"):
            mask: Tensor | None = _stored_mask(file, path, header, kspace, notes)
        else:
            mask = infer_mask(kspace, notes, points=False)
        reference = _reference(file, path, multicoil, data.shape[0], chosen, notes)
        with _reading(path, "attributes"):
            attributes = _attributes(file, header)
    crop = _crop(header, reference, size, notes)
    kspace = zero_outside(kspace, mask, notes)
    if notes:
        attributes["note"] = "; ".join(notes)
    kind = "fastmri_multicoil" if multicoil else "fastmri_singlecoil"
    return Scan(kspace, mask, None, reference, crop, attributes, path.name, kind)


def layout_fastmri(path: StrPath) -> Layout:
    """Kind and arrays of an HDF5 file; kind ``hdf5`` and no slices where it has no ``kspace``."""
    import h5py

    path = Path(path)
    keys: dict[str, dict[str, Any]] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            keys[name] = {"shape": tuple(item.shape or ()), "dtype": str(item.dtype)}

    with _opened(path) as file, _reading(path, "its table of contents"):
        file.visititems(visit)
        if "kspace" not in file:
            return Layout("hdf5", 0, keys)
        data = _dataset(file, path, "kspace")
        _check_kspace(path, data)
        kind = "fastmri_multicoil" if data.ndim == 4 else "fastmri_singlecoil"
        return Layout(kind, data.shape[0], keys)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
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
def _reading(path: Path, key: str) -> Iterator[None]:
    """Damage inside an HDF5 file shows only when the damaged part is read, in many guises."""
    try:
        yield
    except FormatError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FormatError.about(path, f"cannot be read, the file is damaged ({error})", key) \
            from error  # fmt: skip


def _has(file: Any, path: Path, key: str) -> bool:
    with _reading(path, key):
        return key in file


def _dataset(file: Any, path: Path, key: str) -> Any:
    """A dataset that lies in this file: its links must not lead to other files of the machine."""
    import h5py

    if not _has(file, path, key):
        with _reading(path, "its table of contents"):
            there = ", ".join(sorted(str(name) for name in file)) or "nothing"
            inner = file.get("dataset")
            ismrmrd = isinstance(inner, h5py.Group) and {"data", "xml"} <= set(inner)
        if ismrmrd:
            problem = "an ISMRMRD raw file, which is not read yet: convert it to fastMRI's layout"
            raise FormatError.about(path, problem)
        raise FormatError.about(path, f"no such key, or a broken link; the file holds {there}", key)
    with _reading(path, key):
        found = file[key]
    if not isinstance(found, h5py.Dataset):
        raise FormatError.about(path, "want an array, got a group", key)
    if found.is_virtual or found.external or found.file.filename != file.filename:
        raise FormatError.about(path, "its values lie in other files: copy them in", key)
    return found


def _check_kspace(path: Path, data: Any) -> None:
    if data.ndim == 5:
        raise FormatError.about(
            path,
            f"5-d k-space {data.shape} (averages, as in fastMRI prostate, or real and imaginary "
            "parts apart) is not supported: want (slices, coils, H, W) or (slices, H, W), complex",
            "kspace",
        )
    if data.ndim not in (3, 4):
        problem = f"want (slices, coils, H, W) or (slices, H, W), got shape {data.shape}"
        raise FormatError.about(path, problem, "kspace")
    if 0 in data.shape:
        raise FormatError.about(path, f"shape {data.shape} holds nothing", "kspace")


def _header(file: Any, path: Path, notes: list[str]) -> Header:
    if not _has(file, path, HEADER):
        notes.append(f"no {HEADER}: axis order and crop size are not checked")
        return Header()
    with _reading(path, HEADER):
        raw = _dataset(file, path, HEADER)[()]
    return parse_header(path, raw)


def _check_axes(path: Path, header: Header, size: tuple[int, int], notes: list[str]) -> None:
    if header.encoded_size is None:
        return
    x, y, z = header.encoded_size
    if size[0] != x and size[1] == x:
        raise FormatError.about(
            path,
            f"last axes {size} are swapped: the header's readout is {x} and belongs second to "
            "last; write kspace.swapaxes(-1, -2) instead",
            "kspace",
        )
    if z > 1:
        # Fourier transformed along z already, or not: only who wrote the file knows.
        notes.append(f"the header says 3-D encoding with z = {z}: slices are taken as images in z")
    if size != (x, y):
        notes.append(f"k-space is {size[0]} x {size[1]}, the header says {x} x {y}")


def _stored_mask(file: Any, path: Path, header: Header, kspace: Tensor, notes: list[str]) -> Tensor:
    height, width = kspace.shape[-2:]
    with _reading(path, "mask"):
        mask = to_mask(path, np.asarray(_dataset(file, path, "mask")[()]), (height, width))
    # A header of another width (cropped k-space) says nothing about these columns.
    if header.padding is None or header.encoded_size is None or header.encoded_size[1] != width:
        return mask
    column = torch.arange(width)
    padded = (column < header.padding[0]) | (column >= header.padding[1])
    never = padded & ~(kspace != 0).flatten(0, 2).any(0)
    if bool((mask & never).any()):
        notes.append(f"mask limited to the acquired columns {header.padding[0]} to "
                     f"{header.padding[1] - 1}")  # fmt: skip
        mask = mask & ~never
        if not bool(mask.any()):
            raise FormatError.about(path, "samples only columns that were never acquired", "mask")
    return mask


def _reference(file: Any, path: Path, multicoil: bool, total: int, chosen: slice,
               notes: list[str]) -> Tensor | None:  # fmt: skip
    key = "reconstruction_rss" if multicoil else "reconstruction_esc"
    if not (multicoil or _has(file, path, key)) and _has(file, path, "reconstruction_rss"):
        key = "reconstruction_rss"
        notes.append("no reconstruction_esc: the reference is reconstruction_rss, of all coils")
    if not _has(file, path, key):
        return None
    data = _dataset(file, path, key)
    if data.ndim != 3 or data.shape[0] != total:
        raise FormatError.about(path, f"want ({total}, h, w), got {data.shape}", key)
    with _reading(path, key):
        return to_reference(path, key, data[chosen], chosen)


def _crop(header: Header, reference: Tensor | None, size: tuple[int, int],
          notes: list[str]) -> tuple[int, int] | None:  # fmt: skip
    if reference is not None:
        height, width = reference.shape[-2:]
        if height <= size[0] and width <= size[1]:
            return (height, width)
        notes.append(f"the reference is {height} x {width}, larger than the k-space")
    if header.recon_size is None:
        return None
    height, width = header.recon_size[:2]
    if size[1] < width:  # fastMRI's "FLAIR 203": a narrow scan is cut to a square
        height = width = size[1]
    if min(height, width) < 1:
        return None
    if height > size[0]:
        notes.append(f"the header's image is {height} rows, the k-space only {size[0]}")
    return (min(height, size[0]), width)


def _attributes(file: Any, header: Header) -> Attributes:
    found: Attributes = {key: _plain(value) for key, value in file.attrs.items()}
    for name, size in (("encoded", header.encoded_size), ("recon", header.recon_size)):
        if size is not None:
            found.update({f"{name}_{axis}": n for axis, n in zip("xyz", size, strict=True)})
    if header.recon_size is not None and header.recon_fov_mm is not None:
        for axis, fov, n in zip("xy", header.recon_fov_mm, header.recon_size, strict=False):
            if n > 0:
                found[f"pixel_{axis}_mm"] = fov / n
    if header.padding is not None:
        found["padding_left"], found["padding_right"] = header.padding
    return found


def _plain(value: Any) -> str | float | int:
    """An HDF5 attribute as the nearest plain value; several numbers become one text."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else ", ".join(str(v) for v in value.flat)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str | float | int) else str(value)
