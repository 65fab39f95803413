"""DAPS against its own law on Gaussians, the exact posterior, and faulty conditional draws."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.integrators import schedules
from recon.noise import Noise
from recon.operators import LinearOperator, Masking, Operator, Space
from recon.priors import Gaussian, GaussianMixture
from recon.samplers import Langevin, PerturbAndSolve, daps
from recon.samplers.daps import Conditional, trajectory

Cases = dict[str, tuple[LinearOperator, Gaussian]]
CASES = ("coils", "real to complex", "real")
F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


def flat(x: Tensor) -> Tensor:
    """Real numbers of each item, real and imaginary parts side by side."""
    x = x.flatten(1)
    return torch.view_as_real(x).flatten(1) if x.is_complex() else x


class Faulty(PerturbAndSolve):
    """The data without their noise: too narrow."""

    def draw(self, y: Tensor, operator: Operator, predicted: Tensor, r: Tensor, s: Tensor,
             progress: float, noise: Noise) -> Tensor:  # noqa: ARG002 as in PerturbAndSolve
        assert isinstance(operator, LinearOperator)
        shift = (s / r).square()
        rhs = operator.adjoint(y) + shift * (predicted + r * noise.like(predicted))
        return operator.solve(rhs, shift, predicted)


@pytest.mark.parametrize("case", CASES)
def test_conditional_draws(cases: Cases, case: str) -> None:
    """Mean and variance of every pixel, exact: ``(A^H A / s^2 + 1 / r^2)^-1``."""
    A, prior = cases[case]
    y = A(prior.sample(1, seeded(5))[0])
    predicted = prior.sample(1, seeded(6))[0]
    exact = Gaussian(predicted, variance=0.2**2).posterior(A, y, 0.3)
    count = 600
    many = predicted.expand(count, *predicted.shape)

    def check(conditional: Conditional) -> None:
        draws = conditional.draw(y, A, many, number(0.2), number(0.3), 0.0,
                                 Noise(seeded(), 1))
        x, want = flat(draws), flat(exact.mean[None])[0]
        variance = exact.covariance.diagonal().real
        if predicted.is_complex():
            variance = variance.repeat_interleave(2)
        off = (x.mean(0) - want) / (variance / count).sqrt()
        assert float(off.abs().max()) < 5
        ratio = x.var(0) / variance
        assert float((ratio - 1).abs().max()) < 0.3
        assert float(ratio.mean()) == pytest.approx(1, abs=0.04)

    check(PerturbAndSolve())
    check(Langevin(iterations=80, step=0.1))
    faults: list[Conditional] = [Faulty(), Langevin(iterations=20, step=0.9),
                                 Langevin(iterations=2, step=0.1), PerturbAndSolve(1)]
    for conditional in faults:
        with pytest.raises(AssertionError):
            check(conditional)


def law(k: float, y: float, s: float, *, sigmas: Tensor, ode_steps: int, spread: float,
        conditional: Conditional) -> tuple[float, float]:
    """Mean and deviation of one pixel of ``N(0, k)`` measured as ``y`` with noise s."""
    mean, variance, levels = 0.0, float(sigmas[0]) ** 2, len(sigmas) - 1
    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas.tolist())):
        gain = 1.0
        path = [sigma, 0.0] if ode_steps == 1 else trajectory(
            number(sigma), sigmas[-2] / 10, ode_steps).tolist()
        for now, then in itertools.pairwise(path):
            clean = k / (k + now**2)
            gain *= clean + then / now * (1 - clean)
        mean, variance, r = gain * mean, gain**2 * variance, spread * sigma
        h = 1 / r**2 + (1 / s**2 if s < math.inf else 0)
        target = (mean / r**2 + (y / s**2 if s < math.inf else 0)) / h
        if isinstance(conditional, Langevin):
            top = 1 / r**2 + 1 / 0.25  # of the measured pixels
            size = conditional.step * (1 - 0.99 * i / levels) / top
            left = (1 - size * h) ** conditional.iterations
            of_x = left + (1 - left) / (r**2 * h)
            fresh = 2 * size * (1 - left**2) / (1 - (1 - size * h) ** 2)
            mean = target + left * (mean - target)
        else:
            of_x, fresh = 1 / (r**2 * h), 1 / h
            mean = target
        variance = of_x**2 * variance + fresh + after**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(("settings", "measured", "missing"), [
    ({"ode_steps": 1, "conditional": PerturbAndSolve()}, (0.805, 0.446), 1.017),
    ({"conditional": PerturbAndSolve()}, (0.863, 0.463), 1.256),
    ({"ode_steps": 20, "conditional": PerturbAndSolve()}, (0.885, 0.469), 1.403),
    ({"conditional": Langevin()}, (0.849, 0.495), 1.258),
    ({"conditional": PerturbAndSolve(), "spread": 0.5}, (0.616, 0.606), 0.975)])
def test_law_and_recorded_bias(settings: dict[str, Any], measured: tuple[float, float],
                               missing: float) -> None:
    """Pixels of ``N(0, 1)``, half measured as 1 with noise 0.5: exact 0.8, 0.447 and 1."""
    n = 80
    mask = torch.zeros(1, n, n, dtype=F64)
    mask[..., : n // 2] = 1
    A = Masking(mask, Space((1, n, n)))
    prior = Gaussian(torch.zeros(1, n, n, dtype=F64), variance=1.0)
    steps = 60 if isinstance(settings["conditional"], Langevin) else 200
    own = {"ode_steps": 5, "spread": 1.0} | settings
    grid = schedules.karras(steps, 0.1, 100.0)
    x = daps(mask, A, prior, noise_std=0.5, sigmas=grid, generator=seeded(), **settings)
    parts = ((x[..., : n // 2], 0.5), (x[..., n // 2 :], math.inf))

    def check(factor: float) -> None:
        for pixels, s in parts:
            mean, deviation = law(1.0, 1.0, s, sigmas=grid, **own)
            count = math.sqrt(pixels.numel())
            assert abs(float(pixels.mean()) - mean) < 4 * deviation / count
            assert abs(float(pixels.std()) - factor * deviation) < 4 * deviation / count

    check(1.0)
    with pytest.raises(AssertionError):
        check(1.1)
    default = schedules.karras(200, 0.1, 100.0)
    assert law(1.0, 1.0, 0.5, sigmas=default, **own) == pytest.approx(measured, abs=2e-3)
    assert law(1.0, 1.0, math.inf, sigmas=default, **own)[1] == pytest.approx(missing, abs=2e-3)


def test_exact_limit() -> None:
    """One Euler step is Tweedie's mean: with levels far below the prior the posterior is exact."""
    settings: dict[str, Any] = {"ode_steps": 1, "spread": 1.0, "conditional": PerturbAndSolve()}
    errors = []
    for last in (0.4, 0.2, 0.1, 0.05):
        grid = schedules.karras(20000, last, 10.0)
        mean, deviation = law(1.0, 1.0, 0.5, sigmas=grid, **settings)
        errors.append(max(abs(mean - 0.8), abs(deviation - math.sqrt(0.2))))
    assert all(b < 0.5 * a for a, b in itertools.pairwise(errors))
    assert errors[-1] < 2e-3
    with pytest.raises(AssertionError):  # not so with the whole trajectory
        assert abs(law(1.0, 0.0, math.inf, sigmas=schedules.karras(500, 0.05, 10.0),
                       **settings | {"ode_steps": 20})[1] - 1) < 0.1


def test_a_correlated_posterior() -> None:
    """Recorded: error 0.20 of the exact mean, 1.9 times the exact variance."""
    t = torch.arange(32, dtype=F64)
    prior = Gaussian(torch.zeros(1, 32, dtype=F64),
                     covariance=torch.exp(-(t[:, None] - t).square() / 18))
    A = Masking(torch.zeros(1, 32).index_fill(1, torch.arange(0, 30, 3), 1), Space((1, 32)))
    x = prior.sample(1, seeded(1))[0]
    y = A(x + 0.05 * noise(1, 32, seed=2))
    exact = prior.posterior(A, y, 0.05)

    def check(**other: Any) -> None:
        settings: dict[str, Any] = {"noise_std": 0.05, "conditional": PerturbAndSolve()} | other
        draws = daps(y, A, prior, samples=300, generator=seeded(), **settings)
        error = float((draws.mean(0) - exact.mean).norm() / exact.mean.norm())
        spread = float(draws.flatten(1).var(0).sum() / exact.covariance.trace())
        assert error < 0.27
        assert 1.6 < spread < 2.2

    check()
    for fault in ({"noise_std": 1.0}, {"spread": 5.0}):
        with pytest.raises(AssertionError):
            check(**fault)


def test_modes_of_a_mixture() -> None:
    """Three modes fit the data equally, the fourth does not."""
    means = torch.tensor([[-3.0, -2], [3, -2], [-1, 2], [1, -3]], dtype=F64).view(4, 1, 1, 2)
    prior = GaussianMixture(torch.ones(4), means, 0.25 * torch.eye(2, dtype=F64).repeat(4, 1, 1))
    A = Masking(torch.tensor([[[0.0, 1]]]), Space((1, 1, 2)))
    y = torch.tensor([[[0.0, -2.5]]], dtype=F64)
    exact = prior.posterior(A, y, 0.5)

    def check(**other: Any) -> None:
        settings: dict[str, Any] = {"noise_std": 0.5, "conditional": PerturbAndSolve()} | other
        for seed in range(8):
            draws = daps(y, A, prior, samples=400, steps=60, generator=seeded(seed), **settings)
            share = prior.responsibilities(draws.view(-1, 1, 1, 2), 0.1).mean(0)
            assert float((share - exact.weights).abs().sum() / 2) < 0.15
            assert 0.8 < float(draws[..., 1].var() / exact.covariance[1, 1]) < 1.6

    check()
    for fault in ({"noise_std": 4.0}, {"noise_std": 0.05}):
        with pytest.raises(AssertionError):
            check(**fault)


class Saturating(Operator):
    """Nonlinear, its derivative known."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(2 * x)


def test_nonlinear() -> None:
    """The conditional law of every pixel by quadrature."""
    space = Space((1, 100, 100))
    A, y = Saturating(space, space), torch.full((1, 100, 100), 0.6, dtype=F64)
    grid = torch.linspace(-4, 4, 8001, dtype=F64)
    density = torch.exp(-(grid - 0.1).square() / 2 / 0.3**2
                        - (torch.tanh(2 * grid) - 0.6).square() / 2 / 0.2**2)
    density /= density.sum()
    mean = float((density * grid).sum())
    deviation = float((density * (grid - mean).square()).sum().sqrt())

    def check(iterations: int, s: float = 0.2) -> None:
        x = Langevin(iterations, 0.1).draw(y, A, torch.full((1, *y.shape), 0.1, dtype=F64),
                                           number(0.3), number(s), 0.0, Noise(seeded(), 1))
        assert float(x.mean()) == pytest.approx(mean, abs=0.008)
        assert float(x.std()) == pytest.approx(deviation, rel=0.05)

    check(200)
    for fault in ((5, 0.2), (200, 0.3)):
        with pytest.raises(AssertionError):
            check(*fault)


def test_trajectory() -> None:
    sigma = torch.tensor([5.0, 0.1], dtype=F64).view(2, 1, 1, 1)
    path = trajectory(sigma, number(0.01), 6)
    assert torch.equal(path[0], sigma)
    assert torch.equal(path[-1], 0 * sigma)
    assert torch.allclose(path[-2], torch.full_like(sigma, 0.01))
    assert bool((path.diff(dim=0) < 0).all())
    assert torch.allclose(path[:-1, 0].flatten(), schedules.karras(6, 0.01, 5.0)[:-1])


def test_calls_of_the_network() -> None:
    calls = []
    prior = Gaussian(torch.zeros(1, 4, 4), variance=1.0)
    prior.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    A = Masking(torch.ones(4, 4), Space((1, 4, 4)))
    daps(torch.zeros(1, 4, 4), A, prior, noise_std=0.1, steps=7, ode_steps=3,
         conditional=Langevin(2))
    assert calls == [False] * 21


@pytest.mark.parametrize(("settings", "words"), [
    ({"noise_std": 0.0}, "noise_std > 0"), ({"ode_steps": 0}, "ode_steps wants"),
    ({"spread": 0.0}, "spread wants"), ({"conditional": Langevin(0)}, "iterations"),
    ({"conditional": Langevin(5, 2.0)}, "step in"),
    ({"conditional": PerturbAndSolve(0)}, "cg_iterations")])
def test_refusals(settings: dict[str, Any], words: str) -> None:
    prior = Gaussian(torch.zeros(1, 4, 4), variance=1.0)
    A = Masking(torch.ones(4, 4), Space((1, 4, 4)))
    with pytest.raises(ValueError, match=words):
        daps(torch.zeros(1, 4, 4), A, prior, **{"noise_std": 0.1} | settings)


def test_exact_draws_want_a_linear_operator() -> None:
    space = Space((1, 4, 4))
    prior = Gaussian(torch.zeros(1, 4, 4), variance=1.0)
    with pytest.raises(TypeError, match="linear operator"):
        daps(torch.zeros(1, 4, 4), Saturating(space, space), prior, noise_std=0.1,
             conditional=PerturbAndSolve())
