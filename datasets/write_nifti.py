"""Writing NIfTI: images and where they lie."""

import gzip
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from recon.datasets.errors import StrPath
from recon.datasets.nifti import LARGEST_SIDE, SCANNER, SUFFIXES, is_geometry, nibabel_or_advice
from recon.datasets.write import Array, as_numbers, replacing


def write_nifti(path: StrPath, values: Array, affine: Array | None, *,
                overwrite: bool = False) -> None:  # fmt: skip
    """Write ``(slices, H, W)`` as NIfTI-1, packed if ``path`` ends in ``.nii.gz``.

    Real values become float32, complex ones complex64. ``affine`` is as ``Volume.affine``, stored
    as the sform and, where its axes are orthogonal, as the qform too (code 1, scanner, in mm; both
    in single precision). With None the file says nothing of position, orientation and voxel size.
    """
    nibabel = nibabel_or_advice()
    name = Path(path).name
    if not name.lower().endswith(SUFFIXES):
        raise ValueError(f"write_nifti: want a name ending in .nii or .nii.gz, got {name!r}")
    array = as_numbers("write_nifti", values, complex_too=True)
    if array.ndim != 3 or not 0 < min(array.shape) <= max(array.shape) <= LARGEST_SIDE:
        raise ValueError("write_nifti: want (slices, H, W), each from 1 to "
                         f"{LARGEST_SIDE}, got {array.shape}")  # fmt: skip
    for number, image in enumerate(array):
        if not np.isfinite(image).all():
            raise ValueError(f"write_nifti: slice {number} holds NaN or infinity")
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_shape(array.shape[::-1])
    header.set_data_dtype(array.dtype)
    if affine is not None:
        _set_geometry(header, affine)
    with replacing(path, overwrite=overwrite) as (part,), part.open("wb") as raw:
        if name.lower().endswith(".gz"):
            # level 1, as nibabel; without a name and a time, so that equal images are equal files
            with gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
                _write(cast(BinaryIO, packed), header, array)
        else:
            _write(raw, header, array)


def _write(file: BinaryIO, header: Any, array: NDArray[Any]) -> None:
    header.write_to(file)
    for image in array:
        file.write(image.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _set_geometry(header: Any, affine: Array) -> None:
    matrix = np.asarray(torch.as_tensor(affine).detach().cpu(), dtype=np.float64)
    last = matrix[3].tolist() if matrix.shape == (4, 4) else None
    if last != [0, 0, 0, 1] or not is_geometry(matrix):
        raise ValueError("write_nifti: affine: want an invertible (4, 4) matrix with last row "
                         f"0 0 0 1, as Volume.affine, got {matrix.tolist()}")  # fmt: skip
    matrix = np.diag([-1.0, -1, 1, 1]) @ matrix[:, [2, 1, 0, 3]]
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    axes = matrix[:3, :3] / lengths
    header.set_xyzt_units("mm")
    header.set_zooms(lengths)
    header.set_sform(matrix, code=SCANNER)
    if np.allclose(axes.T @ axes, np.eye(3), rtol=0, atol=1e-6):
        header.set_qform(matrix, code=SCANNER)
