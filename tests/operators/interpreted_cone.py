"""The Triton kernels of cone beams on a CPU, by triton's interpreter: see interpreted_planar.py."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.operators.ct import ConeBeamCT, cone_torch, cone_triton, kernels
from tests.operators.test_cone import GEOMETRIES, check_adjoint, close, randn, turn

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_ct_kernels.py"

F32, F64 = torch.float32, torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:.*covers")
Fault = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other, each as long whatever its size."""
    monkeypatch.setattr(cone_triton, "_BLOCK", 1024)


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "present", lambda _: True)
    monkeypatch.setattr(kernels, "check_cone", lambda _: None)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Spoil what the kernels read of the views from here on."""
    numbers = cone_triton._numbers
    return lambda fault: monkeypatch.setattr(cone_triton, "_numbers",
                                             lambda *of: fault(numbers(*of)))


def moved(column: int) -> Fault:
    return lambda t: t + 1e-5 * (torch.arange(t.shape[1]) == column)


def check_agrees(name: str, items: int, dtype: torch.dtype, tolerance: float) -> None:
    """With plain torch in float64, whatever the precision of the kernels."""
    A, B = (GEOMETRIES[name](backend=b) for b in ("triton", "torch"))
    x, y = (randn(items, *s.shape, dtype=dtype) for s in (A.domain, A.range))
    close(A(x), B(x.double()).to(dtype), tolerance)
    close(A.adjoint(y), B.adjoint(y.double()).to(dtype), tolerance)


@pytest.mark.usefixtures("on_kernels")
@pytest.mark.parametrize("name", ["odd, sides differ", "helix", "any vectors", "one voxel"])
def test_kernels_are_plain_torch(name: str) -> None:
    check_agrees(name, 1, F64, 1e-13)


@pytest.mark.usefixtures("on_kernels")
@pytest.mark.parametrize("name", ["one row", "one column", "fine rows", "fine pixels"])
def test_detectors_narrower_than_what_a_voxel_covers(name: str) -> None:
    A = GEOMETRIES[name](backend="triton")
    y = randn(2, *A.range.shape, dtype=F64)
    for backend in ("torch", "numba"):
        close(A.adjoint(y), GEOMETRIES[name](backend=backend).adjoint(y), 1e-13)
    check_adjoint(A, F64)
    A._footprints = [(1, 1)] * len(A._footprints)
    with pytest.raises(AssertionError, match="mismatch"):
        check_adjoint(A, F64)


@pytest.mark.usefixtures("on_kernels")
def test_wrong_views_are_rejected(plant: Callable[[Fault], None]) -> None:
    check_agrees("odd, sides differ", 3, F32, 5e-7)
    # of source, way to the corner, down, right, and of what places voxels on the detector
    for column in (0, 4, 8, 11, 14):
        plant(moved(column))
        with pytest.raises(AssertionError, match="relative error"):
            check_agrees("odd, sides differ", 1, F32, 5e-7)


@pytest.mark.usefixtures("on_kernels")
def test_adjoint_with_rays_of_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Central rays as steep along two axes, exactly: both ways must choose alike."""
    vectors = torch.tensor([[8.0, -8, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1],
                            [8.0, 8, 0, 0, 0, 0, -1, 1, 0, 0, 0, 1]])
    A = ConeBeamCT.from_vectors((3, 4, 4), vectors, (3, 7), backend="triton")
    assert all(len(axes) > 1 for axes in A._axes)
    for dtype in (F32, F64):
        check_adjoint(A, dtype)
    monkeypatch.setattr(A, "_footprints", [(1, 1)] * 2)
    with pytest.raises(AssertionError, match="mismatch"):
        check_adjoint(A, F32)


@pytest.mark.usefixtures("on_kernels")
def test_gradients_are_the_kernels() -> None:
    A, B = (ConeBeamCT((2, 3, 2), turn(2), (3, 4), 9.0, backend=b) for b in ("triton", "torch"))
    x, v = (randn(2, *A.domain.shape, dtype=F64, seed=s) for s in (0, 1))
    x.requires_grad_()
    (pull,) = torch.autograd.grad(A(x).pow(3).sum() / 3, x, create_graph=True)
    close(pull.detach(), B.adjoint(B(x.detach()).square()), 1e-13)
    (again,) = torch.autograd.grad((pull * v).sum(), x)
    close(again, 2 * B.adjoint(B(x.detach()) * B(v)), 1e-13)
    y = randn(2, *A.range.shape, dtype=F64).requires_grad_()
    (push,) = torch.autograd.grad((A.adjoint(y) * v).sum(), y)
    close(push, B(v), 1e-13)
    assert A(torch.zeros(0, *A.domain.shape)).shape == (0, *A.range.shape)


@pytest.mark.usefixtures("on_kernels")
def test_places_far_from_the_first_voxel_lose_nothing() -> None:
    """1024 voxels wide, and few on the way of a ray, whose sums are short: float32 weights."""
    A = ConeBeamCT((2, 2, 1024), [0.02], (2, 70), 3000.0, detector_spacing=(1.0, 15.0),
                   backend="triton")
    x, y = randn(1, 2, 2, 1024), randn(1, 1, 2, 70)
    views, axes = A._views, A._axes
    for got, want, single in (
            (A(x[None])[0], cone_torch.project(x.double(), views, axes),
             cone_torch.project(x, views, axes)),
            (A.adjoint(y[None])[0],
             cone_torch.backproject(y.double(), views, axes, A._footprints),
             cone_torch.backproject(y, views, axes, A._footprints))):
        close(got.double(), want, 3e-7)
        with pytest.raises(AssertionError, match="relative error"):
            close(single.double(), want, 3e-6)


def test_kernels_are_checked_before_first_use(monkeypatch: pytest.MonkeyPatch,
                                              plant: Callable[[Fault], None]) -> None:
    monkeypatch.setattr(kernels, "present", lambda _: True)
    kernels.check_cone.cache_clear()
    A = ConeBeamCT(2, [0.3], (2, 2), 9.0, backend="triton")
    A(randn(1, 2, 2, 2))
    assert kernels.check_cone.cache_info().currsize == 1
    kernels.check_cone.cache_clear()
    for column, words in ((4, "want forward projections as in"),
                          (14, "want adjoint projections as in")):
        plant(moved(column))
        with pytest.raises(RuntimeError, match=words):
            A.adjoint(randn(1, 1, 2, 2))
        monkeypatch.undo()
        monkeypatch.setattr(kernels, "present", lambda _: True)
    kernels.check_cone.cache_clear()


def test_cpus_are_left_alone() -> None:
    A = ConeBeamCT(2, [0.3], (2, 2), 9.0)
    assert not A.on_kernels(torch.device("cpu"))
    B = ConeBeamCT(2, [0.3], (2, 2), 9.0, backend="triton")
    with pytest.raises(ValueError, match="backend triton is for GPUs, got a tensor on cpu"):
        B(randn(1, 2, 2, 2))
