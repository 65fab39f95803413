"""Headers of NRRD files: the fields, the size and type of the image, and where its bytes are.

Written from the format's definition (teem.sourceforge.net/nrrd/format.html). pynrrd would take
sizes of 2.5 for 2 and key/value pairs for fields, and refuses fields in capitals.
"""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from recon.datasets.errors import FormatError, read_head

MAGIC = b"NRRD0"
VERSIONS = re.compile(rb"NRRD(00\.01|000[1-5])\r?\n?")
LONGEST_LINE, MOST_BYTES = 1 << 20, 1 << 24
FIELDS = frozenset((
    "dimension", "type", "blocksize", "encoding", "endian", "content", "min", "max", "oldmin",
    "oldmax", "datafile", "lineskip", "byteskip", "number", "sampleunits", "space",
    "spacedimension", "spaceunits", "spaceorigin", "spacedirections", "measurementframe", "sizes",
    "spacings", "thicknesses", "axismins", "axismaxs", "centers", "centerings", "labels", "units",
    "kinds"))  # fmt: skip
TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int",
           "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
ENCODINGS = {"raw": "raw", "txt": "ascii", "text": "ascii", "ascii": "ascii", "gz": "gzip",
             "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"}  # fmt: skip
FREE_TEXT = ("content", "labels", "sampleunits", "number")  # never looked at
NUMERIC = re.compile(r'[-+.,()\deE"? ]{0,40}|[-+]?(nan|inf)', re.ASCII | re.IGNORECASE)
# Words that are looked for, or are refused by their name: others are not told.
WORDS = frozenset((
    *FIELDS, *ENCODINGS, "hex", "zrl", "block", "big", "little", "domain", "space", "time", "list",
    "point", "vector", "covariant-vector", "normal", "stub", "scalar", "complex", "2-vector",
    "3-color", "rgb-color", "hsv-color", "xyz-color", "4-color", "rgba-color", "3-vector",
    "3-gradient", "3-normal", "4-vector", "quaternion", "2d-symmetric-matrix", "2d-matrix",
    "3d-symmetric-matrix", "3d-masked-symmetric-matrix", "3d-matrix"))  # fmt: skip
OF_SPACE = ("domain", "space", "none", "???")  # kinds of an axis that may be one of the image's
WHOLE = re.compile(r"[-+]?\d{1,18}", re.ASCII)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity)",
                    re.ASCII | re.IGNORECASE)  # fmt: skip


class Header(NamedTuple):
    shape: tuple[int, int, int]
    """Of the axes that are the image's, the fastest first; z is 1 in a file of one plane."""
    axes: tuple[int, ...]
    """The numbers of these axes in the file, 2 or 3 of them."""
    dtype: np.dtype[Any]
    encoding: str
    """``raw``, ``ascii``, ``gzip`` or ``bzip2``."""
    data: Path
    start: int
    """Where in ``data`` the header ends, or 0 in a file of its own."""
    line_skip: int
    byte_skip: int
    fields: dict[str, str]
    """By their names in small letters, without spaces."""

    @property
    def slice_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def image_bytes(self) -> int:
        return self.shape[2] * self.slice_bytes


def is_nrrd(head: bytes) -> bool:
    """Whether the first bytes of a file are NRRD's."""
    return head.startswith(MAGIC)


def read_header(path: Path, notes: list[str]) -> Header:
    """What the header says, as far as an image needs it; nothing is read of the image."""
    read_head(path)
    with path.open("rb") as file:
        fields, ended = _fields(path, file, notes)
        start = file.tell()
    for wanted in ("type", "dimension", "sizes", "encoding"):
        if wanted not in fields:
            what = "damaged" if ended else "cut short"
            raise FormatError.about(path, f"the header has no such field: {what}", wanted)
    encoding = _encoding(path, fields)
    axes, shape = _axes(path, fields)
    data = path
    if "datafile" in fields:
        data, start = _detached(path, fields["datafile"]), 0
    elif not ended:
        raise FormatError.about(path, "ends within its header: cut short")
    if "oldmin" in fields or "oldmax" in fields:
        notes.append("old min and old max say that values were quantised: they are given as stored")
    skips = []
    for key, name, least in (("lineskip", "line skip", 0), ("byteskip", "byte skip", -(2**62))):
        skips.append(whole_number(path, name, fields.get(key, "0"), least))
    if skips[1] < 0 and encoding == "ascii":
        raise FormatError.about(path, "counts from the end, which is not for text", "byte skip")
    return Header(shape, axes, _dtype(path, fields, encoding), encoding, data, start, skips[0],
                  skips[1], fields)  # fmt: skip


def _fields(path: Path, file: BinaryIO, notes: list[str]) -> tuple[dict[str, str], bool]:
    """By name, and whether an empty line ended them; pairs ``key:=value`` may name a patient."""
    first = file.readline(32)
    if VERSIONS.fullmatch(first) is None:
        problem = "want NRRD of a version up to 5, got another" if is_nrrd(first) else \
            "not an NRRD file: want NRRD0001 to NRRD0005 in its first line"  # fmt: skip
        raise FormatError.about(path, problem)
    fields: dict[str, str] = {}
    others, number = 0, 1
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE or file.tell() > MOST_BYTES:
            raise FormatError.about(path, f"its header does not end within {file.tell()} bytes")
        text = line.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
        if not text:
            break
        if text.startswith("#"):
            continue
        before, colon, value = text.partition(":")
        name = "".join(before.lower().split())
        if not colon:
            raise FormatError.about(path, f"line {number} of the header is no field: damaged")
        if value.startswith("=") or (name not in FIELDS and ":=" in value):
            continue
        if name not in FIELDS:
            others += 1
        elif ":=" in value and name not in FREE_TEXT:  # the line of a pair has lost its beginning
            raise FormatError.about(path, "goes on as a pair with a key: damaged",
                                    before.strip().lower())
        elif name in fields:
            raise FormatError.about(path, "twice in the header: damaged", before.strip().lower())
        else:
            fields[name] = value.strip()
        if not line.endswith(b"\n"):
            notes.append("the header's last line does not end: it may be cut short")
    if others:
        notes.append(f"{others} line(s) of the header are no fields of NRRD and were left out")
    return fields, bool(line)


def _encoding(path: Path, fields: dict[str, str]) -> str:
    told = fields["encoding"].lower()
    if told not in ENCODINGS:
        problem = f"want raw, ascii, gzip or bzip2, got {quoted(told)}: save it in one of these"
        raise FormatError.about(path, problem, "encoding")
    return ENCODINGS[told]


def _dtype(path: Path, fields: dict[str, str], encoding: str) -> np.dtype[Any]:
    told = " ".join(fields["type"].lower().split())
    code = next((code for code, names in TYPES.items() if told in names), None)
    if code is None:
        problem = f"want numbers such as short or float, got {quoted(told)}"
        raise FormatError.about(path, problem, "type")
    dtype = np.dtype(code)
    if dtype.itemsize == 1 or encoding == "ascii":
        return dtype
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if order is None:
        problem = f"want little or big, got {quoted(fields.get('endian', ''))}"
        raise FormatError.about(path, problem, "endian")
    return np.dtype(f"{order}{code}")


def _axes(path: Path, fields: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """The two or three axes that are the image's; others must have one sample."""
    dimension = whole_number(path, "dimension", fields["dimension"], 1)
    sizes = [whole_number(path, "sizes", text, 1) for text in fields["sizes"].split()]
    if len(sizes) != dimension:
        raise FormatError.about(path, f"want {dimension}, as dimension says, got {len(sizes)}",
                                "sizes")  # fmt: skip
    kinds = per_axis(path, fields, "kinds", dimension) or [""] * dimension
    directions = vectors(path, fields, dimension) or [()] * dimension
    axes = []
    for axis, (size, kind, direction) in enumerate(zip(sizes, kinds, directions, strict=True)):
        if direction is not None and kind.lower() in ("", *OF_SPACE):
            axes.append(axis)
        elif size > 1:
            what = f"kind {quoted(kind)}{', no direction' if direction is None else ''}"
            problem = (f"axis {axis + 1} of {dimension} ({what}) holds {size} values for each "
                       "voxel, want one: save them as images of their own")
            raise FormatError.about(path, problem, "kinds" if "kinds" in fields else "sizes")
    while len(axes) > 3 and sizes[axes[-1]] == 1:
        axes.pop()
    if len(axes) not in (2, 3):
        told = " x ".join(map(str, sizes))
        problem = f"want an image of 2 or 3 dimensions, got {len(axes)} ({told})"
        raise FormatError.about(path, problem, "dimension")
    x, y, z = ([sizes[axis] for axis in axes] + [1])[:3]
    return tuple(axes), (x, y, z)


def _detached(path: Path, told: str) -> Path:
    """The one data file of a header, in its folder or below: elsewhere may be anything."""
    words = told.split()
    numbered = "%" in told and len(words) > 3 and all(map(WHOLE.fullmatch, words[-3:]))
    if numbered or words[:1] == ["LIST"]:
        raise FormatError.about(path, "a list of files: save the image in one file", "data file")
    names = (PurePosixPath(told), PureWindowsPath(told))
    if any(name.is_absolute() or name.anchor or ".." in name.parts for name in names):
        problem = ("want a file beside the header, got one of another folder: move it here and "
                   "write its bare name")  # fmt: skip
        raise FormatError.about(path, problem, "data file")
    data = path.parent / told
    try:
        there = data.is_file()
    except (OSError, ValueError):  # too long a name, or one with a zero byte
        there = False
    if not told or not there:
        raise FormatError.about(path, "no file of that name beside the header: copy both",
                                "data file")  # fmt: skip
    return data


def quoted(text: str) -> str:
    """For an error: a pair with a patient's name may have run into the line before it."""
    return repr(text) if NUMERIC.fullmatch(text) or text.lower() in WORDS else "something else"


def whole_number(path: Path, key: str, text: str, least: int) -> int:
    if WHOLE.fullmatch(text) and int(text) >= least:
        return int(text)
    bound = "" if least < -1 else f" from {least}"
    raise FormatError.about(path, f"want a whole number{bound}, got {quoted(text)}", key)


def numbers(path: Path, key: str, texts: list[str]) -> list[float]:
    for text in texts:
        if NUMBER.fullmatch(text) is None:
            raise FormatError.about(path, f"want numbers, got {quoted(text)}", key)
    return [float(text) for text in texts]


def per_axis(path: Path, fields: dict[str, str], name: str, count: int) -> list[str] | None:
    """The words of a field that has one for each axis; None without the field."""
    if name not in fields:
        return None
    words = fields[name].split()
    if len(words) != count:
        raise FormatError.about(path, f"want {count}, one of each axis, got {len(words)}", name)
    return words


def vectors(path: Path, fields: dict[str, str],
            count: int) -> list[tuple[float, ...] | None] | None:  # fmt: skip
    """``space directions``: for each axis a vector or None; None without the field."""
    if "spacedirections" not in fields:
        return None
    key = "space directions"
    parts = re.findall(r"none|\([^()]*\)|\S+", fields["spacedirections"].lower())
    found = [None if part == "none" else vector(path, key, part) for part in parts]
    if len(found) != count:
        raise FormatError.about(path, f"want {count}, one of each axis, got {len(found)}", key)
    if len({len(one) for one in found if one is not None}) > 1:
        raise FormatError.about(path, "want vectors of one length", key)
    return found


def vector(path: Path, key: str, text: str) -> tuple[float, ...]:
    if not (text.startswith("(") and text.endswith(")")):
        raise FormatError.about(path, f"want vectors such as (1,0,0), got {quoted(text)}", key)
    return tuple(numbers(path, key, [one.strip() for one in text[1:-1].split(",")]))
