"""Trajectories by their closed forms, and their density against areas of k-space."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.operators.mri import NonCartesianMRI, pipe_menon, trajectories


def test_radial() -> None:
    k = trajectories.radial(32, 6)
    assert k.shape == (6, 64, 2)
    assert k.dtype == torch.float32
    radius = (torch.arange(64) - 32) / 2
    for i in range(6):
        angle = math.pi * i / 6
        want = torch.stack([radius * math.cos(angle), radius * math.sin(angle)], -1)
        torch.testing.assert_close(k[i], want)
    assert not k[:, 32].any()  # the centre
    odd = trajectories.radial(9, 2, 5)
    torch.testing.assert_close(odd[0, :, 0], torch.tensor([-3.6, -1.8, 0, 1.8, 3.6]))


def largest_gap(k: Tensor) -> float:
    """Between neighbouring spokes, as a share of an even spacing."""
    angle = torch.atan2(k[:, -1, 1], k[:, -1, 0]).remainder(math.pi).sort().values
    return float(torch.cat([angle.diff(), angle[:1] + math.pi - angle[-1:]]).max()) * len(
        k) / math.pi


def test_golden_angle_covers_any_run_of_spokes() -> None:
    k = trajectories.golden_angle(16, 60)
    turn = math.radians(111.246117975)
    torch.testing.assert_close(torch.atan2(k[1, -1, 1], k[1, -1, 0]), torch.tensor(turn))
    torch.testing.assert_close(trajectories.golden_angle(16, 7, first=20), k[20:27])

    def assert_even(k: Tensor) -> None:
        for first, count in ((0, 8), (5, 13), (20, 21), (3, 34), (10, 50)):
            assert largest_gap(k[first : first + count]) < 2.3

    assert_even(k)
    for wrong in (trajectories.radial(16, 60),):  # consecutive spokes of one half
        with pytest.raises(AssertionError):
            assert_even(wrong)


@pytest.mark.parametrize(("interleaves", "spacing"), [(1, 1.0), (6, 1.0), (8, 2.0)])
def test_spiral(interleaves: int, spacing: float) -> None:
    k = trajectories.spiral(32, interleaves, spacing=spacing).double()
    assert k.shape[0] == interleaves
    radius = k.norm(dim=-1)
    assert not k[:, 0].any()
    torch.testing.assert_close(radius[:, -1], torch.full((interleaves,), 16.0).double())
    # all turns lie on radius = pitch angle / (2 pi), the interleaves evenly turned
    along = torch.atan2(k[..., 1], k[..., 0]) - 2 * math.pi * torch.arange(interleaves)[:, None] / (
        interleaves)
    off = (radius / (interleaves * spacing) - along / (2 * math.pi)).remainder(1)
    assert float(torch.minimum(off, 1 - off)[:, 1:].max()) < 1e-5
    # evenly along the curve; chords are a little shorter than arcs, at most near the centre
    step = k.diff(dim=1).norm(dim=-1)
    assert float(step.max()) <= 0.5
    assert float(step[:, 5:].min()) > 0.97 * float(step.max())
    assert trajectories.spiral(32, interleaves, 100).shape == (interleaves, 100, 2)


def test_stack() -> None:
    k = trajectories.stack(trajectories.radial(16, 3), torch.arange(-2, 2))
    assert k.shape == (12, 32, 3)
    assert torch.equal(k[:3, :, 0], torch.full((3, 32), -2.0))
    torch.testing.assert_close(k[9:, :, 1:], trajectories.radial(16, 3))


def test_refusals() -> None:
    for call in (lambda: trajectories.radial(0, 3), lambda: trajectories.golden_angle(16, 0),
                 lambda: trajectories.radial(16, 3, 0), lambda: trajectories.spiral(16, -1)):
        with pytest.raises(ValueError, match=r"want (size|spokes|readout|interleaves) of at least"):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="want a positive spacing, got 0"):
        trajectories.spiral(16, 3, spacing=0)
    with pytest.raises(ValueError, match=r"want a trajectory \(shots, readout, 2\)"):
        trajectories.stack(torch.ones(3, 2), torch.ones(4))
    with pytest.raises(ValueError, match="pipe_menon: want a finite trajectory, got nan at sample"):
        pipe_menon((8, 8), torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match="at least 1 iteration, got 0"):
        pipe_menon((8, 8), torch.ones(3, 2), iterations=0)


def assert_area(weights: Tensor, area: Tensor, where: Tensor) -> None:
    assert float((weights / area - 1)[where].abs().max()) < 0.02


def test_density_of_spokes_is_the_ramp() -> None:
    """Each sample stands for its share of a ring: ``pi / spokes * radius * step``."""
    k = trajectories.radial(48, 80)
    weights = pipe_menon((48, 48), k)
    radius = k.norm(dim=-1)
    area = math.pi / 80 * radius * 0.5
    middle = (radius > 2.5) & (radius < 20)
    assert_area(weights, area, middle)
    assert abs(float(weights.sum()) / (math.pi * 24**2) - 1) < 0.05  # the disc, and its edge
    for wrong in (weights.square(), 1.05 * weights, torch.ones_like(weights),
                  pipe_menon((48, 48), k, iterations=1)):
        with pytest.raises(AssertionError):
            assert_area(wrong, area, middle)


@pytest.mark.parametrize("size", [(18, 15), (12, 13, 10)])
def test_density_of_a_full_grid_is_one(size: tuple[int, ...]) -> None:
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - n // 2 for n in size), indexing="ij"),
                       -1).double()
    weights = pipe_menon(size, grid)
    assert weights.shape == size
    inner = tuple(slice(n // 3, n - n // 3) for n in size)
    assert float((weights[inner] - 1).abs().max()) < 0.02
    doubled = pipe_menon(size, torch.cat([grid, grid]))  # every sample twice, half the area each
    torch.testing.assert_close(doubled[: size[0]], weights / 2)


def test_density_of_frames_is_of_each_by_itself() -> None:
    """Radial frames of few and of many different angles: the ramp of each frame's own spokes."""
    frames = torch.stack([trajectories.radial(24, 40), trajectories.radial(24, 20).repeat(2, 1, 1)])
    weights = pipe_menon((24, 24), frames, item_axes=1)
    assert weights.shape == (2, 1, 40, 48)

    def assert_own(weights: Tensor) -> None:
        for one, k in zip(weights, frames, strict=True):
            torch.testing.assert_close(one[0], pipe_menon((24, 24), k))

    assert_own(weights)
    together = pipe_menon((24, 24), frames).unsqueeze(1)  # as if all were one scan
    for wrong in (together, 2 * together, weights[:1].expand_as(weights)):
        with pytest.raises(AssertionError):
            assert_own(wrong)
    y, x = torch.meshgrid(*(torch.arange(24) - 12.0,) * 2, indexing="ij")
    image = torch.exp(-((y - 2) ** 2 + (x + 3) ** 2) / 12)[None].to(torch.complex64)
    A = NonCartesianMRI((24, 24), frames, image.new_ones(3, 24, 24), item_axes=1)
    series = torch.stack([image, 2 * image])
    gridded = A.adjoint(weights * A(series)) / 3
    assert float((gridded - series)[0].norm() / series[0].norm()) < 0.05
    with pytest.raises(ValueError, match=r"pipe_menon: want item_axes from 0 to 2 of a trajec"):
        pipe_menon((24, 24), frames, item_axes=3)


Make = Callable[[], Tensor]


@pytest.mark.parametrize("make", [
    lambda: trajectories.radial(32, 60), lambda: trajectories.golden_angle(32, 60),
    lambda: trajectories.spiral(32, 8)])
def test_compensated_adjoint_is_the_image(make: Make) -> None:
    """A band-limited object comes back in its own units from complete data."""
    k = make()
    y, x = torch.meshgrid(*(torch.arange(32) - 16.0,) * 2, indexing="ij")
    image = torch.exp(-((y - 2) ** 2 + (x + 3) ** 2) / 18)[None].to(torch.complex64)
    A = NonCartesianMRI((32, 32), k)
    weights = pipe_menon((32, 32), k)

    def error(weights: Tensor) -> float:
        return float((A.adjoint(weights * A(image)) - image).norm() / image.norm())

    assert error(weights) < 0.05
    assert error(torch.ones_like(weights)) > 0.3
    assert error(1.2 * weights) > 0.15
