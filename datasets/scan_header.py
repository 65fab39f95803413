"""The scan header of ISMRMRD, XML, which fastMRI's files hold too."""

from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from recon.datasets.errors import FormatError, StrPath

HEADER = "ismrmrd_header"
HEADER_BYTES = 1 << 20  # fastMRI's are a few kilobytes


class Header(NamedTuple):
    """What a reconstruction needs of the scan header; sizes are ``(x, y, z)``, x the readout."""

    encoded_size: tuple[int, int, int] | None = None
    recon_size: tuple[int, int, int] | None = None
    recon_fov_mm: tuple[float, float, float] | None = None
    padding: tuple[int, int] | None = None
    """Columns ``[left, right)`` were acquired; the rest of the encoded width never was."""
    encoded_fov_mm: tuple[float, float, float] | None = None


class NoDoctype(ElementTree.TreeBuilder):
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
        parser = ElementTree.XMLParser(target=NoDoctype())
        root = ElementTree.fromstring(data.rstrip(b"\0"), parser)
    except (ValueError, LookupError, ElementTree.ParseError) as error:  # LookupError: encodings
        raise FormatError.about(path, f"not a readable XML header ({error})", HEADER) from error

    def size(space: str) -> tuple[int, int, int] | None:
        x, y, z = (_whole(path, root, space, "matrixSize", axis) for axis in "xyz")
        return None if x is None or y is None else (x, y, 1 if z is None else z)

    def fov(space: str) -> tuple[float, float, float] | None:
        x, y, z = (_number(path, root, space, "fieldOfView_mm", axis) for axis in "xyz")
        return None if x is None or y is None else (x, y, 1.0 if z is None else z)

    encoded = size("encodedSpace")
    limits = ("encodingLimits", "kspace_encoding_step_1")
    centre, last = (_whole(path, root, *limits, end) for end in ("center", "maximum"))
    padding = None
    if encoded is not None and centre is not None and last is not None:
        left = encoded[1] // 2 - centre
        padding = (left, left + last + 1)
    return Header(encoded, size("reconSpace"), fov("reconSpace"), padding, fov("encodedSpace"))


def _number(path: StrPath, root: ElementTree.Element, *names: str) -> float | None:
    """The number at a chain of elements in an encoding, the first in the document."""
    # at any depth and in any namespace: files that were converted nest and prefix differently
    found = root.find(".//" + "//".join("{*}" + name for name in ("encoding", *names)))
    if found is None:
        return None
    try:
        value = float(found.text or "")
    except ValueError:
        value = np.nan
    if not 0 <= value < 1e6:
        raise FormatError.about(path, f"want a number, got {found.text!r}", _element(*names))
    return value


def _whole(path: StrPath, root: ElementTree.Element, *names: str) -> int | None:
    value = _number(path, root, *names)
    if value is not None and value != int(value):
        raise FormatError.about(path, f"want a whole number, got {value:g}", _element(*names))
    return None if value is None else int(value)


def _element(*names: str) -> str:
    return f"{HEADER}: {'/'.join(names)}"
