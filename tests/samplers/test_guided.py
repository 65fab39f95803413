"""DPS, PiGDM, TMPD, DDNM and DiffPIR: their updates written out, their limits and identities."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.guidance import proximal
from recon.integrators import DDIM, Step, integrate, schedules
from recon.integrators.base import Rule
from recon.noise import Noise
from recon.operators import LinearOperator, Masking, Space, from_functions, from_nonlinear
from recon.priors import Gaussian, Prior
from recon.samplers import ddnm, diffpir, dps, pigdm, tmpd

Cases = dict[str, tuple[LinearOperator, Gaussian]]
F64 = torch.float64
METHODS: dict[str, Callable[..., Tensor]] = {
    "dps": dps, "annealed": functools.partial(dps, rule="annealed"), "pigdm": pigdm, "tmpd": tmpd,
    "full": functools.partial(tmpd, covariance="full", iterations=40), "ddnm": ddnm,
    "ancestral": functools.partial(ddnm, integrator=DDIM(1.0)), "diffpir": diffpir}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def measured(A: LinearOperator, prior: Gaussian, std: float = 0.1, batch: int = 1) -> Tensor:
    y = A(prior.sample(batch, seeded(5)))
    n = torch.randn((*y.shape, 2), generator=seeded(6), dtype=F64)
    return y + std * (torch.view_as_complex(n) if y.is_complex() else n[..., 0])


def dense(rows: Any) -> LinearOperator:
    M = torch.as_tensor(rows, dtype=F64)
    return from_functions(lambda x: (x.flatten(-2) @ M.mT)[..., None, :],
                          lambda y: (y.flatten(-2) @ M)[..., None, :],
                          domain=Space((1, M.shape[1])), range=Space((1, M.shape[0])))


def inpainting() -> tuple[LinearOperator, Gaussian, float]:
    """Correlated pixels, 10 of 32 measured."""
    t = torch.arange(32, dtype=F64)
    prior = Gaussian(torch.zeros(1, 32, dtype=F64),
                     covariance=torch.exp(-(t[:, None] - t).square() / 18))
    kept = torch.zeros(1, 32).index_fill(1, torch.arange(0, 30, 3), 1)
    return Masking(kept, Space((1, 32))), prior, 0.05


def alg_1(fault: str = "") -> Callable[..., Tensor]:
    """DPS, Alg. 1, in the units of the VP process, the gradient by one graph."""

    def method(y: Tensor, A: LinearOperator, prior: Prior, *, steps: int, zeta: float,
               samples: int, generator: torch.Generator) -> Tensor:
        abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
        visited = [*abar[:: 1000 // steps].flip(0), torch.ones((), dtype=F64)]
        noisy = Noise(generator, 1)
        shape = (samples, *A.range.batch_of(y), *A.domain.shape)
        x = (1 - visited[0]).sqrt() * noisy.like(torch.empty(
            shape, dtype=y.dtype if A.domain.is_complex else F64))
        for a, s in itertools.pairwise(visited):
            alpha = a / s
            with torch.enable_grad():
                z = x.requires_grad_()
                x0 = prior(z / a.sqrt(), ((1 - a) / a).sqrt())
                left = y - A(z / a.sqrt() if fault == "no denoiser" else x0)
                squares = left.abs().square().sum((-1, -2, -3))
                norm = squares.sum().sqrt() if fault == "shared norm" else squares.sqrt().sum()
                norm = squares.sum() if fault == "squared norm" else norm
                (gradient,) = torch.autograd.grad(norm, z)
            x, x0 = x.detach(), x0.detach()
            mean = (alpha.sqrt() * (1 - s) * x + s.sqrt() * (1 - alpha) * x0) / (1 - a)
            std = ((1 - s) / (1 - a) * (1 - alpha)).sqrt()
            x = mean + std * noisy.like(x)
            if fault == "units of x / sqrt(abar)":
                gradient = gradient * a.sqrt()
            x = x - (-zeta if fault == "sign" else zeta) * gradient
        return x

    return method


@pytest.mark.parametrize("case", ["coils", "real to complex", "real"])
def test_dps_is_algorithm_1(cases: Cases, case: str) -> None:
    A, prior = cases[case]
    y = measured(A, prior, batch=2)
    settings: dict[str, Any] = {"steps": 20, "zeta": 0.8, "samples": 3}
    want = dps(y, A, prior, noise_std=0.1, generator=seeded(), **settings)

    def check(method: Callable[..., Tensor]) -> None:
        assert relative(method(y, A, prior, generator=seeded(), **settings), want) < 1e-7

    check(alg_1())
    for fault in ("shared norm", "squared norm", "sign", "units of x / sqrt(abar)", "no denoiser"):
        with pytest.raises(AssertionError):
            check(alg_1(fault))


def test_dps_rule_for_integrators_is_the_paper_at_1000_steps(cases: Cases) -> None:
    """Same draws from the same noise, up to the difference between 1000 steps and their limit."""
    A, prior = cases["coils"]
    y = measured(A, prior)
    paper = dps(y, A, prior, generator=seeded())

    def check(**settings: Any) -> None:
        got = dps(y, A, prior, generator=seeded(), integrator=DDIM(1.0), **settings)
        assert float((got - paper).norm() / paper.norm()) < 0.02

    check()
    with pytest.raises(AssertionError):
        check(zeta=0.9)


def test_no_weight_is_unconditional(cases: Cases) -> None:
    """``zeta = 0``, bit by bit."""
    A, prior = cases["coils"]
    y, sigmas, z = measured(A, prior), schedules.vp(20), Noise(seeded(), 1)
    x = sigmas[0] * z.like(torch.empty(2, 1, 1, 8, 8, dtype=torch.complex128))
    want = integrate(prior, x, sigmas, DDIM(1.0), z)
    for rule in ("norm", "annealed"):
        settings: dict[str, Any] = {"rule": rule, "steps": 20, "samples": 2, "noise_std": 0.1}
        assert torch.equal(dps(y, A, prior, zeta=0.0, generator=seeded(), **settings), want)
        assert not torch.equal(dps(y, A, prior, zeta=1e-3, generator=seeded(), **settings), want)


def test_diffpir_is_algorithm_1(cases: Cases) -> None:
    A, prior = cases["coils"]
    y = measured(A, prior)
    got = diffpir(y, A, prior, noise_std=0.1, steps=15, zeta=0.3, lambda_=2.0, cg_iterations=8,
                  generator=seeded())

    def twin(fault: str = "") -> Tensor:
        sigmas, z = schedules.vp(15), Noise(seeded(), 1)
        x = sigmas[0] * z.like(got)
        for s, r in itertools.pairwise(sigmas):
            predicted = prior(x, s)
            std = torch.tensor(0.1, dtype=F64) * (1.0 if fault == "lambda" else 2**0.5)
            x0 = proximal(y, A, std, gamma=None, cg_iterations=8)(predicted, s)
            eps = (x - (predicted if fault == "eps before the data" else x0)) / s
            share = 0.3**2 if fault == "zeta of deviations" else 0.3
            x = x0 + r * (math.sqrt(1 - share) * eps + math.sqrt(share) * z.like(x))
        return x0

    assert relative(twin(), got) < 1e-10
    for fault in ("lambda", "eps before the data", "zeta of deviations"):
        assert relative(twin(fault), got) > 1e-3


def test_diffpir_without_data_is_unconditional(cases: Cases) -> None:
    A, prior = cases["coils"]
    y, sigmas, z = measured(A, prior), schedules.vp(20), Noise(seeded(), 1)
    x = sigmas[0] * z.like(torch.empty(2, 1, 1, 8, 8, dtype=torch.complex128))
    want = integrate(prior, x, sigmas, DDIM(0.1**0.5, "released"), z)

    def check(lambda_: float) -> None:
        got = diffpir(y, A, prior, noise_std=0.1, lambda_=lambda_, steps=20, samples=2,
                      generator=seeded())
        assert relative(got, want) < 1e-10

    check(1e20)
    with pytest.raises(AssertionError):
        check(1e3)


def test_ddnm_without_noise() -> None:
    """What is measured is ``y`` at every level; vanishing noise gives the same law."""
    A, prior, _ = inpainting()
    assert isinstance(A, Masking)
    y = A(prior.sample(1, seeded(3))[0])
    for step in ddnm.steps(y, A, prior, samples=3, steps=10, generator=seeded()):
        assert float((A(step.x0) - y).abs().max()) < 1e-14

    def check(std: float) -> None:
        clean, nearly = (ddnm(y, A, prior, noise_std=s, samples=4000, steps=20,
                              generator=seeded(int(s > 0))) for s in (0.0, std))
        assert float((A(nearly) - y).abs().max()) < 1e-6
        error = (clean.mean(0) - nearly.mean(0)).abs() / (clean.var(0) / 2000 + 1e-12).sqrt()
        assert float(error.max()) < 4
        ratio = (nearly.var(0) + 1e-9) / (clean.var(0) + 1e-9)
        assert ratio.tolist()[0] == pytest.approx([1.0] * 32, abs=0.13)

    check(0.0)
    check(1e-9)
    with pytest.raises(AssertionError):
        check(1e-2)
    with pytest.raises(ValueError, match="eta > 0 with noisy data"):
        ddnm(y, A, prior, noise_std=0.1, eta=0.0)
    assert ddnm(y, A, prior, eta=0.0, steps=5).isfinite().all()


def test_ddnm_adds_noise_up_to_the_level() -> None:
    """With a prediction of 0, over data and fresh noise: ``sigma'^2`` in every direction."""
    gains = torch.tensor([0.02, 0.2, 0.5, 1.0, 3.0, 0.0], dtype=F64)
    A, n = dense(torch.diag(gains)), 4000
    prior = Gaussian(torch.zeros(1, 6, dtype=F64), variance=0.0)
    levels = torch.tensor([2.0, 0.5, 0.1, 0.0], dtype=F64)
    y = 0.3 * torch.randn(n, 1, 6, generator=seeded(1), dtype=F64)
    z = torch.randn(1, n, 1, 6, generator=seeded(2), dtype=F64)

    def check(std: float, rule: Rule) -> None:
        # the predicted part must be noise of the level; predictions and data know nothing of it
        start = Step(0, levels[0], levels[0] * z, z)
        step = next(iter(ddnm.steps(y, A, prior, noise_std=std, sigmas=levels, rule=rule,
                                    generator=seeded(), start=start)))
        # 4 deviations of a variance of 4000 draws
        assert step.x.var((0, 1)).flatten().tolist() == pytest.approx([0.25] * 6, rel=0.09)

    rules: tuple[Rule, ...] = ("ddim", "released")
    for rule in rules:
        check(0.3, rule)
        with pytest.raises(AssertionError):
            check(0.3 / 2**0.5, rule)


@pytest.mark.parametrize("std", [0.3, 0.03, 0.003, 0.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_small_noise_does_not_blow_up(cases: Cases, std: float, scale: float) -> None:
    """Few levels, from high noise, in single precision; row sums of k-space once reached 1e10."""
    A, exact = cases["coils"]
    prior = Gaussian(exact.mean.to(torch.complex64), spectrum=exact.eigenvalues.float())
    y = measured(A, exact, std)[0].to(torch.complex64)
    for name, method in METHODS.items():
        for steps in (7, 30):
            if name == "full" and steps == 30:
                continue
            got = method(scale * y, A, prior.rescaled(scale), noise_std=scale * std, samples=2,
                         steps=steps, generator=seeded())
            assert float(got.abs().max()) < 4 * scale, (name, steps)


def test_any_operator_for_dps() -> None:
    """Magnitudes of a Fourier transform; the annealed rule must be told their gain."""
    space = Space((1, 8, 8))
    A = from_nonlinear(lambda x: torch.fft.fft2(x, norm="ortho").abs(), domain=space, range=space)
    prior = Gaussian(torch.zeros(1, 8, 8), variance=1.0)
    x = prior.sample(2, seeded(1))
    free = dps(A(x), A, prior, zeta=0.0, steps=100, generator=seeded())
    for settings in ({"zeta": 0.3}, {"rule": "annealed", "gain": 1.0}):
        got = dps(A(x), A, prior, noise_std=0.05, steps=100, generator=seeded(), **settings)
        left, before = ((A(x) - A(g)).norm() for g in (got, free))
        assert float(left) < 0.6 * float(before)
    with pytest.raises(ValueError, match="is not linear: pass gain="):
        dps(A(x), A, prior, rule="annealed")


@pytest.mark.parametrize(("method", "settings", "message"), [
    (dps, {"zeta": -1.0}, "zeta wants"), (dps, {"rule": "paper"}, "rule wants"),
    (dps, {"gain": 0.0}, "gain wants"), (pigdm, {"prior_std": 0.0}, "prior_std wants"),
    (pigdm, {"eta": 1.1}, "eta wants"), (pigdm, {"cg_iterations": 0}, "cg_iterations wants"),
    (tmpd, {"covariance": "diagonal"}, "covariance wants"), (tmpd, {"eta": -0.1}, "eta wants"),
    (ddnm, {"rule": "none"}, "rule wants"), (ddnm, {"eta": 2.0}, "eta wants"),
    (diffpir, {"lambda_": 0.0}, "lambda_ wants"), (diffpir, {"zeta": 1.5}, "zeta wants")])
def test_refusals(method: Any, settings: dict[str, Any], message: str) -> None:
    A, prior, std = inpainting()
    with pytest.raises(ValueError, match=message):
        method(torch.zeros(1, 32, dtype=F64), A, prior, noise_std=std, **settings)
