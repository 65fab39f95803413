"""Files that are cut short, altered, or not what their name says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from recon import datasets
from recon.datasets import FormatError
from tests.datasets.damaged import refusals

SHAPE = (3, 2, 12, 10)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1e-5 * torch.randn(*shape, dtype=torch.complex64, generator=generator)


def save(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return path


def cut_short(path: Path) -> None:
    datasets.write_fastmri(path, noise(*SHAPE))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (cut_short, r"^a\.h5: not a whole HDF5 file.*truncated"),
        (lambda p: p.write_bytes(b""), r"^a\.h5: the file is empty"),
        (lambda p: p.write_text("\n<!DOCTYPE html><html>log in</html>"), "a web page"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 200), "not a whole HDF5 file"),
        (lambda p: p.write_text("plain text"), "not a whole HDF5 file"),
        (lambda p: save(p, mask=np.ones(3), other=1), "kspace: no such key.*holds mask, other"),
        (lambda p: save(p, **{"kspace/inner": np.ones(3)}), "want an array, got a group"),
        (lambda p: save(p, **{"dataset/data": 1, "dataset/xml": 1}), "dataset/data: want acqu"),
    ],
)
def test_damaged_files(tmp_path: Path, make: Callable[[Path], object], match: str) -> None:
    make(tmp_path / "a.h5")
    with pytest.raises(FormatError, match=match) as caught:
        datasets.open(tmp_path / "a.h5")
    assert str(tmp_path) not in str(caught.value)


def test_more_than_fits_into_memory(tmp_path: Path) -> None:
    """Chunks never written take no room in the file: 16 PiB in some kB."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("kspace", (2, 1 << 20, 1 << 15, 1 << 15), np.complex64,
                            chunks=(1, 1, 64, 64))  # fmt: skip
    with pytest.raises(FormatError, match=r"^a\.h5: kspace: too large for this machine's memory"):
        datasets.open(tmp_path / "a.h5")


def test_links_out_of_the_file_are_refused(tmp_path: Path) -> None:
    other = save(tmp_path / "other.h5", kspace=noise(*SHAPE))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = h5py.ExternalLink(str(other), "kspace")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        layout = h5py.VirtualLayout(shape=SHAPE, dtype=np.complex64)
        layout[:] = h5py.VirtualSource(str(other), "kspace", shape=SHAPE)
        file.create_virtual_dataset("kspace", layout)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("kspace", SHAPE, np.complex64, external=str(other))
    for name in "abc":
        with pytest.raises(FormatError, match="kspace: its values lie in other files"):
            datasets.open(tmp_path / f"{name}.h5")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        datasets.open(tmp_path / "a.h5")
    with pytest.raises(FormatError, match="a folder without DICOM files"):
        datasets.open(tmp_path)


@pytest.mark.parametrize("name", ["a.h5", "a.npz", "a.npy", "a.hdr"])
def test_random_damage_is_a_format_error_or_harmless(tmp_path: Path, name: str) -> None:
    datasets.write_fastmri(tmp_path / "a.h5", noise(*SHAPE))
    datasets.write_npz(tmp_path / "a.npz", {"kspace": noise(*SHAPE)})
    np.save(tmp_path / "a.npy", noise(*SHAPE).numpy())
    datasets.write_cfl(tmp_path / "a", datasets.to_bart_axes(noise(*SHAPE)))
    whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(min(len(whole), 2500), size=6)] = rng.integers(256, size=6)
        failed += refusals(tmp_path / name, damaged.tobytes(), datasets.open, datasets.describe)
    assert failed > 30
