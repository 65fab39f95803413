"""Cartesian MRI, masked afterwards, and solved where hardly anything weighs what is masked."""

import math

import pytest
import torch

from recon.operators import CartesianMRI, LinearOperator, Masking
from recon.simulate import coil_maps


@pytest.mark.parametrize("weight", [1e-4, 1e-8, 1e-12])
def test_solve_keeps_what_is_not_measured(weight: float) -> None:
    """From x0, single precision agrees with double also where the shift is next to nothing.

    The closed form divides by it what rounding leaves of A^H y outside the mask: 2e5 for 2.
    """
    A = CartesianMRI((16, 16), mask=torch.arange(16) % 3 == 0)
    x, x0 = (A.domain.randn(generator=torch.Generator().manual_seed(s), dtype=torch.complex128)
             for s in (0, 1))
    pulled = A.adjoint(A(x))

    def check(start: bool) -> None:
        single = [t.to(torch.complex64) for t in (pulled, x0)]
        got, want = (A.solve(b + weight * at, weight, at if start else None, max_iter=5)
                     for b, at in (single, (pulled, x0)))
        assert float((got - want).abs().max()) < 1e-4 * float(want.abs().max())

    check(start=True)
    if weight < 1e-4:
        with pytest.raises(AssertionError):
            check(start=False)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("size", [(8,), (6, 8), (1, 8), (1, 6, 1)])
def test_masked_broadcasts(coils: int, size: tuple[int, ...]) -> None:
    A = CartesianMRI((6, 8), maps=None if coils == 1 else coil_maps(coils, 6, 8))
    mask = torch.arange(math.prod(size)).view(size) % 3 != 1
    x = A.domain.randn(2, generator=torch.Generator().manual_seed(0))
    B = A.masked(mask)
    assert isinstance(B, CartesianMRI)
    assert torch.allclose(B(x), Masking(mask, A.range)(A(x)), atol=1e-6)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("kind", ["columns", "points", "coils apart", "nothing"])
def test_masked(coils: int, kind: str) -> None:
    """The operator followed by a mask, by the shorter way where all coils share it."""
    A = CartesianMRI((6, 8), maps=None if coils == 1 else coil_maps(coils, 6, 8))
    generator = torch.Generator().manual_seed(0)
    if kind == "coils apart":
        mask = torch.rand(2, coils, 6, 8, generator=generator) < 0.5
    else:
        size = {"columns": (2, 1, 1, 8), "points": (2, 1, 6, 8), "nothing": (2, 1, 1, 1)}[kind]
        mask = torch.rand(size, generator=generator) < (0.0 if kind == "nothing" else 0.5)
    mask = mask.expand(2, coils, 6, 8)
    B = A.masked(mask)
    assert isinstance(B, LinearOperator)
    x = A.domain.randn(3, 2, generator=generator)
    want = torch.where(mask, A(x), 0)
    assert torch.allclose(B(x), want, atol=1e-6)
    assert torch.allclose(B.normal(x), A.adjoint(want), atol=1e-6)
    shorter = kind in ("columns", "points") or (kind == "coils apart" and coils == 1)
    assert isinstance(B, CartesianMRI) == shorter
