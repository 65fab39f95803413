"""Volumes of slices: coupling along z, its ends and units, orders that work, slices at a time."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.guidance import ztv
from recon.guidance.ztv import Differences
from recon.integrators import Step, schedules
from recon.operators import LinearOperator, Masking, Space
from recon.operators.mri import CartesianMRI
from recon.priors import Gaussian, Prior
from recon.samplers import dds, diffusion_mbir, mbir
from tests.samplers.comparing import F64, each, noise, relative, seeded

Method = Callable[..., Tensor]
Cases = dict[str, tuple[LinearOperator, Gaussian]]
C128 = torch.complex128


def steep(x: Tensor) -> float:
    """Mean difference of neighbouring slices ``(..., n_z, channel, length)``."""
    return float(x.diff(dim=-3).abs().mean())


def rows(n_z: int, length: float) -> tuple[LinearOperator, Gaussian, Tensor]:
    """Slices of 32 correlated entries, 10 of them measured, and a volume smooth along z."""
    t, k = torch.arange(32, dtype=F64), torch.arange(n_z, dtype=F64)
    prior = Gaussian(torch.zeros(1, 32, dtype=F64),
                     covariance=torch.exp(-(t[:, None] - t).square() / 18))
    along = torch.exp(-(k[:, None] - k).square() / (2 * length**2)) + 1e-9 * torch.eye(n_z)
    x = torch.einsum("kl,lij->kij", torch.linalg.cholesky(along), prior.sample(n_z, seeded(1)))
    seen = torch.randperm(32, generator=seeded(3))[:10]
    return Masking(torch.zeros(1, 32).index_fill(1, seen, 1), Space((1, 32))), prior, x


def test_multiplier_stays_in_its_ball(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    """T16: ``|u| <= lambda / rho`` at every level, and z only where ``D x + u`` was longer."""
    A, prior = cases["coils"]
    y = A(prior.sample(5, seeded(5)))
    weight, rho = 0.03, 0.2

    def check(method: Any) -> None:
        D, u, nonzero = Differences(3), None, 0
        for step in method.steps(y, A, prior, noise_std=0.1, steps=12, weight=weight, rho=rho,
                                 generator=seeded()):
            moved = D(step.x0) + (torch.zeros_like(step.u) if u is None else u)
            assert float(step.u.abs().max()) <= weight / rho * (1 + 1e-12)
            assert bool((step.z[moved.abs() < weight / rho * (1 - 1e-9)].abs() < 1e-12).all())
            assert relative(step.z + step.u, moved) < 1e-12
            held = step.u[step.z != 0].abs() * rho / weight
            assert torch.allclose(held, torch.ones_like(held), rtol=1e-9)
            u, nonzero = step.u, nonzero + int((step.z != 0).sum())
        assert nonzero > 0

    check(mbir)
    kept = ztv.cut
    for wrong in (lambda d, threshold, *a: kept(d, 1.5 * threshold, *a),
                  lambda d, threshold, *a: kept(d, threshold / 2, *a),
                  lambda d, threshold, *_: torch.where(d.abs() > threshold, 0, d)):  # hard
        with monkeypatch.context() as patched:
            patched.setattr(ztv, "cut", wrong)
            with pytest.raises(AssertionError):
                check(mbir)


def test_neighbours_agree_where_the_image_does() -> None:
    """T17: equal slices whose draws differ: closer to one another, and no further from the truth.

    ``weight=0`` is not the way to leave the coupling out: it is held to the level before.
    """
    A, prior, x = rows(12, 1.0)
    x = x[:1].expand(12, 1, 32)
    y = A(x) + 0.05 * noise(12, 1, 32, seed=2) * A(torch.ones(12, 1, 32, dtype=F64))
    settings: dict[str, Any] = {"noise_std": 0.05, "samples": 4, "steps": 50,
                                "generator": seeded()}
    alone = mbir(y, A, prior, rho=0.0, **settings)

    def check(method: Method) -> None:
        settings["generator"] = seeded()
        coupled = method(y, A, prior, weight=0.01, rho=0.2, **settings)
        assert steep(coupled) < 0.15 * steep(alone)
        gain = 20 * math.log10(float((alone - x).norm() / (coupled - x).norm()))
        assert gain > -0.5

    check(mbir)
    with pytest.raises(AssertionError):
        check(lambda *args, **given: mbir(*args, **given | {"rho": 0.0}))


def test_edges_keep_their_height() -> None:
    """T17: a step along z, all of it measured; flat parts get flatter.

    Recorded besides: where a third is measured, of .77 that is left without coupling .47 stays.
    """
    prior, x = rows(12, 1.0)[1], torch.ones(12, 1, 32, dtype=F64)
    x[:6] *= -1
    A = Masking(torch.ones(1, 32), Space((1, 32)))
    y = x + 0.1 * noise(12, 1, 32)

    def reached(**settings: Any) -> tuple[float, float]:
        found = mbir(y, A, prior, noise_std=0.1, steps=40, samples=4, generator=seeded(),
                     **{"sweeps": 5, "rho": 0.2} | settings)
        mean = found.mean((0, 2, 3))
        return float(mean[6] - mean[5]) / 2, steep(found[:, :6])

    def check(weight: float) -> None:
        height, flat = reached(weight=weight)
        assert height > 0.9
        assert flat < 0.9 * reached(rho=0.0)[1]

    check(0.01)
    for wrong in (1e-4, 1.0):
        with pytest.raises(AssertionError):
            check(wrong)


def test_up_and_down_are_the_same(cases: Cases) -> None:
    """T17: a volume, its noise with it, turned over gives the result turned over."""
    A, prior = cases["coils"]
    y = A(prior.sample(5, seeded(5)))
    for method in (mbir, diffusion_mbir):
        both = [method(y.flip(0) if over else y, A, prior, noise_std=0.1, steps=12, weight=0.03,
                       rho=0.2, generator=each(5, over)) for over in (False, True)]
        assert relative(both[1].flip(1), both[0]) < 1e-7
        with pytest.raises(AssertionError):  # without turning the noise
            assert relative(method(y.flip(0), A, prior, noise_std=0.1, steps=12, weight=0.03,
                                   rho=0.2, generator=each(5)).flip(1), both[0]) < 1e-7


def test_the_ends_are_not_tied_together() -> None:
    """T17: of slice 0 the last one hears little, unless z is periodic."""
    A, prior, x = rows(16, 4.0)
    y = A(x)
    other = y.clone()
    other[0] += A(torch.ones(1, 32, dtype=F64))

    def check(**settings: Any) -> None:
        first, second = (mbir(v, A, prior, weight=0.001, rho=0.05, steps=30,
                              generator=each(16), **settings) for v in (y, other))
        change = (second - first).abs().mean((0, 2, 3))
        assert float(change[1]) > 0.05  # the neighbour does
        assert float(change[-1]) < 0.1 * float(change[1])

    check()
    with pytest.raises(AssertionError):
        check(boundary="periodic")


@pytest.mark.parametrize("method", [mbir, diffusion_mbir])
def test_gain_of_the_operator_cancels(cases: Cases, method: Method) -> None:
    """T18: weights are in units of its norm: measured in other units, the same image."""
    A, prior = cases["real"]
    y = A(prior.sample(4, seeded(5)))

    def run(B: LinearOperator, factor: float, weight: float = 0.03) -> Tensor:
        return method(factor * y, B, prior, noise_std=factor * 0.1, steps=10, rho=0.2,
                      weight=weight, generator=seeded())

    want = run(A, 1.0)
    for factor in (1e-3, 390.0):
        assert relative(run(factor * A, factor), want) < 1e-6
        with pytest.raises(AssertionError):  # a weight of the bare norm
            assert relative(run(factor * A, factor, 0.03 * factor**2), want) < 1e-6


def test_an_adjoint_off_by_a_factor_shows(cases: Cases) -> None:
    """T18: back-projection without its 2n / pi is no other unit, where noise is weighed."""
    A, prior = cases["real"]
    y = A(prior.sample(4, seeded(5)))

    class Backprojected(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return A(x)

        def adjoint(self, y: Tensor) -> Tensor:
            return A.adjoint(y) / 8

    right, wrong = (mbir(y, B, prior, noise_std=0.1, steps=10, weight=0.03, rho=0.2,
                         generator=seeded()) for B in (A, Backprojected(A.domain, A.range)))
    assert relative(wrong, right) > 1e-2


def test_orders_that_work_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """T19: Tweedie with 5 CG steps at 50 levels, noisy with one at many; noisy with 5 diverges."""
    A, prior, x = rows(24, 6.0)
    y, rho = A(x), 0.026
    weight = 0.04 * rho

    def reached(method: Method, steps: int, **settings: Any) -> tuple[float, float]:
        found = method(y, A, prior, steps=steps, samples=2, generator=seeded(),
                       **{"weight": weight, "rho": rho} | settings)
        return float((found - x).norm() / (2**0.5 * x.norm())), steep(found) / steep(x)

    tweedie, apart = reached(mbir, 50), reached(dds_of_slices, 50)
    few, many = reached(diffusion_mbir, 50), reached(diffusion_mbir, 400)
    assert tweedie[0] < 0.58
    assert tweedie[1] < 1
    assert apart[0] > 1.15 * tweedie[0]
    assert apart[1] > 2.5
    assert few[0] > 1.05 * many[0]
    assert few[1] > 1.2 * many[1]
    with pytest.raises(ValueError, match="wants cg_iterations=1, got 5: shared splits of noisy"):
        reached(diffusion_mbir, 50, cg_iterations=5)
    assert reached(diffusion_mbir, 50, cg_iterations=5, rho=0.0)[0] < 1
    module = sys.modules["recon.samplers.diffusion_mbir"]
    with monkeypatch.context() as patched:  # why: what is refused, unrefused
        kept = module.coupled
        patched.setattr(module, "coupled", lambda *a, **k: kept(*a, **k | {"cg_iterations": 5}))
        assert reached(diffusion_mbir, 100)[0] > 5


def dds_of_slices(*args: Any, weight: float, rho: float, **settings: Any) -> Tensor:  # noqa: ARG001
    return dds(*args, **settings)


@pytest.mark.parametrize("case", ["coils", "real to complex", "real"])
@pytest.mark.parametrize("std", [0.1, 0.0])
def test_without_coupling_it_is_dds(cases: Cases, case: str, std: float) -> None:
    """T19: bit for bit; ``weight=0`` is another thing, and says so."""
    A, prior = cases[case]
    y = A(prior.sample(4, seeded(5)))
    settings: dict[str, Any] = {"noise_std": std, "samples": 2, "steps": 8}
    want = dds(y, A, prior, generator=each(4), **settings)
    assert torch.equal(mbir(y, A, prior, rho=0.0, generator=each(4), **settings), want)
    with pytest.warns(UserWarning, match="weight=0 does not decouple the slices") as caught:
        remembered = mbir(y, A, prior, weight=0.0, generator=each(4), **settings)
    assert caught[0].filename == __file__
    assert not torch.equal(remembered, want)


class Watched(Prior):
    """A prior that notes how many slices it is shown at once."""

    def __init__(self, of: Gaussian) -> None:
        super().__init__(channels=of.channels, is_complex=of.is_complex, space=of.space)
        self.of, self.seen = of, set[int]()

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.seen.add(len(x))
        return self.of.denoise(x, sigma)


class WatchedOperator(LinearOperator):
    """The same of an operator."""

    def __init__(self, of: LinearOperator) -> None:
        super().__init__(of.domain, of.range)
        self.of, self.seen = of, set[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add(x.shape[:-3].numel())
        return self.of(x)

    def adjoint(self, y: Tensor) -> Tensor:
        self.seen.add(y.shape[:-3].numel())
        return self.of.adjoint(y)


@pytest.mark.parametrize("method", [mbir, diffusion_mbir])
@pytest.mark.parametrize("case", ["coils", "real"])
def test_a_few_slices_at_a_time(cases: Cases, case: str, method: Method) -> None:
    """The same volume whatever the chunks; neither prior nor operator sees more at once."""
    A, prior = cases[case]
    y = A(prior.sample(7, seeded(5)))
    settings: dict[str, Any] = {"noise_std": 0.1, "samples": 2, "steps": 8, "weight": 0.03,
                                "rho": 0.2}
    want = method(y, A, prior, generator=seeded(), **settings)

    def shown(**more: Any) -> tuple[Tensor, set[int]]:
        P, B = Watched(prior), WatchedOperator(A)
        got = method(y, B, P, generator=seeded(), **settings | more)
        return got, P.seen | B.seen

    got, most = shown(max_slices=3, device="cpu")
    assert relative(got, want) < 1e-8
    assert max(most) <= 3
    assert max(shown()[1]) == 14  # two samples of seven slices
    nested = method(y.expand(2, *y.shape), A, prior, generator=[seeded(i) for i in range(14)],
                    max_slices=4, **settings)
    assert nested.shape == (2, 2, 7, *A.domain.shape)
    alone = method(y, A, prior, generator=[seeded(7 + i) for i in range(7)], **settings)
    assert relative(nested[:, 1], alone) < 1e-7


def test_volumes_are_asked_for(cases: Cases) -> None:
    A, prior = cases["coils"]
    y = A(prior.sample(3, seeded(5)))
    for method in (mbir, diffusion_mbir):
        with pytest.raises(ValueError, match=r"got one slice .*: use samplers\.dds, or y"):
            method(y[0], A, prior, steps=2)
        bad: list[tuple[dict[str, Any], str]] = [
            ({"weight": -1.0}, "weight wants a finite number >= 0"),
            ({"rho": math.inf}, "rho wants a finite number >= 0"),
            ({"sweeps": 0}, "sweeps wants at least 1"),
            ({"max_slices": 0}, "max_slices wants at least 1"),
            ({"directions": "yz"}, 'directions wants "z" or "xyz"'),
            ({"boundary": "mirror"}, 'boundary wants "neumann" or "periodic"')]
        for settings, words in bad:
            with pytest.raises(ValueError, match=words):
                method(y, A, prior, steps=2, **settings)
        assert isinstance(A, CartesianMRI)
        each_mask = CartesianMRI((8, 8), A.mask.expand(3, 1, 1, 8), A.maps)
        with pytest.raises(ValueError, match="holds a mask or maps for each: leave max_slices out"):
            method(y, each_mask, prior, steps=2, max_slices=2)
        with pytest.raises(ValueError, match="max_slices wants a prior of one scale"):
            method(y, A, prior.rescaled(torch.ones(3)), steps=2, max_slices=2)
    sigmas = schedules.vp(4)
    x = torch.zeros(1, 3, 1, 8, 8, dtype=C128)
    with pytest.raises((ValueError, AttributeError, TypeError)):
        mbir(y, A, prior, sigmas=sigmas, start=Step(0, sigmas[0], x, x))
