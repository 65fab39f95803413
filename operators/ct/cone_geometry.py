"""Where source and detector of a cone beam stand, view by view, seen from the grid of voxels."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Views(NamedTuple):
    """Source and detector of every view in voxel indices, axes in the order of the volume's.

    Ray ``(r, c)`` of a view runs from ``source`` through ``corner + r * down + c * right``; the
    centre of voxel ``(k, i, j)`` is the point ``(k, i, j)``. All float64.
    """

    source: Tensor  # (views, 3)
    corner: Tensor  # (views, 3), centre of detector pixel (0, 0)
    down: Tensor  # (views, 3), from one detector row to the next
    right: Tensor  # (views, 3), from one detector column to the next
    voxel: Tensor  # (3,), sides of a voxel in units of length
    volume: tuple[int, int, int]
    detector: tuple[int, int]

    def to_detector(self) -> Tensor:
        """``M``, ``(views, 3, 3)``: ``M (point - source)`` is ``w (column, row, 1)``, ``w > 0``."""
        towards = torch.stack([self.right, self.down, self.corner - self.source], -1)
        inverse: Tensor = torch.linalg.inv(towards)
        return inverse


class Rays(NamedTuple):
    """The rays of one view by the axis they are stepped along, ``(rays,)`` each.

    At plane ``p`` of that axis a ray passes ``at[0] + slope[0] * p`` and ``at[1] + slope[1] * p``
    of the two others; ``length`` is its way from plane to plane, 0 for rays stepped along another.
    """

    at: tuple[Tensor, Tensor]
    slope: tuple[Tensor, Tensor]
    length: Tensor


def circular_vectors(angles: Tensor, source_distance: float, detector_distance: float,
                     spacing: tuple[float, float], offset: tuple[float, float],
                     pitch: float) -> Tensor:
    """Twelve numbers a view, ``(views, 12)``: source, detector centre, column step, row step.

    X, Y, Z in units of length. At angle ``t`` columns run along ``(cos t, sin t, 0)``, rows along
    Z, the source stands at ``source_distance (sin t, -cos t, 0)`` and the detector opposite. With a
    pitch both rise by it every turn, through Z = 0 in the middle of the angles.
    """
    c, s, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    height = pitch / (2 * math.pi) * (angles - (angles.max() + angles.min()) / 2)
    across = torch.stack([c, s, zero], 1)
    axis = torch.stack([s, -c, zero], 1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(angles), 3)
    right, down = spacing[1] * across, spacing[0] * up
    centre = -detector_distance * axis + offset[1] * right + offset[0] * down
    rise = height[:, None] * up
    return torch.cat([source_distance * axis + rise, centre + rise, right, down], 1)


def views_of(vectors: Tensor, volume: tuple[int, int, int], voxel: tuple[float, float, float],
             detector: tuple[int, int]) -> Views:
    """The views of ``vectors``, ``(views, 12)`` in X, Y, Z, in indices of ``(D, H, W)`` voxels."""
    sides = torch.tensor(voxel, dtype=torch.float64)
    flip = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)  # Y up, rows down
    source, centre, right, down = (part.flip(-1) * flip / sides for part in
                                   vectors.double().view(-1, 4, 3).unbind(1))
    middle = (torch.tensor(volume, dtype=torch.float64) - 1) / 2
    rows, columns = detector
    corner = centre - (columns - 1) / 2 * right - (rows - 1) / 2 * down
    return Views(source + middle, corner + middle, down, right, sides, volume, detector)


def rays(views: Views, view: int, axis: int, dtype: torch.dtype, device: torch.device) -> Rays:
    """The rays of one view stepped along ``axis``, in ``dtype``, computed in float64."""
    rows, columns = views.detector
    row = torch.arange(rows, dtype=torch.float64)[:, None, None]
    column = torch.arange(columns, dtype=torch.float64)[:, None]
    source = views.source[view]
    way = views.corner[view] - source + row * views.down[view] + column * views.right[view]
    way = way.reshape(-1, 3)
    steepest = way.abs().argmax(1)
    along = torch.where(steepest == axis, way[:, axis], 1.0)
    length = (way * views.voxel).norm(dim=1) / along.abs()
    slopes = [way[:, other] / along for other in others(axis)]
    places = [source[other] - slope * source[axis] for other, slope in
              zip(others(axis), slopes, strict=True)]
    kept = [t.to(device, dtype) for t in
            (*places, *slopes, torch.where(steepest == axis, length, 0.0))]
    return Rays((kept[0], kept[1]), (kept[2], kept[3]), kept[4])


def others(axis: int) -> tuple[int, int]:
    """The two other axes, in order."""
    return ((1, 2), (0, 2), (0, 1))[axis]


def axes_of(views: Views) -> list[list[int]]:
    """For each view the axes along which any of its rays is stepped."""
    found = []
    # the largest part of a direction changes only across planes through the source, so a view's
    # border and centre lines could miss none of it but a cone narrower than a pixel: look at all
    rows, columns = views.detector
    row = torch.arange(rows, dtype=torch.float64)[:, None]
    column = torch.arange(columns, dtype=torch.float64)
    for view in range(len(views.source)):
        z, y, x = ((corner - source + row * down + column * right).abs_()
                   for source, corner, down, right in
                   zip(views.source[view], views.corner[view], views.down[view],
                       views.right[view], strict=True))
        first = (z >= y) & (z >= x)
        second = (y >= x) & ~first
        found.append([axis for axis, rays_ in enumerate((first, second, ~(first | second)))
                      if bool(rays_.any())])
    return found


def edge_on(views: Views) -> Tensor:
    """Whether detector steps and the way from the source lie in one plane, ``(views,)`` bool."""
    towards = torch.stack([views.right, views.down, views.corner - views.source], 1)
    lengths = towards.norm(dim=-1).prod(-1)
    return ~(torch.linalg.det(towards).abs() > 1e-9 * lengths)


def box_corners(volume: tuple[int, int, int]) -> Tensor:
    """The corners of the grid, one voxel beyond its outermost centres, ``(8, 3)``."""
    ends = [torch.tensor([-1.0, n], dtype=torch.float64) for n in volume]
    return torch.cartesian_prod(*ends)


def in_front(views: Views) -> Tensor:
    """Whether the whole grid lies before the source, ``(views,)`` bool."""
    depth = _seen(views, box_corners(views.volume))[..., 2]
    return (depth > 0).all(1) & depth.isfinite().all(1)


def magnification(views: Views) -> float:
    """How many times larger than itself a length within the grid is on the detector, at most."""
    return 1 / float(_seen(views, box_corners(views.volume))[..., 2].min())


def footprint(views: Views) -> list[tuple[int, int]]:
    """Detector rows and columns that a square of 2 x 2 voxels can cover at most, for each view.

    Along an axis ``column = m0 / m2`` has the slope ``(m0' m2 - m0 m2') / m2^2``, whose numerator
    is linear in the place, so that its corners bound it.
    """
    corners, found = box_corners(views.volume), []
    for matrix, seen in zip(views.to_detector(), _seen(views, corners), strict=True):
        change = matrix[:2, None] * seen[:, 2:] - seen[:, :2].T[..., None] * matrix[2]
        slope = change.abs().amax(1) / seen[:, 2].min().square()  # (column and row, axes)
        wide = 2 * slope.topk(2, dim=1).values.sum(1)
        columns, rows = (min(int(w) + 1, n) for w, n in
                         zip(wide.tolist(), views.detector[::-1], strict=True))
        found.append((rows, columns))
    return found


def covered(views: Views, every: bool) -> float:
    """Part of the ellipsoid inscribed in the grid that is seen.

    ``every``: of all its points in all views; else of its points, seen in at least one view.
    """
    near = torch.linspace(-1, 1, 9, dtype=torch.float64)
    points = torch.cartesian_prod(near, near, near)
    points = points[points.square().sum(1) <= 1]
    size = torch.tensor(views.volume, dtype=torch.float64)
    points = points * (size / 2) + (size - 1) / 2
    seen = torch.zeros(len(points), dtype=torch.float64)
    rows, columns = views.detector
    for part in _chunks(views):
        m = _seen(part, points)
        column, row = m[..., 0] / m[..., 2], m[..., 1] / m[..., 2]
        inside = ((column > -0.5) & (column < columns - 0.5) & (row > -0.5) & (row < rows - 0.5))
        seen += inside.sum(0)
    if every:
        return float(seen.sum() / (len(points) * len(views.source)))
    return float((seen > 0).double().mean())


def _chunks(views: Views) -> Iterator[Views]:
    for i in range(0, len(views.source), 64):
        yield views._replace(source=views.source[i : i + 64], corner=views.corner[i : i + 64],
                             down=views.down[i : i + 64], right=views.right[i : i + 64])


def _seen(views: Views, points: Tensor) -> Tensor:
    """``w (column, row, 1)`` of points ``(n, 3)``, ``(views, n, 3)``."""
    return torch.einsum("vij,vnj->vni", views.to_detector(), points - views.source[:, None])
