"""The squared norm of an operator against a dense matrix and a known derivative."""

import copy
import math

import pytest
import torch
from torch import Tensor

from recon.operators import LinearOperator, Masking, Operator, Space
from recon.operators.norm import squared_norm
from recon.priors import Gaussian

Cases = dict[str, tuple[LinearOperator, Gaussian]]
F64 = torch.float64


@pytest.mark.parametrize("case", ["coils", "real to complex", "real"])
def test_of_a_matrix(cases: Cases, case: str) -> None:
    A = copy.deepcopy(cases[case][0]).to(F64)  # the cases are shared
    kind = torch.complex128 if A.domain.is_complex else F64
    columns = A(torch.eye(64, dtype=kind).view(64, 1, 8, 8)).flatten(1)
    if not A.domain.is_complex and columns.is_complex():
        columns = torch.view_as_real(columns).flatten(1)
    largest = float(torch.linalg.matrix_norm(columns, 2)) ** 2
    x = torch.zeros(3, 2, 1, 8, 8, dtype=kind)

    def check(iterations: int) -> None:
        found = squared_norm(A, x, iterations)
        assert found.shape == (3, 2)
        assert bool((found == found[0, 0]).all())
        assert 0.9 * largest < float(found[0, 0]) <= (1 + 1e-9) * largest

    check(20)
    with pytest.raises(AssertionError):
        check(1)


def test_of_each_item() -> None:
    masks = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)])
    A = Masking(masks, Space((1, 4, 4)))
    assert squared_norm(A, masks).tolist() == [1.0, 0.0]
    assert squared_norm(3 * A, 1e-6 * masks).tolist() == pytest.approx([9.0, 0.0])


class Saturating(Operator):
    """Nonlinear, its derivative known."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(2 * x)


def test_of_a_jacobian() -> None:
    space = Space((1, 4, 4))
    x = torch.stack([torch.zeros(1, 4, 4, dtype=F64), torch.ones(1, 4, 4, dtype=F64)])
    want = torch.tensor([4.0, (2 / math.cosh(2) ** 2) ** 2], dtype=F64)
    assert torch.allclose(squared_norm(Saturating(space, space), x), want)
