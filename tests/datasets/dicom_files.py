"""Writing small CT and MR series for the tests of whatever reads or derives from DICOM."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
RLE, JPEG_LS = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"
JPEG_2000, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70"
PATIENT, PATIENT_ID, STUDY_DATE = "Roentgen^Bertha", "HOSPITAL-4711", "18951222"
ROOT = "1.2.826.0.1.3680043.8.498"


def write_series(
    folder: Path,
    values: ArrayLike,
    *,
    modality: str = "CT",
    spacing: tuple[float, float, float] = (2.5, 0.75, 0.5),
    origin: tuple[float, float, float] = (-10.25, -20.5, 30.0),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    slope: float | Sequence[float] | None = 1.0,
    intercept: float | Sequence[float] | None = -1024.0,
    bits: int = 16,
    signed: bool = False,
    syntax: str = EXPLICIT,
    series_number: int = 3,
    name: str = "IM_{:04}.dcm",
    change: Callable[[Any, int], None] | None = None,
) -> list[Path]:
    """Write stored whole numbers ``(slices, rows, columns)``, ascending along the normal.

    ``spacing`` is of slices, rows, columns in mm; ``origin`` is that of slice 0; ``bits`` are the
    BitsStored of 16. ``change(dataset, i)`` alters slice i last of all. UIDs depend on
    ``series_number`` alone; every series is of one study of one invented patient.
    """
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID

    folder.mkdir(parents=True, exist_ok=True)
    stored = np.asarray(values)
    row, column = np.array(orientation, float).reshape(2, 3)
    normal = np.cross(row, column)
    paths = []
    for i, image in enumerate(stored):
        data = Dataset()
        data.SOPClassUID = {"CT": CT, "MR": MR}[modality]
        data.SOPInstanceUID = f"{ROOT}.1.{series_number}.{i + 1}"
        data.SpecificCharacterSet = "ISO_IR 100"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = STUDY_DATE
        data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "101112"
        data.AccessionNumber = "ACC-0815"
        data.Modality, data.Manufacturer = modality, "Acme"
        data.ManufacturerModelName, data.InstitutionName = "Ring 1", "Juliusspital"
        data.ReferringPhysicianName = "Koelliker^Albert"
        data.StudyDescription, data.SeriesDescription = "Abdomen of Bertha", "Abdomen, thin"
        data.PatientName, data.PatientID = PATIENT, PATIENT_ID
        data.PatientBirthDate, data.PatientSex = "18390422", "F"
        data.BodyPartExamined, data.PatientPosition = "ABDOMEN", "HFS"
        data.StudyInstanceUID, data.StudyID = f"{ROOT}.2", "1"
        data.SeriesInstanceUID = f"{ROOT}.2.{series_number}"
        data.FrameOfReferenceUID, data.PositionReferenceIndicator = f"{ROOT}.3", ""
        data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = series_number, 1, i + 1
        place = np.array(origin) + i * spacing[0] * normal
        data.ImagePositionPatient = [format(v, ".10g") for v in place]
        data.ImageOrientationPatient = [format(v, ".10g") for v in orientation]
        data.PixelSpacing = [format(v, ".10g") for v in spacing[1:]]
        data.SliceThickness = "5"  # of no use for the distance: slices may overlap
        if modality == "CT":
            data.KVP, data.ConvolutionKernel, data.RescaleType = "120", "B30", "HU"
        else:
            data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "GR", "NONE", ""
            data.MRAcquisitionType, data.EchoTrainLength = "2D", 1
            data.RepetitionTime, data.EchoTime, data.FlipAngle = "500", "10", "15"
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows, data.Columns = image.shape
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
        data.PixelRepresentation = int(signed)
        for keyword, number in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
            if number is not None:
                one = number[i] if isinstance(number, Sequence) else number
                setattr(data, keyword, format(one, ".10g"))
        dtype = np.dtype("i2" if signed else "u2")
        data.PixelData = image.astype(dtype.newbyteorder("<")).tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = UID(EXPLICIT)
        if syntax in (RLE, JPEG_LS, JPEG_2000):
            data.compress(syntax, generate_instance_uid=False)
        else:
            data.file_meta.TransferSyntaxUID = UID(syntax)
        if syntax == BIG_ENDIAN:
            data.PixelData = image.astype(dtype.newbyteorder(">")).tobytes()
        data["PixelData"].VR = "OB" if data.file_meta.TransferSyntaxUID.is_encapsulated else "OW"
        if change is not None:
            change(data, i)
        paths.append(folder / name.format(i))
        data.save_as(paths[-1], enforce_file_format=True)
    return paths
