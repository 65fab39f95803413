"""Closed-form posteriors against conditioning in numpy, on pairs of real numbers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from torch import Tensor

from recon.operators import LinearOperator, Masking, from_functions
from recon.priors import Gaussian, GaussianMixture
from recon.space import Space

Array = NDArray[np.float64]
SHAPE, N = (1, 2, 3), 6


def noise(*shape: int, seed: int = 0, is_complex: bool = False) -> Tensor:
    dtype = torch.complex128 if is_complex else torch.float64
    scale = 2**0.5 if is_complex else 1
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pairs(x: Tensor) -> Array:
    flat = x.flatten()
    both = torch.cat([flat.real, flat.imag]) if x.is_complex() else flat
    return np.asarray(both.numpy(), dtype=np.float64)


def pair_matrix(M: Tensor, domain_is_complex: bool) -> Array:
    if not M.is_complex():
        return np.asarray(M.numpy(), dtype=np.float64)
    re, im = M.real.numpy(), M.imag.numpy()
    blocks = [[re, -im], [im, re]] if domain_is_complex else [[re], [im]]
    return np.asarray(np.block(blocks), dtype=np.float64)


def covariance_of(seed: int, is_complex: bool, size: int = N) -> Tensor:
    B = noise(size, size, seed=seed, is_complex=is_complex)
    return B @ B.mH / size + 0.1 * torch.eye(size, dtype=B.dtype)


def matrix_operator(M: Tensor, is_complex: bool) -> LinearOperator:
    domain = Space(SHAPE, torch.complex128 if is_complex else torch.float64)
    return from_functions(lambda x: (x.flatten(-3).to(M.dtype) @ M.mT)[..., None, :],
                          domain=domain, range=Space((1, len(M)), M.dtype))


# domain and range complex?
CASES = {"real": (False, False), "complex": (True, True), "real to complex": (False, True)}


def problem(case: str, rows: int) -> tuple[LinearOperator, Tensor, Tensor, Tensor, Tensor]:
    """Operator, its matrix, data, prior mean and covariance."""
    domain, range_ = CASES[case]
    M = noise(rows, N, seed=1, is_complex=range_)
    return (matrix_operator(M, domain), M, noise(1, rows, seed=2, is_complex=range_),
            noise(*SHAPE, seed=3, is_complex=domain), covariance_of(4, domain))


def check_posterior(got: Gaussian, M: Tensor, y: Tensor, mean: Tensor, C: Tensor,
                    noise_std: float, tolerance: float = 1e-9) -> None:
    """Fails unless mean and covariance are those of numpy's conditioning."""
    A, K = pair_matrix(M, mean.is_complex()), pair_matrix(C, mean.is_complex())
    S = A @ K @ A.T + noise_std**2 * np.eye(len(A))
    gain = K @ A.T @ np.linalg.pinv(S, rcond=1e-12, hermitian=True)
    m = pairs(mean)
    want_mean, want = m + gain @ (pairs(y) - A @ m), K - gain @ A @ K
    found = pair_matrix(got.covariance, mean.is_complex())
    assert np.abs(pairs(got.mean) - want_mean).max() < tolerance * np.abs(want_mean).max()
    assert np.abs(found - want).max() < tolerance * np.abs(K).max()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 3, 6, 9])
@pytest.mark.parametrize("noise_std", [0.0, 0.01, 0.5])
def test_gaussian(case: str, rows: int, noise_std: float) -> None:
    operator, M, y, mean, C = problem(case, rows)
    if noise_std == 0 and len(pairs(y)) > len(pairs(mean)):
        y = operator(mean + 1)  # more data than unknowns: only data that agree
    got = Gaussian(mean, covariance=C).posterior(operator, y, noise_std)
    check_posterior(got, M, y, mean, C, noise_std)


@pytest.mark.parametrize("wrong", [
    lambda p, A, y: p.posterior(A, y, 0.5 * 2**0.5),  # noise of a whole complex number
    lambda p, A, y: p.posterior(A, y.conj().resolve_conj(), 0.5),
    lambda p, A, y: p.posterior(A, 0 * y, 0.5),
    lambda p, A, y: Gaussian(p.posterior(A, y, 0.5).mean, covariance=p.covariance),
    lambda p, A, y: Gaussian(0 * p.mean, covariance=p.covariance).posterior(A, y, 0.5),
    lambda p, A, y: Gaussian(p.mean, covariance=p.covariance.mT.contiguous()).posterior(A, y, 0.5),
])
def test_wrong_posteriors_are_told(wrong: Callable[..., Gaussian]) -> None:
    operator, M, y, mean, C = problem("complex", 3)
    with pytest.raises(AssertionError):
        check_posterior(wrong(Gaussian(mean, covariance=C), operator, y), M, y, mean, C, 0.5)


@pytest.mark.parametrize("is_complex", [False, True])
def test_stationary_and_diagonal_priors(is_complex: bool) -> None:
    operator, M, y, mean, _ = problem("complex" if is_complex else "real", 3)
    values = torch.tensor([[[2.0, 0.5, 0.5], [1.0, 0.3, 0.3]]], dtype=torch.float64)
    for prior in (Gaussian(mean, spectrum=values), Gaussian(mean, variance=values)):
        check_posterior(prior.posterior(operator, y, 0.3), M, y, mean, prior.covariance, 0.3)


def test_what_is_measured_without_noise_is_known() -> None:
    mean, C = noise(*SHAPE, seed=3), covariance_of(4, False)
    mask = torch.tensor([[[1, 0, 1], [0, 0, 1]]])
    operator = Masking(mask, Space(SHAPE, torch.float64))
    y = operator(noise(*SHAPE, seed=5))
    got = Gaussian(mean, covariance=C).posterior(operator, y, 0.0)
    draws = got.sample(50, torch.Generator().manual_seed(0))
    assert torch.allclose(operator(draws), y.expand_as(draws), rtol=1e-12, atol=1e-12)
    assert float((draws - got.mean).std(0)[mask == 0].min()) > 0.1
    everything = Gaussian(mean, covariance=C).posterior(
        Masking(torch.ones(SHAPE), operator.domain), y, 0.0)
    assert torch.allclose(everything.mean, y, rtol=1e-12, atol=1e-12)
    assert float(everything.covariance.abs().max()) < 1e-25
    nothing = Gaussian(mean, covariance=C).posterior(
        Masking(torch.zeros(SHAPE), operator.domain), 0 * y, 0.0)
    assert torch.allclose(nothing.covariance, C)


@pytest.mark.parametrize("noise_std", [0.0, 1e-7, 0.2])
def test_repeated_and_contradicting_rows(noise_std: float) -> None:
    # twice the same row: their mean counts, with noise smaller by sqrt 2
    _, M, _, mean, C = problem("real", 2)
    twice = matrix_operator(torch.cat([M, M[:1]]), False)
    y = torch.tensor([[1.0, 0.5, 1.4]], dtype=torch.float64)
    got = Gaussian(mean, covariance=C).posterior(twice, y, noise_std)
    merged = torch.cat([2**0.5 * M[:1], M[1:]])
    data = torch.tensor([[2**0.5 * 1.2, 0.5]], dtype=torch.float64)
    check_posterior(got, merged, data, mean, C, noise_std, 1e-8)


def test_small_noise_keeps_its_digits() -> None:
    C = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    operator = Masking(torch.tensor([[[1, 1, 1], [0, 0, 0]]]), Space(SHAPE, torch.float64))
    prior = Gaussian(torch.zeros(SHAPE, dtype=torch.float64), covariance=C)
    got = prior.posterior(operator, torch.zeros(SHAPE, dtype=torch.float64), 1e-9)
    found, e = got.covariance.diagonal()[:3], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.allclose(found, 1e-18 * e / (e + 1e-18), rtol=1e-9, atol=0)


def test_posterior_of_a_posterior() -> None:
    operator, M, y, mean, C = problem("complex", 4)
    first, second = matrix_operator(M[:2], True), matrix_operator(M[2:], True)
    prior = Gaussian(mean, covariance=C)
    got = prior.posterior(first, y[:, :2], 0.3).posterior(second, y[:, 2:], 0.3)
    check_posterior(got, M, y, mean, C, 0.3)
    assert torch.allclose(got.mean, prior.posterior(operator, y, 0.3).mean)


def test_single_precision() -> None:
    operator, M, y, mean, C = problem("real", 3)
    prior = Gaussian(mean.float(), covariance=C.float())
    single = from_functions(lambda x: (x.flatten(-3) @ M.float().mT)[..., None, :],
                            domain=Space(SHAPE), range=Space((1, 3)))
    got = prior.posterior(single, y.float(), 0.0)
    assert got.mean.dtype == torch.float32
    exact = Gaussian(mean, covariance=C).posterior(operator, y, 0.0)
    assert torch.allclose(got.mean.double(), exact.mean, atol=1e-4)
    assert torch.allclose(got.covariance.double(), exact.covariance, atol=1e-4)


def check_mixture(got: GaussianMixture, prior: GaussianMixture, M: Tensor, y: Tensor,
                  noise_std: float) -> None:
    """Fails unless components are conditioned each and weighed by scipy's evidence."""
    A, data = pair_matrix(M, prior.is_complex), pairs(y)
    logs = []
    for k, (w, m, C) in enumerate(zip(prior.weights, prior.means, prior.covariances, strict=True)):
        K = pair_matrix(C, prior.is_complex)
        S = A @ K @ A.T + noise_std**2 * np.eye(len(A))
        logs.append(np.log(float(w)) + multivariate_normal.logpdf(data, A @ pairs(m), S))
        check_posterior(Gaussian(got.means[k], covariance=got.covariances[k]), M, y, m, C,
                        noise_std)
    weights = np.exp(np.array(logs) - np.logaddexp.reduce(logs))
    assert np.abs(got.weights.numpy() - weights).max() < 1e-10


def mixture(is_complex: bool) -> GaussianMixture:
    C = torch.stack([covariance_of(10 + i, is_complex) for i in range(3)])
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
                           noise(3, *SHAPE, seed=9, is_complex=is_complex), C)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("noise_std", [0.05, 0.5, 2.0])
def test_mixture(case: str, noise_std: float) -> None:
    operator, M, y, mean, _ = problem(case, 2)
    prior = mixture(mean.is_complex())
    got = prior.posterior(operator, y, noise_std)
    assert 0.01 < float(got.weights.max()) < 0.999
    check_mixture(got, prior, M, y, noise_std)


def test_mixture_without_noise_and_with_repeated_rows() -> None:
    operator, M, y, mean, _ = problem("complex", 2)
    prior = mixture(True)
    check_mixture(prior.posterior(operator, y, 0.0), prior, M, y, 0.0)
    twice = matrix_operator(torch.cat([M, M]), True)
    for noise_std in (0.0, 1e-7):
        got = prior.posterior(twice, torch.cat([y, y], 1), noise_std)
        check_mixture(got, prior, M, y, noise_std / 2**0.5)
    assert mean.is_complex()


@pytest.mark.parametrize("wrong", [
    lambda p, A, y: p.posterior(A, y, 0.5 * 2**0.5),
    lambda p, A, y: GaussianMixture(p.weights, p.means, 2 * p.covariances).posterior(A, y, 0.5),
    lambda p, A, y: GaussianMixture(torch.ones(3), p.means, p.covariances).posterior(A, y, 0.5),
    # evidence of a complex Gaussian counted as a real one's
    lambda p, A, y: reweighed(p, p.posterior(A, y, 0.5), 0.5),
])
def test_wrong_mixtures_are_told(wrong: Callable[..., GaussianMixture]) -> None:
    operator, M, y, _, _ = problem("complex", 2)
    prior = mixture(True)
    with pytest.raises(AssertionError):
        check_mixture(wrong(prior, operator, y), prior, M, y, 0.5)


def reweighed(prior: GaussianMixture, got: GaussianMixture, power: float) -> GaussianMixture:
    evidence = got.weights / prior.weights
    return GaussianMixture(prior.weights * evidence**power, got.means, got.covariances)


def test_two_modes_tie_and_one_is_dead() -> None:
    """Problem M2: y sees the second coordinate, which three of four components share."""
    means = torch.tensor([(-3, -2), (3, -2), (-1, 2), (1, -3)], dtype=torch.float64)
    prior = GaussianMixture(torch.ones(4), means.view(4, 2, 1),
                            0.25 * torch.eye(2, dtype=torch.float64).expand(4, 2, 2))
    space = Space((2, 1), torch.float64)
    operator = from_functions(lambda x: x[..., 1:, :], domain=space,
                              range=Space((1, 1), torch.float64))
    got = prior.posterior(operator, torch.tensor([[-2.5]], dtype=torch.float64), 0.5)
    want = torch.tensor([1, 1, 0, 1], dtype=torch.float64) / 3
    assert torch.allclose(got.weights, want, atol=1e-8)
    assert torch.allclose(got.means[:, 1, 0], (means[:, 1] - 2.5) / 2)
    assert torch.allclose(got.means[:, 0, 0], means[:, 0])
    assert torch.allclose(got.covariances, torch.tensor([0.25, 0.125], dtype=torch.float64).diag())
    share = prior.responsibilities(means.view(4, 2, 1), 0.1)
    assert torch.allclose(share.diagonal(), torch.ones(4, dtype=torch.float64), atol=1e-3)


OPERATOR, _, Y, MEAN, COVARIANCE = problem("real", 3)
PRIOR = Gaussian(MEAN, covariance=COVARIANCE)
FLAT = GaussianMixture(torch.ones(2), noise(2, *SHAPE), 0 * covariance_of(1, False).expand(2, N, N))
OTHER = from_functions(lambda x: x, domain=Space((1, 3, 2)), range=Space((1, 3, 2)))
TO_REAL = from_functions(lambda x: x.real, domain=Space(SHAPE, torch.complex64), range=Space(SHAPE))


@pytest.mark.parametrize(("error", "call", "message"), [
    (ValueError, lambda: PRIOR.posterior(OPERATOR, Y[:, :2], 0.1), "wants one y .1, 3. .*1, 2."),
    (ValueError, lambda: PRIOR.posterior(OPERATOR, Y[None], 0.1), "wants one y .* got .1, 1, 3."),
    (ValueError, lambda: PRIOR.posterior(OPERATOR, Y + 0j, 0.1), "float64, got .*complex128"),
    (ValueError, lambda: PRIOR.posterior(OPERATOR, Y, -0.1), "finite noise_std >= 0, got -0.1"),
    (ValueError, lambda: PRIOR.posterior(OPERATOR, Y, float("nan")), "finite noise_std >= 0"),
    (ValueError, lambda: PRIOR.posterior(OTHER, MEAN, 0.1), "real images .1, 2, 3., got real .1"),
    (ValueError, lambda: PRIOR.posterior(TO_REAL, MEAN, 0.1), "on real images .* got complex"),
    (TypeError, lambda: Gaussian(MEAN + 0j, variance=1).posterior(TO_REAL, MEAN, 0.1),
     "complex images measured by real numbers"),
    (ValueError, lambda: FLAT.posterior(OPERATOR, Y, 0.0), "component 0 does not vary .*small"),
])
def test_refusals(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
