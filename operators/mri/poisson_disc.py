"""Points on a grid that keep a distance growing outwards: Poisson discs of variable density."""

import math
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

# How many points more than wanted a slope may give; the last drawn are then left out.
_EXCESS = 0.01
_TRIALS = 24


class PoissonDisc(NamedTuple):
    """A mask and the distance its points keep."""

    mask: NDArray[np.bool_]
    """``(H, W)``, the calibration included."""
    distance: NDArray[np.float64]
    """``(H, W)``, in grid steps. Two points outside the calibration are never nearer than this at
    either of them, rounded down to a distance that occurs on the grid (1, sqrt 2, 2, sqrt 5...)."""


def variable_density(shape: tuple[int, int], points: int, calibration: tuple[int, int],
                     sites: NDArray[np.bool_], rng: RandomState) -> PoissonDisc:
    """Exactly ``points`` outside the calibration, about ``1 + slope * rho`` grid steps apart.

    ``rho`` is the distance from the calibration block over its largest value along each axis. The
    sites of the grid are visited once in random order and taken unless too near to one taken
    before (random sequential adsorption), for a slope found by bisection. To vary smoothly though
    distances on a grid do not, each site rounds its own up or down at random.

    ``sites``, ``(H, W)``, may be taken: at least ``points``, none in the block.
    """
    rows, columns = (_outside(n, side) for n, side in zip(shape, calibration, strict=True))
    rho = np.hypot(rows[:, None], columns)
    order = rng.permutation(np.flatnonzero(sites))
    dither = rng.uniform(size=shape)
    most = points + math.ceil(_EXCESS * points)

    low, high = 0.0, math.inf
    best, slope = order[:points].tolist(), 1.0
    for _ in range(_TRIALS):
        drawn = _visit(order, _rounded(1 + slope * rho, dither), most)
        if len(drawn) < points:
            high = slope
        else:
            low, best = slope, drawn
            if len(drawn) <= most or slope > max(shape):
                break
        slope = (low + high) / 2 if high < math.inf else 2 * slope
    mask = rho == 0
    mask.flat[best[:points]] = True
    return PoissonDisc(mask, 1 + low * rho)


def _outside(n: int, side: int) -> NDArray[np.float64]:
    """Steps from the central block along one axis, over their largest number."""
    start = (n - side + 1) // 2
    index = np.arange(n)
    steps = np.maximum(np.maximum(start - index, index - (start + side - 1)), 0)
    return steps / max(1, int(steps.max()))


def _rounded(distance: NDArray[np.float64], dither: NDArray[np.float64]) -> NDArray[np.int64]:
    """Squares of distances between grid points, nearest below or above so that the mean is kept."""
    side = np.arange(int(distance.max()) + 3)
    lengths = np.sqrt(np.unique(side[:, None] ** 2 + side**2)[1:])
    below = np.searchsorted(lengths, distance, side="right") - 1
    low, high = lengths[below], lengths[below + 1]
    chosen = lengths[below + (dither < (distance - low) / (high - low))]
    return np.rint(chosen**2).astype(np.int64)


def _visit(order: NDArray[np.int64], squared: NDArray[np.int64], most: int) -> list[int]:
    """Sites taken in this order, the first ``most + 1`` at the most."""
    reach = math.isqrt(int(squared.max()))
    height, width = squared.shape
    # A margin of the largest distance, so that no disc leaves the array or enters the next row.
    stride = width + reach
    size = (height + 2 * reach) * stride + reach
    free, taken = bytearray(b"\1") * size, np.zeros(size, dtype=bool)
    open_sites = np.frombuffer(free, dtype=bool)
    discs: dict[int, NDArray[np.int64]] = {}
    drawn: list[int] = []
    flat = squared.ravel().tolist()
    for site in order.tolist():
        row, column = divmod(site, width)
        at = (row + reach) * stride + column
        if not free[at]:
            continue
        if flat[site] not in discs:
            discs[flat[site]] = _disc(flat[site], stride)
        near = at + discs[flat[site]]
        if taken[near].any():  # nearer than its own distance; `free` knows those of the others
            continue
        taken[at] = True
        open_sites[near] = False
        drawn.append(site)
        if len(drawn) > most:
            break
    return drawn


def _disc(squared: int, stride: int) -> NDArray[np.int64]:
    """Offsets of all sites nearer than this, the middle left out."""
    side = np.arange(-math.isqrt(squared), math.isqrt(squared) + 1)
    square = side[:, None] ** 2 + side**2
    rows, columns = np.nonzero((square < squared) & (square > 0))
    return side[rows] * stride + side[columns]
