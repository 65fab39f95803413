"""Cartesian MRI of volumes, of series of frames, and with several sets of coil maps."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.operators.mri import CartesianMRI, cartesian

C64, C128 = torch.complex64, torch.complex128
Kind = Callable[[tuple[int, ...]], CartesianMRI]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = C128) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def sampled(*shape: int, seed: int = 0) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[..., shape[-1] // 2] = True
    return mask


# size -> operator in double precision
KINDS: dict[str, Kind] = {
    "volume": lambda s: CartesianMRI(s),
    "volume, columns": lambda s: CartesianMRI(s, sampled(s[-1]), noise(2, *s)),
    "volume, phase encodings": lambda s: CartesianMRI(s, sampled(*s[-2:]), noise(3, *s)),
    "volume, points": lambda s: CartesianMRI(s, sampled(*s), noise(2, *s)),
    "volume, a mask of planes": lambda s: CartesianMRI(
        s, sampled(s[0])[:, None, None].expand(s), noise(2, *s)),
    "volume, two sets": lambda s: CartesianMRI(s, sampled(*s[-2:]), noise(2, 3, *s), sets=2),
}
SLICES: dict[str, Kind] = {
    "two sets, columns": lambda s: CartesianMRI(s, sampled(s[-1]), noise(2, 4, *s), sets=2),
    "three sets, points": lambda s: CartesianMRI(s, sampled(*s), noise(3, 4, *s), sets=3),
}
TABLE = [*((name, kind, size) for name, kind in KINDS.items()
           for size in ((4, 6, 8), (5, 7, 3))),
         *((name, kind, size) for name, kind in SLICES.items() for size in ((8, 6), (7, 9)))]


def by_definition(A: CartesianMRI, x: Tensor) -> Tensor:
    """The sum over sets by ``einsum``, shifted and transformed by numpy."""
    size = A.range.shape[1:]
    maps = torch.ones(1, *size, dtype=C128) if A.maps is None else A.maps
    maps = maps.reshape(A.sets, A.range.shape[0], *size)
    coils = torch.einsum("sc...,bs...->bc...", maps, x).numpy()
    axes = tuple(range(-len(size), 0))
    k = np.fft.fftn(np.fft.ifftshift(coils, axes), axes=axes, norm="ortho")
    return torch.where(A.mask, torch.from_numpy(np.fft.fftshift(k, axes)), 0)


def assert_right(A: CartesianMRI, forward: Callable[[Tensor], Tensor]) -> None:
    x, y = noise(2, *A.domain.shape, seed=1), noise(2, *A.range.shape, seed=2)
    Ax = forward(x)
    torch.testing.assert_close(Ax, by_definition(A, x))
    left, right = torch.vdot(Ax.flatten(), y.flatten()), torch.vdot(x.flatten(),
                                                                    A.adjoint(y).flatten())
    assert abs(left - right) <= 1e-12 * Ax.norm() * y.norm()
    torch.testing.assert_close(A.normal(x), A.adjoint(Ax))


@pytest.mark.parametrize(("name", "kind", "size"), TABLE)
@pytest.mark.parametrize("blocks", [False, True])
def test_definition(name: str, kind: Kind, size: tuple[int, ...], blocks: bool,
                    monkeypatch: pytest.MonkeyPatch) -> None:
    if blocks:  # the path of large data
        monkeypatch.setattr(cartesian, "_WHOLE_BATCH_BYTES", 0)
        monkeypatch.setattr(cartesian, "_BLOCK_BYTES", 500)
    A = kind(size)
    assert_right(A, A)
    if "volume, p" in name:
        for wrong in (lambda x: A(x.mT.contiguous().mT.flip(-3)),  # another axis read out
                      lambda x: A(x) * 1.01, lambda x: torch.where(A.mask.flip(-1), A(x), 0)):
            with pytest.raises(AssertionError):
                assert_right(A, wrong)


def test_readout_of_a_volume_cancels() -> None:
    """With a mask of the phase encodings, ``normal`` never transforms along the readout."""
    A = KINDS["volume, phase encodings"]((4, 6, 8))
    assert A.mask.shape == (1, 1, 6, 8)
    x = noise(1, 4, 6, 8)
    alone = torch.zeros_like(x)
    alone[:, 2] = x[:, 2]
    pulled = A.normal(alone)
    assert pulled[:, 2].abs().max() > 0
    pulled[:, 2] = 0
    assert not pulled.any()  # not even rounding reaches another plane
    assert CartesianMRI((4, 6, 8), sampled(8).expand(4, 6, 8)).mask.shape == (1, 1, 1, 8)


@pytest.mark.parametrize(("name", "kind", "size"), [row for row in TABLE if row[2][0] in (7, 5)])
def test_differentiable(name: str, kind: Kind, size: tuple[int, ...]) -> None:  # noqa: ARG001
    A = kind((2, 3, 2) if len(size) == 3 else (4, 3))
    x, y = noise(*A.domain.shape).requires_grad_(), noise(*A.range.shape).requires_grad_()
    assert torch.autograd.gradcheck(A, (x,))
    assert torch.autograd.gradcheck(A.adjoint, (y,))


@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("blocks", [False, True])
def test_series_of_frames(sets: int, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mask a frame, coil maps shared: every frame is what it is alone, and draws lead."""
    if blocks:
        monkeypatch.setattr(cartesian, "_WHOLE_BATCH_BYTES", 0)
    frames, h, w = 5, 6, 8
    masks = sampled(frames, 1, 1, w)
    maps = noise(3, h, w) if sets == 1 else noise(sets, 3, h, w)
    A = CartesianMRI((h, w), masks, maps, sets)
    assert A.items == (frames,)
    x, rhs = noise(2, frames, sets, h, w, seed=1), noise(2, frames, sets, h, w, seed=2)
    y = A(x)
    assert y.shape == (2, frames, 3, h, w)
    solved = A.solve(rhs, 0.3, rtol=1e-12)
    for i in range(frames):
        B = CartesianMRI((h, w), masks[i], maps, sets)
        torch.testing.assert_close(y[:, i], B(x[:, i]))
        torch.testing.assert_close(A.adjoint(y)[:, i], B.adjoint(y[:, i]))
        torch.testing.assert_close(A.normal(x)[:, i], B.normal(x[:, i]))
        torch.testing.assert_close(solved[:, i], B.solve(rhs[:, i], 0.3, rtol=1e-12))
    # the masks of another order are another model
    assert not torch.equal(CartesianMRI((h, w), masks.flip(0), maps, sets)(x), y)


def test_frames_of_volumes() -> None:
    masks = sampled(3, 1, 1, 4, 5)
    A = CartesianMRI((2, 4, 5), masks, noise(2, 2, 4, 5))
    x = noise(3, 1, 2, 4, 5)
    assert A.mask.shape == (3, 1, 1, 4, 5)
    for i in range(3):
        B = CartesianMRI((2, 4, 5), masks[i], A.maps)
        torch.testing.assert_close(A.normal(x)[i], B.normal(x[i]))


def test_a_channel_of_one_may_lead_the_shape() -> None:
    for shape, images in {(1, 4, 5): (1, 4, 5), (1, 1, 4, 5): (1, 1, 4, 5),
                          (1, 2, 4, 5): (1, 2, 4, 5), (2, 4, 5): (1, 2, 4, 5)}.items():
        assert CartesianMRI(shape).domain.shape == images


def test_closed_form_in_a_volume() -> None:
    for mask in (sampled(5), sampled(4, 5), sampled(3, 4, 5)):
        A = CartesianMRI((3, 4, 5), mask)
        rhs = noise(2, 1, 3, 4, 5)
        x = A.solve(rhs, 0.2)
        torch.testing.assert_close(A.normal(x) + 0.2 * x, rhs)


def test_soft_sense_has_one_image_a_set() -> None:
    """Two objects, each through maps of its own, come apart again from complete data."""
    maps, x = noise(2, 4, 6, 5), noise(2, 6, 5, seed=1)
    A = CartesianMRI((6, 5), None, maps, sets=2)
    torch.testing.assert_close(A.solve(A.adjoint(A(x)), 0.0, max_iter=80, rtol=1e-14), x)
    one = [CartesianMRI((6, 5), None, S) for S in maps]
    torch.testing.assert_close(A(x), one[0](x[:1]) + one[1](x[1:]))


@pytest.mark.parametrize("sets", [1, 2])
def test_mixed_and_masked(sets: int) -> None:
    A = CartesianMRI((6, 5), sampled(5), noise(4, 6, 5) if sets == 1 else noise(sets, 4, 6, 5),
                     sets)
    matrix, x = noise(2, 4, seed=3), noise(3, sets, 6, 5)
    B = A.mixed(matrix)
    torch.testing.assert_close(B(x), torch.einsum("vc,bchw->bvhw", matrix, A(x)))
    assert torch.equal(A.mask, B.mask)
    kept = A.masked((torch.arange(5) % 2 == 0).expand(3, 4, 6, 5))
    assert isinstance(kept, CartesianMRI)
    torch.testing.assert_close(kept(x), torch.where(torch.arange(5) % 2 == 0, A(x), 0))
    one = CartesianMRI((6, 5)).mixed(noise(3, 1))
    torch.testing.assert_close(one(x[:, :1]), noise(3, 1)[..., None] * CartesianMRI((6, 5))(
        x[:, :1]))


@pytest.mark.parametrize(("mask", "maps", "sets", "error", "message"), [
    (torch.ones(5, 8), None, 1, ValueError, r"mask has 5 rows but the k-space has 6: pass \(wid"),
    (torch.ones(3, 6, 8), None, 1, ValueError, "mask has 3 planes but the k-space has 4"),
    (torch.ones(2, 1, 6, 8), None, 1, ValueError, r"2 where the coils are.*\(items, 1, 1, 1, wid"),
    (None, torch.ones(2, 6, 8, dtype=C64), 1, ValueError, r"maps \(coils, 4, 6, 8\).*got \(2, 6,"),
    (None, torch.ones(3, 2, 4, 6, 8, dtype=C64), 2, ValueError, r"2 sets, got 3.*pass sets=3"),
    (None, torch.ones(2, 4, 6, 8, dtype=C64), 2, ValueError, r"maps \(2 sets, coils, 4, 6, 8\)"),
    (None, None, 2, ValueError, "2 sets want maps of each, got none"),
    (None, torch.ones(2, 4, 6, 8, dtype=C64), 0, ValueError, "at least 1 set of maps, got sets=0"),
    (None, torch.zeros(2, 2, 4, 6, 8, dtype=C64), 2, ValueError, "maps are all zero"),
])
def test_refusals(mask: Tensor | None, maps: Tensor | None, sets: int, error: type[Exception],
                  message: str) -> None:
    with pytest.raises(error, match=message):
        CartesianMRI((4, 6, 8), mask, maps, sets)
