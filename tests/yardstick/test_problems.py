"""Closed-form problems against the formulas they are defined by, in numpy."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon import operators
from recon.operators.mri.fourier import fft2c
from recon.priors import GaussianMixture
from recon.yardstick import problems
from recon.yardstick.problems import Problem

F64 = torch.float64
EVERY: dict[str, Callable[..., Problem]] = {
    "gaussian": problems.gaussian, "four_modes": problems.four_modes,
    "five_modes": problems.five_modes,
    "mcgdiff_mixture": lambda dtype=torch.float32: problems.mcgdiff_mixture(dtype=dtype),
    "pixels": lambda dtype=torch.float32: problems.stationary("pixels", 8, dtype=dtype),
    "frequencies": lambda dtype=torch.float32: problems.stationary("frequencies", 8, dtype=dtype),
    "multicoil": lambda dtype=torch.float32: problems.multicoil(8, dtype=dtype),
}
SMALL = ["gaussian", "four_modes", "five_modes", "mcgdiff_mixture"]
Array = NDArray[np.float64]


def parts(problem: Problem) -> tuple[Array, ...]:
    """Weights, means and covariances of the prior, A and y, as plain arrays."""
    prior = problem.prior
    n = math.prod(problem.operator.domain.shape)
    if isinstance(prior, GaussianMixture):
        found = (prior.weights, prior.means.flatten(1), prior.covariances)
    else:
        found = (torch.ones(1), prior.mean.flatten()[None], prior.covariance[None])
    A = problem.operator(torch.eye(n, dtype=F64).view(n, *problem.operator.domain.shape))
    return tuple(t.double().numpy() for t in (*found, A.flatten(1).mT, problem.y.flatten()))


def conditioned(problem: Problem, fault: str = "") -> tuple[Array, Array, Array]:
    """Weights, means and covariances of the posterior by the formulas with S_k and K_k."""
    w, m, C, A, y = parts(problem)
    s = problem.noise_std * (math.sqrt(2) if fault == "noise sqrt 2" else 1)
    logs, means, covariances = [], [], []
    for wk, mk, Ck in zip(w, m, C, strict=True):
        S = A @ Ck @ A.T + s**2 * np.eye(len(y))
        K = np.linalg.solve(S, A @ Ck).T
        gap = y - A @ mk
        evidence = -0.5 * (np.linalg.slogdet(S)[1] + gap @ np.linalg.solve(S, gap))
        logs.append(np.log(wk) + (0 if fault == "prior weights" else evidence))
        means.append(mk + K @ gap)
        covariances.append(Ck - (0 if fault == "prior covariance" else K @ A @ Ck))
    shares = np.exp(np.array(logs) - max(logs))
    return shares / shares.sum(), np.array(means), np.array(covariances)


@pytest.mark.parametrize("name", SMALL)
def test_the_posterior_is_the_formula(name: str) -> None:
    problem = EVERY[name](F64)
    found = problem.posterior()

    def check(fault: str = "") -> None:
        w, m, C = conditioned(problem, fault)
        if isinstance(found, GaussianMixture):
            np.testing.assert_allclose(found.weights, w, atol=1e-10)
            np.testing.assert_allclose(found.means.flatten(1), m, rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(found.covariances, C, rtol=1e-9, atol=1e-10)
        else:
            np.testing.assert_allclose(found.mean.flatten(), m[0], rtol=1e-9, atol=1e-10)
            np.testing.assert_allclose(found.covariance, C[0], rtol=1e-9, atol=1e-10)

    check()
    for fault in ["noise sqrt 2", "prior covariance"] + ["prior weights"] * (name != "gaussian"):
        with pytest.raises(AssertionError):
            check(fault)


def test_the_three_small_ones_are_the_published_ones() -> None:
    """Largest singular value 1.09, modes (1/3, 1/3, 0, 1/3), one mode; spreads as measured."""
    _, _, _, A, _ = parts(problems.gaussian())
    assert np.linalg.svd(A)[1][0] == pytest.approx(1.09, abs=0.005)
    spread = math.sqrt(float(problems.gaussian().posterior().covariance.trace()) / 1024)
    assert spread == pytest.approx(0.070, rel=0.1)  # 12 seeds were averaged there
    four, five = problems.four_modes().posterior(), problems.five_modes().posterior()
    assert isinstance(four, GaussianMixture)
    assert isinstance(five, GaussianMixture)
    assert four.weights.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=1e-6)
    assert float(five.weights.max()) > 0.9999
    assert math.sqrt(float(five.covariance.trace()) / 1024) == pytest.approx(0.048, rel=0.1)


def test_mcgdiff_mixture_is_drawn_as_published() -> None:
    for d, measurements, seed in [(8, 1, 0), (8, 3, 1), (80, 2, 2)]:
        problem = problems.mcgdiff_mixture(d, measurements, seed)
        _, m, C, A, _ = parts(problem)
        s = np.linalg.svd(A)[1]
        assert A.shape == (measurements, d)
        assert 0 < s.min() <= s.max() < 1
        assert 0 < problem.noise_std < s.max()
        grid = {(8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)}
        assert {tuple(row[:2]) for row in m} == grid
        assert (m.reshape(25, -1, 2) == m[:, None, :2]).all()
        assert (np.eye(d) == C).all()
    again = problems.mcgdiff_mixture(8, 1, 0)
    assert torch.equal(again.y, problems.mcgdiff_mixture(8, 1, 0).y)
    assert not torch.equal(again.y, problems.mcgdiff_mixture(8, 1, 1).y)


def test_unitary_frequencies_have_a_diagonal_posterior() -> None:
    """Variance P s^2 / (P + s^2) where measured, P elsewhere; per real number."""
    problem = problems.stationary("frequencies", 8, dtype=F64)
    n = 64
    eye = torch.eye(n, dtype=torch.complex128).view(n, 1, 8, 8)
    F = fft2c(eye).reshape(n, n).mT
    variance = F @ problem.posterior().covariance @ F.mH
    off_diagonal = variance - torch.diag(variance.diagonal())
    assert off_diagonal.abs().max() < 1e-10 * variance.abs().max()
    assert problem.measured is not None
    seen = problem.measured.flatten()
    # the prior's spectrum by an independent way: the power of its own images' transform
    P = (F @ problem.prior.covariance @ F.mH).diagonal().real
    found = variance.diagonal().real

    def check(s: float) -> None:
        wanted = torch.where(seen, P * s**2 / (P + s**2), P)
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)

    check(problem.noise_std)
    with pytest.raises(AssertionError):
        check(problem.noise_std / math.sqrt(2))
    assert 0.4 < seen.double().mean() < 0.6
    assert float(problem.prior.covariance.diagonal().real.mean()) == pytest.approx(1)


@pytest.mark.parametrize("name", EVERY)
def test_fresh_pairs_have_the_models_law(name: str) -> None:
    """Cov(y) = A C A^H + s^2 where measured and Cov(x0, y) = C A^H; unmeasured entries are 0."""
    problem = EVERY[name](F64)
    pairs = 40_000 if name in SMALL else 10_000
    x0, y = problem.draw(pairs, torch.Generator().manual_seed(0))
    if problem.measured is not None:
        assert not y[:, ~problem.measured.expand(problem.operator.range.shape)].any()
    x = (x0 - problem.prior.mean).flatten(1)
    C, n = problem.prior.covariance, x.shape[1]
    eye = torch.eye(n, dtype=x0.dtype).view(n, *problem.operator.domain.shape)
    A = problem.operator(eye).reshape(n, -1).mT
    v = y.flatten(1) - problem.operator(problem.prior.mean).flatten()
    per_real = 2 if x0.is_complex() else 1

    def check(noise_std: float) -> None:
        noise = torch.full((len(A),), noise_std**2, dtype=F64)
        if problem.measured is not None:
            noise = noise * problem.measured.expand(problem.operator.range.shape).flatten()
        wanted = A @ C @ A.mH + torch.diag(noise)
        found = v.mT @ v.conj() / len(v) / per_real
        size = wanted.diagonal().real.clamp(min=problem.noise_std**2).sqrt()
        error = 6 / math.sqrt(pairs)  # six standard errors of a correlation
        assert ((found - wanted).abs() / size / size[:, None]).max() < error
        assert ((x.mT @ v.conj() / len(v) / per_real - C @ A.mH).abs()
                / size / C.diagonal().real.sqrt()[:, None]).max() < error
        misfit = problem.misfit(x0, y)
        assert float(misfit.mean()) == pytest.approx(
            (noise_std / problem.noise_std) ** 2, abs=4 * float(misfit.std()) / math.sqrt(pairs))

    check(problem.noise_std)
    with pytest.raises(AssertionError):
        check(problem.noise_std * math.sqrt(2))


@pytest.mark.parametrize("name", EVERY)
def test_precision_and_shapes(name: str) -> None:
    for dtype in (torch.float32, F64):
        problem = EVERY[name](dtype)
        kind = dtype.to_complex() if problem.prior.is_complex else dtype
        x0, y = problem.draw(3, torch.Generator().manual_seed(0))
        assert x0.shape == (3, *problem.operator.domain.shape)
        assert y.shape == (3, *problem.y.shape)
        assert x0.dtype == kind == problem.image_dtype
        assert y.dtype == problem.y.dtype
        assert problem.y.dtype.to_real() == dtype
        assert problem.posterior().mean.dtype.to_real() == F64
        assert problem.misfit(x0[:, None], y[:, None]).shape == (3, 1)
    single, double = (EVERY[name](dtype) for dtype in (torch.float32, F64))
    torch.testing.assert_close(single.posterior().mean, double.posterior(
        single.y.to(double.y.dtype)).mean, rtol=1e-3, atol=1e-4)
    operators.check(single.operator).raise_if_failed()


def test_refusals() -> None:
    one = problems.gaussian()
    with pytest.raises(ValueError, match="noise_std wants a number > 0, got 0"):
        Problem("mine", one.operator, one.prior, 0.0, one.y)
    with pytest.raises(ValueError, match=r"mine: y wants \(1, 1, 3\), without batch, got \(2, 1"):
        Problem("mine", one.operator, one.prior, 0.1, Tensor(2, 1, 1, 3))
    with pytest.raises(ValueError, match="even d"):
        problems.mcgdiff_mixture(7)
    with pytest.raises(ValueError, match="9 measurements"):
        problems.mcgdiff_mixture(8, 9)
    with pytest.raises(ValueError, match="'nonsense'"):
        problems.stationary("nonsense")  # type: ignore[arg-type]
