"""Writers: what they store, and that they leave the whole file or nothing."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray

from recon import datasets

IMAGE = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))

WRITERS: dict[str, Callable[..., None]] = {
    "a.h5": lambda path, **k: datasets.write_hdf5(path, IMAGE, **k),
    "a.npz": lambda path, **k: datasets.write_npz(path, {"x": IMAGE}, **k),
    "a.cfl": lambda path, **k: datasets.write_cfl(path, IMAGE, **k),
    "b.h5": lambda path, **k: datasets.write_fastmri(path, IMAGE + 0j, **k),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_existing_is_overwritten_unasked(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=rf"^{name}: exists: pass overwrite=True"):
        WRITERS[name](path)
    assert path.read_text() == "precious"
    WRITERS[name](path, overwrite=True)
    assert path.stat().st_size > 8
    assert path.read_bytes() != b"precious"
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        WRITERS[name](path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_failed_write_leaves_the_folder_as_it_was(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            WRITERS[name](tmp_path / name)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / name).write_text("old")
        with pytest.raises(OSError, match="No space left"):
            WRITERS[name](tmp_path / name, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_a_pair_is_written_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.hdr").write_text("someone else's")
    with pytest.raises(FileExistsError, match=r"a\.hdr: exists"):
        datasets.write_cfl(tmp_path / "a", IMAGE)
    assert not (tmp_path / "a.cfl").exists()
    (tmp_path / "a.hdr").unlink()
    rename = Path.replace

    def second_fails(self: Path, target: Path) -> Path:
        if target.suffix == ".hdr":
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(PermissionError):
        datasets.write_cfl(tmp_path / "a", IMAGE)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_appears_while_writing_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with datasets.replacing(tmp_path / "a") as (part,):
            part.write_text("ours")
            (tmp_path / "a").write_text("theirs")

    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "theirs"


def test_refuse_existing(tmp_path: Path) -> None:
    datasets.refuse_existing(tmp_path / "new.h5")
    with pytest.raises(FileNotFoundError, match="its folder 'no' is not there"):
        datasets.refuse_existing(tmp_path / "no" / "new.h5")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="its folder 'file'"):
        datasets.refuse_existing(tmp_path / "file" / "new.h5")
    with pytest.raises(FileExistsError, match="not an ordinary file"):
        datasets.refuse_existing(tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="not an ordinary file"):
        datasets.refuse_existing(os.devnull, overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        datasets.refuse_existing(tmp_path / "link")


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    datasets.write_hdf5(tmp_path / "a.h5", IMAGE)
    assert (tmp_path / "a.h5").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", [*WRITERS, "a.ra", "a.nii", "a.mrd", "dicom"])
def test_what_torch_puts_off_is_written(tmp_path: Path, name: str) -> None:
    """``k.conj().imag`` is a view whose sign is still to be changed, and numpy knows no such."""
    values = torch.complex(-IMAGE, IMAGE).conj().imag
    assert values.is_neg()
    plain = values.resolve_neg()
    written = []
    for x, path in ((values, tmp_path / "lazy" / name), (plain, tmp_path / "plain" / name)):
        path.parent.mkdir()
        if name == "a.ra":
            datasets.write_ra(path, x)
        elif name == "a.nii":
            pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
            datasets.write_nifti(path, x, None)
        elif name == "a.mrd":
            datasets.write_ismrmrd_images(path, x, field_of_view_mm=(4.0, 3.0, 1.0))
        elif name == "dicom":
            datasets.write_dicom(path, x, None, unit="arbitrary", description="x", software="1")
        elif name == "a.npz":
            datasets.write_npz(path, {"x": x})
        elif name == "a.cfl":
            datasets.write_cfl(path, x)
        elif name == "a.h5":
            datasets.write_hdf5(path, x)
        else:
            datasets.write_fastmri(path, torch.complex(x, x).conj())
        whole = (path.with_suffix(".cfl") if name == "a.cfl" else
                 path / "IM_0001.dcm" if name == "dicom" else path)
        written.append(_stored(whole))
    assert np.array_equal(written[0], written[1])
    assert float(np.abs(written[0]).max()) > 0.5


def _stored(path: Path) -> NDArray[Any]:
    if path.suffix in (".h5", ".mrd"):
        keys = {"a.h5": "reconstruction", "b.h5": "kspace", "a.mrd": "dataset/image_0/data"}
        with h5py.File(path) as file:
            return np.asarray(file[keys[path.name]])
    if path.suffix == ".npz":
        return np.asarray(np.load(path)["x"])
    if path.suffix == ".dcm":
        return pydicom.dcmread(path).pixel_array
    return np.frombuffer(path.read_bytes()[-IMAGE.numel() * 4 :], "<f4")


def test_hdf5_alone_is_a_fastmri_submission(tmp_path: Path) -> None:
    datasets.write_hdf5(tmp_path / "a.h5", IMAGE.double().requires_grad_())
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file) == ["reconstruction"]
        assert file["reconstruction"].dtype == np.float32
        assert list(file.attrs) == []
        assert np.array_equal(file["reconstruction"], IMAGE)


def test_hdf5_with_everything(tmp_path: Path) -> None:
    samples = torch.stack([IMAGE, 2 * IMAGE]) + 1j
    about: dict[str, Any] = {"sampler": "dds", "steps": 50, "seconds": 1.5}
    datasets.write_hdf5(tmp_path / "a.h5", IMAGE, std=IMAGE, samples=samples.conj(),
                        attributes=about)  # fmt: skip
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["samples"], samples.conj().resolve_conj())
        assert file["samples"].dtype == np.complex64
        assert dict(file.attrs) == about


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"reconstruction": IMAGE + 0j}, ValueError, r"reconstruction: want real.*\.abs\(\)"),
        ({"reconstruction": IMAGE[0]}, ValueError, r"want \(slices, h, w\), got \(4, 3\)"),
        ({"reconstruction": np.array(["x"])}, TypeError, "want numbers"),
        ({"std": IMAGE[:1]}, ValueError, r"std: want \(2, 4, 3\), got \(1, 4, 3\)"),
        ({"samples": IMAGE}, ValueError, r"samples: want \(samples, 2, 4, 3\), got \(2, 4, 3\)"),
        ({"attributes": {"a": [1]}}, TypeError, r"attributes\['a'\]: want text or a number"),
    ],
)
def test_bad_hdf5_arguments(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        datasets.write_hdf5(tmp_path / "a.h5", **({"reconstruction": IMAGE} | arguments))
    assert list(tmp_path.iterdir()) == []


def test_npz_keeps_dtypes_and_any_key(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"file": np.arange(3, dtype=np.int16), "x": IMAGE + 0j, "s": "text"}
    datasets.write_npz(tmp_path / "a.other", arrays)
    with np.load(tmp_path / "a.other", allow_pickle=False) as archive:
        assert archive["file"].dtype == np.int16
        assert np.array_equal(archive["x"], arrays["x"])
        assert archive["s"] == "text"
    with pytest.raises(TypeError, match="x: want numbers or text, got Python objects"):
        datasets.write_npz(tmp_path / "b.npz", {"x": np.array([None])})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kspace": IMAGE}, "want complex"),
        ({"mask": torch.ones(4, dtype=torch.bool)}, r"want a bool mask \(3,\)"),
        ({"mask": torch.ones(3)}, "got torch.float32"),
        ({"padding": (2, 5)}, "padding: want columns within 0 to 3"),
        ({"mask": torch.ones(3, dtype=torch.bool), "reference": IMAGE}, "pass one of them"),
    ],
)
def test_bad_fastmri_arguments(tmp_path: Path, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        datasets.write_fastmri(tmp_path / "a.h5", **({"kspace": IMAGE + 0j} | arguments))


def test_format_errors_survive_pickling() -> None:
    """They come back from worker processes so."""
    error = datasets.FormatError.about("folder/a.h5", "is bad", "kspace")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, datasets.FormatError)
    assert str(again) == "a.h5: kspace: is bad"


def test_importing_is_light() -> None:
    check = "import sys, recon.datasets; assert 'h5py' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", check], check=True, cwd=root,
                   env=os.environ | {"PYTHONPATH": str(root)})  # fmt: skip
