"""NIfTI images, versions 1 and 2, ``.nii`` and ``.nii.gz``: reading and writing.

A file's array ``(x, y, z)``, x fastest, is ``(slices, H, W)`` here: slices along z, rows along y,
columns along x, nothing flipped or resampled. Where they run in the patient differs from file to
file (dcm2niix turns the rows of DICOM upside down); ``Volume.affine`` tells.
"""

import gzip
import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.errors import FormatError, StrPath, read_head
from recon.datasets.scan import Attributes, Layout, select
from recon.datasets.volume import Volume, affine_of_slices

SUFFIXES = (".nii", ".nii.gz")
HEADER_BYTES = {1: 348, 2: 540}
MAGIC = {1: slice(344, 348), 2: slice(4, 8)}
LARGEST_SIDE = 32767  # of version 1
DEFLATE_RATIO = 1032  # a byte of a gzip file unfolds into no more than this
CHUNK_BYTES = 1 << 24
SCANNER, ALIGNED = 1, 2
LENGTHS_MM = {1: 1000.0, 2: 1.0, 3: 1e-3}
FARTHEST_MM = 1e9  # no number of a geometry is larger; its square is no overflow
# Of a voxel's side: what rounding to single precision never reaches.
AGREEMENT = 0.1
EXACT = ("f4", "c8", "i1", "u1", "i2", "u2", "f2")


class _Header(NamedTuple):
    shape: tuple[int, int, int]
    """As in the file, ``(x, y, z)``."""
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    fields: Any
    """nibabel's header, for the geometry."""

    @property
    def slice_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.offset + self.shape[2] * self.slice_bytes


def is_nifti(path: StrPath) -> bool:
    """Whether a file is NIfTI by its name, or by its first bytes, packed or not."""
    path = Path(path)
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        with _opened(path) as file:
            return _version(file.read(HEADER_BYTES[1])) is not None
    except FormatError:
        return False


def read_nifti(path: StrPath, slices: slice | None = None, *, unit: str = "arbitrary") -> Volume:
    """Read an image of three dimensions: ``scl_slope * stored + scl_inter``, float32 or complex64.

    Only the chosen ``slices`` (along z) are kept, and nothing behind them is read. ``unit`` is
    ``HU`` or ``arbitrary``: a NIfTI file does not say. ``affine`` is the sform if its code is
    scanner or aligned, else such a qform, else what there is; free text of the header and its
    extensions, which may name a patient, are not read.

    Raises
    ------
    FormatError
        The file is damaged, a header without its image, holds several volumes, colours, or NaN or
        infinity, or its geometry is no geometry.
    """
    if unit not in ("HU", "arbitrary"):
        raise ValueError(f"read_nifti: unit: want 'HU' or 'arbitrary', got {unit!r}")
    path = Path(path)
    notes: list[str] = []
    attributes: Attributes = {}
    with _opened(path) as file:
        header = _read_header(path, file, notes)
        chosen = select(slices, header.shape[2])
        affine = affine_of_slices(_affine(path, header, attributes, notes), chosen)
        values = _read_values(path, file, header, chosen)
        if range(header.shape[2])[chosen][-1] == header.shape[2] - 1:
            file.seek(header.end)
            # to the end also because that is where the checksum of a gzip file is
            rest = sum(map(len, iter(lambda: file.read(CHUNK_BYTES), b"")))
            if rest:
                notes.append(f"{rest} bytes behind the image were left out")
    if header.dtype.str[1:] not in EXACT:
        notes.append(f"values were {header.dtype.newbyteorder('=')}, cast to "
                     f"{'complex64' if values.is_complex() else 'float32'}")  # fmt: skip
    if unit == "HU":
        check_hu(path, values, notes)
    if notes:
        attributes["note"] = "; ".join(notes)
    return Volume(values, unit, affine, None, attributes, path.name, "nifti")


def layout_nifti(path: StrPath) -> Layout:
    """Shape ``(x, y, z)`` and dtype from the header, checked against the size of the file."""
    path = Path(path)
    with _opened(path) as file:
        header = _read_header(path, file, [])
    keys = {"image": {"shape": header.shape, "dtype": str(header.dtype.newbyteorder("="))}}
    return Layout("nifti", header.shape[2], keys)


def nibabel_or_advice() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError('NIfTI files need nibabel: pip install "recon[nifti]"') from error
    return nibabel


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes; damage of a gzip file shows only where they are read."""
    packed = read_head(path).startswith(b"\x1f\x8b")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        problem = f"the gzip file is cut short or damaged, copy it again ({error})"
        raise FormatError.about(path, problem) from error


def _version(block: bytes) -> tuple[int, str, bool] | None:
    """Version, byte order, and whether the image is in the same file."""
    for version, size in HEADER_BYTES.items():
        magic = block[MAGIC[version]]
        for order in "<>":
            if block[:4] == np.array(size, f"{order}i4").tobytes() and \
                    magic in (f"n+{version}\0".encode(), f"ni{version}\0".encode()):  # fmt: skip
                return version, order, magic.startswith(b"n+")
    return None


def _read_header(path: Path, file: BinaryIO, notes: list[str]) -> _Header:
    nibabel = nibabel_or_advice()
    block = file.read(max(HEADER_BYTES.values()))
    found = _version(block)
    if found is None:
        raise FormatError.about(path, "not a NIfTI file: want n+1 or n+2 in its header")
    version, order, single = found
    if not single:
        raise FormatError.about(path, "the header of a pair with .img: join them, nibabel.save("
                                      "nibabel.load('name.hdr'), 'name.nii')")  # fmt: skip
    size = HEADER_BYTES[version]
    if len(block) < size:
        raise FormatError.about(path, f"holds {len(block)} bytes, less than the header: cut short")
    of_version = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    fields = of_version(block[:size], endianness=order, check=False)
    offset = _offset(path, fields, notes)
    fields["vox_offset"] = 0  # checked above; nibabel would refuse or advise otherwise
    _repair(path, fields, notes)
    dtype = fields.get_data_dtype()
    if dtype.kind not in "iufc":
        problem = f"want an image of numbers, got {fields.get_value_label('datatype')}"
        raise FormatError.about(path, problem, "datatype")
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):  # both mean: not scaled
        slope, inter = 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise FormatError.about(path, f"want numbers, got {slope}, {inter}", "scl_slope, scl_inter")
    header = _Header(_shape(path, fields), dtype, offset, slope, inter, fields)
    _check_size(path, file, header)
    return header


def _offset(path: Path, fields: Any, notes: list[str]) -> int:
    value, least = float(fields["vox_offset"]), fields.single_vox_offset
    if value == 0:
        notes.append(f"vox_offset is 0, the image was taken to begin at byte {least}")
        return int(least)
    if not (least <= value < 2**62 and value == int(value)):
        raise FormatError.about(path, f"want a whole number from {least}, got {value:g}",
                                "vox_offset")  # fmt: skip
    return int(value)


def _repair(path: Path, fields: Any, notes: list[str]) -> None:
    """Let nibabel check the other fields: slight faults are mended and noted, others refused."""
    from nibabel.spatialimages import HeaderDataError

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(f"header: {record.getMessage()}")

    log = logging.Logger("nifti", logging.WARNING)
    log.addHandler(Notes())
    try:
        fields.check_fix(log, logging.ERROR)
    except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise FormatError.about(path, f"damaged header ({error})") from error


def _shape(path: Path, fields: Any) -> tuple[int, int, int]:
    count, *sides = (int(n) for n in fields["dim"])
    sides = sides[:count] if 1 <= count <= 7 else []
    if len(sides) < 2 or min(sides) < 1:
        problem = f"want 2 to 7 positive sizes, got {count}: {sides}"
        raise FormatError.about(path, problem, "dim")
    if max(sides[3:], default=1) > 1:
        problem = (f"{' x '.join(map(str, sides))} are {math.prod(sides[3:])} volumes, want one: "
                   "save it with nibabel's image.slicer[:, :, :, number]")
        raise FormatError.about(path, problem, "dim")
    x, y, z = (*sides, 1)[:3]
    return x, y, z


def _check_size(path: Path, file: BinaryIO, header: _Header) -> None:
    """Before anything of the promised size is asked of the memory."""
    there = path.stat().st_size
    packed = isinstance(file, gzip.GzipFile)
    if header.end > there * (DEFLATE_RATIO if packed else 1):
        sides = " x ".join(map(str, header.shape))
        raise FormatError.about(path, f"holds {there} bytes{', packed,' if packed else ''} but the "
                                      f"header promises {header.end} ({sides} of "
                                      f"{header.dtype.itemsize} bytes): cut short")  # fmt: skip


def _read_values(path: Path, file: BinaryIO, header: _Header, chosen: slice) -> Tensor:
    wanted = np.complex64 if header.dtype.kind == "c" else np.float32
    # The inter of complex values belongs to both parts.
    shift = header.inter * (1 + 1j) if header.dtype.kind == "c" else header.inter
    images = []
    for number in range(header.shape[2])[chosen]:
        file.seek(header.offset + number * header.slice_bytes)
        data = read_up_to(file, header.slice_bytes)
        if len(data) < header.slice_bytes:
            problem = f"ends within slice {number} of {header.shape[2]}: cut short"
            raise FormatError.about(path, problem, "image")
        image: NDArray[Any] = np.frombuffer(data, header.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # the outcome is checked below
            if (header.slope, header.inter) != (1, 0):
                image = header.slope * image.astype(np.promote_types(wanted, "f8")) + shift
            image = image.astype(wanted).reshape(header.shape[1::-1])
        if not np.isfinite(image).all():
            raise FormatError.about(path, f"slice {number} holds NaN or infinity", "image")
        images.append(torch.from_numpy(image))
    return torch.stack(images)


def read_up_to(file: BinaryIO, count: int) -> bytes:
    """Up to ``count`` bytes, piece by piece: a gzip file may hold less than its header promises."""
    parts = []
    while count > 0 and (part := file.read(min(count, CHUNK_BYTES))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _affine(path: Path, header: _Header, attributes: Attributes,
            notes: list[str]) -> Tensor | None:  # fmt: skip
    """Matrix from ``(slice, row, column, 1)`` to mm towards left, back and head."""
    fields = header.fields
    unit = int(fields["xyzt_units"]) & 7
    to_mm = LENGTHS_MM.get(unit, 1.0)
    pixdim = np.abs(np.asarray(fields["pixdim"][1:4], dtype=np.float64)) * to_mm
    codes = {form: int(fields[f"{form}_code"]) for form in ("sform", "qform")}
    if not any(codes.values()):
        notes.append("the file gives no position and orientation")
        attributes.update({f"pixel_{axis}_mm": float(size)
                           for axis, size in zip("xyz", pixdim, strict=True)
                           if 0 < size < math.inf})  # fmt: skip
        return None
    if unit not in LENGTHS_MM:
        notes.append("the unit of length is not given and was taken as mm")
    # The qform first only where it alone is in the scanner's coordinates.
    forms = sorted((form for form in codes if codes[form]), key=lambda form: codes[form] > ALIGNED)
    used = forms[0]
    if codes[used] > ALIGNED:
        told = fields.get_value_label(f"{used}_code")
        notes.append(f"positions are in {told} coordinates, not the scanner's")
    matrix = _form(path, header, used, to_mm)
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    for other in forms[1:]:
        try:
            second = _form(path, header, other, to_mm)
        except FormatError:
            notes.append(f"{other} is no geometry and was left out")
            continue
        corners = np.array(np.meshgrid(*([0, n - 1] for n in header.shape), [1])).reshape(4, -1)
        apart = float(np.linalg.norm(((matrix - second) @ corners)[:3], axis=0).max())
        if apart > AGREEMENT * lengths.min():
            notes.append(f"{used} and {other} are up to {apart:.3g} mm apart: {used} was used")
    if used == "sform" and not np.abs(pixdim / lengths - 1).max() <= AGREEMENT:
        notes.append(f"pixdim says {_by(pixdim)} mm, the sform {_by(lengths)} mm, which was used")
    codes_of_axes = nibabel_or_advice().aff2axcodes(matrix)
    attributes["orientation"] = "".join(codes_of_axes)
    if codes_of_axes[2] not in "SI":
        plane = "sagittal" if codes_of_axes[2] in "LR" else "coronal"
        notes.append(f"slices, along the file's z, are {plane}")
    return torch.from_numpy((np.diag([-1.0, -1, 1, 1]) @ matrix)[:, [2, 1, 0, 3]])


def _by(sides: NDArray[np.float64]) -> str:
    return " x ".join(f"{side:.4g}" for side in sides)


def _form(path: Path, header: _Header, form: str, to_mm: float) -> NDArray[np.float64]:
    from nibabel.spatialimages import HeaderDataError

    try:
        with np.errstate(all="ignore"):  # judged as a whole below
            matrix = np.array(getattr(header.fields, f"get_{form}")(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise FormatError.about(path, f"no rotation ({error})", form) from error
    matrix[:3] *= to_mm
    if not is_geometry(matrix):
        raise FormatError.about(
            path,
            "its matrix is not invertible: set the right one with nibabel, or its code to 0 for "
            "an image without a place",
            form,
        )
    return matrix


def is_geometry(matrix: NDArray[np.float64]) -> bool:
    if not np.abs(matrix).max() < FARTHEST_MM:  # false for NaN too
        return False
    largest, _, least = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(least > 1e-6 * largest)


def check_hu(path: Path, values: Tensor, notes: list[str]) -> None:
    if values.is_complex():
        raise FormatError.about(path, "complex values cannot be HU: read it with unit='arbitrary'")
    low, high = float(values.min()), float(values.max())
    if low < -1500:  # resampling alone overshoots by some hundred
        notes.append(f"values down to {low:g} HU lie below air: padding is not marked in the file")
    if low > -500:
        notes.append(f"values from {low:g} to {high:g} are unlike HU, where air is -1000")
