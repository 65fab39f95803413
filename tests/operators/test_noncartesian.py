"""Non-Cartesian MRI: the exact sum, other libraries, its normal operator, off-resonance."""

import copy
import io
import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.operators import check
from recon.operators.mri import CartesianMRI, NonCartesianMRI, noncartesian, trajectories

C64, C128 = torch.complex64, torch.complex128
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = C128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def anywhere(samples: int, size: tuple[int, ...], seed: int = 0) -> Tensor:
    """Frequencies all over k-space, its edges among them."""
    u = torch.rand(samples, len(size), dtype=torch.float64,
                   generator=torch.Generator().manual_seed(seed)) - 0.5
    u[:2] = torch.tensor([[0.5], [-0.5]])
    return u * torch.tensor(size)


def exact_matrix(k: Tensor, size: tuple[int, ...]) -> Tensor:
    """The transform term by term, ``(samples, pixels)``."""
    axes = [torch.arange(n) - n // 2 for n in size]
    r = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(size)).double()
    angle = -2 * math.pi * (k.reshape(-1, len(size)) / torch.tensor(size)) @ r.T
    return torch.polar(torch.ones_like(angle), angle) / math.sqrt(math.prod(size))


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


SIZES = [(32, 32), (31, 27), (24, 25), (8, 9, 10), (7, 12, 5), (5, 4)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("options", "limit"), [
    ({}, 2.5e-4), ({"tolerance": 2.5e-6}, 2.5e-6),
    ({"backend": "finufft", "tolerance": 1e-4}, 1.5e-4),
    ({"backend": "finufft", "tolerance": 1e-9}, 1e-8),
])
def test_the_exact_sum(size: tuple[int, ...], options: dict[str, Any], limit: float) -> None:
    if options.get("backend") == "finufft":
        pytest.importorskip("finufft")
    k = anywhere(300, size)
    A, F = NonCartesianMRI(size, k, **options), exact_matrix(k, size)
    x, y = noise(2, 1, *size), noise(2, 1, 300, seed=1)

    def assert_exact(forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor],
                     ) -> None:
        assert relative(forward(x).flatten(1), x.flatten(1) @ F.mT) <= limit
        assert relative(adjoint(y).flatten(1), y.flatten(1) @ F.conj()) <= limit

    assert_exact(A, A.adjoint)
    left = torch.linalg.vecdot(A(x).flatten(), y.flatten())
    right = torch.linalg.vecdot(x.flatten(), A.adjoint(y).flatten())
    assert abs(left - right) <= 1e-12 * A(x).norm() * y.norm()
    single = NonCartesianMRI(size, k.float(), **options)
    if limit > 1e-6:
        assert relative(single(x.to(C64)).flatten(1), x.flatten(1) @ F.mT) <= limit + 1e-6
    units, signs, exchanged = (NonCartesianMRI(size, other, **options) for other in (
        0.98 * k, -k, (k / torch.tensor(size)).roll(1, -1) * torch.tensor(size)))
    for forward in (units, signs, exchanged, lambda x: A(x.roll(1, -1)), lambda x: A(x) * 1.001):
        with pytest.raises(AssertionError):
            assert_exact(forward, A.adjoint)
    with pytest.raises(AssertionError):
        assert_exact(A, signs.adjoint)


def test_whole_frequencies_are_cartesian() -> None:
    for size in ((6, 8), (7, 5), (4, 3, 6)):
        grid = torch.stack(torch.meshgrid(
            *(torch.arange(n) - n // 2 for n in size), indexing="ij"), -1).double()
        maps = noise(2, *size)
        B = CartesianMRI(size, None, maps)
        x = noise(3, 1, *size, seed=1)
        for tolerance in (2.5e-4, 2.5e-6):  # also where all samples lie on the grid
            A = NonCartesianMRI(size, grid, maps, tolerance=tolerance)
            assert A.range.shape == B.range.shape
            assert relative(A(x), B(x)) < tolerance
            assert relative(A.adjoint(B(x)), B.normal(x)) < tolerance
        assert relative(A.normal(x), B.normal(x)) < 1e-6


@pytest.mark.parametrize("items", [(), (3,)])
@pytest.mark.parametrize("sets", [1, 2])
def test_coils_sets_and_items(items: tuple[int, ...], sets: int) -> None:
    size, k = (6, 7), anywhere(40, (6, 7)).view(5, 8, 2)
    maps = noise(*items, *((sets,) if sets > 1 else ()), 3, *size)
    plain = NonCartesianMRI(size, k)
    x = noise(2, 3, sets, *size, seed=1)
    wide = maps.reshape(-1, sets, 3, *size).expand(3, -1, -1, -1, -1) if not items else (
        maps.reshape(3, sets, 3, *size))
    images = torch.einsum("ischw,bishw->bichw", wide, x)
    want = plain(images.reshape(-1, 1, *size)).view(2, 3, 3, 5, 8)
    for toeplitz in (False, True):
        A = NonCartesianMRI(size, k, maps, sets, toeplitz=toeplitz)
        assert A.range.shape == (3, 5, 8)
        torch.testing.assert_close(A(x), want)
        pulled = A.adjoint(want)
        for i in range(3):
            alone = NonCartesianMRI(size, k, maps[i] if items else maps, sets, toeplitz=toeplitz)
            torch.testing.assert_close(A(x)[:, i], alone(x[:, i]))
            torch.testing.assert_close(pulled[:, i], alone.adjoint(want[:, i]))
            torch.testing.assert_close(A.normal(x)[:, i], alone.normal(x[:, i]))
        assert relative(A.normal(x), pulled) < (5e-4 if toeplitz else 1e-14)
    if items:
        with pytest.raises(ValueError, match=r"trajectories or maps for items \(3,\), got a batch "
                                             r"of \(2,\)"):
            A(x[0, :2])


@pytest.mark.parametrize("toeplitz", [False, True])
@pytest.mark.parametrize("lead", [(), (2,), (9,)])
def test_frames_with_trajectories_of_their_own(toeplitz: bool, lead: tuple[int, ...]) -> None:
    """A golden-angle series: every frame is the exact sum over its own spokes, coils shared."""
    size, frames = (8, 7), 4
    k = trajectories.golden_angle(7, 3 * frames, 10).view(frames, 3, 10, 2).double()
    maps = noise(2, *size)
    A = NonCartesianMRI(size, k, maps, item_axes=1, toeplitz=toeplitz)
    assert A.items == (frames,)
    assert A.range.shape == (2, 3, 10)
    x, y = noise(*lead, frames, 1, *size, seed=1), noise(*lead, frames, 2, 3, 10, seed=2)
    exact = torch.stack([exact_matrix(one, size) for one in k])  # (frames, samples, pixels)
    images = (maps * x).flatten(-2)
    want = torch.einsum("fjn,...fcn->...fcj", exact, images).view(y.shape)
    back = torch.einsum("fjn,...fcj->...fcn", exact.conj(), y.flatten(-2))
    pulled = (maps.conj() * back.view(*y.shape[:-2], *size)).sum(-3, keepdim=True)
    gram = torch.einsum("fjn,fjm,...fcm->...fcn", exact.conj(), exact, images)
    normal = (maps.conj() * gram.view(*y.shape[:-2], *size)).sum(-3, keepdim=True)

    def assert_exact(B: NonCartesianMRI) -> None:
        assert relative(B(x), want) < 2.5e-4
        assert relative(B.adjoint(y), pulled) < 2.5e-4
        assert relative(B.normal(x), normal) < (1e-7 if toeplitz else 5e-4)

    assert_exact(A)
    for wrong in (NonCartesianMRI(size, k[0], maps, toeplitz=toeplitz),  # all with the first
                  *(NonCartesianMRI(size, other, maps, item_axes=1, toeplitz=toeplitz)
                    for other in (k[:1].expand_as(k), k.flip(0), k.roll(1, 0)))):
        with pytest.raises(AssertionError):
            assert_exact(wrong)
    # maps of each frame, and a trajectory that all slices share within (slices, frames)
    each = noise(frames, 2, *size, seed=3)
    B = NonCartesianMRI(size, k, each, item_axes=1, toeplitz=toeplitz)
    alone = [NonCartesianMRI(size, one, S, toeplitz=toeplitz)
             for one, S in zip(k, each, strict=True)]
    torch.testing.assert_close(B(x), torch.stack([C(x[..., f, :, :, :])
                                                  for f, C in enumerate(alone)], -4))
    one = NonCartesianMRI(size, k[:1], maps, item_axes=1)  # as a mask of one item, shared
    assert one.items == ()
    torch.testing.assert_close(one(x[..., 0, :, :, :]), A(x)[..., 0, :, :, :])


def test_frames_of_slices_volumes_and_off_resonance() -> None:
    size = (6, 5)
    k = anywhere(2 * 3 * 8, size).view(2, 3, 8, 2)
    maps = noise(3, 4, *size)  # of each of three frames, both slices alike
    A = NonCartesianMRI(size, k, maps, item_axes=2)
    x = noise(2, 2, 3, 1, *size, seed=1)
    for s, f in itertools.product(range(2), range(3)):
        alone = NonCartesianMRI(size, k[s, f], maps[f])
        torch.testing.assert_close(A(x)[:, s, f], alone(x[:, s, f]))
    k3 = anywhere(2 * 9, (4, 5, 3)).view(2, 9, 3)
    x = noise(2, 1, 4, 5, 3)
    want = [x[f].flatten() @ exact_matrix(k3[f], (4, 5, 3)).mT for f in range(2)]
    got = NonCartesianMRI((4, 5, 3), k3, item_axes=1)(x)
    assert relative(got[:, 0], torch.stack(want)) < 2.5e-4
    field = 30 * noise(*size).real
    times = torch.linspace(0, 0.02, 2 * 8, dtype=torch.float64).view(2, 1, 8)
    B = NonCartesianMRI(size, k, item_axes=2, off_resonance=field, times=times)
    x = noise(2, 3, 1, *size, seed=4)
    for s in range(2):
        alone = NonCartesianMRI(size, k[s, 1], off_resonance=field, times=times[s, 0])
        torch.testing.assert_close(B(x)[s, 1], alone(x[s, 1]))
    assert 0 < B.off_resonance_error <= 2.5e-4
    twin = NonCartesianMRI(size, k.flip(0), item_axes=2, off_resonance=field, times=times.flip(0))
    twin.load_state_dict(B.state_dict())
    torch.testing.assert_close(twin(x), B(x), atol=1e-12, rtol=1e-9)
    mixed = A.mixed(noise(2, 4, seed=5))
    assert mixed.items == (2, 3)
    assert mixed.range.shape == (2, 8)


def test_more_images_than_one_product_takes() -> None:
    k = anywhere(50, (6, 8))
    A = NonCartesianMRI((6, 8), k)
    x, y = noise(19, 1, 6, 8), noise(19, 1, 50)
    torch.testing.assert_close(A(x), torch.stack([A(one) for one in x]))
    torch.testing.assert_close(A.adjoint(y), torch.stack([A.adjoint(one) for one in y]))
    assert A(x[:0]).shape == (0, 1, 50)


@pytest.mark.parametrize("size", [(12, 12), (11, 14), (6, 5, 4)])
def test_toeplitz_is_the_exact_normal_operator(size: tuple[int, ...]) -> None:
    k = anywhere(150, size)
    F, x = exact_matrix(k, size), noise(2, 1, *size)
    want = (x.flatten(1) @ F.mT @ F.conj()).view_as(x)
    A = NonCartesianMRI(size, k, toeplitz=True)
    limit = 1e-8 if len(size) == 2 else 1e-6

    def assert_exact(normal: Callable[[Tensor], Tensor]) -> None:
        assert relative(normal(x), want) < limit

    assert_exact(A.normal)
    for wrong in (lambda x: A.normal(x.conj()).conj(),
                  lambda x: NonCartesianMRI(size, -k, toeplitz=True).normal(x),
                  lambda x: NonCartesianMRI(size, k, toeplitz=False).normal(x)):
        with pytest.raises(AssertionError):
            assert_exact(wrong)
    z = noise(2, 1, *size, seed=3)
    left, right = torch.vdot(A.normal(x).flatten(), z.flatten()), torch.vdot(
        x.flatten(), A.normal(z).flatten())
    assert abs(left - right) <= 1e-14 * A.normal(x).norm() * z.norm()  # Hermitian to rounding
    assert torch.vdot(x.flatten(), A.normal(x).flatten()).real > 0
    assert relative(A.normal(x.to(C64)), want) < 1e-6
    assert torch.autograd.gradcheck(A.normal, (noise(1, *size).requires_grad_(),), fast_mode=True)


def test_toeplitz_is_chosen_by_the_number_of_samples() -> None:
    for size in ((16, 16), (6, 6, 6)):
        few, many = (NonCartesianMRI(size, anywhere(n * math.prod(size) // 8, size))
                     for n in (1, 30))
        assert few.encodings[0].kernel is None
        assert many.encodings[0].kernel is not None
        forced = NonCartesianMRI(size, few.trajectory, toeplitz=True)
        assert forced.encodings[0].kernel is not None
        left_out = NonCartesianMRI(size, many.trajectory, toeplitz=False)
        assert left_out.encodings[0].kernel is None


@pytest.mark.parametrize("backend", ["gridding", "finufft"])
def test_differentiable(backend: Any) -> None:
    if backend == "finufft":
        pytest.importorskip("finufft")
    for size in ((3, 4), (2, 3, 2)):
        A = NonCartesianMRI(size, anywhere(7, size), noise(2, *size), backend=backend)
        x, y = noise(2, *A.domain.shape).requires_grad_(), noise(*A.range.shape).requires_grad_()
        assert torch.autograd.gradcheck(A, (x,), check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(A, (x,), fast_mode=True)
        assert torch.autograd.gradcheck(A.adjoint, (y,), fast_mode=True)
        many = noise(4, *A.domain.shape)
        torch.testing.assert_close(torch.vmap(A)(many), A(many))


def test_copies_saves_and_moves() -> None:
    maps = noise(2, 6, 8)
    options: list[dict[str, Any]] = [
        {}, {"toeplitz": True}, {"backend": "finufft"},
        {"off_resonance": 20 * noise(6, 8).real, "times": torch.linspace(0, 0.01, 30)}]
    for option in options:
        if "backend" in option:
            pytest.importorskip("finufft")
        A = NonCartesianMRI((6, 8), anywhere(30, (6, 8)), maps, **option)
        x = noise(1, 6, 8, dtype=C64)
        before = A(x), A.normal(x)
        twin = copy.deepcopy(A)
        torch.testing.assert_close((twin(x), twin.normal(x)), before, atol=0, rtol=0)
        other = {name: t.flip(0) if name == "times" else 0.5 * t for name, t in option.items()
                 if isinstance(t, Tensor)}
        twin = NonCartesianMRI((6, 8), anywhere(30, (6, 8), seed=1), -maps, **(option | other))
        assert relative(twin(x), before[0]) > 0.1
        twin.normal(x)  # fills what is kept
        file = io.BytesIO()
        torch.save(A.state_dict(), file)
        file.seek(0)
        twin.load_state_dict(torch.load(file, weights_only=True))
        torch.testing.assert_close((twin(x), twin.normal(x)), before, atol=1e-6, rtol=1e-6)
        double = A.to(torch.float64)(x.to(C128))
        assert double.dtype == C128
        assert relative(double, before[0]) < 1e-5
    with pytest.raises(ValueError, match="want the state of an operator of"):
        twin.load_state_dict(NonCartesianMRI((6, 8), anywhere(30, (6, 8)), maps).state_dict())


def test_contract_of_the_toeplitz_normal() -> None:
    """All rows but the normal operator, which is the exact sum's: off by the tolerance, no more."""
    k = anywhere(60, (5, 6))
    for tolerance in (2.5e-4, 2.5e-6):
        A = NonCartesianMRI((5, 6), k, noise(2, 5, 6, dtype=C64), tolerance=tolerance,
                            toeplitz=True)
        report = check(A, batches=((2,),), scales=(1.0,))
        failed = {row.name: row.value for row in report.rows if not row.passed}
        assert failed.keys() == {"normal"}, str(report)
        assert failed["normal"] < tolerance


def test_finufft_agrees() -> None:
    finufft = pytest.importorskip("finufft")
    size, k = (32, 30), trajectories.radial(32, 12).reshape(-1, 2)
    k = k * torch.tensor([1, 30 / 32])
    x = noise(1, *size)
    points = [(2 * math.pi * k[:, d].double() / n).numpy() for d, n in enumerate(size)]
    theirs = finufft.nufft2d2(*points, x[0].numpy(), eps=1e-12, isign=-1) / math.sqrt(32 * 30)
    for tolerance in (2.5e-4, 2.5e-6):
        A = NonCartesianMRI(size, k, tolerance=tolerance)
        assert relative(A(x)[0], torch.from_numpy(theirs)) < tolerance
        back = finufft.nufft2d1(*points, theirs, size, eps=1e-12, isign=1) / math.sqrt(32 * 30)
        assert relative(A.adjoint(torch.from_numpy(theirs)[None])[0],
                        torch.from_numpy(back)) < tolerance


def bart(folder: Path, call: list[str], shape: tuple[int, ...], **inputs: np.ndarray) -> np.ndarray:
    for name, array in inputs.items():
        (folder / f"{name}.hdr").write_text(
            "# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
        (folder / f"{name}.cfl").write_bytes(array.astype("<c8").tobytes(order="F"))
    subprocess.run(["bart", *call], check=True, capture_output=True, cwd=folder)
    return np.fromfile(folder / "out.cfl", "<c8").reshape(shape, order="F")


@needs_bart
def test_bart_nufft_and_fft(tmp_path: Path) -> None:
    """``bart nufft`` has its trajectory along its own axes, in cycles per field of view.

    Its kernel does not reach around the edge of k-space, which is left out.
    """
    size = (32, 24)
    k = 0.85 * trajectories.radial(32, 9) * torch.tensor([1, 24 / 32])
    x = noise(1, *size, dtype=C64)
    spokes, readout = k.shape[:2]
    t = np.zeros((3, readout, spokes))
    t[:2] = k.permute(2, 1, 0).numpy()
    shape = (1, readout, spokes)
    theirs = torch.from_numpy(bart(tmp_path, ["nufft", "t", "x", "out"], shape, t=t,
                                   x=x[0].numpy())[0].T.copy())
    A = NonCartesianMRI(size, k, tolerance=2.5e-6)

    def assert_agrees(ours: Tensor) -> None:
        assert relative(ours, theirs) < 2e-3  # of BART, against the exact sum: 1e-3

    assert_agrees(A(x)[0])
    y = noise(1, spokes, readout, dtype=C64, seed=1)
    back = bart(tmp_path, ["nufft", "-a", "-d", f"{size[0]}:{size[1]}:1", "t", "y", "out"], size,
                t=t, y=y[0].numpy().T[None])
    assert relative(A.adjoint(y)[0], torch.from_numpy(back.copy())) < 2e-3
    for wrong in (A(x)[0].conj(), A(x.mT.reshape(1, *size))[0], A(x)[0].flip(-1), 1.01 * A(x)[0]):
        with pytest.raises(AssertionError):
            assert_agrees(wrong)
    for n in ((8, 6), (7, 9)):  # the unitary transform of Cartesian sampling
        x = noise(1, *n, dtype=C64)
        theirs = torch.from_numpy(bart(tmp_path, ["fft", "-u", "3", "x", "out"], n,
                                       x=x[0].numpy()).copy())
        assert relative(CartesianMRI(n)(x)[0], theirs) < 1e-6


@needs_bart
def test_bart_in_three_dimensions(tmp_path: Path) -> None:
    size, k = (10, 12, 8), 0.6 * anywhere(200, (10, 12, 8))
    x = noise(1, *size, dtype=C64)
    theirs = bart(tmp_path, ["nufft", "t", "x", "out"], (200,), t=k.T.numpy()[:, :, None],
                  x=x[0].numpy())
    A = NonCartesianMRI(size, k)
    assert relative(A(x)[0], torch.from_numpy(theirs.copy())) < 3e-3


def field_and_times(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A field from -90 to 130 Hz, and 40 instants of 20 ms, from before the echo on."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in size),
                          indexing="ij")
    bent = sum(a * (i + 1) + 0.6 * a**2 for i, a in enumerate(axes))
    assert isinstance(bent, Tensor)
    field = (bent - bent.min()) / (bent.max() - bent.min()) * 220 - 90
    return field, torch.linspace(-0.004, 0.016, 40, dtype=torch.float64)


@pytest.mark.parametrize("size", [(16, 14), (5, 6, 7)])
@pytest.mark.parametrize("tolerance", [2.5e-4, 2.5e-6])
def test_off_resonance_is_the_exact_sum(size: tuple[int, ...], tolerance: float) -> None:
    field, times = field_and_times(size)
    k = anywhere(200, size).view(5, 40, len(size))
    A = NonCartesianMRI(size, k, off_resonance=field, times=times, tolerance=tolerance)
    assert 0 < A.off_resonance_error <= tolerance
    assert len(A.encodings[0].inner.images) < 20  # of 40 instants
    turned = torch.polar(torch.ones(200, field.numel(), dtype=torch.float64),
                         -2 * math.pi * times.repeat(5)[:, None] * field.flatten())
    F = exact_matrix(k, size) * turned
    x, y = noise(2, 1, *size), noise(2, 1, 5, 40, seed=1)

    def assert_exact(B: NonCartesianMRI) -> None:
        assert relative(B(x).flatten(1), x.flatten(1) @ F.mT) < 2 * tolerance
        assert relative(B.adjoint(y).flatten(1), y.flatten(1) @ F.conj()) < 2 * tolerance

    assert_exact(A)
    assert relative(A.normal(x), (x.flatten(1) @ F.mT @ F.conj()).view_as(x)) < 4 * tolerance
    careless: list[dict[str, Any]] = [
        {"off_resonance": -field, "times": times},
        {"off_resonance": field, "times": times - times[0]},
        {"off_resonance": 2 * math.pi * field, "times": times}, {}]
    for wrong in careless:
        with pytest.raises(AssertionError):
            assert_exact(NonCartesianMRI(size, k, tolerance=tolerance, **wrong))
    still = NonCartesianMRI(size, k, off_resonance=0 * field, times=times, tolerance=tolerance)
    assert len(still.encodings[0].inner.images) == 1
    torch.testing.assert_close(still(x), NonCartesianMRI(size, k, tolerance=tolerance)(x))


def test_a_series_of_one_frame_with_times() -> None:
    size = (6, 5)
    k, field = anywhere(12, size).view(1, 3, 4, 2), 30 * noise(*size).real
    times = torch.linspace(0, 0.02, 12, dtype=torch.float64).view(1, 3, 4)
    A = NonCartesianMRI(size, k, item_axes=1, off_resonance=field, times=times)
    alone = NonCartesianMRI(size, k[0], off_resonance=field, times=times[0])
    x = noise(1, *size)
    assert torch.equal(A(x), alone(x))
    assert torch.equal(A(x[None])[0], alone(x))


def test_one_buffer_for_every_frame() -> None:
    """What is built late is of the trajectory given, not of what a caller wrote there since."""
    size, x = (16, 16), noise(1, 16, 16)
    fields = [30 * noise(*size, seed=i).real for i in range(2)]
    k, field = torch.empty(40, 32, 2, dtype=torch.float64), torch.empty(size, dtype=torch.float64)
    times = torch.linspace(0, 0.02, 32, dtype=torch.float64).expand(40, 32).contiguous()
    made: list[NonCartesianMRI] = []
    alone: list[NonCartesianMRI] = []
    for i in range(2):
        k[:] = trajectories.golden_angle(16, 40, first=40 * i) * (1 - 0.4 * i)
        field[:] = fields[i]
        times *= 1 - 0.5 * i
        for found, copied in ((made, lambda t: t), (alone, torch.clone)):
            found += [NonCartesianMRI(size, copied(k), toeplitz=True),
                      NonCartesianMRI(size, copied(k), off_resonance=copied(field),
                                      times=copied(times))]
    matrix = noise(2, 1, seed=5)
    for A, B in zip(made, alone, strict=True):
        assert torch.equal(A.normal(x), B.normal(x))
        assert relative(A.normal(x), A.adjoint(A(x))) <= 5e-4
        assert torch.equal(A.mixed(matrix)(x), B.mixed(matrix)(x))
        state = A.state_dict()["_extra_state"]
        assert all(torch.equal(t, state[name]) for name, t in
                   B.state_dict()["_extra_state"].items())


def test_mixed() -> None:
    field, times = field_and_times((6, 8))
    k = anywhere(80, (6, 8)).view(2, 40, 2)
    matrix = noise(2, 3, seed=5)
    options: list[dict[str, Any]] = [{}, {"off_resonance": field, "times": times}]
    for option in options:
        A = NonCartesianMRI((6, 8), k, noise(3, 6, 8), **option)
        x = noise(2, 1, 6, 8)
        torch.testing.assert_close(A.mixed(matrix)(x),
                                   torch.einsum("vc,bc...->bv...", matrix, A(x)))


K = anywhere(20, (16, 18))


@pytest.mark.parametrize(("k", "options", "error", "message"), [
    (K[:, :1], {}, ValueError, r"real trajectory \(\*samples, 2\) for an image of 2 axes, got"),
    (K + 0j, {}, ValueError, "want a real trajectory.*complex128"),
    (K[:0], {}, ValueError, r"the trajectory \(0, 2\) has no samples"),
    (K.index_fill(0, torch.tensor(3), math.nan), {}, ValueError,
     r"want a finite trajectory, got nan at sample \(3,\)"),
    (K * 2.5, {}, ValueError, r"reaches \(.*an image \(16, 18\) has frequencies up to half"),
    (K, {"maps": torch.zeros(2, 16, 18, dtype=C64)}, ValueError, "MRI: maps are all zero"),
    (K, {"maps": torch.ones(2, 18, 16, dtype=C64)}, ValueError, r"maps \(coils, 16, 18\).*got"),
    (K, {"sets": 2}, ValueError, "2 sets want maps of each, got none"),
    (K, {"tolerance": 1e-7}, ValueError, "tolerance of 2.5e-06, got 1e-07: take backend="),
    (K, {"tolerance": 0.0}, ValueError, "want a tolerance between 0 and 0.1, got 0.0"),
    (K, {"backend": "nfft"}, ValueError, "want backend gridding or finufft, got 'nfft'"),
    (K, {"item_axes": 1}, ValueError, r"item_axes from 0 to 0 of a trajectory \(20, 2\), which is"),
    (K[None], {"item_axes": -1}, ValueError, r"from 0 to 1 of a trajectory \(1, 20, 2\).*got -1"),
    (K.view(4, 5, 2), {"item_axes": 1, "maps": torch.ones(3, 2, 16, 18, dtype=C64)}, ValueError,
     r"trajectory is for items \(4,\), maps for \(3,\): give both for the same items"),
    (K, {"times": torch.ones(20)}, ValueError, "off_resonance and times want each other, got one"),
    (K, {"times": torch.ones(20), "off_resonance": torch.ones(16, 17)}, ValueError,
     r"want off_resonance \(16, 18\) in Hz, got \(16, 17\)"),
    (K, {"times": torch.ones(19), "off_resonance": torch.ones(16, 18)}, ValueError,
     r"broadcast to the samples \(20,\), got \(19,\)"),
    (K, {"times": torch.ones(20) * math.inf, "off_resonance": torch.ones(16, 18)}, ValueError,
     r"want finite times, got inf at sample \(0,\)"),
    (K, {"times": torch.ones(20), "off_resonance": torch.full((16, 18), math.nan)}, ValueError,
     r"finite off_resonance, got nan at pixel \(0, 0\)"),
    (K, {"times": torch.ones(20), "off_resonance": torch.ones(16, 18), "toeplitz": True},
     ValueError, "not Toeplitz: leave toeplitz out"),
])
def test_refusals(k: Tensor, options: dict[str, Any], error: type[Exception],
                  message: str) -> None:
    with pytest.raises(error, match=message):
        NonCartesianMRI((16, 18), k, **options)


def test_refuses_batches_of_other_frames() -> None:
    A = NonCartesianMRI((16, 18), K.view(4, 5, 2), item_axes=1)
    for call in (lambda: A(noise(3, 1, 16, 18)), lambda: A(noise(1, 16, 18)),
                 lambda: A.adjoint(noise(4, 2, 1, 5)), lambda: A.normal(noise(4, 1, 1, 16, 18))):
        with pytest.raises(ValueError, match=r"items \(4,\), got a batch of .* must be \(4,\)"):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"want \(\*batch, 1, 5\), got \(4, 5\)"):
        A.adjoint(noise(4, 5))


def test_warns_of_other_units() -> None:
    for k in (K / 16, 2 * math.pi * K / 18):
        with pytest.warns(UserWarning, match=r"reaches .* of 8 cycles per field of view: multiply"):
            NonCartesianMRI((16, 18), k)


def test_too_many_weights_and_no_finufft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.operators.mri.gridding._MOST_WEIGHTS", 1000)
    with pytest.raises(ValueError, match=r"20 samples of 7\^3 weights are more than 1000"):
        NonCartesianMRI((16, 16, 16), anywhere(20, (16, 16, 16)))
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(ImportError, match=r'pip install "recon\[finufft\]", or take backend="grid'):
        NonCartesianMRI((16, 18), K, backend="finufft")


def test_on_another_device() -> None:
    A = NonCartesianMRI((16, 18), K, noise(2, 16, 18, dtype=C64))
    assert {t.device.type for t in A.to("meta").buffers()} == {"meta"}
    pytest.importorskip("finufft")
    B = NonCartesianMRI((16, 18), K, backend="finufft")
    with pytest.raises(TypeError, match="runs on the CPU, the data are on meta: take backend=\"gr"):
        B(torch.ones(1, 16, 18, dtype=C64, device="meta"))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    k = anywhere(60, (9, 8))
    A = NonCartesianMRI((9, 8), k, noise(5, 9, 8), toeplitz=True)
    x = noise(3, 1, 9, 8)
    want = A(x), A.adjoint(A(x)), A.normal(x)
    monkeypatch.setattr(noncartesian, "_AT_ONCE", 2)
    monkeypatch.setattr("recon.operators.mri.gridding._GRID_BYTES", 1)
    monkeypatch.setattr("recon.operators.mri.gridding._BUILD_CHUNK", 100)
    monkeypatch.setattr("recon.operators.mri.toeplitz._BUILD_CHUNK", 1000)
    B = NonCartesianMRI((9, 8), k, A.maps, toeplitz=True)
    torch.testing.assert_close((B(x), B.adjoint(B(x)), B.normal(x)), want)
