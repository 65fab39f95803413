"""``recon reconstruct`` on images and raw data, and into every format."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
import torch

from recon import datasets
from recon.datasets import Volume
from recon.files import Settings, opened
from recon.metrics import body_mask, hu_errors
from recon.outputs import write_result
from recon.reconstruct import Reconstruction
from recon.simulate import multicoil_kspace
from tests.conftest import Ran
from tests.datasets.dicom_files import write_series

RAW = Path(__file__).parents[2] / "shared" / "data" / "raw"


@pytest.fixture
def reconstruct(recon: Callable[..., Ran], tmp_path: Path) -> Callable[..., Ran]:
    return functools.partial(recon, "reconstruct", "--out", tmp_path / "out")


def body(count: int = 3) -> torch.Tensor:
    """An ellipse of water with a bone and a hole, in HU."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 40),
                                   indexing="ij")
    stack = torch.full((count, 48, 40), -1000.0)
    stack[:, (rows / 0.8).square() + (columns / 0.7).square() < 1] = 30.0
    stack[:, (rows - 0.3).square() + columns.square() < 0.03] = 700.0
    for number, one in enumerate(stack):
        one[(rows + 0.2).square() + (columns - 0.2 * number).square() < 0.02] = -800.0
    return stack


@pytest.fixture
def series(tmp_path: Path) -> Path:
    folder = tmp_path / "case"
    folder.mkdir()
    write_series(folder, (body() + 1024).numpy(), modality="CT", spacing=(3.0, 4.0, 4.0))
    return folder


def test_a_series_comes_back_as_a_derived_one(reconstruct: Callable[..., Ran], series: Path,
                                              tmp_path: Path) -> None:
    ran = reconstruct(series, "--views", 40, "--sampler", "tv", "--format", "dicom",
                      "--slices", "1:3")
    assert ran.code == 0, ran.err
    source, made = datasets.open(series, slice(1, 3)), datasets.open(
        tmp_path / "out" / "case_recon_dicom")
    assert torch.allclose(made.affine, source.affine, rtol=0, atol=1e-9)
    error = hu_errors(made.values, source.values, body_mask(source.values))
    assert error.rmse < 60
    assert abs(error.bias) < 10
    for wrong in (made.values.flip(0), made.values.mT.reshape(made.values.shape),
                  made.values + 1000):
        assert hu_errors(wrong, source.values, body_mask(source.values)).rmse > 1.5 * error.rmse
    assert "projections were simulated: 40 views" in ran.out
    again = reconstruct(series, "--views", 40, "--sampler", "tv", "--format", "dicom")
    assert (again.code, again.out) == (2, "")
    assert "case_recon_dicom" in again.err


@pytest.mark.parametrize("kind", ["nifti", "h5", "npz"])
def test_units_and_places_survive(reconstruct: Callable[..., Ran], series: Path, tmp_path: Path,
                                  kind: str) -> None:
    if kind == "nifti":
        pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    ran = reconstruct(series, "--views", 40, "--sampler", "tv", "--format", kind)
    assert ran.code == 0, ran.err
    source: Volume = datasets.open(series)
    if kind == "nifti":
        made = datasets.read_nifti(tmp_path / "out" / "case_recon.nii.gz", unit="HU")
        assert source.affine is not None
        assert made.affine is not None
        assert torch.allclose(made.affine, source.affine, rtol=0, atol=1e-4)
        values = made.values
    elif kind == "h5":
        with h5py.File(tmp_path / "out" / "case_recon.h5") as file:
            assert file.attrs["unit"] == "HU"
            values = torch.from_numpy(file["reconstruction"][:])
            assert torch.equal(values, torch.from_numpy(file["samples"][0]))
    else:
        values = torch.from_numpy(np.load(tmp_path / "out" / "case_recon.npz")["mean"])
    assert hu_errors(values, source.values, body_mask(source.values)).rmse < 60


def test_chosen_slices_of_nifti_lie_where_they_lay(reconstruct: Callable[..., Ran],
                                                   tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    affine = torch.tensor([[0, 0, 2, -30], [0, 2, 0, -40], [3, 0, 0, 500], [0, 0, 0, 1]])
    datasets.write_nifti(tmp_path / "a.nii.gz", body(4), affine.double())
    ran = reconstruct(tmp_path / "a.nii.gz", "--unit", "HU", "--views", 9, "--sampler", "tv",
                      "--slices", "2:4", "--format", "nifti")
    assert ran.code == 0, ran.err
    made = datasets.open(tmp_path / "out" / "a_recon.nii.gz")
    first = made.affine @ torch.tensor([0, 0, 0, 1], dtype=torch.float64)
    assert first.tolist() == pytest.approx([-30, -40, 506, 1], abs=1e-4)


def test_kspace_into_images(reconstruct: Callable[..., Ran], tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    image = (body(2) + 1000) / 1700
    kspace = torch.stack([multicoil_kspace(one, coils=4) for one in image])
    datasets.write_fastmri(tmp_path / "scan.h5", kspace, recon_size=(48, 40),
                           field_of_view_mm=(96.0, 80.0))
    common = (tmp_path / "scan.h5", "--sampler", "tv", "--mask", "equispaced", "--acceleration",
              2, "--center-fraction", 0.2)
    for kind in ("nifti", "ismrmrd", "dicom"):
        ran = reconstruct(*common, "--format", kind, "--overwrite")
        assert ran.code == 0, ran.err
    nifti = datasets.read_nifti(tmp_path / "out" / "scan_recon.nii.gz")
    assert nifti.spacing_mm == pytest.approx((5.0, 2.0, 2.0))
    dicom = datasets.open(tmp_path / "out" / "scan_recon_dicom")
    assert dicom.spacing_mm == pytest.approx((5.0, 2.0, 2.0))
    with h5py.File(tmp_path / "out" / "scan_recon.mrd.h5") as file:
        ismrmrd = torch.from_numpy(file["dataset/image_0/data"][:, 0, 0]).mT
    scale = float(nifti.values.max())
    assert torch.allclose(nifti.values, ismrmrd, atol=1e-6 * scale)
    assert float((nifti.values - dicom.values).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize(("options", "said"), [
    ((), "holds images, not measurements: pass --views N"),
    (("--views", 9, "--mask", "random"), "holds images, not measurements: pass"),
    (("--views", 9, "--unit", "HU"), "unit is for nifti and nrrd files, case is dicom"),
    (("--views", 9, "--series", "77"), "77"),
    (("--views", 9, "--deidentify"), "--deidentify is for --format dicom"),
])
def test_refusals_before_any_work(reconstruct: Callable[..., Ran], series: Path, tmp_path: Path,
                                  options: tuple[object, ...], said: str) -> None:
    ran = reconstruct(series, "--sampler", "tv", *options)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert str(tmp_path) not in ran.err
    assert not (tmp_path / "out").exists()


def test_kspace_has_no_views(reconstruct: Callable[..., Ran], tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", multicoil_kspace(torch.ones(16, 16), coils=2).numpy())
    ran = reconstruct(tmp_path / "k.npy", "--sampler", "tv", "--views", 9)
    assert ran.code == 2
    assert "k.npy holds k-space, which has no views" in ran.err


@pytest.mark.skipif(not RAW.is_dir(), reason="the shared raw data are not here")
def test_a_scanners_raw_file(reconstruct: Callable[..., Ran], tmp_path: Path) -> None:
    """Real two-channel data, as the scanner wrote them."""
    pytest.importorskip("twixtools", reason="the extra `twix` is not installed")
    affine = opened(RAW / "gre.dat", Settings(sampler="tv")).origin.affine
    assert affine is not None
    assert affine[:3, :3].norm(dim=0).tolist() == pytest.approx((4.0, 1.25, 1.25))
    ran = reconstruct(RAW / "gre.dat", "--sampler", "tv", "--mask", "equispaced",
                      "--acceleration", 2, "--center-fraction", 0.12, "--format", "h5")
    assert ran.code == 0, ran.err
    with h5py.File(tmp_path / "out" / "gre_recon.h5") as file:
        image = torch.from_numpy(file["reconstruction"][0])
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 160), torch.linspace(-1, 1, 160),
                                   indexing="ij")
    inside = rows.square() + columns.square() < 0.95
    assert float(image[inside].square().sum() / image.square().sum()) > 0.95


def test_a_deidentified_run_says_nothing_of_the_patient(
    reconstruct: Callable[..., Ran], tmp_path: Path
) -> None:
    """Not in bytes, names or messages, though folder and header are full of it."""
    folder = tmp_path / "Roentgen_Bertha_HOSPITAL-4711"

    def personal(data: Any, _: int) -> None:
        data.InstitutionName, data.StudyDescription = "Wuerzburg Clinic", "Hand of Bertha"
        data.ImageComments = "ring of Bertha"

    write_series(folder, (body() + 1024).numpy(), modality="CT", spacing=(3.0, 4.0, 4.0),
                 change=personal)
    # "4711" alone turns up in one of some hundred sets of random UIDs; the last is of the slices,
    # and its beginning is pydicom's own
    secrets = (b"Roentgen", b"Bertha", b"HOSPITAL", b"-4711", b"ACC-0815", b"18951222",
               b"Wuerzburg", b"3680043.8.498.1.3.")

    def check(*options: object) -> None:
        ran = reconstruct(folder, "--views", 12, "--sampler", "tv", "--format", "dicom",
                          "--overwrite", *options)
        assert ran.code == 0, ran.err
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert len(files) == 4
        text = [f"{ran.out}{ran.err}".replace(str(tmp_path), "").encode()]
        text += [str(path.relative_to(tmp_path)).encode() + path.read_bytes() for path in files]
        assert [secret for secret in secrets if any(secret in one for one in text)] == []

    check("--deidentify")
    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(AssertionError):
        check()


def test_a_pseudonym_does_not_follow_from_the_seed(
    reconstruct: Callable[..., Ran], series: Path, tmp_path: Path
) -> None:
    """Who knows the seed could try all numbers of a hospital until one gives the pseudonym."""
    def pseudonyms() -> set[str]:
        torch.manual_seed(0)
        ran = reconstruct(series, "--views", 12, "--sampler", "tv", "--format", "dicom",
                          "--deidentify", "--overwrite")
        assert ran.code == 0, ran.err
        headers = [pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
        assert len(headers) == 3
        return {value for h in headers for value in (h.PatientID, h.StudyInstanceUID)}

    first, second = pseudonyms(), pseudonyms()
    assert len(first) == len(second) == 2
    assert not first & second


def test_images_of_projections_are_ct_in_the_size_of_the_file(tmp_path: Path) -> None:
    """Lengths measured in the series would be 39 % off with the 1 mm of an unknown origin."""
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    path = datasets.write_lodopab(tmp_path, torch.ones(1, 1000, 513), torch.ones(1, 362, 362))
    origin = opened(path, Settings(sampler="tv", views=2)).origin
    pixel = datasets.open(path).pixel_mm
    assert 0.7 < pixel < 0.75
    whole = Reconstruction(torch.rand(1, 2, 1, 362, 362))
    for kind in ("dicom", "nifti"):
        write_result(tmp_path / "r", kind, whole, origin, description="tv", deidentify=False,
                     overwrite=False)
    assert datasets.open(tmp_path / "r.nii.gz").spacing_mm == pytest.approx((5.0, pixel, pixel))
    header, above = (pydicom.dcmread(tmp_path / "r_dicom" / f"IM_000{n}.dcm") for n in (1, 2))
    assert (header.Modality, header.RescaleType) == ("CT", "US")  # no HU: parts of mu_max
    assert list(header.PixelSpacing) == pytest.approx([pixel, pixel])
    assert above.ImagePositionPatient[2] - header.ImagePositionPatient[2] == 5


@pytest.mark.parametrize(("said", "spacing"), [
    ({"slice_thickness_mm": 4.0, "pixel_x_mm": 2, "pixel_y_mm": 1.5}, (4.0, 2.0, 1.5)),
    ({"pixel_x_mm": 2.0, "pixel_y_mm": 1.5}, (5.0, 2.0, 1.5)),
    ({"slice_thickness_mm": 0.0, "pixel_x_mm": 2.0, "pixel_y_mm": 1.5}, (5.0, 2.0, 1.5)),
    ({"slice_thickness_mm": 4.0, "pixel_x_mm": 2.0}, None),
])
def test_sizes_of_kspace_come_from_its_file(said: dict[str, float], tmp_path: Path,
                                            spacing: tuple[float, ...] | None) -> None:
    kspace = multicoil_kspace(torch.ones(16, 16), coils=2)
    datasets.write_npz(tmp_path / "k.npz", {"kspace": kspace, **said})
    affine = opened(tmp_path / "k.npz", Settings(sampler="tv")).origin.affine
    assert (affine is None) == (spacing is None)
    if affine is not None:
        assert affine[:3, :3].norm(dim=0).tolist() == pytest.approx(spacing)


def test_the_folder_one_is_in_has_a_name(reconstruct: Callable[..., Ran], series: Path,
                                         recon: Callable[..., Ran], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """``.`` is the same series as its folder by name: one result, one noise, one label."""
    common = ("--views", 9, "--sampler", "tv", "--slices", 1)
    monkeypatch.chdir(series)
    told = recon("info", ".")
    assert told.out.splitlines()[0] == "case"
    assert "spacing_mm: 3 x 4 x 4" in told.out
    assert "value_range: -1000 to 700" in told.out
    ran = reconstruct(".", *common)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("case: ")
    stored = (tmp_path / "out" / "case_recon.h5").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert reconstruct("case", *common, "--overwrite").code == 0
    assert (tmp_path / "out" / "case_recon.h5").read_bytes() == stored
    (series / "IM_0002.dcm").write_bytes(b"")
    monkeypatch.chdir(series)
    assert reconstruct(".", *common, "--overwrite").err.startswith("recon: IM_0002.dcm: ")
