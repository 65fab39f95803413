"""Reading fastMRI's HDF5 layout: one volume a file, its scan header as XML inside."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.attributes import of_the_acquisition, told
from recon.datasets.errors import FormatError, StrPath
from recon.datasets.hdf5 import check_attributes, dataset, has, opened, reading
from recon.datasets.hdf5_heaps import check_one
from recon.datasets.scan import (
    Attributes,
    Layout,
    Scan,
    acs_width,
    check_complex,
    check_finite,
    infer_mask,
    select,
    to_complex64,
    to_mask,
    to_reference,
    zero_outside,
)
from recon.datasets.scan_header import HEADER, Header, parse_header


def read_fastmri(path: StrPath, slices: slice | None = None) -> Scan:
    """Read one fastMRI volume, multi-coil ``(slices, coils, H, W)`` or single-coil without coils.

    Only the chosen ``slices`` are read. Without a ``mask`` in the file, columns that are exactly
    zero in all coils of these slices are taken as unsampled, or points where columns do not
    explain the zeros; rows of zeros are readout padding and count as measured. Columns that the
    header says were never acquired, and which are zero, are removed from the mask. ``crop`` is the
    reference's size, else the header's; where the k-space is narrower than that it is the square
    ``(W, W)``. ``attributes`` are those of the file that speak of the acquisition, by the list in
    ``datasets.attributes``, the sizes and pixels of its header, and ``padding_left``,
    ``padding_right`` as fastMRI's own reader has them.

    Raises
    ------
    FormatError
        The file is damaged or is not in this layout, its arrays do not fit one another, its
        k-space holds NaN or infinity, or slices without a mask are undersampled differently.
    """
    path = Path(path)
    notes: list[str] = []
    with opened(path) as file:
        data = dataset(file, path, "kspace")
        _check_kspace(path, data)
        chosen = select(slices, data.shape[0])
        size: tuple[int, int] = (data.shape[-2], data.shape[-1])
        header = _header(file, path, notes)
        _check_axes(path, header, size, notes)
        with reading(path, "kspace"):
            kspace = to_complex64(path, "kspace", _joined(data[chosen], notes), notes)
        multicoil = kspace.ndim == 4
        kspace = kspace if multicoil else kspace.unsqueeze(1)
        check_finite(path, "kspace", kspace, chosen)
        if has(file, path, "mask"):
            mask: Tensor | None = _stored_mask(file, path, header, kspace, notes)
        else:
            mask = _inferred_mask(path, header, kspace, notes)
        reference = _reference(file, path, multicoil, data.shape[0], chosen, notes)
        check_attributes(file, path)
        with reading(path, "attributes"):
            attributes = _attributes(file, header, size, notes)
    crop = _crop(header, reference, size, notes)
    kspace = zero_outside(kspace, mask, notes)
    if notes:
        attributes["note"] = "; ".join(notes)
    kind = "fastmri_multicoil" if multicoil else "fastmri_singlecoil"
    return Scan(kspace, mask, None, reference, crop, attributes, path.name, kind)


def layout_fastmri(path: StrPath) -> Layout:
    """Kind and arrays of an HDF5 file; kind ``hdf5`` and no slices where it has no ``kspace``.

    All that can be checked without reading k-space is, by the rules of :func:`read_fastmri`.
    """
    import h5py

    path = Path(path)
    keys: dict[str, dict[str, Any]] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            keys[name] = {"shape": tuple(item.shape or ()), "dtype": str(item.dtype)}

    with opened(path) as file, reading(path, "its table of contents"):
        file.visititems(visit)
        if "kspace" not in file:
            return Layout("hdf5", 0, keys)
        data = dataset(file, path, "kspace")
        _check_kspace(path, data)
        _check_axes(path, _header(file, path, []), data.shape[-2:], [])
        if has(file, path, "mask"):
            _read_mask(file, path, data.shape[-2:])
        _find_reference(file, path, data.ndim == 4, data.shape[0], [])
        kind = "fastmri_multicoil" if data.ndim == 4 else "fastmri_singlecoil"
        return Layout(kind, data.shape[0], keys)


def acquisition_of(path: StrPath) -> str | None:
    """The attribute ``acquisition``, such as ``CORPD_FBK`` or ``AXT2``; None where there is none.

    Reads nothing else.
    """
    path = Path(path)
    with opened(path) as file, reading(path, "attributes"):
        check_attributes(file, path)
        return None if "acquisition" not in file.attrs else str(_plain(file.attrs["acquisition"]))


def fully_sampled(scan: Scan) -> bool:
    """Whether only columns are missing that the header says were never acquired.

    Of a training file with such padding, ``mask`` is not None, and yet it can be undersampled.
    """
    if scan.mask is None:
        return True
    left, right, width = (scan.attributes.get(key) for key in
                          ("padding_left", "padding_right", "encoded_y"))  # fmt: skip
    if isinstance(left, int) and isinstance(right, int) and isinstance(width, int):
        padding = _padded(Header((0, width, 1), padding=(left, right)), scan.mask.shape[-1])
        if padding is not None:
            return bool(scan.mask[..., ~padding].all())
    return bool(scan.mask.all())


def _check_kspace(path: Path, data: Any) -> None:
    check_complex(path, data)
    if data.ndim == 5:
        raise FormatError.about(
            path,
            f"5-d k-space {data.shape}, as of averages in fastMRI prostate, is not supported: "
            "combine them (there by GRAPPA) and write (slices, coils, H, W)",
            "kspace",
        )
    if data.ndim not in (3, 4):
        problem = f"want (slices, coils, H, W) or (slices, H, W), got shape {data.shape}"
        raise FormatError.about(path, problem, "kspace")
    if 0 in data.shape:
        raise FormatError.about(path, f"shape {data.shape} holds nothing", "kspace")
    if data.dtype.kind != "c" and _parts(data.dtype) is None:
        names = data.dtype.names
        got = data.dtype if names is None else f"records {names}"
        raise FormatError.about(path, f"want complex64 values, got {got}", "kspace")


def _parts(dtype: np.dtype[Any]) -> tuple[str, str] | None:
    """Names of the real and imaginary part in records as ISMRMRD and MATLAB write them."""
    names = dtype.names or ()
    for pair in (("real", "imag"), ("r", "i")):
        if set(names) == set(pair) and all(dtype[name].kind == "f" for name in pair):
            return pair
    return None


def _joined(array: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    pair = _parts(array.dtype)
    if pair is None:
        return array
    real, imag = (array[name] for name in pair)
    if real.dtype.itemsize != 4:
        notes.append(f"kspace was records of {real.dtype.newbyteorder('=')}, cast to complex64")
    joined = np.empty(array.shape, np.complex64)
    # an overflow becomes inf, which check_finite names, as any NaN
    with np.errstate(over="ignore", invalid="ignore"):
        joined.real, joined.imag = real, imag
    return joined


def _header(file: Any, path: Path, notes: list[str]) -> Header:
    if not has(file, path, HEADER):
        notes.append(f"no {HEADER}: axis order and crop size are not checked")
        return Header()
    with reading(path, HEADER):
        stored = dataset(file, path, HEADER)
        check_one(path, HEADER, stored)
        raw = stored[()]
    return parse_header(path, raw)


def _check_axes(path: Path, header: Header, size: tuple[int, int], notes: list[str]) -> None:
    if header.encoded_size is None:
        return
    x, y, z = header.encoded_size
    if size[0] != x and size[1] == x != y:
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
    mask = _read_mask(file, path, (height, width))
    measured = (kspace != 0).flatten(0, 2).any(0)  # (W,)
    padded = _padded(header, width)
    if padded is not None:
        never = padded & ~measured
        if bool((mask & never).any()):
            acquired = (~padded).nonzero()
            notes.append(f"mask limited to the acquired columns {int(acquired[0])} to "
                         f"{int(acquired[-1])}")  # fmt: skip
            mask = mask & ~never
            if not bool(mask.any()):
                problem = "samples only columns that were never acquired"
                raise FormatError.about(path, problem, "mask")
    empty = int(((mask if mask.ndim == 1 else mask.any(0)) & ~measured).sum())
    if empty:
        notes.append(f"{empty} columns sampled by the mask hold nothing but zeros, which count "
                     "as measured")  # fmt: skip
    return mask


def _read_mask(file: Any, path: Path, size: tuple[int, int]) -> Tensor:
    data = dataset(file, path, "mask")
    if data.dtype.hasobject:  # texts and the like, in whose damaged heaps reading may never end
        raise FormatError.about(path, f"want zeros and ones, got values of {data.dtype}", "mask")
    with reading(path, "mask"):
        return to_mask(path, np.asarray(data[()]), size)


def _padded(header: Header, width: int) -> Tensor | None:
    """Columns that the header says were never acquired; None where it does not say."""
    # A header of another width (cropped k-space) says nothing about these columns.
    if header.padding is None or header.encoded_size is None or header.encoded_size[1] != width:
        return None
    column = torch.arange(width)
    padded = (column < header.padding[0]) | (column >= header.padding[1])
    return None if bool(padded.all()) else padded


def _inferred_mask(path: Path, header: Header, kspace: Tensor,
                   notes: list[str]) -> Tensor | None:  # fmt: skip
    """As :func:`infer_mask`, telling padding from what was undersampled before it was stored."""
    mine: list[str] = []
    mask = infer_mask(path, kspace, mine, points=True)
    if mask is not None and mask.ndim == 2:
        rows, columns = mask.any(1), mask.any(0)
        if bool((mask == rows[:, None] & columns).all()):
            notes.append(f"{int((~rows).sum())} of {len(rows)} rows are zero, which is taken as "
                         "padding of the readout")  # fmt: skip
            mine.clear()
            mask = infer_mask(path, kspace, mine, points=False)
    notes += mine
    if mask is None:
        return None
    padded = _padded(header, mask.shape[-1])
    acquired = mask if padded is None else mask[..., ~padded]
    if bool(acquired.all()):
        notes.append("the others are padding, as its header says")
    else:
        notes.append(f"{int(acquired.sum()) / acquired.numel():.3g} of what was acquired is there, "
                     f"{acs_width(mask)} columns about the centre without a gap")  # fmt: skip
    return mask


def _find_reference(file: Any, path: Path, multicoil: bool, total: int,
                    notes: list[str]) -> tuple[str, Any] | None:  # fmt: skip
    """Key and dataset of the image to compare with."""
    key = "reconstruction_rss" if multicoil else "reconstruction_esc"
    if not (multicoil or has(file, path, key)) and has(file, path, "reconstruction_rss"):
        key = "reconstruction_rss"
        notes.append("no reconstruction_esc: the reference is reconstruction_rss, of all coils")
    if not has(file, path, key):
        return None
    data = dataset(file, path, key)
    if data.ndim != 3 or data.shape[0] != total or 0 in data.shape:
        raise FormatError.about(path, f"want ({total}, h, w), got {data.shape}", key)
    if data.dtype.kind not in "fiu":
        raise FormatError.about(path, f"want real values, got {data.dtype}", key)
    return key, data


def _reference(file: Any, path: Path, multicoil: bool, total: int, chosen: slice,
               notes: list[str]) -> Tensor | None:  # fmt: skip
    found = _find_reference(file, path, multicoil, total, notes)
    if found is None:
        return None
    key, data = found
    if data.dtype.newbyteorder("=") != np.float32:
        notes.append(f"{key} was {data.dtype.newbyteorder('=')}, cast to float32")
    with reading(path, key):
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
    if min(height, width) < 1:
        notes.append(f"the header's image of {height} x {width} is no size: nothing is cut")
        return None
    if size[1] < width:  # fastMRI's "FLAIR 203"
        notes.append(f"the header's image is {width} columns, the k-space only {size[1]}: cut to a "
                     "square as fastMRI does")  # fmt: skip
        height = width = size[1]
    if height > size[0]:
        notes.append(f"the header's image is {height} rows, the k-space only {size[0]}")
    return (min(height, size[0]), width)


def _attributes(file: Any, header: Header, size: tuple[int, int],
                notes: list[str]) -> Attributes:  # fmt: skip
    found: Attributes = {k: _plain(v) for k, v in file.attrs.items() if of_the_acquisition(k, v)}
    notes += told(file.attrs.keys() - found.keys() - {"patient_id"})  # in every file: no news
    for name, matrix in (("encoded", header.encoded_size), ("recon", header.recon_size)):
        if matrix is not None:
            found.update({f"{name}_{axis}": n for axis, n in zip("xyz", matrix, strict=True)})
    for axis, pixel in _pixels(header, size, notes).items():
        found[f"pixel_{axis}_mm"] = pixel
    if header.padding is not None:
        found["padding_left"], found["padding_right"] = header.padding
    return found


def _pixels(header: Header, size: tuple[int, int], notes: list[str]) -> dict[str, float]:
    """Pixel size along x and y in mm of the image that this k-space gives."""
    found = {}
    for i, axis in enumerate("xy"):
        recon, encoded = (
            fov[i] / matrix[i] if fov is not None and matrix is not None and matrix[i] else 0.0
            for fov, matrix in ((header.recon_fov_mm, header.recon_size),
                                (header.encoded_fov_mm, header.encoded_size)))  # fmt: skip
        whole = header.encoded_size is not None and header.encoded_size[i] == size[i]
        if recon and encoded and whole and abs(encoded / recon - 1) > 0.01:
            notes.append(f"pixels along {axis} are {encoded:.4g} mm by the encoded space, "
                         f"{recon:.4g} mm by the reconstructed one: the first are those of "
                         "images from this k-space")  # fmt: skip
            found[axis] = encoded
        elif recon:
            found[axis] = recon
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
