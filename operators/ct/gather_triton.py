"""The kernels of ``Gather`` for GPUs: one launch forward, one back, weights worked out in each.

Rays come from the host as ``steps`` gives them, in float64. A place along a ray is worked out in
float64 as well, for in float32 one near 1000 pixels is off by 6e-5, and so would its two weights
be; its fraction is rounded to the precision that stored weights have, and the sums are in that of
the images. The adjoint takes, for a pixel and a view, the bins whose rays pass between the pixel's
two neighbours: it reads and never adds to what another thread has written, so that results are the
same bits on every run. Offsets are 64-bit.
"""

import math
import weakref
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from recon.operators.ct.gather import Gather
from recon.operators.ct.geometry import Fan, Geometry
from recon.operators.ct.joseph import steps

# Places beyond this, in pixels or bins, are outside whatever the size, and fit 32-bit numbers.
_FAR = 2.0**29
# Rays and pixels of one program.
_RAYS, _PIXELS = 32, 128
# The single-precision arc tangent of a curved detector may be off by this many radians.
_ARC = 4e-6


class Tables(NamedTuple):
    """What the kernels read of a geometry, on one device."""

    at: Tensor  # (rays,) float64, as of Steps
    slope: Tensor  # (rays,) float64
    length: Tensor  # (rays,) float64
    steep: Tensor  # (rays,) int8, 1 for rays stepped along rows
    kinds: Tensor  # (views,) int8, 1 where a view has steep rays, plus 2 where it has others
    seen: Tensor  # (views, 6) float64, see _seen
    arc: Tensor  # (2,) float64: the first bin is arc[0] * atan(ratio) + arc[1], where curved
    form: int  # 0 parallel, 1 flat, 2 curved
    taps: tuple[int, int]  # at most how many bins pass a pixel: of steep rays, of others


# They live as long as their geometry.
_TABLES: weakref.WeakKeyDictionary[Geometry, dict[tuple[object, ...], Tables]] = (
    weakref.WeakKeyDictionary())


def tables(gather: Gather, device: torch.device) -> Tables:
    """Made once for a geometry, a shape and a device."""
    known = _TABLES.setdefault(gather.geometry, {})
    key = (gather.shape, device)
    if key not in known:
        known[key] = _tables(gather.geometry, gather.shape, device)
    return known[key]


def _tables(geometry: Geometry, shape: tuple[int, int], device: torch.device) -> Tables:
    normal, offset = geometry.lines()
    views, bins = offset.shape
    normal, offset = normal.flatten(0, 1), offset.flatten()
    steep = normal[:, 0].abs() >= normal[:, 1].abs()
    line = torch.empty(3, len(offset), dtype=torch.float64)
    for along_rows, kind in ((True, steep), (False, ~steep)):
        line[:, kind] = torch.stack(steps(normal[kind], offset[kind], shape, geometry.pixel,
                                          along_rows))
    at, slope, length = line
    by_view = steep.view(views, bins)
    kinds = by_view.any(1) + 2 * (~by_view).any(1)
    seen, arc = _seen(geometry, shape)
    curved = isinstance(geometry, Fan) and geometry.curved
    margin = _ARC * arc[0] if curved else 0.0  # in bins
    height, width = geometry.pixel
    # the neighbours of pixels at the edge stand half a pixel outside
    finest = geometry.finest(math.hypot((shape[0] + 1) * height, (shape[1] + 1) * width) / 2)
    taps = tuple(math.ceil(2 * side * finest + 2 * margin) for side in (width, height))
    return Tables(at.clamp(-_FAR, _FAR).to(device), slope.to(device), length.to(device),
                  steep.to(device, torch.int8), kinds.to(device, torch.int8), seen.to(device),
                  torch.tensor([arc[0], arc[1] - margin], dtype=torch.float64, device=device),
                  2 if curved else int(isinstance(geometry, Fan)), (taps[0], taps[1]))


def _seen(geometry: Geometry, shape: tuple[int, int]) -> tuple[Tensor, tuple[float, float]]:
    """The bin that the ray through a pixel meets, as a ratio of linear functions.

    ``(views, 6)``: numerator and denominator at pixel (0, 0), their steps per column and per row.
    The ratio is the bin, or for a curved detector the tangent of the fan angle; ``arc`` makes a bin
    of that angle.
    """
    height, width = geometry.pixel
    cos, sin = geometry.angles.cos(), geometry.angles.sin()
    X, Y = -(shape[1] - 1) / 2 * width, (shape[0] - 1) / 2 * height
    across = torch.stack([X * cos + Y * sin, width * cos, -height * sin], 1)
    depth, reaches = torch.tensor([1.0, 0, 0], dtype=torch.float64).expand_as(across), 1.0
    if isinstance(geometry, Fan):
        depth = torch.stack([geometry.source - X * sin + Y * cos, -width * sin, -height * cos], 1)
        reaches = geometry.reaches
    scale, shift = reaches / geometry.spacing, (geometry.bins - 1) / 2 - geometry.offset
    if not (isinstance(geometry, Fan) and geometry.curved):
        across = scale * across + shift * depth
    return torch.cat([across, depth], 1), (scale, shift)


def project(gather: Gather, x: Tensor) -> Tensor:
    """``(pixels, items)`` to ``(rays, items)``, contiguous, float32 or float64."""
    of, (rows, columns), items = tables(gather, x.device), gather.shape, x.shape[1]
    rays = len(of.at)
    y = x.new_empty(rays, items)
    if items > 0:
        wide = triton.next_power_of_2(items)
        block = _RAYS
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _project[(triton.cdiv(rays, block),)](
                x, y, of.at, of.slope, of.length, of.steep, rays, rows, columns, items,
                WEIGHT=_kind(gather.dtype), RAYS=block, STEPS=max(1, 16 // wide), ITEMS=wide)
    return y


def backproject(gather: Gather, y: Tensor) -> Tensor:
    """``(rays, items)`` to ``(pixels, items)``, contiguous, float32 or float64."""
    of, (rows, columns), items = tables(gather, y.device), gather.shape, y.shape[1]
    x = y.new_empty(rows * columns, items)
    if items > 0:
        wide = triton.next_power_of_2(items)
        block = _PIXELS if wide <= 4 else _PIXELS // 2
        with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
            _backproject[(triton.cdiv(rows * columns, block),)](
                y, x, of.at, of.slope, of.length, of.steep, of.kinds, of.seen, of.arc,
                len(of.kinds), gather.geometry.bins, rows, columns, items,
                FORM=of.form, STEEP_TAPS=of.taps[0], FLAT_TAPS=of.taps[1],
                WEIGHT=_kind(gather.dtype), PIXELS=block, ITEMS=wide)
    return x


def _kind(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit(do_not_specialize=["rays", "rows", "columns"])  # type: ignore[untyped-decorator]
def _project(x, y, at, slope, length, steep, rays, rows, columns,  # type: ignore[no-untyped-def]
             items, WEIGHT: tl.constexpr, RAYS: tl.constexpr, STEPS: tl.constexpr,
             ITEMS: tl.constexpr):
    """Some rays, a few steps at a time; the sums of every few steps are added up at the end."""
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    there = ray < rays
    column = tl.arange(0, ITEMS)[None, None, :]
    along_rows = tl.load(steep + ray, mask=there, other=0) != 0
    a = tl.load(at + ray, mask=there, other=0.0)[:, None]
    s = tl.load(slope + ray, mask=there, other=0.0)[:, None]
    way = tl.load(length + ray, mask=there, other=0.0)[:, None]
    counts = tl.where(along_rows & there, rows, tl.where(there, columns, 0))
    count = counts[:, None]
    limit = tl.where(along_rows, columns, rows)[:, None]
    width = columns.to(tl.int64)
    to_step = tl.where(along_rows, width, 1)[:, None]
    to_tap = tl.where(along_rows, 1, width)[:, None]
    total = tl.zeros([RAYS, STEPS, ITEMS], x.dtype.element_ty)
    for first in range(0, tl.max(counts, 0), STEPS):
        step = (first + tl.arange(0, STEPS))[None, :]
        place = a + s * step.to(tl.float64)
        floor = tl.floor(place)
        fraction = place - floor
        for more in tl.static_range(2):
            tap = floor.to(tl.int32) + more
            weight = way * (fraction if more else 1 - fraction)
            inside = (step < count) & (tap >= 0) & (tap < limit)
            pixel = to_step * step + to_tap * tap
            value = tl.load(x + (pixel[:, :, None] * items + column),
                            mask=inside[:, :, None] & (column < items), other=0.0)
            total += weight.to(WEIGHT).to(x.dtype.element_ty)[:, :, None] * value
    item = tl.arange(0, ITEMS)[None, :]
    tl.store(y + (ray[:, None] * items + item), tl.sum(total, 1),
             mask=there[:, None] & (item < items))


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["views", "bins", "rows", "columns"])
def _backproject(y, x, at, slope, length, steep, kinds, seen,  # type: ignore[no-untyped-def]
                 arc, views, bins, rows, columns, items, FORM: tl.constexpr,
                 STEEP_TAPS: tl.constexpr, FLAT_TAPS: tl.constexpr, WEIGHT: tl.constexpr,
                 PIXELS: tl.constexpr, ITEMS: tl.constexpr):
    """Some pixels, view by view."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    pixels = rows.to(tl.int64) * columns
    there = pixel < pixels
    # beyond the image the source may be level with a pixel
    within = tl.minimum(pixel, pixels - 1)
    row = (within // columns).to(tl.float64)
    column = (within % columns).to(tl.float64)
    item = tl.arange(0, ITEMS)[None, :]
    total = tl.zeros([PIXELS, ITEMS], y.dtype.element_ty)
    for view in range(views):
        kind = tl.load(kinds + view)
        n = seen + view * 6
        per_column, per_row = tl.load(n + 1), tl.load(n + 2)
        d_column, d_row = tl.load(n + 4), tl.load(n + 5)
        across = tl.load(n) + column * per_column + row * per_row
        depth = tl.load(n + 3) + column * d_column + row * d_row
        if kind & 1:
            first = _first(across, depth, per_column, d_column, arc, FORM)
            total = _pass(total, y, at, slope, length, steep, view, bins, items, there, item,
                          first, row, column, 1, STEEP_TAPS, WEIGHT)
        if kind & 2:
            first = _first(across, depth, per_row, d_row, arc, FORM)
            total = _pass(total, y, at, slope, length, steep, view, bins, items, there, item,
                          first, column, row, 0, FLAT_TAPS, WEIGHT)
    tl.store(x + (pixel[:, None] * items + item), total, mask=there[:, None] & (item < items))


@triton.jit  # type: ignore[untyped-decorator]
def _first(across, depth, per_step, d_step, arc,  # type: ignore[no-untyped-def]
           FORM: tl.constexpr):
    """The first bin whose ray passes between the neighbours of a pixel, or one before it."""
    if FORM == 0:
        low = across - tl.abs(per_step)
    else:
        one = (across - per_step) / (depth - d_step)
        other = (across + per_step) / (depth + d_step)
        low = tl.minimum(one, other)
        if FORM == 2:
            low = tl.load(arc) * _arctan(low.to(tl.float32)).to(tl.float64) + tl.load(arc + 1)
    low = tl.maximum(tl.minimum(low, 536870912.0), -536870912.0)
    return tl.floor(low).to(tl.int32) + 1


@triton.jit
def _arctan(t):  # type: ignore[no-untyped-def]
    """``atan t = 8 atan u`` by halving the angle three times, where the series needs few terms."""
    for _ in tl.static_range(3):
        t = t / (1 + tl.sqrt(1 + t * t))
    u = t * t
    return 8 * t * (1 + u * (-1 / 3 + u * (1 / 5 + u * (-1 / 7 + u * (1 / 9 - u * (1 / 11))))))


@triton.jit  # type: ignore[untyped-decorator]
def _pass(total, y, at, slope, length, steep, view, bins, items,  # type: ignore[no-untyped-def]
          there, item, first, step, place, KIND: tl.constexpr, TAPS: tl.constexpr,
          WEIGHT: tl.constexpr):
    """``total`` and what the rays of one kind that pass a pixel in this view give to it."""
    for k in range(TAPS):
        bin_ = first + k
        ray = bins.to(tl.int64) * view + bin_
        inside = there & (bin_ >= 0) & (bin_ < bins)
        inside = inside & (tl.load(steep + ray, mask=inside, other=1 - KIND) == KIND)
        across = (tl.load(at + ray, mask=inside, other=0.0)
                  + tl.load(slope + ray, mask=inside, other=0.0) * step)
        tent = 1 - tl.abs(across - place)
        weight = tent * tl.load(length + ray, mask=inside, other=0.0)
        inside = inside & (tent > 0)
        value = tl.load(y + (ray[:, None] * items + item),
                        mask=inside[:, None] & (item < items), other=0.0)
        total += weight.to(WEIGHT).to(total.dtype)[:, None] * value
    return total
