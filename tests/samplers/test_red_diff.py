"""RED-diff against the paper's loss under PyTorch's own Adam, closed forms and limits.

T20 to T26; every check of a number is shown to refuse a faulty variant.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.integrators import schedules
from recon.noise import Noise, per_draw
from recon.operators import (
    Clipping,
    Counts,
    Identity,
    LinearOperator,
    Masking,
    Operator,
    Scale,
    Space,
    from_functions,
)
from recon.priors import Gaussian, Prior
from recon.samplers import dps, red_diff
from recon.samplers.red_diff import (
    RedDiffStep,
    direction,
    first_image,
    numbers_measured,
    objective,
)

Method = Callable[..., Tensor]
Cases = dict[str, tuple[LinearOperator, Gaussian]]
CASES = ("coils", "real to complex", "real")
WEIGHTINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda s: s, "sqrt": math.sqrt, "square": lambda s: s * s,
    "log": lambda s: math.log(1 + s), "clip": lambda s: min(s, 1),
    "power2over3": lambda s: s ** (2 / 3), "const": lambda s: s**0}
F64, C128 = torch.float64, torch.complex128
module = sys.modules["recon.samplers.red_diff"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def measured(A: LinearOperator, prior: Gaussian, batch: int = 1) -> Tensor:
    y = A(prior.sample(batch, seeded(5)))
    return y + 0.1 * noise(*y.shape, seed=6, dtype=y.dtype)


def gathering(mask: Tensor) -> LinearOperator:
    """Only the entries that are measured: M < N."""
    picked = mask.flatten().nonzero().flatten()
    n, m = mask.numel(), len(picked)

    def spread(y: Tensor) -> Tensor:
        return y.new_zeros(*y.shape[:-1], n).index_copy(-1, picked, y)

    return from_functions(lambda x: x[..., picked], spread, domain=Space((1, n)),
                          range=Space((1, m)))


def line() -> tuple[Gaussian, Tensor, Tensor]:
    """The problem of T10: a correlated line of 32 pixels, 10 of them measured."""
    t = torch.arange(32, dtype=F64)
    prior = Gaussian(torch.zeros(1, 32, dtype=F64),
                     covariance=torch.exp(-(t[:, None] - t).square() / 18))
    mask = torch.zeros(1, 32).index_fill(1, torch.arange(0, 30, 3), 1)
    x = prior.sample(1, seeded(1))[0]
    return prior, mask, mask * (x + 0.05 * noise(1, 32, seed=2))


def paper(y: Tensor, A: LinearOperator, prior: Prior, *, steps: int, lr: float,
          prior_weight: float, weighting: str = "linear", order: str = "descending",
          generator: torch.Generator, samples: int = 1, fault: str = "") -> Tensor:
    """The published loop in VP units, its loss differentiated, under ``torch.optim.Adam``."""
    abar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0)
    visited = torch.arange(steps).flip(0) * 1000 // steps
    if order == "random":
        visited = torch.randint(1000, (steps,), generator=seeded(7))
    elif order == "ascending":
        visited = visited.flip(0)
    shape = (samples, *A.range.batch_of(y), *A.domain.shape)
    mu = first_image(y, A, 10).expand(shape).clone().requires_grad_()
    noisy = Noise(generator, 1, len(A.domain.shape))
    noisy.like(mu.detach())  # the sampler's x at the first level
    adam = torch.optim.Adam([mu], lr=lr, betas=(0.9, 0.99), eps=0.0)
    for a in abar[visited]:
        eps, sigma = noisy.like(mu.detach()), ((1 - a) / a).sqrt()
        with torch.no_grad():
            x = a.sqrt() * mu + (1 - a).sqrt() * eps
            eps_hat = (x - a.sqrt() * prior(x / a.sqrt(), sigma)) / (1 - a).sqrt()
        change = eps_hat if fault == "no control variate" else eps_hat - eps
        misfit = (y - A(mu)).abs().square()
        data = misfit.sum() if fault == "sum" else misfit.mean()
        weight = prior_weight * WEIGHTINGS[weighting](float(sigma))
        loss = data / 2 + weight * (change.conj() * mu).real.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return mu.detach()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_papers_loop(monkeypatch: pytest.MonkeyPatch, weighting: Any) -> None:
    monkeypatch.setattr(module, "_EPSILON", 0.0)
    prior, mask, y = line()
    A = gathering(mask)
    data: dict[str, Any] = {"steps": 30, "lr": 0.1, "prior_weight": 0.4, "weighting": weighting}
    got = red_diff(y[mask > 0][None], A, prior, generator=seeded(), **data)

    def check(fault: str = "", **other: Any) -> None:
        want = paper(y[mask > 0][None], A, prior, generator=seeded(), fault=fault,
                     **(data | other))
        assert relative(got, want) < 1e-8

    check()
    for fault in ("no control variate", "sum"):
        with pytest.raises(AssertionError):
            check(fault)
    with pytest.raises(AssertionError):
        check(order="ascending")
    with pytest.raises(AssertionError):
        check(weighting="sqrt" if weighting != "sqrt" else "linear")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_expected_regulariser(cases: Cases, case: str, weighting: Any) -> None:
    """T20: ``phi(s) sigma (C + sigma^2)^-1 (mu - m)``; exact with eps and -eps, D being affine."""
    A, prior = cases[case]
    C, n = prior.covariance, prior.mean.numel()
    mu = noise(1, 8, 8, seed=3, dtype=prior.mean.dtype)
    eps = noise(1, 8, 8, seed=4, dtype=prior.mean.dtype)
    scale = 2.5
    g = objective(0 * A(mu), A, prior.rescaled(scale), torch.tensor(0.0), prior_weight=0.7,
                  data_weight=0.0, weighting=weighting, reduction="sum")
    for s in (0.01, 0.8, 30.0):
        sigma = torch.tensor(s * scale, dtype=F64)
        got = (g(scale * mu, sigma, eps) + g(scale * mu, sigma, -eps)) / 2
        solved = torch.linalg.solve(C + s**2 * torch.eye(n, dtype=C.dtype),
                                  (mu - prior.mean).flatten())
        want = 0.7 * WEIGHTINGS[weighting](s) * s * solved.view(1, 8, 8)
        assert relative(got, want) < 1e-8
        with pytest.raises(AssertionError):  # without the level in front
            assert relative(got, want / s) < 1e-8


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("gathered", [True, False])
def test_stationary_point_over_all_levels(gathered: bool, reduction: Any) -> None:
    """T21: ``(A^T A / M + R / N) mu = A^T y / M + R m / N``, M counted by what is measured."""
    prior, mask, y = line()
    prior = Gaussian(prior.mean + 0.5, covariance=prior.covariance)
    A: LinearOperator = gathering(mask) if gathered else Masking(mask, Space((1, 32)))
    y = y[mask > 0][None] if gathered else y
    C, levels = prior.covariance, schedules.vp(100)[:-1]
    eye = torch.eye(32, dtype=F64)
    R = torch.stack([0.6 * s**2 * torch.linalg.inv(C + s**2 * eye) for s in levels]).mean(0)
    g = objective(y, A, prior, torch.tensor(0.0), prior_weight=0.6, data_weight=1.0,
                  weighting="linear", reduction=reduction)

    def check(M: int, N: int) -> None:
        seen = torch.diag(mask[0].to(F64)) / M
        rhs = A.adjoint(y).flatten() / M + R @ prior.mean.flatten() / N
        mu = torch.linalg.solve(seen + R / N, rhs).view(1, 32)
        eps = noise(1, 32)
        total = sum((g(mu, s, eps) + g(mu, s, -eps) for s in levels), 0 * mu) / 200
        parts = R @ (mu - prior.mean).flatten()
        assert float(total.norm() / parts.norm()) < 1e-8

    check(*((10, 32) if reduction == "mean" else (1, 1)))
    for wrong in ((32, 32), (10, 32) if reduction == "sum" else (1, 1), (32, 10)):
        if reduction == "sum" and wrong[0] == wrong[1]:
            continue
        with pytest.raises(AssertionError):
            check(*wrong)


def test_descending_levels_come_nearest() -> None:
    """T22: error of the posterior mean against the order of levels; spread against the rate."""
    prior, mask, y = line()
    A = Masking(mask, Space((1, 32)))
    exact = prior.posterior(A, y, 0.05).mean
    settings: dict[str, Any] = {"steps": 1000, "lr": 0.1, "prior_weight": 0.25}
    order = {"descending": red_diff(y, A, prior, samples=8, generator=seeded(), **settings)}
    for name in ("random", "ascending"):
        order[name] = paper(y, A, prior, order=name, samples=8, generator=seeded(), **settings)
    error = {name: float((mu.mean(0) - exact).norm() / exact.norm()) for name, mu in order.items()}
    assert error["descending"] < 0.25
    assert 0.6 < error["random"] <= error["ascending"] < 0.95
    spread = []
    for lr in (0.01, 0.1, 0.5):
        mu = red_diff(y, A, prior, samples=8, generator=seeded(), **settings | {"lr": lr})
        spread.append(float(mu.std(0).norm() / exact.norm()))
    assert 2 * spread[0] < spread[1]
    assert 1.5 * spread[1] < spread[2]


def test_limits() -> None:
    """T23: without a prior the data alone, without data the prior's mean."""
    prior, mask, y = line()
    prior = Gaussian(prior.mean + 0.7, variance=0.01)
    A = Masking(mask, Space((1, 32)))
    first = noise(1, 32, seed=8)
    settings: dict[str, Any] = {"steps": 400, "generator": seeded()}
    for reduction in ("mean", "sum"):
        mu = red_diff(y, A, prior, prior_weight=0.0, initial=first, reduction=reduction,
                      **settings)[0]
        assert float((mask * (mu - y)).abs().max()) < 1e-3
        assert torch.equal(mu[mask == 0], first[mask == 0])
    mu = red_diff(y, A, prior, initial=first, **settings)[0]
    with pytest.raises(AssertionError):  # a prior moves what is not measured
        assert torch.equal(mu[mask == 0], first[mask == 0])
    stays = red_diff(y, A, prior, prior_weight=0.0, **settings)[0]
    assert relative(stays, y) < 1e-12  # A^+ y already
    free = red_diff(y, A, prior, data_weight=0.0, initial=first, **settings)[0]
    assert float((free - 0.7).norm() / (first - 0.7).norm()) < 0.1


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_heavier_prior_pulls_harder(weighting: Any) -> None:
    prior, mask, y = line()
    A = Masking(mask, Space((1, 32)))
    misfit = [float((A(red_diff(y, A, prior, prior_weight=weight, weighting=weighting, steps=100,
                                reduction="sum", generator=seeded())) - y).norm())
              for weight in (0.1, 1.0, 10.0)]
    assert 2 * misfit[0] < misfit[1]
    assert 1.1 * misfit[1] < misfit[2]


@pytest.mark.parametrize("steps", [1, 6])
def test_calls_and_result(cases: Cases, steps: int) -> None:
    """T24: one call of the network a step, without a graph; the result is after the last step."""
    A, prior = cases["coils"]
    weight = torch.nn.Parameter(torch.ones((), dtype=F64))
    calls = []

    class Weighted(Prior):
        def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
            calls.append(torch.is_grad_enabled())
            return weight * prior.denoise(x, sigma)

    y = measured(A, prior)
    seen = list(red_diff.steps(y, A, Weighted(channels=1, is_complex=True), noise_std=0.1,
                               steps=steps, generator=seeded()))
    assert calls == [False] * steps
    calls.clear()
    dps(y, A, Weighted(channels=1, is_complex=True), steps=steps, generator=seeded())
    assert calls != [False] * steps  # which differentiates it
    assert weight.grad is None
    assert not seen[-1].x0.requires_grad
    last = seen[-1]
    before = first_image(y, A, 10)[None] if steps == 1 else seen[-2].x
    assert torch.equal(last.x0, before - 0.1 * direction(last.m, last.v, steps, 3))
    assert not torch.equal(last.x0, before)
    assert torch.equal(red_diff(y, A, Weighted(channels=1, is_complex=True), noise_std=0.1,
                                steps=steps, generator=seeded()), last.x0)


@pytest.mark.parametrize("reduction", ["noise", "mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_duplicates_and_tiles(cases: Cases, case: str, reduction: Any) -> None:
    """T25: neither more items nor a larger image of the same changes an item's result."""
    A, prior = cases[case]
    y = measured(A, prior)
    settings: dict[str, Any] = {"noise_std": 0.1, "steps": 20, "reduction": reduction}
    one = red_diff(y, A, prior, generator=seeded(), **settings)
    many = red_diff(torch.cat([y] * 3), A, prior, generator=[seeded() for _ in range(3)],
                    **settings)
    for i in range(3):
        assert relative(many[:, i : i + 1], one) < 1e-10


@pytest.mark.parametrize("reduction", ["noise", "mean", "sum"])
def test_tiled_image(reduction: Any) -> None:
    mask = (noise(1, 6, 6, seed=1) > 0).to(F64)
    x, eps = noise(1, 6, 6, seed=2), noise(9, 1, 6, 6, seed=3)

    def run(tiles: int, weighted: bool = False) -> Tensor:
        def tiled(t: Tensor) -> Tensor:
            return t.repeat(*(1,) * (t.ndim - 2), tiles, tiles)

        n = 6 * tiles
        prior = Gaussian(torch.zeros(1, n, n, dtype=F64), variance=0.5)
        A = Masking(tiled(mask), Space((1, n, n)))
        y = tiled(mask * x)
        weight = 0.25 * (tiles**2 if weighted else 1)
        g = objective(y, A, prior, torch.tensor(0.3), prior_weight=weight, data_weight=1.0,
                      weighting="linear", reduction=reduction)
        return descend(g, y, tiled(eps))[..., :6, :6]

    assert relative(run(2), run(1)) < 1e-10
    with pytest.raises(AssertionError):
        assert relative(run(2, weighted=True), run(1)) < 1e-10


def descend(g: Callable[..., Tensor], mu: Tensor, eps: Tensor, second: str = "magnitude",
            levels: Tensor | None = None) -> Tensor:
    m, v = torch.zeros_like(mu), torch.zeros_like(mu.real)
    if second == "parts":
        v = torch.zeros_like(torch.view_as_real(mu))
    for i, sigma in enumerate(schedules.vp(len(eps))[:-1] if levels is None else levels):
        now = g(mu, sigma, eps[i])
        m = 0.9 * m + 0.1 * now
        if second == "parts":
            v = 0.99 * v + 0.01 * torch.view_as_real(now).square()
            move = torch.view_as_complex(
                direction(torch.view_as_real(m), v, i + 1, mu.ndim + 1))
        else:
            square = now.abs().square() / (2 if now.is_complex() else 1)
            v = 0.99 * v + 0.01 * square
            move = direction(m, v, i + 1, mu.ndim)
        mu = mu - 0.1 * move
    return mu


@pytest.mark.parametrize("reduction", ["noise", "mean", "sum"])
def test_phase_passes_through(cases: Cases, reduction: Any) -> None:
    """T25: of image, data and noise together; moments of the parts apart would break it."""
    A, prior = cases["coils"]
    y, eps = measured(A, prior)[0], noise(12, 1, 8, 8, dtype=C128)
    turn = torch.polar(torch.ones((), dtype=F64), torch.tensor(0.7, dtype=F64))

    def run(phase: Tensor, second: str) -> Tensor:
        g = objective(phase * y, A, prior, torch.tensor(0.1), prior_weight=0.25, data_weight=1.0,
                      weighting="linear", reduction=reduction)
        return descend(g, first_image(phase * y, A, 10), phase * eps, second)

    def check(second: str) -> None:
        one = torch.ones((), dtype=C128)
        assert relative(run(turn, second), turn * run(one, second)) < 1e-9

    check("magnitude")
    with pytest.raises(AssertionError):
        check("parts")


def test_moments_do_not_see_the_packing() -> None:
    """A step is as long for a complex number as for its two parts as real pixels."""
    g = noise(5, 1, 400, dtype=C128)
    m, v, w = 0 * g[0], 0 * g[0].real, torch.zeros(1, 400, 2, dtype=F64)
    for one in g:
        m = 0.9 * m + 0.1 * one
        v = 0.99 * v + 0.01 * one.abs().square() / 2
        w = 0.99 * w + 0.01 * torch.view_as_real(one).square()
    whole = direction(m, v, 5, 2)
    parts = direction(torch.view_as_real(m), w, 5, 3)
    ratio = torch.view_as_real(whole).square().mean() / parts.square().mean()
    assert 0.8 < float(ratio) < 1.2
    with pytest.raises(AssertionError):
        assert 0.8 < float(ratio) / 2 < 1.2  # |g|^2 not halved


def test_epsilon_is_of_the_item() -> None:
    """Of rounding error no step is made, and none in other units."""
    g = torch.tensor([1.0, 1e-7, 0.0], dtype=F64)
    for c in (1e-12, 1.0, 1e12):
        move = direction(c * g, (c * g).square(), 10**6, 1)
        assert relative(move, torch.tensor([1.0, 1e-4 / 1.16, 0.0], dtype=F64)) < 5e-3
    assert torch.equal(direction(0 * g, 0 * g, 1, 1), 0 * g)


def image_problems() -> dict[str, tuple[LinearOperator, Gaussian, float]]:
    n = 16
    f = torch.fft.fftfreq(n, dtype=F64)
    far = f[:, None].square() + f.square()
    spectrum = 1 / (1 + 200 * far)[None].square()
    prior = Gaussian(torch.full((1, n, n), 0.5, dtype=F64),
                     spectrum=spectrum / spectrum.mean() / 4)
    space = Space((1, n, n))
    mask = torch.rand(1, n, n, generator=seeded(9)) < 0.4
    blur = from_functions(
        lambda x: torch.fft.ifft2(torch.fft.fft2(x) * torch.exp(-30 * far)).real,
        lambda x: torch.fft.ifft2(torch.fft.fft2(x) * torch.exp(-30 * far)).real,
        domain=space, range=space)
    t, _, _ = line()
    return {"line": (Masking(line()[1], Space((1, 32))), t, 0.05),
            "inpainting": (Masking(mask, space), prior, 0.1),
            "denoising": (Identity(space), prior, 0.2), "deblurring": (blur, prior, 0.02)}


@pytest.mark.parametrize("name", ["line", "inpainting", "denoising", "deblurring"])
def test_residual_ends_at_the_noise(name: str) -> None:
    """T26: eight problems each; the paper's means and plain ``1 / noise_std^2`` fit the noise."""
    A, prior, std = image_problems()[name]
    x = prior.sample(8, seeded(1))
    y = A(x) + std * (A(torch.ones_like(x)) != 0) * noise(*x.shape, seed=2)
    M = int((A(torch.ones_like(x)) != 0)[0].sum())

    def residual(**settings: Any) -> Tensor:
        mu = red_diff(y, A, prior, generator=seeded(), **settings)[0]
        return (A(mu) - y).square().flatten(1).sum(1) / M / std**2

    def check(**settings: Any) -> None:
        ratio = residual(**settings)
        assert float(ratio.min()) > 0.5
        assert float(ratio.max()) < 1.5

    check(noise_std=std)
    with pytest.raises(AssertionError):
        check(noise_std=std, reduction="sum", data_weight=std**-2)
    if name != "deblurring":
        with pytest.raises(AssertionError):
            check(noise_std=std, reduction="mean")


class Saturating(Operator):
    """Nonlinear, its derivative known."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(2 * x)


def test_nonlinear() -> None:
    _, prior, _ = image_problems()["denoising"]
    prior = Gaussian(prior.mean - 0.5, spectrum=prior.eigenvalues)
    A = Saturating(prior.space, prior.space)  # type: ignore[arg-type]
    x = prior.sample(4, seeded(1))
    y = A(x) + 0.1 * noise(*x.shape, seed=2)
    u = 2 * y
    factor = (A(u) * y).sum((1, 2, 3)) / A(u).square().sum((1, 2, 3))
    first = first_image(y, A, 10)
    assert relative(first, factor.view(-1, 1, 1, 1) * u) < 1e-10
    got = red_diff(y, A, prior, noise_std=0.1, steps=300, lr=0.05, generator=seeded())[0]
    residual = (A(got) - y).square().mean((1, 2, 3)) / 0.01
    assert float(residual.min()) > 0.5
    assert float(residual.max()) < 1.5
    assert float((got - x).norm() / (first - x).norm()) < 0.6

    g = objective(y, A, prior, torch.tensor(0.1, dtype=F64), prior_weight=0.0, data_weight=1.0,
                  weighting="linear", reduction="noise")
    mu = (0.3 * noise(*x.shape, seed=4)).requires_grad_()
    over = (y - A(mu)).flatten(1).norm(dim=1) - 16 * 0.1
    (want,) = torch.autograd.grad((over.clamp(min=0).square() / 2 / 0.01).sum(), mu)
    with torch.no_grad():
        assert relative(g(mu, torch.tensor(1.0, dtype=F64), 0 * mu), want) < 1e-8


def homogeneous(y: Tensor, A: Operator, cg_iterations: int) -> Tensor:  # noqa: ARG001
    """The first image, ``A(c p)`` taken for ``c A(p)``: a background scales along."""
    pulled = A.vjp(torch.zeros_like(y), y)
    seen = A(pulled)
    return (seen * y).sum((1, 2, 3), keepdim=True) / seen.square().sum((1, 2, 3), keepdim=True) * (
        pulled)


def test_background_is_no_part_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of ``gain x + background`` give what ``gain x`` gives."""
    _, prior, _ = image_problems()["denoising"]
    space = Space((1, 16, 16))
    y = 2 * prior.sample(2, seeded(1)) + 0.1 * noise(2, 1, 16, 16, seed=2)
    settings: dict[str, Any] = {"noise_std": 0.1, "steps": 50}
    want = red_diff(y, Scale(2.0, space), prior, generator=seeded(), **settings)

    def check() -> None:
        got = red_diff(y + 100, Counts(space, 2.0, 100.0), prior, generator=seeded(), **settings)
        assert relative(got, want) < 1e-8

    check()
    monkeypatch.setattr(module, "first_image", homogeneous)
    with pytest.raises(AssertionError):
        check()


def one_sign(y: Tensor, A: Operator) -> Tensor:
    x = A.domain.randn(generator=seeded(), dtype=F64).expand(len(y), *A.domain.shape)
    return (A(x) != 0).sum((1, 2, 3)).to(F64)


def test_a_clipping_sensor_measures_every_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of noise lies below what it can say: the residual must not end at half the noise."""
    space = Space((1, 8, 8))
    prior = Gaussian(torch.full((1, 8, 8), 0.5, dtype=F64), variance=0.01)
    A = Clipping(space)
    y = A(prior.sample(8, seeded(1))) + 0.05 * noise(8, 1, 8, 8, seed=2)

    def check() -> None:
        mu = red_diff(y, A, prior, noise_std=0.05, generator=per_draw(0, range(1), range(8)))[0]
        residual = (A(mu) - y).square().mean((1, 2, 3)).sqrt() / 0.05
        assert float(residual.mean()) == pytest.approx(1, abs=0.05)

    check()
    kept = noise(1, 8, 8, seed=3) > 0  # what a mask leaves out does not count, where it holds 0
    assert numbers_measured(A(y), A).tolist() == [64] * 8
    masked = Masking(kept, space) @ A
    assert numbers_measured(masked(y), masked).tolist() == [int(kept.sum())] * 8
    monkeypatch.setattr(module, "numbers_measured", one_sign)
    with pytest.raises(AssertionError):
        check()


def test_moments_resume() -> None:
    A, prior, std = image_problems()["inpainting"]
    y = A(prior.sample(2, seeded(1)))
    settings: dict[str, Any] = {"noise_std": std, "steps": 8, "samples": 2}
    source = per_draw(0, range(2), range(2))
    seen = [(step, [g.get_state() for g in source])
            for step in red_diff.steps(y, A, prior, generator=source, **settings)]
    saved, states = seen[4]
    later = [torch.Generator().set_state(state) for state in states]
    got = red_diff.run(y, A, prior, generator=later, start=saved, **settings)
    assert all(torch.equal(a, b) for a, b in zip(got[1:], seen[-1][0][1:], strict=True))
    forgotten = saved._replace(m=0 * saved.m)
    later = [torch.Generator().set_state(state) for state in states]
    assert not torch.equal(
        red_diff(y, A, prior, generator=later, start=forgotten, **settings), got.x0)
    assert isinstance(got, RedDiffStep)


@pytest.mark.parametrize(("settings", "words"), [
    ({"lr": 0.0}, "lr wants"), ({"prior_weight": -1.0}, "prior_weight wants"),
    ({"data_weight": math.inf}, "data_weight wants"), ({"weighting": "cubic"}, "weighting wants"),
    ({"reduction": "noise"}, "wants noise_std > 0"), ({"reduction": "max"}, "reduction wants"),
    ({"cg_iterations": 0}, "cg_iterations wants"), ({"steps": 0}, "steps"),
    ({"noise_std": torch.tensor([0.1, 0.0])}, "for every item"),
    ({"initial": torch.zeros(1, 5, 5)}, "initial")])
def test_refusals(settings: dict[str, Any], words: str) -> None:
    A, prior, _ = image_problems()["inpainting"]
    with pytest.raises(ValueError, match=words):
        red_diff(torch.zeros(2, 1, 16, 16, dtype=F64), A, prior, **settings)
