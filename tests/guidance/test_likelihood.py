"""Guided denoisers against dense matrices in real numbers, and what faulty ones would give."""

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.guidance import (
    annealed_guided,
    completing_noise,
    misfit_descent,
    moment_guided,
    norm_guided,
    proximal,
    pseudoinverse_guided,
    row_sum_guided,
)
from recon.integrators.base import Denoise
from recon.operators import LinearOperator, Masking, Space, from_nonlinear
from recon.operators.norm import squared_norm
from recon.priors import Gaussian, GaussianMixture

Cases = dict[str, tuple[LinearOperator, Gaussian]]
CASES = pytest.mark.parametrize("case", ["coils", "real to complex", "real"])
F64 = torch.float64
BATCH, P, ZETA = 3, 1.5, 0.7
STD = torch.tensor([0.1, 0.3, 0.03], dtype=F64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).norm() / want.norm())


def double(A: LinearOperator) -> LinearOperator:
    return copy.deepcopy(A).to(F64)  # the cases are shared


def parts(x: Tensor, item_ndim: int) -> Tensor:
    """``(*batch, real numbers)``."""
    both = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.unsqueeze(-1)
    return both.flatten(x.ndim - item_ndim)


def matrix(function: Callable[[Tensor], Tensor], domain: Space, out_ndim: int) -> Tensor:
    """A map linear over the reals as a matrix between real numbers."""
    shape = (*domain.shape, 2) if domain.is_complex else domain.shape
    n = math.prod(shape)
    basis = torch.eye(n, dtype=F64).view(n, *shape)
    basis = torch.view_as_complex(basis) if domain.is_complex else basis
    return parts(function(basis), out_ndim).mT


def measured(A: LinearOperator, prior: Gaussian) -> Tensor:
    """One ``y`` for each of ``STD``."""
    y = A(prior.sample(BATCH, seeded(5)))
    n = torch.randn((*y.shape, 2), generator=seeded(6), dtype=F64)
    n = torch.view_as_complex(n) if y.is_complex() else n[..., 0]
    return y + STD.view(-1, *(1,) * len(A.range.shape)) * n


def noisy_images(prior: Gaussian, sigma: Tensor, samples: int = 1) -> Tensor:
    x = prior.sample(samples * BATCH, seeded(7))
    white = Gaussian(0 * prior.mean, variance=1.0).sample(samples * BATCH, seeded(8))
    return (x + sigma * white).view(samples, BATCH, *prior.mean.shape)


class Dense:
    """A guided denoiser of one sampler in matrices, with a fault to be found."""

    def __init__(self, method: str, A: LinearOperator, prior: Gaussian, y: Tensor,
                 std: Tensor = STD, fault: str = "") -> None:
        self.method, self.prior, self.fault = method, prior, fault
        self.domain, self.std = A.domain, std.double()
        self.nd, self.md = len(A.domain.shape), len(A.range.shape)
        self.M, self.y = matrix(A, A.domain, self.md), parts(y, self.md)
        self.back = self.M.mT
        if fault == "unconjugated":
            self.back = matrix(lambda v: A.adjoint(v.conj()).conj(), A.range, self.nd)
        self.gain = torch.linalg.matrix_norm(self.M, 2).square()
        ones = torch.ones(A.range.shape, dtype=y.dtype)
        self.ones = parts(ones, self.md)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        zero = self.prior(0 * x[:1, 0], sigma)
        J = matrix(lambda e: self.prior(e, sigma) - zero, self.domain, self.nd)
        J = torch.eye(len(J), dtype=F64) if self.fault == "no Jacobian" else J
        x0 = self.prior(x, sigma)
        left = self.y - parts(x0, self.nd) @ self.M.mT
        s2 = self.std.square() * (2 if self.fault == "complex noise" else 1)
        s2 = s2.mean().expand(BATCH) if self.fault == "one noise level" else s2
        move = sigma**2 * self.weighed(left, s2, sigma, J) @ self.back.mT @ J
        move = -move if self.fault == "sign" else move
        flat = parts(x0, self.nd) + move
        if x0.is_complex():
            return torch.view_as_complex(flat.view(*x0.shape, 2))
        return flat.view(x0.shape)

    def weighed(self, left: Tensor, s2: Tensor, sigma: Tensor, J: Tensor) -> Tensor:
        """What the gradient of the log-likelihood is pulled back from."""
        eye, each = torch.eye(left.shape[-1], dtype=F64), s2.view(-1, 1)
        if self.method == "norm":
            dims = None if self.fault == "shared norm" else -1
            norm = left.square().sum(dims, keepdim=True).sqrt()
            u = float(self.prior.scale)
            beta = math.sqrt(1e-8 + 2 * 0.0199 / 1000 * math.log1p(float(sigma / u) ** 2))
            norm = norm + 1e-6 * (self.fault == "absolute epsilon")
            return ZETA * left / (norm * u * beta)
        if self.method == "annealed":
            gain = 1.0 if self.fault == "gain left out" else self.gain
            return left / (each + gain * sigma**2 + 1e-12 * (self.fault == "absolute epsilon"))
        if self.method == "row sums":
            sums = self.M @ J @ self.back @ self.ones
            if len(self.ones) and bool((self.ones == 0).any()):  # a complex number's first part
                sums = sums[::2].repeat_interleave(2)
            v = left / (sigma**2 * sums.clamp(min=0) + each)
            curvature = (v * (sigma**2 * v @ (self.M @ J @ self.back).mT + each * v)).sum(-1)
            return v * ((v * left).sum(-1) / curvature).clamp(max=1).unsqueeze(-1)
        if self.method == "pseudo-inverse":
            p = (1.0 if self.fault == "no prior_std" else P) * float(self.prior.scale)
            r2 = sigma**2 * p**2 / (sigma**2 + p**2)
            inner = r2 * self.M @ self.M.mT
        else:
            inner = sigma**2 * self.M @ J @ self.M.mT
        inverse = torch.linalg.inv(inner + s2.view(-1, 1, 1) * eye)
        return (inverse @ left.unsqueeze(-1)).squeeze(-1)


def built(method: str, A: LinearOperator, prior: Gaussian, y: Tensor, c: float) -> Denoise:
    std, cg = c * STD, {"cg_iterations": 400}
    gain = torch.linalg.matrix_norm(matrix(A, A.domain, len(A.range.shape)), 2).square()
    return {"norm": lambda: norm_guided(prior.rescaled(c), A, y, zeta=ZETA),
            "annealed": lambda: annealed_guided(prior.rescaled(c), A, y, std, gain=gain),
            "pseudo-inverse": lambda: pseudoinverse_guided(prior.rescaled(c), A, y, std,
                                                           prior_std=c * P, **cg),
            "full": lambda: moment_guided(prior.rescaled(c), A, y, std, iterations=400),
            "row sums": lambda: row_sum_guided(prior.rescaled(c), A, y, std)}[method]()


FAULTS = {"norm": ["shared norm", "absolute epsilon"],
          "annealed": ["complex noise", "one noise level", "absolute epsilon", "gain left out"],
          "pseudo-inverse": ["complex noise", "one noise level", "no prior_std"],
          "full": ["complex noise", "one noise level"],
          "row sums": ["complex noise", "one noise level"]}


@CASES
@pytest.mark.parametrize("method", FAULTS)
def test_closed_forms(cases: Cases, case: str, method: str) -> None:
    """In units of 1 and of 1e-6, at low and high noise, for items of their own noise."""
    A, prior = double(cases[case][0]), cases[case][1]
    y = measured(A, prior)

    def check(guided: Callable[[float], Denoise], sigma: float, c: float) -> None:
        level = torch.tensor(sigma, dtype=F64)
        x = noisy_images(prior, level)
        got = guided(c)(c * x, c * level) / c
        want = Dense(method, A, prior, y)(x, level)
        # pseudo-inverses are solved to 1e-6 of their right-hand side: 4e-5 at most here
        assert relative(got, want) < (1e-4 if method == "pseudo-inverse" else 1e-8)

    for sigma, c in ((0.05, 1.0), (1.0, 1e-6), (30.0, 1.0)):
        check(lambda c: built(method, A, prior, c * y, c), sigma, c)

    def faulty(c: float, fault: str = "") -> Denoise:
        of = Dense(method, A, prior, c * y, c * STD, fault)
        of.prior = prior.rescaled(c)  # type: ignore[assignment]
        return of

    check(faulty, 1.0, 1e-6)
    faults = ["no Jacobian", "sign", *["unconjugated"] * (case == "coils"), *FAULTS[method]]
    if case != "real" and method == "annealed":
        faults.remove("gain left out")  # of norm one
    for fault in faults:
        with pytest.raises(AssertionError):
            check(functools.partial(faulty, fault=fault), 1.0, 1e-6)


@CASES
def test_full_moments_are_the_exact_posterior(cases: Cases, case: str) -> None:
    A, prior = double(cases[case][0]), cases[case][1]
    y = measured(A, prior)
    for k, std in enumerate(STD.tolist()):
        exact = prior.posterior(A, y[k], std)
        for sigma in (0.01, 0.3, 3.0, 100.0):
            level = torch.tensor(sigma, dtype=F64)
            x = noisy_images(prior, level)[:, 0]

            def check(guided: Denoise, x: Tensor = x, level: Tensor = level) -> None:
                assert relative(guided(x, level), exact(x, level)) < 1e-10  # noqa: B023

            s = torch.tensor(std, dtype=F64)
            check(moment_guided(prior, A, y[k], s, iterations=400))
            faulty = [moment_guided(prior, A, y[k], 2**0.5 * s, iterations=400),
                      moment_guided(prior, A, y[k], s, iterations=1),
                      pseudoinverse_guided(prior, A, y[k], s, prior_std=1.0, cg_iterations=400),
                      annealed_guided(prior, A, y[k], s, gain=squared_norm(A, A.adjoint(y[k])))]
            for guided in faulty * (0.1 < sigma < 10):
                with pytest.raises(AssertionError):
                    check(guided)


def test_white_prior_is_exact_for_pseudo_inverse(cases: Cases) -> None:
    A = double(cases["coils"][0])
    prior = Gaussian(0.3 + torch.zeros(1, 8, 8, dtype=torch.complex128), variance=P**2)
    y, s = measured(A, prior)[0], STD[0]
    exact, level = prior.posterior(A, y, float(s)), torch.tensor(0.8, dtype=F64)
    x = noisy_images(prior, level)[:, 0]

    def check(prior_std: float) -> None:
        guided = pseudoinverse_guided(prior, A, y, s, prior_std=prior_std, cg_iterations=400)
        assert relative(guided(x, level), exact(x, level)) < 1e-5

    check(P)
    with pytest.raises(AssertionError):
        check(1.01 * P)


def test_nonlinear_operator() -> None:
    """Against the gradient of the log-likelihood as one graph, through a mixture's denoiser."""
    space = Space((1, 2, 2))
    A = from_nonlinear(lambda x: x.square() + torch.sin(x), domain=space, range=space)
    means = torch.stack([torch.ones(1, 2, 2), -torch.ones(1, 2, 2)]).to(F64)
    prior = GaussianMixture(torch.ones(2), means, 0.3 * torch.eye(4, dtype=F64).expand(2, 4, 4))
    y = torch.randn(BATCH, 1, 2, 2, generator=seeded(), dtype=F64)
    level, gain = torch.tensor(0.7, dtype=F64), 5.0
    x = torch.randn(2, BATCH, 1, 2, 2, generator=seeded(1), dtype=F64)

    def want(norm: bool, fault: str) -> Tensor:
        z = x.clone().requires_grad_()
        x0 = prior(z, level)
        misfit = (y - A(x0.detach() + z - z.detach() if fault else x0)).square().sum((-1, -2, -3))
        beta = (1e-8 + 2 * 0.0199 / 1000 * torch.log1p(level**2)).sqrt()
        log = -ZETA * misfit.sqrt() / beta if norm else -misfit / 2 / (STD**2 + gain * level**2)
        (gradient,) = torch.autograd.grad(log.sum(), z)
        return (x0 + level**2 * gradient).detach()

    def check(norm: bool, fault: str = "") -> None:
        guided = (norm_guided(prior, A, y, zeta=ZETA) if norm
                  else annealed_guided(prior, A, y, STD, gain=gain))
        assert relative(guided(x, level), want(norm, fault)) < 1e-12

    for norm in (True, False):
        check(norm)
        with pytest.raises(AssertionError):
            check(norm, "no Jacobian")


def test_nothing_left_to_fit() -> None:
    """Data met exactly, by all or by one item: no 0 / 0, and the neighbour keeps its own."""
    space = Space((1, 2, 2))
    prior, A = Gaussian(torch.zeros(1, 2, 2), variance=1.0), Masking(torch.ones(2, 2), space)
    x, level = torch.ones(2, 1, 2, 2), torch.tensor(1.0)
    y = prior(x, level)
    y[1] += 1
    x0, descent = misfit_descent(prior, A, y, x, level)
    assert torch.equal(x0, prior(x, level))
    assert torch.equal(descent[0], torch.zeros(1, 2, 2))
    assert descent[1].flatten().tolist() == pytest.approx([0.25] * 4)
    nothing = Masking(torch.zeros(2, 2), space)
    s = torch.tensor(0.0)
    for guided in (annealed_guided(prior, nothing, 0 * y, s, gain=0.0),
                   norm_guided(prior, nothing, 0 * y, zeta=1.0),
                   row_sum_guided(prior, nothing, 0 * y, s),
                   moment_guided(prior, nothing, 0 * y, s, iterations=3),
                   pseudoinverse_guided(prior, nothing, 0 * y, s, prior_std=1.0,
                                        cg_iterations=3)):
        assert torch.equal(guided(x, level), prior(x, level))


@CASES
def test_noise_of_the_data_is_completed(cases: Cases, case: str) -> None:
    """Noise through ``proximal`` and what is added to it: ``sigma^2`` in every direction."""
    A = double(cases[case][0])
    nd, s = len(A.domain.shape), torch.tensor(0.4, dtype=F64)
    zero = torch.zeros(A.domain.shape, dtype=cases[case][1].mean.dtype)

    def check(sigma: float, half: float, keep: bool = False) -> None:
        level = torch.tensor(sigma, dtype=F64)

        def carried(n: Tensor) -> Tensor:
            return proximal(n, A, half * s, gamma=None, cg_iterations=400)(
                zero.expand(len(n), *zero.shape), level)

        lacking = completing_noise(A, half * s, cg_iterations=400)
        data = float(s) * matrix(carried, A.range, nd)
        fresh = sigma * matrix(lambda n: n if keep else lacking(n, level), A.domain, nd)
        total = data @ data.mT + fresh @ fresh.mT
        assert float((total / sigma**2 - torch.eye(len(total), dtype=F64)).abs().max()) < 1e-4

    for sigma in (0.05, 0.3, 4.0):
        check(sigma, 0.5)
        with pytest.raises(AssertionError):
            check(sigma, 1.0)
    with pytest.raises(AssertionError):
        check(0.3, 0.5, keep=True)
    n = zero + 1
    assert completing_noise(A, 0 * s, cg_iterations=4)(n, s) is n


def test_projection_replaces_what_is_measured(cases: Cases) -> None:
    """``D + A^+ (y - A D)``: agrees with the data, once is enough, the null space stays."""
    kept = torch.rand(8, 8, generator=seeded()) < 0.5
    B = double(cases["real"][0])
    A = Masking(kept, B.range) @ B
    prior, level = cases["real"][1], torch.tensor(0.3, dtype=F64)
    y, x = A(prior.sample(1, seeded(5))[0]), prior.sample(2, seeded(1))
    M = matrix(A, A.domain, 3)
    want = x + (parts(y - A(x), 3) @ torch.linalg.pinv(M).mT).view(x.shape)

    def check(steps: int) -> None:
        project = proximal(y, A, torch.tensor(0.0, dtype=F64), gamma=None, cg_iterations=steps)
        got = project(x, level)
        assert relative(A(got), y.expand_as(got)) < 1e-5
        assert relative(project(got, level), got) < 1e-5
        assert relative(got, want) < 1e-5

    check(100)
    with pytest.raises(AssertionError):
        check(3)
    inpainting = Masking(kept, B.range)
    got = proximal(inpainting(y), inpainting, torch.tensor(0.0, dtype=F64), gamma=None,
                   cg_iterations=1)(x, level)
    assert relative(got, torch.where(kept, y, x)) < 1e-15


def test_some_items_without_noise_are_refused() -> None:
    A = Masking(torch.ones(2, 2), Space((1, 2, 2)))
    prior = Gaussian(torch.zeros(1, 2, 2), variance=1.0)
    with pytest.raises(ValueError, match="zero for some items only: reconstruct those apart"):
        pseudoinverse_guided(prior, A, torch.zeros(2, 1, 2, 2), torch.tensor([0.0, 1.0]),
                             prior_std=1.0, cg_iterations=3)
