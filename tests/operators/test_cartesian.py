"""Cartesian MRI: convention, adjoint, items, refusals, and conjugate gradients on it."""

import cmath
import copy
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.check import check
from recon.operators.mri import CartesianMRI, cartesian
from recon.operators.mri.fourier import fft2c, ifft2c
from recon.operators.solve import conjugate_gradient

C64, C128 = torch.complex64, torch.complex128


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = C128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def sampled(*shape: int, seed: int = 0) -> Tensor:
    """A random mask with its zero frequency sampled."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[..., shape[-1] // 2] = True
    return mask


# (height, width, dtype of the maps) -> operator
KINDS: dict[str, Callable[..., CartesianMRI]] = {
    "one coil": lambda h, w, _: CartesianMRI((h, w)),
    "one coil, columns": lambda h, w, _: CartesianMRI((h, w), sampled(w)),
    "one coil, points": lambda h, w, _: CartesianMRI((h, w), sampled(h, w)),
    "coils": lambda h, w, dtype: CartesianMRI((h, w), None, noise(3, h, w, dtype=dtype)),
    "coils, columns": lambda h, w, dtype: CartesianMRI(
        (1, h, w), sampled(w), noise(3, h, w, dtype=dtype)),
    "coils, points": lambda h, w, dtype: CartesianMRI(
        (h, w), sampled(h, w), noise(3, h, w, dtype=dtype)),
}
SIZES = [(8, 6), (7, 9), (6, 5), (5, 10)]


def centred_by_numpy(x: Tensor) -> Tensor:
    shifted = np.fft.ifftshift(x.numpy(), axes=(-2, -1))
    return torch.from_numpy(np.fft.fftshift(np.fft.fft2(shifted, norm="ortho"), axes=(-2, -1)))


@pytest.mark.parametrize("size", SIZES)
def test_fourier_is_centred_and_unitary(size: tuple[int, int]) -> None:
    x = noise(2, *size)
    torch.testing.assert_close(fft2c(x), centred_by_numpy(x))
    torch.testing.assert_close(ifft2c(fft2c(x)), x)
    torch.testing.assert_close(torch.linalg.vector_norm(fft2c(x)), torch.linalg.vector_norm(x))
    point = torch.zeros(size, dtype=C128)
    point[size[0] // 2, size[1] // 2] = 1
    # the centre of the image has no phase in k-space: what a wrong order of shifts breaks
    torch.testing.assert_close(fft2c(point), torch.full_like(point, 1 / math.sqrt(point.numel())))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("dtype", "dot", "close"), [(C64, 1e-5, 1e-6), (C128, 1e-11, 1e-13)])
def test_operator(size: tuple[int, int], kind: str, batch: tuple[int, ...], dtype: torch.dtype,
                  dot: float, close: float) -> None:
    A = KINDS[kind](*size, dtype)
    x = noise(*batch, *A.domain.shape, seed=1, dtype=dtype)
    y = noise(*batch, *A.range.shape, seed=2, dtype=dtype)
    Ax, Ay = A(x), A.adjoint(y)
    assert Ax.dtype == Ay.dtype == A.normal(x).dtype == dtype

    maps = torch.ones(1, *size, dtype=dtype) if A.maps is None else A.maps
    by_definition = torch.where(A.mask, centred_by_numpy(maps * x).to(dtype), 0)
    torch.testing.assert_close(Ax, by_definition, atol=3 * close * float(Ax.abs().max()), rtol=0)

    left, right = torch.vdot(Ax.flatten(), y.flatten()), torch.vdot(x.flatten(), Ay.flatten())
    assert abs(left - right) <= dot * Ax.norm() * y.norm()
    normal = A.adjoint(Ax)
    torch.testing.assert_close(A.normal(x), normal, atol=close * float(normal.norm()), rtol=0)


def test_unsampled_entries_are_plus_zero() -> None:
    y = CartesianMRI((6, 8), sampled(8), -torch.ones(2, 6, 8, dtype=C64))(noise(1, 6, 8, dtype=C64))
    parts = torch.view_as_real(y)
    assert (parts == 0).any()
    assert not parts[parts == 0].signbit().any()


@pytest.mark.parametrize("form", ["columns", "points", "maps", "both"])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_items_have_their_own(form: str, one_by_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if one_by_one:  # the path of large data: items, coils and rows in blocks
        monkeypatch.setattr(cartesian, "_WHOLE_BATCH_BYTES", 0)
        monkeypatch.setattr(cartesian, "_BLOCK_BYTES", 400)
    items, coils, h, w = 3, 2, 6, 7
    mask = sampled(items, 1, h if form == "points" else 1, w)
    if form == "maps":
        mask = sampled(w)
    maps = noise(items, coils, h, w) if form in ("maps", "both") else None
    A = CartesianMRI((h, w), mask, maps)
    x, y = noise(2, items, 1, h, w, seed=3), noise(2, items, *A.range.shape, seed=4)
    shift = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for i in range(items):
        alone = CartesianMRI((h, w), mask if mask.ndim == 1 else mask[i],
                             None if maps is None else maps[i])
        torch.testing.assert_close(A(x)[:, i], alone(x[:, i]))
        torch.testing.assert_close(A.adjoint(y)[:, i], alone.adjoint(y[:, i]))
        torch.testing.assert_close(A.normal(x)[:, i], alone.normal(x[:, i]))
        torch.testing.assert_close(A.solve(x, shift, rtol=1e-12)[:, i],
                                   alone.solve(x[:, i], float(shift[i]), rtol=1e-12))
    with pytest.raises(ValueError, match=r"holds masks or maps for items \(3,\), got a batch of"):
        A(x[:, :2])
    with pytest.raises(ValueError, match="its last dimensions must be"):
        A.normal(x[0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    A = KINDS[kind](7, 6, C128)
    x, y = noise(2, 2, *A.domain.shape), noise(2, 2, *A.range.shape, seed=1)
    whole = A(x), A.adjoint(y), A.normal(x)
    monkeypatch.setattr(cartesian, "_WHOLE_BATCH_BYTES", 0)
    for block in (1, 1500):
        monkeypatch.setattr(cartesian, "_BLOCK_BYTES", block)
        torch.testing.assert_close((A(x), A.adjoint(y), A.normal(x)), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_differentiable(kind: str) -> None:
    A = KINDS[kind](4, 5, C128)
    x = noise(2, *A.domain.shape).requires_grad_()
    y = noise(2, *A.range.shape).requires_grad_()
    assert torch.autograd.gradcheck(A, (x,))
    assert torch.autograd.gradcheck(A.adjoint, (y,))
    assert torch.autograd.gradcheck(A.normal, (x,))
    if A.maps is None:
        assert torch.autograd.gradcheck(lambda rhs: A.solve(rhs, 0.3), (x,))
    torch.testing.assert_close(A.vjp(x, y), LinearOperator.adjoint(A, y))


def test_maps_receive_gradients() -> None:
    x, y, maps = noise(1, 4, 5), noise(2, 4, 5), noise(2, 4, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: CartesianMRI((4, 5), sampled(5), m).normal(x), maps)
    assert torch.autograd.gradcheck(lambda m: CartesianMRI((4, 5), sampled(5), m).adjoint(y), maps)


def test_mask_forms_agree() -> None:
    columns = sampled(7)
    x = noise(1, 6, 7)
    A = CartesianMRI((6, 7), columns)
    wide = columns.expand(1, 1, 6, 7)
    for mask in (columns.to(torch.uint8), columns.int(), columns.double(), columns.tolist(),
                 wide, wide[0], wide[0, 0], wide[..., :1, :], wide[0, :, :1], wide[0, 0, :1]):
        B = CartesianMRI((6, 7), mask)
        assert B.mask.shape == (1, 1, 7)  # always the cheaper path
        assert torch.equal(A(x), B(x))


def test_moves_copies_and_saves() -> None:
    A = KINDS["coils, columns"](6, 7, C64)
    x = noise(1, 6, 7)
    B = copy.deepcopy(A).to(torch.float64)
    torch.testing.assert_close(A(x), B(x))  # complex128 in, complex128 out, maps promoted
    B = CartesianMRI((6, 7), torch.ones(7), torch.ones(3, 6, 7, dtype=C64))
    B.load_state_dict(A.state_dict())
    assert torch.equal(A.normal(x), B.normal(x))


@pytest.mark.parametrize("kind", KINDS)
def test_library_contract_and_nothing_read_back(kind: str) -> None:
    A = KINDS[kind](6, 7, C64)
    assert check(A).passed, str(check(A))
    A.to("meta")  # where reading any value is an error
    x, y = A.domain.randn(2, device="meta"), A.range.randn(2, device="meta")
    for result, like in ((A(x), y), (A.adjoint(y), x), (A.normal(x), x)):
        assert result.device.type == "meta"
        assert result.shape == like.shape


@pytest.mark.parametrize("kind", ["one coil", "one coil, columns", "one coil, points"])
def test_closed_form_solve(kind: str) -> None:
    A = KINDS[kind](7, 6, C128)
    rhs = noise(3, 1, 7, 6)
    for shift in (0.2, torch.tensor([0.1, 1.0, 10.0])):
        x = A.solve(rhs, shift)
        torch.testing.assert_close(A.normal(x) + A.per_item(shift, rhs) * x, rhs)
        torch.testing.assert_close(x, A.solve_cg(rhs, shift, rtol=1e-13).x)
    x = A.solve(A.adjoint(A(rhs)), 0.0)  # the pseudo-inverse
    torch.testing.assert_close(x, A.normal(rhs))


@pytest.mark.parametrize(("mask", "maps", "error", "message"), [
    (torch.ones(320), None, ValueError,
     "mask has 320 columns but the k-space has 368: pass the mask of this file, or crop"),
    (torch.ones(5, 368), None, ValueError, "mask has 5 rows but the k-space has 4"),
    (torch.ones(2, 1, 368), None, ValueError, r"where the coils are.*\(items, 1, 1, width\)"),
    (torch.full((368,), 0.5), None, ValueError, "mask holds 0.5, want zeros and ones only"),
    (torch.full((368,), math.nan), None, ValueError, "mask holds nan, want zeros and ones only"),
    (torch.zeros(368), None, ValueError, "mask is all zero: nothing is measured"),
    (torch.stack([torch.ones(1, 1, 368), torch.zeros(1, 1, 368)]), None, ValueError,
     r"mask of item \(1,\) is all zero"),
    (None, torch.ones(2, 4, 320, dtype=C64), ValueError, r"maps \(coils, 4, 368\).*got \(2, 4, 3"),
    (None, torch.ones(4, 368, dtype=C64), ValueError, r"want maps \(coils, 4, 368\)"),
    (None, torch.zeros(2, 4, 368, dtype=C64), ValueError, "maps are all zero"),
    (None, torch.full((2, 4, 368), math.inf + 0j), ValueError, r"not finite at coil \(0,\)"),
    (None, torch.ones(2, 4, 368), TypeError, "want complex maps, got torch.float32: pass maps.to"),
    (torch.ones(2, 1, 1, 368), torch.ones(3, 2, 4, 368, dtype=C64), ValueError,
     r"mask is for items \(2,\), maps for \(3,\)"),
])
def test_refusals(mask: Tensor | None, maps: Tensor | None, error: type[Exception],
                  message: str) -> None:
    with pytest.raises(error, match=message):
        CartesianMRI((4, 368), mask, maps)


def test_refuses_other_shapes() -> None:
    for shape in ((5,), (2, 3, 4, 5), (0, 5)):
        with pytest.raises(ValueError, match=r"want a shape \(height, width\) or \(depth.*got"):
            CartesianMRI(shape)
    with pytest.raises(ValueError, match=r"want \(\*batch, 1, 4, 5\), got"):
        CartesianMRI((4, 5))(noise(2, 4, 5))
    with pytest.raises(TypeError, match="want a complex floating tensor"):
        CartesianMRI((4, 5))(noise(1, 4, 5).real)


Solver = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor | None, int], Tensor]


def library_cg(operator: Callable[[Tensor], Tensor], b: Tensor, x0: Tensor | None,
               steps: int) -> Tensor:
    return conjugate_gradient(operator, b, x0, max_iter=steps, rtol=0).x


def planted_cg(operator: Callable[[Tensor], Tensor], b: Tensor, x0: Tensor | None, steps: int, *,
               conjugate: bool = True, per_item: bool = True) -> Tensor:
    """Textbook conjugate gradients, right or with one of the two faults found in the field."""
    def dot(p: Tensor, q: Tensor) -> Tensor:
        product = p.conj() * q if conjugate else p * q
        return product.sum((-3, -2, -1), keepdim=True) if per_item else product.sum()

    x = torch.zeros_like(b) if x0 is None else x0
    r = b - operator(x)
    p = r
    for _ in range(steps):
        Ap = operator(p)
        alpha = dot(r, r) / dot(p, Ap)
        x, r_next = x + alpha * p, r - alpha * Ap
        p = r_next + dot(r_next, r_next) / dot(r, r) * p
        r = r_next
    return x


unconjugated = functools.partial(planted_cg, conjugate=False)
whole_batch = functools.partial(planted_cg, per_item=False)


def sense(n: int = 64) -> tuple[CartesianMRI, Tensor]:
    """Eight smooth phased coils of unit norm, every fourth column; and a complex object."""
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    y = x[:, None]
    maps = []
    for i in range(8):
        a = math.pi * i / 4
        far = (y - 1.2 * math.sin(a)) ** 2 + (x - 1.2 * math.cos(a)) ** 2
        maps.append(torch.polar(torch.exp(-far), a + 2 * x * math.sin(a) + 2 * y * math.cos(2 * a)))
    stacked = torch.stack(maps)
    A = CartesianMRI((n, n), torch.arange(n) % 4 == 0, stacked / stacked.norm(dim=0))
    return A, torch.polar((y**2 + x**2 < 0.7) * (1 + 0.5 * x * y), 2 * x + 3 * y * y)[None]


def assert_converges(solver: Solver) -> None:  # T2
    A, truth = sense()
    b = truth + A.normal(truth)
    for steps, limit in ((5, 1e-4), (10, 1e-8)):
        x = solver(lambda v: v + A.normal(v), b, None, steps)
        assert (b - x - A.normal(x)).norm() <= limit * b.norm()
    b, start = A.normal(truth), 0.9 * truth.abs() + 0j
    errors = []
    for steps in range(0, 31, 3):
        e = solver(A.normal, b, start, steps) - truth
        errors.append(float(torch.vdot(e.flatten(), A.normal(e).flatten()).real))
    assert all(after <= before for before, after in itertools.pairwise(errors))


def test_t2_converges_and_never_recedes() -> None:
    assert_converges(library_cg)
    with pytest.raises(AssertionError):
        assert_converges(unconjugated)


def plain_rhs(x0: Tensor, pulled: Tensor, gamma: float) -> Tensor:
    return x0 / gamma + pulled


def rotated_rhs(x0: Tensor, pulled: Tensor, gamma: float) -> Tensor:
    return x0 / gamma + (1 + 1j) * pulled  # two real channels added to a complex one


Rhs = Callable[[Tensor, Tensor, float], Tensor]


def proximal(A: LinearOperator, x0: Tensor, y: Tensor, gamma: float, steps: int,
             rhs: Rhs = plain_rhs) -> Tensor:
    """``argmin gamma / 2 |A x - y|^2 + |x - x0|^2 / 2`` by conjugate gradients from ``x0``."""
    return A.solve_cg(rhs(x0, A.adjoint(y), gamma), 1 / gamma, x0, steps, 0.0).x


def assert_one_step(rhs: Rhs) -> None:  # T3
    for kind in ("one coil, columns", "one coil, points"):
        A = KINDS[kind](12, 15, C128)
        x0, y, gamma = noise(1, 12, 15), A(noise(1, 12, 15, seed=1)), 3.0
        mixed = torch.where(A.mask, (fft2c(x0) + gamma * y) / (1 + gamma), fft2c(x0))
        x = proximal(A, x0, y, gamma, 1, rhs)
        torch.testing.assert_close(x, ifft2c(mixed), atol=1e-12, rtol=0)
        closed = A.solve(rhs(x0, A.adjoint(y), gamma), 1 / gamma)
        torch.testing.assert_close(closed, ifft2c(mixed), atol=1e-12, rtol=0)
        projected = A.solve_cg(A.adjoint(y), 0.0, x0, 1, 0.0).x
        torch.testing.assert_close(projected, ifft2c(torch.where(A.mask, y, fft2c(x0))))


def test_t3_one_coil_takes_one_step() -> None:
    assert_one_step(plain_rhs)
    with pytest.raises(AssertionError):
        assert_one_step(rotated_rhs)


def assert_within_bound(solver: Solver) -> None:  # T4
    A, truth = sense()
    x0 = noise(1, 64, 64, seed=5)
    for gamma, counts in [(1.0, (2, 5, 9)), (10.0, (5, 15, 24)), (100.0, (10, 40, 73))]:
        def shifted(v: Tensor, gamma: float = gamma) -> Tensor:
            return v + gamma * A.normal(v)

        def length(e: Tensor, M: Callable[[Tensor], Tensor] = shifted) -> float:
            return float(torch.vdot(e.flatten(), M(e).flatten()).real.sqrt())

        b = shifted(truth)
        root = math.sqrt(1 + gamma)
        for steps in counts:
            error = length(solver(shifted, b, x0, steps) - truth) / length(x0 - truth)
            assert error <= 2 * ((root - 1) / (root + 1)) ** steps


def test_t4_iteration_bound() -> None:
    assert_within_bound(library_cg)
    with pytest.raises(AssertionError):
        assert_within_bound(unconjugated)


def assert_proximal(rhs: Rhs) -> None:  # T5
    A = CartesianMRI((5, 6), torch.tensor([1, 0, 0, 1, 0, 0]), noise(2, 5, 6, seed=7))
    x0, truth = noise(1, 5, 6, seed=1), noise(1, 5, 6, seed=2)
    y = A(truth)
    torch.testing.assert_close(proximal(A, x0, y, 1e-9, 40, rhs), x0, atol=1e-6, rtol=0)
    torch.testing.assert_close(proximal(A, truth, y, 2.0, 40, rhs), truth)  # a fixed point
    matrix = A(torch.eye(30, dtype=C128).view(30, 1, 5, 6)).flatten(1).mT
    nearest = x0 + (torch.linalg.pinv(matrix) @ (y - A(x0)).flatten()).view(1, 5, 6)
    torch.testing.assert_close(proximal(A, x0, y, 1e7, 200, rhs), nearest, atol=1e-4, rtol=0)
    turn = cmath.exp(1.1j)
    torch.testing.assert_close(proximal(A, turn * x0, turn * y, 2.0, 40, rhs),
                               turn * proximal(A, x0, y, 2.0, 40, rhs))


def test_t5_proximal_limits() -> None:
    assert_proximal(plain_rhs)
    for fault in (rotated_rhs, lambda x0, pulled, gamma: x0.real / gamma + pulled):
        with pytest.raises(AssertionError):
            assert_proximal(fault)


def assert_items_alone(solver: Solver) -> None:  # T6
    A, _ = sense(16)
    b, x0 = noise(2, 1, 16, 16), noise(2, 1, 16, 16, seed=1)
    b[1] *= 1e-3
    kept = b.clone(), x0.clone()
    both = solver(lambda v: A.normal(v) + 0.1 * v, b, x0, 5)
    torch.testing.assert_close((b, x0), kept, atol=0, rtol=0)  # no input was written to
    for i in range(2):
        alone = solver(lambda v: A.normal(v) + 0.1 * v, b[i], x0[i], 5)
        assert float((both[i] - alone).norm() / alone.norm()) < 1e-6


def test_t6_items_are_solved_alone() -> None:
    assert_items_alone(library_cg)
    assert_items_alone(planted_cg)  # without its faults
    with pytest.raises(AssertionError):
        assert_items_alone(whole_batch)
