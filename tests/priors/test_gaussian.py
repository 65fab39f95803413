"""Gaussian priors and mixtures against dense numpy, quadrature and their own draws.

Complex numbers are checked as pairs of real ones: ``z`` as ``(re, im)``, a matrix as
``[[re, -im], [im, re]]``, so that no complex formula stands on both sides.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from torch import Tensor

from recon.priors import Gaussian, GaussianMixture, Prior

Array = NDArray[np.float64]
Denoise = Callable[[Tensor, Tensor], Tensor]
SHAPE = (2, 2, 3)  # 12 numbers
N = 12


def noise(*shape: int, seed: int = 0, is_complex: bool = False) -> Tensor:
    dtype = torch.complex128 if is_complex else torch.float64
    scale = 2**0.5 if is_complex else 1  # torch's complex randn has unit total variance
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


def pairs(x: Tensor) -> Array:
    """``(n, *shape)`` as ``(n, d)`` real numbers."""
    flat = x.reshape(len(x), -1)
    both = torch.cat([flat.real, flat.imag], 1) if x.is_complex() else flat
    return np.asarray(both.numpy(), dtype=np.float64)


def pair_matrix(M: Tensor) -> Array:
    if not M.is_complex():
        return np.asarray(M.numpy(), dtype=np.float64)
    re, im = M.real.numpy(), M.imag.numpy()
    return np.asarray(np.block([[re, -im], [im, re]]), dtype=np.float64)


def covariance_of(seed: int, is_complex: bool, size: int = N) -> Tensor:
    B = noise(size, size, seed=seed, is_complex=is_complex)
    return B @ B.mH / size + 0.1 * torch.eye(size, dtype=B.dtype)


def circulant(spectrum: Tensor, is_complex: bool) -> Tensor:
    """Dense covariance of a stationary field, channel by channel, entry by entry."""
    kernel = torch.fft.ifft2(spectrum.to(torch.complex128))
    found = torch.zeros(*SHAPE, *SHAPE, dtype=torch.complex128)
    channels, height, width = SHAPE
    for c, i, j, k, m in np.ndindex(channels, height, width, height, width):
        found[c, i, j, c, k, m] = kernel[c, (i - k) % height, (j - m) % width]
    found = found.view(N, N)
    return found if is_complex else found.real.contiguous()


def gaussian(kind: str, is_complex: bool) -> tuple[Gaussian, Tensor]:
    """A prior and its dense covariance."""
    mean = noise(*SHAPE, seed=1, is_complex=is_complex)
    if kind == "covariance":
        C = covariance_of(2, is_complex)
        return Gaussian(mean, covariance=C), C
    values = noise(*SHAPE, seed=3).square() + 0.05
    if kind == "variance":
        return Gaussian(mean, variance=values), values.flatten().diag().to(mean.dtype)
    if not is_complex:  # the same at a frequency and its negative
        values = values + values.flip(-1, -2).roll((1, 1), (-1, -2))
    return Gaussian(mean, spectrum=values), circulant(values, is_complex)


KINDS = pytest.mark.parametrize("kind", ["variance", "covariance", "spectrum"])
REAL_OR_COMPLEX = pytest.mark.parametrize("is_complex", [False, True])


def check_denoiser(denoise: Denoise, mean: Tensor, C: Tensor) -> None:
    """Fails unless it is ``m + K (K + s^2)^-1 (x - m)`` in pairs, for each item's own level."""
    x = mean + 2 * noise(4, *SHAPE, seed=4, is_complex=mean.is_complex())
    sigma = torch.tensor([1e-3, 0.3, 2.0, 100.0], dtype=torch.float64)
    got = denoise(x, sigma)
    m, K = pairs(mean[None])[0], pair_matrix(C)
    for one, s, out in zip(pairs(x), sigma.tolist(), pairs(got), strict=True):
        want = m + K @ np.linalg.solve(K + s**2 * np.eye(len(K)), one - m)
        assert np.abs(out - want).max() < 1e-12 * np.abs(want).max()


@KINDS
@REAL_OR_COMPLEX
def test_denoiser(kind: str, is_complex: bool) -> None:
    prior, C = gaussian(kind, is_complex)
    check_denoiser(prior, prior.mean, C)
    assert torch.allclose(prior.covariance, C, rtol=1e-13, atol=1e-13)
    one = GaussianMixture(torch.ones(1), prior.mean[None], C[None])
    check_denoiser(one, prior.mean, C)
    assert torch.allclose(one.covariance, C, rtol=1e-13, atol=1e-13)
    assert torch.equal(one.mean, prior.mean)


@pytest.mark.parametrize("wrong", [
    lambda m, C: Gaussian(m, covariance=C.mT.contiguous()),
    lambda m, C: Gaussian(m, covariance=2 * C),  # total variance for the variance of a part
    lambda m, C: Gaussian(0 * m, covariance=C),
    lambda m, C: lambda x, s: Gaussian(m, covariance=C)(x, s.square()),
    lambda m, C: lambda x, s: Gaussian(m, covariance=C)(x, s.flip(0)),
    lambda m, C: lambda x, s: Gaussian(m, covariance=C)(x, 2**0.5 * s),
])
def test_wrong_denoisers_are_told(wrong: Callable[[Tensor, Tensor], Denoise]) -> None:
    prior, C = gaussian("covariance", True)
    with pytest.raises(AssertionError):
        check_denoiser(wrong(prior.mean, C), prior.mean, C)


def check_moments(draws: Tensor, mean: Tensor, C: Tensor) -> None:
    """Fails unless whitened pairs have mean 0 and covariance 1, within six standard errors."""
    white = np.linalg.solve(np.linalg.cholesky(pair_matrix(C)),
                            (pairs(draws) - pairs(mean[None])).T)
    n = white.shape[1]
    assert np.abs(white.mean(1)).max() < 6 / n**0.5
    assert np.abs(white @ white.T / n - np.eye(len(white))).max() < 6 * (2 / n) ** 0.5


@KINDS
@REAL_OR_COMPLEX
def test_draws(kind: str, is_complex: bool) -> None:
    prior, C = gaussian(kind, is_complex)
    draws = prior.sample(20_000, torch.Generator().manual_seed(0))
    assert draws.shape == (20_000, *SHAPE)
    check_moments(draws, prior.mean, C)
    assert torch.equal(draws, prior.sample(20_000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("wrong", [
    lambda x, m: m + (x - m).conj().resolve_conj(),
    lambda x, m: m + 1.1 * (x - m),
    lambda x, m: x - 0.1 * m,
    lambda x, m: torch.complex(x.real, m.imag.expand_as(x) + (x - m).real),  # not circular
])
def test_wrong_draws_are_told(wrong: Callable[[Tensor, Tensor], Tensor]) -> None:
    prior, C = gaussian("covariance", True)
    with pytest.raises(AssertionError):
        check_moments(wrong(prior.sample(20_000), prior.mean), prior.mean, C)


def mixture(is_complex: bool, shape: tuple[int, ...] = (1, 2), k: int = 3) -> GaussianMixture:
    n = int(np.prod(shape))
    C = torch.stack([covariance_of(10 + i, is_complex, n) for i in range(k)])
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:k]
    return GaussianMixture(weights, 1.5 * noise(k, *shape, seed=9, is_complex=is_complex), C)


def log_density(prior: GaussianMixture, x: Array, sigma: float) -> Array:
    """``log p(x0 + sigma n = x)`` of pairs, by scipy."""
    each = [np.log(float(w)) + multivariate_normal.logpdf(
        x, pairs(m[None])[0], pair_matrix(C) + sigma**2 * np.eye(x.shape[-1]))
        for w, m, C in zip(prior.weights, prior.means, prior.covariances, strict=True)]
    return np.asarray(np.logaddexp.reduce(each, 0))


def check_integral(denoise: Denoise, prior: GaussianMixture, sigma: float) -> None:
    """Fails unless it is ``E[x0 | x]`` by summing prior times likelihood over a grid."""
    d = prior.means[0].numel()
    axis = np.linspace(-9, 9, 4001 if d == 1 else 301)
    grid = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    p = log_density(prior, grid, 0.0)
    x = noise(3, *prior.means.shape[1:], seed=5) * 3
    for one, out in zip(pairs(x), pairs(denoise(x, level(sigma))), strict=True):
        weight = p - ((one - grid) ** 2).sum(1) / (2 * sigma**2)
        weight = np.exp(weight - weight.max())
        assert np.abs(out - weight @ grid / weight.sum()).max() < 1e-8


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_mixture_denoiser_is_the_integral(shape: tuple[int, ...], sigma: float) -> None:
    prior = mixture(False, shape)
    check_integral(prior, prior, sigma)


def check_score(denoise: Denoise, prior: GaussianMixture, sigma: float) -> None:
    """Fails unless ``D = x + sigma^2 grad log p(x)``, the gradient by central differences."""
    x = noise(3, *prior.means.shape[1:], seed=6, is_complex=prior.is_complex)
    got, step = pairs(denoise(x, level(sigma))), 1e-4
    at = pairs(x)
    for i, e in enumerate(step * np.eye(at.shape[1])):
        slope = log_density(prior, at + e, sigma) - log_density(prior, at - e, sigma)
        assert np.abs(got[:, i] - at[:, i] - sigma**2 * slope / (2 * step)).max() < 1e-6


@REAL_OR_COMPLEX
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_mixture_denoiser_is_the_score(is_complex: bool, sigma: float) -> None:
    prior = mixture(is_complex, (1, 2, 2))
    check_score(prior, prior, sigma)


@pytest.mark.parametrize("wrong", [
    lambda p: lambda x, s: p(x, 2**0.5 * s),
    lambda p: GaussianMixture(p.weights.flip(0), p.means, p.covariances),
    lambda p: GaussianMixture(p.weights, p.means.flip(0), p.covariances),
    lambda p: Gaussian(p.mean, covariance=p.covariance),
    lambda p: GaussianMixture(p.weights, p.means, 2 * p.covariances),
])
def test_wrong_mixtures_are_told(wrong: Callable[[GaussianMixture], Denoise]) -> None:
    prior = mixture(False)
    with pytest.raises(AssertionError):
        check_integral(wrong(prior), prior, 0.5)
    for is_complex in (False, True):
        prior = mixture(is_complex)
        with pytest.raises(AssertionError):
            check_score(wrong(prior), prior, 0.5)


def test_gaussian_denoiser_is_the_score_by_autograd() -> None:
    prior, C = gaussian("covariance", False)
    x = noise(5, *SHAPE, seed=6).requires_grad_()
    for sigma in (0.1, 1.0):
        law = torch.distributions.MultivariateNormal(prior.mean.flatten(),
                                                     C + sigma**2 * torch.eye(N, dtype=C.dtype))
        log_p: Tensor = law.log_prob(x.flatten(1))  # type: ignore[no-untyped-call]
        (score,) = torch.autograd.grad(log_p.sum(), x)
        want = x + sigma**2 * score
        assert torch.allclose(prior(x, sigma), want, rtol=1e-11, atol=1e-11)
        assert not torch.allclose(prior(x, sigma), x - sigma**2 * score, rtol=1e-2)


def check_regression(prior: Gaussian | GaussianMixture, denoise: Denoise, sigma: float) -> None:
    """Fails unless ``x0 - D(x)`` of joint draws is uncorrelated with functions of ``x``."""
    n = 15_000
    x0 = prior.sample(n, torch.Generator().manual_seed(7))
    x = x0 + sigma * noise(*x0.shape, seed=8, is_complex=prior.is_complex)
    left, seen = pairs(x0) - pairs(denoise(x, level(sigma))), pairs(x)
    for feature in (np.ones_like(seen), seen, np.tanh(seen)):
        products = left[:, :, None] * feature[:, None]
        error = np.abs(products.mean(0)) / (products.std(0) / n**0.5)
        assert error.max() < 5.5


def at_other_level(prior: Prior, factor: float) -> Denoise:
    return lambda x, sigma: prior(x, factor * sigma)


@REAL_OR_COMPLEX
def test_draws_and_denoiser_belong_together(is_complex: bool) -> None:
    for prior in (gaussian("covariance", is_complex)[0], mixture(is_complex)):
        check_regression(prior, prior, 0.7)
        for factor in (1.2, 0.8):
            with pytest.raises(AssertionError):
                check_regression(prior, at_other_level(prior, factor), 0.7)


@REAL_OR_COMPLEX
def test_mixture_moments(is_complex: bool) -> None:
    prior, n = mixture(is_complex), 100_000
    draws = pairs(prior.sample(n, torch.Generator().manual_seed(1)))
    assert np.abs(draws.mean(0) - pairs(prior.mean[None])[0]).max() < 6 * draws.std() / n**0.5
    centred = draws - draws.mean(0)
    got = centred.T @ centred / n
    if is_complex:  # E[g g^H] / 2, whatever the law
        half = len(got) // 2
        real = (got[:half, :half] + got[half:, half:]) / 2
        imaginary = (got[half:, :half] - got[:half, half:]) / 2
        got = real + 1j * imaginary
    assert np.abs(got - prior.covariance.numpy()).max() < 0.02 * np.abs(got).max()


@REAL_OR_COMPLEX
def test_no_noise_leaves_the_image(is_complex: bool) -> None:
    for prior in (gaussian("spectrum", is_complex)[0], mixture(is_complex)):
        x = prior.sample(3)
        assert torch.allclose(prior(x, 0.0), x, rtol=1e-13)
    flat = torch.zeros(2, 2, 2, dtype=torch.float64)
    degenerate = GaussianMixture(torch.ones(2), noise(2, 1, 2), flat)
    x = noise(2, 1, 2)
    sigma = torch.tensor([0.0, 50.0])
    assert torch.equal(degenerate(x, sigma)[0], x[0])
    assert torch.isfinite(degenerate(x, sigma)).all()
    assert torch.equal(Gaussian(x[0], variance=0.0)(x[1], 0.3), x[0])


REAL4 = torch.zeros(1, 2, 2)


@pytest.mark.parametrize(("error", "call", "message"), [
    (ValueError, lambda: Gaussian(REAL4), "wants one of variance, covariance, spectrum, got"),
    (ValueError, lambda: Gaussian(REAL4, variance=1, spectrum=REAL4), "wants one of"),
    (ValueError, lambda: Gaussian(REAL4, variance=-1.0), "variance is not positive: least .* -1"),
    (ValueError, lambda: Gaussian(REAL4, variance=float("nan")), "variance is not positive"),
    (ValueError, lambda: Gaussian(REAL4, covariance=torch.eye(3)), "wants .4, 4., got .3, 3."),
    (ValueError, lambda: Gaussian(REAL4, covariance=-torch.eye(4)), "covariance is not positive"),
    (ValueError, lambda: Gaussian(REAL4, covariance=torch.ones(4, 4).tril()), "is not Hermitian"),
    (ValueError, lambda: Gaussian(REAL4, covariance=torch.eye(4) * torch.nan), "not Hermitian"),
    (TypeError, lambda: Gaussian(REAL4, covariance=1j * torch.eye(4)), "complex, the mean is real"),
    (ValueError, lambda: Gaussian(torch.zeros(1, 1, 3), spectrum=torch.arange(3.0)), "fftfreq"),
    (ValueError, lambda: GaussianMixture(torch.ones(2), REAL4[None], torch.eye(4)[None]),
     "weights want .1,. numbers >= 0"),
    (ValueError, lambda: GaussianMixture(-torch.ones(1), REAL4[None], torch.eye(4)[None]), ">= 0"),
    (ValueError, lambda: GaussianMixture(torch.ones(1), REAL4[None], torch.eye(4)),
     "covariances wants .1, 4, 4., got .4, 4."),
    (ValueError, lambda: GaussianMixture(torch.ones(1), REAL4[None], -torch.eye(4)[None]),
     "covariances is not positive"),
])
def test_refusals(error: type[Exception], call: Callable[[], Prior], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
