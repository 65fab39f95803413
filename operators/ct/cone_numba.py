"""Joseph's line integrals through a volume on CPUs, compiled by numba.

The forward takes every ray alone; the adjoint gives each thread whole planes of the volume, so that
no two threads write to one voxel and the sums are in the same order whatever their number.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from recon.operators.ct.cone_geometry import Views


def project(x: Tensor, views: Views) -> Tensor:
    """``(items, D, H, W)`` to ``(items, views, rows, columns)``."""
    y = np.empty((len(x), len(views.source), *views.detector), _numpy(x))
    with _threads():
        for item, into in zip(x.contiguous().numpy(), y, strict=True):
            _project(item.reshape(-1), *_arrays(views), into)
    return torch.from_numpy(y)


def backproject(y: Tensor, views: Views) -> Tensor:
    """``(items, views, rows, columns)`` to ``(items, D, H, W)``."""
    x = np.zeros((len(y), *views.volume), _numpy(y))
    with _threads():
        for item, into in zip(y.contiguous().numpy(), x, strict=True):
            _backproject(item, *_arrays(views), into.reshape(-1))
    return torch.from_numpy(x)


def _numpy(x: Tensor) -> Any:
    return np.float64 if x.dtype == torch.float64 else np.float32


@contextlib.contextmanager
def _threads() -> Iterator[None]:
    """As many threads as torch has; numba, starting its own, would change torch's number."""
    wanted = torch.get_num_threads()
    numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(wanted)


def _arrays(views: Views) -> tuple[Any, ...]:
    parts = (views.source, views.corner, views.down, views.right, views.voxel)
    return (*(part.numpy() for part in parts), np.array(views.volume, np.int64))


def _compiled(loop: Callable[..., None]) -> Any:
    """Kept on disk beside the source or in the user's cache: the next process need not compile."""
    try:
        return numba.njit(parallel=True, cache=True)(loop)
    except RuntimeError:  # neither can be written to
        return numba.njit(parallel=True)(loop)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _ray(source: Any, corner: Any, down: Any, right: Any, voxel: Any, r: int, c: int) -> Any:
    """Axis stepped along, places at its plane 0 and slopes of the two others, way per plane."""
    z = corner[0] - source[0] + r * down[0] + c * right[0]
    y = corner[1] - source[1] + r * down[1] + c * right[1]
    x = corner[2] - source[2] + r * down[2] + c * right[2]
    way = np.sqrt((z * voxel[0]) ** 2 + (y * voxel[1]) ** 2 + (x * voxel[2]) ** 2)
    if abs(z) >= abs(y) and abs(z) >= abs(x):
        sb, sc = y / z, x / z
        return 0, source[1] - sb * source[0], sb, source[2] - sc * source[0], sc, way / abs(z)
    if abs(y) >= abs(x):
        sb, sc = z / y, x / y
        return 1, source[0] - sb * source[1], sb, source[2] - sc * source[1], sc, way / abs(y)
    sb, sc = z / x, y / x
    return 2, source[0] - sb * source[2], sb, source[1] - sc * source[2], sc, way / abs(x)


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _layout(axis: int, size: Any) -> Any:
    """Planes, sizes and strides of the two other axes, stride of the axis."""
    plane, row = size[1] * size[2], size[2]
    if axis == 0:
        return size[0], size[1], size[2], plane, row, 1
    if axis == 1:
        return size[1], size[0], size[2], row, plane, 1
    return size[2], size[0], size[1], 1, plane, row


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _within(at: float, slope: float, n: int, first: float, last: float) -> Any:
    """The planes where ``-1 < at + slope p < n``, to one plane more on either side."""
    if abs(slope) < 1e-12:
        return (first, last) if -1.0 < at < n else (0.0, -1.0)
    one, other = (-1.0 - at) / slope, (n - at) / slope
    return max(first, min(one, other)), min(last, max(one, other))


@_compiled
def _project(x: Any, source: Any, corner: Any, down: Any, right: Any, voxel: Any, size: Any,
             y: Any) -> None:
    views, rows, columns = y.shape
    for line in numba.prange(views * rows):
        v, r = line // rows, line % rows
        for c in range(columns):
            axis, ab, sb, ac, sc, length = _ray(source[v], corner[v], down[v], right[v], voxel,
                                                r, c)
            planes, nb, nc, step, step_b, step_c = _layout(axis, size)
            low, high = _within(ab, sb, nb, 0.0, planes - 1.0)
            low, high = _within(ac, sc, nc, low, high)
            total = 0.0
            for p in range(int(np.ceil(low)), int(np.floor(high)) + 1):
                b, c_ = ab + sb * p, ac + sc * p
                ib, ic = int(np.floor(b)), int(np.floor(c_))
                fb, fc = b - ib, c_ - ic
                place = p * step + ib * step_b + ic * step_c
                if 0 <= ib < nb - 1 and 0 <= ic < nc - 1:
                    above = x[place] + fc * (x[place + step_c] - x[place])
                    place += step_b
                    below = x[place] + fc * (x[place + step_c] - x[place])
                    total += above + fb * (below - above)
                else:
                    for m in range(2):
                        for k in range(2):
                            if 0 <= ib + m < nb and 0 <= ic + k < nc:
                                weight = (fb if m else 1 - fb) * (fc if k else 1 - fc)
                                total += weight * x[place + m * step_b + k * step_c]
            y[v, r, c] = length * total


@_compiled
def _backproject(y: Any, source: Any, corner: Any, down: Any, right: Any, voxel: Any, size: Any,
                 x: Any) -> None:
    views, rows, columns = y.shape
    rays = rows * columns
    of = np.empty(rays, np.int64)
    line = np.empty((rays, 5))
    ordered = np.empty((rays, 5))
    for v in range(views):
        for r in numba.prange(rows):
            for c in range(columns):
                k = r * columns + c
                of[k], ab, sb, ac, sc, length = _ray(source[v], corner[v], down[v], right[v],
                                                     voxel, r, c)
                line[k, 0], line[k, 1], line[k, 2], line[k, 3] = ab, sb, ac, sc
                line[k, 4] = length * y[v, r, c]
        for axis in range(3):
            planes, nb, nc, step, step_b, step_c = _layout(axis, size)
            count = 0
            for k in range(rays):
                if of[k] == axis:
                    low, high = _within(line[k, 0], line[k, 1], nb, 0.0, planes - 1.0)
                    low, high = _within(line[k, 2], line[k, 3], nc, low, high)
                    if low <= high:
                        ordered[count] = line[k]
                        count += 1
            if count == 0:
                continue
            for p in numba.prange(planes):
                # a border of one voxel takes what falls beside the grid
                plane = np.zeros((nb + 2, nc + 2))
                for k in range(count):
                    b = ordered[k, 0] + ordered[k, 1] * p
                    c_ = ordered[k, 2] + ordered[k, 3] * p
                    if -1.0 < b < nb and -1.0 < c_ < nc:
                        ib, ic = int(b + 1.0), int(c_ + 1.0)
                        value = ordered[k, 4]
                        fc = c_ + 1.0 - ic
                        below = value * (b + 1.0 - ib)
                        above = value - below
                        plane[ib, ic] += above - above * fc
                        plane[ib, ic + 1] += above * fc
                        plane[ib + 1, ic] += below - below * fc
                        plane[ib + 1, ic + 1] += below * fc
                for i in range(nb):
                    for j in range(nc):
                        x[p * step + i * step_b + j * step_c] += plane[i + 1, j + 1]
