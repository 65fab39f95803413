"""k-space without a mask: what its zeros say, and when they say different things."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon import datasets
from recon.datasets import FormatError

NAMES = ("a.npz", "a.npy", "a.cfl", "a.ra", "a.h5")
COLUMNS = (torch.arange(16) + torch.arange(2)[:, None]) % 2 == 0
COLUMNS[:, 6:10] = True
POINTS = torch.rand(2, 12, 16, generator=torch.Generator().manual_seed(1)) < 0.4
POINTS[:, 4:8, 6:10] = True
MASKS = {"columns": COLUMNS[:, None].expand(2, 12, 16), "points": POINTS}


def measured(masks: Tensor) -> Tensor:
    parts = torch.randn(len(masks), 3, 12, 16, 2, generator=torch.Generator().manual_seed(0))
    return torch.where(masks[:, None], torch.view_as_complex(parts), 0)


def save(path: Path, kspace: Tensor) -> Path:
    if path.suffix == ".npz":
        datasets.write_npz(path, {"kspace": kspace})
    elif path.suffix == ".npy":
        np.save(path, kspace.numpy())
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["kspace"] = kspace.numpy()
    else:
        write = datasets.write_cfl if path.suffix == ".cfl" else datasets.write_ra
        write(path, datasets.to_bart_axes(kspace))
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MASKS)
def test_slices_undersampled_each_in_its_way(tmp_path: Path, name: str, kind: str) -> None:
    """Their union is sampled by neither: of each slice, zeros would pass for measurements."""
    masks = MASKS[kind]
    path = save(tmp_path / name, measured(masks))
    with pytest.raises(FormatError, match="kspace: slices have zeros at different points"):
        datasets.open(path)
    for i, mask in enumerate(masks):
        alone = datasets.open(path, slice(i, i + 1)).mask
        assert torch.equal(alone.expand(12, 16), mask)
        assert not torch.equal(mask, masks.any(0))  # the planted fault: the union


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MASKS)
def test_slices_undersampled_alike(tmp_path: Path, name: str, kind: str) -> None:
    kspace = measured(MASKS[kind][:1].expand(3, 12, 16))
    kspace[1] = 0  # an empty slice says nothing of how others were sampled
    kspace[2, 0] = 0  # nor does a coil that saw nothing
    mask = datasets.open(save(tmp_path / name, kspace)).mask
    assert torch.equal(mask.expand(12, 16), MASKS[kind][0])


@pytest.mark.parametrize("name", NAMES)
def test_a_few_zeros_by_chance_count_as_measured(tmp_path: Path, name: str) -> None:
    """Whole numbers of a scanner with one coil: here and there a sample is zero."""
    kspace = measured(torch.ones(2, 12, 16, dtype=torch.bool))
    kspace[0, :, 3, 4] = kspace[1, :, 10, 2] = 0
    assert datasets.open(save(tmp_path / name, kspace)).mask is None
    kspace[0, :, 3, 4:7] = 0
    with pytest.raises(FormatError, match="zeros at different points"):
        datasets.open(save(tmp_path / f"more-{name}", kspace))
    kspace = measured(COLUMNS[:1, None].expand(2, 12, 16))
    kspace[0, :, :, 0] = 0  # one column of a hundred is no chance
    with pytest.raises(FormatError, match="zeros at different points"):
        datasets.open(save(tmp_path / f"column-{name}", kspace))


def test_a_mask_in_the_file_says_that_zeros_were_measured(tmp_path: Path) -> None:
    kspace = measured(torch.ones(2, 12, 16, dtype=torch.bool))
    kspace[1, :, 3, 4:8] = 0
    path = save(tmp_path / "a.npz", kspace)
    with pytest.raises(FormatError, match="zeros at different points"):
        datasets.open(path)
    datasets.write_npz(tmp_path / "b.npz", {"kspace": kspace, "mask": np.ones(16, bool)})
    assert bool(datasets.open(tmp_path / "b.npz").mask.all())
