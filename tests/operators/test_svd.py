"""``svd``: A = U diag(s) V^H with V unitary and U orthonormal where something is measured."""

import math

import pytest
import torch
from torch import Tensor

from recon.operators import (
    Blur,
    CartesianMRI,
    Downsampling,
    Hadamard,
    Identity,
    LinearOperator,
    Masking,
    Scale,
    Space,
    from_functions,
    gaussian_kernel,
)
from recon.operators.algebra import Zero
from recon.operators.svd import SVD, svd

F64, C128 = torch.float64, torch.complex128


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(m: int, shape: tuple[int, ...], domain: torch.dtype, measured: torch.dtype,
          rank: int | None = None) -> LinearOperator:
    n = math.prod(shape)
    matrix = randn(m, n, seed=3, dtype=measured)
    if rank is not None:
        matrix = randn(m, rank, seed=3, dtype=measured) @ randn(rank, n, seed=4, dtype=measured)

    def forward(x: Tensor) -> Tensor:
        kind = x.dtype.to_complex() if measured.is_complex else x.dtype
        return (x.flatten(-len(shape)).to(kind) @ matrix.to(kind).mT).unsqueeze(-2)

    return from_functions(forward, domain=Space(shape, domain), range=Space((1, m), measured))


def operators() -> dict[str, LinearOperator]:
    real, cplx = Space((2, 4, 5)), Space((1, 4, 6), torch.complex64)
    skewed = randn(3, 2, seed=1)
    mask = torch.tensor([1, 0, 1, 1, 0, 1])
    return {
        "identity": Identity(real),
        "scale": Scale(-2 + 1j, cplx),
        "masking": Masking(randn(4, 5) > 0, real),
        "masking of items": Masking(randn(3, 1, 4, 6) > 0, cplx),
        "fourier": CartesianMRI((4, 6), mask),
        "fourier, a multiple": -1j * CartesianMRI((4, 6), mask),
        "fourier of items": CartesianMRI((4, 6), (randn(3, 1, 4, 6) > 0).int()),
        "blur": Blur(skewed, real),
        "blur that removes": Blur(torch.ones(1, 5) / 5, real),
        "blur of items": Blur(randn(3, 1, 3, 2), real),
        "blur, complex": Blur(torch.complex(skewed, randn(3, 2, seed=2)), cplx),
        "volume": Blur(randn(3, 2, 3), Space((1, 3, 4, 5))),
        "zero edge": Blur(gaussian_kernel(0.5, 3), real, boundary="zero"),
        "bicubic": Downsampling(Space((2, 6, 4)), (3, 2)),
        "box, complex": Downsampling(Space((1, 4, 6), torch.complex64), 2, "box"),
        "volume, finer": Downsampling(Space((1, 2, 4, 3)), (2, 2, 1), "lanczos"),
        "patterns": Hadamard(torch.tensor([0, 3, 5, 30]), Space((2, 4, 8)),
                             torch.where(randn(4, 8) > 0, 1, -1)),
        "patterns, complex": Hadamard(torch.arange(5), Space((1, 2, 4), torch.complex64)),
        "wide": dense(5, (1, 3, 4), torch.float32, torch.float32),
        "tall": dense(20, (1, 3, 4), torch.complex64, torch.complex64),
        "deficient": dense(20, (1, 3, 4), torch.complex64, torch.complex64, rank=4),
        "real to complex": dense(4, (1, 3, 4), torch.float32, torch.complex64),
        "coils": CartesianMRI((4, 6), mask, randn(3, 4, 6, dtype=C128)),
        "nothing": Zero(real, cplx),
    }


def check(A: LinearOperator, of: SVD, dtype: torch.dtype, limit: float) -> None:
    kind = dtype.to_complex() if A.domain.is_complex else dtype
    x, v = (randn(2, 3, *A.domain.shape, seed=seed, dtype=kind) for seed in (0, 1))
    y = randn(2, 3, *A.range.shape, seed=2,
              dtype=dtype.to_complex() if A.range.is_complex else dtype)
    seen = (of.values > 0).expand(x.shape)

    def near(got: Tensor, want: Tensor) -> None:
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        assert float((got - want).abs().sum()) <= limit * max(1, got.numel())

    assert bool((of.values >= 0).all())
    assert of.values.dtype == dtype
    near(of.left(of.values * of.right_adjoint(x)), A(x))
    near(of.right(of.values * of.left_adjoint(y)), A.adjoint(y))
    near(of.right(of.right_adjoint(x)), x)
    near(of.right_adjoint(of.right(v)), v)
    near(of.left_adjoint(of.left(v)), torch.where(seen, v, 0))
    near(of.left_adjoint(y)[~seen], torch.zeros_like(x[~seen]))


def faulty(of: SVD) -> list[SVD]:
    """Of the wrong size, sign, conjugation, and with something seen where nothing is."""
    return [of._replace(values=of.values / 2 + 0.1), of._replace(right=lambda v: -of.right(v)),
            of._replace(left_adjoint=lambda y: of.left_adjoint(y) + 1),
            of._replace(right_adjoint=lambda x: of.right_adjoint(x.conj()).roll(1, -1))]


@pytest.mark.parametrize("name", operators())
def test_decomposition(name: str) -> None:
    A = operators()[name]
    for dtype, limit in ((F64, 2e-12), (torch.float32, 5e-5)):
        like = torch.empty(0, dtype=dtype.to_complex() if A.domain.is_complex else dtype)
        check(A, svd(A, like), dtype, limit)
        for fault in faulty(svd(A, like)):
            with pytest.raises(AssertionError):
                check(A, fault, dtype, limit)


@pytest.mark.parametrize("name", ["masking", "blur", "blur that removes", "blur, complex",
                                  "fourier", "bicubic", "box, complex", "volume, finer",
                                  "patterns"])
def test_closed_form_has_the_values_of_the_matrix(name: str) -> None:
    A = operators()[name]
    n = math.prod(A.domain.shape)
    eye = torch.eye(n, dtype=C128 if A.domain.is_complex else F64).view(n, *A.domain.shape)
    want = torch.linalg.svdvals(A(eye).reshape(n, -1))
    want = torch.nn.functional.pad(want, (0, n - len(want)))  # fewer measurements than pixels
    got = svd(A, eye).values.expand(A.domain.shape).flatten().sort(descending=True).values
    assert float((got - want).abs().max()) < 1e-12
    assert int((got > 0).sum()) == int((want > 1e-12).sum())  # removed means exactly 0


def test_noise_stays_white() -> None:
    A = operators()["real to complex"]
    y = randn(200_000, *A.range.shape, dtype=C128)
    y = torch.complex(randn(*y.shape, seed=1), randn(*y.shape, seed=2))  # 1 per real number
    of = svd(A, torch.empty(0, dtype=F64))
    seen = of.left_adjoint(y).flatten(1)[:, (of.values > 0).flatten()]
    assert seen.shape[1] == 8
    assert float((torch.cov(seen.mT) - torch.eye(8)).abs().max()) < 0.02


def test_refusals() -> None:
    space = Space((1, 65, 65))
    large = from_functions(lambda x: x + x.roll(1, -1), domain=space, range=space)
    with pytest.raises(ValueError, match="4225 unknowns, at most 4096"):
        svd(large)
    parts = from_functions(lambda x: x.real, domain=Space((1, 2), torch.complex64),
                           range=Space((1, 2)))
    with pytest.raises(TypeError, match="not complex linear"):
        svd(parts)
    with pytest.raises(ValueError, match="for each item"):
        svd(Blur(randn(3, 1, 1, 2), Space((1, 2, 2)), boundary="zero"))
