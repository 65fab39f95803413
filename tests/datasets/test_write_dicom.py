"""Derived DICOM: against validators, three readers, and a search for the patient in every byte."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import format_number_as_ds

from recon.datasets.deidentify import mapped_uid
from recon.datasets.dicom import read_dicom, source_headers
from recon.datasets.write_dicom import (
    coding,
    write_dicom,
    write_dicom_uncertainty,
    write_parametric_map,
)
from recon.datasets.write_folder import refuse_existing_folder
from tests.datasets.dicom_files import write_series

Values = NDArray[np.float32]
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct" / "upper_abdomen_dicom"
SHAPE = (5, 12, 10)
SECRET = bytes(range(16))
needs_tools = pytest.mark.skipif(
    not (shutil.which("dciodvfy") and shutil.which("dcentvfy")),
    reason="dicom3tools are not installed",
)
# Columns, rows and normal of a turned head, by hand from the rotation (2 1 2; -2 2 1; ...) / 3.
ACROSS, DOWN = np.array([2.0, 1.0, 2.0]) / 3, np.array([-2.0, 2.0, 1.0]) / 3
NORMAL = np.cross(ACROSS, DOWN)
ORIGIN, SPACING, STEP = (-81.25, 30.5, -700.125), (0.75, 0.625), 2.5

PATIENT = {
    "PatientName": "Müller^Jürgen", "PatientID": "PID-4711-0815", "PatientBirthDate": "19531224",
    "PatientSex": "M", "PatientAge": "069Y", "PatientComments": "allergic to latex",
    "StudyDate": "20230517", "StudyTime": "101112.125", "AccessionNumber": "ACC99887766",
    "StudyID": "ST-55123", "StudyDescription": "CT thorax follow-up", "PatientWeight": "81.5",
    "ReferringPhysicianName": "Kowalski^Anna", "InstitutionName": "Klinikum Beispielstadt",
    "InstitutionAddress": "Ringstrasse 7", "StationName": "ROOM7B", "OperatorsName": "Operat^Otto",
    "DeviceSerialNumber": "SN-778899", "AcquisitionDate": "20230518", "ProtocolName": "Thx Müller",
    "SeriesDate": "20230519", "ContentDate": "20230520", "AcquisitionTime": "111213.5",
    "SeriesDescription": "Herr Mueller axial", "ImageComments": "siehe Akte 1234567",
    "PerformedProcedureStepID": "PPS-31337", "PerformedProcedureStepStartDate": "20230521",
    "ContrastBolusAgent": "Ultravist Muellers",
}  # fmt: skip


def write_source(folder: Path, modality: str) -> list[Dataset]:
    """A series full of the patient; its headers in ascending order, read back from the files."""
    series = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID",
                                              "FrameOfReferenceUID")}  # fmt: skip

    def fill(ds: Dataset, number: int) -> None:
        for keyword, value in (PATIENT | series).items():
            setattr(ds, keyword, value)
        ds.SOPInstanceUID, ds.IrradiationEventUID = generate_uid(), generate_uid()
        ds.InstanceNumber, ds.PositionReferenceIndicator = SHAPE[0] - number, "XY"
        ds.BodyPartExamined, ds.SliceThickness = "CHEST", "2.5"
        if modality == "CT":
            ds.CTDIvol, ds.ConvolutionKernel, ds.ExposureTime = 7.5, "Br38f", "330"
        else:
            ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
            ds.ScanningSequence, ds.ScanOptions = ["SE", "IR"], ["FS", "MUELLER"]
            ds.EchoTime, ds.InversionTime = "4.25", "150"
        ds.SmallestImagePixelValue, ds.PixelPaddingValue = 0, 4000
        ds.WindowCenter, ds.WindowWidth = ["40", "300"], ["300", "1500"]
        ds.WindowCenterWidthExplanation = ["Jürgens Fenster", "2"]
        block = ds.private_block(0x0029, "ACME PRIVATE", create=True)
        block.add_new(0x10, "LO", "private Mueller note")
        block.add_new(0x11, "OB", b"raw Mueller bytes")
        request = Dataset()
        request.RequestedProcedureID, request.ScheduledProcedureStepID = "REQ-24680", "SPS-13579"
        request.RequestedProcedureDescription = "Kontrolle Mueller"
        ds.RequestAttributesSequence = [request]
        other = Dataset()
        other.PatientID, other.IssuerOfPatientID = "OLD-ID-998", "Altklinik"
        other.TypeOfPatientID = "TEXT"
        ds.OtherPatientIDsSequence = [other]
        procedure = Dataset()
        procedure.CodeValue, procedure.CodingSchemeDesignator = "C99", "99LOCAL"
        procedure.CodeMeaning = "Thorax Mueller local"
        ds.ProcedureCodeSequence = [procedure]
        hidden, original = Dataset(), Dataset()
        hidden.PatientName = "Schmidt^Deep"
        original.ModifiedAttributesSequence = [hidden]
        original.AttributeModificationDateTime, original.ModifyingSystem = "20230522", "PACS-HEX"
        original.SourceOfPreviousValues = "RIS of Mueller"
        original.ReasonForTheAttributeModification = "COERCE"
        ds.OriginalAttributesSequence = [original]

    stored = np.random.default_rng(1).integers(0, 4096, SHAPE)
    scale = 1.0 if modality == "CT" else None
    write_series(folder, stored, modality=modality, spacing=(STEP, *SPACING), change=fill,
                 origin=ORIGIN, orientation=(*ACROSS, *DOWN), bits=12, slope=scale,
                 intercept=scale and -1024.0, name="Mueller_{}.dcm")  # fmt: skip
    return headers(folder)


def headers(folder: Path) -> list[Dataset]:
    """Independent of the reader: sorted by projection on the normal of the first."""
    found: list[Dataset] = []
    for path in folder.iterdir():
        found.append(pydicom.dcmread(path, stop_before_pixels=True))
    cosines = np.array(found[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(*cosines)
    return sorted(found, key=lambda h: float(np.dot(h.ImagePositionPatient, normal)))


def image(*shape: int, low: float = -1010.0, high: float = 3071.5) -> Values:
    return np.random.default_rng(0).uniform(low, high, shape or SHAPE).astype(np.float32)


def written(folder: Path, like: Any, values: Any = None, **given: Any) -> list[Path]:
    unit = "HU" if like is None or like[0].get("Modality") == "CT" else "arbitrary"
    more = {"unit": unit, "description": "DDS, 50 steps", "software": "0.1.0"} | given
    return write_dicom(folder, image() if values is None else values, like, **more)


@pytest.fixture(params=["CT", "MR"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[Dataset]]:
    return tmp_path / "source", write_source(tmp_path / "source", request.param)


@pytest.fixture
def ct(tmp_path: Path) -> list[Dataset]:
    return write_source(tmp_path / "source", "CT")


# Validators


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True,
                          errors="replace", check=False)  # fmt: skip
    return done.stdout + done.stderr


def check_valid(paths: list[Path], besides: list[Path]) -> None:
    """No error in any file, none over the files and ``besides`` together, names aside."""
    for path in paths:
        told = run("dciodvfy", "-new", path)
        assert "CTImage" in told or "MRImage" in told or "ParametricMap" in told
        assert not [line for line in told.splitlines() if line.startswith("Error")]
    assert "Error" not in run("dcentvfy", *paths, *besides)


@needs_tools
@pytest.mark.parametrize("deidentify", [False, True])
@pytest.mark.parametrize("implicit_vr", [False, True])
def test_validators(source: tuple[Path, list[Dataset]], tmp_path: Path, deidentify: bool,
                    implicit_vr: bool) -> None:  # fmt: skip
    folder, like = source
    shared: dict[str, Any] = {"deidentify": deidentify, "implicit_vr": implicit_vr}
    if deidentify:
        shared["secret"] = SECRET
    paths = written(tmp_path / "out", like, **shared)
    std = write_dicom_uncertainty(tmp_path / "std", abs(image()), like, description="DDS",
                                  unit="arbitrary", software="1", **shared)  # fmt: skip
    syntax = pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID
    assert syntax == ("1.2.840.10008.1.2" if implicit_vr else "1.2.840.10008.1.2.1")
    check_valid(paths + std, [] if deidentify else list(folder.iterdir()))


@needs_tools
@pytest.mark.parametrize(
    ("keyword", "value"),
    [("AcquisitionNumber", ...), ("PositionReferenceIndicator", ...), ("KVP", ...),
     ("Laterality", "R"), ("RescaleSlope", "0.12345678901234567"), ("PatientID", "another"),
     ("StudyTime", "000000"), ("SeriesInstanceUID", "1.2.3")],
)  # fmt: skip
def test_the_validators_find_what_is_wrong(ct: list[Dataset], tmp_path: Path, keyword: str,
                                           value: Any) -> None:  # fmt: skip
    paths = written(tmp_path / "out", ct)
    with pydicom.config.disable_value_validation():
        ds = pydicom.dcmread(paths[0])
        if value is ...:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
        if keyword == "SeriesInstanceUID":  # an image of this series, claiming to be another's
            ds.SOPInstanceUID = ct[0].SOPInstanceUID
        ds.save_as(paths[0])
    with pytest.raises(AssertionError):
        check_valid(paths, list((tmp_path / "source").iterdir()))


@needs_tools
@pytest.mark.parametrize("part", ["CHEST", "KNEE", "PARTIALBODY", None])
def test_laterality_is_there_where_the_part_may_be_one_of_a_pair(
    ct: list[Dataset], tmp_path: Path, part: str | None
) -> None:
    for header in ct:
        header.BodyPartExamined = part
        header.Laterality = "R" if part == "CHEST" else None
    check_valid(written(tmp_path / "out", ct), [])


# What is read back


def check_read_back(paths: list[Path], values: Values, source: Path, slope: float) -> None:
    """Values within half a step, geometry exactly the source's, for three readers.

    The files must differ in name and number from the order of the source's.
    """
    highdicom = pytest.importorskip("highdicom", reason="a reader to compare with")
    sitk = pytest.importorskip("SimpleITK", reason="a reader to compare with")
    half = slope / 2 * (1 + 1e-9) + 1e-12 * float(abs(values).max())
    read = [pydicom.dcmread(path) for path in paths]
    for ds, header, want in zip(read, headers(source), values, strict=True):
        got = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert np.abs(got - want).max() <= half
        for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert list(ds[key].value) == list(header[key].value), key
    assert float(read[0].RescaleSlope) == slope

    def itk(files: list[str]) -> Any:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files)
        return reader.Execute()

    ours, theirs = (itk(list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))))
                    for folder in (paths[0].parent, source))  # fmt: skip
    assert np.abs(sitk.GetArrayFromImage(ours) - values).max() <= half
    for get in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
        assert getattr(ours, get)() == getattr(theirs, get)(), get

    volume = highdicom.get_volume_from_series(read[::-1])
    like = highdicom.get_volume_from_series([pydicom.dcmread(p) for p in source.iterdir()])
    assert np.array_equal(volume.affine, like.affine)
    assert np.abs(volume.array[::-1] - values).max() <= half


@pytest.mark.parametrize("deidentify", [False, True])
@pytest.mark.parametrize("implicit_vr", [False, True])
def test_read_back(source: tuple[Path, list[Dataset]], tmp_path: Path, deidentify: bool,
                   implicit_vr: bool) -> None:  # fmt: skip
    folder, like = source
    paths = written(tmp_path / "out", like, deidentify=deidentify, implicit_vr=implicit_vr)
    slope = float(pydicom.dcmread(paths[0]).RescaleSlope)
    assert slope == pytest.approx((3071.5 + 1010) / 65535, rel=1e-3)
    check_read_back(paths, image(), folder, slope)


def test_there_and_back_by_our_reader(source: tuple[Path, list[Dataset]], tmp_path: Path) -> None:
    folder, like = source
    volume, some = read_dicom(folder), slice(1, 4)
    assert source_headers(folder) == like
    part = read_dicom(folder, slices=some)
    written(tmp_path / "out", source_headers(folder)[some], part.values, affine=part.affine)
    again = read_dicom(tmp_path / "out")
    assert again.affine is not None
    assert part.affine is not None
    assert float((again.affine - part.affine).abs().max()) < 1e-7  # as positions are rounded
    assert again.unit == volume.unit
    step = (volume.values.max() - volume.values.min()) / 65535
    assert float((again.values - volume.values[some]).abs().max()) <= float(step) / 2 + 3e-4
    with pytest.raises(ValueError, match="headers of the very slices"):
        written(tmp_path / "no", source_headers(folder)[:3], part.values, affine=part.affine)


def spoilt(paths: list[Path], values: Values, fault: str) -> None:
    """The files as a writer with a fault would have left them."""
    read = [pydicom.dcmread(path) for path in paths]
    low, high = float(values.min()), float(values.max())
    slope = (high - low) / 65535
    pixels = [ds.PixelData for ds in read]
    for number, (ds, image_) in enumerate(zip(read, values, strict=True)):
        if fault == "slope not as written":
            codes = np.rint((image_.astype(float) - low) / slope)
            ds.RescaleIntercept, ds.RescaleSlope = f"{low:.6g}", f"{slope:.4g}"
            ds.PixelData = codes.astype("<u2").tobytes()
        elif fault == "cut off":
            ours = (image_ - float(ds.RescaleIntercept)) / float(ds.RescaleSlope)
            ds.PixelData = ours.astype("<u2").tobytes()
        elif fault == "half added twice":
            ours = (image_ - float(ds.RescaleIntercept)) / float(ds.RescaleSlope)
            ds.PixelData = np.rint(ours + 0.5).clip(0, 65535).astype("<u2").tobytes()
        elif fault == "whole HU":
            ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
            ds.PixelData = np.rint(image_ + 1024).astype("<u2").tobytes()
        elif fault == "slices reversed":
            ds.PixelData = pixels[-1 - number]
        elif fault == "rows for columns":
            ds.PixelSpacing = list(ds.PixelSpacing)[::-1]
        elif fault == "corner for centre":
            ds.ImagePositionPatient = [float(v) - 0.3125 for v in ds.ImagePositionPatient]
        elif fault == "orientation transposed":
            v = list(ds.ImageOrientationPatient)
            ds.ImageOrientationPatient = v[3:] + v[:3]
        ds.save_as(paths[number])


FAULTS = ("slope not as written", "cut off", "half added twice", "whole HU", "slices reversed",
          "rows for columns", "corner for centre", "orientation transposed")  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_check_finds_faulty_writers(ct: list[Dataset], tmp_path: Path, fault: str) -> None:
    paths = written(tmp_path / "out", ct)
    slope = float(pydicom.dcmread(paths[0]).RescaleSlope)
    spoilt(paths, image(), fault)
    if fault in ("slope not as written", "whole HU"):  # they claim what they write
        claimed = float(pydicom.dcmread(paths[0]).RescaleSlope)
        with pytest.raises(AssertionError):
            check_read_back(paths, image(), tmp_path / "source", min(slope, claimed))
    with pytest.raises(AssertionError):
        check_read_back(paths, image(), tmp_path / "source", slope)


Coding = Callable[[Values, bool], tuple[str, str]]


def check_coding(coding: Coding, values: Values, keep_zero: bool) -> None:
    """Every value has a 16-bit code half a step away, by the numbers as the file has them."""
    texts = coding(values, keep_zero)
    assert max(map(len, texts)) <= 16
    intercept, slope = map(float, texts)
    assert slope > 0
    codes = np.rint((values.astype(np.float64) - intercept) / slope)
    assert codes.min() >= 0
    assert codes.max() <= 65535
    error = np.abs(codes * slope + intercept - values.astype(np.float64)).max()
    assert error <= slope / 2 * (1 + 1e-6)
    span = float(values.max()) - (min(0.0, float(values.min())) if keep_zero
                                  else float(values.min()))  # fmt: skip
    coarsest = 1.01e-9 * float(np.abs(values.astype(np.float64)).max())
    assert slope <= max(span / 65535 * (1 + 1e-5) + coarsest, 0.0) or span <= coarsest
    if keep_zero and values.min() >= 0:
        assert intercept == 0


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
AWKWARD = [[0.0], [40.0], [0.1], [-0.1], [-1024.37, 3071.0], [1e-45, 0.0], [3.4e38, -3.4e38],
           [16777215.0, 16777216.0], [1e-5 + 1e-12, 1e-5], [-1e-38, 1e-38], [-7e-5, -6e-5],
           [1.1e15, 1.1e15], [123456.79, 123456.8]]  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(floats, min_size=1, max_size=6), st.booleans())
def test_coding(values: list[float], keep_zero: bool) -> None:
    check_coding(coding, np.array(values, dtype=np.float32), keep_zero)


@pytest.mark.parametrize("keep_zero", [False, True])
@pytest.mark.parametrize("values", AWKWARD, ids=str)
def test_coding_of_awkward_values(values: list[float], keep_zero: bool) -> None:
    check_coding(coding, np.array(values, dtype=np.float32), keep_zero)


def plain(values: Values, _: bool) -> tuple[str, str]:
    """The formula of the textbook, rounded to the nearest texts."""
    low, high = float(values.min()), float(values.max())
    return format_number_as_ds(low), format_number_as_ds((high - low) / 65535)


def four_digits(values: Values, _: bool) -> tuple[str, str]:
    return f"{values.min():.4g}", f"{(values.max() - values.min()) / 65535:.4g}"


def too_long(values: Values, _: bool) -> tuple[str, str]:
    return str(float(values.min())), str(float(values.max() - values.min()) / 65535)


def whole_hu(_: Values, __: bool) -> tuple[str, str]:
    return "-1024", "1"


@pytest.mark.parametrize(
    ("coding", "values"),
    [
        (plain, [40.0]),  # slope 0
        (plain, [0.1, 0.1]),
        (too_long, [-0.1, 1.7]),
        (four_digits, [-1024.37, 3071.3]),
        (whole_hu, [-1024.75, 3071.3, 0.25]),
    ],
)
def test_the_check_finds_faulty_coding(coding: Coding, values: list[float]) -> None:
    with pytest.raises(AssertionError):
        check_coding(coding, np.array(values, dtype=np.float32), False)


@pytest.mark.parametrize("value", [0.0, 40.0, -1000.1])
def test_constant_images(ct: list[Dataset], tmp_path: Path, value: float) -> None:
    values = np.full(SHAPE, value, dtype=np.float32)
    paths = written(tmp_path / "out", ct, values)
    ds = pydicom.dcmread(paths[0])
    got = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    assert np.abs(got - values[0]).max() <= float(ds.RescaleSlope) / 2
    assert np.abs(got - values[0]).max() <= 1e-6
    written(tmp_path / "mr", None, values, unit="arbitrary")


# What a derived image says


def check_identity(paths: list[Path], like: list[Dataset]) -> None:
    """New and unique images of one new series, in the study and frame of the source."""
    read = [pydicom.dcmread(path) for path in paths]
    old = {str(h[k].value) for h in like for k in ("SOPInstanceUID", "SeriesInstanceUID")}
    images = {str(ds.SOPInstanceUID) for ds in read}
    assert len(images) == len(like)
    assert len({str(ds.SeriesInstanceUID) for ds in read}) == 1
    assert not (images | {str(read[0].SeriesInstanceUID)}) & old
    for number, (ds, header) in enumerate(zip(read, like, strict=True)):
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID == header.SOPClassUID
        assert ds.StudyInstanceUID == header.StudyInstanceUID
        assert ds.FrameOfReferenceUID == header.FrameOfReferenceUID
        (reference,) = ds.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == header.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == header.SOPClassUID
        (purpose,) = reference.PurposeOfReferenceCodeSequence
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("121322", "DCM")
        assert ds.InstanceNumber == number + 1


def test_identity(source: tuple[Path, list[Dataset]], tmp_path: Path) -> None:
    like = source[1]
    before = copy.deepcopy(like)
    paths = written(tmp_path / "out", like)
    assert like == before
    assert [p.name for p in paths] == [f"IM_000{n}.dcm" for n in range(1, 6)]
    check_identity(paths, like)
    again = written(tmp_path / "again", like)
    first, second = (pydicom.dcmread(p[0]) for p in (paths, again))
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


@pytest.mark.parametrize("fault", ["same image", "old image", "own series", "study", "reference"])
def test_the_check_finds_wrong_identity(ct: list[Dataset], tmp_path: Path, fault: str) -> None:
    paths = written(tmp_path / "out", ct)
    ds, other = pydicom.dcmread(paths[0]), pydicom.dcmread(paths[1])
    if fault in ("same image", "old image"):
        ds.SOPInstanceUID = (other if fault == "same image" else ct[0]).SOPInstanceUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    elif fault == "own series":
        ds.SeriesInstanceUID = generate_uid()
    elif fault == "study":
        ds.StudyInstanceUID = generate_uid()
    else:
        ds.SourceImageSequence = other.SourceImageSequence
    ds.save_as(paths[0])
    with pytest.raises(AssertionError):
        check_identity(paths, ct)


def decimal_strings(data: Dataset) -> Iterator[str]:
    for element in data.iterall():
        if element.VR == "DS" and element.value not in (None, ""):
            yield from map(str, element.value if element.VM > 1 else [element.value])


def test_what_is_said_and_what_is_not(source: tuple[Path, list[Dataset]], tmp_path: Path) -> None:
    like = source[1]
    like[2].LossyImageCompression, like[2].LossyImageCompressionRatio = "01", "7.5"
    long = "Diffusion posterior sampling with 1000 steps and then some more"
    paths = written(tmp_path / "out", like, description=long)
    ct = like[0].Modality == "CT"
    for path in paths:
        ds = pydicom.dcmread(path)
        assert ds.ImageType == ["DERIVED", "SECONDARY", "AXIAL" if ct else "OTHER"]
        assert ds.SeriesDescription.endswith("(not for diagnostic use)")
        assert len(ds.SeriesDescription) == 64
        assert long in ds.DerivationDescription
        assert "ot for diagnostic use" in ds.ImageComments
        assert ds.SeriesNumber == 1003
        assert (ds.Manufacturer, ds.SoftwareVersions) == ("recon", "0.1.0")
        (scanner,) = ds.ContributingEquipmentSequence
        assert (scanner.Manufacturer, scanner.DeviceSerialNumber) == ("Acme", "SN-778899")
        assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
        assert ds.LossyImageCompression == "01"
        assert str(ds.PatientName) == "Müller^Jürgen"
        assert "Müller^Jürgen".encode("latin-1") in path.read_bytes()
        assert ds.OtherPatientIDsSequence[0].PatientID == "OLD-ID-998"
        assert max(map(len, decimal_strings(ds))) <= 16
        assert not [e for e in ds.iterall() if e.tag.is_private]
        for gone in ("CTDIvol", "ConvolutionKernel", "SmallestImagePixelValue", "PixelPaddingValue",
                     "WindowCenterWidthExplanation", "OriginalAttributesSequence",
                     "IrradiationEventUID", "RequestAttributesSequence"):  # fmt: skip
            assert gone not in ds, gone
        assert ds.ContentDate != "20230520"
        if ct:
            assert (ds.KVP, ds.ExposureTime, ds.RescaleType) == (120, 330, "HU")
            assert (ds.WindowCenter, ds.WindowWidth) == (40, 400)
        else:
            assert (ds.EchoTime, ds.ScanningSequence) == (4.25, ["SE", "IR"])
            assert (ds.RescaleType, ds.VOILUTFunction) == ("US", "LINEAR_EXACT")
            low, high = np.percentile(image(), [1, 99])
            assert ds.WindowCenter == pytest.approx((low + high) / 2, rel=1e-4)
            assert ds.WindowWidth == pytest.approx(high - low, rel=1e-4)


def test_a_series_derived_from_ours_names_both_before_it(ct: list[Dataset], tmp_path: Path) -> None:
    written(tmp_path / "one", ct)
    (path, *_) = written(tmp_path / "two", headers(tmp_path / "one"))
    ds = pydicom.dcmread(path)
    before = [i.PurposeOfReferenceCodeSequence[0] for i in ds.ContributingEquipmentSequence]
    assert [code.CodeValue for code in before] == ["109101", "109102"]
    assert ds.SeriesNumber == 2003


def test_japanese_names_keep_their_bytes(ct: list[Dataset], tmp_path: Path) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    for header in ct:
        header.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        header.PatientName = name
    (path, *_) = written(tmp_path / "out", ct)
    assert pydicom.dcmread(path).PatientName == name
    assert b"\x1b$B;3ED" in path.read_bytes()


def test_numbers_against_the_rules_are_rewritten_or_left_out(
    ct: list[Dataset], tmp_path: Path
) -> None:
    with pydicom.config.disable_value_validation():
        for header in ct:
            x = float(header.ImagePositionPatient[0])
            position = [f"{x:.18f}", *header.ImagePositionPatient[1:]]
            header.add_new("ImagePositionPatient", "DS", position)
            header.KVP = ""
            header.PatientID = "x" * 80
            header.add_new("ExposureTime", "LO", "Mueller")
            header.add_new("FlipAngle", "LO", "15")
            header.add_new("Exposure", "UN", b"15")
    (path, *_) = written(tmp_path / "out", ct)
    with pydicom.config.disable_value_validation():
        ds = pydicom.dcmread(path)
        assert max(map(len, decimal_strings(ds))) <= 16
        assert ds.PatientID == "x" * 80
        assert (ds.FlipAngle, ds.Exposure) == (15, 15)
        assert "ExposureTime" not in ds
        assert ds.ImagePositionPatient[0] == pytest.approx(ORIGIN[0], abs=1e-10)


# De-identification


def texts_of(ds: Dataset) -> set[bytes]:
    """Every word of the source that could tell of the patient, in any element at any depth."""
    found: set[bytes] = set()
    for element in ds.iterall():
        if element.VR in ("OB", "OW"):
            if element.keyword != "PixelData":
                found.add(bytes(element.value))
        elif element.VR not in ("SQ", "US", "UL", "FD"):
            values = element.value if element.VM > 1 else [element.value]
            for value in values:
                for word in str(value or "").replace("^", " ").replace("=", " ").split():
                    found.add(word.encode("latin-1", errors="replace"))
    return {word for word in found if len(word) > 3}


def check_nobody(paths: list[Path], like: list[Dataset], kept: set[str]) -> None:
    """None of the source's words is in any byte or name of the files, but for ``kept``."""
    words = set().union(*map(texts_of, like)) - {k.encode() for k in kept}
    assert len(words) > 60
    for path in paths:
        data = path.read_bytes() + path.name.encode()
        # digits by themselves: four of them turn up in any random UID
        held = [word for word in sorted(words) if word in data and (not word.isdigit()
                or re.search(rb"(?<!\d)" + word + rb"(?!\d)", data))]  # fmt: skip
        assert not held, held


def kept_words(like: list[Dataset]) -> set[str]:
    """Terms of the standard and numbers of the scan, in so far as they stay."""
    numbers = {str(v) for h in like for key in ("ImagePositionPatient", "ImageOrientationPatient",
                                                "PixelSpacing", "EchoTime") if key in h
               for v in (h[key].value if h[key].VM > 1 else [h[key].value])}  # fmt: skip
    terms = {str(like[0].SOPClassUID), "CHEST", "MONOCHROME2", "OTHER", "AXIAL", "NONE"}
    return numbers | terms


def test_nothing_of_the_patient_is_left(source: tuple[Path, list[Dataset]], tmp_path: Path) -> None:
    like = source[1]
    paths = written(tmp_path / "out", like, deidentify=True)
    check_nobody(paths, like, kept_words(like))
    with pytest.raises(AssertionError):
        check_nobody(written(tmp_path / "named", like), like, kept_words(like))
    for path in paths:
        ds = pydicom.dcmread(path)
        assert ds.PatientIdentityRemoved == "YES"
        assert ds.LongitudinalTemporalInformationModified == "REMOVED"
        assert ds.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert ds.PatientName.family_name == ds.PatientID
        assert ds.PatientID.startswith("ANON")
        assert [e.value for e in ds if e.VR in ("DA", "TM", "DT", "AS") and e.value] == []


@pytest.mark.parametrize("leak", ["RequestAttributesSequence", "OriginalAttributesSequence",
                                  "PatientWeight", "StudyDate", "FrameOfReferenceUID",
                                  "ProtocolName", "private", "file name"])  # fmt: skip
def test_the_search_finds_what_leaks(ct: list[Dataset], tmp_path: Path, leak: str) -> None:
    paths = written(tmp_path / "out", ct, deidentify=True)
    ds = pydicom.dcmread(paths[0])
    if leak == "file name":
        paths[0] = paths[0].rename(tmp_path / "PID-4711-0815.dcm")
    elif leak == "private":
        block = ds.private_block(0x0029, "OURS", create=True)
        block.add_new(0x11, "OB", ct[0][0x0029, 0x1011].value)
        ds.save_as(paths[0])
    else:
        ds.add(ct[0][leak])
        ds.save_as(paths[0])
    with pytest.raises(AssertionError):
        check_nobody(paths, ct, kept_words(ct))


def identifiers(path: Path) -> dict[str, str]:
    ds = pydicom.dcmread(path)
    found = {key: str(ds[key].value) for key in ("StudyInstanceUID", "FrameOfReferenceUID",
                                                 "PatientID")}  # fmt: skip
    return found | {"source": str(ds.SourceImageSequence[0].ReferencedSOPInstanceUID)}


def test_replaced_uids_are_the_same_for_the_same_secret(
    ct: list[Dataset], tmp_path: Path
) -> None:
    def one(name: str, secret: bytes | None, like: list[Dataset] = ct) -> dict[str, str]:
        paths = written(tmp_path / name, like, deidentify=True, secret=secret)
        assert len({identifiers(p)["StudyInstanceUID"] for p in paths}) == 1
        assert len({identifiers(p)["source"] for p in paths}) == len(paths)
        return identifiers(paths[0])

    first = one("a", SECRET)
    assert first == one("b", SECRET)
    assert first["StudyInstanceUID"] == mapped_uid(ct[0].StudyInstanceUID, SECRET)
    for other in (one("c", SECRET[::-1]), one("d", None), one("e", None)):
        assert not set(first.values()) & set(other.values())
    assert first.keys() == one("f", SECRET).keys()
    for header in ct:
        header.PatientID = "PID-4711-0816"
    another = one("g", SECRET)
    assert another["PatientID"] != first["PatientID"]
    assert another["StudyInstanceUID"] == first["StudyInstanceUID"]


def test_mapped_uids_are_valid_and_follow_from_the_key() -> None:
    uids = {mapped_uid(f"1.2.{n}", SECRET) for n in range(500)}
    assert len(uids) == 500
    assert all(pydicom.uid.UID(uid).is_valid and len(uid) <= 44 for uid in uids)
    # `openssl dgst -sha256 -mac HMAC` of "uid:1.2.3": its first 16 bytes as a UUID of version 5
    assert mapped_uid("1.2.3", SECRET) == f"2.25.{0xB2890ECC4D5257A691983B27519209FB}"


def test_free_text_in_codes_and_numbers_does_not_pass(ct: list[Dataset], tmp_path: Path) -> None:
    with pydicom.config.disable_value_validation():
        for header in ct:
            header.BodyPartExamined = "MUELLERS KNEE"
            header.PatientPosition = "HFS"
            header.ScanOptions = ["FS", "MUELLER"]
            header.add_new("KVP", "LO", "Mueller")
            header.add_new("Exposure", "ST", "see Mueller")
            header.add_new("RotationDirection", "US", 7)
    (path, *_) = written(tmp_path / "out", ct, deidentify=True)
    assert b"ueller" not in path.read_bytes()
    assert b"MUELLER" not in path.read_bytes()
    ds = pydicom.dcmread(path)
    assert ds.ScanOptions == "FS"
    assert ds.PatientPosition == "HFS"
    assert "BodyPartExamined" not in ds


@pytest.mark.parametrize(
    ("change", "arguments", "match"),
    [
        ({"BurnedInAnnotation": "YES"}, {}, "BurnedInAnnotation is YES"),
        ({}, {"description": "DDS of PID-4711-0815"}, "description: holds the patient's name"),
        ({"PatientName": "Doe^Jane"}, {"description": "jane, 50 steps"}, "choose other words"),
        ({}, {"secret": b"short"}, "want 16 bytes or more, got 5"),
        ({}, {"secret": SECRET, "deidentify": False}, "of use with deidentify=True alone"),
    ],
)
def test_deidentification_is_refused(ct: list[Dataset], tmp_path: Path, change: dict[str, str],
                                     arguments: dict[str, Any], match: str) -> None:  # fmt: skip
    for header in ct:
        for keyword, value in change.items():
            setattr(header, keyword, value)
    with pytest.raises(ValueError, match=match) as error:
        written(tmp_path / "out", ct, **({"deidentify": True} | arguments))
    for word in ("4711", "Doe", "ane", "ller"):
        assert word not in str(error.value)
    assert not (tmp_path / "out").exists()


# Folders


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FAILURES = [("fsync", n) for n in range(5)] + [("save", 0), ("save", 4), ("rename", 0)]


@pytest.mark.parametrize(
    ("overwrite", "what", "last"),
    [(False, *f) for f in FAILURES] + [(True, *f) for f in (*FAILURES, ("rename", 1))],
)
def test_a_failed_write_leaves_what_was_there(
    ct: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, what: str,
    last: int,
) -> None:  # fmt: skip
    room = tmp_path / "room"
    room.mkdir()
    if overwrite:
        written(room / "out", ct, image() / 2)
    before = listing(room)
    count = iter(range(100))

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            if next(count) == last:
                raise OSError(28, "No space left on device")
            return real(*args, **given)

        return call

    target: tuple[Any, str] = {"fsync": (os, "fsync"), "save": (Dataset, "save_as"),
                               "rename": (Path, "replace")}[what]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(*target, failing(getattr(*target)))
        with pytest.raises(OSError, match="No space left"):
            written(room / "out", ct, overwrite=overwrite)
    assert listing(room) == before
    assert [p.name for p in room.iterdir()] == (["out"] if overwrite else [])


def test_a_killed_write_leaves_what_was_there(
    ct: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    written(room / "out", ct)
    before = listing(room / "out")
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        written(room / "out", ct, overwrite=True)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert listing(room / "out") == before
    assert {p.name for p in room.iterdir() if not p.name.startswith(".")} == {"out"}
    written(room / "out", ct, overwrite=True)


def test_overwriting_replaces_a_series_of_any_length(ct: list[Dataset], tmp_path: Path) -> None:
    written(tmp_path / "out", ct)
    paths = written(tmp_path / "out", ct[:2], image()[:2], overwrite=True)
    assert sorted((tmp_path / "out").iterdir()) == paths
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out"}
    written(tmp_path / "out", ct[2:], image()[2:], overwrite=True)
    (tmp_path / "empty").mkdir()
    written(tmp_path / "empty", ct)


def test_folders_that_are_refused(ct: list[Dataset], tmp_path: Path) -> None:
    old = written(tmp_path / "out", ct)[0].read_bytes()
    with pytest.raises(FileExistsError, match=r"^out: holds 5 entries: .* overwrite=True"):
        written(tmp_path / "out", ct)
    (tmp_path / "out" / "thesis.doc").write_text("precious")
    with pytest.raises(FileExistsError, match=r"^out: holds other things .* would be lost"):
        written(tmp_path / "out", ct, overwrite=True)
    assert (tmp_path / "out" / "IM_0001.dcm").read_bytes() == old
    for number, path in enumerate(sorted((tmp_path / "source").iterdir())):
        path.rename(path.with_name(f"IM_{number:04d}.dcm"))  # as scanners' exports are named too
    with pytest.raises(FileExistsError, match=r"^source: holds other things"):
        written(tmp_path / "source", ct, overwrite=True)
    assert len(list((tmp_path / "source").iterdir())) == 5
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match=r"^file: exists and is not a folder"):
        written(tmp_path / "file", ct, overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"^link: exists and is not a folder"):
        written(tmp_path / "link", ct, overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"^out: its folder 'no' is not there"):
        refuse_existing_folder(tmp_path / "no" / "out")
    with pytest.raises(NotADirectoryError, match=r"^out: its folder 'file'"):
        refuse_existing_folder(tmp_path / "file" / "out")


def test_a_folder_filled_while_writing_is_kept(
    ct: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Dataset.save_as

    def save(self: Dataset, *args: Any, **given: Any) -> None:
        real(self, *args, **given)
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "theirs").write_text("theirs")

    monkeypatch.setattr(Dataset, "save_as", save)
    with pytest.raises(FileExistsError, match="holds 1 entries"):
        written(tmp_path / "out", ct)
    assert listing(tmp_path / "out") == {"theirs": b"theirs"}
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out"}


# Arguments


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (image(4, 12, 10), "one header for each of 4 slices, got 5"),
        (image(5, 10, 12), r"like\[0\]: its \(Rows, Columns\) are \(12, 10\), .* \(10, 12\)"),
        (image()[0], r"want \(slices, H, W\), none empty, got \(12, 10\)"),
        (image()[:, :0], "none empty"),
        (image() + 1j, "want real numbers, got complex64"),
        (np.array([["x"]]), "want real numbers"),
        (np.where(np.arange(5)[:, None, None] == 3, np.nan, image()), "slice 3 holds NaN"),
        (np.where(np.arange(5)[:, None, None] == 1, -np.inf, image()), "slice 1 holds NaN or inf"),
        (image().astype(float) * 1e300, "slice 0 holds NaN or infinity"),
        (image() * 1000, "are no HU, want -32768 to 32767: clip them or pass unit='arbitrary'"),
    ],
)
def test_bad_values(ct: list[Dataset], tmp_path: Path, values: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        written(tmp_path / "out", ct, values)
    assert not (tmp_path / "out").exists()


def test_tensors_and_integers_are_written_alike(ct: list[Dataset], tmp_path: Path) -> None:
    whole = image().round()
    kinds: list[Any] = [whole, torch.from_numpy(whole).requires_grad_(), whole.astype(np.int16)]
    read = [pydicom.dcmread(written(tmp_path / str(n), ct, v)[1]) for n, v in enumerate(kinds)]
    assert read[0].PixelData == read[1].PixelData == read[2].PixelData


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"unit": "mu"}, "want 'HU' or 'arbitrary', got 'mu'"),
        ({"description": ""}, "description: want 1 to 990 printable ASCII"),
        ({"description": "line\nline"}, "description: want 1 to 990 printable ASCII"),
        ({"description": "Größe"}, "description: want 1 to 990 printable ASCII"),
        ({"description": "a\\b"}, "description: want no backslash"),
        ({"software": "x" * 65}, "software: want 1 to 64"),
        ({"modality": "MR"}, "modality: the source is CT, got 'MR'"),
        ({"affine": np.eye(3)}, r"affine: want 4 x 4 finite numbers, got shape \(3, 3\)"),
        ({"affine": np.zeros((4, 4))}, "affine: want the last row 0 0 0 1"),
    ],
)
def test_bad_arguments(ct: list[Dataset], tmp_path: Path, arguments: dict[str, Any],
                       match: str) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=match):
        written(tmp_path / "out", ct, **arguments)
    assert not (tmp_path / "out").exists()


def test_headers_that_are_refused(ct: list[Dataset], tmp_path: Path) -> None:
    def refused(match: str, like: list[Dataset], **given: Any) -> None:
        with pytest.raises(ValueError, match=match) as error:
            written(tmp_path / "out", like, **given)
        assert "4711" not in str(error.value)
        assert str(ct[0].StudyInstanceUID) not in str(error.value)

    def changed(number: int, keyword: str, value: Any) -> list[Dataset]:
        header = copy.deepcopy(ct[number])
        setattr(header, keyword, value)
        return [*ct[:number], header, *ct[number + 1 :]]

    refused(r"like\[1\]: lies no higher than like\[0\]: pass .* ascending order", ct[::-1])
    refused(r"like\[2\]: lies no higher", [ct[0], ct[1], ct[1], ct[3], ct[4]])
    refused(r"like\[3\]: its StudyInstanceUID is not", changed(3, "StudyInstanceUID", "1.2.3"))
    refused(r"like\[1\]: its PatientID is not", changed(1, "PatientID", "PID-4711-0000"))
    refused(r"like\[0\]: is a multi-frame image", changed(0, "NumberOfFrames", 5))
    enhanced = "1.2.840.10008.5.1.4.1.1.2.1"
    refused("is 'Enhanced CT Image Storage', want CT or MR", changed(2, "SOPClassUID", enhanced))
    refused("PixelSpacing: want positive", changed(1, "PixelSpacing", ["0", "1"]))
    refused("ImagePositionPatient: want 3 numbers", changed(4, "ImagePositionPatient", None))
    refused("want two perpendicular", changed(0, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]))
    mr = write_source(tmp_path / "mr", "MR")
    refused("unit: HU are of CT", mr, unit="HU")


def affine_of_source(first: int = 0) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = STEP * NORMAL, SPACING[0] * DOWN
    matrix[:3, 2], matrix[:3, 3] = SPACING[1] * ACROSS, ORIGIN + first * STEP * NORMAL
    return matrix


def test_an_affine_is_compared_with_the_headers(ct: list[Dataset], tmp_path: Path) -> None:
    written(tmp_path / "fits", ct, affine=torch.from_numpy(affine_of_source()))
    flipped = affine_of_source(4)
    flipped[:3, 0] *= -1
    swapped = affine_of_source()[:, [0, 2, 1, 3]]
    for wrong in (affine_of_source(1), flipped, swapped, np.diag([2.5, 0.75, 0.625, 1])):
        with pytest.raises(ValueError, match=r"affine: puts a slice .* mm from where like has it"):
            written(tmp_path / "out", ct, affine=wrong)


# Series of their own


@needs_tools
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("deidentify", [False, True])
def test_a_study_of_its_own(tmp_path: Path, modality: str, deidentify: bool) -> None:
    paths = written(tmp_path / "a", None, modality=modality, unit="arbitrary",
                    deidentify=deidentify)  # fmt: skip
    check_valid(paths, [])
    ds = pydicom.dcmread(paths[0])
    assert ds.Modality == modality
    assert str(ds.PatientName).startswith("ANON")
    assert "geometry is invented" in ds.ImageComments
    assert "SourceImageSequence" not in ds
    other = pydicom.dcmread(written(tmp_path / "b", None)[0])
    assert other.Modality == "CT"
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert ds[keyword].value != other[keyword].value


@pytest.mark.parametrize("turn", ["up", "down"])
def test_geometry_from_an_affine(tmp_path: Path, turn: str) -> None:
    highdicom = pytest.importorskip("highdicom", reason="a reader to compare with")
    affine = affine_of_source()
    if turn == "down":
        affine[:3, 0] *= -1
    paths = written(tmp_path / "out", None, affine=affine)
    read = [pydicom.dcmread(p) for p in paths]
    assert "invented" not in read[0].ImageComments
    for number, ds in enumerate(read):
        assert ds.ImagePositionPatient == pytest.approx(affine[:3, 3] + number * affine[:3, 0],
                                                        abs=1e-9)  # fmt: skip
        assert ds.ImageOrientationPatient == pytest.approx([*ACROSS, *DOWN], abs=1e-12)
        assert list(ds.PixelSpacing) == list(SPACING)
    volume = highdicom.get_volume_from_series(read)
    # highdicom's first axis runs against the normal
    ours = affine if turn == "down" else affine @ np.array(
        [[-1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])  # fmt: skip
    assert np.abs(volume.affine - ours).max() < 1e-9
    sheared = affine_of_source()
    sheared[:3, 1] += 0.2 * sheared[:3, 2]
    with pytest.raises(ValueError, match="rows and columns are not perpendicular"):
        written(tmp_path / "no", None, affine=sheared)
    with pytest.raises(ValueError, match="modality: want 'CT' or 'MR', got 'PT'"):
        written(tmp_path / "no", None, modality="PT")


# Uncertainty


def test_a_deviation_is_no_value_in_hu(source: tuple[Path, list[Dataset]], tmp_path: Path) -> None:
    folder, like = source
    std = image(low=0, high=80)
    ct = like[0].Modality == "CT"
    about: dict[str, Any] = {"description": "DDS", "software": "1"}
    unit = "HU" if ct else "arbitrary"
    paths = write_dicom_uncertainty(tmp_path / "std", std, like, unit=unit, **about)
    ds = pydicom.dcmread(paths[0])
    assert (ds.RescaleType, ds.RescaleIntercept, ds.SeriesNumber) == ("US", 0, 1004)
    title = "Standard deviation in HU: DDS" if ct else "Standard deviation: DDS"
    assert ds.SeriesDescription.startswith(title)
    check_read_back(paths, std, folder, float(ds.RescaleSlope))
    refused = [(std - std.min() - 0.5, unit, r"want no negative values, got -0\.5"),
               (std, "%", "unit: want 'HU' or 'arbitrary', got '%'")]  # fmt: skip
    if not ct:
        refused.append((std, "HU", "HU are of CT, and the image is MR"))
    for values, given_unit, match in refused:
        with pytest.raises(ValueError, match=match):
            write_dicom_uncertainty(tmp_path / "no", values, like, unit=given_unit, **about)
        with pytest.raises(ValueError, match=match):
            write_parametric_map(tmp_path / "no.dcm", values, like, unit=given_unit, **about)
    assert not list(tmp_path.glob("no*"))


def test_a_deviation_without_a_source(tmp_path: Path) -> None:
    std = image(low=0, high=80)
    paths = write_dicom_uncertainty(tmp_path / "own", std, None, unit="HU", description="DDS",
                                    software="1")  # fmt: skip
    ds = pydicom.dcmread(paths[0])
    assert (ds.Modality, ds.SeriesNumber, ds.RescaleType) == ("CT", 1001, "US")


@needs_tools
@pytest.mark.parametrize("deidentify", [False, True])
def test_parametric_map(source: tuple[Path, list[Dataset]], tmp_path: Path,
                        deidentify: bool) -> None:  # fmt: skip
    highdicom = pytest.importorskip("highdicom", reason="it writes and reads the maps")
    folder, like = source
    like[1].LossyImageCompression = "01"
    std = image(low=0, high=80)
    ct = like[0].Modality == "CT"
    given: dict[str, Any] = {"unit": "HU" if ct else "arbitrary", "description": "DDS",
                             "software": "1"}  # fmt: skip
    path = tmp_path / "std.dcm"
    write_parametric_map(path, std, like, deidentify=deidentify, **given)
    check_valid([path], [])
    read = highdicom.imread(path)
    volume = read.get_volume(apply_real_world_transform=True, dtype=np.float64)
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(p) for p in folder.iterdir()])
    assert np.array_equal(volume.array[::-1], std)
    assert np.array_equal(volume.affine, theirs.affine)
    mapping = read.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == ("[hnsf'U]" if ct else "1")
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert quantity.CodeValue == "386136009"
    assert read.LossyImageCompression == "01"
    assert "not for diagnostic use" in read.SeriesDescription
    if deidentify:
        check_nobody([path], like, kept_words(like) | {"PRIMARY"})
        assert read.LongitudinalTemporalInformationModified == "REMOVED"
    else:
        assert read.PatientID == PATIENT["PatientID"]
        check_valid([path], list(folder.iterdir()))
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        write_parametric_map(path, std, like, **given)
    with pytest.raises(ValueError, match="want no negative"):
        write_parametric_map(tmp_path / "no.dcm", std - 1, like, **given)
    assert not list(tmp_path.glob("*no*"))


def test_a_parametric_map_needs_highdicom(
    ct: list[Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r'pip install "recon\[dicom\]"'):
        write_parametric_map(tmp_path / "a.dcm", image(), ct, unit="HU", description="DDS",
                             software="1")  # fmt: skip


# A real series


@needs_tools
@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("deidentify", [False, True])
def test_real_series(tmp_path: Path, deidentify: bool) -> None:
    """Its UIDs were emptied, its body part is no term, and its private elements are many."""
    like = source_headers(REAL)[:3]
    values = image(3, 512, 512)
    paths = written(tmp_path / "out", like, values, deidentify=deidentify)
    check_valid(paths, [])
    for path, header, want in zip(paths, like, values, strict=True):
        ds = pydicom.dcmread(path)
        slope = float(ds.RescaleSlope)
        got = ds.pixel_array * slope + float(ds.RescaleIntercept)
        assert np.abs(got - want).max() <= slope / 2 * (1 + 1e-9)
        assert list(ds.ImagePositionPatient) == list(header.ImagePositionPatient)
        assert ds.StudyInstanceUID
    if deidentify:
        numbers = {str(v) for h in like for v in (*h.ImagePositionPatient, *h.PixelSpacing,
                                                  h.DistanceSourceToDetector)}  # fmt: skip
        kept = numbers | {"MONOCHROME2", "AXIAL", str(pydicom.dcmread(paths[0]).SOPClassUID)}
        check_nobody(paths, like, kept)
