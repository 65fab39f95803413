"""NRRD images, ``.nrrd`` and ``.nhdr`` with its data file, as 3D Slicer and ITK write them.

A file's array ``(x, y, z)``, x fastest, is ``(slices, H, W)`` here: slices along z, rows along y,
columns along x, nothing flipped or resampled; ``Volume.affine`` tells where they run in the
patient. pynrrd is not used: it reads everything before it looks at the size, accepts a gzip stream
without its checksum, drops odd bytes and lets text values overflow, all silently.
"""

import bz2
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.errors import FormatError, StrPath, read_head
from recon.datasets.nifti import CHUNK_BYTES, DEFLATE_RATIO, EXACT, check_hu, read_up_to
from recon.datasets.nrrd_geometry import affine_of
from recon.datasets.nrrd_header import Header, is_nrrd, read_header
from recon.datasets.scan import Attributes, Layout, select
from recon.datasets.volume import Volume, affine_of_slices

# A byte of the file unfolds into no more; bzip2's runs of runs, measured, stay below.
RATIOS = {"gzip": DEFLATE_RATIO, "bzip2": 1 << 21}
TEXT_CHUNK = 1 << 20
LONGEST_NUMBER = 64  # signs; printf writes 24 of any double with %.17g
IN_NUMBERS = b"0123456789+-.eE \t\r\n\v\fnaifytNAIFYT"


def read_nrrd(path: StrPath, slices: slice | None = None, *, unit: str = "arbitrary") -> Volume:
    """Read an image of two or three dimensions, one real number per voxel, as float32.

    Only the chosen ``slices`` (along z) are kept, and of raw and packed files nothing behind them
    is read. ``unit`` is ``HU`` or ``arbitrary``: an NRRD file does not say. ``affine`` comes from
    ``space directions`` and ``space origin``, or from ``spacings``; what it takes for granted is
    noted. Free text of the header and its key/value pairs, which may name a patient, are not
    read. A data file is opened only in the folder of its header, or below.

    Raises
    ------
    FormatError
        The file is damaged, lists several data files, holds vectors, colours or several volumes,
        NaN or infinity, or its geometry is no geometry.
    """
    if unit not in ("HU", "arbitrary"):
        raise ValueError(f"read_nrrd: unit: want 'HU' or 'arbitrary', got {unit!r}")
    path = Path(path)
    notes: list[str] = []
    attributes: Attributes = {}
    header = read_header(path, notes)
    chosen = select(slices, header.shape[2])
    affine = affine_of_slices(affine_of(path, header, attributes, notes), chosen)
    if header.encoding == "ascii":
        values = _read_text(path, header, chosen, notes)
    else:
        values = _read_values(path, header, chosen, notes)
    if header.dtype.str[1:] not in EXACT:
        notes.append(f"values were {header.dtype.newbyteorder('=')}, cast to float32")
    if unit == "HU":
        check_hu(path, values, notes)
    if notes:
        attributes["note"] = "; ".join(notes)
    return Volume(values, unit, affine, None, attributes, path.name, "nrrd")


def layout_nrrd(path: StrPath) -> Layout:
    """Shape ``(x, y, z)`` and dtype from the header, checked against the size of the file."""
    path = Path(path)
    header = read_header(path, [])
    with _opened(path, header):
        keys = {"image": {"shape": header.shape, "dtype": str(header.dtype.newbyteorder("="))}}
    return Layout("nrrd", header.shape[2], keys)


def data_file(path: StrPath) -> Path | None:
    """The file that holds the image of an NRRD header of its own; None of anything else."""
    path = Path(path)
    try:
        data = read_header(path, []).data if is_nrrd(read_head(path)) else path
    except FormatError:
        return None
    return None if data == path else data


@contextmanager
def _opened(path: Path, header: Header) -> Iterator[tuple[BinaryIO, int]]:
    """The unpacked bytes, to be read forwards only, and where in them the image begins."""
    with header.data.open("rb") as file, _damage_told(path, header):
        file.seek(header.start)
        _skip_lines(path, file, header.line_skip)
        begin = _begin(path, header, file)
        with _unpacked(file, header.encoding) as stream:
            yield stream, begin


def _begin(path: Path, header: Header, file: BinaryIO) -> int:
    """Refuses what is too short before anything of the promised size is asked of the memory."""
    start, size = file.tell(), header.data.stat().st_size
    skip, wanted = header.byte_skip, header.image_bytes
    packed = header.encoding in RATIOS
    if packed:
        first, end = 0, (size - start) * RATIOS[header.encoding]
        if skip < 0:  # counted from an end that only unpacking finds
            with _unpacked(file, header.encoding) as stream:
                end = sum(map(len, iter(lambda: stream.read(CHUNK_BYTES), b"")))
            file.seek(start)
    else:
        first, end = start, size
        if header.encoding == "ascii":  # a digit and a space each
            wanted = 2 * (wanted // header.dtype.itemsize) - 1
    begin = first + skip if skip >= 0 else end + skip + 1 - wanted
    if begin < first or begin + wanted > end:
        sides = " x ".join(map(str, header.shape))
        problem = (f"holds {size} bytes{', packed,' if packed else ''} but the header promises "
                   f"{sides} values of {header.dtype.itemsize} bytes: cut short")  # fmt: skip
        raise FormatError.about(path, problem, "image" if header.data == path else "data file")
    return begin


def _skip_lines(path: Path, file: BinaryIO, count: int) -> None:
    while count > 0:
        line = file.readline(CHUNK_BYTES)
        if not line:
            raise FormatError.about(path, f"the file ends {count} lines too early", "line skip")
        count -= line.endswith(b"\n")


@contextmanager
def _unpacked(file: BinaryIO, encoding: str) -> Iterator[BinaryIO]:
    """From where ``file`` stands; going backwards would end at its first byte instead."""
    if encoding == "gzip":
        with gzip.GzipFile(fileobj=file) as stream:
            yield cast(BinaryIO, stream)
    elif encoding == "bzip2":
        with bz2.BZ2File(file) as stream:
            yield cast(BinaryIO, stream)
    else:
        yield file


@contextmanager
def _damage_told(path: Path, header: Header) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the data
        problem = f"the {header.encoding} data are cut short or damaged, copy them again ({error})"
        raise FormatError.about(path, problem) from error


def _read_values(path: Path, header: Header, chosen: slice, notes: list[str]) -> Tensor:
    images = []
    with _opened(path, header) as (stream, begin):
        for number in range(header.shape[2])[chosen]:
            stream.seek(begin + number * header.slice_bytes)
            data = read_up_to(stream, header.slice_bytes)
            if len(data) < header.slice_bytes:
                problem = f"ends within slice {number} of {header.shape[2]}: cut short"
                raise FormatError.about(path, problem, "image")
            images.append(_image(path, np.frombuffer(data, header.dtype), number, header))
        if number == header.shape[2] - 1 and header.byte_skip >= 0:
            _note_rest(stream, notes)
    return torch.stack(images)


def _image(path: Path, values: NDArray[np.generic], number: int, header: Header) -> Tensor:
    with np.errstate(over="ignore", invalid="ignore"):  # the outcome is checked here
        image = values.astype(np.float32).reshape(header.shape[1::-1])
    if not np.isfinite(image).all():
        raise FormatError.about(path, f"slice {number} holds NaN or infinity", "image")
    return torch.from_numpy(image)


def _note_rest(stream: BinaryIO, notes: list[str]) -> None:
    """To the end also because that is where the checksum of packed data is."""
    rest = 0
    try:
        while part := stream.read(CHUNK_BYTES):
            rest += len(part)
    except gzip.BadGzipFile as error:
        # behind a stream whose checksum was right; a wrong one is told otherwise
        if not str(error).startswith("Not a gzipped file"):
            raise
        notes.append("bytes behind the gzip data were left out")
    if rest:
        notes.append(f"{rest} bytes behind the image were left out")


def _read_text(path: Path, header: Header, chosen: slice, notes: list[str]) -> Tensor:
    """All of it, as nothing tells where in a text a slice begins."""
    count = header.image_bytes // header.dtype.itemsize
    parts: list[NDArray[np.float32]] = []
    found, before = 0, b""
    with _opened(path, header) as (file, begin):
        file.seek(begin)
        while True:
            piece = file.read(TEXT_CHUNK)
            *words, before = _words(path, before + piece, whole=not piece)
            if words:
                parts.append(_numbers(path, words[: count - found], header))
            found += len(words)
            if not piece:
                break
    if found < count:
        raise FormatError.about(path, f"want {count} numbers, got {found}: cut short", "image")
    if found > count:
        notes.append(f"{found - count} numbers behind the image were left out")
    values = np.concatenate(parts).reshape(header.shape[::-1])
    slices = range(header.shape[2])[chosen]
    return torch.stack([_image(path, values[number], number, header) for number in slices])


def _words(path: Path, text: bytes, whole: bool) -> list[bytes]:
    """Of a piece of text; the last one, which may go on in the next piece, is empty at the end."""
    if text.translate(None, IN_NUMBERS):
        raise FormatError.about(path, "want numbers with white space between them", "image")
    words = text.split()
    if whole or not words or text[-1:].isspace():
        words.append(b"")
    if max(map(len, words)) > LONGEST_NUMBER:
        raise FormatError.about(path, f"a number of more than {LONGEST_NUMBER} signs", "image")
    return words


def _numbers(path: Path, words: list[bytes], header: Header) -> NDArray[np.float32]:
    try:
        values = np.fromiter(map(float, words), np.float64, len(words))
    except ValueError as error:
        raise FormatError.about(path, f"no number ({error})", "image") from error
    if header.dtype.kind in "iu":
        held = np.iinfo(header.dtype)
        fits = (values == np.rint(values)) & (held.min <= values) & (values <= held.max)
        if not fits.all():
            first = words[int(np.argmin(fits))].decode()
            raise FormatError.about(path, f"{first} is no {header.dtype}", "image")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
