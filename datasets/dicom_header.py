"""What one DICOM file says of its slice, and which files are slices at all."""

import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from recon.datasets.errors import HEAD_BYTES, FormatError

KINDS = {"1.2.840.10008.5.1.4.1.1.2": "dicom_ct", "1.2.840.10008.5.1.4.1.1.4": "dicom_mr"}
# of CT and MR images; the numbers between are of spectra and of other objects
ENHANCED = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2.1", "2.2", "4.1", "4.3", "4.4"))
DIRECTORY = "1.2.840.10008.1.3.10"
LARGEST = 1e12  # nothing that is measured is larger, in any unit of DICOM
PROJECTION_ANGLE = 0x70311001  # DICOM-CT-PD calls its projections CT images

NUMBERS = frozenset({
    "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "KVP", "RepetitionTime",
    "EchoTime", "InversionTime", "FlipAngle", "MagneticFieldStrength", "TriggerTime",
    "DiffusionBValue",
})  # fmt: skip
TEXTS = frozenset({
    "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber",
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ImageType", "Modality",
    "PhotometricInterpretation", "RescaleType", "LossyImageCompression", "Manufacturer",
    "ManufacturerModelName", "BodyPartExamined", "PatientPosition", "ConvolutionKernel",
})  # fmt: skip


class Header(NamedTuple):
    """What one file says of its slice; of what points to a patient only the UIDs are kept."""

    path: Path
    kind: str
    syntax: str
    numbers: dict[str, tuple[float, ...]]
    texts: dict[str, tuple[str, ...]]
    has_table: bool
    """Its values go through a ModalityLUTSequence."""

    def number(self, keyword: str) -> float | None:
        """The only value of an element; None where there is no element."""
        values = self.numbers[keyword]
        if len(values) > 1:
            raise FormatError.about(self.path, f"want one number, got {len(values)}", keyword)
        return values[0] if values else None

    def whole(self, keyword: str) -> int:
        """A whole number that has to be there."""
        value = self.number(keyword)
        if value is None:
            raise FormatError.about(self.path, "missing: the file is damaged", keyword)
        if value != int(value):
            raise FormatError.about(self.path, f"want a whole number, got {value:g}", keyword)
        return int(value)

    def text(self, keyword: str) -> str:
        """The values of an element as one text, empty where there is no element."""
        return ", ".join(self.texts[keyword])

    def values(self, keyword: str) -> tuple[float, ...] | tuple[str, ...]:
        return self.numbers[keyword] if keyword in NUMBERS else self.texts[keyword]


class NoSlice(NamedTuple):
    """A DICOM file that is no slice."""

    what: str
    advice: str = ""


SCOUT = NoSlice("scout (LOCALIZER)", "a projection without HU")
PROJECTION = NoSlice("projection (DICOM-CT-PD)", "a measurement, not a slice")


def has_signature(head: bytes) -> bool:
    """Whether a file begins as DICOM does: ``DICM`` after a preamble, or without one a first tag.

    Files of the time before preambles begin with group 2 or 8 and a short first element.
    """
    if head[128:132] == b"DICM":
        return True
    first = head[:1] in (b"\x02", b"\x08") and head[1:2] == b"\0" and head[3:4] == b"\0"
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return first and len(head) >= 8 and (explicit or head[5:8] == b"\0\0\0")


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom warns and logs of values against the rules, and quotes them, names and all.

    What is used of a file is checked here instead.
    """
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def parse(path: Path, keywords: list[Any] | None, pixels: bool) -> Any:
    """A pydicom dataset of all elements or of ``keywords``, with or without pixel data.

    pydicom's error texts may quote any element of the file, so they are not passed on.
    """
    from pydicom import dcmread

    with path.open("rb") as file, quiet():
        preamble = file.read(HEAD_BYTES)[128:132] == b"DICM"
        file.seek(0)
        try:
            return dcmread(file, force=not preamble, specific_tags=keywords,
                           stop_before_pixels=not pixels)  # fmt: skip
        except Exception as error:
            problem = f"not a whole DICOM file, copy or export it again ({type(error).__name__})"
            raise FormatError.about(path, problem) from None


def syntax_of(dataset: Any) -> str:
    """The transfer syntax; without file meta information, what the parser found it to be."""
    stated = str(dataset.file_meta.get("TransferSyntaxUID") or "")
    implicit, little = dataset.original_encoding
    found = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
    return stated or (found if little else "1.2.840.10008.1.2.2")


def read_header(path: Path) -> Header | NoSlice:
    """The header of a file that begins as DICOM does.

    Raises
    ------
    FormatError
        It is cut short, or one of the elements used holds something else than it should.
    """
    keywords = [*sorted(NUMBERS | TEXTS), "ModalityLUTSequence", PROJECTION_ANGLE]
    dataset = parse(path, keywords, pixels=False)
    with quiet():
        numbers = {k: tuple(_number(path, k, v) for v in _items(path, dataset, k)) for k in NUMBERS}
        texts = {k: tuple(_text(path, k, v) for v in _items(path, dataset, k)) for k in TEXTS}
        try:
            syntax = syntax_of(dataset)
            stored_as = str(dataset.file_meta.get("MediaStorageSOPClassUID") or "")
            has_table, projection = "ModalityLUTSequence" in dataset, PROJECTION_ANGLE in dataset
        except Exception as error:
            problem = f"cannot be read ({type(error).__name__})"
            raise FormatError.about(path, problem, "file meta information") from None
    header = Header(path, "", syntax, numbers, texts, has_table)
    uid = header.text("SOPClassUID") or stored_as  # some anonymisers empty the first
    kind = KINDS.get(uid, "")
    if not uid:
        kind = {"CT": "dicom_ct", "MR": "dicom_mr"}.get(header.text("Modality"), "")
        if not header.text("Modality"):
            problem = "missing, as is the Modality: the file is damaged"
            raise FormatError.about(path, problem, "SOPClassUID")
    if not kind:
        if not (uid_name(uid) or header.text("Modality")):  # cut within the UID itself
            problem = "of no known kind and without a Modality: the file is damaged"
            raise FormatError.about(path, problem, "SOPClassUID")
        return _no_slice(uid)
    if projection:
        return PROJECTION
    if kind == "dicom_ct" and texts["ImageType"][2:3] == ("LOCALIZER",):
        return SCOUT
    return header._replace(kind=kind)


def uid_name(uid: str) -> str:
    """What the standard calls it; empty for others, which may be unique to a hospital."""
    from pydicom.uid import UID

    if not re.fullmatch(r"[0-9.]{1,64}", uid):
        return ""
    with quiet():
        name = UID(uid).name
    return "" if name == uid else name


def _no_slice(uid: str) -> NoSlice:
    if uid == DIRECTORY:
        return NoSlice("DICOMDIR", "an index of other files: name the folder of the images")
    name = uid_name(uid)
    if not name:
        return NoSlice("object of unknown kind")
    if uid in ENHANCED:
        return NoSlice(name, "multi-frame, which is not read: export it as single-frame images")
    return NoSlice(name)


def _items(path: Path, dataset: Any, keyword: str) -> list[Any]:
    try:
        value = dataset.get(keyword)
    except Exception as error:
        problem = f"its value breaks DICOM's rules ({type(error).__name__})"
        raise FormatError.about(path, problem, keyword) from None
    if value is None or (isinstance(value, str | bytes) and not value):
        return []
    single = isinstance(value, str | bytes) or not hasattr(value, "__iter__")
    return [value] if single else list(value)


def _number(path: Path, keyword: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bytes) else float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not abs(number) < LARGEST:  # not for NaN either
        raise FormatError.about(path, f"want finite numbers, below {LARGEST:g}", keyword)
    return number


def _text(path: Path, keyword: str, value: Any) -> str:
    if not isinstance(value, str | int | float):  # a sequence would bring its elements along
        raise FormatError.about(path, f"want text, got {type(value).__name__}", keyword)
    # A wrong length makes a text swallow the elements behind it, which begin with such bytes.
    return re.split(r"[\x00-\x1f]", str(value), maxsplit=1)[0].strip()
