"""Conjugate gradients against dense algebra; planted wrong versions fail the same assertions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.operators import (
    Blur,
    ConjugateGradient,
    Identity,
    LinearOperator,
    Masking,
    Scale,
    Space,
    conjugate_gradient,
)
from recon.operators.solve import minimal_residual

Solver = Callable[..., ConjugateGradient]
N = 12


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hermitian(batch: int = 5, dtype: torch.dtype = torch.complex128) -> Tensor:
    """Positive definite matrices, each worse conditioned than the one before."""
    B = noise(batch, N, N, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    strength = torch.linspace(0.1, 1, batch, dtype=torch.float64)[:, None, None]
    return (torch.eye(N) + strength * B @ B.mH).to(dtype)


def times(M: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (M @ x.unsqueeze(-1)).squeeze(-1)


def solve(solver: Solver, M: Tensor, b: Tensor, **settings: Any) -> ConjugateGradient:
    return solver(times(M), b, **{"item_ndim": 1, "max_iter": 100, "rtol": 1e-12} | settings)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float(((got - want).norm(dim=-1) / want.norm(dim=-1)).max())


# The assertions, each on any solver.


def assert_equals_dense(solver: Solver) -> None:
    for dtype in (torch.float64, torch.complex128):
        M, b = hermitian(dtype=dtype), noise(5, N, dtype=dtype, seed=1)
        assert relative(solve(solver, M, b).x, torch.linalg.solve(M, b)) < 1e-10


def assert_scales(solver: Solver) -> None:
    for dtype in (torch.float32, torch.complex64):
        M, b = hermitian(dtype=dtype), noise(5, N, dtype=dtype, seed=1)
        want = solve(solver, M, b, rtol=1e-6)
        assert relative(want.x, torch.linalg.solve(M, b)) < 1e-4
        for scale in (1e-6, 1e6):
            got = solve(solver, M, scale * b, rtol=1e-6)
            assert relative(got.x / scale, want.x) < 1e-5
            # rounding may move the last step, near the tolerance
            assert int((got.iterations - want.iterations).abs().max()) <= 1


def assert_items_are_apart(solver: Solver) -> None:
    M, b = hermitian(), noise(5, N, seed=1) * torch.logspace(-3, 3, 5)[:, None]
    # few steps and a loose tolerance: a shared step size or stop shows long before convergence
    for settings in ({"max_iter": 4}, {"rtol": 1e-2}):
        together = solve(solver, M, b, **settings)
        for i in range(5):
            alone = solve(solver, M[i], b[i], **settings)
            assert relative(together.x[i], alone.x) < 1e-10
            assert int(together.iterations[i]) == int(alone.iterations)


def test_equals_dense_solve() -> None:
    assert_equals_dense(conjugate_gradient)


def test_scales_with_the_right_hand_side() -> None:
    assert_scales(conjugate_gradient)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_squares_beyond_single_precision(scale: float) -> None:
    M, b = hermitian(dtype=torch.complex64), noise(5, N, dtype=torch.complex64, seed=1)
    x0 = noise(5, N, dtype=torch.complex64, seed=2)
    want = torch.linalg.solve(M, b)
    for start in (None, scale * x0):
        got = solve(conjugate_gradient, M, scale * b, x0=start, rtol=1e-6)
        assert relative(got.x / scale, want) < 1e-4
        assert float(got.residuals[-1].max()) <= 1e-6
    x = minimal_residual(times(M), scale * b, item_ndim=1, max_iter=4 * N)
    assert relative(x / scale, want) < 1e-4
    with pytest.raises(AssertionError):  # the textbook's: zeros, or not a number
        assert relative(solve(faulty(), M, scale * b, rtol=1e-6).x / scale, want) < 1e-4


def test_residuals_are_in_the_unit_of_what_is_solved() -> None:
    M, b = hermitian(), noise(5, N)
    x0 = noise(5, N, seed=2)
    none = solve(conjugate_gradient, M, 0 * b, x0=x0, max_iter=0)
    assert torch.allclose(none.residuals[0], times(M)(x0).norm(dim=-1))  # nothing to divide by
    far = solve(conjugate_gradient, M, b, x0=1e30 * x0, max_iter=20)
    assert float(far.residuals[-1].min()) > 1  # lost in rounding, and said to be


def test_batch_of_five_is_five_singles() -> None:
    assert_items_are_apart(conjugate_gradient)


def faulty(conjugate: bool = True, epsilon: float = 0.0, per_item: bool = True) -> Solver:
    """Textbook conjugate gradients with one of three mistakes that published code makes."""

    def solver(operator: Callable[[Tensor], Tensor], rhs: Tensor, *, item_ndim: int,
               max_iter: int, rtol: float) -> ConjugateGradient:
        assert item_ndim == 1

        def dot(a: Tensor, b: Tensor) -> Tensor:
            product = (a.conj() if conjugate else a) * b
            return product.sum(-1, keepdim=True) if per_item else product.sum()

        x, r = torch.zeros_like(rhs), rhs
        p, rr, bb = r, dot(r, r), dot(rhs, rhs).abs()
        steps = torch.zeros(rhs.shape[:-1], dtype=torch.int64)
        for _ in range(max_iter):
            active = rr.abs() > rtol**2 * bb
            if not bool(active.any()):
                break
            Ap = operator(p)
            alpha = torch.where(active, rr / (dot(p, Ap) + epsilon), 0)
            x, r = x + alpha * p, r - alpha * Ap
            rr, before = dot(r, r), rr
            p = r + torch.where(active, rr / (before + epsilon), 0) * p
            steps += active.view(steps.shape) if per_item else 1
        return ConjugateGradient(x, steps, rr.abs())

    return solver


def test_textbook_version_passes_the_assertions() -> None:
    for assertion in (assert_equals_dense, assert_scales, assert_items_are_apart):
        assertion(faulty())


@pytest.mark.parametrize(("mistake", "assertion"), [
    ({"conjugate": False}, assert_equals_dense),
    ({"epsilon": 1e-8}, assert_scales),
    ({"per_item": False}, assert_items_are_apart),
])
def test_planted_mistake_fails_its_assertion(mistake: dict[str, Any],
                                             assertion: Callable[[Solver], None]) -> None:
    with pytest.raises(AssertionError):
        assertion(faulty(**mistake))


def test_zero_right_hand_side_gives_zero() -> None:
    result = solve(conjugate_gradient, hermitian(), torch.zeros(5, N, dtype=torch.complex128))
    assert not bool(result.x.any())
    assert result.iterations.tolist() == [0] * 5
    assert bool(result.residuals.isfinite().all())
    b = noise(5, N, seed=1)
    b[2] = 0  # beside others that iterate
    mixed = solve(conjugate_gradient, hermitian(), b)
    assert not bool(mixed.x[2].any())
    assert relative(mixed.x[[0, 1, 3, 4]],
                    torch.linalg.solve(hermitian(), b)[[0, 1, 3, 4]]) < 1e-10


def test_start_at_the_solution_stays_there() -> None:
    M, b = hermitian(), noise(5, N, seed=1)
    x0 = torch.linalg.solve(M, b)
    result = solve(conjugate_gradient, M, b, x0=x0, rtol=1e-10)
    assert torch.equal(result.x, x0)
    assert result.iterations.tolist() == [0] * 5
    assert float(result.residuals.max()) < 1e-12
    x0[1] = 0  # one item has to move, the others must not
    moved = solve(conjugate_gradient, M, b, x0=x0, rtol=1e-10)
    assert moved.iterations.bool().tolist() == [False, True, False, False, False]
    assert torch.equal(moved.x[[0, 2, 3, 4]], x0[[0, 2, 3, 4]])


def test_start_elsewhere_reaches_the_same() -> None:
    M, b = hermitian(), noise(5, N, seed=1)
    got = solve(conjugate_gradient, M, b, x0=100 * noise(5, N, seed=2))
    assert relative(got.x, torch.linalg.solve(M, b)) < 1e-10


def test_iterations_and_residuals_are_of_each_item() -> None:
    M = torch.stack([torch.eye(N), torch.diag(1.0 + torch.arange(N) % 3), hermitian()[4].real])
    M, b = M.to(torch.float64), noise(3, N, dtype=torch.float64)
    result = solve(conjugate_gradient, M, b)
    one, three, many = result.iterations.tolist()
    assert (one, three) == (1, 3)  # as many as there are distinct eigenvalues
    assert 3 < many <= 2 * N
    assert result.residuals.shape == (many + 1, 3)
    assert torch.allclose(result.residuals[0], torch.ones(3, dtype=torch.float64))
    assert bool((result.residuals[one:, 0] == result.residuals[one, 0]).all())  # stands still
    assert float(result.residuals[-1].max()) <= 1e-12
    for steps in range(5):
        short = solve(conjugate_gradient, M, b, max_iter=steps)
        true = (b - times(M)(short.x)).norm(dim=-1) / b.norm(dim=-1)
        assert torch.allclose(short.residuals[-1], true, rtol=1e-8, atol=1e-13)


def test_stops_after_max_iter() -> None:
    M, b = hermitian(), noise(5, N, seed=1)
    none = solve(conjugate_gradient, M, b, max_iter=0)
    assert not bool(none.x.any())
    assert none.residuals.shape == (1, 5)
    assert torch.equal(solve(conjugate_gradient, M, b, x0=b, max_iter=0).x, b)
    assert solve(conjugate_gradient, M, b, max_iter=2).iterations.tolist() == [2] * 5


def test_inputs_stay_and_leading_dimensions_are_kept() -> None:
    M, b, x0 = hermitian(6).view(2, 3, N, N), noise(2, 3, N, seed=1), noise(2, 3, N, seed=2)
    b_before, x0_before = b.clone(), x0.clone()
    result = solve(conjugate_gradient, M, b, x0=x0)
    assert torch.equal(b, b_before)
    assert torch.equal(x0, x0_before)
    assert result.iterations.shape == (2, 3)
    assert result.residuals.shape[1:] == (2, 3)
    assert relative(result.x, torch.linalg.solve(M, b)) < 1e-10


def test_phase_of_the_right_hand_side_is_the_phase_of_the_solution() -> None:
    M, b, phase = hermitian(), noise(5, N, seed=1), torch.exp(torch.tensor(0.7j))
    short = {"max_iter": 4}
    got, want = (solve(conjugate_gradient, M, p * b, **short).x for p in (phase, 1))
    assert relative(got, phase * want) < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_shows_and_stays_in_its_item(bad: float) -> None:
    M, b = hermitian(), noise(5, N, seed=1)
    want = solve(conjugate_gradient, M, b).x
    b[3, 0] = bad
    got = solve(conjugate_gradient, M, b).x
    assert not bool(got[3].isfinite().any())
    assert relative(got[:3], want[:3]) < 1e-12
    assert not bool(solve(conjugate_gradient, M[3], b[3]).x.isfinite().any())  # alone as well


def test_gradient_flows_through() -> None:
    M = hermitian(1, torch.float64)
    b, v = noise(1, N, dtype=torch.float64).requires_grad_(), noise(1, N, dtype=torch.float64)
    x = solve(conjugate_gradient, M, b).x
    (pull,) = torch.autograd.grad(x, b, v)
    assert relative(pull, torch.linalg.solve(M, v)) < 1e-6


def test_errors() -> None:
    M, b = hermitian(), noise(5, N)
    with pytest.raises(ValueError, match="max_iter, rtol >= 0, got -1"):
        solve(conjugate_gradient, M, b, max_iter=-1)
    with pytest.raises(ValueError, match="max_iter, rtol >= 0"):
        solve(conjugate_gradient, M, b, rtol=-1.0)
    with pytest.raises(ValueError, match=r"x0 is \(12,\), rhs \(5, 12\)"):
        solve(conjugate_gradient, M, b, x0=b[0])
    with pytest.raises(ValueError, match=r"at least 3 dimensions.*pass item_ndim"):
        conjugate_gradient(times(M), b)
    with pytest.raises(TypeError, match=r"floating or complex rhs, got torch.int64"):
        solve(conjugate_gradient, M, torch.ones(5, N, dtype=torch.int64))


SPACE = Space((1, 6, 7))
OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "identity": lambda: Identity(SPACE),
    "scale": lambda: Scale(-3.0, SPACE),
    "masking": lambda: Masking(noise(6, 7, dtype=torch.float32) > 0, SPACE),
    "blur": lambda: Blur(noise(3, 3, dtype=torch.float64), SPACE),
    "multiple of a blur": lambda: -2.5 * Blur(noise(3, 3, dtype=torch.float64), SPACE),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_closed_forms_equal_conjugate_gradients(name: str) -> None:
    A, rhs = OPERATORS[name](), noise(2, 3, 1, 6, 7, dtype=torch.float64)
    for shift in (0.5, torch.tensor([0.1, 1.0, 10.0]), torch.tensor([[0.2], [2.0]])):
        direct = A.solve(rhs, shift, max_iter=0)  # a closed form takes no iterations
        by_cg = A.solve_cg(rhs, shift, max_iter=300, rtol=1e-13).x
        assert float((direct - by_cg).norm() / by_cg.norm()) < 1e-10


def test_shift_is_of_each_item_or_refused() -> None:
    A, rhs = OPERATORS["masking"](), noise(3, 1, 6, 7, dtype=torch.float64)
    for call in (A.solve, A.solve_cg):
        with pytest.raises(ValueError, match=r"one per item of \(3,\), got \(2,\)"):
            call(rhs, torch.ones(2))
        with pytest.raises(ValueError, match=r"solve: want \(\*batch, 1, 6, 7\), got \(7,\)"):
            call(rhs[0, 0, 0], 1.0)
        with pytest.raises(TypeError, match="want a real floating tensor"):
            call(rhs + 0j, 1.0)


def test_masking_without_shift_is_the_solution_of_least_norm() -> None:
    A, x = OPERATORS["masking"](), noise(1, 6, 7, dtype=torch.float64)
    assert torch.equal(A.solve(A.normal(x), 0.0), A.normal(x))
    assert torch.allclose(A.solve_cg(A.normal(x), 0.0).x, A.normal(x))


def skewed(batch: int = 4) -> Tensor:
    """Far from Hermitian, some directions negative: conjugate gradients have no business here."""
    return hermitian(batch) + 3 * noise(batch, N, N, seed=3) - 2 * torch.eye(N)


def test_minimal_residuals_need_no_symmetry() -> None:
    M, b = skewed(), noise(4, N, seed=1)
    want = torch.linalg.solve(M, b)

    def check(solver: Callable[..., Tensor]) -> None:
        assert float((solver(times(M), b, item_ndim=1, max_iter=4 * N) - want).norm()
                     / want.norm()) < 1e-5

    check(minimal_residual)
    with pytest.raises(AssertionError):
        check(lambda *args, **settings: conjugate_gradient(*args, **settings).x)
    with pytest.raises(AssertionError):
        check(lambda *args, **settings: minimal_residual(*args, **settings | {"max_iter": N // 2}))


def test_minimal_residuals_never_grow_and_items_stand_alone() -> None:
    M, b = skewed(), noise(4, N, seed=1)
    M[1], b[2] = 0, 0  # nothing to be done, and nothing to do
    b[3] *= 1e-9
    left = torch.stack([(b - times(M)(minimal_residual(times(M), b, item_ndim=1, max_iter=k)))
                        .norm(dim=1) for k in range(N)])
    assert bool((left.diff(dim=0) <= 1e-12 * b.norm(dim=1)).all())
    got = minimal_residual(times(M), b, item_ndim=1, max_iter=3)
    assert bool(got.isfinite().all())
    for i in range(4):
        one = minimal_residual(times(M[i]), b[i], item_ndim=1, max_iter=3)
        assert torch.allclose(got[i], one, rtol=1e-10, atol=1e-24)
