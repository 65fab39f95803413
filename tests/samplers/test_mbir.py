"""Volumes: total variation along z against closed forms, and both samplers written out again.

Every check takes the sampler as an argument, and refuses faulty ones.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.guidance.ztv import Boundary, Differences, Directions, coupled
from recon.integrators import schedules
from recon.integrators.base import ddim_noise
from recon.noise import Noise
from recon.operators import Identity, LinearOperator, Space
from recon.operators.norm import squared_norm
from recon.priors import Gaussian, Prior
from recon.samplers import diffusion_mbir, mbir
from recon.samplers.mbir import VolumeStep
from tests.samplers.comparing import F64, noise, relative, seeded

Method = Callable[..., Tensor]
Cases = dict[str, tuple[LinearOperator, Gaussian]]
C128 = torch.complex128
ALL = pytest.mark.parametrize("case", ["coils", "real to complex", "real"])


def steep(x: Tensor) -> float:
    """Mean difference of neighbouring slices."""
    return float(x.diff(dim=-4 if x.ndim > 3 else -3).abs().mean())


# ---------------------------------------------------------------- total variation by itself


def minimised(y: Tensor, weight: float, *, rho: float = 1.0, sweeps: int = 300,
              calls: int = 1, fresh: bool = False, cg_iterations: int = 10,
              directions: Directions = "z", isotropic: bool = False,
              boundary: Boundary = "neumann") -> tuple[Tensor, Tensor]:
    """``argmin_x 1/2 ||x - y||^2 + weight ||D x||_1`` from y, with the dual variable."""
    A, D = Identity(Space(tuple(y.shape[-3:]), y.dtype)), Differences(3, directions, boundary)
    sweep = coupled(y, A, torch.zeros(()), D, gamma=math.inf, rho=torch.tensor(rho, dtype=F64),
                    threshold=torch.tensor(weight / rho, dtype=F64), isotropic=isotropic,
                    sweeps=sweeps, cg_iterations=cg_iterations)
    x = y
    begun = split = D.split(x)
    for _ in range(calls):
        x, split = sweep(x, torch.ones((), dtype=F64), begun if fresh else split)
    return x, rho * split.u


@pytest.mark.parametrize("rho", [0.3, 3.0])
def test_two_slices_move_together(rho: float) -> None:
    """T14: the gap shrinks by twice the weight, the mean stays, whatever ``rho``."""
    y = noise(2, 1, 5, 4)
    gap, mean = y[1] - y[0], y.mean(0)
    want = gap.sign() * (gap.abs() - 2 * 0.4).clamp(min=0)

    def check(solve: Callable[..., tuple[Tensor, Tensor]]) -> None:
        x, _ = solve(y, 0.4, rho=rho)
        assert relative(x[1] - x[0], want) < 1e-4
        assert relative(x.mean(0), mean) < 1e-12

    check(minimised)
    for fault in ({"boundary": "periodic"}, {"weight": 0.8}, {"sweeps": 2}):
        with pytest.raises(AssertionError):
            check(lambda y, weight, fault=fault, **k: minimised(
                y, **({"weight": weight} | k | fault)))
    x, _ = minimised(y, 0.4, rho=rho, boundary="periodic")  # counted there and back
    assert relative(x[1] - x[0], gap.sign() * (gap.abs() - 4 * 0.4).clamp(min=0)) < 1e-4


def test_limits_of_the_weight() -> None:
    y = noise(6, 1, 5, 4, dtype=C128)
    for weight, want in ((0.0, y), (1e3, y.mean(0).expand_as(y))):
        assert relative(minimised(y, weight)[0], want) < 1e-4
        with pytest.raises(AssertionError):
            assert relative(minimised(y, weight + 0.3)[0], y) < 1e-4
    assert relative(minimised(y, 0.3)[0].mean(0), y.mean(0)) < 1e-12


@pytest.mark.parametrize("directions", ["z", "xyz"])
@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
def test_adjoint_of_differences(directions: Directions, boundary: Boundary) -> None:
    D = Differences(3, directions, boundary)
    x, d = noise(2, 4, 2, 3, 5, dtype=C128), noise(2, len(D.axes), 4, 2, 3, 5, seed=1, dtype=C128)

    def check(other: Differences) -> None:
        left, right = (D(x).conj() * d).sum(), (x.conj() * other.adjoint(d)).sum()
        assert abs(complex(left - right)) < 1e-12 * abs(complex(left))

    check(D)
    assert float(D(torch.ones_like(x)).abs().max()) == 0
    with pytest.raises(AssertionError):
        check(Differences(3, directions, "periodic" if boundary == "neumann" else "neumann"))


@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
@pytest.mark.parametrize(("directions", "isotropic"), [("z", False), ("xyz", False), ("xyz", True)])
def test_gap_to_the_dual(directions: Directions, isotropic: bool, boundary: Boundary) -> None:
    """No gap between the objective and its dual at ``u``: what was found is the minimum."""
    y, weight, D = noise(5, 1, 6, 4, dtype=C128), 0.5, Differences(3, directions, boundary)

    def check(**change: Any) -> None:
        settings: dict[str, Any] = {"weight": weight, "directions": directions,
                                    "isotropic": isotropic, "boundary": boundary, "rho": 1.0}
        x, p = minimised(y, **settings | change)
        d = D(x).abs()
        d, long = (t.square().sum(-5).sqrt() if isotropic else t for t in (d, p.abs()))
        primal = 0.5 * (x - y).abs().square().sum() + weight * d.sum()
        dual = 0.5 * (y.abs().square().sum() - (y - D.adjoint(p)).abs().square().sum())
        assert float(long.max()) <= weight * (1 + 1e-12)  # feasible
        assert 0 <= float((primal - dual) / primal) + 1e-12 < 1e-4

    check()
    with pytest.raises(AssertionError):
        check(weight=1.0)
    with pytest.raises(AssertionError):
        check(sweeps=3)
    if directions == "xyz":
        with pytest.raises(AssertionError):
            check(isotropic=not isotropic)


def test_shared_variables_reach_the_minimum_and_fresh_ones_do_not() -> None:
    """T15: one sweep of one CG step at a time, as the levels of a sampler do."""
    y = noise(12, 1, 6, 6)
    exact, _ = minimised(y, 0.2, rho=1.0, sweeps=2000)

    def left(calls: int, fresh: bool = False) -> float:
        x, _ = minimised(y, 0.2, rho=10.0, sweeps=1, calls=calls, cg_iterations=1, fresh=fresh)
        return float((x - exact).norm() / (y - exact).norm())

    shared = [left(n) for n in (1, 10, 50, 200)]
    assert shared == sorted(shared, reverse=True)
    assert shared[2] < 0.4
    assert shared[3] < 3e-3
    assert left(200, fresh=True) > 2


# ---------------------------------------------------------------- both samplers a second time


def stepped(x: Tensor, boundary: str) -> Tensor:
    """``x[k + 1] - x[k]``."""
    ends = [x[..., 1:, :, :, :], x[..., :1, :, :, :] if boundary == "periodic"
            else x[..., -1:, :, :, :]]
    return torch.cat(ends, -4) - x


def sweep(x0: Tensor, z: Tensor, u: Tensor, A: LinearOperator, pulled: Tensor, shift: Tensor,
          rho: Tensor, threshold: Tensor, cg_iterations: int, fault: str) -> tuple[Tensor, ...]:
    """One sweep, plainly, with a fault to be found."""
    boundary = "periodic" if fault == "periodic" else "neumann"
    ends = torch.zeros_like(x0) if boundary == "neumann" else 1
    if boundary == "neumann":
        ends = torch.ones_like(x0.real)
        ends[..., -1, :, :, :] = 0
    if fault == "fresh variables":
        z, u = 0 * z, 0 * u

    def back(d: Tensor) -> Tensor:
        kept = d * ends
        return kept.roll(1, -4) - kept

    def normal(v: Tensor) -> Tensor:
        return A.normal(v) + shift * v + rho * back(stepped(v, boundary))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        products = a * b if fault == "unconjugated" else (a.conj() * b).real
        return products.sum((-3, -2, -1) if fault == "a step per slice" else (-4, -3, -2, -1),
                            keepdim=True)

    x = x0
    r = p = pulled + shift * x0 + rho * back(z - u) - normal(x)
    for _ in range(cg_iterations):
        rr, Ap = dot(r, r), normal(p)
        alpha = (rr / dot(p, Ap)).nan_to_num(0)
        x, r = x + alpha * p, r - alpha * Ap
        p = r + (dot(r, r) / rr).nan_to_num(0) * p
    v = stepped(x, boundary) + u
    z = v * (1 - threshold / v.abs().clamp(min=1e-300)).clamp(min=0)
    return x, z, v - z


def twin(fault: str = "") -> Method:
    """``mbir`` a second time."""

    def method(y: Tensor, A: LinearOperator, prior: Prior, *, noise_std: float = 0.0,
               samples: int = 1, steps: int = 50, weight: float = 1e-4, rho: float = 0.026,
               sweeps: int = 1, cg_iterations: int = 5, eta: float = 0.85,
               generator: Any = None) -> Tensor:
        scale, norm = float(prior.scale), in_plane_norm(A, y)
        if fault == "absolute weights":
            scale = norm = 1.0
        sigmas, noisy = float(prior.scale) * schedules.vp(steps).to(y.dtype.to_real()), Noise(
            generator, 1)
        pulled = A.adjoint(y).expand(samples, *A.adjoint(y).shape)
        x = sigmas[0] * noisy.like(pulled)
        z = u = torch.zeros_like(x)
        threshold = torch.tensor(scale * weight / rho * (2 if fault == "twice lambda" else 1))
        for s, r in itertools.pairwise(sigmas):
            predicted = prior(x, s)
            shift = 0 * s if fault == "no proximal term" else (noise_std / s).square()
            x0, middle = predicted, pulled + shift * predicted
            for _ in range(sweeps):
                # the twin's own proximal term is about where its sweep starts
                x0, z, u = sweep(x0, z, u, A, middle - shift * x0, shift, torch.tensor(rho * norm),
                                 threshold, cg_iterations, fault)
            eps = (x - (x0 if fault == "eps after the data" else predicted)) / s
            kept, fresh = ddim_noise(s, r, eta, "ddim")
            x = x0 + kept * eps + fresh * noisy.like(x)
        return x0

    return method


def noisy_twin(fault: str = "") -> Method:
    """``diffusion_mbir`` a second time."""

    def method(y: Tensor, A: LinearOperator, prior: Prior, *, noise_std: float = 0.0,  # noqa: ARG001
               samples: int = 1, steps: int = 50, weight: float = 1e-4, rho: float = 0.026,
               sweeps: int = 1, snr: float = 0.16, generator: Any = None) -> Tensor:
        scale, norm = float(prior.scale), in_plane_norm(A, y)
        if fault == "absolute weights":
            scale = norm = 1.0
        sigmas = float(prior.scale) * schedules.geometric(steps, 0.01, 378).to(y.dtype.to_real())
        noisy = Noise(generator, 1)
        pulled = A.adjoint(y).expand(samples, *A.adjoint(y).shape)
        x = sigmas[0] * noisy.like(pulled)
        z = u = torch.zeros_like(x)
        for i, (s, r) in enumerate(itertools.pairwise(sigmas)):
            gap = s**2 - r**2
            x = x + gap * (prior(x, s) - x) / s**2
            if i < steps - 1 or fault == "noise at the end":
                x = x + gap.sqrt() * noisy.like(x)
            if i < steps - 1:
                g, n = (prior(x, s) - x) / s**2, noisy.like(x)
                a, b = (t.abs().square().sum((-3, -2, -1), keepdim=True) for t in (n, g))
                if fault == "norms of a chunk":  # of unequal length
                    a, b = (torch.cat([p.mean(-4, keepdim=True).expand_as(p) for p in
                                       t.sqrt().split(2, -4)], -4).square() for t in (a, b))
                e = 2 * snr**2 * a / b
                x = x + e * g + (2 * e).sqrt() * n
            for _ in range(sweeps):
                x, z, u = sweep(x, z, u, A, pulled, torch.tensor(0.0), torch.tensor(rho * norm),
                                torch.tensor(scale * weight / rho), 1, fault)
        return x

    return method


def in_plane_norm(A: LinearOperator, y: Tensor) -> float:
    """``||A||^2``, as accurate as the samplers find it."""
    return float(squared_norm(A, A.adjoint(y)).max())


def refused(check: Callable[[Method], None], methods: list[Method], faulty: list[Method]) -> None:
    """The check passes all ``methods`` and none of the ``faulty``."""
    for method in methods:
        check(method)
    for method in faulty:
        with pytest.raises(AssertionError):
            check(method)


def measured(A: LinearOperator, prior: Gaussian, n_z: int = 5) -> Tensor:
    """A volume whose slices change slowly, with a little noise."""
    ends = prior.sample(2, seeded(5))
    share = torch.linspace(0, 1, n_z, dtype=F64).view(-1, 1, 1, 1)
    y = A((1 - share) * ends[0] + share * ends[1])
    return y + 0.1 * noise(*y.shape, seed=6, dtype=y.dtype)


@pytest.mark.parametrize(("case", "std", "sweeps"), [
    ("coils", 0.1, 1), ("coils", 0.0, 2), ("real to complex", 0.1, 2), ("real", 0.0, 1)])
def test_written_out(cases: Cases, case: str, std: float, sweeps: int) -> None:
    A, prior = cases[case]
    y = measured(A, prior)
    settings: dict[str, Any] = {"noise_std": std, "samples": 2, "steps": 8, "weight": 0.03,
                                "rho": 0.2, "sweeps": sweeps}

    def check(method: Method) -> None:
        want = twin()(y, A, prior, generator=seeded(), **settings)
        assert relative(method(y, A, prior, generator=seeded(), **settings), want) < 1e-5

    faults = ["fresh variables", "periodic", "twice lambda", "a step per slice",
              "eps after the data", *["no proximal term"] * (std > 0),
              *["unconjugated"] * (case == "coils")]
    refused(check, [mbir], [twin(fault) for fault in faults])


@pytest.mark.parametrize(("case", "sweeps"), [("coils", 1), ("real to complex", 3), ("real", 1)])
def test_noisy_form_written_out(cases: Cases, case: str, sweeps: int) -> None:
    A, prior = cases[case]
    y = measured(A, prior)
    settings: dict[str, Any] = {"samples": 2, "steps": 15, "weight": 0.03, "rho": 0.2,
                                "sweeps": sweeps}

    def check(method: Method) -> None:
        want = noisy_twin()(y, A, prior, generator=seeded(), **settings)
        assert relative(method(y, A, prior, generator=seeded(), **settings), want) < 1e-5

    refused(check, [diffusion_mbir], [noisy_twin(fault) for fault in (
        "fresh variables", "periodic", "norms of a chunk", "noise at the end")])


@pytest.mark.parametrize("std", [0.3, 0.0])
def test_one_level_in_closed_form(cases: Cases, std: float) -> None:
    """Splits of 0: ``(A^H A + noise^2/sigma^2 + rho D^H D) x = A^H y + noise^2/sigma^2 x0``."""
    A, prior = cases["coils"]
    y, n_z, rho = measured(A, prior, 4), 4, 0.3
    sigma = schedules.geometric(1, 0.5, 2.0)
    x = 2 * noise(1, n_z, 1, 8, 8, dtype=C128)
    start = VolumeStep(0, sigma[0], x, x, *Differences(3).split(x))
    D = torch.diff(torch.eye(n_z, dtype=F64), dim=0).to(C128)
    eye = torch.eye(64, dtype=C128)
    within = A.normal(eye.view(64, 1, 8, 8)).reshape(64, 64).mT.contiguous()
    shift = (std / 2) ** 2
    x0 = prior(x, sigma[0])

    def check(factor: float) -> None:
        whole = (torch.kron(torch.eye(n_z, dtype=C128), within + shift * eye)
                 + factor * rho * in_plane_norm(A, y) * torch.kron(D.mT @ D, eye))
        rhs = (A.adjoint(y) + shift * x0[0]).flatten()
        got = mbir(y, A, prior, noise_std=std, sigmas=sigma, rho=rho, weight=1.0,
                   cg_iterations=400, start=start).flatten()
        if std == 0:  # solved to a residual: the matrix has singular values down to 5e-5, and zero
            assert relative(whole @ got, rhs) < 1e-5
            _, s, right = torch.linalg.svd(whole)
            unseen = right[s < 1e-10]  # by data and differences, but for rounding: x0 stays
            assert relative(unseen @ got, unseen @ x0.flatten()) < 1e-2
        else:
            assert relative(got, torch.linalg.solve(whole, rhs)) < 1e-3

    check(1.0)
    with pytest.raises(AssertionError):
        check(1.1)
