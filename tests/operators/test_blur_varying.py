"""Blur that varies: against sums of blurs, against pixels moved one by one, and dense algebra."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from recon.operators import Blur, Space, VaryingBlur, gaussian_kernel, region_weights


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("boundary", ["periodic", "zero", "reflect", "replicate", "valid"])
@pytest.mark.parametrize("size", [(8, 9), (7, 6)])
def test_is_the_sum_of_blurs_of_weighted_images(size: tuple[int, int], boundary: str) -> None:
    space, kernels, weights = Space((2, *size)), noise(3, 4, 3), noise(3, *size, seed=1)
    A, x = VaryingBlur(kernels, weights, space, boundary), noise(5, 2, *size, seed=2)
    blurs = [Blur(k, space, boundary) for k in kernels]
    want = torch.stack([B(w * x) for B, w in zip(blurs, weights, strict=True)]).sum(0)
    assert relative(A(x), want) < 1e-13
    if boundary != "valid":  # interpolated where light lands, not where it comes from
        wrong = torch.stack([w * B(x) for B, w in zip(blurs, weights, strict=True)]).sum(0)
        assert relative(A(x), wrong) > 0.1


def test_a_bright_pixel_becomes_the_interpolated_kernel() -> None:
    kernels = torch.stack([gaussian_kernel(s, 5).double() for s in (0.4, 0.8, 1.2, 1.6)])
    weights = region_weights((2, 2), (16, 18)).double()
    A = VaryingBlur(kernels, weights, Space((1, 16, 18)))
    for at in [(4, 5), (8, 9), (11, 7)]:
        x = torch.zeros(1, 16, 18, dtype=torch.float64)
        x[(0, *at)] = 1
        want = torch.einsum("k,kij->ij", weights[:, at[0], at[1]], kernels)
        got = A(x)[0, at[0] - 2 : at[0] + 3, at[1] - 2 : at[1] + 3]
        assert relative(got, want) < 1e-12


def test_one_kernel_everywhere_is_a_blur() -> None:
    k, space = noise(3, 3), Space((1, 8, 9))
    A = VaryingBlur(k.expand(6, 3, 3), region_weights((2, 3), (8, 9)).double(), space)
    x = noise(2, 1, 8, 9, seed=1)
    assert relative(A(x), Blur(k, space)(x)) < 1e-6  # weights are rounded to single precision


@pytest.mark.parametrize(("regions", "size"), [((2, 3), (8, 9)), ((1, 4), (5, 7)), ((3,), (10,)),
                                               ((2, 2, 2), (4, 5, 6))])
def test_region_weights_interpolate(regions: tuple[int, ...], size: tuple[int, ...]) -> None:
    weights = region_weights(regions, size)
    assert weights.shape == (np.prod(regions), *size)
    assert float((weights.sum(0) - 1).abs().max()) < 1e-6
    values = noise(*regions, dtype=torch.float32)
    got = torch.einsum("k...,k->...", weights, values.flatten())
    # scipy's linear interpolation at the same positions
    axes = [(np.arange(n) + 0.5) * r / n - 0.5 for r, n in zip(regions, size, strict=True)]
    at = np.meshgrid(*axes, indexing="ij")
    want = scipy.ndimage.map_coordinates(values.numpy(), at, order=1, mode="nearest")
    assert relative(got, torch.from_numpy(want)) < 1e-5


@pytest.mark.parametrize("boundary", ["periodic", "reflect", "valid"])
def test_adjoint_is_that_of_the_matrix_and_solves(boundary: str) -> None:
    A = VaryingBlur(noise(3, 3, 2, dtype=torch.complex128), noise(3, 5, 6, seed=1),
                    Space((1, 5, 6), torch.complex128), boundary)
    M = A(torch.eye(30, dtype=torch.complex128).view(30, 1, 5, 6)).flatten(1).T
    y = noise(2, *A.range.shape, dtype=torch.complex128)
    assert relative(A.adjoint(y).flatten(1), y.flatten(1) @ M.conj()) < 1e-13
    rhs = noise(1, 5, 6, dtype=torch.complex128)
    system = M.mH @ M + 0.3 * torch.eye(30, dtype=torch.float64)
    want = torch.linalg.solve(system, rhs.flatten()).view(1, 5, 6)
    assert relative(A.solve(rhs, 0.3, max_iter=400, rtol=1e-13), want) < 1e-10


SPACE = Space((1, 8, 8))
REFUSED: dict[str, Callable[[], object]] = {
    "want kernels .kernels, .spatial.": lambda: VaryingBlur(noise(3, 3), noise(1, 8, 8), SPACE),
    "want weights .2, 8, 8., one image for each kernel, got .3, 8, 8.":
        lambda: VaryingBlur(noise(2, 3, 3), noise(3, 8, 8), SPACE),
    "want finite weights": lambda: VaryingBlur(noise(1, 3, 3), noise(1, 8, 8) / 0, SPACE),
    "want finite kernel weights": lambda: VaryingBlur(noise(1, 3, 3) / 0, noise(1, 8, 8), SPACE),
    "no larger than the image": lambda: VaryingBlur(noise(1, 9, 3), noise(1, 8, 8), SPACE),
    "VaryingBlur: want boundary": lambda: VaryingBlur(noise(1, 3, 3), noise(1, 8, 8), SPACE, "no"),
    "from one region": lambda: region_weights((2, 9), (8, 8)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
    with pytest.raises(TypeError, match="want real weights"):
        VaryingBlur(noise(1, 3, 3), noise(1, 8, 8) + 1j, SPACE)
