"""Writing ISMRMRD files (MRD version 1): raw acquisitions, and series of images."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.errors import StrPath
from recon.datasets.ismrmrd_acquisitions import NOISE
from recon.datasets.ismrmrd_header import LARGEST
from recon.datasets.write import Array, as_numbers, replacing

Triple = tuple[float, float, float]

FIRST_IN_ENCODE_STEP1, LAST_IN_ENCODE_STEP1 = 1, 2
FIRST_IN_SLICE, LAST_IN_SLICE, LAST_IN_MEASUREMENT = 7, 8, 25
SAMPLE_TIME_US = 5.0  # a number it must be; of noise and lines alike it changes nothing
NOISE_SAMPLES = 32768  # of an acquisition: its count of samples has 16 bits

COUNTERS = np.dtype([
    *((name, "<u2") for name in ("kspace_encode_step_1", "kspace_encode_step_2", "average", "slice",
                                 "contrast", "phase", "repetition", "set", "segment")),
    ("user", "<u2", 8),
])  # fmt: skip
DIRECTIONS = [(name, "<f4", 3) for name in ("position", "read_dir", "phase_dir", "slice_dir",
                                            "patient_table_position")]  # fmt: skip
ACQUISITION_HEAD = np.dtype([
    ("version", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"), ("scan_counter", "<u4"),
    ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", 3),
    *((name, "<u2") for name in ("number_of_samples", "available_channels", "active_channels")),
    ("channel_mask", "<u8", 16),
    *((name, "<u2") for name in ("discard_pre", "discard_post", "center_sample",
                                 "encoding_space_ref", "trajectory_dimensions")),
    ("sample_time_us", "<f4"), *DIRECTIONS, ("idx", COUNTERS), ("user_int", "<i4", 8),
    ("user_float", "<f4", 8),
])  # fmt: skip
IMAGE_HEAD = np.dtype([
    ("version", "<u2"), ("data_type", "<u2"), ("flags", "<u8"), ("measurement_uid", "<u4"),
    ("matrix_size", "<u2", 3), ("field_of_view", "<f4", 3), ("channels", "<u2"), *DIRECTIONS,
    *((name, "<u2") for name in ("average", "slice", "contrast", "phase", "repetition", "set")),
    ("acquisition_time_stamp", "<u4"), ("physiology_time_stamp", "<u4", 3),
    *((name, "<u2") for name in ("image_type", "image_index", "image_series_index")),
    ("user_int", "<i4", 8), ("user_float", "<f4", 8), ("attribute_string_len", "<u4"),
])  # fmt: skip
FLOAT, COMPLEX = 5, 7  # data types
MAGNITUDE, REAL, COMPLEX_IMAGE = 1, 3, 5  # image types
META = '<?xml version="1.0"?>\n<ismrmrdMeta>\n</ismrmrdMeta>\n'


def write_ismrmrd(
    path: StrPath,
    kspace: Tensor,
    *,
    mask: Tensor | None = None,
    noise: Tensor | None = None,
    recon_size: tuple[int, int] | None = None,
    field_of_view_mm: Triple = (220.0, 220.0, 5.0),
    overwrite: bool = False,
) -> None:
    """Write Cartesian k-space as ISMRMRD acquisitions, one for each sampled column and slice.

    ``kspace`` is complex ``(slices, coils, H, W)`` as in :class:`Scan`; ``mask``, bool ``(W,)``,
    says which columns were sampled. ``noise``, complex ``(coils, samples)``, is a noise scan in the
    units of ``kspace``. ``field_of_view_mm`` is that of the image of ``recon_size`` (default
    ``(H, W)``) along H and W, and the distance of slices; a reader takes an H beyond it for
    oversampling. The dwell time, the resonance frequency and the slices' place in the scanner are
    invented.
    """
    import h5py

    values = as_numbers("kspace", kspace, complex_too=True)
    if values.ndim != 4 or values.dtype != np.complex64 or 0 in values.shape:
        raise ValueError(f"write_ismrmrd: want complex (slices, coils, H, W), got {values.dtype} "
                         f"{values.shape}")  # fmt: skip
    count, coils, height, width = values.shape
    if max(values.shape) > LARGEST:
        raise ValueError(f"write_ismrmrd: sizes above {LARGEST} do not fit, got {values.shape}")
    if mask is not None and (tuple(mask.shape) != (width,) or mask.dtype != torch.bool):
        raise ValueError(f"write_ismrmrd: want a bool mask ({width},), got {mask.dtype} "
                         f"{tuple(mask.shape)}")  # fmt: skip
    columns = np.arange(width) if mask is None else np.nonzero(mask.cpu().numpy())[0]
    if not len(columns):
        raise ValueError("write_ismrmrd: the mask samples nothing")
    for number, part in enumerate(values):
        if not np.isfinite(part[..., columns]).all():
            raise ValueError(f"write_ismrmrd: slice {number} holds NaN or infinity")
    size = recon_size or (height, width)
    if not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise ValueError(f"write_ismrmrd: want a recon_size within {(height, width)}, got {size}")
    _check_field_of_view("write_ismrmrd", field_of_view_mm)
    ambient = np.empty((coils, 0), np.complex64)
    if noise is not None:
        ambient = as_numbers("noise", noise, complex_too=True)
        fits = ambient.dtype == np.complex64 and ambient.ndim == 2 and len(ambient) == coils
        if not fits or not np.isfinite(ambient).all():
            raise ValueError(f"write_ismrmrd: noise: want finite complex ({coils}, samples), got "
                             f"{ambient.dtype} {ambient.shape}")  # fmt: skip
    header = _header_xml((height, width), size, field_of_view_mm, count, coils)
    dtype = np.dtype([("head", ACQUISITION_HEAD), ("traj", h5py.vlen_dtype(np.float32)),
                      ("data", h5py.vlen_dtype(np.float32))])  # fmt: skip
    spaced = field_of_view_mm[2]
    with replacing(path, overwrite=overwrite) as (part,), h5py.File(part, "w") as file:
        _write_xml(file, header)
        data = file.create_dataset("dataset/data", (0,), dtype, maxshape=(None,), chunks=(64,))
        for heads, scan in _scans(values, ambient, columns, spaced):
            rows = np.zeros(len(heads), dtype)
            heads["active_channels"] = heads["available_channels"] = coils
            heads["channel_mask"] = _channel_mask(coils)
            heads["scan_counter"] = len(data) + np.arange(len(heads))
            rows["head"] = heads
            for row, samples in zip(rows, scan, strict=True):
                row["data"] = np.ascontiguousarray(samples).view(np.float32).reshape(-1)
                row["traj"] = np.empty(0, np.float32)
            data.resize(len(data) + len(rows), axis=0)
            data[-len(rows) :] = rows


def write_ismrmrd_images(
    path: StrPath,
    images: Array,
    *,
    affine: Tensor | None = None,
    field_of_view_mm: Triple | None = None,
    overwrite: bool = False,
) -> None:
    """Write images as the ISMRMRD series ``dataset/image_0``, one image a slice.

    ``images`` is ``(slices, h, w)``, stored as float32 or complex64 with h, the readout, as x.
    Where they lie is said either by ``affine``, as :class:`Volume` has it, or by
    ``field_of_view_mm`` along h, w and of one slice: a stack about the isocentre then, its axes
    those of the scanner.
    """
    import h5py

    values = as_numbers("images", images, complex_too=True)
    if values.ndim != 3 or 0 in values.shape or max(values.shape) > LARGEST:
        raise ValueError(f"write_ismrmrd_images: want (slices, h, w), got {values.shape}")
    for number, image in enumerate(values):
        if not np.isfinite(image).all():
            raise ValueError(f"write_ismrmrd_images: slice {number} holds NaN or infinity")
    if affine is not None and field_of_view_mm is None:
        matrix = affine.detach().cpu().double().numpy()
    elif affine is None and field_of_view_mm is not None:
        _check_field_of_view("write_ismrmrd_images", field_of_view_mm)
        matrix = _stack(field_of_view_mm, values.shape)
    else:
        raise ValueError("write_ismrmrd_images: want one of affine and field_of_view_mm")
    count, h, w = values.shape
    heads = image_heads(matrix, values.shape)
    heads["image_type"] = COMPLEX_IMAGE if values.dtype.kind == "c" else REAL
    if values.dtype.kind == "f" and values.min() >= 0:
        heads["image_type"] = MAGNITUDE
    heads["data_type"] = COMPLEX if values.dtype.kind == "c" else FLOAT
    heads["attribute_string_len"] = len(META)
    x, y, z = heads["field_of_view"][0].tolist()
    stored = np.ascontiguousarray(values.swapaxes(1, 2))[:, None, None]  # channel, z, y, x
    if values.dtype.kind == "c":
        stored = stored.view([("real", "<f4"), ("imag", "<f4")])
    with replacing(path, overwrite=overwrite) as (part,), h5py.File(part, "w") as file:
        _write_xml(file, _header_xml((h, w), (h, w), (x, y, z), count, 1))
        for name, array in (("header", heads), ("data", stored)):
            file.create_dataset(f"dataset/image_0/{name}", data=array,
                                maxshape=(None, *array.shape[1:]))  # fmt: skip
        file.create_dataset("dataset/image_0/attributes", data=[META] * count, maxshape=(None,),
                            dtype=h5py.string_dtype("ascii"))  # fmt: skip


def _check_field_of_view(call: str, fov: Triple) -> None:
    if len(fov) != 3 or not all(0 < length < 1e6 for length in fov):
        raise ValueError(f"{call}: field_of_view_mm: want three lengths in mm, got {fov}")


def _scans(values: NDArray[Any], noise: NDArray[Any], columns: NDArray[np.int64],
           spacing: float) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:  # fmt: skip
    """Headers and samples ``(acquisitions, coils, samples)`` of the noise, then of each slice."""
    for start in range(0, noise.shape[1], NOISE_SAMPLES):
        samples = noise[None, :, start : start + NOISE_SAMPLES]
        yield _noise_head(samples.shape[2]), samples
    for number, lines in enumerate(values):
        heads = _line_heads(columns, number, values.shape, spacing)
        if number == len(values) - 1:
            heads["flags"][-1] |= _flag(LAST_IN_MEASUREMENT)
        yield heads, lines[..., columns].transpose(2, 0, 1)


def _flag(number: int) -> np.uint64:
    return np.uint64(1 << (number - 1))


def _channel_mask(coils: int) -> NDArray[np.uint64]:
    bits = np.arange(16 * 64) < coils  # channels past 1024 have no bit
    return np.packbits(bits, bitorder="little").view("<u8")


def _noise_head(samples: int) -> NDArray[Any]:
    head = np.zeros(1, ACQUISITION_HEAD)
    head["version"], head["flags"] = 1, _flag(NOISE)
    head["number_of_samples"], head["sample_time_us"] = samples, SAMPLE_TIME_US
    return head


def _line_heads(columns: NDArray[np.int64], number: int, shape: tuple[int, ...],
                spacing: float) -> NDArray[Any]:  # fmt: skip
    """The headers of one slice."""
    heads = np.zeros(len(columns), ACQUISITION_HEAD)
    heads["version"], heads["sample_time_us"] = 1, SAMPLE_TIME_US
    heads["number_of_samples"], heads["center_sample"] = shape[2], shape[2] // 2
    heads["idx"]["kspace_encode_step_1"], heads["idx"]["slice"] = columns, number
    heads["flags"][0] |= _flag(FIRST_IN_ENCODE_STEP1) | _flag(FIRST_IN_SLICE)
    heads["flags"][-1] |= _flag(LAST_IN_ENCODE_STEP1) | _flag(LAST_IN_SLICE)
    heads["position"] = 0, 0, (number - (shape[0] - 1) / 2) * spacing
    heads["read_dir"], heads["phase_dir"], heads["slice_dir"] = np.eye(3)
    return heads


def _stack(fov: Triple, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine of slices along z about the origin."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[0, 1], matrix[1, 2] = fov[2], fov[0] / shape[1], fov[1] / shape[2]
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    matrix[3, 3] = 1
    return matrix


def image_heads(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[Any]:
    """Headers of slices ``(slices, h, w)`` that lie by ``affine``; ValueError if none can say so.

    Positions are those of the middle of an image, between its first and last pixel's centres.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"write_ismrmrd_images: want a finite affine (4, 4), got {affine.shape}")
    along, down, right = affine[:3, :3].T
    pixel = np.linalg.norm([down, right], axis=1)
    normal = np.cross(down, right)
    if not normal.any() or abs(down @ right) > 1e-4 * pixel.prod() or not abs(along @ normal) > 0:
        raise ValueError("write_ismrmrd_images: affine: want rows and columns at right angles, "
                         "and slices out of their plane")  # fmt: skip
    normal *= np.sign(along @ normal) / np.linalg.norm(normal)
    count, h, w = shape
    heads = np.zeros(count, IMAGE_HEAD)
    heads["version"], heads["channels"], heads["matrix_size"] = 1, 1, (h, w, 1)
    heads["field_of_view"] = pixel[0] * h, pixel[1] * w, along @ normal
    heads["read_dir"], heads["phase_dir"] = down / pixel[0], right / pixel[1]
    heads["slice_dir"] = normal
    middle = np.stack([np.arange(count), np.full(count, (h - 1) / 2), np.full(count, (w - 1) / 2)])
    heads["position"] = (affine[:3, :3] @ middle).T + affine[:3, 3]
    heads["slice"], heads["image_index"] = np.arange(count), np.arange(1, count + 1)
    return heads


def _write_xml(file: Any, header: str) -> None:
    import h5py

    # the ISMRMRD library cannot read texts marked as UTF-8
    file.create_dataset("dataset/xml", data=[header.encode()], dtype=h5py.string_dtype("ascii"))


def _header_xml(size: tuple[int, int], recon: tuple[int, int], fov: Triple, slices: int,
                channels: int) -> str:  # fmt: skip
    """A header in the order of the schema; ``fov`` is that of ``recon``."""

    def space(name: str, matrix: tuple[int, int]) -> str:
        x, y = (length * n / m for length, n, m in zip(fov[:2], matrix, recon, strict=True))
        return (f"<{name}><matrixSize><x>{matrix[0]}</x><y>{matrix[1]}</y><z>1</z></matrixSize>"
                f"<fieldOfView_mm><x>{x:.9g}</x><y>{y:.9g}</y><z>{fov[2]:.9g}</z></fieldOfView_mm>"
                f"</{name}>")  # fmt: skip

    def limit(name: str, count: int, centre: int) -> str:
        return (f"<{name}><minimum>0</minimum><maximum>{count - 1}</maximum>"
                f"<center>{centre}</center></{name}>")  # fmt: skip

    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<acquisitionSystemInformation><receiverChannels>{channels}</receiverChannels>"
        "</acquisitionSystemInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>127740000</H1resonanceFrequency_Hz>"
        "</experimentalConditions><encoding>"
        f"{space('encodedSpace', size)}{space('reconSpace', recon)}<encodingLimits>"
        f"{limit('kspace_encoding_step_0', size[0], size[0] // 2)}"
        f"{limit('kspace_encoding_step_1', size[1], size[1] // 2)}"
        f"{limit('slice', slices, 0)}"
        "</encodingLimits><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
    )
