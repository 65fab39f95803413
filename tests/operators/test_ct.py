"""CT of a plane against its definition, closed forms, scikit-image, and planted faults."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from recon.operators.base import LinearOperator
from recon.operators.ct import FanBeamCT, ParallelBeamCT
from recon.operators.ct.geometry import settled
from recon.operators.ct.joseph import count_taps, joseph_rows
from recon.operators.ct.planar import PlanarCT, angles_of
from recon.operators.ct.symmetry import Method
from tests.operators.ellipses import (
    DISC,
    SHEPP_LOGAN,
    Body,
    fan_integrals,
    fan_lines,
    integrals,
    picture,
)

PI = math.pi


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These problems are tiny: on busy cores two threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spread(views: int, over: float = PI) -> Tensor:
    return torch.arange(views, dtype=torch.float64) * over / views


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# name: (size, angles, detectors, keywords); a fan has a source
GEOMETRIES: dict[str, tuple[Any, Tensor, int | None, dict[str, Any]]] = {
    "even": (16, spread(12), None, {}),
    "odd": (15, spread(7), 24, {}),
    "offset": (16, spread(12), 25, {"detector_offset": 0.25}),
    "large offset": (12, spread(9, 2 * PI), 31, {"detector_offset": -6.3}),
    "rectangular": ((10, 17), spread(11), None, {"detector_offset": 0.5}),
    "oblong pixels": ((9, 12), spread(8), None, {"pixel_size": (1.3, 0.6)}),
    "random": (13, randn(9, dtype=torch.float64, seed=3) * 5, 20, {}),
    "limited": (16, spread(8, PI / 3), 24, {"pixel_size": 0.7, "detector_spacing": 0.9}),
    "fine bins": (11, spread(6), 60, {"detector_spacing": 0.31}),
    "repeated": (16, torch.cat([spread(6, 2 * PI), spread(6, 2 * PI)]), 23, {}),
    "one pixel": (1, spread(5), None, {}),
    "one view": ((9, 4), torch.tensor([0.3], dtype=torch.float64), None, {}),
    "fan": (16, spread(12, 2 * PI), None, {"source_distance": 30.0}),
    "curved fan": (15, spread(8, 2 * PI), 24, {"source_distance": 30.0, "curved": True,
                                               "detector_distance": 11.0}),
    "near source": (16, spread(5, 4.0), 50, {"source_distance": 14.0, "detector_offset": 0.25}),
    "near curved source": (12, spread(4, 4.0), 24, {"source_distance": 9.8, "curved": True}),
    "fan of oblong pixels": ((9, 12), randn(7, dtype=torch.float64, seed=3) * 5, 33, {
        "source_distance": 21.0, "detector_distance": 6.0, "pixel_size": (1.3, 0.6),
        "detector_spacing": 0.8, "detector_offset": -3.5}),
}


def geometry(name: str, **changed: Any) -> PlanarCT:
    size, angles, detectors, keywords = GEOMETRIES[name]
    keywords = keywords | changed
    if "source_distance" in keywords:
        return FanBeamCT(size, angles, detectors=detectors, **keywords)
    return ParallelBeamCT(size, angles, detectors, **keywords)


class Faulty(LinearOperator):
    """A CT operator with one part replaced."""

    def __init__(self, A: PlanarCT, forward: Callable[[Tensor], Tensor] | None = None,
                 adjoint: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(A.domain, A.range)
        self.fwd, self.adj = forward or A.forward, adjoint or A.adjoint

    def forward(self, x: Tensor) -> Tensor:
        return self.fwd(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.adj(y)


def without_one_weight(A: PlanarCT) -> PlanarCT:
    """A whose transposed matrix lacks its largest weight."""
    A = copy.deepcopy(A)
    assert A.lines.folded is not None
    A.lines.folded.value_t[A.lines.folded.value_t.argmax()] = 0
    return A


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    error = float((got - want).double().norm() / want.double().norm())
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


def check_adjoint(A: LinearOperator, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    x = randn(*batch, *A.domain.shape, dtype=dtype, seed=1)
    Ax = A(x)
    # half signal: against noise alone a wrong factor would show only where it happens to correlate
    y = randn(*batch, *A.range.shape, dtype=dtype, seed=2) + Ax / Ax.square().mean().sqrt()
    Aty = A.adjoint(y)
    assert (Ax.shape, Aty.shape) == (y.shape, x.shape)
    assert Ax.dtype == Aty.dtype == dtype
    gap = (Ax.double() * y).sum() - (x.double() * Aty).sum()
    mismatch = float(gap.abs() / (Ax.double().norm() * y.double().norm()))
    assert mismatch <= (1e-5 if dtype == torch.float32 else 1e-11), f"mismatch {mismatch:.1e}"


def check_definition(A: PlanarCT, angles: Tensor, detector_offset: float = 0,
                     pixel_size: float | tuple[float, float] = 1,
                     detector_spacing: float | None = None, source_distance: float | None = None,
                     detector_distance: float = 0, curved: bool = False) -> None:
    """Every weight, from the definition of Joseph's method, with no symmetry or sparsity."""
    (_, h, w), (_, _, detectors) = A.domain.shape, A.range.shape
    height, width = pixel_size if isinstance(pixel_size, tuple) else (pixel_size, pixel_size)
    source = source_distance or 1
    spacing = detector_spacing or min(height, width) * (1 + detector_distance / source)
    s = (np.arange(detectors) - (detectors - 1) / 2 + detector_offset) * spacing
    X, Y = np.meshgrid((np.arange(w) - (w - 1) / 2) * width, ((h - 1) / 2 - np.arange(h)) * height)
    if source_distance is None:
        theta, q = np.broadcast_arrays(angles.numpy()[:, None], s)
    else:
        theta, q = fan_lines(angles, source, detector_distance, s, curved)
    c, d, q = np.cos(theta)[..., None, None], np.sin(theta)[..., None, None], q[..., None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        by_rows = np.maximum(0, 1 - np.abs((q - d * Y) / c - X) / width) * height / np.abs(c)
        by_columns = np.maximum(0, 1 - np.abs((q - c * X) / d - Y) / height) * width / np.abs(d)
    weights = np.where(np.abs(c) * width >= np.abs(d) * height, by_rows, by_columns)
    want = torch.from_numpy(weights).reshape(-1, h * w)
    eye = torch.eye(h * w, dtype=torch.float64).view(-1, 1, h, w)
    close(A(eye).flatten(1).T, want, 1e-6)


def check_paths(one: LinearOperator, other: LinearOperator, batch: tuple[int, ...]) -> None:
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-13)):
        x = randn(*batch, *one.domain.shape, dtype=dtype)
        y = randn(*batch, *one.range.shape, dtype=dtype)
        close(one(x), other(x), tolerance)
        close(one.adjoint(y), other.adjoint(y), tolerance)


def check_gradients(A: LinearOperator) -> None:
    x = randn(2, *A.domain.shape, dtype=torch.float64).requires_grad_()
    y = randn(2, *A.range.shape, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(A, x, check_batched_grad=True)
    assert torch.autograd.gradcheck(A.adjoint, y)
    assert torch.autograd.gradgradcheck(lambda x: A(x) ** 2, x)
    assert torch.autograd.gradgradcheck(lambda y: A.adjoint(y) ** 2, y)


def check_same_bits(one: LinearOperator, other: LinearOperator) -> None:
    for items in (1, 32):
        x, y = randn(items, *one.domain.shape), randn(items, *one.range.shape)
        assert torch.equal(one(x), other(x))
        assert torch.equal(one.adjoint(y), other.adjoint(y))


def check_items_alone(A: LinearOperator) -> None:
    x = randn(6, *A.domain.shape)
    x[4] *= 1e6
    for together, item in zip(A(x), x, strict=True):
        close(together, A(item), 2e-6)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.filterwarnings("ignore:.*covers")
class TestGeometries:
    @pytest.mark.parametrize("method", ["symmetry", "matrix", "gather"])
    def test_adjoint(self, name: str, method: str) -> None:
        A = geometry(name, method=method)
        for batch in ((), (3,), (2, 3)):
            check_adjoint(A, batch, torch.float32)
            check_adjoint(A, batch, torch.float64)
        assert A(torch.zeros(0, *A.domain.shape)).shape == (0, *A.range.shape)

    def test_every_weight_is_as_defined(self, name: str) -> None:
        _, angles, _, keywords = GEOMETRIES[name]
        check_definition(geometry(name), angles, **keywords)
        shifted = keywords.get("detector_offset", 0.0) + 0.5
        with pytest.raises(AssertionError):
            check_definition(geometry(name, detector_offset=shifted), angles, **keywords)

    def test_all_paths_agree(self, name: str) -> None:
        folded, full = geometry(name, method="symmetry"), geometry(name, method="matrix")
        for batch in ((), (5,), (2, 17)):  # 34 images pass the widest chunk
            check_paths(folded, full, batch)
        check_paths(folded, geometry(name, method="gather"), (2,))
        for method in ("matrix", "gather"):
            with pytest.raises(AssertionError):
                check_paths(folded, geometry(name, method=method, detector_offset=0.1), (5,))


@pytest.mark.parametrize("method", ["symmetry", "matrix", "gather"])
def test_adjoint_check_rejects_faults(method: str) -> None:
    A = geometry("even", method=method)
    unmatched = geometry("even", detector_offset=0.5)  # half a bin off
    lacking = without_one_weight(geometry("even", method="symmetry"))
    for fault in (Faulty(A, adjoint=unmatched.adjoint), Faulty(A, adjoint=lacking.adjoint),
                  Faulty(A, adjoint=lambda y: 1.001 * A.adjoint(y)),
                  Faulty(A, forward=lambda x: A(x).flip(-1))):
        for dtype in (torch.float32, torch.float64):
            with pytest.raises(AssertionError, match="mismatch"):
                check_adjoint(fault, (3,), dtype)


def test_float64_rounding_is_that_of_float64() -> None:
    A = geometry("even", dtype=torch.float64)
    check_adjoint(A, (2,), torch.float64)
    rounded = Faulty(A, adjoint=lambda y: A.adjoint(y.float()).double())
    with pytest.raises(AssertionError, match="mismatch"):
        check_adjoint(rounded, (2,), torch.float64)


def test_normal_is_adjoint_of_forward() -> None:
    A, x = geometry("even"), randn(2, 1, 16, 16)
    close(A.H(A(x)), A.normal(x), 1e-6)


def test_items_are_handled_alone() -> None:
    check_items_alone(A := geometry("odd"))
    with pytest.raises(AssertionError):
        check_items_alone(Faulty(A, forward=lambda x: A(x) / x.norm()))


@pytest.mark.parametrize(("method", "fan"), [("symmetry", False), ("matrix", True),
                                             ("gather", False), ("gather", True)])
def test_gradients(method: Method, fan: bool) -> None:
    A: PlanarCT = ParallelBeamCT((3, 2), spread(2), 4, method=method)
    if fan:
        A = FanBeamCT((3, 2), spread(2), 6.0, detectors=4, method=method)
    check_gradients(A)

    def unmatched(y: Tensor) -> Tensor:
        return 1.01 * type(A.lines)._backproject(A.lines, y)

    A.lines._backproject = unmatched  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        check_gradients(A)


def test_vmap_equals_the_batch() -> None:
    A, x = geometry("odd"), randn(4, 2, 1, 15, 15)
    close(torch.vmap(A, in_dims=1, out_dims=1)(x), A(x), 2e-6)


def test_copies_hold_the_same_bits() -> None:
    A = geometry("even")
    A(randn(1, 16, 16))  # sparse tensors are now cached, and those cannot be copied
    A(randn(32, 1, 16, 16))
    assert A.lines.full is not None
    for other in (copy.deepcopy(A), pickle.loads(pickle.dumps(A))):
        check_same_bits(A, other)
    check_same_bits(A, copy.deepcopy(A).double().float().half())
    with pytest.raises(AssertionError):
        check_same_bits(A, without_one_weight(A))


def test_state_dict_round_trip() -> None:
    A, B = geometry("even"), ParallelBeamCT(16, spread(12) + 0.1, 23, pixel_size=(1.2, 1.1))
    C, D = geometry("fan", curved=True), FanBeamCT(16, spread(12), 40.0, 3.0, 24)
    for one, other in ((A, B), (C, D)):
        with pytest.raises(AssertionError):
            check_same_bits(one, other)
        other.load_state_dict(one.state_dict())
        check_same_bits(one, other)
        assert sum(t.numel() for t in one.state_dict().values()) < 50
    with pytest.raises(ValueError, match=r"want the state .* got one of \(1, 15, 15\)"):
        B.load_state_dict(geometry("odd").state_dict())


def test_half_precision_keeps_its_kind_and_multiplies_in_float32() -> None:
    x = randn(1, 16, 16).half()
    close(geometry("even").half()(x), geometry("even")(x.float()).half(), 1e-3)


def test_built_in_inference_mode_trains_outside() -> None:
    with torch.inference_mode():
        A = geometry("even")
        A(randn(1, 16, 16))  # caches its sparse tensors
    x = randn(1, 16, 16).requires_grad_()
    (pull,) = torch.autograd.grad(A(x).square().sum() / 2, x)
    close(pull, A.normal(x.detach()), 1e-6)


def test_paths_are_chosen_by_batch_and_memory() -> None:
    lines = ParallelBeamCT(64, spread(30)).lines
    assert [lines.path(n) for n in (1, 2, 8, 64)] == ["symmetry", "symmetry", "matrix", "matrix"]
    assert ParallelBeamCT(64, spread(30), memory_limit=2e6).lines.path(64) == "symmetry"
    bare = ParallelBeamCT(64, spread(30), memory_limit=1e5)
    assert bare.lines.path(1) == bare.lines.path(64) == "gather"
    assert sum(t.numel() for t in bare.buffers()) == 1
    check_paths(bare, ParallelBeamCT(64, spread(30)), (2,))
    assert lines.columns == 8
    assert ParallelBeamCT((64, 32), spread(30)).lines.columns == 4
    assert ParallelBeamCT(64, spread(30), pixel_size=(1.0, 0.5)).lines.columns == 4


def check_count(count: Callable[[Tensor, Tensor, tuple[int, int]], Tensor]) -> None:
    """Never too few, so that memory suffices; in larger images few too many."""
    larger = [ParallelBeamCT((90, 80), spread(7)), FanBeamCT(80, spread(7), 130.0)]
    for A in [geometry(name) for name in GEOMETRIES] + larger:
        normal, offset = (t.flatten(0, 1) for t in A.geometry.lines())
        shape = (A.domain.shape[1], A.domain.shape[2])
        made = joseph_rows(normal, offset, shape).start.diff()
        counted = count(normal, offset, shape)
        assert bool((counted >= made).all())
        assert max(shape) < 80 or float(counted.sum()) < 1.08 * float(made.sum())


@pytest.mark.filterwarnings("ignore:.*covers")
def test_weights_are_counted_before_they_are_made() -> None:
    check_count(count_taps)
    for wrong in (lambda *args: count_taps(*args) / 2, lambda *args: 1.1 * count_taps(*args)):
        with pytest.raises(AssertionError):
            check_count(wrong)


def test_symmetry_shrinks_the_matrix() -> None:
    def gain(A: PlanarCT) -> float:
        assert A.lines.folded is not None
        return A.lines.entries / len(A.lines.folded.value)

    for angles, least in ((spread(60), 7.0), (spread(60).float(), 7.0), (spread(60) + 0.01, 1.9)):
        assert gain(ParallelBeamCT(64, angles)) > least
    turn = spread(60, 2 * PI)
    for angles, least in ((turn, 7.9), (turn.float(), 7.9), (turn[:59], 3.5), (turn + 0.01, 3.9)):
        assert gain(FanBeamCT(64, angles, 130.0)) > least


def check_physical_units(make: Callable[[float], LinearOperator]) -> None:
    """The same body on the same grid, in metres and in millimetres."""
    x = randn(1, 16, 16)
    close(make(1e3)(x), 1e3 * make(1.0)(x), 1e-6)
    close(make(1e-6)(x), 1e-6 * make(1.0)(x), 1e-6)


def check_moves(settle: Callable[[Tensor, float], Tensor]) -> None:
    """No view moves farther than its rounding, and equidistant ones meet their symmetries."""
    for views in (180, 1000, 2000, 5000):  # the golden angle, over up to 1500 turns
        angles, tolerance = angles_of("views", torch.arange(views) * 1.9416)
        assert float((settle(angles, tolerance) - angles).abs().max()) <= 1.0001 * tolerance
    angles, tolerance = angles_of("views", spread(180).float())
    folded = settle(angles, tolerance).remainder(PI / 2)
    folded = torch.minimum(folded, PI / 2 - folded).sort().values
    assert int((folded.diff() > 1e-9).sum()) + 1 == 46  # every degree from 0 to 45


def test_views_are_settled_to_their_rounding() -> None:
    check_moves(settled)

    def chained(angles: Tensor, tolerance: float) -> Tensor:
        ordered, order = angles.remainder(PI / 2).sort()
        first = torch.ones(len(ordered), dtype=torch.bool)
        first[1:] = ordered.diff() > tolerance
        value = ordered[first][first.cumsum(0) - 1]
        return angles + torch.empty_like(value).scatter_(0, order, value - ordered)

    for fault in (chained, lambda angles, _: angles):
        with pytest.raises(AssertionError):
            check_moves(fault)


def test_many_turns_in_single_precision_are_as_exact_as_their_angles() -> None:
    x = torch.rand(1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(3000) * 1.9416
    got, want = (ParallelBeamCT(16, a, method="gather", dtype=torch.float64)(x)
                 for a in (angles, angles.double()))
    close(got, want, 1e-3)


def test_pixel_size_scales_the_integrals() -> None:
    check_physical_units(lambda p: geometry("even", pixel_size=p))
    check_physical_units(lambda p: geometry("even", pixel_size=p, detector_spacing=1.1 * p))
    with pytest.raises(AssertionError), pytest.warns(UserWarning, match="covers"):
        check_physical_units(lambda p: ParallelBeamCT(16, spread(12), 23, 0.0, p, 1.1))


def check_conventions(A: LinearOperator) -> None:
    x = randn(1, 8, 8)
    close(A(x)[0, 0], x[0].sum(0), 1e-6)  # angle 0: bin d sums column d
    close(A(x)[0, 1], x[0].sum(1).flip(0), 1e-6)  # pi / 2: bin 0 sums the last row


def test_conventions() -> None:
    check_conventions(ParallelBeamCT(8, [0.0, PI / 2], 8))
    with pytest.raises(AssertionError):
        check_conventions(ParallelBeamCT(8, [0.0, -PI / 2], 8))


@pytest.mark.parametrize(("body", "tolerance"), [(DISC, 2e-3), (SHEPP_LOGAN, 8e-3)])
def test_closed_form_of_ellipses(body: Body, tolerance: float) -> None:
    n, angles, detectors = 256, spread(60), 363
    x, y = picture(body, n), integrals(body, n, angles, detectors)
    close(ParallelBeamCT(n, angles, detectors)(x), y, tolerance)
    half = ParallelBeamCT(n, angles, detectors, detector_offset=0.5)
    for wrong in (half(x), half(x.roll(1, -1)), ParallelBeamCT(n, -angles, detectors)(x)):
        with pytest.raises(AssertionError, match="relative error"):
            close(wrong, y, tolerance)


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize(("body", "tolerance"), [(DISC, 2e-3), (SHEPP_LOGAN, 8e-3)])
def test_closed_form_of_ellipses_in_a_fan(body: Body, tolerance: float, curved: bool) -> None:
    n, angles, far, near = 256, spread(60, 2 * PI), 512.0, 300.0
    A = FanBeamCT(n, angles, far, near, curved=curved)
    bins, spacing = A.geometry.bins, A.geometry.spacing
    x = picture(body, n)
    y = fan_integrals(body, n, angles, far, near, bins, spacing, curved=curved)
    close(A(x), y, tolerance)
    for wrong in (FanBeamCT(n, -angles, far, near, bins, curved=curved),
                  FanBeamCT(n, angles, far, near, bins, 0.5, curved=curved),
                  FanBeamCT(n, angles, far + 20, near - 20, bins, curved=curved),
                  FanBeamCT(n, angles, far, near, bins, curved=not curved)):
        with pytest.raises(AssertionError, match="relative error"):
            close(wrong(x), y, tolerance)


def check_far_source(fan: Callable[..., PlanarCT]) -> None:
    """A fan from far away is a view of parallel rays of the same angle."""
    x, angles = randn(1, 15, 15, dtype=torch.float64), randn(5, dtype=torch.float64, seed=4)
    parallel = ParallelBeamCT(15, angles, 21, 0.3, dtype=torch.float64)
    close(fan(15, angles, 1e7, 5.0, 21, 0.3, dtype=torch.float64)(x), parallel(x), 1e-5)


def test_a_far_source_is_parallel() -> None:
    for curved in (False, True):
        check_far_source(partial(FanBeamCT, curved=curved))
    with pytest.raises(AssertionError, match="relative error"):
        check_far_source(lambda size, angles, *rest, **kw: FanBeamCT(size, -angles, *rest, **kw))


def check_against_scikit_image(n: int, turn: int = 1, offset: float = 0, pixel: float = 1) -> None:
    """``radon`` turns about pixel n // 2, so an even image is an odd one that lacks its end."""
    from skimage.transform import radon

    at = (torch.arange(n) - n // 2) / (n / 2)
    x = torch.zeros(n, n)
    for x0, y0, width in ((0.25, 0.1, 0.15), (-0.2, 0.3, 0.2), (-0.1, -0.35, 0.1)):
        x += torch.exp(-((at - x0) ** 2 + (at[:, None] - y0) ** 2) / (2 * width**2))
    x *= at**2 + at[:, None] ** 2 < 0.9
    sinogram = radon(x.numpy(), np.arange(0, 180, 15), circle=True)  # type: ignore[no-untyped-call]
    want = torch.from_numpy(sinogram).float().T
    odd = n + 1 - n % 2
    A = ParallelBeamCT(odd, turn * spread(12), odd, offset, pixel)
    y = A(pad(x, (0, odd - n, 0, odd - n)).unsqueeze(0))[0]
    close(y[:, :n], want, 5e-4)  # 1.6e-4 measured


@pytest.mark.filterwarnings("ignore:.*covers")
@pytest.mark.parametrize("n", [128, 129])
def test_scikit_image_agrees(n: int) -> None:
    check_against_scikit_image(n)
    for fault in ({"turn": -1}, {"offset": 0.5}, {"pixel": 1.01}):
        with pytest.raises(AssertionError, match="relative error"):
            check_against_scikit_image(n, **fault)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"angles": []}, "at least one view, got zero angles"),
    ({"angles": [0.0, math.nan]}, "finite angles, got nan at view 1"),
    ({"angles": [[0.0]]}, r"list of real numbers, got a tensor of shape \(1, 1\)"),
    ({"detectors": 0}, "detectors of at least 1, got 0"),
    ({"size": 0}, "size of at least 1, got 0"),
    ({"size": (4, 4, 4)}, r"size N or \(H, W\), got \(4, 4, 4\)"),
    ({"pixel_size": 0.0}, "positive pixel_size, got 0.0"),
    ({"detector_spacing": -1.0}, "positive detector_spacing, got -1.0"),
    ({"detector_offset": math.nan}, "finite detector_offset, got nan"),
    ({"pixel_size": (1.0, 0.0)}, "positive pixel_size, got 0.0"),
    ({"pixel_size": (1.0, 1.0, 1.0)}, r"side or \(height, width\), got \(1.0, 1.0, 1.0\)"),
    ({"memory_limit": math.nan}, "memory_limit >= 0, got nan"),
    ({"method": "gpu"}, "method auto, symmetry, matrix or gather, got 'gpu'"),
    ({"dtype": torch.float16}, "float32 or float64, got torch.float16"),
])
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="ParallelBeamCT: want .*" + message):
        ParallelBeamCT(**{"size": 4, "angles": [0.0], **arguments})
    with pytest.raises(ValueError, match="FanBeamCT: want .*" + message):
        FanBeamCT(**{"size": 4, "angles": [0.0], "source_distance": 9.0, **arguments})
    with pytest.raises(TypeError, match=r"whole number as size, got 4\.5"):
        ParallelBeamCT(4.5, [0.0])  # type: ignore[arg-type]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"source_distance": 0.0}, "want a positive source_distance, got 0.0"),
    ({"source_distance": math.inf}, "want a positive source_distance, got inf"),
    ({"source_distance": 3.8}, r"a pixel or more outside .* 2\.82843 from .*, got .* 3\.8"),
    ({"detectors": 30, "curved": True}, "ends before 90 degrees, got one up to 95: want fewer"),
    ({"detector_distance": -1.0}, "want a detector_distance >= 0, got -1.0"),
    ({"detector_distance": math.nan}, "want a detector_distance >= 0, got nan"),
])
def test_a_fan_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FanBeamCT(**{"size": 4, "angles": [0.0], "source_distance": 9.0, **arguments})


def test_a_short_detector_is_warned_about() -> None:
    with pytest.warns(UserWarning, match=r"covers 50\.0% of the circle"):
        ParallelBeamCT(16, [0.0], 8)
    with pytest.warns(UserWarning, match=r"covers 75\.0% of the circle"):
        ParallelBeamCT((32, 16), [0.0], 16, detector_offset=4.0)
    with pytest.warns(UserWarning, match=r"FanBeamCT.* covers 0\.0% of the circle"):
        FanBeamCT(16, [0.0], 30.0, detectors=16, detector_offset=20.0)
    # 2 x 14 sin(g) of 16 pixels, where 14 tan(g) = 4 or 14 g = 4
    for curved, covered in ((False, r"48\.1%"), (True, r"49\.3%")):
        with pytest.warns(UserWarning, match=rf"covers {covered} of the circle"):
            FanBeamCT(16, [0.0], 14.0, detectors=8, curved=curved)
