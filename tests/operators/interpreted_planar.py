"""The Triton kernels of parallel and fan beams on a CPU, by triton's interpreter.

``test_ct_kernels.py`` runs this file in a process of its own: triton asks for the interpreter when
it is first imported.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.operators.ct import ParallelBeamCT, gather_triton, kernels
from recon.operators.ct.gather import Gather
from recon.operators.ct.geometry import Fan, Geometry, Parallel
from recon.operators.ct.planar import PlanarCT
from tests.operators.test_ct import check_adjoint, close, geometry, randn, spread

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_ct_kernels.py"

CPU = torch.device("cpu")
F32, F64 = torch.float32, torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:.*covers")
Fault = Callable[[gather_triton.Tables], gather_triton.Tables]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other, each as long whatever its size."""
    monkeypatch.setattr(gather_triton, "_RAYS", 512)
    monkeypatch.setattr(gather_triton, "_PIXELS", 1024)


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The matrix-free form takes the kernels here, as on a GPU; names of those that ran."""
    ran: list[str] = []

    def named(name: str, kernel: Callable[[Gather, Tensor], Tensor]) -> Any:
        def run(gather: Gather, of: Tensor) -> Tensor:
            ran.append(name)
            return kernel(gather, of)

        return run

    monkeypatch.setattr(kernels, "present", lambda _: True)
    monkeypatch.setattr(kernels, "check_planar", lambda _: None)
    for name in ("project", "backproject"):
        monkeypatch.setattr(gather_triton, name, named(name, getattr(gather_triton, name)))
    yield ran
    gather_triton._TABLES.clear()


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Spoil what the kernels read from here on."""
    build = gather_triton._tables

    def planted(fault: Fault) -> None:
        gather_triton._TABLES.clear()
        monkeypatch.setattr(gather_triton, "_tables", lambda *of: fault(build(*of)))

    return planted


def check_agrees(A: PlanarCT, B: PlanarCT, items: int, dtype: torch.dtype) -> None:
    tolerance = 1e-13 if dtype == F64 else 2e-6
    x, y = (randn(items, *s.shape, dtype=dtype) for s in (A.domain, A.range))
    close(A(x), B(x), tolerance)
    close(A.adjoint(y), B.adjoint(y), tolerance)


@pytest.mark.parametrize("name", [
    "odd", "large offset", "rectangular", "oblong pixels", "fine bins", "one pixel", "one view",
    "fan", "curved fan", "near source", "fan of oblong pixels"])
def test_kernels_are_the_stored_matrix(name: str, on_kernels: list[str]) -> None:
    B = geometry(name, method="matrix")
    A = geometry(name, method="gather")
    check_agrees(A, B, 1, F64)
    if name in ("rectangular", "oblong pixels", "curved fan"):
        check_agrees(A, B, 3, F32)
    assert {"project", "backproject"} == set(on_kernels)


@pytest.mark.usefixtures("on_kernels")
def test_wrong_tables_are_rejected(plant: Callable[[Fault], None]) -> None:
    B = geometry("limited", method="matrix")
    faults: list[Fault] = [
        lambda t: t._replace(at=t.at + 1e-5),
        lambda t: t._replace(slope=t.slope.float().double()),
        lambda t: t._replace(length=t.length * (1 + 1e-5)),
        lambda t: t._replace(taps=(1, 1)),
        lambda t: t._replace(steep=1 - t.steep),
        lambda t: t._replace(seen=t.seen.roll(1, 0)),
    ]
    for fault in faults:
        plant(fault)
        with pytest.raises(AssertionError, match="relative error"):
            check_agrees(geometry("limited", method="gather"), B, 1, F64)


@pytest.mark.usefixtures("on_kernels")
def test_adjoint(plant: Callable[[Fault], None]) -> None:
    for name, dtype in (("rectangular", F32), ("fan of oblong pixels", F64)):
        check_adjoint(geometry(name, method="gather"), (3,), dtype)
    plant(lambda t: t._replace(taps=(1, 1)))  # which only the adjoint reads
    with pytest.raises(AssertionError, match="mismatch"):
        check_adjoint(geometry("rectangular", method="gather"), (3,), F32)


@pytest.mark.usefixtures("on_kernels")
def test_gradients_are_the_kernels() -> None:
    A = ParallelBeamCT((5, 4), spread(3), 7, method="gather")
    B = ParallelBeamCT((5, 4), spread(3), 7, method="matrix")
    x, v = randn(2, 1, 5, 4, dtype=F64).requires_grad_(), randn(2, 1, 5, 4, dtype=F64, seed=1)
    (pull,) = torch.autograd.grad(A(x).pow(3).sum() / 3, x, create_graph=True)
    close(pull.detach(), B.adjoint(B(x.detach()).square()), 1e-13)
    (again,) = torch.autograd.grad((pull * v).sum(), x)
    close(again, 2 * B.adjoint(B(x.detach()) * B(v)), 1e-13)
    y = randn(2, 1, 3, 7, dtype=F64).requires_grad_()
    (push,) = torch.autograd.grad((A.adjoint(y) * v).sum(), y)
    close(push, B(v), 1e-13)


@pytest.mark.usefixtures("on_kernels")
def test_the_same_bits_again_and_alone_and_in_many_programs(
        monkeypatch: pytest.MonkeyPatch) -> None:
    A = geometry("rectangular", method="gather")
    x, y = randn(3, *A.domain.shape), randn(3, *A.range.shape)
    Ax, together = A(x), A.adjoint(y)
    assert torch.equal(together, A.adjoint(y))
    assert torch.equal(together[1], A.adjoint(y[1]))
    monkeypatch.setattr(gather_triton, "_RAYS", 32)
    monkeypatch.setattr(gather_triton, "_PIXELS", 64)
    assert torch.equal(A(x), Ax)
    assert torch.equal(A.adjoint(y), together)
    assert A(torch.zeros(0, *A.domain.shape)).shape == (0, *A.range.shape)


@pytest.mark.usefixtures("on_kernels")
def test_a_number_that_is_none_stays_where_it_is() -> None:
    """Weights of zero read nothing: what is beside a ray does not reach it."""
    A = ParallelBeamCT(5, [0.0], 5, method="gather")
    x, y = torch.ones(1, 5, 5), torch.ones(1, 1, 5)
    x[0, 2, 1], y[0, 0, 3] = torch.nan, torch.inf
    assert A.adjoint(y)[0].isinf().nonzero()[:, 1].tolist() == [3] * 5
    assert A(x)[0, 0].isnan().nonzero()[:, 0].tolist() in ([1], [0, 1])


def wide(shape: tuple[int, int], fan: bool) -> Geometry:
    """A few rays through all of an image of that shape."""
    angles = torch.tensor([0.785, 1.5], dtype=F64)
    bins, spacing = 16, 1.3 * max(shape) / 16
    if fan:
        return Fan(angles, bins, spacing, 0.3, (1.0, 1.0), source=900.0, detector=300.0,
                   curved=True)
    return Parallel(angles, bins, spacing, 0.3, (1.0, 1.0))


def weight_error(shape: tuple[int, int], fan: bool) -> float:
    """Of the forward's float32 weights against float64 ones, of noise of order 1.

    An integral and its error grow alike with the root of the steps: this is the error of a weight.
    """
    rays = wide(shape, fan)
    x = randn(shape[0] * shape[1], 1, dtype=F64)
    got = gather_triton.project(Gather(rays, shape, F32), x)
    want = Gather(rays, shape, F64).project(x)
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("fan", [False, True])
def test_places_far_from_the_first_pixel_lose_nothing(
        fan: bool, plant: Callable[[Fault], None]) -> None:
    """1024 x 1024: weights are rounded to float32 once; places in float32 would cost 1e-5."""
    assert weight_error((1024, 1024), fan) < 5e-8
    plant(lambda t: t._replace(at=t.at.float().double(), slope=t.slope.float().double()))
    assert weight_error((1024, 1024), fan) > 5e-6
    gather_triton._TABLES.clear()


@pytest.mark.parametrize("shape", [(3, 1024), (1024, 3)])
def test_adjoint_far_from_the_first_pixel(shape: tuple[int, int],
                                          plant: Callable[[Fault], None]) -> None:
    rays = Parallel(torch.tensor([0.2, 1.5], dtype=F64), 1030, 1.0, 0.3, (1.0, 1.0))
    y = randn(2060, 1, dtype=F64)
    want = Gather(rays, shape, F64).backproject(y)

    def error() -> float:
        got = gather_triton.backproject(Gather(rays, shape, F32), y)
        return float((got - want).norm() / want.norm())

    assert error() < 5e-8
    plant(lambda t: t._replace(at=t.at.float().double()))
    assert error() > 5e-6
    gather_triton._TABLES.clear()


def test_kernels_are_checked_before_first_use(monkeypatch: pytest.MonkeyPatch,
                                              plant: Callable[[Fault], None]) -> None:
    monkeypatch.setattr(kernels, "present", lambda _: True)
    kernels.check_planar.cache_clear()
    A = ParallelBeamCT(4, spread(2), 6, method="gather")
    A(randn(1, 4, 4))
    assert kernels.check_planar.cache_info().currsize == 1
    kernels.check_planar.cache_clear()
    for fault, words in ((lambda t: t._replace(at=t.at + 1e-3), "want forward projections as in"),
                         (lambda t: t._replace(taps=(1, 1)), "want adjoint projections as in"),
                         (lambda t: t._replace(length=t.length[:0].new_tensor(torch.nan).expand(
                             len(t.length)).clone()), r"got a relative difference of nan"),
                         (lambda t: t._replace(at=None), "do not run on cpu")):
        plant(fault)
        for _ in range(2):  # refused every time, never answered otherwise
            with pytest.raises(RuntimeError, match=words):
                A.adjoint(randn(1, 2, 6))
    kernels.check_planar.cache_clear()
    gather_triton._TABLES.clear()


def test_cpus_are_left_alone() -> None:
    assert not kernels.present(CPU)
    assert not kernels.present(torch.device("meta"))
    A = ParallelBeamCT(4, spread(2), 6, method="gather")
    A(randn(1, 4, 4))
    assert A.geometry not in gather_triton._TABLES
