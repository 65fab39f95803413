"""Joseph's line integrals as a sparse matrix."""

from typing import NamedTuple

import torch
from torch import Tensor

from recon.operators.sparse import Rows

# Rays times steps handled at once while building: 2**20 keeps each temporary at 8 MiB.
_BUILD_CHUNK = 2**20
# A weight below this is rounding of a tap that should be zero; storing it costs a whole entry.
_NEGLIGIBLE = 1e-9


def joseph_rows(normal: Tensor, offset: Tensor, shape: tuple[int, int],
                dtype: torch.dtype = torch.float32,
                pixel: tuple[float, float] = (1.0, 1.0)) -> Rows:
    """Weights of the integrals along lines ``normal . (X, Y) = offset``, by Joseph's method.

    A line is stepped along the grid axis it is more aligned with, and the image is interpolated
    linearly along the other; the step length is ``1 / max(|cos|, |sin|)`` for pixels of side 1. The
    image is zero outside the grid.

    Parameters
    ----------
    normal
        Unit normals of the lines, ``(rays, 2)`` float64.
    offset
        Signed distances from the centre of the grid, in pixels, ``(rays,)`` float64.
    shape
        ``(rows, columns)`` of the image. X runs right, Y runs up, the origin is the centre of the
        grid: pixel ``(i, j)`` lies at ``X = j - (columns - 1) / 2``, ``Y = (rows - 1) / 2 - i``.
    dtype
        Of the weights returned; they are computed in float64.
    pixel
        Height and width of a pixel, in the unit of the integrals.

    Source: Joseph 1982, IEEE Trans. Med. Imaging 1(3), 192-196.
    """
    if len(offset) == 0:
        return Rows(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32),
                    torch.zeros(0, dtype=dtype))
    counts, columns, values = [], [], []
    per_chunk = max(1, _BUILD_CHUNK // max(shape))
    for i in range(0, len(offset), per_chunk):
        n, q = normal[i : i + per_chunk], offset[i : i + per_chunk]
        steep = n[:, 0].abs() >= n[:, 1].abs()
        count = torch.zeros(len(q), dtype=torch.int64)
        # Two kinds of ray in one chunk are rare; each is built alone and merged by position.
        parts = [_stepped(n[kind], q[kind], shape, pixel, along_rows) for along_rows, kind in
                 ((True, steep), (False, ~steep))]
        for kind, part in zip((steep, ~steep), parts, strict=True):
            count[kind] = part.start.diff()
        start = torch.zeros(len(q) + 1, dtype=torch.int64)
        torch.cumsum(count, 0, out=start[1:])
        column = torch.empty(int(start[-1]), dtype=torch.int32)
        value = torch.empty(int(start[-1]), dtype=dtype)
        for kind, part in zip((steep, ~steep), parts, strict=True):
            place = _runs(start[:-1][kind], part.start.diff())
            column[place] = part.column
            value[place] = part.value.to(dtype)
        counts.append(count)
        columns.append(column)
        values.append(value)
    count = torch.cat(counts)
    start = torch.zeros(len(count) + 1, dtype=torch.int64)
    torch.cumsum(count, 0, out=start[1:])
    return Rows(start, torch.cat(columns), torch.cat(values))


def _runs(first: Tensor, length: Tensor) -> Tensor:
    """``first[0], first[0] + 1, ... (length[0] numbers), first[1], ...``."""
    begin = length.cumsum(0) - length
    return torch.arange(int(length.sum())) + torch.repeat_interleave(first - begin, length)


class Steps(NamedTuple):
    """Where lines meet the image rows they are stepped along (or columns): ``at + slope * row``.

    ``at`` counts columns (or rows) from the first; ``length`` is the way from row to row.
    """

    at: Tensor  # (rays,)
    slope: Tensor  # (rays,)
    length: Tensor  # (rays,)


def steps(normal: Tensor, offset: Tensor, shape: tuple[int, int], pixel: tuple[float, float],
          along_rows: bool) -> Steps:
    """``Steps`` of the lines ``normal . (X, Y) = offset``, in pixels."""
    rows, columns = shape
    a, b = normal.unbind(-1)
    # a line along (-b, a) is this long where it is 1 long in pixels
    stretch = torch.hypot(a * pixel[0], b * pixel[1])
    if along_rows:
        at = (offset - b * ((rows - 1) / 2)) / a + (columns - 1) / 2
        return Steps(at, b / a, stretch / a.abs())
    at = (rows - 1) / 2 - (offset + a * ((columns - 1) / 2)) / b
    return Steps(at, a / b, stretch / b.abs())


def count_taps(normal: Tensor, offset: Tensor, shape: tuple[int, int]) -> Tensor:
    """At most how many weights each line has, ``(rays,)``, and few more, without computing them."""
    steep = normal[:, 0].abs() >= normal[:, 1].abs()
    taps = torch.zeros(len(offset), dtype=torch.float64)
    for along_rows, kind in ((True, steep), (False, ~steep)):
        line = steps(normal[kind], offset[kind], shape, (1.0, 1.0), along_rows)
        length, limit = shape if along_rows else shape[::-1]
        slope = torch.where(line.slope.abs() < 1e-12, 1e-12, line.slope)  # for the quotient alone
        first, last = (-1 - line.at) / slope, (limit - line.at) / slope
        first, last = torch.minimum(first, last), torch.maximum(first, last)
        inside = last.clamp(max=length - 1).floor() - first.clamp(min=0).ceil() + 1
        taps[kind] = 2 * inside.clamp(min=0)
    return taps


def _stepped(normal: Tensor, offset: Tensor, shape: tuple[int, int], pixel: tuple[float, float],
             along_rows: bool) -> Rows:
    """One step per image row (or per image column), two taps to a step."""
    rows, columns = shape
    line = steps(normal, offset, shape, pixel, along_rows)
    step = torch.arange(rows if along_rows else columns, dtype=torch.float64)
    across = line.at[:, None] + line.slope[:, None] * step
    limit, length = columns if along_rows else rows, line.length[:, None]
    tap = across.floor()
    fraction = across - tap
    taps = torch.stack([tap, tap + 1], -1)  # (rays, steps, 2)
    weight = torch.stack([1 - fraction, fraction], -1) * length[..., None]
    keep = (taps >= 0) & (taps < limit) & (weight > _NEGLIGIBLE)
    step = step[:, None]
    place = step * columns + taps if along_rows else taps * columns + step
    start = torch.zeros(len(normal) + 1, dtype=torch.int64)
    torch.cumsum(keep.sum((1, 2)), 0, out=start[1:])
    return Rows(start, place[keep].to(torch.int32), weight[keep])
