"""From a scan to a problem: masks, coil maps, noise, references."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.datasets import Scan, centre_crop
from recon.mri import (
    FASTMRI_KINDS,
    cropped,
    estimate_noise_std,
    problem,
    undersampling,
    whitened,
)
from recon.operators.mri import CartesianMRI, espirit, masks
from recon.operators.mri.fourier import fft2c
from recon.problem import Problem
from recon.simulate import coil_maps, multicoil_kspace

HEIGHT, WIDTH, COILS = 64, 56, 4


def head() -> Tensor:
    """A smooth disc with a hole, so that k-space falls off as that of a body does."""
    rows = torch.linspace(-1, 1, HEIGHT)[:, None]
    radius = (rows.square() + torch.linspace(-1, 1, WIDTH).square()).sqrt()
    return torch.sigmoid(20 * (0.75 - radius)) - 0.5 * torch.sigmoid(20 * (0.2 - radius))


def simulated(noise_std: float = 0.01, unit: float = 1.0, coils: int = COILS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return unit * torch.stack([multicoil_kspace(head(), coils=coils, noise_std=noise_std,
                                                generator=generator) for _ in range(2)])


def scan(kspace: Tensor | None = None, mask: Tensor | None = None, maps: Tensor | None = None,
         reference: Tensor | None = None, crop: tuple[int, int] | None = None) -> Scan:
    kspace = simulated() if kspace is None else kspace
    if mask is not None:
        kspace = torch.where(mask, kspace, 0)
    return Scan(kspace=kspace, mask=mask, maps=maps, reference=reference, crop=crop,
                attributes={}, name="file100.h5", kind="simulated")


def columns(*chosen: int) -> Tensor:
    mask = torch.zeros(WIDTH, dtype=torch.bool)
    mask[list(chosen)] = True
    return mask


def maps_of(case: Problem[CartesianMRI]) -> Tensor:
    assert case.operator.maps is not None
    return case.operator.maps


CENTRE = range(24, 32)  # eight columns as fastMRI's masks place them
MASK = columns(*CENTRE, 1, 7, 13, 19, 37, 43, 49, 55)


def test_without_a_kind_the_file_decides() -> None:
    assert undersampling(scan(), None).all()
    assert undersampling(scan(), None).shape == (WIDTH,)
    assert torch.equal(undersampling(scan(mask=MASK), None), MASK)
    points = MASK.expand(HEIGHT, WIDTH).clone()
    assert torch.equal(undersampling(scan(mask=points), None), points)


@pytest.mark.parametrize("kind", FASTMRI_KINDS)
def test_masks_are_drawn_by_the_name_of_the_file(kind: str) -> None:
    draw: Callable[..., Tensor] = getattr(masks, kind)
    drawn = undersampling(scan(), kind, acceleration=4, center_fraction=0.1)
    by_name = draw(WIDTH, center_fraction=0.1, acceleration=4, seed="file100.h5")
    assert torch.equal(drawn, by_name)
    seeded = undersampling(scan(), kind, acceleration=4, center_fraction=0.1, seed=0)
    assert torch.equal(seeded, draw(WIDTH, center_fraction=0.1, acceleration=4, seed=0))


def test_columns_that_were_never_measured_stay_out() -> None:
    drawn = undersampling(scan(mask=MASK), "random", acceleration=2, center_fraction=0.1, seed=3)
    alone = undersampling(scan(), "random", acceleration=2, center_fraction=0.1, seed=3)
    assert torch.equal(drawn, alone & MASK)
    assert 0 < drawn.sum() < min(alone.sum(), MASK.sum())
    points = (torch.arange(HEIGHT)[:, None] % 2 == 0) & MASK
    assert torch.equal(undersampling(scan(mask=points), "random", seed=3, acceleration=2,
                                     center_fraction=0.1), alone & points)


def test_unknown_mask_kind() -> None:
    with pytest.raises(ValueError, match=r"mask wants one of random, .* got 'poisson'"):
        undersampling(scan(), "poisson")


def test_maps_come_from_the_centre_lines_only() -> None:
    full = scan()
    case = problem(full, 1, MASK)
    assert torch.equal(case.y, torch.where(MASK, full.kspace[1], 0))
    rows = slice((HEIGHT - 24 + 1) // 2, (HEIGHT - 24 + 1) // 2 + 24)
    centre = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    centre[rows, CENTRE.start : CENTRE.stop] = True
    outside = torch.where(centre, full.kspace, 3 * full.kspace.flip(-1))
    other = problem(full._replace(kspace=outside), 1, MASK)
    assert torch.equal(maps_of(other), maps_of(case))
    assert not torch.equal(other.y, case.y)
    inside = full.kspace.clone()
    inside[1, 0, HEIGHT // 2, WIDTH // 2] *= 1.2
    moved = problem(full._replace(kspace=inside), 1, MASK)
    assert not torch.equal(maps_of(moved), maps_of(case))


def test_maps_are_those_of_the_simulated_coils() -> None:
    case = problem(scan(simulated(noise_std=0.003)), 0, MASK)
    inside = head() > 0.4
    match = (coil_maps(COILS, HEIGHT, WIDTH).conj() * maps_of(case)).sum(0).abs()[inside]
    assert float(match.median()) > 0.999
    assert float(match.min()) > 0.98


@pytest.mark.parametrize(("extra", "wide", "kernel"), [(CENTRE.start - 1, 8, 3),
                                                       (CENTRE.stop, 9, 4)])
def test_a_chance_neighbour_only_widens_a_centred_block(extra: int, wide: int,
                                                        kernel: int) -> None:
    case = problem(scan(), 0, MASK | columns(extra))
    plain = espirit(case.y, calibration=(24, wide), kernel=kernel)
    assert torch.equal(maps_of(case), plain)


def test_a_mask_of_points_may_have_a_square_centre() -> None:
    points = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) < 0.4
    points[HEIGHT // 2 - 6 : HEIGHT // 2 + 6, WIDTH // 2 - 6 : WIDTH // 2 + 6] = True
    case = problem(scan(), 0, points)
    plain = espirit(case.y, calibration=(12, 12), kernel=5)
    assert torch.equal(maps_of(case), plain)


def test_maps_of_the_file_win_and_one_coil_has_none() -> None:
    maps = torch.stack([coil_maps(COILS, HEIGHT, WIDTH), 1j * coil_maps(COILS, HEIGHT, WIDTH)])
    case = problem(scan(maps=maps), 1, columns(3))  # no centre needed
    assert torch.equal(maps_of(case), maps[1])
    assert problem(scan(simulated(coils=1)), 0, columns(3)).operator.maps is None


def test_a_slice_without_data_is_a_problem_all_the_same() -> None:
    case = problem(scan(torch.zeros_like(simulated())), 0, MASK)
    assert case.noise_std == 0
    torch.testing.assert_close(maps_of(case).abs().square().sum(0), torch.ones(HEIGHT, WIDTH))


def test_units_do_not_matter() -> None:
    ours, raw = problem(scan(), 0, MASK), problem(scan(simulated(unit=1e-6)), 0, MASK)
    assert raw.noise_std == pytest.approx(1e-6 * ours.noise_std, rel=1e-5)
    torch.testing.assert_close(maps_of(raw), maps_of(ours), rtol=1e-3, atol=1e-4)


def test_references() -> None:
    full = scan()
    case = problem(full, 1, MASK)
    assert case.reference is not None
    image = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(
        full.kspace[1], dim=(-2, -1)), norm="ortho"), dim=(-2, -1))
    combined = (maps_of(case).conj() * image).sum(0, keepdim=True)
    torch.testing.assert_close(case.reference, combined, rtol=1e-4, atol=1e-5)
    own = torch.rand(2, 40, 40)
    case = problem(scan(mask=MASK, reference=own), 1, MASK)
    assert case.reference is not None
    assert torch.equal(case.reference, own[1:])
    assert problem(scan(mask=MASK), 0, MASK).reference is None


@pytest.mark.parametrize(("broken", "match"), [
    (lambda: problem(scan(simulated() * torch.tensor([1, torch.nan]).view(2, 1, 1, 1)), 1, MASK),
     "slice 1 of file100.h5 holds NaN or infinity: leave it out"),
    (lambda: problem(scan(), 0, MASK[1:]), "mask has 55 columns but the k-space has 64 rows and"),
    (lambda: problem(scan(), 0, MASK.expand(WIDTH, WIDTH)), r"mask has shape \(56, 56\) but the"),
    (lambda: problem(scan(), 0, columns(*range(26, 30))),
     "at least 6 fully sampled centre columns, the mask has 4: pass maps with the data"),
    (lambda: problem(scan(), 0, columns(*range(30, 50))), "the mask has 0"),
    (lambda: problem(scan(), 0, MASK, calibration=(24, 12)), "pass a smaller calibration"),
    (lambda: problem(scan(), 0, MASK, calibration=(24, 2)), "want kernel <= calibration"),
])
def test_what_cannot_work_is_refused(broken: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        broken()


def test_the_given_noise_and_calibration_are_taken() -> None:
    case = problem(scan(), 0, MASK, noise_std=0.125, calibration=(20, 6))
    assert case.noise_std == 0.125
    plain = espirit(case.y, calibration=(20, 6), kernel=3)
    assert torch.equal(maps_of(case), plain)


@pytest.mark.parametrize("std", [3e-9, 1.0, 2e4])
@pytest.mark.parametrize("mask", [torch.ones(200, dtype=torch.bool), torch.arange(200) % 4 == 0,
                                  (torch.arange(200) + torch.arange(240)[:, None]) % 3 == 0])
def test_pure_noise_is_measured_within_5_percent(std: float, mask: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    n = std * torch.view_as_complex(torch.randn(8, 240, 200, 2, generator=generator))
    assert estimate_noise_std(torch.where(mask, n, 0), mask) == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("mask", [torch.ones(WIDTH, dtype=torch.bool), MASK])
@pytest.mark.parametrize("noise_std", [0.01, 0.03])
def test_noise_of_simulated_scans_is_measured(mask: Tensor, noise_std: float) -> None:
    kspace = simulated(noise_std)
    for part in kspace:
        found = estimate_noise_std(torch.where(mask, part, 0), mask)
        assert found == pytest.approx(noise_std, rel=0.15)


def test_the_image_is_not_taken_for_noise() -> None:
    generator = torch.Generator().manual_seed(2)
    noise = 0.001 * torch.randn(COILS, HEIGHT, WIDTH, dtype=torch.complex64, generator=generator)
    rows = torch.arange(HEIGHT)[:, None] / HEIGHT - 0.5
    radius = (rows.square() + (torch.arange(WIDTH) / WIDTH - 0.5).square()).sqrt()
    kspace = noise + (radius < 0.85 * radius.max())  # as far out as an image may reach
    found = estimate_noise_std(kspace, torch.ones(WIDTH, dtype=torch.bool))
    assert found == pytest.approx(0.001 / math.sqrt(2), rel=0.1)


def test_rows_that_were_never_measured_do_not_count_as_noise() -> None:
    kspace = simulated(0.02)[0]
    kspace[:, :8], kspace[:, -8:] = 0, 0  # zero-filled readout
    assert estimate_noise_std(kspace, MASK) == pytest.approx(0.02, rel=0.15)
    assert estimate_noise_std(torch.zeros_like(kspace), MASK) == 0


def test_cropping() -> None:
    image = torch.arange(HEIGHT * WIDTH).view(1, HEIGHT, WIDTH)
    assert cropped(image, scan()) is image
    assert torch.equal(cropped(image, scan(crop=(31, 56))), centre_crop(image, (31, 56)))
    assert cropped(image, scan(crop=(31, 56)))[0, 0, 0] == WIDTH * 16


def check_white(mix: Callable[[Scan], tuple[Scan, float | None]]) -> None:
    """Noise of four correlated coils, unequal in strength, becomes white with the told level."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, dtype=torch.complex128, generator=generator) * torch.tensor(
        [1.0, 3.0, 0.5, 2.0])[:, None] * 1e-5
    white = torch.randn(1, 4, 200, 150, dtype=torch.complex128, generator=generator)  # E|n|^2 = 1
    kspace = torch.einsum("dc,schw->sdhw", root, white).to(torch.complex64)
    scan = Scan(kspace, None, None, None, None, {}, "noise", "npy",
                (root @ root.mH).to(torch.complex64))
    found, std = mix(scan)
    assert std is not None
    n = found.kspace[0].flatten(1)
    covariance = (n @ n.mH / n.shape[1]) / (2 * std**2)
    assert float((covariance - torch.eye(4)).abs().max()) < 0.03
    before = kspace.abs().square().mean()
    assert float(found.kspace.abs().square().mean() / before) == pytest.approx(1, rel=0.02)
    assert found.noise_covariance is None


def test_whitening() -> None:
    check_white(whitened)

    def faulty(fault: str) -> Callable[[Scan], tuple[Scan, float | None]]:
        def mix(scan: Scan) -> tuple[Scan, float | None]:
            assert scan.noise_covariance is not None
            if fault == "conjugated":
                return whitened(scan._replace(noise_covariance=scan.noise_covariance.conj()))
            found, std = whitened(scan)
            assert std is not None
            if fault == "per complex number":
                return found, std * 2**0.5
            return scan._replace(noise_covariance=None), std

        return mix

    for fault in ("conjugated", "per complex number", "not at all"):
        with pytest.raises(AssertionError):
            check_white(faulty(fault))


def test_whitening_mixes_maps_alike_and_keeps_zeros() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(1, 3, 8, 6, dtype=torch.complex64, generator=generator)
    image = torch.randn(1, 1, 8, 6, dtype=torch.complex64, generator=generator)
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    kspace = torch.where(mask, fft2c(maps * image), 0)
    root = torch.randn(3, 3, dtype=torch.complex64, generator=generator)
    scan = Scan(kspace, mask, maps, None, None, {}, "x", "npy", root @ root.mH)
    found, _ = whitened(scan)
    assert found.maps is not None
    want = torch.where(mask, fft2c(found.maps * image), 0)
    assert torch.allclose(found.kspace, want, atol=1e-4 * float(want.abs().max()))
    outside = torch.view_as_real(found.kspace[..., ~mask])
    assert not bool(outside.any() or torch.signbit(outside).any())
    plain = scan._replace(noise_covariance=None)
    assert whitened(plain) == (plain, None)
    with pytest.raises(ValueError, match="x: the noise covariance of its coils is singular"):
        whitened(scan._replace(noise_covariance=torch.zeros(3, 3, dtype=torch.complex64)))


def test_other_families_of_masks() -> None:
    kspace = torch.ones(1, 4, 96, 80, dtype=torch.complex64)
    scan = Scan(kspace, None, None, None, None, {}, "file1.h5", "npy")
    got = undersampling(scan, "inversebench", acceleration=4)
    assert torch.equal(got, masks.inversebench(80, 4, "file1.h5"))
    got = undersampling(scan, "poisson_disc", acceleration=4, seed=3)
    assert torch.equal(got, masks.poisson_disc((96, 80), 4, seed=3))
    assert int(got.sum()) == 96 * 80 // 4
    measured = torch.arange(80) > 9
    got = undersampling(scan._replace(mask=measured), "poisson_disc", acceleration=4, seed=3)
    assert not bool(got[:, :10].any())
    assert problem(scan, 0, got, noise_std=0.1).y.shape == (4, 96, 80)
