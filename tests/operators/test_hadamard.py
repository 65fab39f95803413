"""The fast Hadamard transform against scipy's matrix, and compressed sensing by its rows."""

from collections.abc import Callable

import pytest
import scipy.linalg
import torch
from torch import Tensor

from recon.operators import Hadamard, Space, sequency
from recon.operators.hadamard import walsh_hadamard


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def matrix(n: int) -> Tensor:
    return torch.from_numpy(scipy.linalg.hadamard(n)).double() / n**0.5


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32, 128, 512, 2048])
@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_transform_is_scipys_matrix(n: int, kind: torch.dtype) -> None:
    x = noise(2, 3, n, dtype=kind)
    got = walsh_hadamard(x)
    assert relative(got, x @ matrix(n).to(kind)) < 1e-14
    assert relative(walsh_hadamard(got), x) < 1e-14  # its own inverse
    if n > 4:  # the planted fault: the order of changes of sign
        assert relative(got, x @ matrix(n)[sequency(n)].T.to(kind)) > 0.1


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_sequency_counts_changes_of_sign(n: int) -> None:
    changes = (matrix(n)[sequency(n)].sign().diff(dim=1) != 0).sum(1)
    assert torch.equal(changes, torch.arange(n))


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
@pytest.mark.parametrize("scrambled", [False, True])
def test_rows_are_those_asked_for(kind: torch.dtype, scrambled: bool) -> None:
    rows = torch.tensor([5, 0, 30, 17])
    signs = torch.where(noise(4, 8) > 0, 1, -1) if scrambled else None
    A = Hadamard(rows, Space((2, 4, 8), kind), signs)
    M = matrix(32)[rows] * (1 if signs is None else signs.flatten())
    x, y = noise(3, 2, 4, 8, dtype=kind), noise(3, 2, 4, dtype=kind)
    assert relative(A(x), x.flatten(-2) @ M.T.to(kind)) < 1e-14
    assert relative(A.adjoint(y).flatten(-2), y @ M.to(kind)) < 1e-14
    assert relative(A(A.adjoint(y)), y) < 1e-14
    if scrambled:
        assert relative(A(x), Hadamard(rows, Space((2, 4, 8), kind))(x)) > 0.1


def test_solve_is_closed_form() -> None:
    A = Hadamard(sequency(32)[:9], Space((1, 4, 8)))
    rhs, shift = noise(3, 1, 4, 8), torch.tensor([1e-3, 0.5, 7.0], dtype=torch.float64)
    direct = A.solve(rhs, shift, max_iter=0)
    M = matrix(32)[sequency(32)[:9]]
    for i in range(3):
        want = torch.linalg.solve(M.T @ M + shift[i] * torch.eye(32).double(), rhs[i].flatten())
        assert relative(direct[i].flatten(), want) < 1e-12
        wrong = rhs[i].flatten() / (1 + shift[i])  # as if every row were there
        assert relative(direct[i].flatten(), wrong) > 0.1
    x = A.solve(A.adjoint(A(rhs)), 0.0)
    assert relative(A(x), A(rhs)) < 1e-14
    assert relative(x, A.normal(rhs)) < 1e-14  # least norm


SPACE = Space((1, 4, 8))
REFUSED: dict[str, Callable[[], object]] = {
    "a power of two, got 12 of .1, 3, 4.": lambda: Hadamard(torch.arange(3), Space((1, 3, 4))),
    "rows from 0 to 31, got 0 to 32": lambda: Hadamard(torch.tensor([0, 32]), SPACE),
    "each row once: 1 of 3 repeat": lambda: Hadamard(torch.tensor([1, 2, 1]), SPACE),
    "rows as whole numbers": lambda: Hadamard(torch.ones(3), SPACE),
    "signs of 1 and -1": lambda: Hadamard(torch.arange(3), SPACE, torch.zeros(4, 8)),
    "sequency: want a power of two, got 12": lambda: sequency(12),
    "walsh_hadamard: want a power of two": lambda: walsh_hadamard(torch.ones(6)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
