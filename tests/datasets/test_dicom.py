"""Values of DICOM slices: signs, bits, slopes, padding, compression, and damage of every kind."""

import importlib.util
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_rescale

from recon.datasets import FormatError
from recon.datasets.dicom import DECODERS, is_dicom, layout_dicom, read_dicom, source_headers
from tests.datasets.dicom_files import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    PATIENT,
    PATIENT_ID,
    RLE,
    ROOT,
    write_series,
)

SYNTAXES = {"implicit": IMPLICIT, "explicit": EXPLICIT, "deflated": DEFLATED,
            "big-endian": BIG_ENDIAN, "RLE": RLE, "JPEG-LS": JPEG_LS,
            "JPEG 2000": JPEG_2000, "JPEG lossless": JPEG_LOSSLESS}  # fmt: skip
NEEDED = {JPEG_LS: "jpeg_ls", JPEG_2000: "openjpeg", JPEG_LOSSLESS: "libjpeg"}
SHAPE = (3, 40, 36)  # JPEG 2000 encoders refuse much smaller images

Change = Callable[[Any, int], None]


def numbers(bits: int = 12, signed: bool = False, low: int = 0) -> NDArray[Any]:
    """All of ``bits`` bits from ``low`` on, both ends included."""
    stored = np.random.default_rng(0).integers(low, 2**bits, SHAPE)
    stored[:, 0, 0], stored[:, 0, 1] = low, 2**bits - 1
    return stored - 2 ** (bits - 1) if signed else stored


def write(folder: Path, stored: NDArray[Any], syntax: str = EXPLICIT, **options: Any) -> list[Path]:
    """As write_series, and JPEG lossless by dcmtk."""
    if syntax in NEEDED and importlib.util.find_spec(NEEDED[syntax]) is None:
        pytest.skip(f"no decoder: {NEEDED[syntax]} is not installed")
    if syntax != JPEG_LOSSLESS:
        return write_series(folder, stored, syntax=syntax, **options)
    if shutil.which("dcmcjpeg") is None:
        pytest.skip("dcmtk is not installed")
    paths = write_series(folder, stored, **options)
    for path in paths:
        subprocess.run(["dcmcjpeg", "+e1", "+un", path, path], check=True, capture_output=True)
    return paths


def put(**values: Any) -> Change:
    """Elements set, or deleted if None, in all slices."""

    def change(data: Any, _: int) -> None:
        for keyword, value in values.items():
            if value is None:
                del data[keyword]
            else:
                setattr(data, keyword, value)

    return change


def compressed(uid: str) -> Change:
    """As if compressed: an image that begins and ends, with nothing in it."""

    def change(data: Any, _: int) -> None:
        data.PixelData = encapsulate([b"\xff\xd8 \xff\xd9"])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = uid

    return change


Read = Callable[[Path], NDArray[Any]]


def by_us(folder: Path) -> NDArray[Any]:
    return read_dicom(folder).values.numpy()


def by_pydicom(folder: Path) -> NDArray[Any]:
    """Slices are named in their order here."""
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    return np.stack([apply_rescale(data.pixel_array, data) for data in files])


STORED: dict[str, dict[str, Any]] = {
    "unsigned": {"bits": 16, "intercept": -8192, "slope": 0.5},
    "unsigned, 12 bits": {"bits": 12},
    "signed": {"bits": 16, "signed": True, "slope": 0.05, "intercept": 0},
    "signed, 12 bits": {"bits": 12, "signed": True, "intercept": 0},
    "signed, 13 bits": {"bits": 13, "signed": True, "intercept": 1000},
    "slope of its own": {"bits": 12, "slope": [1.0, 0.37, 2.25]},
    "intercept of its own": {"bits": 12, "intercept": [-1024.0, -1000.0, -1000.5]},
    "fractions": {"bits": 16, "slope": 0.0717906, "intercept": -1200.25},
}  # fmt: skip


def check_values(read: Read, folder: Path, name: str, syntax: str = EXPLICIT) -> None:
    """HU in closed form, and as pydicom has them, to 1e-6 of the largest."""
    options = STORED[name]
    stored = numbers(options["bits"], options.get("signed", False))
    write(folder, stored, syntax, **options)
    got = read(folder)
    slope, intercept = (np.broadcast_to(options.get(k, v), 3)[:, None, None]
                        for k, v in (("slope", 1.0), ("intercept", -1024.0)))  # fmt: skip
    want = stored * slope + intercept
    bound = 1e-6 * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)
    np.testing.assert_allclose(got, by_pydicom(folder), rtol=0, atol=bound)


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_hounsfield_units_are_stored_numbers_times_slope_plus_intercept(
    tmp_path: Path, name: str, syntax: str
) -> None:
    check_values(by_us, tmp_path, name, SYNTAXES[syntax])
    volume = read_dicom(tmp_path)
    assert (volume.unit, volume.kind, volume.padding) == ("HU", "dicom_ct", None)
    assert volume.values.dtype == torch.float32
    assert "note" not in volume.attributes


def words(folder: Path, dtype: str) -> NDArray[Any]:
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    return np.stack([np.frombuffer(f.PixelData, dtype).reshape(SHAPE[1:]) for f in files])


def unsigned_words(folder: Path) -> NDArray[Any]:
    return words(folder, "<u2") + by_pydicom(folder) - words(folder, "<i2")


def wrapped(folder: Path) -> NDArray[Any]:
    """16-bit arithmetic, as numpy did it without a word before version 2."""
    return (words(folder, "<u2") + np.uint16(65536 - 1024)).astype(np.float64)


def first_slope(folder: Path) -> NDArray[Any]:
    first = pydicom.dcmread(min(folder.iterdir()))
    return words(folder, "<u2") * float(first.RescaleSlope) + float(first.RescaleIntercept)


def whole_numbers(folder: Path) -> NDArray[Any]:
    return by_pydicom(folder).astype(np.int32)


def half(folder: Path) -> NDArray[Any]:
    return by_pydicom(folder).astype(np.float16)


@pytest.mark.parametrize(
    ("read", "name"),
    [(unsigned_words, "signed"), (wrapped, "unsigned, 12 bits"), (first_slope, "slope of its own"),
     (first_slope, "intercept of its own"), (whole_numbers, "fractions"), (half, "unsigned")],
)  # fmt: skip
def test_the_check_finds_the_faults_of_other_readers(tmp_path: Path, read: Read, name: str) -> None:
    with pytest.raises(AssertionError):
        check_values(read, tmp_path, name)


def test_all_syntaxes_give_the_same_bits(tmp_path: Path) -> None:
    stored = numbers(16, low=1)
    found = {}
    for name in ("implicit", "deflated", "big-endian", "RLE"):
        write(tmp_path / name, stored, SYNTAXES[name], slope=0.1, intercept=-1000)
        found[name] = read_dicom(tmp_path / name).values
    for name, module in (("JPEG-LS", "jpeg_ls"), ("JPEG 2000", "openjpeg")):
        if importlib.util.find_spec(module) is not None:
            write(tmp_path / name, stored, SYNTAXES[name], slope=0.1, intercept=-1000)
            found[name] = read_dicom(tmp_path / name).values
    assert all(torch.equal(values, found["implicit"]) for values in found.values())


def test_lossy_jpeg_of_12_bits_as_dcmtk_unpacks_it(tmp_path: Path) -> None:
    """Two decoders round differently; dcmcjpeg shifts the values and says so in the intercept."""
    if not (shutil.which("dcmcjpeg") and shutil.which("dcmdjpeg")):
        pytest.skip("dcmtk is not installed")
    pytest.importorskip("libjpeg", reason="no decoder: pylibjpeg-libjpeg is not installed")
    y, x = np.mgrid[:40, :36]
    stored = (1000 + 800 * np.sin(x / 9) * np.cos(y / 11)).astype(int)[None]
    (path,) = write_series(tmp_path, stored, bits=12)
    subprocess.run(["dcmcjpeg", "+ee", path, path], check=True, capture_output=True)
    volume = read_dicom(path)
    assert "lossy compressed" in str(volume.attributes["note"])
    subprocess.run(["dcmdjpeg", path, path], check=True, capture_output=True)
    assert np.abs(volume.values.numpy() - by_pydicom(tmp_path)).max() <= 1
    assert np.abs(volume.values.numpy() - (stored - 1024)).max() <= 5


@pytest.mark.parametrize("signed", [False, True])
def test_each_decoder_of_jpeg_2000_alone(tmp_path: Path, signed: bool,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    stored = numbers(12, signed)
    write(tmp_path, stored, JPEG_2000, bits=12, signed=signed)
    decoder: Any = get_decoder(JPEG_2000)
    for plugin in decoder.available_plugins:
        only = {plugin: decoder._available[plugin]}
        with monkeypatch.context() as patch:
            patch.setattr(decoder, "_available", only)
            assert np.array_equal(by_us(tmp_path), stored - 1024.0)


@pytest.mark.parametrize("syntax", DECODERS)
def test_a_missing_decoder_is_named(tmp_path: Path, syntax: str,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    paths = write(tmp_path, numbers(), change=compressed(syntax))
    monkeypatch.setattr(get_decoder(syntax), "_available", {})
    text = r"^IM_0000\.dcm: its pixels are compressed as (JPEG|High-Throughput).*: pip install "
    with pytest.raises(ImportError, match=text) as caught:
        read_dicom(tmp_path)
    assert DECODERS[syntax] in str(caught.value)
    assert layout_dicom(tmp_path).slices == len(source_headers(tmp_path)) == len(paths)


def test_pillow_alone_cannot_read_12_bit_jpeg(tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    write(tmp_path, numbers(), bits=12, change=compressed("1.2.840.10008.1.2.4.51"))
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec",
                        lambda name: None if name == "libjpeg" else real(name))
    with pytest.raises(ImportError, match=r"JPEG Extended.*pylibjpeg-libjpeg .*GPL"):
        read_dicom(tmp_path)


PADDINGS: dict[str, tuple[int, int, bool, int, int, int | None]] = {
    # bits, intercept, signed, stored there, PixelPaddingValue, PixelPaddingRangeLimit
    "signed -2000": (16, -1024, True, -2000, -2000, None),
    "63536 for -2000": (16, 0, True, -2000, 63536, None),
    "unsigned 63536": (16, -1024, False, 63536, 63536, None),
    "12 bits signed": (12, 0, True, -2000, -2000, None),
    "63536 in 12 bits signed": (12, 0, True, -2000, 63536, None),
    "outside of 12 bits": (12, -1024, False, 63536, 63536, None),
    "zero": (12, -1024, False, 0, 0, None),
    "range": (12, -1024, False, 5, 0, 10),
    "range downwards": (12, -1024, False, 5, 10, 0),
    "range of -2000 to -1900": (16, 0, True, -1950, 63536, 63636),
}


def check_padding(read: Callable[[Path], tuple[NDArray[Any], NDArray[Any]]], folder: Path,
                  name: str, syntax: str) -> None:  # fmt: skip
    """Values, air where padded, and where that is: a border, and a corner of the second slice."""
    bits, intercept, signed, there, value, limit = PADDINGS[name]
    stored = numbers(12, low=100)
    if signed:
        stored = stored - 1500 if bits == 16 else np.minimum(stored, 3000) - 1500
    outside = np.zeros(SHAPE, dtype=bool)
    outside[:, :5] = outside[1, :, 30:] = True
    stored[outside] = there

    def change(data: Any, _: int) -> None:
        # Some scanners write it as unsigned whatever the sign of the pixels.
        unsigned = not signed or (value > 32767 and syntax != IMPLICIT)
        for tag, number in ((0x00280120, value), (0x00280121, limit)):
            if number is not None:
                pattern = number % 65536
                negative = pattern - 65536 * (pattern > 32767)
                data.add_new(tag, "US" if unsigned else "SS", pattern if unsigned else negative)

    write(folder, stored, syntax, bits=bits, signed=signed, intercept=intercept, change=change)
    values, padding = read(folder)
    assert np.array_equal(padding, outside)
    assert np.array_equal(values, np.where(outside, -1000, stored + intercept))


@pytest.mark.parametrize("name", PADDINGS)
@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big-endian", "RLE"])
def test_padding_is_air_and_marked(tmp_path: Path, name: str, syntax: str) -> None:
    def read(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
        volume = read_dicom(folder)
        assert volume.padding is not None
        assert "note" not in volume.attributes
        return volume.values.numpy(), volume.padding.numpy()

    check_padding(read, tmp_path, name, SYNTAXES[syntax])


@pytest.mark.parametrize(
    ("name", "fault"),
    [("63536 for -2000", "as written"), ("63536 in 12 bits signed", "as written"),
     ("outside of 12 bits", "as written"), ("range", "one value"), ("signed -2000", "not air"),
     ("range downwards", "ascending")],
)  # fmt: skip
def test_the_check_finds_padding_misread(tmp_path: Path, name: str, fault: str) -> None:
    def read(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
        files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        stored = np.stack([data.pixel_array for data in files])
        low = files[0].PixelPaddingValue
        high = low if fault == "one value" else files[0].get("PixelPaddingRangeLimit", low)
        padding = (stored >= low) & (stored <= high)
        values = by_pydicom(folder)
        return (values if fault == "not air" else np.where(padding, -1000, values)), padding

    with pytest.raises(AssertionError):
        check_padding(read, tmp_path, name, EXPLICIT)


def test_padding_that_marks_nothing_or_tissue_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a", numbers(), bits=12, change=put(PixelPaddingValue=63536))
    volume = read_dicom(tmp_path / "a")
    assert volume.padding is None
    assert volume.attributes["note"] == ("PixelPaddingValue 63536 does not fit into 12 bits and "
                                         "marks nothing")
    write(tmp_path / "b", numbers(), bits=12, intercept=0, change=put(PixelPaddingValue=0))
    note = str(read_dicom(tmp_path / "b").attributes["note"])
    assert note.startswith("PixelPaddingValue 0 would be 0 HU; pixels of it are set to air")
    stored = numbers(12, low=100)
    stored[1:, :5] = 0
    write(tmp_path / "c", stored, bits=12, intercept=-2000)
    note = str(read_dicom(tmp_path / "c").attributes["note"])
    assert "over 1 % of the pixels are -2000 HU" in note
    assert "(2 of 3 slices)" in note
    write(tmp_path / "d", numbers(12, low=1500), bits=12)
    assert "no value below -200 HU" in str(read_dicom(tmp_path / "d").attributes["note"])


def test_mr_values(tmp_path: Path) -> None:
    """The slope is applied where there is one, and padding is zero."""
    stored = numbers()
    write(tmp_path / "a", stored, modality="MR", slope=None, intercept=None)
    volume = read_dicom(tmp_path / "a")
    assert (volume.unit, volume.kind, volume.padding) == ("arbitrary", "dicom_mr", None)
    assert np.array_equal(volume.values.numpy(), stored)
    write(tmp_path / "b", stored, modality="MR", slope=[0.5, 2, 0.1], intercept=3,
          change=put(PixelPaddingValue=0, RescaleType="normalized"))  # fmt: skip
    volume = read_dicom(tmp_path / "b")
    want = stored * np.array([0.5, 2, 0.1])[:, None, None] + 3
    np.testing.assert_allclose(volume.values.numpy(), np.where(stored, want, 0), rtol=1e-6)
    assert volume.padding is not None
    assert np.array_equal(volume.padding.numpy(), stored == 0)
    assert {k: v for k, v in volume.attributes.items() if "_ms" in k or "deg" in k} == {
        "repetition_time_ms": 500.0, "echo_time_ms": 10.0, "flip_angle_deg": 15.0}  # fmt: skip


def overlay(data: Any, _: int) -> None:
    data.PixelData = (np.frombuffer(data.PixelData, "<u2") | 0x1000).tobytes()


def bare(data: Any, _: int) -> None:
    """-1 in 12 bits may stand as 0x0fff."""
    data.PixelData = (np.frombuffer(data.PixelData, "<u2") & 0x0FFF).tobytes()


def test_bits_above_the_stored_ones_do_not_count(tmp_path: Path) -> None:
    stored = numbers()
    write(tmp_path / "a", stored, bits=12, change=overlay)
    volume = read_dicom(tmp_path / "a")
    assert np.array_equal(volume.values.numpy(), stored - 1024)
    assert volume.attributes["note"] == "bits above the stored ones were set and have been cleared"
    signed = numbers(signed=True)
    write(tmp_path / "b", signed, bits=12, signed=True, change=bare)
    volume = read_dicom(tmp_path / "b")
    assert np.array_equal(volume.values.numpy(), signed - 1024)
    assert "note" not in volume.attributes


def test_what_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a", numbers(), bits=12, change=put(PhotometricInterpretation="MONOCHROME1",
                                                         LossyImageCompression="01"))
    volume = read_dicom(tmp_path / "a", slice(0, 2))
    assert np.array_equal(volume.values.numpy(), numbers()[:2] - 1024)
    assert volume.attributes["note"] == ("MONOCHROME1, which inverts only the display: values are "
                                         "as stored; lossy compressed")


def test_attributes_are_technical_and_common_to_all_slices(tmp_path: Path) -> None:
    def change(data: Any, i: int) -> None:
        data.KVP = str(100 + i)
        data.ConvolutionKernel = ["Br38f", "3"]

    write(tmp_path, numbers(), change=change)
    volume = read_dicom(tmp_path)
    assert volume.attributes == {
        "modality": "CT", "manufacturer": "Acme", "model": "Ring 1", "body_part": "ABDOMEN",
        "patient_position": "HFS", "series_number": "3", "kernel": "Br38f, 3",
        "slice_thickness_mm": 5.0,
    }  # fmt: skip
    told = repr(volume) + repr(layout_dicom(tmp_path))
    for secret in (PATIENT, PATIENT_ID, "Bertha", "Juliusspital", "1895", "ACC-0815", ROOT, "thin"):
        assert secret not in told


def recoded(signed: int) -> Change:
    """The sign a JPEG 2000 image states for itself is the first bit of a byte of its header."""

    def change(data: Any, _: int) -> None:
        code = bytearray(data.PixelData)
        at = code.index(b"\xff\x51") + 40
        code[at] = code[at] & 0x7F | signed << 7
        data.PixelData = bytes(code)

    return change


def cut(start: float) -> Change:
    def change(data: Any, _: int) -> None:
        data.PixelData = data.PixelData[: 2 * int(len(data.PixelData) * start / 2)]

    return change


def broken_off(data: Any, _: int) -> None:
    """Half of the compressed image, in whole fragments."""
    from pydicom.encaps import get_frame

    frame = get_frame(data.PixelData, 0, number_of_frames=1)
    data.PixelData = encapsulate([frame[: len(frame) // 4 * 2]])


def scrambled(data: Any, _: int) -> None:
    from pydicom.encaps import get_frame

    frame = bytearray(get_frame(data.PixelData, 0, number_of_frames=1))
    frame[2:-4] = np.random.default_rng(0).integers(256, size=len(frame) - 6).astype("u1").tobytes()
    data.PixelData = encapsulate([bytes(frame)])


def table(data: Any, _: int) -> None:
    data.ModalityLUTSequence = [pydicom.Dataset()]


def raw(tag: int, vr: str, value: bytes) -> Change:
    """An element with a value that pydicom would not write."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    return lambda data, _: data._dict.__setitem__(
        Tag(tag), RawDataElement(Tag(tag), vr, len(value), value, 0, False, True))  # fmt: skip


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no slope": ({"change": put(RescaleSlope=None)}, "RescaleSlope: missing: stored numbers"),
    "no intercept": ({"intercept": None}, "RescaleIntercept: missing"),
    "MR without slope": ({"modality": "MR", "slope": None}, "RescaleSlope: missing"),
    "slope 0": ({"slope": 0.0}, "RescaleSlope: is 0"),
    "slope no number": ({"change": raw(0x00281053, "DS", b"Roentgen")}, "RescaleSlope: "),
    "slope infinite": ({"change": raw(0x00281053, "DS", b"1e999 ")}, "RescaleSlope: want finite"),
    "two slopes": ({"change": put(RescaleSlope=["1", "2"])}, "RescaleSlope: want one number"),
    "no HU": ({"change": put(RescaleType="US")}, "RescaleType: want HU, got 'US'"),
    "table": ({"change": table}, "ModalityLUTSequence: values through a table are not read"),
    "no sign": ({"change": put(PixelRepresentation=None)}, "PixelRepresentation: missing"),
    "sign 2": ({"change": put(PixelRepresentation=2)}, r"PixelRepresentation: want 0 \(unsigned"),
    "no bits": ({"change": put(BitsStored=None)}, "BitsStored: missing"),
    "17 of 16 bits": ({"change": put(BitsStored=17, HighBit=16)}, "BitsStored: want 1 to 16"),
    "bits allocated": ({"change": put(BitsAllocated=12)}, "BitsAllocated: want 8, 16 or 32"),
    "high bit": ({"change": put(BitsStored=12)}, "HighBit: want 11, got 15"),
    "no size": ({"change": put(Rows=None)}, "Rows: missing"),
    "size 0": ({"change": put(Columns=0)}, "Rows: 40 x 0 pixels are no slice"),
    "huge": ({"change": put(Rows=60000, Columns=60000)}, "60000 x 60000 pixels are no slice"),
    "colour": ({"change": put(SamplesPerPixel=3, PhotometricInterpretation="RGB")},
               r"PhotometricInterpretation: want grey values .* got RGB with 3 samples"),
    "palette": ({"change": put(PhotometricInterpretation="PALETTE COLOR")}, "got PALETTE COLOR"),
    "multi-frame": ({"change": put(NumberOfFrames=2)}, "NumberOfFrames: 2: multi-frame is not"),
    "no pixels": ({"change": put(PixelData=None)}, "PixelData: missing or not whole"),
    "floats": ({"change": lambda d, i: (put(PixelData=None)(d, i), d.add_new(0x7FE00008, "OF",
                                        bytes(4 * 40 * 36)))}, "PixelData: missing"),
    "cut": ({"change": cut(0.5)}, "PixelData: holds 1440 bytes, want 2880: cut short"),
    "empty pixels": ({"change": cut(0)}, "PixelData: "),
    "too long": ({"change": put(Rows=39)}, "PixelData: holds 2880 bytes, want 2808: Rows or"),
    "JPEG-LS cut": ({"syntax": JPEG_LS, "change": broken_off}, "compressed image has no end"),
    "JPEG 2000 cut": ({"syntax": JPEG_2000, "change": broken_off}, "compressed image has no end"),
    "RLE cut": ({"syntax": RLE, "change": broken_off}, "PixelData: cannot be decoded"),
    "JPEG-LS scrambled": ({"syntax": JPEG_LS, "change": scrambled}, "cannot be decoded"),
    "JPEG 2000 scrambled": ({"syntax": JPEG_2000, "change": scrambled}, "cannot be decoded"),
    "wrong size": ({"syntax": JPEG_2000, "change": put(Rows=44)}, "cannot be decoded"),
    "video": ({"change": compressed("1.2.840.10008.1.2.4.100")},
              "TransferSyntaxUID: pixels stored as MPEG2.*cannot be decoded"),
    "nothing in it": ({"change": compressed(JPEG_LS)}, "PixelData: cannot be decoded"),
    "sign of JPEG 2000": ({"syntax": JPEG_2000, "bits": 12, "change": recoded(1)},
                          "says unsigned, the JPEG 2000 image inside says signed"),
    "unsigned as signed": ({"stored": numbers(16), "intercept": 0, "change":
                            put(PixelRepresentation=1)}, "values from -32752 to 32766 are no HU"),
    "signed as unsigned": ({"stored": numbers(12, True), "signed": True, "change":
                            put(PixelRepresentation=0)}, "to 64511 are no HU"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, name: str) -> None:
    options, text = REFUSED[name]
    stored = options.get("stored", numbers())
    rest = {key: value for key, value in options.items() if key != "stored"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns when such files are written
        write(tmp_path / "scans", stored, **rest)
    with pytest.raises(FormatError, match=text) as caught:
        read_dicom(tmp_path / "scans")
    assert str(caught.value).startswith("IM_000")
    assert str(tmp_path) not in str(caught.value)
    assert "Roentgen" not in str(caught.value)


def test_signed_numbers_in_an_unsigned_jpeg_2000_image(tmp_path: Path) -> None:
    """The header is believed where the image inside does not know of signs, and it is told."""
    stored = numbers(12, signed=True)
    write(tmp_path, stored & 0xFFF, JPEG_2000, bits=12, change=put(PixelRepresentation=1))
    volume = read_dicom(tmp_path)
    assert np.array_equal(volume.values.numpy(), stored - 1024)
    assert str(volume.attributes["note"]).startswith("JPEG 2000 images say unsigned")


def test_jpeg_lossless_cut_short(tmp_path: Path) -> None:
    """libjpeg would invent the missing half without a word."""
    (path, *_) = write(tmp_path, numbers(), JPEG_LOSSLESS)
    data = pydicom.dcmread(path)
    broken_off(data, 0)
    data["PixelData"].VR = "OB"
    data.save_as(path)
    with pytest.raises(FormatError, match="the compressed image has no end"):
        read_dicom(path)


FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", r"^a\.dcm: the file is empty"),
    "text": (lambda _: b"plain text", r"^a\.dcm: not a DICOM file"),
    "web page": (lambda _: b"<!DOCTYPE html><html>log in", "a web page"),
    "LFS pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "preamble alone": (lambda whole: whole[:132], "a.dcm: "),
    "cut in the meta group": (lambda whole: whole[:200], "a.dcm: "),
    "cut in the header": (lambda whole: whole[:700], "a.dcm: "),
    "private syntax": (lambda whole: whole.replace(EXPLICIT.encode() + b"\0",
                                                   b"1.2.840.113619.5.2\0\0"),
                       "TransferSyntaxUID: pixels stored as an unknown transfer syntax"),
    "cut in the pixels": (lambda whole: whole[:-1000], "PixelData: holds 1880 bytes, want 2880"),
    "random": (lambda _: np.random.default_rng(0).bytes(4000), "not a DICOM file"),
    "random behind DICM": (lambda _: bytes(128) + b"DICM" + np.random.default_rng(0).bytes(4000),
                           "a.dcm: "),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    (path, *_) = write_series(tmp_path / "scans", numbers()[:3])
    whole = path.read_bytes()
    damage, text = FILES[name]
    path.unlink()
    (tmp_path / "scans" / "a.dcm").write_bytes(damage(whole))
    for place in (tmp_path / "scans" / "a.dcm", tmp_path / "scans"):
        with pytest.raises(FormatError, match=text if place.is_file() else None) as caught:
            read_dicom(place)
        assert "Bertha" not in str(caught.value)


def test_files_without_preamble(tmp_path: Path) -> None:
    """As before 1995, and what is left if only the dataset is stored."""
    stored = numbers()
    for name, uid in (("implicit", IMPLICIT), ("explicit", EXPLICIT)):
        for path in write_series(tmp_path / name, stored, syntax=uid):
            data = pydicom.dcmread(path)
            group, implicit = path.read_bytes()[132:], uid == IMPLICIT
            path.write_bytes(group)
            assert is_dicom(path, group[:512])
            assert np.array_equal(by_us(path)[0], stored[data.InstanceNumber - 1] - 1024.0)
            pydicom.dcmwrite(path, data, implicit_vr=implicit, little_endian=True,
                             enforce_file_format=False)  # fmt: skip
            start = path.read_bytes().index(b"\x08\0\x05\0")
            path.write_bytes(path.read_bytes()[start:])
            assert is_dicom(path, path.read_bytes()[:512])
        assert np.array_equal(by_us(tmp_path / name), stored - 1024.0)


def test_values_against_the_rules_do_not_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """pytest turns warnings into errors; pydicom warns of each of these, and logs it in full."""

    def change(data: Any, _: int) -> None:
        raw(0x00080005, "CS", b"no such set ")(data, 0)
        raw(0x00100020, "LO", b"x" * 100)(data, 0)
        raw(0x00080018, "UI", b"not a uid ")(data, 0)
        raw(0x00280030, "DS", b"0.7500000000000000001\\0.5")(data, 0)
        raw(0x00080060, "CS", b"ct")(data, 0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(tmp_path, numbers(), change=change)
        caplog.clear()
        assert pydicom.dcmread(tmp_path / "IM_0000.dcm").SOPInstanceUID == "not a uid"
    assert "not a uid" in caplog.text
    caplog.clear()
    assert read_dicom(tmp_path).spacing_mm == (2.5, 0.75, 0.5)
    assert layout_dicom(tmp_path).keys == {"PixelData": {"shape": SHAPE, "dtype": "uint16"}}
    assert len(source_headers(tmp_path)) == 3
    assert not caplog.records


@pytest.mark.parametrize("name", SYNTAXES)
def test_random_damage_is_a_named_error_or_harmless(tmp_path: Path, name: str) -> None:
    (path, *_) = write(tmp_path / "a", numbers(), SYNTAXES[name], bits=12)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    generator = np.random.default_rng(0)
    failed = 0
    for i in range(60):
        damaged = whole.copy()
        reach = len(whole) if i % 3 else 1400  # the header, or all of the file
        damaged[generator.integers(128, reach, size=6)] = generator.integers(256, size=6)
        path.write_bytes(damaged[: None if i % 5 else reach - 300].tobytes())
        try:
            assert bool(torch.isfinite(read_dicom(path).values).all())
        except FormatError as error:
            failed += 1
            assert "Bertha" not in str(error)  # noqa: PT017
    assert failed > 10
