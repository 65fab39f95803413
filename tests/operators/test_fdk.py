"""Feldkamp's formula for shifted, narrow and coarse detectors, against spheres and fans."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.operators.ct import ConeBeamCT, FanBeamCT, fbp, fdk
from tests.operators.test_cone import ball, chords, turn

N, SOURCE, DETECTOR = 32, 100.0, 40.0
FAR = SOURCE + DETECTOR
SPHERE = ((1.5, -1.0, 0.7), 12.0)
Method = Callable[[Tensor, ConeBeamCT], Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:.*covers")
parts = importlib.import_module("recon.operators.ct.fdk")  # the function has the same name


def scanner(columns: int = 48, shift: float = 0.0, rows: int = 48, views: int = 90,
            spacing: tuple[float, float] = (1.4, 1.4), **changed: Any) -> ConeBeamCT:
    return ConeBeamCT(N, turn(views), (rows, columns), SOURCE, DETECTOR, (0.0, shift),
                      detector_spacing=spacing, **changed)


def radii() -> Tensor:
    """Of voxels from the middle of the sphere."""
    k, i, j = (torch.arange(N) - (N - 1) / 2 for _ in range(3))
    x, y, z = (at - to for at, to in zip((j, -i, k), SPHERE[0], strict=True))
    return (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt()


def check_sphere(method: Method, A: ConeBeamCT, tolerance: float = 0.01) -> None:
    """1 inside, shell by shell and slice by slice, 0 outside; of integrals in closed form."""
    rows, columns = A.range.shape[2:]
    # the mean over a pixel, of its middle and towards its corners, which the sphere's edge needs
    y = torch.stack([chords(ConeBeamCT.from_vectors(N, moved(A, *by), (rows, columns)), *SPHERE)
                     for by in ((0, 0), (0.33, 0.33), (0.33, -0.33), (-0.33, 0.33),
                                (-0.33, -0.33))]).mean(0)
    x, r = method(y.float(), A)[0], radii()
    for low, high in ((0, 4), (4, 7), (7, 10)):
        assert float(x[(r >= low) & (r < high)].mean()) == pytest.approx(1, abs=tolerance)
    for z, at in zip(x, r, strict=True):
        if int((at < 9).sum()) > 60:
            assert float(z[at < 9].mean()) == pytest.approx(1, abs=tolerance)
    outside = (r > 14) & (torch.arange(N) - (N - 1) / 2).square().add(
        (torch.arange(N)[:, None] - (N - 1) / 2).square()).sqrt().lt(N / 2)
    assert abs(float(x[outside].mean())) < tolerance
    assert float(x[outside].abs().max()) < 0.3


def moved(A: ConeBeamCT, down: float, right: float) -> Tensor:
    v = A.vectors.clone()
    v[:, 3:6] += down * v[:, 9:12] + right * v[:, 6:9]
    return v


def plain(y: Tensor, A: ConeBeamCT) -> Tensor:
    """``c A^H (cos * ramp(cos * y))``: each ray as if seen twice, rays as if fine."""
    rows, columns = A.range.shape[2:]
    row, column = A.vectors[0, 11].abs(), A.vectors[0, 6:9].norm()
    v = (torch.arange(rows) - (rows - 1) / 2)[:, None] * row
    shift = (A.vectors[0, 3:6] - A.vectors[0, :3]) @ A.vectors[0, 6:9] / column
    u = (torch.arange(columns) - (columns - 1) / 2) * column + shift
    cosine = (FAR / (FAR**2 + u**2 + v**2).sqrt()).float()
    filtered = parts._ramp(cosine * y, float(column) * SOURCE / FAR)
    scale = math.pi / len(A.vectors) * (SOURCE / FAR) ** 2 * float(row * column)
    return scale * A.adjoint(cosine * filtered)


HALVES = {
    "right": (32, 11.0), "left": (32, -11.0), "little": (36, 7.0), "up to the axis": (24, 12.0)}


@pytest.mark.parametrize("name", HALVES)
def test_a_detector_shifted_to_one_side(name: str) -> None:
    A = scanner(*HALVES[name])
    check_sphere(fdk, A)
    with pytest.raises(AssertionError):
        check_sphere(plain, A)


def test_wrong_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    once, more = parts.measured_once, parts.unseen
    faults: list[tuple[str, Callable[..., Any]]] = [
        ("measured_once", lambda fan, radius: 0 * once(fan, radius) + 0.5),
        ("measured_once", lambda fan, radius: once(fan, radius).flip(-1)),
        ("measured_once", lambda fan, radius: once(fan, radius).sqrt()),
        ("measured_once", lambda fan, radius: 0.5 * once(fan, radius)),
        ("unseen", lambda *_: (0, 0)),
        ("unseen", lambda fan, radius: more(fan, radius)[::-1])]
    for name, fault in faults:
        with monkeypatch.context() as planted:
            planted.setattr(parts, name, fault)
            with pytest.raises(AssertionError):
                check_sphere(fdk, scanner(32, 11.0))


@pytest.mark.parametrize("spacing", [(1.0, 1.4), (2.0, 1.4), (1.1, 1.9)])
def test_slices_between_rows_are_as_bright_as_others(spacing: tuple[float, float]) -> None:
    """Where a voxel is 1.4 or 0.7 pixels the adjoint's sums are 10 and 30 % off."""
    A = scanner(math.ceil(68 / spacing[1]), rows=math.ceil(68 / spacing[0]), spacing=spacing)
    check_sphere(fdk, A)
    with pytest.raises(AssertionError):
        check_sphere(plain, A)


def check_slice(method: Method, row: float, shift: float) -> None:
    """One slice by one row is what the fan shows."""
    columns = 32 if shift else 48
    fan = FanBeamCT(N, turn(90), SOURCE, DETECTOR, columns, shift, detector_spacing=1.4)
    A = ConeBeamCT((1, N, N), turn(90), (1, columns), SOURCE, DETECTOR, (0.0, shift),
                   detector_spacing=(row, 1.4))
    y = fan(ball(N, (0.1, 0.1, 0.0), 0.6)[:, N // 2])
    got, want = method(y[:, :, None], A)[:, 0], fbp(y, fan)
    inside = ((torch.arange(N) - 15.5).square() + (torch.arange(N)[:, None] - 15.5).square()) < 225
    assert float((got - want)[..., inside].norm() / want[..., inside].norm()) < 0.04


def test_one_row_is_a_fan() -> None:
    for row in (0.2, 1.4, 3.0):
        for shift in (0.0, 11.0):
            check_slice(fdk, row, shift)
            with pytest.raises(AssertionError):
                check_slice(plain, row, 11.0)


def test_rows_go_on_where_the_detector_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    check_slice(fdk, 0.2, 0.0)
    monkeypatch.setattr(parts, "magnification", lambda _: 0.0)
    with pytest.raises(AssertionError):
        check_slice(fdk, 0.2, 0.0)


def test_rays_of_a_widened_detector_stay_in_place() -> None:
    A = scanner(9, 1.5, rows=7, views=5)
    x = torch.rand(A.domain.shape, generator=torch.Generator().manual_seed(0))
    before = A.vectors.clone()
    for rows, below, above in ((0, 0, 0), (2, 3, 0), (1, 0, 4)):
        B = A.widened(rows, below, above)
        assert B.range.shape == (1, 5, 7 + 2 * rows, 9 + below + above)
        inner = B(x)[..., rows : rows + 7, below : below + 9]
        assert torch.allclose(inner, A(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(A.vectors, before)


def test_batches_precision_and_gradients() -> None:
    A = ConeBeamCT(4, turn(5), (5, 5), 20.0, 8.0, (0.3, 1.0))
    y = torch.rand(2, 3, *A.range.shape, generator=torch.Generator().manual_seed(0))
    x = fdk(y, A)
    assert x.shape == (2, 3, 1, 4, 4, 4)
    assert torch.allclose(x[1, 2], fdk(y[1, 2], A), atol=1e-6)
    assert torch.allclose(fdk(1e-6 * y, A), 1e-6 * x, rtol=1e-4, atol=1e-12)
    assert torch.allclose(fdk(y.double(), A).float(), x, atol=1e-6)
    assert fdk(y.half(), A).dtype == torch.float16
    assert fdk(y[:0], A).shape == (0, 3, 1, 4, 4, 4)
    small = ConeBeamCT(2, turn(3), (2, 3), 20.0, 8.0, (0.3, 0.5))
    y = y[0, 0, :, :3, :2, :3].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: fdk(y, small), y)


@pytest.mark.parametrize(("A", "message"), [
    (lambda: scanner(24, 12.5), r"sees the axis, got one from 0\.5 to 24\.5"),
    (lambda: scanner(24, -12.5), r"got one from -24\.5 to -0\.5 \(scaled to the axis\)"),
    (lambda: scanner(rows=20, spacing=(2.5, 1.4)),
     r"slices of 0\.59 detector rows or more.* which are 1\.786 there, got a depth of 1:"),
])
def test_what_no_view_sees_is_refused(A: Callable[[], ConeBeamCT], message: str) -> None:
    operator = A()
    with pytest.raises(ValueError, match=message):
        fdk(torch.zeros(operator.range.shape), operator)


@pytest.mark.parametrize(("columns", "shift"), [(28, 0.0), (26, 1.0), (20, 7.0)])
def test_the_volume_may_be_wider_than_what_is_seen(columns: int, shift: float) -> None:
    """A body of 1 within the field of view, air around it."""
    A = scanner(columns, shift)
    y = chords(A, (0.5, -0.5, 0.0), 9.0)
    k, i, j = (torch.arange(N) - (N - 1) / 2 for _ in range(3))
    r = ((k[:, None, None]).square() + (-i[:, None] + 0.5).square() + (j - 0.5).square()).sqrt()
    assert float(fdk(y.float(), A)[0, r < 6].mean()) == pytest.approx(1, abs=0.01)
    if shift > 1:  # of both halves together the plain formula is right
        assert abs(float(plain(y.float(), A)[0, r < 6].mean()) - 1) > 0.03


def test_a_detector_as_wide_as_the_volume_is_enough() -> None:
    """As many columns as voxels, magnified: the last ray passes a little within the border."""
    A = scanner(32, 0.0)
    assert fdk(torch.zeros(A.range.shape), A).shape == A.domain.shape
