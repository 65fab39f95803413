"""Blur against scipy, its closed forms against dense algebra, and what it refuses."""

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import torch
from torch import Tensor

from recon.operators import (
    Blur,
    LinearOperator,
    Space,
    VaryingBlur,
    gaussian_kernel,
    motion_kernel,
    shake_kernel,
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor | np.ndarray) -> float:
    want = torch.as_tensor(want)
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def dense(A: LinearOperator) -> Tensor:
    """The matrix of ``A``, one column per pixel."""
    n = int(np.prod(A.domain.shape))
    dtype = torch.complex128 if A.domain.is_complex else torch.float64
    pixels = torch.eye(n, dtype=dtype).reshape(n, *A.domain.shape)
    return A(pixels).reshape(n, -1).T


SIZES = [((9, 8), (3, 3)), ((8, 9), (5, 3)), ((7, 7), (2, 4)), ((6, 8), (4, 3)), ((5, 6), (5, 6)),
         ((6, 5), (1, 1)), ((4, 9), (4, 1))]
NDIMAGE_MODE = {"periodic": "wrap", "zero": "constant"}
SIGNAL_BOUNDARY = {"periodic": "wrap", "zero": "fill"}


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
@pytest.mark.parametrize(("image", "kernel"), SIZES)
def test_is_the_convolution_of_scipy_ndimage(image: tuple[int, int], kernel: tuple[int, int],
                                             boundary: str) -> None:
    k, x = noise(*kernel), noise(1, *image, seed=1)
    got = Blur(k, Space((1, *image)), boundary)(x)
    want = scipy.ndimage.convolve(x[0].numpy(), k.numpy(), mode=NDIMAGE_MODE[boundary])
    assert relative(got[0], want) < 1e-12


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
@pytest.mark.parametrize(("image", "kernel"), [s for s in SIZES if s[1][0] * s[1][1] % 2])
def test_is_the_convolution_of_scipy_signal(image: tuple[int, int], kernel: tuple[int, int],
                                            boundary: str) -> None:
    k, x = noise(*kernel), noise(1, *image, seed=1)
    got = Blur(k, Space((1, *image)), boundary)(x)
    want = scipy.signal.convolve2d(x[0].numpy(), k.numpy(), "same", SIGNAL_BOUNDARY[boundary])
    assert relative(got[0], want) < 1e-12


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
@pytest.mark.parametrize("size", [3, 4])
def test_wrong_centres_and_correlation_are_told_apart(size: int, boundary: str) -> None:
    k, x = noise(size, size), noise(1, 9, 9, seed=1)
    got = Blur(k, Space((1, 9, 9)), boundary)(x)[0]
    mode = NDIMAGE_MODE[boundary]
    for wrong in [
        scipy.ndimage.correlate(x[0].numpy(), k.numpy(), mode=mode),
        scipy.ndimage.convolve(x[0].numpy(), k.numpy(), mode=mode, origin=(-1, 0)),
        scipy.ndimage.convolve(x[0].numpy(), k.numpy(), mode=mode, origin=(0, -1)),
    ]:
        assert relative(got, wrong) > 1e-2


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_centre_element_is_no_shift(size: int, boundary: str) -> None:
    k = torch.zeros(size, size, dtype=torch.float64)
    k[size // 2, size // 2] = 1
    x = noise(2, 1, 7, 8)
    assert relative(Blur(k, Space((1, 7, 8)), boundary)(x), x) < 1e-14


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
def test_a_bright_pixel_becomes_the_kernel(boundary: str) -> None:
    k, x = noise(3, 5), torch.zeros(1, 9, 9, dtype=torch.float64)
    x[0, 4, 4] = 1
    got = Blur(k, Space((1, 9, 9)), boundary)(x)
    assert relative(got[0, 3:6, 2:7], k) < 1e-13
    assert got.abs().sum() == pytest.approx(float(k.abs().sum()))


NUMPY_PAD = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge",
             "periodic": "wrap", "zero": "constant"}
NDIMAGE_EDGE = {"reflect": "mirror", "symmetric": "reflect", "replicate": "nearest"}


@pytest.mark.parametrize("boundary", ["reflect", "symmetric", "replicate"])
@pytest.mark.parametrize(("image", "kernel"), SIZES)
def test_edges_are_those_of_scipy_ndimage(image: tuple[int, int], kernel: tuple[int, int],
                                          boundary: str) -> None:
    k, x = noise(*kernel), noise(1, *image, seed=1)
    got = Blur(k, Space((1, *image)), boundary)(x)
    modes = {name: scipy.ndimage.convolve(x[0].numpy(), k.numpy(), mode=mode)
             for name, mode in NDIMAGE_EDGE.items()}
    assert relative(got[0], modes.pop(boundary)) < 1e-12
    if max(kernel) > 3:  # the planted faults: another edge by the same name
        assert all(relative(got[0], wrong) > 1e-2 for wrong in modes.values())


@pytest.mark.parametrize("boundary", NUMPY_PAD)
@pytest.mark.parametrize(("image", "kernel"), SIZES)
def test_every_boundary_is_valid_after_padding(image: tuple[int, int], kernel: tuple[int, int],
                                               boundary: str) -> None:
    k, x = noise(*kernel), noise(1, *image, seed=1)
    arms = [(n - 1 - n // 2, n // 2) for n in kernel]
    padded = torch.from_numpy(np.pad(x[0].numpy(), arms, mode=NUMPY_PAD[boundary]))  # type: ignore[call-overload]
    want = scipy.signal.convolve2d(padded.numpy(), k.numpy(), "valid")
    assert relative(Blur(k, Space((1, *image)), boundary)(x)[0], want) < 1e-12
    valid = Blur(k, Space((1, *padded.shape)), "valid")
    assert valid.range.shape == (1, *image)
    assert relative(valid(padded[None])[0], want) < 1e-12
    backwards = scipy.signal.correlate2d(padded.numpy(), k.numpy(), "valid")
    assert kernel == (1, 1) or relative(valid(padded[None])[0], backwards) > 1e-2


@pytest.mark.parametrize("boundary", NUMPY_PAD | {"valid": ""})
@pytest.mark.parametrize(("image", "kernel"), SIZES)
def test_sums_over_small_kernels_are_the_transforms(image: tuple[int, int],
                                                    kernel: tuple[int, int], boundary: str) -> None:
    """Single precision on a CPU takes sums, double precision transforms."""
    k = noise(*kernel)
    A = Blur(k, Space((2, *image)), boundary)
    x, y = noise(5, *A.domain.shape, seed=1), noise(5, *A.range.shape, seed=2)

    def check(B: Blur) -> None:
        assert B._grid.is_summed(B.kernel, x.float())
        assert relative(B(x.float()), A(x).float()) < 1e-6
        assert relative(B.adjoint(y.float()), A.adjoint(y).float()) < 1e-6

    assert not A._grid.is_summed(k, x)
    check(A)
    leaf = x.float().requires_grad_()
    (pull,) = torch.autograd.grad(A(leaf), leaf, y.float())
    assert relative(pull, A.adjoint(y).float()) < 1e-6
    each = torch.vmap(A, in_dims=1, out_dims=1)(x.float().view(5, 1, *A.domain.shape))
    assert relative(each[:, 0], A(x).float()) < 1e-6
    for wrong in (k.flip(0), k.flip(1), k / 2) if min(kernel) > 1 else ():
        with pytest.raises(AssertionError):
            check(Blur(wrong, A.domain, boundary))


def test_sums_are_taken_where_they_are_quicker() -> None:
    x = noise(8, 1, 32, 32, dtype=torch.float32)

    def is_summed(kernel: Tensor, x: Tensor = x) -> bool:
        return Blur(kernel, Space((1, 32, 32)))._grid.is_summed(kernel, x)

    assert is_summed(noise(9, 9))
    assert not is_summed(noise(11, 11))
    assert is_summed(noise(11, 11), x.expand(2, 8, 1, 32, 32))
    assert not is_summed(noise(13, 13), x.expand(9, 8, 1, 32, 32))
    assert not is_summed(noise(5, 5), x[:1])
    assert not is_summed(noise(3, 3), x.to("meta"))
    assert not is_summed(noise(8, 1, 3, 3))
    assert not is_summed(noise(3, 3), x.double())


@pytest.mark.parametrize("boundary", ["reflect", "symmetric", "replicate", "valid"])
@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_adjoint_at_edges_is_that_of_the_matrix(boundary: str, kind: torch.dtype) -> None:
    for size, kernel in [((5, 6), (3, 4)), ((6, 5), (6, 5)), ((4, 7), (1, 2))]:
        A = Blur(noise(*kernel, dtype=kind), Space((1, *size), kind), boundary)
        y = noise(2, *A.range.shape, dtype=kind)
        assert relative(A.adjoint(y).flatten(1), y.flatten(1) @ dense(A).conj()) < 1e-13


def test_circular_is_another_name_of_periodic() -> None:
    k, space = noise(3, 3), Space((1, 8, 8))
    A = Blur(k, space, "circular")
    assert A.boundary == "periodic"
    assert torch.equal(A(x := noise(1, 8, 8)), Blur(k, space)(x))


def test_one_kernel_centre_with_deepinv() -> None:
    """deepinv correlates nothing either, and pads as we do, for kernels of odd size."""
    deepinv = pytest.importorskip("deepinv")
    k, x = noise(5, 3), noise(2, 1, 9, 8, seed=1)
    for boundary, theirs in [("periodic", "circular"), ("reflect", "reflect"), ("valid", "valid"),
                             ("replicate", "replicate"), ("zero", "constant")]:
        peer = deepinv.physics.Blur(filter=k[None, None], padding=theirs)
        assert relative(Blur(k, Space((1, 9, 8)), boundary)(x), peer.A(x)) < 1e-12


def test_boundaries_differ_only_at_the_edge() -> None:
    k, x, space = noise(3, 3), noise(1, 8, 8, seed=1), Space((1, 8, 8))
    difference = Blur(k, space)(x) - Blur(k, space, "zero")(x)
    assert difference[0, 1:-1, 1:-1].abs().max() < 1e-13
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
def test_complex_is_linear_in_both_parts(boundary: str) -> None:
    real, space = Space((1, 6, 7)), Space((1, 6, 7), torch.complex64)
    x, k = noise(3, 1, 6, 7, dtype=torch.complex128), noise(3, 2, dtype=torch.complex128)
    got = Blur(k, space, boundary)(x)
    a, b = Blur(k.real, real, boundary), Blur(k.imag, real, boundary)
    want = torch.complex(a(x.real) - b(x.imag), a(x.imag) + b(x.real))
    assert relative(got, want) < 1e-13


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
def test_adjoint_and_solve_against_the_matrix(boundary: str, kind: torch.dtype) -> None:
    space = Space((1, 5, 6), kind)
    A = Blur(noise(3, 4, dtype=kind), space, boundary)
    M = dense(A)
    y, shift = noise(2, 1, 5, 6, dtype=kind), torch.tensor([0.3, 2.0], dtype=torch.float64)
    assert relative(A.adjoint(y).reshape(2, -1), y.reshape(2, -1) @ M.conj()) < 1e-13
    got = A.solve(y, shift, max_iter=500, rtol=1e-13)
    for i in range(2):
        system = M.mH @ M + shift[i] * torch.eye(30, dtype=torch.float64)
        assert relative(got[i].flatten(), torch.linalg.solve(system, y[i].flatten())) < 1e-10


def test_periodic_solve_is_closed_form_and_agrees_with_cg() -> None:
    A = Blur(noise(3, 3), Space((1, 8, 9)))
    rhs, shift = noise(2, 3, 1, 8, 9, seed=1), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    direct = A.solve(rhs, shift, max_iter=0)
    assert relative(A.solve_cg(rhs, shift, max_iter=300, rtol=1e-13).x, direct) < 1e-11
    with pytest.raises(ValueError, match="one per item"):
        A.solve(rhs, torch.ones(4))


def test_solve_without_shift_leaves_removed_frequencies_out() -> None:
    A = Blur(torch.tensor([[0.25, 0.5, 0.25]]), Space((1, 4, 8)))  # exactly zero at Nyquist
    x = noise(1, 4, 8, dtype=torch.float32)
    solved = A.solve(A.normal(x), 0.0)
    assert bool(solved.isfinite().all())
    assert relative(A(solved), A(x)) < 1e-4


@pytest.mark.parametrize("boundary", ["periodic", "zero"])
def test_kernel_of_each_item(boundary: str) -> None:
    k, space = noise(3, 1, 4, 3), Space((2, 7, 8))
    x, shift = noise(5, 3, 2, 7, 8, seed=1), torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    A = Blur(k, space, boundary)
    singles = [Blur(k[i], space, boundary) for i in range(3)]
    for got, want in [
        (A(x), [B(x[:, i]) for i, B in enumerate(singles)]),
        (A.adjoint(x), [B.adjoint(x[:, i]) for i, B in enumerate(singles)]),
        (A.solve(x, shift, rtol=1e-12, max_iter=300),
         [B.solve(x[:, i], shift[i], rtol=1e-12, max_iter=300) for i, B in enumerate(singles)]),
    ]:
        assert relative(got, torch.stack(want, 1)) < 1e-10


def test_follows_the_precision_of_the_input() -> None:
    A = Blur(noise(3, 3), Space((1, 8, 8)))  # float64 kernel
    x = noise(1, 8, 8, seed=1)
    assert A(x).dtype == torch.float64
    assert A(x.float()).dtype == torch.float32
    assert relative(A(x.float()).double(), A(x)) < 1e-6
    assert A(x).dtype == torch.float64  # not what is kept of the call before


def test_spectrum_follows_the_kernel() -> None:
    space, x = Space((1, 8, 8)), noise(1, 8, 8, seed=2)
    one, two = Blur(noise(3, 3), space), Blur(noise(3, 3, seed=1), space)
    wanted = two(x)
    one(x)
    twin = copy.deepcopy(one)
    twin.load_state_dict(two.state_dict())
    assert list(twin.state_dict()) == ["kernel"]
    assert torch.equal(twin(x), wanted)
    twin.kernel.mul_(2)
    assert relative(twin(x), 2 * wanted) < 1e-14
    twin.kernel = one.kernel
    assert torch.equal(twin(x), one(x))
    assert relative(one.float()(x), one(x)) < 1e-6


@pytest.mark.parametrize("make", [
    lambda seed: Blur(noise(3, 3, seed=seed), Space((1, 6, 7))),
    lambda seed: VaryingBlur(noise(2, 3, 3, seed=seed), noise(2, 6, 7), Space((1, 6, 7))),
])
@pytest.mark.parametrize("saved", [False, True])
def test_copies_forget_the_kept_spectrum(make: Callable[[int], LinearOperator], saved: bool,
                                         ) -> None:
    A, x = make(0), noise(1, 6, 7)
    A.load_state_dict(make(1).state_dict())
    A.load_state_dict(make(2).state_dict())
    A(x)  # kept, of the second version of its kernel
    for loads in range(4):  # one of which has the version of the kernel that was copied
        B = copy.deepcopy(A)
        if saved:
            file = io.BytesIO()
            torch.save(A, file)
            file.seek(0)
            B = torch.load(file, weights_only=False)
        for seed in range(3, 3 + loads):
            B.load_state_dict(make(seed).state_dict())
        assert torch.equal(B(x), make(2 + loads)(x))


def test_kept_spectrum_serves_autograd_after_inference_mode() -> None:
    A, x = Blur(noise(3, 3), Space((1, 8, 8))), noise(1, 8, 8).requires_grad_()
    with torch.inference_mode():
        A(x)
    (pull,) = torch.autograd.grad(A(x).square().sum(), x)
    assert relative(pull, 2 * A.normal(x).detach()) < 1e-13
    with torch.inference_mode():
        made_inside = Blur(noise(3, 3), Space((1, 8, 8)))
    assert torch.equal(made_inside(x), A(x))


def test_gradient_in_the_kernel() -> None:
    space, x, v = Space((1, 6, 6)), noise(1, 6, 6), noise(1, 6, 6, seed=1)
    A = Blur(noise(3, 3).requires_grad_(), space)
    A(x)
    (pull,) = torch.autograd.grad((A(x) * v).sum(), A.kernel)
    pixels = torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)
    want = torch.stack([(Blur(p, space)(x) * v).sum() for p in pixels]).reshape(3, 3)
    assert relative(pull, want) < 1e-13


def test_whole_number_kernel_and_numpy() -> None:
    x = noise(1, 5, 5, dtype=torch.float32)
    ones: Any = np.ones((3, 3), np.float32)
    counted = Blur(torch.ones(3, 3, dtype=torch.int64), Space((1, 5, 5)))(x)
    assert torch.equal(counted, Blur(ones, Space((1, 5, 5)))(x))


@pytest.mark.parametrize("std", [0.5, 1.0, 2.3])
def test_gaussian_kernel_is_that_of_scipy(std: float) -> None:
    k, x = gaussian_kernel(std), noise(1, 32, 31)
    assert k.dtype == torch.float32
    assert float(k.sum()) == pytest.approx(1, abs=1e-6)
    got = Blur(k, Space((1, 32, 31)))(x)
    assert relative(got[0], scipy.ndimage.gaussian_filter(x[0].numpy(), std, mode="wrap")) < 1e-6
    assert gaussian_kernel(std, 5).shape == (5, 5)


def test_gaussian_kernel_turned_and_stretched() -> None:
    k = gaussian_kernel((1.0, 2.5), 21).double()
    i = torch.arange(21).double() - 10
    for axis, std in [(1, 1.0), (0, 2.5)]:
        assert float((k.sum(axis) * i**2).sum()) == pytest.approx(std**2, rel=2e-3)
    quarter = gaussian_kernel((1.0, 2.5), 21, angle=np.pi / 2)
    assert relative(quarter.double(), k.T) < 1e-6
    slanted = gaussian_kernel((1.0, 2.5), 21, angle=np.pi / 6).double()
    covariance = float((slanted * i[:, None] * i).sum())
    # the long axis, 30 degrees above the columns' direction: rows run down, so it is negative
    assert covariance == pytest.approx(-(2.5**2 - 1) * np.sin(np.pi / 3) / 2, rel=5e-3)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.5])
def test_motion_kernel_has_the_moments_of_a_line(angle: float) -> None:
    length = 9.0
    k = motion_kernel(length, angle, 13).double()
    assert float(k.sum()) == pytest.approx(1, abs=1e-6)
    i = torch.arange(13).double() - 6
    moments = [(k * a * b).sum().item() for a, b in
               [(i[:, None], i[:, None]), (i, i), (i[:, None], i)]]
    line = length**2 / 12
    wanted = [line * np.sin(angle) ** 2, line * np.cos(angle) ** 2,
              -line * np.sin(angle) * np.cos(angle)]
    # nearness to two pixels adds at most a quarter of a pixel squared to a variance
    assert all(-1e-3 <= m - w <= 0.2501 for m, w in zip(moments[:2], wanted[:2], strict=True))
    assert moments[2] == pytest.approx(wanted[2], abs=1e-2)
    assert (k * i).sum().abs() < 1e-6
    assert (k * i[:, None]).sum().abs() < 1e-6


def test_motion_kernel_of_whole_pixels() -> None:
    flat = motion_kernel(4.0, 0.0)
    assert flat.shape == (5, 5)
    assert relative(flat.double()[2], torch.tensor([0.125, 0.25, 0.25, 0.25, 0.125]).double()) < .02
    assert float(flat[[0, 1, 3, 4]].abs().max()) == 0
    assert relative(motion_kernel(0.0), torch.ones(1, 1)) == 0


def test_shake_kernel_repeats_and_fills_its_size() -> None:
    def draw(seed: int, **settings: float) -> Tensor:
        return shake_kernel(15, **settings, generator=torch.Generator().manual_seed(seed))

    k = draw(3, extent=1.0)
    assert torch.equal(k, draw(3, extent=1.0))
    assert not torch.equal(k, draw(4, extent=1.0))
    assert float(k.sum()) == pytest.approx(1, abs=1e-6)
    assert float(k.min()) >= 0
    used = (k > 0).nonzero()
    assert int((used.amax(0) - used.amin(0)).max()) == 14
    smooth, rough = draw(3, smoothness=1.0), draw(3, smoothness=0.05)
    assert int((rough > 0).sum()) > int((smooth > 0).sum())  # a longer path


SPACE = Space((1, 8, 8))
REFUSED: dict[str, Callable[[], Tensor | Blur]] = {
    "want a kernel no larger than the image": lambda: Blur(noise(9, 3), SPACE),
    "want finite kernel weights": lambda: Blur(torch.tensor([[float("nan")]]), SPACE),
    "want boundary 'periodic', 'zero', .*'valid', got 'same'":
        lambda: Blur(noise(3, 3), SPACE, "same"),
    "want a kernel of 2 spatial dimensions": lambda: Blur(noise(3), SPACE),
    "add a channel dimension": lambda: Blur(noise(3, 3, 3), SPACE),
    "want a space": lambda: Blur(noise(3), Space((8,))),
    "want a finite std > 0": lambda: gaussian_kernel(0.0),
    "want an odd size": lambda: gaussian_kernel(1.0, 4),
    "gaussian_kernel: want a finite angle": lambda: gaussian_kernel(1.0, 5, float("nan")),
    "one or two, got": lambda: gaussian_kernel((1.0, 0.0)),
    "want a finite length >= 0": lambda: motion_kernel(-1.0),
    "holds the path, got 5: at least 9": lambda: motion_kernel(8.0, 0.0, 5),
    "want 0 < extent <= 1": lambda: shake_kernel(9, extent=2.0),
    "shake_kernel: want an odd size": lambda: shake_kernel(8),
    "NaN or infinity in 1 of 1": lambda: Blur(torch.tensor([[float("inf")]]), SPACE),
    r"Blur\[\(1, 8, 8\) -> \(1, 8, 8\)\].forward: want \(\*batch, 1, 8, 8\)":
        lambda: Blur(noise(3, 3), SPACE)(noise(1, 8, 7)),
    r"Blur.*solve: want \(\*batch, 1, 8, 8\)":
        lambda: Blur(noise(3, 3), SPACE).solve(noise(8), 1.0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_refuses_a_complex_kernel_on_a_real_space() -> None:
    with pytest.raises(TypeError, match="complex kernel wants a complex space"):
        Blur(noise(3, 3, dtype=torch.complex128), SPACE)
