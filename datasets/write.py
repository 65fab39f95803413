"""Writing files so that a reader sees the whole new file or none of it."""

import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recon.datasets.bart import DIMENSIONS, bart_paths
from recon.datasets.errors import StrPath
from recon.datasets.scan import acs_width, centre_crop
from recon.datasets.scan_header import HEADER

Array = Tensor | NDArray[Any]


def refuse_existing(path: StrPath, overwrite: bool = False) -> None:
    """Raise now what writing ``path`` would raise after hours of work.

    Raises
    ------
    FileExistsError
        The file is there and ``overwrite`` is False, or it is no ordinary file.
    FileNotFoundError, NotADirectoryError, PermissionError
        Its folder is missing, is no folder, or cannot be written to.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        kind = NotADirectoryError if folder.exists() else FileNotFoundError
        raise kind(f"{path.name}: its folder {folder.name!r} is not there: make it first")
    if path.exists() and not path.is_file():  # a folder, or a device that renaming would destroy
        raise FileExistsError(f"{path.name}: exists and is not an ordinary file: choose a name")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path.name}: exists: pass overwrite=True to replace it")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path.name}: its folder {folder.name!r} cannot be written to")


@contextmanager
def replacing(*paths: StrPath, overwrite: bool = False) -> Iterator[list[Path]]:
    """Temporary names in the folders of ``paths``, which take their places if the block succeeds.

    Every temporary file is on disk before the first is renamed. If anything fails nothing new is
    left; with several paths, an overwritten file may then be the new one.
    """
    targets = [Path(path) for path in paths]
    for target in targets:
        refuse_existing(target, overwrite)
    # Not tempfile: its files are private to the user, and stay so under their new name.
    parts = [t.with_name(f".{uuid.uuid4().hex}.part") for t in targets]
    fresh = [not os.path.lexists(t) for t in targets]
    placed: list[Path] = []
    try:
        yield parts
        for part in parts:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        for part, target, new in zip(parts, targets, fresh, strict=True):
            refuse_existing(target, overwrite)  # it may have appeared while we wrote
            part.replace(target)
            if new:
                placed.append(target)
    except BaseException:
        for path in (*parts, *placed):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    for folder in {target.parent for target in targets}:
        with suppress(OSError):  # makes the renaming itself durable, where folders can be synced
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def write_hdf5(
    path: StrPath,
    reconstruction: Array,
    *,
    std: Array | None = None,
    samples: Array | None = None,
    attributes: Mapping[str, str | float | int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a reconstruction; without the optional parts this is a fastMRI submission.

    ``reconstruction`` and ``std`` are real ``(slices, h, w)``, stored as float32; ``samples`` is
    ``(samples, slices, h, w)``, float32 or complex64.
    """
    import h5py

    arrays = {"reconstruction": as_numbers("reconstruction", reconstruction, complex_too=False)}
    shape = arrays["reconstruction"].shape
    if len(shape) != 3:
        raise ValueError(f"write_hdf5: reconstruction: want (slices, h, w), got {shape}")
    if std is not None:
        arrays["std"] = as_numbers("std", std, complex_too=False)
        if arrays["std"].shape != shape:
            raise ValueError(f"write_hdf5: std: want {shape}, got {arrays['std'].shape}")
    if samples is not None:
        arrays["samples"] = as_numbers("samples", samples, complex_too=True)
        if arrays["samples"].ndim != 4 or arrays["samples"].shape[1:] != shape:
            got = arrays["samples"].shape
            raise ValueError(f"write_hdf5: samples: want (samples, {str(shape)[1:]}, got {got}")
    for key, value in (attributes or {}).items():
        if not isinstance(value, str | float | int):
            raise TypeError(f"write_hdf5: attributes[{key!r}]: want text or a number, "
                            f"got {type(value).__name__}")  # fmt: skip
    with replacing(path, overwrite=overwrite) as (part,), h5py.File(part, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array)
        file.attrs.update(attributes or {})


def write_submission(folder: StrPath, name: str, reconstruction: Array, *, v2: bool = False,
                     overwrite: bool = False) -> Path:  # fmt: skip
    """Write one volume for ``fastmri.evaluate`` or a leaderboard: ``<stem of name>.h5``, returned.

    ``name`` is that of the measured file, as ``Scan.name``; ``v2`` adds the ``_v2`` of the knee
    test set. ``reconstruction`` holds the magnitudes of all its slices in order, ``(slices, h,
    w)``, cut to ``Scan.crop``; the file has it in float32 and nothing else.
    """
    if Path(name).name != name or not name.strip("."):
        raise ValueError("write_submission: want the name of a file without folders, as Scan.name")
    values = as_numbers("reconstruction", reconstruction, complex_too=False)
    if values.ndim != 3:
        raise ValueError(f"write_submission: want (slices, h, w), got {values.shape}")
    for number, image in enumerate(values):
        if not np.isfinite(image).all():
            raise ValueError(f"write_submission: slice {number} holds NaN or infinity")
    stem = Path(name).stem
    path = Path(folder) / (f"{stem}_v2.h5" if v2 and not stem.endswith("_v2") else f"{stem}.h5")
    write_hdf5(path, values, overwrite=overwrite)
    return path


def write_npz(path: StrPath, arrays: Mapping[str, Array | ArrayLike], *,
              overwrite: bool = False) -> None:  # fmt: skip
    """Write named arrays to exactly ``path``, dtypes kept; never Python objects."""
    plain = {key: on_host(value) for key, value in arrays.items()}
    for key, array in plain.items():
        if array.dtype.hasobject:
            raise TypeError(f"write_npz: {key}: want numbers or text, got Python objects")
    with (
        replacing(path, overwrite=overwrite) as (part,),
        # not numpy.savez: it takes the keys as arguments, so "file" could not be one
        zipfile.ZipFile(part, "w", allowZip64=True) as archive,
    ):
        for key, array in plain.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def write_cfl(path: StrPath, array: Array, *, overwrite: bool = False) -> None:
    """Write BART's ``.hdr`` and ``.cfl``: axis i of the array is BART's dimension i.

    ``datasets.to_bart_axes`` brings ``(slices, coils, H, W)`` into that order. Real input is stored
    with zero imaginary part.
    """
    values = as_numbers("array", array, complex_too=True)
    if values.ndim > DIMENSIONS or values.size == 0:
        raise ValueError(f"write_cfl: want 1 to {DIMENSIONS} axes, none empty, got {values.shape}")
    dims = values.shape + (1,) * (DIMENSIONS - values.ndim)
    header, data = bart_paths(path)
    # The data first: a header is what other programs look for.
    with replacing(data, header, overwrite=overwrite) as (data_part, header_part):
        data_part.write_bytes(values.astype("<c8").tobytes(order="F"))
        header_part.write_text("# Dimensions\n" + " ".join(map(str, dims)) + "\n")


def write_fastmri(
    path: StrPath,
    kspace: Tensor,
    *,
    mask: Tensor | None = None,
    reference: Tensor | None = None,
    recon_size: tuple[int, int] | None = None,
    padding: tuple[int, int] | None = None,
    field_of_view_mm: float | tuple[float, float] = 220.0,
    attributes: Mapping[str, str | float | int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write k-space in fastMRI's layout: a training file, or with ``mask`` a test file.

    ``kspace`` is complex ``(slices, coils, H, W)``, or ``(slices, H, W)`` for single-coil. Without
    ``mask`` the file gets a reference, by default the root-sum-of-squares of the coil images
    cut to ``recon_size`` (default: the square of the shorter side). With a bool ``mask`` ``(W,)``
    it has none, and unsampled columns are zero. With ``padding`` ``(left, right)`` only columns
    ``[left, right)`` count as acquired and the others are zero too. ``field_of_view_mm`` is that
    of the reference along H and W, or one number for both. ``attributes`` replace the invented
    ones.
    """
    import h5py

    if kspace.ndim not in (3, 4) or not kspace.is_complex():
        raise ValueError(f"write_fastmri: want complex (slices, coils, H, W) or (slices, H, W), "
                         f"got {kspace.dtype} {tuple(kspace.shape)}")  # fmt: skip
    height, width = kspace.shape[-2:]
    left, right = padding or (0, width)
    if not 0 <= left < right <= width:
        raise ValueError(f"write_fastmri: padding: want columns within 0 to {width}, got {padding}")
    if mask is not None and (tuple(mask.shape) != (width,) or mask.dtype != torch.bool):
        raise ValueError(f"write_fastmri: want a bool mask ({width},), "
                         f"got {mask.dtype} {tuple(mask.shape)}")  # fmt: skip
    if mask is not None and reference is not None:
        raise ValueError("write_fastmri: a test file has a mask and no reference: pass one of them")
    if reference is not None:
        recon_size = (reference.shape[-2], reference.shape[-1])
    size = recon_size or (min(height, width),) * 2
    column = torch.arange(width, device=kspace.device)
    kspace = torch.where((column >= left) & (column < right), kspace, 0)
    own: dict[str, str | float | int] = {"acquisition": "AXT2", "patient_id": "0" * 64}
    arrays: dict[str, Any] = {}
    if mask is not None:
        kspace = torch.where(mask, kspace, 0)
        arrays["mask"] = on_host(mask)
        own["acceleration"] = round(width / max(1, int(mask.sum())))
        own["num_low_frequency"] = acs_width(mask)
    else:
        target = _target(kspace, size) if reference is None else reference
        key = "reconstruction_rss" if kspace.ndim == 4 else "reconstruction_esc"
        arrays[key] = as_numbers("reference", target, complex_too=False)
        own["max"] = float(arrays[key].max())
        own["norm"] = float(np.linalg.norm(arrays[key]))
    arrays["kspace"] = as_numbers("kspace", kspace, complex_too=True)
    fov = field_of_view_mm if isinstance(field_of_view_mm, tuple) else (field_of_view_mm,) * 2
    header = _header_xml((height, width), size, (left, right), fov)
    with replacing(path, overwrite=overwrite) as (part,), h5py.File(part, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array)
        file.create_dataset(HEADER, data=header.encode(), dtype=h5py.string_dtype())
        file.attrs.update(own | dict(attributes or {}))


def _target(kspace: Tensor, size: tuple[int, int]) -> Tensor:
    """fastMRI's target: magnitude of the cropped centred inverse FFT, root-sum-of-squares."""
    axes = (-2, -1)
    image = torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=axes), norm="ortho")
    image = centre_crop(torch.fft.fftshift(image, dim=axes), size).abs()
    return image.square().sum(1).sqrt() if image.ndim == 4 else image


def _header_xml(size: tuple[int, int], recon: tuple[int, int], padding: tuple[int, int],
                fov: tuple[float, float]) -> str:  # fmt: skip
    """The elements of the scan header that fastMRI's own reader looks for."""

    def space(name: str, matrix: tuple[int, int]) -> str:
        # One pixel size for both: the encoded field of view is larger by what the crop removes.
        x, y = (mm * n / m for mm, n, m in zip(fov, matrix, recon, strict=True))
        return (f"<{name}><matrixSize><x>{matrix[0]}</x><y>{matrix[1]}</y><z>1</z></matrixSize>"
                f"<fieldOfView_mm><x>{x:.6g}</x><y>{y:.6g}</y><z>5</z></fieldOfView_mm>"
                f"</{name}>")  # fmt: skip

    left, right = padding
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        "<experimentalConditions><H1resonanceFrequency_Hz>127740000</H1resonanceFrequency_Hz>"
        "</experimentalConditions><encoding>"
        f"{space('encodedSpace', size)}{space('reconSpace', recon)}"
        "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum>"
        f"<maximum>{right - left - 1}</maximum><center>{size[1] // 2 - left}</center>"
        "</kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory>"
        "</encoding></ismrmrdHeader>"
    )


def on_host(x: Array | ArrayLike) -> NDArray[Any]:
    """As numpy sees it, without the conjugation and sign that torch may put off."""
    if not isinstance(x, Tensor):
        return np.asarray(x)
    return x.detach().resolve_conj().resolve_neg().cpu().numpy()


def as_numbers(name: str, x: Array, complex_too: bool) -> NDArray[Any]:
    """float32 or complex64 on the host."""
    array = on_host(x)
    if array.dtype.kind == "c" and not complex_too:
        raise ValueError(f"{name}: want real values, got {array.dtype}: pass its magnitude, .abs()")
    if array.dtype.kind not in "cfiub":
        raise TypeError(f"{name}: want numbers, got {array.dtype}")
    return array.astype(np.complex64 if array.dtype.kind == "c" else np.float32, copy=False)
