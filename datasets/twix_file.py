"""The blocks of a Siemens raw file (twix, ``meas_*.dat``), of software VB, VD, VE and XA.

A file holds one measurement (VB), or a table of several of which the last is the scan. Each is a
header of named texts and one block per readout: counters and flags, then the samples of each
channel. What lies where in table, counters and flags is taken from twixtools. Its loops over the
blocks and the protocol are not used: given damaged numbers they never end or fill the memory.
"""

import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recon.datasets.errors import FormatError, StrPath, read_head

MOST_MEASUREMENTS = 64
MOST_TEXTS = 64
LEAST_VB_HEADER = 10000  # the VD table begins with a small number where VB has its header's length

PROTOCOL = {
    "base": "sKSpace.lBaseResolution",
    "lines": "sKSpace.lPhaseEncodingLines",
    "phase oversampling": "sKSpace.dPhaseOversamplingForDialog",
    "dimension": "sKSpace.ucDimension",
    "trajectory": "sKSpace.ucTrajectory",
    "bands": "sSliceAcceleration.lMultiBandFactor",
    "reference scan": "sPat.ucRefScanMode",
    "slices": "sSliceArray.lSize",
    "readout fov": "sSliceArray.asSlice[0].dReadoutFOV",
    "phase fov": "sSliceArray.asSlice[0].dPhaseFOV",
    "thickness": "sSliceArray.asSlice[0].dThickness",
    "dwell": "sRXSPEC.alDwellTime[0]",
    "field": "sProtConsistencyInfo.flNominalB0",
    "tr": "alTR[0]",
    "te": "alTE[0]",
    "ti": "alTI[0]",
    "inversion": "sPrepPulses.ucInversion",
    "flip": "adFlipAngleDegree[0]",
}
"""The numbers read from the protocol, and their names in it."""
NAMES = {key: name for name, key in PROTOCOL.items()}
SEQUENCE = "tSequenceFileName"
COIL_ELEMENT = re.compile(r"(sCoilSelectMeas\.aRxCoilSelectData|asCoilSelectMeas)\[0\]\."
                          r"asList\[\d+\]\.sCoilElementID\.tElement")  # fmt: skip


class Tables(NamedTuple):
    """What lies where in a file of one software generation."""

    entry: np.dtype[Any]
    head: np.dtype[Any]
    """Counters and flags of a readout."""
    mask: int
    """Offset of the flags, the numbers of samples and channels following them."""
    before: int
    """Bytes of a readout in front of its first channel."""
    between: int
    """Bytes of a channel in front of its samples."""
    flags: dict[str, int]


class TwixFile(NamedTuple):
    path: Path
    data: NDArray[np.uint8]
    tables: Tables
    spans: list[tuple[int, int]]
    """First and one past the last byte of each measurement."""


class Measurement(NamedTuple):
    """One scan. Nothing about the patient or study is kept."""

    protocol: dict[str, float]
    sequence: str | None
    coils: tuple[str, ...]
    """Names of the coil elements, empty where the protocol does not tell."""
    heads: NDArray[Any]
    """Counters and flags of each readout, by twixtools' names."""
    starts: list[int]
    """First byte of each readout."""


def is_twix(path: StrPath, head: bytes) -> bool:
    """Whether a file that begins with ``head`` is Siemens raw data, of VB or of VD and later.

    There is no signature: its first numbers must be a plausible header (VB) or table (VD) that fits
    in the file, and a named text must follow. Files cut short behind that still are.
    """
    if len(head) < 24:
        return False
    first, second = struct.unpack_from("<II", head)
    size = Path(path).stat().st_size
    if first >= LEAST_VB_HEADER:
        return _is_header(head, size)
    (start,) = struct.unpack_from("<Q", head, 16)
    if not (1 <= second <= MOST_MEASUREMENTS and 24 <= start < size):
        return False
    with Path(path).open("rb") as file:
        file.seek(start)
        return _is_header(file.read(72), size - start)


def _is_header(head: bytes, room: int) -> bool:
    if len(head) < 24:
        return False
    length, count = struct.unpack_from("<II", head)
    return 8 < length < room and 1 <= count <= MOST_TEXTS and re.match(
        rb"\w{4,}\0", head[8:72]) is not None  # fmt: skip


def _tables(vd: bool) -> Tables:
    try:
        from twixtools import hdr_def, mdh_def
    except ImportError as error:
        raise ImportError(
            'Siemens raw data needs the package twixtools: pip install "recon[twix]"'
        ) from error
    flags = {name: 1 << bit for name, bit in mdh_def.mask_dict.items()}
    kind = mdh_def.Scan_header if vd else mdh_def.VB17_header
    head = np.dtype(kind)
    between = np.dtype(mdh_def.Channel_header) if vd else head  # VB repeats all for each channel
    return Tables(hdr_def.MrParcRaidFileEntry, head, kind.EvalInfoMask.offset,
                  head.itemsize if vd else 0, between.itemsize, flags)  # fmt: skip


def open_twix(path: StrPath) -> TwixFile:
    """The file, mapped into memory, and where its measurements lie.

    Raises
    ------
    FormatError
        It is not Siemens raw data or is cut short.
    ImportError
        twixtools is not installed.
    """
    path = Path(path)
    head = read_head(path)
    if not is_twix(path, head):
        raise FormatError.about(path, "not Siemens raw data, or cut short within its header")
    data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    first, count = struct.unpack_from("<II", head)
    tables = _tables(vd=first < LEAST_VB_HEADER)
    if first >= LEAST_VB_HEADER:
        return TwixFile(path, data, tables, [(0, len(data))])
    if 8 + count * tables.entry.itemsize > len(data):
        raise FormatError.about(path, "cut short within its table of measurements")
    spans: list[tuple[int, int]] = []
    for entry in np.frombuffer(data, tables.entry, count, 8):
        start, length = int(entry["off_"]), int(entry["len_"])
        if length == 0 and count == 1:  # left so where a scan was broken off
            length = len(data) - start
        if not 8 < start < start + length <= len(data):
            raise FormatError.about(
                path,
                f"measurement {len(spans) + 1} of {count} should end at byte {start + length}, "
                f"the file has {len(data)}: it is cut short or damaged, copy it again",
            )
        spans.append((start, start + length))
    return TwixFile(path, data, tables, spans)


def read_measurement(file: TwixFile, span: tuple[int, int]) -> Measurement:
    """Protocol and readouts between two bytes, without the samples."""
    start, stop = span
    length = int.from_bytes(file.data[start : start + 4].tobytes(), "little")
    if not 8 < length < stop - start:
        raise FormatError.about(file.path, "a header longer than its measurement: damaged")
    text = _protocol_text(file.path, file.data[start : start + length].tobytes())
    protocol, sequence, coils = _parse_protocol(file.path, text)
    starts = _readouts(file, start + length, stop)
    size = file.tables.head.itemsize
    blocks = b"".join(file.data[at : at + size].tobytes() for at in starts)
    return Measurement(protocol, sequence, coils, np.frombuffer(blocks, file.tables.head), starts)


def _protocol_text(path: Path, header: bytes) -> str:
    """The text MeasYaps: lines of ``key = value``, without keys that are zero."""
    (count,) = struct.unpack_from("<I", header, 4)
    at, text = 8, b""
    for _ in range(min(count, MOST_TEXTS)):
        end = header.find(b"\0", at, at + 64)
        size = int.from_bytes(header[end + 1 : end + 5], "little")
        if end < 0 or end + 5 + size > len(header):
            raise FormatError.about(path, "the texts of the header do not fit in it: damaged")
        name, at = header[at:end], end + 5 + size
        if name == b"MeasYaps":
            text = header[end + 5 : at]
    return text.decode("latin-1")


def _parse_protocol(path: Path,
                    text: str) -> tuple[dict[str, float], str | None, tuple[str, ...]]:  # fmt: skip
    """Numbers of the protocol, name of the sequence, names of the coil elements."""
    found: dict[str, float] = {}
    sequence, coils = None, []
    for line in text.split("\n"):
        key, _, value = (part.strip() for part in line.partition("="))
        if key in NAMES:
            found[NAMES[key]] = _number(path, key, value)
        elif key == SEQUENCE:
            last = re.split(r"[\\/%]", value.strip('"'))[-1]
            sequence = last if re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", last) else None
        elif COIL_ELEMENT.fullmatch(key):
            coils.append(value)
    return found, sequence, tuple(coils)


def _number(path: Path, key: str, value: str) -> float:
    try:
        number = float(int(value, 16)) if value[:2] == "0x" and len(value) < 20 else float(value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):  # the value is not shown: damage may have put any text there
        raise FormatError.about(path, "want a number: the protocol is damaged", key)
    return number


def _readouts(file: TwixFile, at: int, stop: int) -> list[int]:
    """The first byte of each readout up to the end mark, all of them whole."""
    data, tables = file.data.data, file.tables
    end, sync = tables.flags["ACQEND"], tables.flags["SYNCDATA"]
    size = tables.head.itemsize
    starts: list[int] = []
    count = 0
    while at + size <= stop:
        (dma,) = struct.unpack_from("<I", data, at)
        flags, samples, channels = struct.unpack_from("<QHH", data, at + tables.mask)
        if flags & end:
            return starts
        count += 1
        if flags & sync:  # physiological data and the like
            length = dma % (1 << 25)
        else:
            length = tables.before + channels * (tables.between + 8 * samples)
            starts.append(at)
        if length < size or not (flags & sync or samples * channels):
            raise FormatError.about(file.path, f"block {count} is empty: the file is damaged")
        at += length
    raise FormatError.about(
        file.path,
        f"no end mark after {count} blocks: cut short, damaged, or a scan that was broken off",
    )


def read_samples(file: TwixFile, scan: Measurement, readout: int) -> NDArray[np.complex64]:
    """``(coils, columns)`` of one readout as stored, still in the file."""
    head, tables = scan.heads[readout], file.tables
    channel = np.dtype([("skip", f"V{tables.between}"),
                        ("samples", "<c8", (int(head["SamplesInScan"]),))])  # fmt: skip
    start = scan.starts[readout] + tables.before
    return np.frombuffer(file.data, channel, int(head["UsedChannels"]), start)["samples"]
