"""The XML header of an ISMRMRD file: matrix, fields of view, limits of the counters."""

from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from recon.datasets.errors import FormatError, StrPath
from recon.datasets.scan import Attributes
from recon.datasets.scan_header import HEADER_BYTES, NoDoctype

LARGEST = 65535  # 16 bits in the format


class Space(NamedTuple):
    """A matrix ``(x, y, z)``, x the readout, and the field of view that it covers."""

    size: tuple[int, int, int]
    fov_mm: tuple[float, float, float] | None


class Encoding(NamedTuple):
    """How the lines of one encoding fill k-space."""

    encoded: Space
    recon: Space
    centre: int | None
    """Counter of the line through the middle of k-space."""
    slices: int
    """How many slices the limits promise, 0 if they do not say."""
    trajectory: str | None
    calibration: str | None

    def pixels(self, axis: int) -> int | None:
        """How many pixels of the encoded space's size the image's field of view takes.

        The image's own number where the two differ by rounding only.
        """
        if self.encoded.fov_mm is None or self.recon.fov_mm is None:
            return None
        count = self.recon.fov_mm[axis] * self.encoded.size[axis] / self.encoded.fov_mm[axis]
        want = self.recon.size[axis]
        if abs(count - want) <= 0.5 + 0.005 * want:
            return want
        return max(1, round(min(count, LARGEST)))

    @property
    def without_oversampling(self) -> int | None:
        """The readout's size without oversampling; None unless both spaces have one pixel size."""
        size = self.recon.size[0]
        return size if self.pixels(0) == size < self.encoded.size[0] else None

    def attributes(self) -> Attributes:
        """Both sizes, and the distance of pixels that the k-space resolves."""
        found: Attributes = {}
        for name, space in (("encoded", self.encoded), ("recon", self.recon)):
            found |= {f"{name}_{axis}": n for axis, n in zip("xyz", space.size, strict=True)}
        if self.encoded.fov_mm is not None:
            x, y = (self.encoded.fov_mm[i] / self.encoded.size[i] for i in (0, 1))
            found |= {"pixel_x_mm": x, "pixel_y_mm": y}
        return found


class MRDHeader(NamedTuple):
    """What a reconstruction needs of the header. Nothing about the patient or study is read."""

    encodings: list[Encoding]
    noise_bandwidth: float
    """Noise bandwidth of the receiver over the sampling bandwidth, in the noise scan."""
    attributes: Attributes


def parse_mrd_header(path: StrPath, key: str, array: NDArray[Any], notes: list[str]) -> MRDHeader:
    """Read the header from ``array``, which is the dataset ``key``, whatever its namespace prefix.

    Raises
    ------
    FormatError
        It is no XML, has a DOCTYPE or more than a megabyte, or lacks the size of the k-space.
    """
    if array.size != 1:
        raise FormatError.about(path, f"want one XML text, got {array.size}", key)
    value = array.reshape(-1)[0]
    text = value.tobytes() if isinstance(value, np.void) else value
    text = text.encode() if isinstance(text, str) else text
    if not isinstance(text, bytes):
        raise FormatError.about(path, f"want XML text, got {type(value).__name__}", key)
    if len(text) > HEADER_BYTES:
        raise FormatError.about(path, f"{len(text)} bytes is too large for a header", key)
    try:
        parser = ElementTree.XMLParser(target=NoDoctype())
        root = ElementTree.fromstring(text.rstrip(b"\0"), parser)
    except (ValueError, LookupError, ElementTree.ParseError) as error:  # LookupError: encodings
        raise FormatError.about(path, f"not a readable XML header ({error})", key) from error
    encodings = [_encoding(path, key, e) for e in root if _tag(e) == "encoding"]
    if not encodings:
        raise FormatError.about(path, "no encoding: the size of the k-space is not known", key)
    system = _child(root, "acquisitionSystemInformation")
    sequence = _child(root, "sequenceParameters")
    attributes: Attributes = {}
    for name, element, field in (
        ("field_strength_T", system, "systemFieldStrength_T"),
        ("repetition_time_ms", sequence, "TR"),
        ("echo_time_ms", sequence, "TE"),
        ("inversion_time_ms", sequence, "TI"),
        ("flip_angle_deg", sequence, "flipAngle_deg"),
    ):
        found = [] if element is None else [e for e in element if _tag(e) == field]
        values = [_float(e) for e in found]
        if len(values) > 1:
            notes.append(f"{len(values)} values of {field}: not taken over")
        elif values and np.isfinite(values[0]):
            attributes[name] = values[0]
        elif values:
            notes.append(f"{field} of the header is no number: not taken over")
    bandwidth = _number(path, key, system, "relativeReceiverNoiseBandwidth")
    return MRDHeader(encodings, bandwidth or 1.0, attributes)


def _encoding(path: StrPath, key: str, element: ElementTree.Element) -> Encoding:
    spaces = []
    for name in ("encodedSpace", "reconSpace"):
        space = _child(element, name)
        x, y, z = (_number(path, key, space, "matrixSize", axis) for axis in "xyz")
        if x is None or y is None:
            raise FormatError.about(path, "no matrixSize", f"{key}: {name}")
        size = int(x), int(y), 1 if z is None else int(z)
        if not 1 <= min(size) <= max(size) <= LARGEST:
            raise FormatError.about(path, f"a matrix of {size}", f"{key}: {name}")
        fov = [_number(path, key, space, "fieldOfView_mm", axis) or 0.0 for axis in "xyz"]
        known = min(fov[:2]) >= 1e-3  # zero stands for unknown
        spaces.append(Space(size, (fov[0], fov[1], fov[2]) if known else None))
    limits = _child(element, "encodingLimits")
    centre = _number(path, key, limits, "kspace_encoding_step_1", "center")
    last = _number(path, key, limits, "slice", "maximum")
    trajectory = _child(element, "trajectory")
    calibration = _child(_child(element, "parallelImaging"), "calibrationMode")
    return Encoding(
        spaces[0],
        spaces[1],
        None if centre is None else int(centre),
        0 if last is None else int(last) + 1,
        *(None if e is None else (e.text or "").strip()[:20] for e in (trajectory, calibration)),
    )


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _child(element: ElementTree.Element | None, name: str) -> ElementTree.Element | None:
    return None if element is None else next((e for e in element if _tag(e) == name), None)


def _float(element: ElementTree.Element) -> float:
    try:
        return float(element.text or "")
    except ValueError:
        return np.nan


def _number(path: StrPath, key: str, element: ElementTree.Element | None,
            *names: str) -> float | None:  # fmt: skip
    """The number at a chain of children, None where one is not there."""
    for name in names:
        element = _child(element, name)
    if element is None:
        return None
    value = _float(element)
    if not 0 <= value < 1e6:
        raise FormatError.about(path, f"want a number, got {(element.text or '')[:20]!r}",
                                f"{key}: {'/'.join(names)}")  # fmt: skip
    return value
