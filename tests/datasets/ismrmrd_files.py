"""Small ISMRMRD files written line by line, and the ISMRMRD programs, for the tests of both."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon.datasets.write_ismrmrd import ACQUISITION_HEAD

NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSED = 19, 20, 21, 22
PATIENT, PATIENT_ID = "Roentgen^Bertha", "HOSPITAL-4711"
MATRIX = (12, 10)

GENERATOR, RECONSTRUCTION = "ismrmrd_generate_cartesian_shepp_logan", "ismrmrd_recon_cartesian_2d"
needs_tools = pytest.mark.skipif(
    shutil.which(GENERATOR) is None or shutil.which(RECONSTRUCTION) is None,
    reason="the ISMRMRD programs (Debian's ismrmrd-tools) are not installed",
)


class Line(NamedTuple):
    head: Any
    """One record of ``ACQUISITION_HEAD``."""
    samples: Any
    """complex64 ``(channels, samples)``, or any list of numbers to be stored in their place."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


def line(samples: Tensor, step: int = 0, *flags: int, **fields: Any) -> Line:
    """An acquisition with its echo in the middle; fields of the header or its counters by name."""
    head = np.zeros((), ACQUISITION_HEAD)
    head["version"], head["sample_time_us"] = 1, 5.0
    head["active_channels"], head["number_of_samples"] = samples.shape
    head["center_sample"] = samples.shape[1] // 2
    head["flags"] = sum(1 << (flag - 1) for flag in flags)
    head["idx"]["kspace_encode_step_1"] = step
    for name, value in fields.items():
        (head if name in (ACQUISITION_HEAD.names or ()) else head["idx"])[name] = value
    return Line(head, samples.numpy())


def lines_of(kspace: Tensor, columns: Sequence[int] | None = None, **fields: Any) -> list[Line]:
    """One line for each of these columns of ``(slices, coils, H, W)``, in order."""
    return [
        line(kspace[number, ..., column], column, slice=number, **fields)
        for number in range(len(kspace))
        for column in (range(kspace.shape[-1]) if columns is None else columns)
    ]


def header(
    encoded: Sequence[int] = MATRIX,
    recon: Sequence[int] | None = None,
    *,
    encoded_fov: Sequence[float] = (240.0, 200.0),
    recon_fov: Sequence[float] | None = None,
    centre: int | None = None,
    trajectory: str = "cartesian",
    calibration: str = "",
    system: str = "",
    encodings: int = 1,
) -> str:
    """A header with a patient in it."""

    def space(name: str, size: Sequence[int], fov: Sequence[float]) -> str:
        x, y, z = (*size, 1)[:3]
        return (f"<{name}><matrixSize><x>{x}</x><y>{y}</y><z>{z}</z></matrixSize><fieldOfView_mm>"
                f"<x>{fov[0]}</x><y>{fov[1]}</y><z>5</z></fieldOfView_mm></{name}>")  # fmt: skip

    middle = encoded[1] // 2 if centre is None else centre
    parallel = (
        f"<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>"
        f"<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor><calibrationMode>"
        f"{calibration}</calibrationMode></parallelImaging>"
    )
    encoding = (
        f"<encoding>{space('encodedSpace', encoded, encoded_fov)}"
        f"{space('reconSpace', recon or encoded[:2], recon_fov or encoded_fov)}"
        f"<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>9</maximum>"
        f"<center>{middle}</center></kspace_encoding_step_1></encodingLimits>"
        f"<trajectory>{trajectory}</trajectory>{parallel if calibration else ''}</encoding>"
    )
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<subjectInformation><patientName>{PATIENT}</patientName>"
        f"<patientID>{PATIENT_ID}</patientID></subjectInformation>"
        f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz>"
        f"</experimentalConditions>{encoding * encodings}</ismrmrdHeader>"
    )


def save(path: Path, lines: Sequence[Line], xml: str | bytes | None = None,
         group: str = "dataset", **options: Any) -> Path:  # fmt: skip
    """Write or, with another group, add to a file."""
    numbers = h5py.vlen_dtype(np.float32)
    dtype = np.dtype([("head", ACQUISITION_HEAD), ("traj", numbers), ("data", numbers)])
    rows = np.zeros(len(lines), dtype)
    for row, (head, samples) in zip(rows, lines, strict=True):
        row["head"] = head
        row["traj"] = np.zeros(0, np.float32)
        row["data"] = np.ascontiguousarray(samples).view(np.float32).reshape(-1)
    with h5py.File(path, "a") as file:
        file.create_dataset(f"{group}/data", data=rows, maxshape=(None,), **options)
        file.create_dataset(f"{group}/xml", data=[header() if xml is None else xml],
                            dtype=h5py.string_dtype("ascii"))  # fmt: skip
    return path


def image(kspace: Tensor) -> Tensor:
    """Centred orthonormal inverse FFT of the last two axes."""
    axes = (-2, -1)
    found = torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=axes), norm="ortho")
    return torch.fft.fftshift(found, dim=axes)


def check_image(rss: Tensor, expected: Tensor) -> None:
    """Its inverse FFT lacks the factor ``1 / sqrt(N)``; its images have x along the last axis."""
    assert rss.shape == expected.shape
    assert float((rss - expected).abs().max() / expected.max()) < 1e-6


def reconstructed(path: Path) -> Tensor:
    """The root-sum-of-squares image of the ISMRMRD library's program."""
    subprocess.run([RECONSTRUCTION, str(path)], check=True, capture_output=True)
    with h5py.File(path) as file:
        return torch.from_numpy(file["dataset/cpp/data"][0, 0, 0])
