"""Writing reconstructions as DICOM: series derived from a source's, or of their own.

Research output: every image says that it is not for diagnostic use.
"""

import secrets
import warnings
from collections.abc import Sequence
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recon.datasets.deidentify import coded, decimal_string, numbers
from recon.datasets.derived import sources_of
from recon.datasets.errors import StrPath
from recon.datasets.write import Array, on_host, replacing
from recon.datasets.write_folder import MAKER, refuse_existing_folder, replacing_folder

if TYPE_CHECKING:
    from pydicom import Dataset

LEVELS = 65535
HU_LIMITS = (-32768, 32767)  # what viewers that hold HU in 16 bits can show
WARNING = "Not for diagnostic use"


def write_dicom(
    folder: StrPath,
    values: Array,
    like: "Sequence[Dataset] | None",
    *,
    unit: str,
    description: str,
    software: str,
    affine: Array | None = None,
    modality: str | None = None,
    series_number: int | None = None,
    deidentify: bool = False,
    secret: bytes | None = None,
    implicit_vr: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write a new series, ``IM_0001.dcm`` and on, into a folder that appears whole or not at all.

    Stored are 16-bit numbers ``k`` with ``value = slope k + intercept``, one slope for the series,
    so that what is read back is within ``slope / 2``. In ``arbitrary`` unit zero stays zero where
    nothing is negative.

    Parameters
    ----------
    values
        Real and finite, ``(slices, H, W)``.
    like
        The source's headers, one for each slice and in ascending order of position, as
        :func:`source_headers` gives them. The series keeps patient, study, geometry and what is
        known of the scan, and gets UIDs of its own. With None it begins a study of its own, of a
        patient called ANON.
    unit
        ``HU`` or ``arbitrary``.
    description
        What was done, in ASCII; its beginning names the series.
    software
        Version of the program that made ``values``.
    affine
        As :class:`Volume` has it. With ``like`` it is only compared; without it is the geometry,
        and if None too, voxels of 1 mm are invented, which the image comments say.
    modality
        Without ``like``: ``CT`` or ``MR``; by default CT for HU.
    series_number
        By default that of the source plus 1000.
    deidentify
        Leave out the patient; see :func:`recon.datasets.deidentify.deidentified`.
    secret
        At least 16 bytes from which replaced UIDs and patient numbers follow. Series written with
        the same secret stay one study; by default it is drawn anew.

    Raises
    ------
    ValueError
        ``values``, ``like`` and ``affine`` do not fit together, values are not finite or no
        possible HU, or a source cannot be de-identified.
    FileExistsError
        The folder holds anything, or with ``overwrite`` anything but such a series.
    """
    from pydicom import config
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    refuse_existing_folder(folder, overwrite)
    stack = _stack(values)
    _check_texts(description, software)
    if unit not in ("HU", "arbitrary"):
        raise ValueError(f"unit: want 'HU' or 'arbitrary', got {unit!r}")
    # Sources break rules of form that copies of theirs may break too, and what pydicom would say of
    # it repeats the value.
    with config.disable_value_validation():
        if like is None:
            modality = modality or ("CT" if unit == "HU" else "MR")
        sources = sources_of(like, stack.shape, affine, modality, description,
                             _secret(deidentify, secret))  # fmt: skip
        if unit == "HU":
            _check_hu(stack, sources[0])
        shared = _shared(stack, sources[0], unit, description, software, deidentify)
        if like is None and affine is None:
            shared.ImageComments += "; the geometry is invented, with voxels of 1 mm"
        if series_number is not None:
            shared.SeriesNumber = series_number
        syntax = ImplicitVRLittleEndian if implicit_vr else ExplicitVRLittleEndian
        names = [f"IM_{number:04d}.dcm" for number in range(1, len(stack) + 1)]
        with replacing_folder(folder, overwrite) as part:
            for number, (name, source, image) in enumerate(zip(names, sources, stack, strict=True)):
                out = _derived(source, shared, image, number + 1)
                out.file_meta.TransferSyntaxUID = syntax
                out.save_as(part / name, enforce_file_format=True)
    return [Path(folder) / name for name in names]


def write_dicom_uncertainty(
    folder: StrPath,
    std: Array,
    like: "Sequence[Dataset] | None",
    *,
    unit: str,
    description: str,
    software: str,
    affine: Array | None = None,
    modality: str | None = None,
    deidentify: bool = False,
    secret: bytes | None = None,
    implicit_vr: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write a standard deviation per voxel as a series next to the reconstruction's.

    ``unit`` is the reconstruction's. A deviation of so many HU is no value in HU (that scale
    begins at air), so the rescale type is ``US``, unspecified, and the descriptions name the unit.
    Otherwise as :func:`write_dicom`, with the source's series number plus 1001.
    """
    from pydicom import config

    if like is None and modality is None and unit == "HU":
        modality = "CT"
    with config.disable_value_validation():
        series_number = 1 + (_series_number(like[0]) if like else 1000)
        name = _deviation_name(unit, like[0].get("Modality") if like else modality)
    _check_deviation(_stack(std))
    return write_dicom(
        folder, std, like, unit="arbitrary", description=f"{name}: {description}",
        software=software, affine=affine, modality=modality, series_number=series_number,
        deidentify=deidentify, secret=secret, implicit_vr=implicit_vr, overwrite=overwrite,
    )  # fmt: skip


def write_parametric_map(
    path: StrPath,
    std: Array,
    like: "Sequence[Dataset]",
    *,
    unit: str,
    description: str,
    software: str,
    affine: Array | None = None,
    deidentify: bool = False,
    secret: bytes | None = None,
    overwrite: bool = False,
) -> None:
    """Write a standard deviation per voxel as one Parametric Map file, float32 as it is.

    Quantity and unit are coded (SNOMED CT 386136009; UCUM ``[hnsf'U]``, or ``1``). Few viewers show
    such files yet; :func:`write_dicom_uncertainty` is for the others. Arguments as there.

    Raises
    ------
    ImportError
        highdicom is missing: ``pip install "recon[dicom]"``.
    """
    try:
        from highdicom import VOILUTTransformation
        from highdicom.pm import ParametricMap, RealWorldValueMapping
    except ImportError as error:
        raise ImportError('write_parametric_map: highdicom is missing: pip install "recon[dicom]"'
                          ) from error  # fmt: skip
    from pydicom import config
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    stack = _stack(std)
    _check_texts(description, software)
    _check_deviation(stack)
    with (
        warnings.catch_warnings(),
        config.disable_value_validation(),
        replacing(path, overwrite=overwrite) as (part,),
    ):
        warnings.simplefilter("ignore")  # highdicom's repeat names that are not as it likes them
        sources = sources_of(like, stack.shape, affine, None, description,
                             _secret(deidentify, secret))  # fmt: skip
        title = f"{_deviation_name(unit, sources[0].Modality)}: {description}"
        for source in sources:
            source.setdefault("SOPInstanceUID", generate_uid())
            source.Rows, source.Columns = stack.shape[1:]
        window = VOILUTTransformation(*_window(stack), voi_lut_function="LINEAR_EXACT")
        features = sources[0].get("RecognizableVisualFeatures") == "YES"
        mapping = RealWorldValueMapping(
            lut_label="STD", lut_explanation="Standard deviation", slope=1.0, intercept=0.0,
            unit=codes.UCUM.HounsfieldUnit if unit == "HU" else codes.UCUM.NoUnits,
            value_range=(float(stack.min()), float(stack.max())),
            quantity_definition=codes.SCT.StandardDeviation,
        )  # fmt: skip
        out = ParametricMap(
            source_images=sources, pixel_array=stack,
            series_instance_uid=generate_uid(), series_number=_series_number(sources[0]) + 2,
            sop_instance_uid=generate_uid(), instance_number=1,
            manufacturer=MAKER, manufacturer_model_name=MAKER, software_versions=software,
            device_serial_number="none", contains_recognizable_visual_features=features,
            real_world_value_mappings=[mapping], voi_lut_transformations=[window],
            transfer_syntax_uid=ExplicitVRLittleEndian,
            content_description=title[:64],
        )  # fmt: skip
        out.SeriesDescription = _series_description(title)
        out.ImageComments = f"{title} ({WARNING.lower()})"
        for keyword in ("BodyPartExamined", "Laterality", "LossyImageCompression",
                        "LossyImageCompressionRatio", "LossyImageCompressionMethod"):  # fmt: skip
            if keyword in sources[0]:
                out[keyword] = sources[0][keyword]
        if deidentify:
            out.LongitudinalTemporalInformationModified = "REMOVED"
            for keyword, none in (("ContentDate", "19000101"), ("ContentTime", "000000")):
                setattr(out, keyword, none)  # may not be empty here
            for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
                delattr(out, keyword)
            for item in out.ContributingEquipmentSequence:
                item.pop("ContributionDateTime", None)
        out.save_as(part, enforce_file_format=True)


def _stack(values: Array) -> NDArray[np.float32]:
    array = on_host(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"values: want real numbers, got {array.dtype}: pass the magnitude of "
                         "complex images")  # fmt: skip
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"values: want (slices, H, W), none empty, got {array.shape}")
    with np.errstate(over="ignore"):  # found just below
        array = array.astype(np.float32, copy=False)
    for number, image in enumerate(array):
        if not np.isfinite(image).all():
            raise ValueError(f"values: slice {number} holds NaN or infinity")
    return array


def _secret(deidentify: bool, secret: bytes | None) -> bytes | None:
    if secret is not None and not deidentify:
        raise ValueError("secret: is of use with deidentify=True alone")
    return (secret if secret is not None else secrets.token_bytes(32)) if deidentify else None


def _check_texts(description: str, software: str) -> None:
    for name, text, longest in (("description", description, 990), ("software", software, 64)):
        # the character sets of all sources hold ASCII, and DICOM separates values by backslashes
        if not (0 < len(text) <= longest and text.isascii() and text.isprintable()):
            raise ValueError(f"{name}: want 1 to {longest} printable ASCII characters")
        if "\\" in text:
            raise ValueError(f"{name}: want no backslash")


def _deviation_name(unit: str, modality: str | None) -> str:
    if unit not in ("HU", "arbitrary"):
        raise ValueError(f"unit: want 'HU' or 'arbitrary', got {unit!r}")
    if unit == "HU" and modality == "MR":
        raise ValueError("unit: HU are of CT, and the image is MR: pass 'arbitrary'")
    return "Standard deviation" + (" in HU" if unit == "HU" else "")


def _check_deviation(stack: NDArray[np.float32]) -> None:
    if stack.min() < 0:
        raise ValueError(f"std: want no negative values, got {stack.min():g}")


def _check_hu(stack: NDArray[np.float32], source: "Dataset") -> None:
    if source.Modality != "CT":
        raise ValueError("unit: HU are of CT, and the source is MR: pass 'arbitrary'")
    low, high = float(stack.min()), float(stack.max())
    if low < HU_LIMITS[0] or high > HU_LIMITS[1]:
        raise ValueError(f"values: from {low:g} to {high:g} are no HU, want "
                         f"{HU_LIMITS[0]} to {HU_LIMITS[1]}: clip them or pass unit='arbitrary'"
                         )  # fmt: skip


def _shared(stack: NDArray[np.float32], source: "Dataset", unit: str, description: str,
            software: str, deidentify: bool) -> "Dataset":  # fmt: skip
    """The attributes that all slices of the new series have alike."""
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    out = Dataset()
    third = "AXIAL" if source.Modality == "CT" else "OTHER"
    out.ImageType = ["DERIVED", "SECONDARY", third]
    out.SeriesInstanceUID = generate_uid()
    out.SeriesNumber = _series_number(source)
    out.SeriesDescription = _series_description(description)
    out.DerivationDescription = f"{description} ({WARNING.lower()})"
    out.ImageComments = WARNING
    out.Manufacturer = out.ManufacturerModelName = MAKER
    out.SoftwareVersions = software
    now = datetime.now()
    for keyword in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(out, keyword, f"{now:%Y%m%d}")
        setattr(out, keyword.replace("Date", "Time"), f"{now:%H%M%S}")
    if deidentify:
        for keyword in ("SeriesDate", "SeriesTime", "InstanceCreationDate", "InstanceCreationTime"):
            delattr(out, keyword)
        out.ContentDate = out.ContentTime = None
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    out.Rows, out.Columns = stack.shape[1:]
    out.BitsAllocated = out.BitsStored = 16
    out.HighBit, out.PixelRepresentation = 15, 0
    out.RescaleIntercept, out.RescaleSlope = coding(stack, keep_zero=unit != "HU")
    out.RescaleType = "HU" if unit == "HU" else "US"
    if unit == "HU":
        out.WindowCenter, out.WindowWidth = "40", "400"
    else:
        centre, width = _window(stack)
        out.WindowCenter, out.WindowWidth = f"{centre:.6g}", f"{width:.6g}"
        out.VOILUTFunction = "LINEAR_EXACT"  # the default one is off by a whole unit
    return out


def _derived(source: "Dataset", shared: "Dataset", image: NDArray[np.float32],
             number: int) -> "Dataset":  # fmt: skip
    """One image of the new series."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import generate_uid

    out = Dataset()
    out.update(source)
    out.update(shared)
    derived_from = out.pop("SOPInstanceUID", None)
    if derived_from is not None:
        item = Dataset()
        item.ReferencedSOPClassUID = source.SOPClassUID
        item.ReferencedSOPInstanceUID = derived_from.value
        item.PurposeOfReferenceCodeSequence = [
            coded("121322", "DCM", "Source image for image processing operation")
        ]
        out.SourceImageSequence = [item]
    out.SOPInstanceUID = generate_uid()
    out.InstanceNumber = number
    # The slope and intercept as the file has them, not as they were before rounding to text.
    intercept, slope = float(shared.RescaleIntercept), float(shared.RescaleSlope)
    codes = np.rint((image.astype(np.float64) - intercept) / slope).astype("<u2")
    out.add_new("PixelData", "OW", codes.tobytes())
    out.file_meta = FileMetaDataset()
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    return out


def coding(stack: NDArray[np.float32], keep_zero: bool) -> tuple[str, str]:
    """Intercept and slope as decimal strings, rounded outwards: every value has a code."""
    low, high = Decimal(float(stack.min())), Decimal(float(stack.max()))
    if keep_zero:
        low = min(low, Decimal(0))
    # ten digits are the most that fit into 16 characters whatever the exponent
    down, up = Context(prec=10, rounding=ROUND_FLOOR), Context(prec=10, rounding=ROUND_CEILING)
    intercept = down.create_decimal(low)
    span = high - intercept
    # not so fine that double precision could not count the steps; float32 is 60 times coarser
    finest = Decimal("1e-9") * max(abs(intercept), abs(high))
    slope = up.create_decimal(max(span / LEVELS, finest)) if span else Decimal(1)
    return decimal_string(float(intercept)), decimal_string(float(slope))


def _window(stack: NDArray[np.float32]) -> tuple[float, float]:
    """Centre and width from the 1st to the 99th percentile."""
    few = stack.reshape(-1)[:: max(1, stack.size // 1_000_000)]
    low, high = (float(q) for q in np.percentile(few, [1, 99]))
    return (low + high) / 2, (high - low) or 1.0


def _series_number(source: "Dataset") -> int:
    given = numbers(source, "SeriesNumber")
    return int(given[0] if given else 0) + 1000


def _series_description(description: str) -> str:
    """64 characters hold the warning and the beginning of the description."""
    return f"{description[: 64 - len(WARNING) - 3]} ({WARNING.lower()})"
