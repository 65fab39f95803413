"""Simulated scans of some slices of a file: their noise is that of the whole one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recon import datasets
from recon.datasets import Scan, Volume
from recon.evaluation import Settings, evaluate
from recon.evaluation.subject import open_subject
from recon.files import Settings as Files
from recon.files import opened
from recon.simulate import simulated_scan, white_of_file
from tests.datasets.dicom_files import write_series

COUNT = 40


def images() -> np.ndarray:
    """A head: from slice to slice a hundred times as bright."""
    stored = np.zeros((COUNT, 24, 24), int)
    stored[:, 6:-6, 5:-5] = np.geomspace(10, 1000, COUNT)[:, None, None].round()
    return stored


@pytest.fixture(params=["nifti", "dicom"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "nifti":
        pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
        path = tmp_path / "head.nii.gz"
        datasets.write_nifti(path, torch.from_numpy(images()).float(),
                             torch.eye(4, dtype=torch.float64))
        return path
    write_series(tmp_path / "head", images(), modality="MR", slope=1.0, intercept=0.0)
    return tmp_path / "head"


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (7, 9), (39, 40)])
def test_a_slice_has_the_noise_it_has_in_the_volume(path: Path, first: int, stop: int) -> None:
    chosen = Files(mask="equispaced_fraction", center_fraction=0.3, acceleration=2)
    whole = opened(path, chosen).data
    some = opened(path, chosen._replace(slices=slice(first, stop))).data
    assert isinstance(whole, Scan)
    assert isinstance(some, Scan)
    assert torch.equal(some.kspace, whole.kspace[first:stop])
    evaluated = Settings({"tv": {}})
    every = open_subject(path, evaluated).data
    few = open_subject(path, evaluated._replace(slices=(first, stop))).data
    assert isinstance(every, Scan)
    assert isinstance(few, Scan)
    assert torch.equal(few.kspace, every.kspace[first:stop])
    # planted: noise as a part of what is read, by the same seeds
    found = datasets.open(path, slice(first, stop))
    assert isinstance(found, Volume)
    bare = simulated_scan(found, seed=0)
    told = simulated_scan(found, seed=0, white=white_of_file(path))
    assert not torch.allclose(bare.kspace, told.kspace, rtol=1e-3)


def test_slices_are_read_though_another_is_bad(tmp_path: Path) -> None:
    """Their noise is then a part of the white of the good ones."""
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    import nibabel

    values = images().astype(np.float32)
    values[0, 3, 3] = np.nan
    nii: Any = nibabel.Nifti1Image
    nibabel.save(nii(values.transpose(2, 1, 0), np.eye(4)), tmp_path / "a.nii")
    chosen = Files(mask="equispaced_fraction", center_fraction=0.3, acceleration=2)
    with pytest.raises(datasets.FormatError, match="slice 0 holds NaN"):
        opened(tmp_path / "a.nii", chosen)
    assert isinstance(opened(tmp_path / "a.nii", chosen._replace(slices=slice(5, 6))).data, Scan)
    write_series(tmp_path / "cut", images(), modality="MR", slope=1.0, intercept=0.0)
    first = min((tmp_path / "cut").iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    assert isinstance(opened(tmp_path / "cut", chosen._replace(slices=slice(7, 8))).data, Scan)


@pytest.mark.parametrize("count", [1, 15, 16, 31, 32, 100])
def test_the_white_of_a_file_is_that_of_its_volume(tmp_path: Path, count: int) -> None:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    generator = torch.Generator().manual_seed(count)
    values = torch.randn(count, 8, 6, generator=generator) - 2  # of magnitudes
    datasets.write_nifti(tmp_path / "a.nii", values, torch.eye(4, dtype=torch.float64))
    volume = datasets.open(tmp_path / "a.nii")
    white = white_of_file(tmp_path / "a.nii")
    looked_at = values[:: max(1, count // 16)].abs()
    assert 1 <= len(looked_at) <= 31
    assert white == pytest.approx(float(looked_at.flatten().quantile(0.995)), rel=1e-6)
    assert torch.equal(simulated_scan(volume).kspace, simulated_scan(volume, white=white).kspace)


def test_the_summary_says_of_which_slices_the_range_is(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    (tmp_path / "in").mkdir()
    datasets.write_nifti(tmp_path / "in" / "head.nii", torch.from_numpy(images()).float(),
                         torch.eye(4, dtype=torch.float64))
    settings = Settings({"tv": {"iterations": 2}}, accelerations=(2,), center_fractions=(0.3,),
                        slices=(7, 9))
    plan = evaluate(tmp_path / "in", tmp_path / "out", settings, progress=False,
                    say=lambda _: None)
    assert plan.files[0].maximum == images()[8].max()
    told = " ".join((tmp_path / "out" / "summary.md").read_text().split())
    assert "the largest value of the reference volume, of its slices from 7 to 8 alone;" in told
