"""Integrators on exact denoisers: order, closed-form gains and variances, draws that stay apart."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from recon.integrators import DDIM, Euler, Integrator, Step, integrate, schedules
from recon.noise import Noise, per_draw, white_like
from recon.priors import Gaussian, GaussianMixture

TOP = 1.348**2  # a variance
MEANS = torch.tensor([(1, 0.3), (-0.8, 0.9), (0.1, -1.1)], dtype=torch.float64)
VARIANCES = torch.tensor([(0.25, 0.10), (0.12, 0.30), (0.2, 0.2)], dtype=torch.float64)
MIXTURE = GaussianMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
                          MEANS.view(3, 2, 1), VARIANCES.diag_embed())


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def starts() -> Tensor:
    found = np.random.default_rng(0).standard_normal((16, 2)) * 10
    return torch.from_numpy(found).view(16, 2, 1)


@pytest.fixture(scope="module")
def solution() -> Tensor:
    """The probability-flow ODE from 10 to .05 by DOP853 in ``-log sigma``."""
    def slope(lam: float, u: Any) -> Any:
        x = torch.from_numpy(u).view(16, 2, 1)
        return (MIXTURE(x, math.exp(-lam)) - x).flatten().numpy()

    found = solve_ivp(slope, (-math.log(10), -math.log(0.05)), starts().flatten().numpy(),
                      method="DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(found.y[:, -1]).view(16, 2, 1)


def check_order(integrator: Integrator, solution: Tensor) -> None:
    """Fails unless the error falls with slope 1, and is 1.257e-2 (RMS) at 80 steps."""
    errors: dict[int, float] = {}
    for steps in (80, 160, 320):
        sigmas = 10 * 0.005 ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        seen: list[Step] = []
        integrate(MIXTURE, starts(), sigmas, integrator, item_ndim=2, callback=seen.append)
        assert len(seen) == steps
        errors[steps] = float((seen[-1].x - solution).square().mean().sqrt())
    for n in (80, 160):
        assert 0.9 < math.log2(errors[n] / errors[2 * n]) < 1.1
    assert errors[80] == pytest.approx(1.257e-2, rel=0.01)


@pytest.mark.parametrize("integrator", [DDIM(0.0), Euler(), DDIM(0.0, "released")])
def test_order_one(integrator: Integrator, solution: Tensor) -> None:
    check_order(integrator, solution)


class Formula:
    """A step written as a function of ``x``, ``x0`` and the two levels."""

    def __init__(self, formula: Callable[..., Tensor]) -> None:
        self.formula = formula

    def reset(self) -> None:
        pass

    def step(self, denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor,
             sigma_next: Tensor, generator: object) -> Tensor:  # noqa: ARG002
        return self.formula(x, denoise(x, sigma), sigma, sigma_next)


FAULTY_STEPS = {
    "denoiser once more": lambda x, x0, s, r: x0 + r * (x - MIXTURE(x0, s)) / s,
    "next level in the slope": lambda x, x0, s, r: x + (r - s) * (x - x0) / r,
    "step too long": lambda x, x0, s, r: x + 1.02 * (r - s) * (x - x0) / s,
    "fresh noise missing": lambda x, x0, s, r: x0 + r**2 / s**2 * (x - x0),
    "second order": lambda x, x0, s, r: x + (r - s) * (
        (x - x0) / s + (e := x + (r - s) * (x - x0) / s) / r - MIXTURE(e, r) / r) / 2,
}


@pytest.mark.parametrize("fault", FAULTY_STEPS)
def test_faulty_steps_are_told(fault: str, solution: Tensor) -> None:
    right = Formula(lambda x, x0, s, r: x0 + r / s * (x - x0))
    check_order(right, solution)
    with pytest.raises(AssertionError):
        check_order(Formula(FAULTY_STEPS[fault]), solution)


def test_ddim_and_euler_are_one_method() -> None:
    for sigmas in (schedules.vp(30), schedules.karras(30), schedules.geometric(30)):
        x = sigmas[0] * noise(5, 2, 1)
        ddim, euler = (integrate(MIXTURE, x, sigmas, kind, item_ndim=2) for kind in
                       (DDIM(0.0), Euler()))
        assert relative(ddim, euler) < 1e-11
        single = integrate(MIXTURE, x.float(), sigmas, Euler(), item_ndim=2)
        assert single.dtype == torch.float32
        assert relative(single.double(), euler) < 1e-3
    assert relative(integrate(MIXTURE, x, sigmas, DDIM(0.3), item_ndim=2), euler) > 1e-2


def vp_gain(steps: int, variance: float) -> float:
    """The product over a VP chain of what a DDIM step makes of one eigenvector, in VP units."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    visited = np.append(abar[:: 1000 // steps][::-1], 1.0)
    gain = 1.0
    for a, s in itertools.pairwise(visited):
        k = math.sqrt(1 - a) / (a * variance + 1 - a)
        gain *= math.sqrt(s) * (1 - math.sqrt(1 - a) * k) / math.sqrt(a) + math.sqrt(1 - s) * k
    return gain


def check_gain(integrator: Integrator, steps: int) -> None:
    """Fails unless every eigenvector of a Gaussian leaves with the gain of the VP product."""
    values = torch.tensor([TOP, 0.01, 0.3, 20.0], dtype=torch.float64).view(1, 2, 2)
    prior = Gaussian(torch.zeros(1, 2, 2, dtype=torch.float64), variance=values)
    sigmas = schedules.vp(steps)
    start = (1 + sigmas[0].square()).sqrt()  # one, in VP units
    got = integrate(prior, start * torch.ones(1, 1, 2, 2, dtype=torch.float64), sigmas, integrator)
    want = torch.tensor([vp_gain(steps, v) for v in values.flatten().tolist()])
    assert relative(got.flatten(), want.double()) < 1e-10


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_deterministic_gain(steps: int) -> None:
    for integrator in (DDIM(0.0), Euler()):
        check_gain(integrator, steps)
    for formula in FAULTY_STEPS.values():
        with pytest.raises((AssertionError, ValueError)):
            check_gain(Formula(formula), steps)
    assert vp_gain(50, TOP) == pytest.approx(1.3047, abs=1e-4)


class Impulses(Noise):
    """Draw ``j`` is one in pixel ``j`` and zero elsewhere: squares then add up to a variance."""

    def like(self, x: Tensor) -> Tensor:
        self.drawn = getattr(self, "drawn", 0) + 1
        out = torch.zeros_like(x)
        out.view(-1)[self.drawn] = 1
        return out


def variance_ratio(integrator: Integrator, variance: float, steps: int = 1000) -> float:
    """Exact variance of unconditional draws of a Gaussian over the one it should be."""
    prior = Gaussian(torch.zeros(1, 1, steps + 1, dtype=torch.float64), variance=variance)
    sigmas = schedules.vp(steps)
    x = torch.zeros(1, 1, 1, steps + 1, dtype=torch.float64)
    x[..., 0] = (variance + sigmas[0].square()).sqrt()
    return float(integrate(prior, x, sigmas, integrator, Impulses()).square().sum()) / variance


@pytest.mark.parametrize(("integrator", "ratio"), [
    (DDIM(0.0), 1.0), (DDIM(0.85), 0.99), (DDIM(1.0), 0.99),
    (DDIM(0.85, "released"), 0.76), (DDIM(1.0, "released"), 0.50),
])
def test_dispersion(integrator: Integrator, ratio: float) -> None:
    for variance in (0.1, TOP):
        assert variance_ratio(integrator, variance) == pytest.approx(ratio, abs=0.02)
    fresh_only = Formula(lambda x, x0, s, r: x0 + r**2 / s**2 * (x - x0))  # DDIM(1) undrawn
    assert variance_ratio(fresh_only, TOP) != pytest.approx(ratio, abs=0.02)


def check_step(integrator: Integrator, fresh: float, sigma: float, sigma_next: float) -> None:
    """Fails unless noise of deviation ``fresh`` is added, and ``sigma_next`` kept in all."""
    x = sigma * torch.ones(1, 1, 300, 300, dtype=torch.float64)
    out = integrator.step(lambda x, _: 0 * x, x, torch.tensor(sigma, dtype=torch.float64),
                          torch.tensor(sigma_next, dtype=torch.float64),
                          torch.Generator().manual_seed(0))
    kept = (sigma_next**2 - fresh**2) ** 0.5
    assert float(out.mean()) == pytest.approx(kept, abs=5 * fresh / 300 + 1e-12)
    assert float(out.std()) == pytest.approx(fresh, rel=0.012, abs=1e-12)


LEVELS = [(3.0, 2.0), (0.5, 0.1), (100.0, 99.0), (1.0, 0.0)]


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.85, 1.0])
@pytest.mark.parametrize(("sigma", "sigma_next"), LEVELS)
def test_step_coefficients(eta: float, sigma: float, sigma_next: float) -> None:
    a, b = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)  # abar before and after
    posterior = math.sqrt((1 - b) / (1 - a) * (1 - a / b))  # Song et al. 2021, eq. 16
    check_step(DDIM(eta), eta * posterior / math.sqrt(b), sigma, sigma_next)
    check_step(DDIM(eta, "released"), eta * math.sqrt(1 - b) / math.sqrt(b), sigma, sigma_next)
    if eta > 0 and sigma_next > 0:
        released = eta * math.sqrt(1 - b) / math.sqrt(b)
        for wrong in (DDIM(eta * 0.9), DDIM(0.0)):
            with pytest.raises(AssertionError):
                check_step(wrong, eta * posterior / math.sqrt(b), sigma, sigma_next)
        with pytest.raises(AssertionError):
            check_step(DDIM(eta), released, sigma, sigma_next)


FIELD = Gaussian(noise(1, 4, 5), spectrum=torch.full((1, 4, 5), 0.7))


@pytest.mark.parametrize("integrator", [DDIM(0.0), DDIM(0.85), Euler()])
def test_levels_per_item(integrator: Integrator) -> None:
    scale = torch.tensor([[1.0, 5.0, 0.2], [3.0, 2.0, 1.0]], dtype=torch.float64)
    sigmas = schedules.vp(20).view(-1, 1, 1) * scale
    x = sigmas[0].view(2, 3, 1, 1, 1) * noise(4, 2, 3, 1, 4, 5)  # four samples of six items
    prior = FIELD.rescaled(scale)
    got = integrate(prior, x, sigmas, integrator, Noise(per_draw(3, range(4), range(6)), 1))
    assert got.shape == x.shape
    for i in range(2):
        for j in range(3):
            one = integrate(FIELD.rescaled(scale[i, j]), x[:, i, j], sigmas[:, i, j], integrator,
                            Noise(per_draw(3, range(4), range(3 * i + j, 3 * i + j + 1)), 1))
            assert relative(got[:, i, j], one) < 1e-12
    shared = integrate(prior, x, schedules.vp(20), integrator,
                       Noise(per_draw(3, range(4), range(6)), 1))
    assert relative(shared, got) > 1e-3


@pytest.mark.parametrize("c", [1e-6, 1e6])
def test_units_cancel(c: float) -> None:
    x, sigmas = noise(2, 1, 4, 5, dtype=torch.float32), schedules.karras(20)
    for integrator in (DDIM(0.0), DDIM(1.0), Euler()):
        got, want = (integrate(FIELD.rescaled(f), f * 80 * x, f * sigmas, integrator,
                               torch.Generator().manual_seed(0)) / f for f in (c, 1.0))
        assert relative(got, want) < 1e-5


def test_draws_belong_to_items() -> None:
    x, sigmas = noise(5, 1, 4, 5), schedules.vp(10)

    def run(items: slice, source: Callable[[range], Any]) -> Tensor:
        return integrate(FIELD, x[items], sigmas, DDIM(0.85), source(range(5)[items]))

    def each(items: range) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in items]

    whole = run(slice(None), each)
    assert torch.allclose(whole[2:4], run(slice(2, 4), each), rtol=1e-13)
    assert torch.allclose(whole[4:], run(slice(4, 5), each), rtol=1e-13)
    # with one generator for all they do depend on the batch
    one = run(slice(None), lambda _: torch.Generator().manual_seed(0))
    other = run(slice(2, 4), lambda _: torch.Generator().manual_seed(0))
    assert relative(one[2:4], other) > 1e-2


@pytest.mark.parametrize("integrator", [DDIM(0.85), DDIM(1.0, "released"), Euler()])
def test_seed_zero_repeats(integrator: Integrator) -> None:
    x, sigmas = noise(3, 1, 4, 5, dtype=torch.float32), schedules.vp(10)
    runs = [integrate(FIELD, x, sigmas, integrator, torch.Generator().manual_seed(seed))
            for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2]) == isinstance(integrator, Euler)
    before = x.clone()
    integrate(FIELD, x, sigmas, integrator)
    assert torch.equal(x, before)


def test_callback_sees_every_step() -> None:
    x, sigmas = 10 * noise(3, 1, 4, 5), schedules.karras(7, sigma_max=10.0)
    seen: list[Step] = []
    out = integrate(FIELD, x, sigmas, DDIM(0.0), callback=seen.append)
    assert [step.index for step in seen] == list(range(1, 8))
    assert [float(step.sigma) for step in seen] == sigmas[1:].tolist()
    assert torch.equal(seen[-1].x, out)
    assert torch.equal(seen[0].x0, FIELD(x, sigmas[0]))
    assert torch.equal(seen[3].x0, FIELD(seen[2].x, sigmas[3]))
    assert not out.requires_grad


def test_ends_above_zero_denoise_once_more() -> None:
    x = 10 * noise(3, 1, 4, 5)
    calls: list[float] = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return FIELD(x, sigma)

    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3], dtype=torch.float64)
    seen: list[Step] = []
    out = integrate(counted, x, sigmas, Euler(), callback=seen.append)
    assert calls == pytest.approx([10, 3, 1, 0.3])
    assert torch.equal(out, FIELD(seen[-1].x, 0.3))
    ended = integrate(counted, x, torch.cat([sigmas, sigmas.new_zeros(1)]), Euler())
    assert relative(ended, out) < 1e-12
    assert len(calls) == 8
    assert torch.equal(integrate(counted, x, sigmas[:1], Euler()), FIELD(x, 10.0))


def test_noise_is_white_per_real_number() -> None:
    for x in (torch.zeros(2, 1, 200, 200), torch.zeros(2, 1, 200, 200, dtype=torch.complex64)):
        n = white_like(x, per_draw(0, range(1), range(2)))
        assert (n.shape, n.dtype) == (x.shape, x.dtype)
        for part in (n.real, n.imag) if n.is_complex() else (n,):
            assert float(part.std()) == pytest.approx(1, abs=0.02)
            assert abs(float(part.mean())) < 0.02
        assert abs(float((n[0] * n[1].conj()).mean().abs())) < 0.03


def test_noise_of_samples_of_items() -> None:
    x = torch.zeros(3, 2, 2, 1, 4, 4)  # three samples, 2 x 2 items
    draws = Noise(per_draw(0, range(3), range(4)), 1).like(x)
    for s in range(3):
        for i in range(4):
            one = Noise(per_draw(0, range(s, s + 1), range(i, i + 1)), 1).like(x[:1, 0, 0])
            assert torch.equal(draws[s, i // 2, i % 2], one[0])
    items = [torch.Generator().manual_seed(i) for i in range(4)]
    shared = Noise(items, 1).like(x)
    alone = Noise([torch.Generator().manual_seed(2)], 1).like(x[:, 0, 0])
    assert torch.equal(shared[:, 1, 0], alone)
    assert not torch.equal(shared[0], shared[1])


def test_schedules() -> None:
    sigmas = schedules.vp(50)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.arange(980, -1, -20)]
    assert relative(sigmas[:-1], torch.from_numpy(np.sqrt((1 - abar) / abar))) < 1e-10
    for steps in (1, 7, 300, 501, 600, 1000):  # rounded strides still reach up
        sigmas = schedules.vp(steps)
        assert len(sigmas) == steps + 1
        assert bool((sigmas.diff() < 0).all())
        assert steps < 100 or float(sigmas[0]) > 0.9 * float(schedules.vp(1000)[0])
    sigmas = schedules.karras(5, 0.1, 10.0)
    assert float(sigmas[2]) == pytest.approx(((10 ** (1 / 7) + 0.1 ** (1 / 7)) / 2) ** 7)
    sigmas = schedules.geometric(5, 0.01, 100.0)
    assert sigmas.tolist() == pytest.approx([100, 10, 1, 0.1, 0.01, 0])


X = noise(2, 1, 4, 5)


@pytest.mark.parametrize(("error", "call", "message"), [
    (ValueError, lambda: DDIM(1.5), r"eta wants a number in \[0, 1\], got 1.5"),
    (ValueError, lambda: DDIM(float("nan")), r"eta wants a number in \[0, 1\], got nan"),
    (ValueError, lambda: DDIM(0.5, "dds"),  # type: ignore[arg-type]
     'rule wants "ddim" or "released", got .dds.'),
    (ValueError, lambda: integrate(FIELD, X, schedules.vp(3).flip(0), DDIM()), "falling sigmas"),
    (ValueError, lambda: integrate(FIELD, X, torch.tensor([1.0, 1.0, 0.0]), DDIM()), "falling"),
    (ValueError, lambda: integrate(FIELD, X, torch.tensor([1.0, torch.nan]), DDIM()), "falling"),
    (ValueError, lambda: integrate(FIELD, X, torch.tensor(1.0), DDIM()), "falling sigmas"),
    (ValueError, lambda: integrate(FIELD, X, torch.tensor([1.0, -1.0]), DDIM()), "sigmas >= 0"),
    (ValueError, lambda: white_like(X, per_draw(0, range(1), range(3))), "one per item .*got 3"),
    (TypeError, lambda: white_like(X, 0),  # type: ignore[arg-type]
     "torch.Generator or a list of them, got int"),
    (ValueError, lambda: schedules.vp(0), "steps wants at least 1, got 0"),
    (ValueError, lambda: schedules.vp(1001), "at most 1000 steps, got 1001"),
    (ValueError, lambda: schedules.karras(5, 1.0, 0.1), "0 < sigma_min < sigma_max, got 1.0 and"),
    (ValueError, lambda: schedules.geometric(5, 0.0), "0 < sigma_min < sigma_max, got 0.0 and"),
])
def test_refusals(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
