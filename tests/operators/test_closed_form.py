"""Closed forms of ``solve`` where the shift is next to nothing, in single precision."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.operators import Downsampling, Greyscale, Hadamard, LinearOperator, Space, sequency

OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "Hadamard": lambda: Hadamard(sequency(1024)[:250], Space((1, 32, 32))),
    "downsampling": lambda: Downsampling(Space((2, 32, 32)), 4),
    "downsampling, complex": lambda: Downsampling(Space((1, 32, 24), torch.complex64), 2,
                                                  "lanczos"),
    "grey": lambda: Greyscale(Space((3, 16, 16))),
}
every = pytest.mark.parametrize("name", OPERATORS)


def noise(A: LinearOperator, *batch: int, seed: int = 0) -> Tensor:
    return A.domain.randn(*batch, generator=torch.Generator().manual_seed(seed))


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def double(t: Tensor) -> Tensor:
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def projected_once(A: LinearOperator, rhs: Tensor, shift: float) -> Tensor:
    """What rounding leaves of the seen part is divided by the shift."""
    seen = A.solve(A.normal(rhs), 0.0)
    return A.solve(seen, shift) + (rhs - seen) / shift


@every
@pytest.mark.parametrize("shift", [1e-3, 1e-6, 1e-8])
def test_the_measured_part_is_met(name: str, shift: float) -> None:
    A = OPERATORS[name]()
    x, x0 = noise(A, 3), noise(A, 3, seed=1)
    y = A(x)
    for start in (None, x0):
        rhs = A.adjoint(y) + shift * (x if start is None else start)
        got = A.solve(rhs, shift, start)
        want = A.solve(double(rhs), shift, None if start is None else double(start))
        assert relative(A(got), A(want).to(y)) <= 1e-6
    if shift < 1e-3:  # once is not enough
        with pytest.raises(AssertionError):
            assert relative(A(projected_once(A, rhs, shift)), A(want).to(y)) <= 1e-3


@every
@pytest.mark.parametrize("shift", [1e-3, 1e-6, 1e-8, 0.0])
def test_what_is_not_seen_stays(name: str, shift: float) -> None:
    """From x0 it is that of x0, and from nothing that is asked it is nothing."""
    A = OPERATORS[name]()
    x, x0 = noise(A, 3), noise(A, 3, seed=1)
    data, start = A.normal(double(x)), double(x0)

    def pulled(rhs: Tensor) -> Tensor:  # A^H (A A^H + shift)^-1 A x, in double precision
        return A.solve_cg(rhs, shift, max_iter=300, rtol=1e-13).x

    near, least = start + pulled(data - A.normal(start)), pulled(data)
    assert relative(A.solve(A.normal(x) + shift * x0, shift, x0), near.to(x)) <= 3e-6
    assert relative(A.solve(A.normal(x), shift), least.to(x)) <= 3e-6


@every
def test_any_start_gives_the_solution(name: str) -> None:
    A = OPERATORS[name]()
    rhs, x0 = double(noise(A, 2)), double(noise(A, 2, seed=1))
    shift = torch.tensor([1e-4, 2.0], dtype=torch.float64)
    want = A.solve_cg(rhs, shift, max_iter=500, rtol=1e-14).x
    for start in (None, x0, 1e3 * x0, want):
        assert relative(A.solve(rhs, shift, start), want) <= 1e-10


@every
@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e6, 1e25])
def test_scales_and_items_alone(name: str, scale: float) -> None:
    A = OPERATORS[name]()
    x0 = noise(A, 3)
    rhs = A.adjoint(A(noise(A, 3, seed=1))) + 1e-5 * x0
    rhs[1] = A.adjoint(A(x0[1]))
    want = A.solve(rhs, 1e-5)
    assert relative(A.solve(scale * rhs, 1e-5) / scale, want) <= 1e-2  # of which rounding is open
    assert relative(A(A.solve(scale * rhs, 1e-5)) / scale, A(want)) <= 1e-6
    for i in range(3):
        assert relative(A.solve(rhs[i], 1e-5), want[i]) <= 1e-2
    small = rhs * torch.tensor([1.0, 1e-9, 1.0]).view(-1, 1, 1, 1)
    assert relative(1e9 * A.solve(small, 1e-5)[1], want[1]) <= 1e-5


@every
def test_gradients(name: str) -> None:
    A = OPERATORS[name]()
    rhs, x0 = (double(noise(A, seed=i)).requires_grad_() for i in range(2))
    weight = double(noise(A, seed=2))
    for shift in (0.1, 1e-4):
        loss = (weight.conj() * A.solve(rhs, shift, x0)).real.sum()
        pulled, through_start = torch.autograd.grad(loss, (rhs, x0))
        assert relative(pulled, A.solve(weight, shift)) <= 1e-10
        assert float(through_start.norm()) <= 1e-9 * float(pulled.norm())
