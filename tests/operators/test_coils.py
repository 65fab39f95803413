"""Noise covariance and whitening, coil compression, Walsh maps and combination."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.operators import Space, check, from_functions, from_nonlinear
from recon.operators.mri import (
    CartesianMRI,
    CoilMixing,
    Covariance,
    NonCartesianMRI,
    coil_compression,
    combine,
    mix_coils,
    rss,
    walsh,
    whiten,
)
from recon.simulate import coil_maps

C64, C128 = torch.complex64, torch.complex128


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = C128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def correlated(coils: int, seed: int = 0) -> Tensor:
    """A covariance with strong phased correlations and unequal coils."""
    root = noise(coils, coils, seed=seed) + 0.8 * torch.eye(coils)
    root = root * torch.arange(1, coils + 1)[:, None]
    return root @ root.mH


def coloured(S: Tensor, *shape: int, seed: int = 1) -> Tensor:
    """Noise of covariance S, ``(coils, *shape)``; torch's complex normal has unit variance."""
    return mix_coils(noise(len(S), *shape, seed=seed), torch.linalg.cholesky(S), len(shape))


def assert_white(n: Tensor, std: float) -> None:
    flat = n.flatten(1)
    S = flat @ flat.mH / flat.shape[1] / (2 * std**2)
    assert float((S - torch.eye(len(S))).abs().max()) < 0.02


def test_whitened_noise_is_white() -> None:
    S = correlated(4)
    covariance, n = Covariance(S), coloured(S, 200, 300)
    white = mix_coils(n, covariance.whitening)
    assert_white(white, covariance.noise_std)
    L = torch.linalg.cholesky(S)
    root = math.sqrt(2) * covariance.noise_std
    careless = [n, mix_coils(n, covariance.whitening.conj()), mix_coils(n, covariance.whitening.mT),
                mix_coils(n, root * torch.linalg.inv(L).mH), mix_coils(n, torch.linalg.inv(L)),
                mix_coils(n, covariance.whitening / math.sqrt(2)),
                mix_coils(n, root * torch.diag(S.diagonal().rsqrt()))]
    for wrong in careless:
        with pytest.raises(AssertionError):
            assert_white(wrong, covariance.noise_std)
    # equal white coils are left alone, at the noise_std they have
    plain = Covariance(2 * 0.3**2 * torch.eye(3))
    assert plain.noise_std == pytest.approx(0.3, rel=1e-6)
    torch.testing.assert_close(plain.whitening, torch.eye(3).to(C128))
    assert repr(plain) == "Covariance(3 coils, noise_std=0.3)"


def test_estimated_from_noise() -> None:
    S = correlated(3)
    found = Covariance.estimate(coloured(S, 400, 500))
    assert float((found.matrix - S).norm() / S.norm()) < 0.01
    n = coloured(S, 50)
    np.testing.assert_allclose(Covariance.estimate(n).matrix, np.cov(
        np.concatenate([n, -n], 1), bias=True), rtol=1e-10)  # numpy's, its mean made zero


@pytest.mark.parametrize(("matrix", "message"), [
    (torch.ones(2, 3), r"want a square matrix \(coils, coils\), got \(2, 3\)"),
    (torch.tensor([[1, math.nan], [0, 1]]), r"want finite entries, got \(nan\+0j\) at \(0, 1\)"),
    (torch.tensor([[2, 0.5], [0.4, 1]]), r"Hermitian matrix, got 0.5\+0j at \(0, 1\) and 0.4\+0j"),
    (torch.tensor([[2, 1j], [1j, 1]]), r"Hermitian matrix, got 0\+1j at \(0, 1\) and 0\+1j at \(1"),
    (torch.tensor([[1 + 0.1j]]), "want a Hermitian matrix"),
    (torch.diag(torch.tensor([1.0, 0.0])), "singular: coil 1 has the variance 0: a coil without"),
    (torch.diag(torch.tensor([1.0, -2.0])), "singular: coil 1 has the variance -2"),
    (torch.ones(2, 2), r"singular: its eigenvalues reach from .* to 2: a coil without"),
    (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), r"singular: its eigenvalues reach from -1 to 3"),
])
def test_bad_covariances(matrix: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Covariance(matrix)


def test_refusals_of_noise() -> None:
    with pytest.raises(ValueError, match=r"want complex noise \(coils, \*samples\), got torch"):
        Covariance.estimate(torch.ones(2, 5))
    with pytest.raises(ValueError, match="2 samples of 3 coils are too few"):
        Covariance.estimate(noise(3, 2))
    A, covariance = CartesianMRI((4, 5), None, noise(3, 4, 5)), Covariance(correlated(4))
    with pytest.raises(ValueError, match="covariance is of 4 coils, the measurements are of 3"):
        whiten(noise(3, 4, 5), A, covariance)
    with pytest.raises(ValueError, match=r"whiten: want \(\*batch, 3, 4, 5\), got"):
        whiten(noise(2, 4, 5), A, Covariance(correlated(3)))
    with pytest.raises(TypeError, match="tensor and a recon Operator, got Tensor and function"):
        whiten(noise(3, 4, 5), lambda x: x, Covariance(correlated(3)))  # type: ignore[arg-type]
    real = from_functions(lambda x: x, domain=Space((2, 5)), range=Space((2, 5)))
    with pytest.raises(TypeError, match="measures real ones: pass noise_std"):
        whiten(torch.ones(2, 5), real, Covariance(correlated(2)))


def test_whitened_operator_is_the_mixed_one() -> None:
    S = correlated(3)
    covariance, k = Covariance(S), 6 * torch.rand(20, 2) - 3
    space = Space((3, 6, 5), C64)
    maps, x = noise(3, 6, 5), noise(2, 1, 6, 5)
    for A in (CartesianMRI((6, 5), torch.arange(5) % 2, maps), NonCartesianMRI((6, 6), k, noise(
            3, 6, 6)), from_functions(lambda x: x * maps.to(x.dtype), domain=Space((1, 6, 5), C64),
                                      range=space)):
        x = noise(2, *A.domain.shape)
        y, B, std = whiten(A(x), A, covariance)
        assert B.domain == A.domain
        assert float(std) == pytest.approx(covariance.noise_std)
        torch.testing.assert_close(B(x), y)
        ndim = len(A.range.shape) - 1
        torch.testing.assert_close(y, mix_coils(A(x), covariance.whitening, ndim))
        assert type(B) is type(A) or isinstance(B.outer, CoilMixing)
    A = CartesianMRI((6, 5), torch.arange(5) % 2, maps)
    parts = torch.view_as_real(whiten(A(noise(1, 6, 5)), A, covariance)[0])
    assert not parts[parts == 0].signbit().any()
    one = CartesianMRI((6, 5))
    y, same, std = whiten(noise(1, 6, 5), one, Covariance(torch.tensor([[0.5]])))
    assert same is one
    assert float(std) == 0.5
    bent = from_nonlinear(lambda x: x * x.abs(), domain=space, range=space)
    y, B, _ = whiten(bent(noise(3, 6, 5)), bent, covariance)
    torch.testing.assert_close(B(noise(3, 6, 5)), y)


def test_contract_of_mixing() -> None:
    check(CoilMixing(noise(2, 3, dtype=C64), Space((3, 4, 5), C64))).raise_if_failed()
    with pytest.raises(ValueError, match=r"want a matrix \(virtual coils, 4\), got \(2, 3\)"):
        CoilMixing(noise(2, 3), Space((4, 5), C64))
    with pytest.raises(TypeError, match=r"want a complex matrix and space, got torch\.float32"):
        CoilMixing(torch.ones(2, 3), Space((3, 5), C64))


def test_compression_is_the_best_of_its_size() -> None:
    kspace = mix_coils(noise(3, 20, 10), noise(6, 3, seed=2)) + 0.02 * noise(6, 20, 10, seed=3)
    values = torch.linalg.svdvals(kspace.flatten(1)).square()
    shares = values / values.sum()

    def assert_best(matrix: Tensor, virtual: int) -> None:
        kept = mix_coils(kspace, matrix).norm() ** 2 / kspace.norm() ** 2
        assert float(kept) > float(shares[:virtual].sum()) - 1e-9
        torch.testing.assert_close(matrix @ matrix.mH, torch.eye(virtual).to(C128))

    for virtual in (1, 3, 6):
        found = coil_compression(kspace, virtual)
        assert found.matrix.shape == (virtual, 6)
        assert_best(found.matrix, virtual)
        assert found.energy == pytest.approx(float(shares[:virtual].sum()))
        torch.testing.assert_close(found.energies, shares)
        wrong = [found.matrix.conj(), torch.eye(6).to(C128)[:virtual], 1.1 * found.matrix]
        for matrix in wrong if virtual < 6 else wrong[2:]:
            with pytest.raises(AssertionError):
                assert_best(matrix, virtual)
    for energy in (0.5, 0.9, 0.99, 0.9999, 1.0):
        found = coil_compression(kspace, energy=energy)
        enough = len(found.matrix)
        assert found.energy >= energy - 1e-9
        assert enough == 1 or float(shares[: enough - 1].sum()) < energy
    for scale in (1e-25, 1e25):
        single = coil_compression((scale * kspace).to(C64), 3)
        assert single.energy == pytest.approx(coil_compression(kspace, 3).energy, rel=1e-4)
    for arguments, message in {
        (kspace.real,): "want complex k-space", (kspace, 7): "want 1 to 6 virtual coils, got 7",
        (kspace, None, 1.5): "share of the energy up to 1, got 1.5",
        (0 * kspace,): "largest sample of the k-space is 0.0, want finite data",
        (kspace * math.inf,): "want finite data",
    }.items():
        with pytest.raises(ValueError, match=message):
            coil_compression(*arguments)  # type: ignore[arg-type]


def test_compressed_reconstruction() -> None:
    maps, x = coil_maps(8, 24, 20).to(C128), noise(1, 24, 20)
    A = CartesianMRI((24, 20), torch.arange(20) % 2 == 0, maps)
    found = coil_compression(A(x), 8)
    small = coil_compression(A(x), 5)
    for compressed, limit in ((found, 1e-6), (small, 0.2)):
        B = A.mixed(compressed.matrix)
        y = mix_coils(A(x), compressed.matrix)
        solved = B.solve(B.adjoint(y), 1e-4, max_iter=300, rtol=1e-10)
        full = A.solve(A.adjoint(A(x)), 1e-4, max_iter=300, rtol=1e-10)
        assert float((solved - full).norm() / full.norm()) < limit
    assert 0.9 < small.energy < 1


def true_coils() -> tuple[Tensor, Tensor, Tensor]:
    maps = coil_maps(6, 40, 36).to(C128)
    maps = maps / maps.norm(dim=0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 36), indexing="ij")
    inside = (y / 0.8) ** 2 + (x / 0.7) ** 2 < 1
    image = inside * (1 + 0.3 * torch.cos(7 * x * y)).double()
    return maps, image, inside


def sines(maps: Tensor, true: Tensor) -> Tensor:
    along = (true.conj() * maps).sum(0)
    return (maps - along * true).norm(dim=0)


def test_walsh_maps() -> None:
    maps, image, inside = true_coils()
    images = maps * image + 0.002 * noise(6, 40, 36)
    found = walsh(images)

    def assert_true(found: Tensor) -> None:
        assert float(sines(found, maps)[inside].median()) < 0.02
        norm = found.norm(dim=0)
        torch.testing.assert_close(norm, torch.ones_like(norm))

    assert_true(found)
    for wrong in (found.conj(), found.flip(0), found.roll(18, -1), 2 * found,
                  images / images.abs().sum(0)):
        with pytest.raises(AssertionError):
            assert_true(wrong)
    batch = walsh(torch.stack([images, 1e-20 * images.flip(0), torch.zeros_like(images)]))
    torch.testing.assert_close(batch[0], found)
    torch.testing.assert_close(batch[1], walsh(images.flip(0)))
    assert not batch[2].any()
    assert walsh(images.to(C64)).dtype == C64
    with pytest.raises(TypeError, match=r"complex coil images \(\*batch, coils, height, width\)"):
        walsh(image)
    with pytest.raises(ValueError, match="want an odd window of at least 1 pixel, got 4"):
        walsh(images, 4)


def test_walsh_agrees_with_mrpro() -> None:
    csm = pytest.importorskip("mrpro.algorithms.csm")
    maps, image, inside = true_coils()
    images = (maps * image + 0.002 * noise(6, 40, 36)).to(C64)
    theirs = csm.walsh(images[:, None], smoothing_width=7)[:, 0]
    theirs = theirs / theirs.norm(dim=0)
    middle = inside.clone()
    middle[:4], middle[-4:], middle[:, :4], middle[:, -4:] = False, False, False, False

    def assert_agrees(found: Tensor) -> None:
        assert float(sines(found, theirs)[middle].median()) < 2e-3

    assert_agrees(walsh(images))
    with pytest.raises(AssertionError):
        assert_agrees(walsh(images).flip(0))


Combination = Callable[[Tensor, Tensor], Tensor]


def test_combination() -> None:
    maps, image, inside = true_coils()
    scale = (1 + torch.rand(40, 36, generator=torch.Generator().manual_seed(0))).double()
    maps = torch.where(inside, 3 * scale * maps, 0)  # of any norm, none outside
    images = torch.stack([maps * image, 2j * maps * image])

    def assert_least_squares(how: Combination) -> None:
        torch.testing.assert_close(how(images, maps), torch.stack([image, 2j * image])[:, None])

    assert_least_squares(combine)
    for wrong in (lambda i, m: combine(i, m.conj()), lambda i, m: (m.conj() * i).sum(1, True),
                  lambda i, m: combine(i, m) / 2):
        with pytest.raises(AssertionError):
            assert_least_squares(wrong)
    want = np.sqrt((np.abs(images.numpy()) ** 2).sum(1, keepdims=True))
    torch.testing.assert_close(rss(images), torch.from_numpy(want))
    assert rss(images).dtype == torch.float64
    assert rss(noise(2, 3, 4, 5, 6), 3).shape == (2, 1, 4, 5, 6)
    with pytest.raises(ValueError, match=r"maps \(6, 40, 36\) do not fit images \(2, 40, 36\)"):
        combine(images[0, :2], maps)
