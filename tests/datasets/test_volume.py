"""What all readers of images share: a slice lies where it lies, whichever others are read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recon import datasets
from recon.datasets import Volume
from recon.datasets.volume import affine_of_slices
from tests.datasets import dicom_files, nrrd_files

COUNT = 7
VALUES = np.arange(COUNT * 20, dtype=np.int16).reshape(COUNT, 5, 4)


def _dicom(folder: Path) -> Path:
    tilted = (0.8, 0.0, 0.6, 0.0, 1.0, 0.0)
    return dicom_files.write_series(folder / "case", VALUES, orientation=tilted)[0].parent


def _nrrd(folder: Path) -> Path:
    tilted = {"space directions": "(0.8,0,0.6) (0,2,0) (-1.8,0,2.4)"}
    return nrrd_files.laid_out(folder / "a.nrrd", VALUES, {**nrrd_files.LPS, **tilted})


def _nifti(folder: Path) -> Path:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    affine = torch.tensor([[0.5, 0.1, 0.8, -11], [-0.7, 0.9, 0.2, 70], [2.5, 0.3, 0.1, 30],
                           [0, 0, 0, 1]], dtype=torch.float64)
    datasets.write_nifti(folder / "a.nii.gz", torch.from_numpy(VALUES).float(), affine)
    return folder / "a.nii.gz"


def apart(some: Volume, whole: Volume, chosen: range) -> float:
    """How far, in mm, the farthest voxel of the slices read alone lies from where it belongs."""
    assert some.affine is not None
    assert whole.affine is not None
    farthest = 0.0
    for i, number in enumerate(chosen):
        assert torch.equal(some.values[i], whole.values[number])
        for corner in ((0, 0), (0, 3), (4, 0)):
            here, there = (a @ torch.tensor([n, *corner, 1], dtype=torch.float64)
                           for a, n in ((some.affine, i), (whole.affine, number)))
            farthest = max(farthest, float((here - there).abs().max()))
    return farthest


@pytest.mark.parametrize("write", [_dicom, _nrrd, _nifti])
@pytest.mark.parametrize("chosen", [slice(4, 6), slice(6, None), slice(1, 7, 3), slice(0, 1)])
def test_slices_keep_their_places(write: Callable[[Path], Path], chosen: slice,
                                  tmp_path: Path) -> None:
    path = write(tmp_path)
    whole, some = datasets.open(path), datasets.open(path, chosen)
    numbers = range(COUNT)[chosen]
    assert apart(some, whole, numbers) < 1e-9
    for planted, caught in ((_unmoved, chosen.start > 0), (_unspaced, numbers.step > 1)):
        wrong = some._replace(affine=planted(whole.affine, chosen))
        assert (apart(wrong, whole, numbers) > 1) == caught


def _unmoved(affine: Tensor, chosen: slice) -> Tensor:
    """Planted wrong: the first slice read stands where the first of the file does."""
    found = affine_of_slices(affine, slice(0, COUNT, chosen.step or 1))
    assert found is not None
    return found


def _unspaced(affine: Tensor, chosen: slice) -> Tensor:
    """Planted wrong: slices left out in between do not widen the distance."""
    found = affine_of_slices(affine, slice(chosen.start, COUNT, 1))
    assert found is not None
    return found


def test_no_place_stays_none() -> None:
    assert affine_of_slices(None, slice(2, 3, 1)) is None
