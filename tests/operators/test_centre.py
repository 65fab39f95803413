"""The axis of rotation, found again where it was put."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.operators import FanBeamCT, ParallelBeamCT
from recon.operators.ct import (
    offset_by_centroids,
    offset_by_opposite_views,
    offset_by_sharpness,
)
from tests.operators.ellipses import SHEPP_LOGAN, Body, chords

BODY: Body = [(2 * a, 0.6 * x + 0.1, 0.6 * y, 0.6 * p, 0.6 * q, t)
              for a, x, y, p, q, t in SHEPP_LOGAN]
N, BINS = 96, 128


def measured(angles: Tensor, offset: float, noise: float = 0.02, bins: int = BINS) -> Tensor:
    at = (np.arange(bins * 4) + 0.5) / 4 - bins / 2 + offset
    y = torch.from_numpy(chords(BODY, N, angles.numpy()[:, None], at)).view(-1, bins, 4).mean(-1)
    return y + noise * y.std() * torch.randn(y.shape, generator=torch.Generator().manual_seed(0),
                                             dtype=y.dtype)


def over(turn: float, views: int) -> Tensor:
    return torch.arange(views, dtype=torch.float64) * turn / views


HALF = over(math.pi, 90)  # ends a step before half a turn
TO_THE_END = torch.linspace(0, math.pi, 91, dtype=torch.float64)


def check_axis(find: Callable[[Tensor, Tensor], float], angles: Tensor,
               within: float = 0.12) -> None:
    for offset in (0.0, 3.37, -12.8):
        assert find(measured(angles, offset), angles) == pytest.approx(offset, abs=within)


@pytest.mark.parametrize("angles", [HALF, TO_THE_END, over(2 * math.pi, 61), HALF.flip(0) + 2],
                         ids=["half a turn", "to its end", "odd turn", "backwards"])
def test_opposite_views(angles: Tensor) -> None:
    check_axis(offset_by_opposite_views, angles)
    faults: list[Callable[[Tensor, Tensor], float]] = [
        lambda y, t: -offset_by_opposite_views(y, t),
        lambda y, t: 2 * offset_by_opposite_views(y, t),
        lambda y, t: offset_by_opposite_views(y, t) + 0.5,
        lambda y, t: round(offset_by_opposite_views(y, t)),
    ]
    for fault in faults:
        with pytest.raises(AssertionError):
            check_axis(fault, angles)


def test_slices_are_taken_together() -> None:
    quiet, empty = measured(HALF, 4.2), torch.randn(90, BINS, dtype=torch.float64)
    together = torch.stack([quiet, 0.05 * quiet.std() * empty])[:, None]
    assert offset_by_opposite_views(together, HALF) == pytest.approx(4.2, abs=0.2)
    assert offset_by_centroids(together, HALF) == pytest.approx(4.2, abs=0.5)
    assert offset_by_opposite_views(1e-7 * quiet, HALF) == pytest.approx(
        offset_by_opposite_views(quiet, HALF), abs=1e-3)


LIMITED = over(0.6 * math.pi, 70) - 0.2


def standing(y: Tensor, angles: Tensor) -> float:  # noqa: ARG001 as those that do look at them
    """The mean centroid, as if the object stood on the axis."""
    places = torch.arange(BINS) - (BINS - 1) / 2
    return -float(((y * places).sum(1) / y.sum(1)).mean())


def test_centroids_of_any_angles() -> None:
    scattered = 9 * torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for angles in (HALF, scattered):
        check_axis(offset_by_centroids, angles)
    check_axis(offset_by_centroids, LIMITED, 0.3)
    faults: list[Callable[[Tensor, Tensor], float]] = [
        lambda y, t: -offset_by_centroids(y, t),
        lambda y, t: offset_by_centroids(y, t) + 0.5,
        standing,
    ]
    for fault in faults:
        with pytest.raises(AssertionError):
            check_axis(fault, LIMITED, 0.3)


def test_sharpness() -> None:
    turn = over(2 * math.pi, 40)
    true, start = (FanBeamCT(64, turn, 200.0, 0.0, BINS, offset, method="gather")
                   for offset in (-1.4, 0.0))
    angle, distance = (t.numpy() for t in true.geometry.rays(slice(None)))
    seen = torch.from_numpy(chords(BODY, N, angle, distance))[None]
    for y, right in ((seen, True), (seen.flip(-1), False)):
        found = offset_by_sharpness(y, start, within=2.0)
        assert (abs(found + 1.4) < 0.25) == right
    half = ParallelBeamCT(64, HALF, BINS, method="gather")
    assert offset_by_sharpness(measured(HALF, 1.3)[None], half, within=2.0) == pytest.approx(
        1.3, abs=0.25)


def test_refusals() -> None:
    y = measured(HALF, 0.0)
    with pytest.raises(ValueError, match="over 90 degrees: use offset_by_centroids"):
        offset_by_opposite_views(y[:45], HALF[:45])
    with pytest.raises(ValueError, match=r"want line integrals \(\*batch, 90, bins\) .*\(45, 128"):
        offset_by_opposite_views(y[:45], HALF)
    with pytest.raises(ValueError, match="projections hold NaN"):
        offset_by_opposite_views(y * math.nan, HALF)
    with pytest.raises(ValueError, match="all zero"):
        offset_by_opposite_views(0 * y, HALF)
    with pytest.raises(ValueError, match=r"want three different views or more, .* got 2"):
        offset_by_centroids(y[:2], HALF[:2])
    A = ParallelBeamCT(N, HALF, BINS, method="gather")
    with pytest.raises(ValueError, match="want a positive within, got 0"):
        offset_by_sharpness(y[None], A, within=0)
