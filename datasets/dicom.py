"""Reading CT and MR series of DICOM slices as volumes in HU or in the scanner's units.

Left out, and counted in the note: everything in a folder that is no CT or MR slice, and scouts.
Multi-frame objects are refused.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recon.datasets.dicom_header import Header, has_signature, parse, quiet, uid_name
from recon.datasets.dicom_series import find_stack
from recon.datasets.errors import HEAD_BYTES, FormatError, StrPath, base_name
from recon.datasets.scan import Attributes, Layout, select
from recon.datasets.volume import AIR_HU, Volume, affine_of_slices

Tell = Callable[[str], None]

ATTRIBUTES = {
    "Modality": "modality", "Manufacturer": "manufacturer", "ManufacturerModelName": "model",
    "BodyPartExamined": "body_part", "PatientPosition": "patient_position",
    "SeriesNumber": "series_number", "ConvolutionKernel": "kernel", "KVP": "kvp",
    "SliceThickness": "slice_thickness_mm", "RepetitionTime": "repetition_time_ms",
    "EchoTime": "echo_time_ms", "InversionTime": "inversion_time_ms",
    "FlipAngle": "flip_angle_deg", "MagneticFieldStrength": "field_strength_t",
}  # fmt: skip

PIXELS = ["Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames",
          "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"]  # fmt: skip

# Below and above no scanner stores HU: the sign of the stored values was misread.
LOWEST_HU, HIGHEST_HU = -3500.0, 32767.0
NO_AIR_HU = -200.0
LEAST_SLOPE = 1e-30
LARGEST = 8192 * 8192  # pixels: a damaged number must not fill the memory

_JPEG = "1.2.840.10008.1.2.4."
JPEG2000 = tuple(_JPEG + n for n in ("90", "91", "201", "202", "203"))
JPEG_LS = (_JPEG + "80", _JPEG + "81")
JPEG = (_JPEG + "50", _JPEG + "51", _JPEG + "57", _JPEG + "70", *JPEG_LS, *JPEG2000)
LOSSY = (_JPEG + "50", _JPEG + "51")  # others may be: the file says
RLE = "1.2.840.10008.1.2.5"
# What to install where no decoder is there; pydicom itself unpacks what is not named.
_EXTRA = 'pip install "recon[dicom]"'
_LIBJPEG = "pip install pylibjpeg pylibjpeg-libjpeg (that one under the GPL)"
DECODERS = (
    {_JPEG + "50": "pip install pillow"}
    | {_JPEG + n: _LIBJPEG for n in ("51", "57", "70")}
    | dict.fromkeys(JPEG2000 + JPEG_LS, _EXTRA)
)


def is_dicom(path: StrPath, head: bytes = b"") -> bool:
    """Whether a file that begins with ``head`` is DICOM, or a folder has such a file in it."""
    path = Path(path)
    if not path.is_dir():
        return has_signature(head)
    for file in path.iterdir():
        if file.is_file():
            with file.open("rb") as stream:
                if has_signature(stream.read(HEAD_BYTES)):
                    return True
    return False


def read_dicom(path: StrPath, slices: slice | None = None, series: str | None = None) -> Volume:
    """Read a CT or MR series; slice 0 has the lowest position along ``n``.

    ``n`` is the cross product of row and column cosines: towards the head in axial images of a
    patient on the back. CT values are ``stored * slope + intercept`` in HU, each slice by its own
    slope; MR values likewise where the file has a slope. ``path`` is a folder, without those inside
    it, or one file. ``series`` is the series number as text where the folder holds several, as the
    error lists them. The pixels of the chosen ``slices`` only are read.

    Raises
    ------
    FormatError
        A file is damaged, or the files are not one stack of single-frame slices at equal distances.
    ImportError
        The decoder for a compressed file is not installed; the text names the package.
    ValueError
        ``series`` or ``slices`` chooses nothing.
    """
    stack = find_stack(path, series)
    chosen = select(slices, len(stack.headers))
    headers, notes = stack.headers[chosen], list(stack.notes)
    for header in headers:
        _check_description(header)
        _check_decoder(header)
    affine = affine_of_slices(stack.affine, chosen)
    kind, shape = headers[0].kind, (headers[0].whole("Rows"), headers[0].whole("Columns"))
    values = torch.empty(len(headers), *shape, dtype=torch.float32)
    padding = torch.zeros(len(headers), *shape, dtype=torch.bool)
    told: dict[str, int] = {}
    for i, header in enumerate(headers):
        image, outside = _slice(header, told)
        values[i], padding[i] = torch.from_numpy(image), torch.from_numpy(outside)
    notes += [text if count == len(headers) else f"{text} ({count} of {len(headers)} slices)"
              for text, count in told.items()]  # fmt: skip
    if kind == "dicom_ct" and float(values.min()) > NO_AIR_HU:
        notes.append(f"no value below {NO_AIR_HU:g} HU: if air is shown, RescaleIntercept is wrong")
    attributes = _attributes(headers)
    if notes:
        attributes["note"] = "; ".join(notes)
    unit = "HU" if kind == "dicom_ct" else "arbitrary"
    return Volume(values, unit, affine, padding if bool(padding.any()) else None, attributes,
                  base_name(path), kind)  # fmt: skip


def layout_dicom(path: StrPath, series: str | None = None) -> Layout:
    """Kind, size and stored type of a series, from headers alone; errors as of `read_dicom`."""
    headers = find_stack(path, series).headers
    shape = (len(headers), headers[0].whole("Rows"), headers[0].whole("Columns"))
    sign = "int" if headers[0].whole("PixelRepresentation") else "uint"
    stored = f"{sign}{headers[0].whole('BitsAllocated')}"
    return Layout(headers[0].kind, len(headers), {"PixelData": {"shape": shape, "dtype": stored}})


def source_headers(path: StrPath, series: str | None = None) -> list[Any]:
    """All elements but the pixels of each slice, as pydicom datasets in the order of `read_dicom`.

    They name the patient, as the files do.
    """
    return [parse(header.path, None, pixels=False) for header in find_stack(path, series).headers]


def _attributes(headers: list[Header]) -> Attributes:
    """What all slices agree in."""
    found: Attributes = {}
    for keyword, name in ATTRIBUTES.items():
        values = {header.values(keyword) for header in headers}
        if len(values) != 1 or not (value := values.pop()):
            continue
        single = value[0]
        found[name] = single if isinstance(single, float) and len(value) == 1 else \
            ", ".join(map(str, value))[:64]  # fmt: skip
    return found


def _check_description(header: Header) -> None:
    """Refuse what would be read wrongly, before anything is read."""

    def refuse(keyword: str, problem: str) -> None:
        raise FormatError.about(header.path, problem, keyword)

    if (frames := header.number("NumberOfFrames")) not in (None, 1.0):
        refuse("NumberOfFrames", f"{frames:g}: multi-frame is not read, export single frames")
    samples, colours = header.whole("SamplesPerPixel"), header.text("PhotometricInterpretation")
    if samples != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        refuse("PhotometricInterpretation", f"want grey values (MONOCHROME2), got {colours[:20]} "
               f"with {samples} samples a pixel: a screen capture or a colour overlay")  # fmt: skip
    rows, columns = header.whole("Rows"), header.whole("Columns")
    if min(rows, columns) < 1 or rows * columns > LARGEST:
        refuse("Rows", f"{rows} x {columns} pixels are no slice: the file is damaged")
    allocated, stored = header.whole("BitsAllocated"), header.whole("BitsStored")
    if allocated not in (8, 16, 32):
        refuse("BitsAllocated", f"want 8, 16 or 32, got {allocated}")
    if not 1 <= stored <= allocated:
        refuse("BitsStored", f"want 1 to {allocated}, got {stored}")
    if header.number("HighBit") not in (None, stored - 1.0):
        refuse("HighBit", f"want {stored - 1}, got {header.number('HighBit'):g}")
    if header.whole("PixelRepresentation") not in (0, 1):
        refuse("PixelRepresentation", "want 0 (unsigned) or 1 (signed)")
    if header.has_table:
        refuse("ModalityLUTSequence", "values through a table are not read: want a RescaleSlope")
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    if slope is not None and abs(slope) < LEAST_SLOPE:
        refuse("RescaleSlope", f"is {slope:g}: every value would be the same")
    if header.kind == "dicom_ct" or slope is not None or intercept is not None:
        for keyword, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
            if value is None:
                refuse(keyword, "missing: stored numbers cannot be turned into values without it")
    if header.kind == "dicom_ct" and header.text("RescaleType").upper() not in ("", "HU"):
        refuse("RescaleType", f"want HU, got {header.text('RescaleType')[:16]!r}: not Hounsfield "
               "units")  # fmt: skip


def _check_decoder(header: Header) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    name = uid_name(header.syntax) or "an unknown transfer syntax"
    try:
        with quiet():
            decoder = get_decoder(header.syntax)
    except NotImplementedError:
        problem = f"pixels stored as {name} cannot be decoded: export them uncompressed"
        raise FormatError.about(header.path, problem, "TransferSyntaxUID") from None
    # pillow, which comes with scikit-image, takes 8 of the 12 bits
    twelve = header.syntax == _JPEG + "51" and header.whole("BitsStored") > 8
    if decoder.is_available and not (twelve and importlib.util.find_spec("libjpeg") is None):
        return
    install = DECODERS.get(header.syntax, _EXTRA)
    raise ImportError(f"{header.path.name}: its pixels are compressed as {name}: {install}")


def _slice(header: Header, told: dict[str, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Values of one slice, and where they are padding; adds to ``told`` what is to be noted."""

    def tell(text: str) -> None:
        told[text] = told.get(text, 0) + 1

    values, words = _stored(header, tell)
    outside = _padding(header, values, words, tell)
    stored = header.whole("BitsStored")
    # A sign that is not carried into the unused bits is no damage: those are all zero then.
    if bool(((words != values) & (words >> stored != 0) & ~outside).any()):
        tell("bits above the stored ones were set and have been cleared")
    if header.text("PhotometricInterpretation") == "MONOCHROME1":
        tell("MONOCHROME1, which inverts only the display: values are as stored")
    if header.text("LossyImageCompression") == "01" or header.syntax in LOSSY:
        tell("lossy compressed")
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    image = values * np.float64(1 if slope is None else slope) + (intercept or 0)
    if header.kind == "dicom_ct":
        _check_hu(header, image[~outside], intercept or 0, tell)
    image[outside] = AIR_HU if header.kind == "dicom_ct" else 0
    return image.astype(np.float32), outside


def _check_hu(header: Header, image: NDArray[Any], intercept: float, tell: Tell) -> None:
    if image.size == 0:
        return
    low, high = float(image.min()), float(image.max())
    # the scales of metal and of photon-counting scanners begin at their intercept
    if low < min(LOWEST_HU, intercept) or high > HIGHEST_HU:
        raise FormatError.about(
            header.path,
            f"values from {low:g} to {high:g} are no HU: PixelRepresentation (the sign of what is "
            "stored), RescaleSlope or RescaleIntercept is wrong",
        )
    if low < AIR_HU - 500 and float((image == low).mean()) > 0.01:
        tell(f"over 1 % of the pixels are {low:g} HU, probably outside the field of view, but no "
             "PixelPaddingValue says so: they are left as they are")  # fmt: skip


def _padding(header: Header, values: NDArray[Any], words: NDArray[Any],
             tell: Tell) -> NDArray[np.bool_]:  # fmt: skip
    """Where a slice holds no measurement, by PixelPaddingValue and PixelPaddingRangeLimit."""
    first = header.number("PixelPaddingValue")
    if first is None:
        return np.zeros(values.shape, dtype=bool)
    last = header.number("PixelPaddingRangeLimit")
    allocated, stored = header.whole("BitsAllocated"), header.whole("BitsStored")
    signed = header.whole("PixelRepresentation") == 1

    def meant(number: float) -> int:
        """Often written with the other sign: 63536 for -2000."""
        pattern = int(number) % 2**allocated
        return pattern - 2**allocated if signed and pattern >= 2 ** (allocated - 1) else pattern

    low, high = sorted((meant(first), meant(first if last is None else last)))
    bottom = -(2 ** (stored - 1)) if signed else 0
    fits = bottom <= low and high < bottom + 2**stored
    # What does not fit into the stored bits can stand in the word all the same.
    compared = values if fits else words
    outside = (compared >= low) & (compared <= high)
    if not bool(outside.any()):
        if not fits:
            tell(f"PixelPaddingValue {first:g} does not fit into {stored} bits and marks nothing")
        return outside
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    value = high * (slope or 1) + (intercept or 0)
    if header.kind == "dicom_ct" and AIR_HU + 100 < value <= HIGHEST_HU:
        tell(f"PixelPaddingValue {first:g} would be {value:g} HU; pixels of it are set to air")
    return outside


def _stored(header: Header, tell: Tell) -> tuple[NDArray[Any], NDArray[Any]]:
    """Stored numbers, and the words they stand in with whatever is in the unused bits."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    uid = UID(header.syntax)
    dataset = parse(header.path, PIXELS, pixels=True)
    with quiet():
        try:
            data = dataset.PixelData or b""
            dataset.file_meta.TransferSyntaxUID = uid
            frame = get_frame(data, 0, number_of_frames=1) if uid.is_encapsulated else data
        except Exception as error:
            problem = f"missing or not whole: the file is cut short ({type(error).__name__})"
            raise FormatError.about(header.path, problem, "PixelData") from None
        _check_frame(header, frame, tell)
        decoder: Any = get_decoder(uid)  # whose options pydicom declares by the wrong type
        try:
            words, _ = decoder.as_array(dataset, index=0, raw=True, correct_unused_bits=False)
        except Exception as error:
            problem = f"cannot be decoded, the file is damaged ({type(error).__name__})"
            raise FormatError.about(header.path, problem, "PixelData") from error
    words = words.astype(words.dtype.newbyteorder("="), copy=False)
    if header.syntax in JPEG2000 + JPEG_LS:  # these say themselves how many bits they hold
        return words, words
    shift = words.dtype.itemsize * 8 - header.whole("BitsStored")
    return (words << shift) >> shift, words


def _check_frame(header: Header, frame: bytes, tell: Tell) -> None:
    """Damage that decoders pass over."""
    from pydicom.pixels.utils import get_j2k_parameters

    row = header.whole("Columns") * header.whole("BitsAllocated") // 8
    want = header.whole("Rows") * row
    spare = len(frame) - want
    if header.syntax in JPEG:
        # but for padding at the very end; libjpeg makes up pixels that are missing
        if b"\xff\xd9" not in frame[-16:]:
            raise FormatError.about(header.path, "the compressed image has no end: the file is cut "
                                    "short, copy it again", "PixelData")  # fmt: skip
    elif header.syntax != RLE and not 0 <= spare < max(row, 2):
        wrong = "cut short, copy it again" if spare < 0 else "Rows or Columns is wrong"
        raise FormatError.about(header.path, f"holds {len(frame)} bytes, want {want}: {wrong}",
                                "PixelData")  # fmt: skip
    elif header.syntax != RLE and spare > want % 2:
        tell(f"{spare} bytes behind the pixels are ignored")
    if header.syntax not in JPEG2000:
        return
    signed, stated = get_j2k_parameters(frame).get("is_signed"), header.whole("PixelRepresentation")
    if signed is None or bool(signed) == bool(stated):
        return
    if signed:  # decoders disagree by 2^(bits - 1)
        raise FormatError.about(header.path, "says unsigned, the JPEG 2000 image inside says "
                                "signed: export it again", "PixelRepresentation")  # fmt: skip
    tell("JPEG 2000 images say unsigned, PixelRepresentation signed, which was believed")
