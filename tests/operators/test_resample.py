"""Downsampling against torch, Pillow and scikit-image; its closed forms against dense algebra."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import block_reduce
from torch import Tensor
from torch.nn.functional import interpolate

from recon.operators import Downsampling, Space
from recon.operators.resample import resampling_matrix


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor | np.ndarray) -> float:
    want = torch.as_tensor(want)
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


SIZES = [((24, 36), (4, 4)), ((15, 21), (3, 3)), ((12, 10), (2, 5)), ((9, 8), (9, 1))]


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_is_the_antialiased_interpolation_of_torch(size: tuple[int, int], factor: tuple[int, int],
                                                   kernel: str) -> None:
    A, x = Downsampling(Space((2, *size)), factor, kernel), noise(3, 2, *size)
    want = interpolate(x, size=A.range.shape[1:], mode=kernel, antialias=True)
    assert relative(A(x), want) < 1e-13
    if min(factor) > 1:  # the planted faults: aliased, shifted, and of the other a
        aliased = interpolate(x, size=A.range.shape[1:], mode=kernel)
        assert relative(A(x), aliased) > 0.05
        assert relative(A(x), A(x.roll(1, -1))) > 0.05
        assert relative(A(x), x[..., :: factor[0], :: factor[1]]) > 0.05


def test_is_that_of_deepinv_but_for_one_pixel() -> None:
    physics = pytest.importorskip("deepinv").physics
    A, x = Downsampling(Space((1, 32, 32)), 4), noise(2, 1, 32, 32, dtype=torch.float32)
    peer = physics.Downsampling((1, 32, 32), filter="bicubic", factor=4)
    inside = (..., slice(2, -2), slice(2, -2))  # it goes round at the edge
    assert relative(A(x)[inside], peer.A(x.roll((-1, -1), (-1, -2)))[inside]) < 1e-5
    assert relative(A(x)[inside], peer.A(x)[inside]) > 0.1  # its coarse pixels lie off centre


FILTERS = {"box": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR,
           "bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_is_the_resize_of_pillow(size: tuple[int, int], factor: tuple[int, int],
                                 kernel: str) -> None:
    A, x = Downsampling(Space((1, *size)), factor, kernel), noise(1, *size, dtype=torch.float32)
    rows, columns = A.range.shape[1:]
    picture = Image.fromarray(x[0].numpy())  # mode F: no rounding to whole numbers
    errors = {name: relative(A(x)[0], np.array(picture.resize((columns, rows), how)))
              for name, how in FILTERS.items()}
    assert errors.pop(kernel) < 1e-6
    assert min(errors.values()) > 1e-2


def test_box_is_the_mean_over_blocks() -> None:
    A, x = Downsampling(Space((1, 4, 6, 9)), (2, 3, 3), "box"), noise(1, 4, 6, 9)
    want = block_reduce(x[0].numpy(), (2, 3, 3), np.mean)  # type: ignore[no-untyped-call]
    assert relative(A(x)[0], want) < 1e-14


@pytest.mark.parametrize("kernel", FILTERS)
def test_constants_and_ramps_pass(kernel: str) -> None:
    A = Downsampling(Space((1, 24, 30)), 3, kernel)
    ramp = torch.arange(30, dtype=torch.float64).expand(1, 24, 30)
    got = A(ramp)[0, 4, 2:-2]
    want = torch.arange(10, dtype=torch.float64)[2:-2] * 3 + 1  # centres of the blocks
    assert relative(A(torch.ones(1, 24, 30).double()), torch.ones(1, 8, 10)) < 1e-14
    assert relative(got, want) < (2e-2 if kernel == "lanczos" else 1e-13)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("size", "factor"), [((6, 8), (2, 4)), ((5, 9), (5, 3)), ((4, 6), (1, 1)),
                                              ((12,), (3,)), ((2, 4, 3), (2, 2, 1))])
def test_adjoint_and_solve_against_the_matrix(size: tuple[int, ...], factor: tuple[int, ...],
                                              kind: torch.dtype) -> None:
    space = Space((1, *size), kind)
    A, n = Downsampling(space, factor), int(np.prod(size))
    M = A(torch.eye(n, dtype=kind).view(n, 1, *size)).flatten(1).T
    y, rhs = noise(2, *A.range.shape, dtype=kind), noise(2, 1, *size, dtype=kind)
    assert relative(A.adjoint(y).flatten(1), y.flatten(1) @ M.conj()) < 1e-14
    for shift in (1e-6, 0.3, 5.0):
        system = M.mH @ M + shift * torch.eye(n, dtype=torch.float64)
        want = torch.linalg.solve(system, rhs.flatten(1).T).T
        # no better than its condition number allows
        assert relative(A.solve(rhs, shift, max_iter=0).flatten(1), want) < 1e-13 + 1e-15 / shift
        # the planted fault: a shift that is one number for what is seen alone
        seen = rhs.flatten(1) @ torch.linalg.pinv(M.mH @ M + shift * M.mH @ M).T
        assert relative(A.solve(rhs, shift).flatten(1), seen) > 1e-3 or max(factor) == 1


def test_solve_takes_a_shift_for_each_item() -> None:
    A, rhs = Downsampling(Space((1, 8, 6)), 2), noise(3, 2, 1, 8, 6)
    shift = torch.tensor([0.1, 4.0], dtype=torch.float64)
    together = A.solve(rhs, shift)
    assert relative(together[:, 0], A.solve(rhs[:, 0], 0.1)) < 1e-7  # 0.1 is rounded on its way
    assert relative(together[:, 1], A.solve(rhs[:, 1], 4.0)) < 1e-14
    assert relative(A.solve_cg(rhs, shift, max_iter=200, rtol=1e-13).x, together) < 1e-11


def test_solve_without_shift_is_of_least_norm() -> None:
    A = Downsampling(Space((1, 8, 9)), (2, 3), "lanczos")
    x = noise(1, 8, 9, seed=2)
    solved = A.solve(A.adjoint(A(x)), 0.0)
    M = A(torch.eye(72, dtype=torch.float64).view(72, 1, 8, 9)).flatten(1).T
    want = torch.linalg.pinv(M) @ A(x).flatten()
    assert relative(solved.flatten(), want) < 1e-11
    assert relative(A(solved), A(x)) < 1e-12


def test_precision_and_autograd_after_inference_mode() -> None:
    A, x = Downsampling(Space((1, 8, 8)), 2), noise(1, 8, 8)
    with torch.inference_mode():
        A(x)
    (pull,) = torch.autograd.grad(A(x.requires_grad_()).square().sum(), x)
    assert relative(pull, 2 * A.normal(x).detach()) < 1e-14
    assert A(x.float()).dtype == torch.float32
    assert relative(A(x.float()).detach().double(), A(x).detach()) < 1e-6
    assert not A.state_dict()


def test_matrix_is_odd_or_even_alike() -> None:
    for n, m in [(12, 4), (15, 5), (16, 4), (7, 7)]:
        R = resampling_matrix(n, m)
        assert relative(R.flip(0, 1), R) < 1e-14  # turning the image turns its coarse one
        assert relative(R.sum(1), torch.ones(m)) < 1e-14


SPACE = Space((1, 8, 9))
REFUSED: dict[str, Callable[[], object]] = {
    "a factor that divides the size, got 2 for 9: crop the image to 8":
        lambda: Downsampling(SPACE, 2),
    "a factor >= 1, or one for each axis of .8, 9., got 0": lambda: Downsampling(SPACE, 0),
    "one for each axis of .8, 9., got .2,.": lambda: Downsampling(SPACE, (2,)),
    "want kernel box, bilinear, bicubic or lanczos, got 'nearest'":
        lambda: Downsampling(SPACE, (4, 3), "nearest"),
    "want a space": lambda: Downsampling(Space((9,)), 3),
    r"forward: want \(\*batch, 1, 8, 9\)": lambda: Downsampling(SPACE, (4, 3))(noise(1, 9, 8)),
    "want one number, or one per item":
        lambda: Downsampling(SPACE, (4, 3)).solve(noise(3, 1, 8, 9), torch.ones(2)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
