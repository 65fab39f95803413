"""The headers that new images take over: checked to fit, completed, or made up."""

import math
import secrets
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from recon.datasets.deidentify import (
    SECRET_BYTES,
    UIDS,
    UNPAIRED,
    carried,
    decimal_string,
    deidentified,
    numbers,
    refuse_identity,
)
from recon.datasets.write import Array

if TYPE_CHECKING:
    from pydicom import Dataset

CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
"""Storage classes of images with one slice in a file."""

# Type 2 of PS3.3, and 2C where the condition may hold: they may be empty but not missing.
_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
          "StudyID", "AccessionNumber", "ReferringPhysicianName", "SeriesNumber",
          "AcquisitionNumber", "PatientPosition", "PositionReferenceIndicator",
          "SliceThickness")  # fmt: skip
_EMPTY_IN = {
    "CT": ("KVP",),
    "MR": ("ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime", "EchoTrainLength"),
}


def check_fit(like: "Sequence[Dataset]", shape: tuple[int, ...], affine: Array | None) -> None:
    """Refuse headers of other slices than those of ``values``, as far as that can be seen.

    Raises
    ------
    ValueError
        They are not one series, or not in ascending order of position; their number or size is not
        ``shape``; or ``affine`` puts the slices elsewhere.
    """
    if len(like) != shape[0]:
        raise ValueError(f"like: want one header for each of {shape[0]} slices, got {len(like)}")
    for number, header in enumerate(like):
        frames = numbers(header, "NumberOfFrames")
        if frames and frames != [1.0]:
            raise ValueError(f"like[{number}]: is a multi-frame image, want one header per slice")
        size = tuple(int(n) for key in ("Rows", "Columns") for n in numbers(header, key))
        if size != shape[1:]:
            raise ValueError(f"like[{number}]: its (Rows, Columns) are {size}, those of the "
                             f"values {shape[1:]}")  # fmt: skip
        for key in ("PatientID", *UIDS):
            if (header.get(key) or "") != (like[0].get(key) or ""):
                raise ValueError(f"like[{number}]: its {key} is not that of like[0]: pass the "
                                 "headers of one series")  # fmt: skip
    corners = _ascending_corners(like, shape)
    if affine is None:
        return
    matrix = _matrix(affine)
    index = [[[i, 0, 0, 1], [i, shape[1] - 1, 0, 1], [i, 0, shape[2] - 1, 1]]
             for i in range(shape[0])]  # fmt: skip
    away = np.abs(np.array(index) @ matrix[:3].T - corners).max()
    if away > 0.1 * np.linalg.norm(matrix[:3, :3], axis=0).min():
        raise ValueError(f"affine: puts a slice {away:.3g} mm from where like has it: pass the "
                         "headers of the very slices that values hold")  # fmt: skip


def sources_of(like: "Sequence[Dataset] | None", shape: tuple[int, ...], affine: Array | None,
               modality: str | None, description: str,
               secret: bytes | None) -> "list[Dataset]":  # fmt: skip
    """The headers for new images of ``shape``: those of ``like``, checked to fit, or made up.

    With a ``secret`` they are without the patient, and so must the ``description`` be.
    """
    if like is None:
        assert modality is not None
        return take_over(invent(shape, affine, modality), None, secret)
    check_fit(like, shape, affine)
    if secret is not None:
        refuse_identity(description, like[0])
    return take_over(like, modality, secret)


def refuse_sources(like: "Sequence[Dataset] | None", shape: tuple[int, ...], *,
                   affine: Array | None, modality: str | None, description: str,
                   deidentify: bool) -> None:  # fmt: skip
    """Raise now what ``write_dicom`` would raise of its headers after hours of work."""
    from pydicom import config

    with config.disable_value_validation():
        sources_of(like, shape, affine, modality, description,
                   secrets.token_bytes(SECRET_BYTES) if deidentify else None)  # fmt: skip


def take_over(like: "Sequence[Dataset]", modality: str | None,
              secret: bytes | None) -> "list[Dataset]":  # fmt: skip
    """What new images have from their sources, complete but for what is theirs alone.

    With a ``secret`` they are de-identified. UIDs are the source's or stand for them; that of the
    image may be missing.
    """
    from pydicom.uid import generate_uid

    sources = [carried(h) if secret is None else deidentified(h, secret) for h in like]
    fresh = {key: generate_uid() for key in UIDS}
    for number, (header, source) in enumerate(zip(like, sources, strict=True)):
        uid = source.get("SOPClassUID") or CLASSES.get(header.get("Modality"))
        found = [name for name, one in CLASSES.items() if one == uid]
        if not found:
            raise ValueError(f"like[{number}]: is {getattr(uid, 'name', uid)!r}, want CT or MR "
                             "Image Storage with one slice in a file")  # fmt: skip
        if modality not in (None, *found):
            raise ValueError(f"modality: the source is {found[0]}, got {modality!r}")
        source.SOPClassUID, source.Modality = uid, found[0]
        for keyword, made in fresh.items():
            if not source.get(keyword):
                setattr(source, keyword, made)
        for keyword in (*_EMPTY, *_EMPTY_IN[source.Modality]):
            if keyword not in source:
                setattr(source, keyword, None)
        if source.get("BodyPartExamined") in UNPAIRED.split():
            source.pop("Laterality", None)
        elif "Laterality" not in source:
            source.Laterality = None  # the part may be one of a pair
        if source.Modality == "MR":
            source.ScanningSequence = source.get("ScanningSequence") or "RM"
            source.SequenceVariant = source.get("SequenceVariant") or "NONE"
    if any(source.get("LossyImageCompression") == "01" for source in sources):
        for source in sources:
            source.LossyImageCompression = "01"
    return sources


def invent(shape: tuple[int, ...], affine: Array | None, modality: str) -> "list[Dataset]":
    """Headers of a study of its own, of nobody; without ``affine`` its voxels are 1 mm wide."""
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    if modality not in CLASSES:
        raise ValueError(f"modality: want 'CT' or 'MR', got {modality!r}")
    # slices go up, rows to the back, columns to the left
    matrix = _matrix(np.eye(4)[:, [2, 1, 0, 3]] if affine is None else affine)
    steps = np.linalg.norm(matrix[:3, :3], axis=0)
    down, across = (matrix[:3, 1:3] / steps[1:]).T
    if abs(down @ across) > 1e-4:
        raise ValueError("affine: rows and columns are not perpendicular, which DICOM cannot say: "
                         "resample the image")  # fmt: skip
    study, frame, patient = generate_uid(), generate_uid(), f"ANON{uuid.uuid4().hex[:12].upper()}"
    now = datetime.now()
    headers = []
    for number in range(shape[0]):
        header = Dataset()
        header.SOPClassUID = CLASSES[modality]
        header.PatientName, header.PatientID = "ANON^", patient
        header.StudyInstanceUID, header.FrameOfReferenceUID = study, frame
        header.StudyDate, header.StudyTime, header.StudyID = f"{now:%Y%m%d}", f"{now:%H%M%S}", "1"
        header.Rows, header.Columns = shape[1:]
        position = matrix[:3, 3] + number * matrix[:3, 0]
        header.ImagePositionPatient = [decimal_string(v) for v in position]
        header.ImageOrientationPatient = [decimal_string(v) for v in (*across, *down)]
        header.PixelSpacing = [decimal_string(steps[1]), decimal_string(steps[2])]
        header.SliceThickness = decimal_string(steps[0])
        headers.append(header)
    return headers


def _ascending_corners(like: "Sequence[Dataset]", shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Centres of three corner pixels of each slice, in mm: ``(slices, 3, 3)``."""
    corners: list[list[NDArray[np.float64]]] = []
    heights: list[float] = []
    for number, header in enumerate(like):
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6),
                               ("PixelSpacing", 2)):  # fmt: skip
            if len(numbers(header, keyword)) != count:
                raise ValueError(f"like[{number}]: {keyword}: want {count} numbers")
        origin = np.array(numbers(header, "ImagePositionPatient"))
        across, down = np.array(numbers(header, "ImageOrientationPatient")).reshape(2, 3)
        row_step, column_step = numbers(header, "PixelSpacing")
        normal = np.cross(across, down)
        if not math.isclose(float(np.linalg.norm(normal)), 1, abs_tol=1e-2):
            raise ValueError(f"like[{number}]: ImageOrientationPatient: want two perpendicular "
                             "unit vectors")  # fmt: skip
        if not (row_step > 0 and column_step > 0):
            raise ValueError(f"like[{number}]: PixelSpacing: want positive numbers")
        heights.append(float(origin @ normal))
        if number and not heights[-1] > heights[-2] + 1e-4:
            raise ValueError(f"like[{number}]: lies no higher than like[{number - 1}]: pass values "
                             "and headers in ascending order along the normal of the slices, "
                             "each position once")  # fmt: skip
        corners.append([origin, origin + (shape[1] - 1) * row_step * down,
                        origin + (shape[2] - 1) * column_step * across])  # fmt: skip
    return np.array(corners)


def _matrix(affine: Array) -> NDArray[np.float64]:
    matrix = torch.as_tensor(affine).detach().cpu().numpy().astype(np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"affine: want 4 x 4 finite numbers, got shape {matrix.shape}")
    if not (matrix[3] == (0, 0, 0, 1)).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise ValueError("affine: want the last row 0 0 0 1, and voxels of some volume")
    return matrix
