"""Joseph's line integrals through a volume in torch, on any device, with the exact adjoint.

Both directions only gather: the forward reads four voxels where a ray meets a plane, the adjoint
reads, for a voxel, every detector pixel whose ray can pass within one voxel of it and weighs it as
the forward does. Nothing is added atomically, so results are the same bits on every run.
"""

import math

import torch
from torch import Tensor

from recon.operators.ct.cone_geometry import Rays, Views, others, rays

# Numbers in one temporary: 2**22 are 16 MiB in single precision, below the size from which glibc
# maps and faults in every block anew.
_CHUNK = 2**22


def project(x: Tensor, views: Views, axes: list[list[int]]) -> Tensor:
    """``(items, D, H, W)`` to ``(items, views, rows, columns)``; ``axes`` as ``axes_of`` gives."""
    y = x.new_zeros(len(x), len(views.source), math.prod(views.detector))
    flat = x.flatten(1)
    for v, present in enumerate(axes):
        for axis in present:
            y[:, v] += _forward(flat, views, rays(views, v, axis, x.dtype, x.device), axis)
    return y.view(*y.shape[:2], *views.detector)


def backproject(y: Tensor, views: Views, axes: list[list[int]],
                footprints: list[tuple[int, int]]) -> Tensor:
    """``(items, views, rows, columns)`` to ``(items, D, H, W)``."""
    x = y.new_zeros(len(y), *views.volume)
    to_detector = views.to_detector().to(y.device, y.dtype)
    for v, present in enumerate(axes):
        for axis in present:
            along = rays(views, v, axis, y.dtype, y.device)
            planes = views.volume[axis]
            b, c = (views.volume[a] for a in others(axis))
            per_chunk = max(1, _CHUNK // max(1, b * c * len(y)))
            for first in range(0, planes, per_chunk):
                chosen = range(first, min(first + per_chunk, planes))
                part = _gathered(y[:, v].flatten(1), views, along, axis, chosen, to_detector[v],
                                 views.source[v].to(y.device, y.dtype), footprints[v])
                x.movedim(axis + 1, 1)[:, chosen.start : chosen.stop] += part
    return x


def _strides(volume: tuple[int, int, int]) -> tuple[int, int, int]:
    return (volume[1] * volume[2], volume[2], 1)


def _forward(x: Tensor, views: Views, along: Rays, axis: int) -> Tensor:
    """Integrals of ``(items, voxels)`` along the rays stepped along ``axis``."""
    planes = torch.arange(views.volume[axis], device=x.device)
    stride = _strides(views.volume)
    b, c = others(axis)
    pieces = []
    per_chunk = max(1, _CHUNK // max(1, len(planes) * len(x)))
    for first in range(0, len(along.length), per_chunk):
        part = slice(first, first + per_chunk)
        at_b, at_c = (a[part, None] + s[part, None] * planes for a, s in
                      zip(along.at, along.slope, strict=True))
        total = x.new_zeros(len(x), len(at_b))
        tap_b, tap_c = at_b.floor(), at_c.floor()
        for more_b in (0, 1):
            for more_c in (0, 1):
                ib, ic = tap_b + more_b, tap_c + more_c
                inside = ((ib >= 0) & (ib < views.volume[b])
                          & (ic >= 0) & (ic < views.volume[c]))
                weight = (1 - (at_b - ib).abs()) * (1 - (at_c - ic).abs()) * inside
                place = (planes * stride[axis] + ib.clamp(0, views.volume[b] - 1).long() * stride[b]
                         + ic.clamp(0, views.volume[c] - 1).long() * stride[c])
                taps = x.index_select(1, place.view(-1)).view(len(x), *place.shape)
                total += (taps * weight).sum(-1)
        pieces.append(total * along.length[part])
    return torch.cat(pieces, 1)


def _gathered(y: Tensor, views: Views, along: Rays, axis: int, planes: range, to_detector: Tensor,
              source: Tensor, footprint: tuple[int, int]) -> Tensor:
    """The adjoint of ``_forward`` at some planes, ``(items, planes, b, c)``."""
    rows, columns = views.detector
    b, c = others(axis)
    grid = torch.meshgrid(*(torch.arange(n, device=y.device, dtype=y.dtype) for n in
                            (len(planes), views.volume[b], views.volume[c])), indexing="ij")
    plane, qb, qc = grid[0] + planes.start, grid[1], grid[2]

    # where the corners of the square of rays that can reach the voxel fall on the detector
    first_row = first_column = torch.full_like(plane, torch.inf)
    for corner_b in (-1, 1):
        for corner_c in (-1, 1):
            off = [plane - source[axis]] * 3
            off[b], off[c] = qb + corner_b - source[b], qc + corner_c - source[c]
            column, row, depth = (m[0] * off[0] + m[1] * off[1] + m[2] * off[2]
                                  for m in to_detector)
            first_row = torch.minimum(first_row, row / depth)
            first_column = torch.minimum(first_column, column / depth)
    # footprints are no larger than the detector, so what they are counted from lies on it
    first_row, first_column = first_row.floor().clamp(min=0), first_column.floor().clamp(min=0)

    total = y.new_zeros(len(y), *plane.shape)
    for more_row in range(footprint[0] + 1):  # the floor above takes one more
        for more_column in range(footprint[1] + 1):
            row, column = first_row + more_row, first_column + more_column
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            ray = (row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)).long()
            off_b = along.at[0][ray] + along.slope[0][ray] * plane - qb
            off_c = along.at[1][ray] + along.slope[1][ray] * plane - qc
            weight = ((1 - off_b.abs()).clamp(min=0) * (1 - off_c.abs()).clamp(min=0)
                      * along.length[ray] * inside)
            total += y[:, ray] * weight
    return total
