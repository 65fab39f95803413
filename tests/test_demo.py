"""The demonstration, and the simulated scans it and the tests stand on."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imread
from torch import Tensor

from recon import metrics
from recon.demo import NOISE, run, shipped_slice
from recon.report import comparison, panels
from recon.report.figure import Panel
from recon.simulate import coil_maps, multicoil_kspace

SIZE = (12, 8)


def magnitude() -> Tensor:
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(0))


def centred_dft(n: int) -> Tensor:
    """The orthonormal matrix with entries ``exp(-2 pi i (k - n // 2)(r - n // 2) / n)``."""
    index = torch.arange(n, dtype=torch.float64) - n // 2
    angle = -2 * math.pi * index[:, None] * index / n
    return torch.polar(torch.ones_like(angle), angle) / math.sqrt(n)


def dense(image: Tensor, coils: int) -> Tensor:
    """What ``multicoil_kspace`` is meant to be without noise, by matrices in float64."""
    height, width = image.shape
    kept = [torch.arange(n // 2, n // 2 + n) for n in (height, width)]
    small = centred_dft(height) @ image.to(torch.complex128) @ centred_dft(width).T
    spectrum = torch.zeros(2 * height, 2 * width, dtype=torch.complex128)
    spectrum[kept[0][:, None], kept[1]] = small
    down, across = centred_dft(2 * height), centred_dft(2 * width)
    fine = 2 * (down.mH @ spectrum @ across.mH.T).real
    rows = torch.linspace(-1, 1, 2 * height, dtype=torch.float64)[:, None]
    columns = torch.linspace(-1, 1, 2 * width, dtype=torch.float64)
    phase = 0.5 + 0.8 * rows - 0.4 * columns + 0.6 * torch.cos(2.2 * rows * columns + columns)
    weighted = coil_maps(coils, 2 * height, 2 * width) * fine * torch.exp(1j * phase)
    found = down @ weighted @ across.T
    return found[:, kept[0][:, None], kept[1]] / 2


def test_simulated_kspace_is_the_dense_formula() -> None:
    found = multicoil_kspace(magnitude(), coils=3, noise_std=0.0)
    assert found.shape == (3, *SIZE)
    torch.testing.assert_close(found.to(torch.complex128), dense(magnitude(), 3),
                               rtol=1e-4, atol=1e-5)


def test_simulated_kspace_is_in_the_units_of_the_image() -> None:
    image = shipped_slice()
    kspace = multicoil_kspace(image, noise_std=0.0)
    coils = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(
        kspace, dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    combined = coils.abs().square().sum(0).sqrt()
    assert float(metrics.nmse(combined, image)) < 0.002  # the phase cuts a little off
    assert float(metrics.best_scale(combined, image)) == pytest.approx(1, abs=0.01)
    moved = [float(metrics.nmse(combined.roll(shift, axis), image))
             for shift in (-1, 1) for axis in (0, 1)]
    assert min(moved) > 0.01  # and nothing is displaced


def test_simulated_noise_is_as_stated() -> None:
    image = torch.zeros(64, 64)
    noise = multicoil_kspace(image, noise_std=0.25, generator=torch.Generator().manual_seed(0))
    for part in (noise.real, noise.imag):
        assert float(part.std()) == pytest.approx(0.25, rel=0.02)
        assert abs(float(part.mean())) < 0.01
    again = multicoil_kspace(image, noise_std=0.25, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise, again)
    with pytest.raises(ValueError, match=r"wants even sizes, got \(12, 7\)"):
        multicoil_kspace(torch.ones(12, 7))


def test_simulated_maps_have_unit_norm_and_differ() -> None:
    maps = coil_maps(5, 20, 17)
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(20, 17))
    flat = torch.nn.functional.normalize(maps.flatten(1), dim=1)
    assert float((flat @ flat.mH - torch.eye(5)).abs().max()) < 0.98
    assert float(maps.diff(dim=-1).abs().max()) < 0.3  # smooth: 2 / 16 of the field a pixel


def test_the_shipped_slice_is_a_normalised_image() -> None:
    image = shipped_slice()
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (112, 96))
    assert bool((image >= 0).all())
    assert 0.8 < float(image.max()) <= 1.5


def test_a_small_demo_writes_what_it_says(tmp_path: Path) -> None:
    said: list[str] = []
    demo = run(tmp_path / "demo", samples=1, steps=4, progress=False, say=said.append)
    assert {p.name for p in (tmp_path / "demo").iterdir()} == {"demo.png", "demo.txt", "demo.npz"}
    assert list(demo.rows) == ["zero-filled", "TV", "DDS, one sample", "DDS, mean of 1"]
    truth = shipped_slice()
    with np.load(tmp_path / "demo" / "demo.npz") as arrays:
        np.testing.assert_array_equal(arrays["truth"], truth.numpy())
        assert np.isnan(arrays["std"]).all()  # one sample has no spread
        for name, row in demo.rows.items():
            image = torch.from_numpy(arrays[name.replace(", ", "_").replace(" ", "_")])
            assert float(metrics.psnr(image, truth)) == pytest.approx(row["PSNR dB"])
    assert demo.rows["TV"]["PSNR dB"] > 25.5  # the worst of its weights reaches 24.5
    text = (tmp_path / "demo" / "demo.txt").read_text()
    assert text.startswith(comparison(demo.rows))
    assert comparison(demo.rows) in said
    assert f"noise {NOISE:g} of the image's white" in said[0]
    assert imread(tmp_path / "demo" / "demo.png").ndim == 3
    with pytest.raises(FileExistsError, match=r"demo\.png: exists"):
        run(tmp_path / "demo", samples=1, steps=4, progress=False)


def test_figures_are_written_whole_and_only_once(tmp_path: Path) -> None:
    row = [Panel("black", torch.zeros(8, 8)), Panel("white", torch.ones(8, 8), "1", 1.0)]
    panels(tmp_path / "a.png", row, peak=1.0, title="two")
    picture = imread(tmp_path / "a.png")[..., :3]
    centre = picture.shape[0] // 2
    assert picture[centre, picture.shape[1] // 4].max() == 0
    assert picture[centre, 3 * picture.shape[1] // 4].min() == 255
    with pytest.raises(FileExistsError, match=r"a\.png: exists"):
        panels(tmp_path / "a.png", row, peak=1.0)
    panels(tmp_path / "a.png", row[:1], peak=1.0, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert imread(tmp_path / "a.png").shape[1] < picture.shape[1]
    with pytest.raises(ValueError, match="not_a_map"):
        panels(tmp_path / "b.png", [row[0]._replace(colours="not_a_map")], peak=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_tables_are_aligned() -> None:
    table = comparison({"a": {"PSNR dB": 31.256}, "longer": {"PSNR dB": -2}})
    assert table == "             PSNR dB\na              31.26\nlonger         -2.00"
