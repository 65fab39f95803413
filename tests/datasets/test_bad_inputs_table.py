"""What a failed copy or download leaves, for every kind of file: refused in one sentence.

Through the one door and through ``recon info``; what else each reader refuses is in its own tests.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recon import datasets
from recon.cli import main
from recon.datasets import FormatError
from recon.simulate import multicoil_kspace
from tests.datasets import dicom_files, nrrd_files

pytest.importorskip("nibabel", reason="NIfTI files need nibabel")

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "first half": lambda whole: whole[: len(whole) // 2],
    "first 100 bytes": lambda whole: whole[:100],
    "login page": lambda _: b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "pointer": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    "nothing but zeros": lambda whole: bytes(len(whole)),
    "text": lambda _: b"These are not the data you are looking for.\n" * 20,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small file of every kind, by the kind."""
    folder = tmp_path_factory.mktemp("whole")
    image = torch.zeros(16, 14)
    image[4:12, 4:10] = 1
    generator = torch.Generator().manual_seed(0)
    kspace = torch.stack([multicoil_kspace(image, coils=2, generator=generator) for _ in range(2)])
    datasets.write_fastmri(folder / "fastmri.h5", kspace)
    datasets.write_ismrmrd(folder / "ismrmrd.mrd", kspace)
    datasets.write_cfl(folder / "bart.cfl", datasets.to_bart_axes(kspace))
    datasets.write_ra(folder / "bart.ra", datasets.to_bart_axes(kspace))
    np.savez(folder / "arrays.npz", kspace=kspace.numpy())
    np.save(folder / "array.npy", kspace.numpy())
    datasets.write_nifti(folder / "image.nii", image[None], None)
    datasets.write_nifti(folder / "packed.nii.gz", kspace[:, 0].abs(), None)
    nrrd_files.laid_out(folder / "image.nrrd", image[None].numpy(), encoding="gzip")
    (slice_,) = dicom_files.write_series(folder / "series", np.ones((1, 16, 14), int) * 1024)
    shutil.move(slice_, folder / "slice.dcm")
    return {path.name: path for path in folder.iterdir()
            if path.is_file() and path.suffix != ".hdr"}


NAMES = ("fastmri.h5", "ismrmrd.mrd", "bart.cfl", "bart.ra", "arrays.npz", "array.npy",
         "image.nii", "packed.nii.gz", "image.nrrd", "slice.dcm")


def test_every_kind_is_here_and_opens(whole: dict[str, Path]) -> None:
    assert sorted(whole) == sorted(NAMES)
    for path in whole.values():
        assert datasets.describe(path)["slices"] in (1, 2)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_failed_copy(whole: dict[str, Path], tmp_path: Path, name: str, damage: str,
                       monkeypatch: pytest.MonkeyPatch,
                       capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "PATIENT_MULLER" / name
    path.parent.mkdir()
    bad = DAMAGES[damage](whole[name].read_bytes())
    path.write_bytes(bad)
    if name == "bart.cfl":
        shutil.copy(whole[name].with_suffix(".hdr"), path.parent)
    if (name, damage) == ("bart.cfl", "nothing but zeros"):  # numbers like others
        assert "all k-space read is zero" in datasets.open(path).attributes["note"]
        return
    with pytest.raises(FormatError) as caught:
        datasets.open(path)
    said = str(caught.value)
    assert said.startswith(f"{name}: ")
    assert "MULLER" not in said
    assert "\n" not in said
    monkeypatch.setattr(sys, "argv", ["recon", "info", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith(f"recon: {name}: ")
    assert err.count("\n") == 1
    assert "MULLER" not in err
