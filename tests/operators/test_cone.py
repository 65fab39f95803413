"""Cone-beam CT against its definition, fans, analytic spheres, and planted faults."""

import copy
import importlib.util
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.operators import LinearOperator, check
from recon.operators.ct import ConeBeamCT, FanBeamCT, ParallelBeamCT, fdk
from recon.operators.ct import cone_geometry as geometry

PI = math.pi
F64 = torch.float64


def turn(views: int, over: float = 2 * PI, first: float = 0.1) -> Tensor:
    return torch.arange(views, dtype=F64) * over / views + first


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    error = float((got - want).double().norm() / want.double().norm())
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


def anywhere(**changed: Any) -> ConeBeamCT:
    """Views from any side, steep ones among them, with a turned and sheared detector."""
    rng = np.random.default_rng(3)
    vectors = []
    for _ in range(6):
        way = rng.normal(size=3)
        way /= np.linalg.norm(way)
        right, down = np.linalg.qr(np.stack([way, *rng.normal(size=(2, 3))], 1))[0].T[1:]
        vectors.append(np.concatenate([30 * way, -9 * way + rng.normal(size=3),
                                       1.4 * right + 0.1 * down, 1.7 * down]))
    keywords = {"voxel_size": (1.0, 0.8, 1.1), **changed}
    return ConeBeamCT.from_vectors((7, 8, 6), torch.from_numpy(np.stack(vectors)), (12, 13),
                                   **keywords)


GEOMETRIES: dict[str, Callable[..., ConeBeamCT]] = {
    "even": lambda **k: ConeBeamCT(8, turn(5), (14, 16), 20.0, 10.0, **k),
    "odd, sides differ": lambda **k: ConeBeamCT(
        (5, 7, 9), turn(4), (11, 13), 25.0, 5.0, voxel_size=(1.5, 1.2, 0.7), **k),
    "offset": lambda **k: ConeBeamCT(
        (6, 6, 7), turn(4), (13, 12), 18.0, 0.0, k.pop("detector_offset", (0.5, -1.25)), **k),
    "helix": lambda **k: ConeBeamCT((12, 6, 6), turn(9, 4 * PI), (6, 13), 18.0, 9.0, pitch=5.0,
                                    **k),
    "wide cone": lambda **k: ConeBeamCT(
        (9, 4, 4), turn(3), (15, 9), 8.0, 4.0, detector_spacing=(1.9, 1.6), **k),
    "any vectors": anywhere,
    # fewer rows or columns than a voxel and its neighbours can cover
    "one row": lambda **k: ConeBeamCT((1, 9, 9), turn(3), (1, 14), 20.0, **k),
    "one column": lambda **k: ConeBeamCT((4, 5, 5), turn(3), (9, 1), 20.0, 20.0, **k),
    "fine rows": lambda **k: ConeBeamCT(
        (5, 4, 6), turn(3), (2, 26), 20.0, 20.0, detector_spacing=(1.0, 0.5), **k),
    "fine pixels": lambda **k: ConeBeamCT(
        (4, 4, 4), turn(3), (7, 7), 30.0, 30.0, detector_spacing=0.2, **k),
    "one voxel": lambda **k: ConeBeamCT(1, turn(3), (3, 3), 5.0, **k),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*covers")


def check_adjoint(A: LinearOperator, dtype: torch.dtype) -> None:
    x = randn(2, *A.domain.shape, dtype=dtype, seed=1)
    Ax = A(x)
    y = randn(2, *A.range.shape, dtype=dtype, seed=2) + Ax / Ax.square().mean().sqrt()
    Aty = A.adjoint(y)
    assert Ax.dtype == Aty.dtype == dtype
    gap = (Ax.double() * y).sum() - (x.double() * Aty).sum()
    mismatch = float(gap.abs() / (Ax.double().norm() * y.double().norm()))
    assert mismatch <= (1e-6 if dtype == torch.float32 else 1e-13), f"mismatch {mismatch:.1e}"


def written_out(vectors: Tensor, volume: tuple[int, ...], voxel: tuple[float, ...],
                detector: tuple[int, ...]) -> Tensor:
    """Every weight, ray by ray, in X, Y, Z: from the definition, with nothing in common."""
    D, H, W = volume
    dz, dy, dx = voxel
    k, i, j = np.meshgrid(np.arange(D), np.arange(H), np.arange(W), indexing="ij")
    X, Y, Z = (j - (W - 1) / 2) * dx, ((H - 1) / 2 - i) * dy, (k - (D - 1) / 2) * dz
    centres, sides = np.stack([X, Y, Z], -1), np.array([dx, dy, dz])
    found = []
    for source, middle, right, down in vectors.numpy().reshape(-1, 4, 3):
        for r in range(detector[0]):
            for c in range(detector[1]):
                way = (middle + (r - (detector[0] - 1) / 2) * down
                       + (c - (detector[1] - 1) / 2) * right - source)
                a = int(np.abs(way / sides).argmax())
                t = (centres[..., a] - source[a]) / way[a]  # of the plane through each voxel
                off = np.abs(source + t[..., None] * way - centres) / sides
                tents = np.maximum(0, 1 - np.delete(off, a, -1)).prod(-1)
                found.append(tents * np.linalg.norm(way) * sides[a] / abs(way[a]))
    return torch.from_numpy(np.stack(found)).reshape(-1, D * H * W)


def check_definition(A: LinearOperator, vectors: Tensor, voxel: tuple[float, ...]) -> None:
    want = written_out(vectors, A.domain.shape[1:], voxel, A.range.shape[2:])
    n = want.shape[1]
    got = A(torch.eye(n, dtype=F64).view(n, *A.domain.shape)).flatten(1).T
    close(got, want, 1e-10)


@pytest.mark.parametrize("name", GEOMETRIES)
class TestGeometries:
    @pytest.mark.parametrize("backend", ["numba", "torch"])
    def test_adjoint(self, name: str, backend: str) -> None:
        A = GEOMETRIES[name](backend=backend)
        for dtype in (torch.float32, F64):
            check_adjoint(A, dtype)
        assert A(torch.zeros(0, *A.domain.shape)).shape == (0, *A.range.shape)

    def test_every_weight_is_as_defined(self, name: str) -> None:
        A = GEOMETRIES[name]()
        check_definition(A, A.vectors, A.voxel)
        moved = A.vectors.clone()
        moved[:, 3:6] += 0.01 * moved[:, 6:9]
        with pytest.raises(AssertionError, match="relative error"):
            check_definition(A, moved, A.voxel)

    def test_backends_agree(self, name: str) -> None:
        one, other = (GEOMETRIES[name](backend=b) for b in ("numba", "torch"))
        for dtype, tolerance in ((torch.float32, 3e-6), (F64, 1e-13)):
            x, y = (randn(3, *s.shape, dtype=dtype) for s in (one.domain, one.range))
            close(one(x), other(x), tolerance)
            close(one.adjoint(y), other.adjoint(y), tolerance)


class Faulty(LinearOperator):
    """A with another adjoint."""

    def __init__(self, A: ConeBeamCT, adjoint: Callable[[Tensor], Tensor]) -> None:
        super().__init__(A.domain, A.range)
        self.A, self.other = A, adjoint

    def forward(self, x: Tensor) -> Tensor:
        return self.A(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.other(y)


def nearest(A: ConeBeamCT, y: Tensor) -> Tensor:
    """Backprojection by the nearest detector pixel, as voxel-driven projectors have it."""
    points = torch.cartesian_prod(*(torch.arange(n, dtype=F64) for n in A.domain.shape[1:]))
    m = geometry._seen(A._views, points)
    column, row = ((m[..., i] / m[..., 2]).round().long() for i in (0, 1))
    (rows, columns), x = A.range.shape[2:], y.new_zeros(*y.shape[:-3], len(points))
    for v in range(len(m)):
        inside = (row[v] >= 0) & (row[v] < rows) & (column[v] >= 0) & (column[v] < columns)
        x = x + inside * y[..., v, row[v].clamp(0, rows - 1), column[v].clamp(0, columns - 1)]
    return x.view(*y.shape[:-4], *A.domain.shape).to(y.dtype)


def test_adjoint_check_rejects_faults() -> None:
    A = GEOMETRIES["even"]()
    scale = float(A.adjoint(A(torch.ones(A.domain.shape))).norm()
                  / nearest(A, A(torch.ones(A.domain.shape))).norm())
    shifted = GEOMETRIES["offset"](detector_offset=(0.5, -1.0))
    for fault in (Faulty(A, lambda y: 1.0001 * A.adjoint(y)),
                  Faulty(A, lambda y: scale * nearest(A, y)),
                  Faulty(GEOMETRIES["offset"](), shifted.adjoint)):
        with pytest.raises(AssertionError, match="mismatch"):
            check_adjoint(fault, torch.float32)


def test_footprint_reaches_every_ray_of_a_voxel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few detector pixels looked at would lose weights without an error."""
    A = GEOMETRIES["even"](backend="torch")
    check_adjoint(A, F64)
    monkeypatch.setattr(A, "_footprints", [(max(0, r - 4), max(0, c - 4))
                                           for r, c in A._footprints])
    with pytest.raises(AssertionError, match="mismatch"):
        check_adjoint(A, F64)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    A = GEOMETRIES["any vectors"](backend="torch")
    x, y = randn(2, *A.domain.shape), randn(2, *A.range.shape)
    whole = A(x), A.adjoint(y)
    monkeypatch.setattr("recon.operators.ct.cone_torch._CHUNK", 200)
    close(A(x), whole[0], 1e-6)
    assert torch.equal(A.adjoint(y), whole[1])


def test_a_row_in_the_plane_of_the_source_is_a_fan() -> None:
    x = randn(2, 1, 12, 11)
    for offset, pixel in ((0.0, 1.0), (0.75, (0.8, 1.2))):
        fan = FanBeamCT((12, 11), turn(7), 20.0, 8.0, 27, offset, pixel, 1.3)
        sides = pixel if isinstance(pixel, tuple) else (pixel, pixel)
        cone = ConeBeamCT((1, 12, 11), turn(7), (1, 27), 20.0, 8.0, (0.0, offset),
                          voxel_size=(1.0, *sides), detector_spacing=1.3)
        close(cone(x[:, :, None])[..., 0, :], fan(x), 2e-6)
        with pytest.raises(AssertionError):
            close(cone(x[:, :, None])[..., 0, :].flip(-1), fan(x), 2e-6)


def test_a_far_source_is_parallel() -> None:
    x = randn(1, 3, 10, 10, dtype=F64)
    want = ParallelBeamCT(10, turn(6), 15)(x[0, :, None])[:, 0]  # (slices, views, bins)
    errors = []
    for distance in (1e4, 1e5):
        A = ConeBeamCT((3, 10, 10), turn(6), (3, 15), distance, detector_spacing=1.0)
        got = A(x)[0].movedim(1, 0)
        errors.append(float((got - want).norm() / want.norm()))
    assert errors[1] < 2e-4
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


def ball(n: int, centre: tuple[float, float, float], radius: float, fine: int = 4) -> Tensor:
    """Each voxel's part inside a sphere, of the cube [-1, 1]^3."""
    at = (torch.arange(n * fine) + 0.5) / (n * fine) * 2 - 1
    x, y, z = at - centre[0], -at - centre[1], at - centre[2]
    inside = (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= radius**2).float()
    return torch.nn.functional.avg_pool3d(inside[None, None], fine)[0]


def chords(A: ConeBeamCT, centre: tuple[float, float, float], radius: float) -> Tensor:
    """Lengths of the rays inside the sphere."""
    source, middle, right, down = A.vectors.view(-1, 4, 1, 1, 3).unbind(1)
    rows, columns = A.range.shape[2:]
    r = (torch.arange(rows) - (rows - 1) / 2)[:, None, None]
    c = (torch.arange(columns) - (columns - 1) / 2)[:, None]
    way = middle + r * down + c * right - source
    way = way / way.norm(dim=-1, keepdim=True)
    to = torch.tensor(centre, dtype=F64) - source
    along = (to * way).sum(-1)
    off = to.square().sum(-1) - along.square()
    return 2 * (radius**2 - off).clamp(min=0).sqrt()[None]


def scanner(n: int, views: int = 24, **changed: Any) -> ConeBeamCT:
    pixels = int(1.5 * n)
    offset = changed.pop("detector_offset", (0.0, 0.0))
    return ConeBeamCT(n, turn(views), (pixels, pixels), 6.0, 3.0, offset, voxel_size=2 / n,
                      detector_spacing=3.2 / pixels, **changed)


SPHERE = ((0.1, -0.05, 0.15), 0.6)


def check_sphere_order(make: Callable[[int], ConeBeamCT]) -> None:
    errors = []
    for n in (16, 32, 48):
        A = make(n)
        want = chords(scanner(n), *SPHERE)
        errors.append(float((A(ball(n, *SPHERE).double()) - want).norm() / want.norm()))
    orders = [math.log2(errors[0] / errors[1]), math.log(errors[1] / errors[2], 1.5)]
    assert errors[-1] < 3.2e-2, errors
    assert min(orders) > 0.8, (errors, orders)


def test_sphere_converges_with_the_voxels() -> None:
    check_sphere_order(scanner)
    with pytest.raises(AssertionError):  # a detector off by 0.7 % of its height
        check_sphere_order(lambda n: scanner(n, detector_offset=(0.01 * n, 0.0)))


def check_fdk(build: Callable[[Tensor, ConeBeamCT], Tensor]) -> None:
    for unit in (1.0, 1000.0):
        A = ConeBeamCT(32, turn(60), (48, 48), 6.0 * unit, 3.0 * unit, (0.4, -0.3),
                       voxel_size=2 * unit / 32, detector_spacing=3.4 * unit / 48)
        body = ball(32, *SPHERE)
        x = build(0.02 / unit * A(body), A) * unit / 0.02  # of 0.02 per unit of length
        core = ball(32, SPHERE[0], 0.75 * SPHERE[1])[0] == 1
        assert float(x[0][core].mean()) == pytest.approx(1, abs=0.01)
        assert abs(float(x[0][body[0] == 0].mean())) < 0.02


def test_fdk_is_in_the_units_of_the_volume() -> None:
    check_fdk(fdk)

    def unweighted(y: Tensor, A: ConeBeamCT) -> Tensor:
        return fdk(y, A) * A.voxel[0]

    def without_ramp(y: Tensor, A: ConeBeamCT) -> Tensor:
        return A.adjoint(y) / A.adjoint(A(torch.ones(A.domain.shape))).mean()

    for wrong in (unweighted, without_ramp, lambda y, A: fdk(y.flip(-1), A)):
        with pytest.raises(AssertionError):
            check_fdk(wrong)


def test_fdk_refuses_other_orbits() -> None:
    part = ConeBeamCT(4, turn(6, PI), (9, 9), 20.0)
    with pytest.raises(ValueError, match="6 angles equidistant over a full turn, got gaps"):
        fdk(torch.zeros(part.range.shape), part)
    for other in (GEOMETRIES["helix"](), anywhere()):
        with pytest.raises(ValueError, match="want a circular orbit"):
            fdk(torch.zeros(other.range.shape), other)


def test_gradients() -> None:
    for backend in ("numba", "torch"):
        A = ConeBeamCT((2, 3, 2), turn(2), (3, 4), 9.0, backend=backend)
        x, y = (randn(2, *s.shape, dtype=F64).requires_grad_() for s in (A.domain, A.range))
        assert torch.autograd.gradcheck(A, x)
        assert torch.autograd.gradcheck(A.adjoint, y)
        assert torch.autograd.gradgradcheck(lambda x, A=A: A(x) ** 2, x)


def test_contract() -> None:
    for A in (GEOMETRIES["odd, sides differ"](backend="numba"), GEOMETRIES["helix"](),
              ConeBeamCT((2, 3, 2), turn(2), (3, 4), 9.0, backend="torch")):
        check(A).raise_if_failed()


def check_same_bits(one: LinearOperator, other: LinearOperator) -> None:
    x, y = randn(2, *one.domain.shape), randn(2, *one.range.shape)
    assert torch.equal(one(x), other(x))
    assert torch.equal(one.adjoint(y), other.adjoint(y))


def test_copies_and_states() -> None:
    for name, build in GEOMETRIES.items():
        A = build()
        for other in (copy.deepcopy(A), pickle.loads(pickle.dumps(A)), copy.deepcopy(A).double()):
            check_same_bits(A, other)
        if name != "any vectors":
            continue
        moved = A.vectors.clone()
        moved[:, :3] *= 1.1
        B = ConeBeamCT.from_vectors((7, 8, 6), moved, (12, 13))
        with pytest.raises(AssertionError):
            check_same_bits(A, B)
        B.load_state_dict(A.state_dict())
        check_same_bits(A, B)
    A, B = GEOMETRIES["even"](), ConeBeamCT(8, turn(5, first=0.7), (14, 16), 21.0, 10.0)
    B.load_state_dict(A.state_dict())
    check_same_bits(A, B)
    assert B.orbit == (20.0, 10.0)
    with pytest.raises(ValueError, match="want the state of an operator of this shape"):
        B.load_state_dict(GEOMETRIES["helix"]().state_dict())


def test_one_buffer_for_every_orbit() -> None:
    vectors = GEOMETRIES["even"](backend="torch").vectors.clone()
    A = ConeBeamCT.from_vectors(8, vectors, (14, 16), backend="torch")
    before = A.vectors.clone()
    vectors[:, :3] *= 2  # the next orbit, in the same array
    assert torch.equal(A.vectors, before)


def test_threads_of_torch_are_left_alone() -> None:
    A, before = GEOMETRIES["even"](backend="numba"), torch.get_num_threads()
    A.adjoint(A(randn(*A.domain.shape)))
    assert torch.get_num_threads() == before


def test_half_precision_is_multiplied_in_float32() -> None:
    A, x = GEOMETRIES["even"](), randn(1, 8, 8, 8).half()
    close(A(x), A(x.float()).half(), 1e-3)


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    A = GEOMETRIES["even"]()
    assert not A.compiled(torch.device("cpu"))
    close(A(randn(1, 8, 8, 8)), GEOMETRIES["even"](backend="torch")(randn(1, 8, 8, 8)), 1e-7)
    with pytest.raises(ImportError, match=r'pip install "recon\[numba\]"'):
        GEOMETRIES["even"](backend="numba")(randn(1, 8, 8, 8))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ConeBeamCT(8, [], (9, 9), 20.0), "at least one view, got zero angles"),
    (lambda: ConeBeamCT(8, [0.0, math.nan], (9, 9), 20.0), "got nan at view 1"),
    (lambda: ConeBeamCT((8, 8), [0.0], (9, 9), 20.0),  # type: ignore[arg-type]
     r"want 3 numbers as size, got \(8, 8\)"),
    (lambda: ConeBeamCT(8, [0.0], 9, 20.0),  # type: ignore[arg-type]
     "want 2 numbers as detectors, got 9"),
    (lambda: ConeBeamCT(8, [0.0], (9, 0), 20.0), "want detectors of at least 1, got 0"),
    (lambda: ConeBeamCT(8, [0.0], (9, 9), -1.0), "positive source_distance, got -1.0"),
    (lambda: ConeBeamCT(8, [0.0], (9, 9), 4.0), "level with the source or behind"),
    (lambda: ConeBeamCT(8, [0.0], (9, 9), 20.0, -1.0), "detector_distance >= 0, got -1.0"),
    (lambda: ConeBeamCT(8, [0.0], (9, 9), 20.0, pitch=math.inf), "want a finite pitch, got inf"),
    (lambda: ConeBeamCT(8, [0.0], (9, 9), 20.0, voxel_size=(1.0, 0.0, 1.0)),
     "want a positive voxel_size, got 0.0"),
    (lambda: ConeBeamCT(8, [0.0], (9, 9), 20.0, detector_offset=(math.nan, 0.0)),
     "want a finite detector_offset, got nan"),
    (lambda: ConeBeamCT(8, [0.0], (9, 9), 20.0, backend="cuda"),  # type: ignore[arg-type]
     "want backend auto, numba, torch or triton, got 'cuda'"),
    (lambda: ConeBeamCT(8, [0.0], (9, 9), 20.0, dtype=torch.float16),
     "want dtype float32 or float64"),
    (lambda: ConeBeamCT.from_vectors(8, torch.zeros(3, 9), (9, 9)), r"want vectors \(views, 12\)"),
    (lambda: ConeBeamCT.from_vectors(8, torch.full((2, 12), math.inf), (9, 9)),
     "want finite vectors"),
    (lambda: ConeBeamCT.from_vectors(8, torch.zeros(2, 12), (9, 9)), "of no area, in view 0"),
])
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.filterwarnings("default")
def test_a_detector_that_misses_is_named_with_what_it_covers() -> None:
    # a slab of half the width of a ball is (3 / 2 - 1 / 8) / 2 = .69 of it
    with pytest.warns(UserWarning, match=r"covers 71\.2% .*on average over the views"):
        ConeBeamCT(16, turn(4), (40, 8), 1e4)
    with pytest.warns(UserWarning, match=r"covers \d+\.\d% .*in any view"):
        ConeBeamCT((40, 8, 8), turn(8), (4, 20), 40.0, 0.0, pitch=2.0)
