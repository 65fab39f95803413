"""ESPIRiT against known coils, against BART on a measured head, and its refusals."""

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.operators.mri import espirit, masks
from recon.operators.mri.espirit import espirit_with_eigenvalues
from recon.operators.mri.fourier import fft2c, ifft2c

RAW = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw" / "brain_8ch_full"
needs_raw = pytest.mark.skipif(
    not RAW.with_suffix(".cfl").exists(), reason="no measured head beside the project"
)
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")


def coils(n: int, height: int, width: int) -> Tensor:
    """Smooth complex sensitivities around the object, unit norm at each pixel, complex128."""
    y = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, width, dtype=torch.float64)
    maps = []
    for i in range(n):
        a = 2 * math.pi * (i + 0.3) / n
        far = (y - 1.3 * math.sin(a)) ** 2 + (x - 1.3 * math.cos(a)) ** 2
        phase = a + 1.5 * (x * math.sin(2 * a) + y * math.cos(a)) + 0.5 * x * y
        maps.append(torch.polar(torch.exp(-far / 2), phase))
    stacked = torch.stack(maps)
    return stacked / stacked.abs().square().sum(0).sqrt()


def head(height: int, width: int) -> Tensor:
    """An ellipse with structure, real, ``(height, width)``."""
    y = torch.linspace(-1, 1, height, dtype=torch.float64)[:, None]
    x = torch.linspace(-1, 1, width, dtype=torch.float64)
    inside = (y / 0.8) ** 2 + (x / 0.65) ** 2 < 1
    noise = torch.randn(height, width, generator=torch.Generator().manual_seed(1),
                        dtype=torch.float64)
    return inside * (1 + 0.5 * torch.cos(9 * x * y) + 0.2 * noise)


def simulated(n: int = 6, height: int = 64, width: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """k-space (complex64), true maps and where the object is."""
    maps, image = coils(n, height, width), head(height, width)
    return fft2c(maps * image).to(torch.complex64), maps, image > 0


def sines(maps: Tensor, reference: Tensor) -> Tensor:
    """Sine of the angle between coil vectors, at each pixel; blind to their phase."""
    maps, reference = (m / m.abs().square().sum(0).sqrt() for m in (
        maps.to(torch.complex128), reference.to(torch.complex128)))
    along = (reference.conj() * maps).sum(0)
    return (maps - along * reference).abs().square().sum(0).sqrt()


def assert_same_coils(maps: Tensor, reference: Tensor, where: Tensor) -> None:
    assert float(sines(maps, reference)[where].median()) <= 1e-2


@pytest.mark.parametrize(("height", "width"), [(64, 60), (63, 57), (60, 65)])
def test_true_maps(height: int, width: int) -> None:
    kspace, true, inside = simulated(6, height, width)
    maps = espirit(kspace)
    kept = inside & (maps.abs().sum(0) > 0)
    assert kept.sum() > 0.97 * inside.sum()
    assert_same_coils(maps, true, kept)
    for wrong in (maps.conj(), maps.roll((height // 2, width // 2), (-2, -1)),
                  maps.flip(-2, -1), maps.flip(0), maps.roll(2, -1)):
        with pytest.raises(AssertionError):
            assert_same_coils(wrong, true, kept & (wrong.abs().sum(0) > 0))


def test_unit_norm_or_zero() -> None:
    kspace, _, inside = simulated()
    maps, values = espirit_with_eigenvalues(kspace, crop=0.9)
    norm = maps.abs().square().sum(0).sqrt()
    torch.testing.assert_close(norm, (values > 0.9).float(), atol=1e-5, rtol=0)
    assert float(values.max()) <= 1 + 1e-5
    assert float(values[inside].median()) > 0.99
    assert (norm[inside] > 0).float().mean() > (norm[~inside] > 0).float().mean()


def test_phase_is_relative_to_the_principal_coil() -> None:
    kspace, _, _ = simulated()
    maps = espirit(kspace)
    samples = kspace[:, 20:44, 18:42].reshape(6, -1).numpy()
    first = np.linalg.eigh(samples @ samples.conj().T)[1][:, -1]
    u = torch.from_numpy(first * np.conj(first[-1]) / abs(first[-1]))
    virtual = (u.conj()[:, None, None] * maps).sum(0)
    torch.testing.assert_close(virtual, virtual.abs() + 0j, atol=2e-5, rtol=0)


def test_calibrates_on_columns_of_an_undersampled_scan() -> None:
    kspace, true, inside = simulated(6, 64, 61)
    mask = masks.equispaced_fraction(61, center_fraction=0.25, acceleration=2, seed=4)
    centre = round(0.25 * 61)
    maps = espirit(torch.where(mask, kspace, 0), calibration=(64, centre), kernel=(6, 5))
    assert_same_coils(maps, true, inside & (maps.abs().sum(0) > 0))
    # only the centre counts: the rest of the fully sampled scan changes nothing
    torch.testing.assert_close(maps, espirit(kspace, (64, centre), (6, 5)), atol=0, rtol=0)


def test_batch_scale_and_precision() -> None:
    kspace, _, inside = simulated()
    other = kspace.flip(0) * 1e-5
    maps = espirit(torch.stack([kspace, other, torch.zeros_like(kspace)]).view(3, 1, *kspace.shape))
    assert maps.shape == (3, 1, *kspace.shape)
    assert maps.dtype == torch.complex64
    torch.testing.assert_close(maps[0, 0], espirit(kspace), atol=1e-6, rtol=0)
    torch.testing.assert_close(maps[1, 0], espirit(other), atol=1e-6, rtol=0)
    assert not maps[2].any()
    for scale in (1e-12, 1e-6, 1e6, 1e12):
        torch.testing.assert_close(espirit(kspace * scale), maps[0, 0], atol=1e-4, rtol=0)
    double = espirit(kspace.to(torch.complex128))
    assert double.dtype == torch.complex128
    assert float(sines(double, maps[0, 0])[inside].median()) < 1e-4


def test_refusals() -> None:
    kspace, _, _ = simulated(3, 32, 30)
    batch = kspace.repeat(2, 2, 1, 1, 1)
    batch[1, 0, 2, 5, 5] = math.nan
    with pytest.raises(ValueError, match=r"k-space of item \(1, 0\) is not finite"):
        espirit(batch)
    with pytest.raises(ValueError, match="k-space is not finite"):
        espirit(batch[1, 0])
    missing = kspace.clone()
    missing[..., 9] = 0
    with pytest.raises(ValueError, match=r"column 6 of 24 holds zeros.*smaller calib"):
        espirit(missing)
    with pytest.raises(ValueError, match=r"column 6 of 24 of item \(1,\) holds zeros"):
        espirit(torch.stack([kspace, missing]))
    assert espirit(missing, calibration=(24, 10)).any()
    with pytest.raises(ValueError, match="kernel <= calibration <= k-space"):
        espirit(kspace, calibration=31)
    with pytest.raises(ValueError, match="kernel <= calibration <= k-space"):
        espirit(kspace, calibration=5)
    with pytest.raises(ValueError, match="one side or \\(rows, columns\\)"):
        espirit(kspace, calibration=(24, 24, 1))
    with pytest.raises(ValueError, match="0 <= threshold, crop < 1"):
        espirit(kspace, crop=1.0)
    with pytest.raises(TypeError, match="want complex k-space"):
        espirit(kspace.real)


def measured() -> Tensor:
    """The measured head, ``(8, 230, 180)``."""
    data = np.fromfile(RAW.with_suffix(".cfl"), "<c8").reshape((230, 180, 8), order="F")
    return torch.from_numpy(np.ascontiguousarray(data.transpose(2, 0, 1)))


def inside_head(kspace: Tensor) -> Tensor:
    rss = ifft2c(kspace).abs().square().sum(0).sqrt()
    return rss > 0.1 * rss.max()


@needs_raw
def test_maps_explain_a_measured_head() -> None:
    kspace = measured()
    images, maps = ifft2c(kspace), espirit(kspace)

    def unexplained(maps: Tensor) -> float:
        rest = images - maps * (maps.conj() * images).sum(0)
        where = inside_head(kspace) & (maps.abs().sum(0) > 0)
        return float(rest[:, where].norm() / images[:, where].norm())

    assert unexplained(maps) < 0.08
    assert unexplained(maps.conj()) > 0.5


@needs_raw
@needs_bart
@pytest.mark.parametrize(("options", "settings"), [
    ([], {}), (["-t", "0.0004", "-c", "0.95"], {"threshold": 0.0004, "crop": 0.95}),
])
def test_bart_on_a_measured_head(options: list[str], settings: dict[str, float],
                                 tmp_path: Path) -> None:
    call = ["bart", "ecalib", "-m1", "-r", "24", "-k", "6", *options, str(RAW), str(tmp_path / "s")]
    subprocess.run(call, check=True, capture_output=True)
    data = np.fromfile(tmp_path / "s.cfl", "<c8").reshape((230, 180, 8), order="F")
    bart = torch.from_numpy(np.ascontiguousarray(data.transpose(2, 0, 1)))
    kspace = measured()
    maps = espirit(kspace, **settings)  # type: ignore[arg-type]
    ours, theirs = maps.abs().sum(0) > 0, bart.abs().sum(0) > 0
    assert (ours != theirs).sum() < 20
    where = inside_head(kspace) & ours & theirs
    assert_same_coils(maps, bart, where)
    assert float(sines(maps, bart)[where].quantile(0.99)) < 1e-3
    turn = (bart.conj() * maps).sum(0)[where].mean()
    assert abs(abs(turn) - 1) < 1e-3  # one phase for the whole image
    with pytest.raises(AssertionError):
        assert_same_coils(maps.conj(), bart, where)


def volume(coils_: int = 4, depth: int = 24, height: int = 26, width: int = 23,
           ) -> tuple[Tensor, Tensor, Tensor]:
    """k-space (complex64) of an ellipsoid, true maps and where the object is.

    The coils turn their phase and move along the planes, the first and last of which are empty.
    """
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64)
                               for n in (depth, height, width)), indexing="ij")
    maps = []
    for i in range(coils_):
        a = 2 * math.pi * (i + 0.3) / coils_
        far = ((y - 1.3 * math.sin(a)) ** 2 + (x - 1.3 * math.cos(a)) ** 2
               + (z - 0.6 * (-1) ** i) ** 2)
        maps.append(torch.polar(torch.exp(-far / 2), a + 1.2 * z * math.cos(a) + x * math.sin(a)))
    stacked = torch.stack(maps)
    stacked = stacked / stacked.abs().square().sum(0).sqrt()
    inside = (z / 0.6) ** 2 + (y / 0.8) ** 2 + (x / 0.7) ** 2 < 1
    noise = torch.randn(inside.shape, generator=torch.Generator().manual_seed(1),
                        dtype=torch.float64)
    image = inside * (1 + 0.5 * torch.cos(5 * x * y + 3 * z) + 0.2 * noise)
    kspace = centred_fftn(stacked * image, torch.fft.fftn)
    error = torch.randn(kspace.shape, generator=torch.Generator().manual_seed(2),
                        dtype=torch.complex128)
    return (kspace + 5e-4 * error).to(torch.complex64), stacked, inside


def centred_fftn(x: Tensor, transform: Callable[..., Tensor],
                 over: tuple[int, ...] = (-3, -2, -1)) -> Tensor:
    y = transform(torch.fft.ifftshift(x, over), dim=over, norm="ortho")
    return torch.fft.fftshift(y, over)


def assert_maps_of_volume(maps: Tensor, true: Tensor, inside: Tensor) -> None:
    kept = inside & (maps.abs().sum(0) > 0)
    assert kept.sum() > 0.95 * inside.sum()
    assert_same_coils(maps, true, kept)
    # one reference of the phase: from plane to plane the maps turn as the true ones do, relative
    # to one coil of the whole volume
    turned = torch.linalg.vecdot(true.to(maps.dtype), maps, dim=0)
    step = (turned[1:] * turned[:-1].conj())[kept[1:] & kept[:-1]].angle().abs()
    assert float(step.quantile(0.99)) < 0.2
    assert not maps[:, 0].any()  # a plane of noise alone


def test_true_maps_of_a_volume() -> None:
    kspace, true, inside = volume()
    settings: dict[str, Any] = {"calibration": (14, 16, 15), "kernel": (4, 3, 4), "axes": 3}
    maps, values = espirit_with_eigenvalues(kspace, **settings)
    assert maps.shape == kspace.shape
    assert values.shape == kspace.shape[1:]
    torch.testing.assert_close(maps.abs().square().sum(0).sqrt(), (values > 0.8).float(),
                               atol=1e-5, rtol=0)
    assert_maps_of_volume(maps, true, inside)
    hybrid = centred_fftn(kspace, torch.fft.ifftn, over=(-3,))
    planes = espirit(hybrid.movedim(1, 0), calibration=13, kernel=4).movedim(0, 1)
    swapped = espirit(kspace.mT.contiguous(), calibration=(14, 15, 16), kernel=(4, 4, 3), axes=3)
    torch.testing.assert_close(swapped.mT, maps, atol=1e-3, rtol=0)
    untransformed = espirit(kspace.movedim(1, 0), calibration=13, kernel=4).movedim(0, 1)
    for wrong in (maps.conj(), maps.flip(1), maps.flip(-1), maps.roll(10, 1), maps.flip(0), planes,
                  untransformed):
        with pytest.raises(AssertionError):
            assert_maps_of_volume(wrong, true, inside)
    # items are apart, units do not matter, two sets lead with the one
    both = espirit(torch.stack([kspace, 1e-6 * kspace.flip(1)]), **settings)
    torch.testing.assert_close(both[0], maps, atol=1e-5, rtol=0)
    two = espirit(kspace, **settings, sets=2)
    assert two.shape == (2, *kspace.shape)
    assert float(sines(two[0], maps)[inside].median()) < 1e-3


def test_refusals_of_a_volume() -> None:
    kspace, _, _ = volume(3, 12, 14, 13)
    with pytest.raises(ValueError, match=r"one side or \(planes, rows, columns\), got \(9, 9\)"):
        espirit(kspace, calibration=(9, 9), axes=3)
    with pytest.raises(ValueError, match="want axes of 2 or 3, got 1"):
        espirit(kspace, axes=1)
    with pytest.raises(TypeError, match=r"\(\*batch, coils, depth, height, width\), got"):
        espirit(kspace[0], axes=3)
    with pytest.raises(ValueError, match="kernel <= calibration <= k-space"):
        espirit(kspace, calibration=13, axes=3)
    kspace[..., 5, :, 7] = 0
    with pytest.raises(ValueError, match="column 5 of 9 holds zeros: the central 9 x 9 x 9 samp"):
        espirit(kspace, calibration=9, kernel=3, axes=3)


@needs_bart
def test_bart_on_a_volume(tmp_path: Path) -> None:
    kspace, _, inside = volume()
    n_coils, *size = kspace.shape
    (tmp_path / "k.hdr").write_text("# Dimensions\n" + " ".join(map(str, (*size, n_coils))) + "\n")
    kspace.permute(1, 2, 3, 0).numpy().ravel(order="F").tofile(tmp_path / "k.cfl")
    call = ["bart", "ecalib", "-m1", "-r12", "-k4", "-t0.001", "-c0.8", str(tmp_path / "k"),
            str(tmp_path / "s")]
    subprocess.run(call, check=True, capture_output=True)
    data = np.fromfile(tmp_path / "s.cfl", "<c8").reshape((*size, n_coils), order="F")
    bart = torch.from_numpy(np.ascontiguousarray(np.moveaxis(data, -1, 0)))
    maps = espirit(kspace, calibration=12, kernel=4, axes=3)
    where = inside & (bart.abs().sum(0) > 0) & (maps.abs().sum(0) > 0)
    assert where.sum() > 0.95 * inside.sum()
    apart = sines(maps, bart)[where]
    assert float(apart.median()) < 1e-3
    assert float(apart.quantile(0.99)) < 5e-3
    turn = torch.linalg.vecdot(bart, maps, dim=0)[where]
    assert float((turn / turn.mean() - 1).abs().quantile(0.99)) < 1e-2  # one phase for the volume
    with pytest.raises(AssertionError):
        assert_same_coils(maps.conj(), bart, where)


def folded() -> tuple[Tensor, Tensor, Tensor]:
    """An object wider than the field of view: its k-space, and both true sets of maps.

    Every second phase encoding of a grid twice as wide; pixels fold onto those half a grid away.
    """
    n, height, width = 8, 48, 80
    maps, image = coils(n, height, width), head(height, width)
    kspace = fft2c(maps * image)[..., width // 2 % 2 :: 2].to(torch.complex64)
    # pixel c of the folded grid, from the middle: c, and c with half of the wide grid added
    at = torch.arange(-width // 4, width // 4) + width // 2
    return kspace, maps[..., at], maps[..., (at + width // 2) % width]


def assert_explained(maps: Tensor, images: Tensor) -> None:
    """Coil images lie in the span of the maps at each pixel."""
    basis = maps.movedim((0, 1), (-1, -2))  # (height, width, coils, sets)
    coils_last = images.movedim(0, -1)[..., None].to(basis.dtype)
    rest = coils_last - basis @ (torch.linalg.pinv(basis) @ coils_last)
    assert float(rest.norm() / coils_last.norm()) < 0.02


def test_two_sets_explain_a_folded_object() -> None:
    kspace, first, second = folded()
    images = ifft2c(kspace)
    maps, values = espirit_with_eigenvalues(kspace, crop=0.5, sets=2)
    assert maps.shape == (2, 8, 48, 40)
    assert values.shape == (2, 48, 40)
    assert_explained(maps, images)
    for wrong in (espirit(kspace, crop=0.5)[None], maps[:1], maps.conj(), maps.flip(1)):
        with pytest.raises(AssertionError):
            assert_explained(wrong, images)
    # both true vectors lie in the plane of the two sets, where both pixels hold something
    both = values[1] > 0.95
    assert both.sum() > 200

    def outside(true: Tensor) -> float:
        basis = maps.movedim((0, 1), (-1, -2)).to(true.dtype)
        along = (basis @ (basis.mH @ true.movedim(0, -1)[..., None])).squeeze(-1)
        return float((along - true.movedim(0, -1))[both].norm(dim=-1).median())

    assert max(outside(first), outside(second)) < 0.03
    assert min(outside(first.roll(10, -1)), outside(second.flip(0))) > 0.1
    # orthonormal where kept, and the first set is what one set is
    gram = torch.einsum("schw,tchw->hwst", maps.conj(), maps)[both]
    torch.testing.assert_close(gram, torch.eye(2).expand_as(gram).to(gram), atol=1e-4, rtol=0)
    assert not maps[1][:, values[1] <= 0.5].any()
    clear = values[0] - values[1] > 0.2
    one = espirit(kspace, crop=0.5)
    assert float(sines(maps[0], one)[clear & (one.abs().sum(0) > 0)].median()) < 1e-3
    with pytest.raises(ValueError, match="want 1 <= sets <= 8 coils, got 9"):
        espirit(kspace, sets=9)


@needs_bart
def test_bart_with_two_sets(tmp_path: Path) -> None:
    kspace, _, _ = folded()
    coils_, height, width = kspace.shape
    (tmp_path / "k.hdr").write_text(f"# Dimensions\n1 {height} {width} {coils_}\n")
    (tmp_path / "k.cfl").write_bytes(kspace.permute(2, 1, 0).permute(2, 0, 1).contiguous()
                                     .numpy().tobytes())
    call = ["bart", "ecalib", "-m2", "-r24", "-k6", "-c0.8", str(tmp_path / "k"),
            str(tmp_path / "s")]
    subprocess.run(call, check=True, capture_output=True)
    data = np.fromfile(tmp_path / "s.cfl", "<c8").reshape((height, width, coils_, 2), order="F")
    bart = torch.from_numpy(np.ascontiguousarray(data.transpose(3, 2, 0, 1)))
    maps = espirit(kspace, sets=2)
    kept = (maps.abs().sum(1) > 0) & (bart.abs().sum(1) > 0)
    disagree = (maps.abs().sum(1) > 0) != (bart.abs().sum(1) > 0)
    assert disagree.float().mean() < 0.01
    both = kept.all(0)
    # the plane of both sets: BART's vectors project onto ours without loss
    along = torch.einsum("schw,tchw->hwst", maps.conj(), bart)[both]
    assert float(torch.linalg.svdvals(along).amin(-1).quantile(0.01)) > 0.999
    assert_same_coils(maps[0], bart[0], kept[0] & ~kept[1])
