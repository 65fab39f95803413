"""``recon evaluate`` over every kind of file, and its command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from recon import datasets
from recon.evaluation import Settings, evaluate
from recon.metrics import body_mask, hu_errors, mu_to_hu
from recon.metrics.ct import MU_WATER
from recon.operators.ct import ParallelBeamCT
from recon.operators.mri.fourier import ifft2c
from recon.simulate import multicoil_kspace
from tests.conftest import Ran
from tests.datasets.dicom_files import write_series

SIZE = (40, 36)


def image(size: tuple[int, int] = SIZE, count: int = 2) -> torch.Tensor:
    stack = torch.zeros(count, *size)
    stack[:, 8:-8, 6:-6] = 0.6
    for number, one in enumerate(stack):
        one[16 + number:28, 12:24] = 1.0
    return stack


def affine() -> torch.Tensor:
    found = torch.zeros(4, 4, dtype=torch.float64)
    found[2, 0], found[1, 1], found[0, 2], found[3, 3] = 5.0, 4.0, 4.0, 1.0
    return found


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def run(folder: Path, out: Path, said: list[str] | None = None, **changed: Any) -> None:
    settings = Settings({"tv": {"iterations": 30}}, accelerations=(2,), center_fractions=(0.2,))
    evaluate(folder, out, settings._replace(**changed), progress=False,
             say=(lambda _: None) if said is None else said.append)


def test_images_become_kspace(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    (tmp_path / "in").mkdir()
    datasets.write_nifti(tmp_path / "in" / "odd.nii.gz", 300 * image((41, 35)), affine())
    run(tmp_path / "in", tmp_path / "out")
    found = records(tmp_path / "out")
    assert [r["sampling"] for r in found] == ["2x"] * 2
    assert found[0]["shape"] == [41, 35]
    assert found[0]["maximum"] == 300
    assert all(r["ssim"] > 0.8 for r in found)
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "k-space was simulated from the images: 8 coils" in text


def test_images_in_hu_become_projections(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    (tmp_path / "in").mkdir()
    hu = 1300 * image() - 1000
    datasets.write_nifti(tmp_path / "in" / "ct.nii", hu, affine())
    run(tmp_path / "in", tmp_path / "out", unit="HU", views=(12, 40))
    found = records(tmp_path / "out")
    assert [r["sampling"] for r in found] == ["12views"] * 2 + ["40views"] * 2
    for label in ("12views", "40views"):
        path = tmp_path / "out" / "submissions" / "tv" / label / "seed0" / "ct.h5"
        with h5py.File(path) as file:
            mu = torch.from_numpy(file["reconstruction"][()])
        truth = MU_WATER * (1 + hu / 1000)
        mine = [r for r in found if r["sampling"] == label]
        assert sum(r["squared_error"] for r in mine) == pytest.approx(
            float((mu.double() - truth.double()).square().sum()), rel=1e-5)
        errors = hu_errors(mu_to_hu(mu), mu_to_hu(truth), body_mask(mu_to_hu(truth)))
        pixels = sum(r["body_pixels"] for r in mine)
        rmse = (sum(r["hu_squared_error"] for r in mine) / pixels) ** 0.5
        assert rmse == pytest.approx(errors.rmse, rel=1e-5)
        assert f"| {label}, tv" in (tmp_path / "out" / "summary.md").read_text()
        assert f" {errors.mae:.1f} |" in (tmp_path / "out" / "summary.md").read_text()
        assert f" {errors.rmse:.1f} |" in (tmp_path / "out" / "summary.md").read_text()
    assert found[2]["squared_error"] < found[0]["squared_error"]
    assert "| mean absolute error HU |" in (tmp_path / "out" / "summary.md").read_text()


def test_a_series_alone_or_among_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of DICOM files is one volume, given itself or within a folder."""
    series = tmp_path / "in" / "left | right"
    series.mkdir(parents=True)
    write_series(series, (1300 * image().numpy()).astype(int), spacing=(3.0, 4.0, 4.0))
    monkeypatch.chdir(series)
    for number, folder in enumerate((series.parent, series, Path())):
        run(folder, tmp_path / f"out{number}", views=(12,), samplers={"tv": {"iterations": 3}})
    found = [records(tmp_path / f"out{number}") for number in range(3)]
    assert [r["file"] for r in found[0]] == ["left | right"] * 2
    assert found[0] == found[1] == found[2]
    assert r"| left \| right |" in (tmp_path / "out1" / "summary.md").read_text()
    run(series, tmp_path / "out1", views=(12,), samplers={"tv": {"iterations": 3}})  # again


def test_measured_projections(tmp_path: Path) -> None:
    reference = torch.zeros(1, 362, 362)
    reference[:, 100:260, 90:250] = 0.25
    reference[:, 150:200, 120:170] = 0.4
    used = torch.arange(0, 1000, 20)  # the others stay empty: they must not count
    angles = -(used.double() + 0.5) * torch.pi / 1000
    probe = datasets.write_lodopab(tmp_path, torch.zeros(1, 1000, 513), reference)
    read = datasets.open(probe)
    A = ParallelBeamCT(read.size, angles, 513, read.detector_offset, read.pixel_mm, read.bin_mm,
                       method="symmetry")
    (tmp_path / "in").mkdir()
    values = torch.zeros(1, 1000, 513)
    values[:, used] = A(read.reference[:, None])[:, 0].clamp(min=0)
    datasets.write_lodopab(tmp_path / "in", values, read.reference)
    said: list[str] = []
    run(tmp_path / "in", tmp_path / "out", said, views=(50, 2000), noise_std=0.02)
    (found,) = records(tmp_path / "out")
    assert (found["sampling"], found["shape"]) == ("50views", [362, 362])
    assert found["ssim"] > 0.9
    told = "has 1000 views, and not 2000"
    assert any(line.endswith(f": {told}: left out") for line in said)
    assert f"{told} |" in (tmp_path / "out" / "summary.md").read_text()
    with pytest.raises(datasets.FormatError, match="has 1000 views, and not 1001 or 2000; --skip"):
        run(tmp_path / "in", tmp_path / "none", views=(1001, 2000))


def test_full_kspace_without_a_reference_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    generator = torch.Generator().manual_seed(0)
    kspace = torch.stack([multicoil_kspace(one, coils=4, generator=generator)
                          for one in image()])
    datasets.write_cfl(tmp_path / "in" / "scan", datasets.to_bart_axes(kspace))
    run(tmp_path / "in", tmp_path / "out")
    want = ifft2c(kspace).abs().square().sum(1).sqrt()
    found = records(tmp_path / "out")
    assert found[0]["maximum"] == pytest.approx(float(want.max()), rel=1e-6)
    assert found[1]["reference_energy"] == pytest.approx(
        float(want[1].double().square().sum()), rel=1e-5)
    assert "root-sum-of-squares of the full k-space" in (tmp_path / "out/summary.md").read_text()


def test_the_command_line(recon: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    generator = torch.Generator().manual_seed(0)
    kspace = torch.stack([multicoil_kspace(one, coils=4, generator=generator)
                          for one in image()])
    datasets.write_fastmri(tmp_path / "in" / "file1.h5", kspace)
    (tmp_path / "in" / "notes.txt").write_text("of the scan")
    call = ("evaluate", tmp_path / "in", "--out", tmp_path / "out", "--sampler", "zero_filled",
            "--sampler", "tv", "--set", "tv.iterations=25", "--set", "tv.weight=2e-3",
            "--accelerations", "2,3", "--center-fractions", "0.2,0.2", "--seeds", "0,4",
            "--slices", "1:2")
    ran = recon(*call)
    assert ran.code == 0, ran.err
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["settings"]["samplers"] == {"zero_filled": {},
                                            "tv": {"iterations": 25, "weight": 2e-3}}
    assert plan["settings"]["slices"] == [1, 2]
    assert len(records(tmp_path / "out")) == 2 * 2 * 2
    assert "file1.h5: tv, 3x, seed 4, " in ran.out
    assert "no data, left out: notes.txt: of no known kind" in ran.out
    again = recon(*call)
    assert again.code == 0
    assert "seed 4" not in again.out
    assert recon(*call[:-1], "0:1").code == 2  # other slices
    (tmp_path / "in" / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    out = ("--out", tmp_path / "other")
    ran = recon(*call[:2], *out, *call[4:])
    assert (ran.code, ran.out) == (2, "")
    assert "bad.h5: not a whole HDF5 file" in ran.err
    assert "--skip-bad leaves such files out" in ran.err
    ran = recon(*call[:2], *out, *call[4:], "--skip-bad")
    assert ran.code == 1
    assert "bad, left out: bad.h5: not a whole HDF5 file" in ran.out


@pytest.mark.parametrize(("options", "said"), [
    (("--set", "tv.weight"), "--set wants sampler.name=value"),
    (("--set", "dps.zeta=1", "--sampler", "tv"), "dps is none of the samplers tv"),
    (("--accelerations", "4;8"), "--accelerations wants numbers with commas"),
    (("--center-fractions", "a"), "--center-fractions wants numbers"),
    (("--slices", "1:"), "--slices wants first:stop here"),
    (("--accelerations", "4,8", "--center-fractions", "0.1"), "2 accelerations but 1 center"),
])
def test_options_are_refused_at_once(recon: Callable[..., Ran], tmp_path: Path,
                                     options: tuple[str, ...], said: str) -> None:
    (tmp_path / "in").mkdir()
    ran = recon("evaluate", tmp_path / "in", "--out", tmp_path / "out", *options)
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_a_refusal_leaves_no_folder(recon: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    ran = recon("evaluate", tmp_path / "in", "--out", tmp_path / "out")
    assert ran == (2, "", "recon: in: want files to read, found none\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_numbers_are_plain_json(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    kspace = torch.stack([multicoil_kspace(one, coils=4) for one in image()])
    kspace[0] = 0  # an empty slice counts, and has no residual
    np.save(tmp_path / "in" / "gap.npy", kspace.numpy())
    run(tmp_path / "in", tmp_path / "out")
    first, second = records(tmp_path / "out")
    assert (first["squared_error"], first["ssim"], first["noise_std"]) == (0, 1, 0)
    assert first["residual_over_noise"] is None
    assert second["residual_over_noise"] > 0
