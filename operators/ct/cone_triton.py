"""The kernels of cone beams for GPUs: one launch forward, one back, no weight stored.

The forward follows each ray in float64. The adjoint asks, for a voxel and a view, which detector
pixels' rays can pass within one voxel of it, as ``cone_torch`` does. It places the voxel on the
detector in float64 and works out what is left as differences to that place, which float32 holds
to its own rounding: no number near the size of the volume is taken from another. It reads and never
adds to what another thread has written: the same bits on every run. Offsets are 64-bit.

Along which axis a ray is stepped must come out the same both ways, at ties too, so products are not
fused with sums here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recon.operators.ct.cone_geometry import Views

# Volumes or projections handled together, for which weights are worked out once.
_ITEMS = 4
# Rays or voxels of one program.
_BLOCK = 128


def project(x: Tensor, views: Views) -> Tensor:
    """``(items, D, H, W)`` to ``(items, views, rows, columns)``, float32 or float64."""
    y = x.new_empty(len(x), len(views.source), *views.detector)
    rays = y[:1].numel()
    if rays > 0:
        block, wide = _BLOCK, min(_ITEMS, triton.next_power_of_2(len(x)))
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _project[(triton.cdiv(rays, block), triton.cdiv(len(x), wide))](
                x.contiguous(), y, _numbers(views, x.device), views.voxel.to(x.device), rays,
                *views.detector, *views.volume, len(x), RAYS=block, ITEMS=wide,
                enable_fp_fusion=False)
    return y


def backproject(y: Tensor, views: Views, axes: list[list[int]],
                footprints: list[tuple[int, int]]) -> Tensor:
    """``(items, views, rows, columns)`` to ``(items, D, H, W)``; ``axes`` as of ``axes_of``."""
    x = y.new_empty(len(y), *views.volume)
    voxels = x[:1].numel()
    if voxels > 0:
        kinds = torch.tensor([(sum(1 << axis for axis in present), *reach) for present, reach in
                              zip(axes, footprints, strict=True)], dtype=torch.int32)
        block, wide = _BLOCK, min(_ITEMS, triton.next_power_of_2(len(y)))
        with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
            _backproject[(triton.cdiv(voxels, block), triton.cdiv(len(y), wide))](
                y.contiguous(), x, _numbers(views, y.device), views.voxel.to(y.device),
                kinds.to(y.device), len(kinds), *views.detector, *views.volume, len(y),
                VOXELS=block, ITEMS=wide, enable_fp_fusion=False)
    return x


def _numbers(views: Views, device: torch.device) -> Tensor:
    """``(views, 21)``: source, way to the corner, down, right, and the rows of ``to_detector``."""
    return torch.cat([views.source, views.corner - views.source, views.down, views.right,
                      views.to_detector().flatten(1)], 1).to(device)


@triton.jit(do_not_specialize=[  # type: ignore[untyped-decorator]
    "rays", "rows", "columns", "depth", "height", "width", "items"])
def _project(x, y, views, sides, rays, rows, columns, depth,  # type: ignore[no-untyped-def]
             height, width, items, RAYS: tl.constexpr, ITEMS: tl.constexpr):
    """Some rays through some volumes, plane by plane of each ray's own axis."""
    ray = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    there = ray < rays
    item = tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)[None, :]
    here = there[:, None] & (item < items)
    seen = rows.to(tl.int64) * columns
    row = ((ray % seen) // columns).to(tl.float64)
    column = (ray % columns).to(tl.float64)
    of = (ray // seen) * 21
    z, wz = _part(views, of, row, column, there)
    y_, wy = _part(views, of + 1, row, column, there)
    x_, wx = _part(views, of + 2, row, column, there)
    first = (tl.abs(wz) >= tl.abs(wy)) & (tl.abs(wz) >= tl.abs(wx))
    second = (tl.abs(wy) >= tl.abs(wx)) & (first == 0)
    plane = height.to(tl.int64) * width
    # the axis, then the two others in order
    a, wa = tl.where(first, z, tl.where(second, y_, x_)), _pick(first, second, wz, wy, wx)
    b, wb = tl.where(first, y_, z), tl.where(first, wy, wz)
    c, wc = tl.where(first | second, x_, y_), tl.where(first | second, wx, wy)
    count = _pick(first, second, depth, height, width)
    limit_b, limit_c = tl.where(first, height, depth), tl.where(first | second, width, height)
    line = width.to(tl.int64)
    to_a = _pick(first, second, plane, line, 1)
    to_b, to_c = tl.where(first, line, plane), tl.where(first | second, 1, line)

    wa = tl.where(there, wa, 1.0)
    vz, vy, vx = wz * tl.load(sides), wy * tl.load(sides + 1), wx * tl.load(sides + 2)
    way = tl.sqrt(vz * vz + vy * vy + vx * vx) / tl.abs(wa)
    slope_b, slope_c = wb / wa, wc / wa
    at_b, at_c = b - slope_b * a, c - slope_c * a
    total = tl.zeros([RAYS, ITEMS], x.dtype.element_ty)
    volume = x + item * (plane * depth)
    for p in range(0, tl.max(tl.where(there, count, 0), 0)):
        place_b, place_c = at_b + slope_b * p, at_c + slope_c * p
        floor_b, floor_c = tl.floor(place_b), tl.floor(place_c)
        part_b = (place_b - floor_b).to(x.dtype.element_ty)
        part_c = (place_c - floor_c).to(x.dtype.element_ty)
        ib, ic = _whole(floor_b), _whole(floor_c)
        for more_b in tl.static_range(2):
            for more_c in tl.static_range(2):
                weight = (part_b if more_b else 1 - part_b) * (part_c if more_c else 1 - part_c)
                tap_b, tap_c = ib + more_b, ic + more_c
                inside = ((tap_b >= 0) & (tap_b < limit_b) & (tap_c >= 0) & (tap_c < limit_c)
                          & (p < count) & (weight > 0))
                place = to_a * p + to_b * tap_b + to_c * tap_c
                value = tl.load(volume + place[:, None], mask=here & inside[:, None], other=0.0)
                total += weight[:, None] * value
    tl.store(y + (item * rays.to(tl.int64) + ray[:, None]),
             total * way.to(x.dtype.element_ty)[:, None], mask=here)


@triton.jit(do_not_specialize=[  # type: ignore[untyped-decorator]
    "count", "rows", "columns", "depth", "height", "width", "items"])
def _backproject(y, x, views, sides, kinds, count, rows, columns,  # type: ignore[no-untyped-def]
                 depth, height, width, items, VOXELS: tl.constexpr, ITEMS: tl.constexpr):
    """Some voxels of some volumes, view by view, axis by axis."""
    voxel = tl.program_id(0).to(tl.int64) * VOXELS + tl.arange(0, VOXELS)
    plane = height.to(tl.int64) * width
    there = voxel < plane * depth
    item = tl.program_id(1) * ITEMS + tl.arange(0, ITEMS)[None, :]
    here = there[:, None] & (item < items)
    k = (voxel // plane).to(tl.float64)
    i = ((voxel % plane) // width).to(tl.float64)
    j = (voxel % width).to(tl.float64)
    seen = rows.to(tl.int64) * columns
    total = tl.zeros([VOXELS, ITEMS], y.dtype.element_ty)
    for view in range(count):
        of = views + view * 21
        oz, oy, ox = k - tl.load(of), i - tl.load(of + 1), j - tl.load(of + 2)
        depth_ = tl.load(of + 18) * oz + tl.load(of + 19) * oy + tl.load(of + 20) * ox
        # tiles reach beyond the last voxel, where nothing is seen
        depth_ = tl.where(there, depth_, 1.0)
        column = (tl.load(of + 12) * oz + tl.load(of + 13) * oy + tl.load(of + 14) * ox) / depth_
        row = (tl.load(of + 15) * oz + tl.load(of + 16) * oy + tl.load(of + 17) * ox) / depth_
        present = tl.load(kinds + view * 3)
        reach_row, reach_column = tl.load(kinds + view * 3 + 1), tl.load(kinds + view * 3 + 2)
        image = y + (item * count + view) * seen
        if present & 1:
            total = _reach(total, image, of, sides, oz, oy, ox, depth_, row, column, present, rows,
                           columns, reach_row, reach_column, here, there, 0, 1, 2)
        if present & 2:
            total = _reach(total, image, of, sides, oy, oz, ox, depth_, row, column, present, rows,
                           columns, reach_row, reach_column, here, there, 1, 0, 2)
        if present & 4:
            total = _reach(total, image, of, sides, ox, oz, oy, depth_, row, column, present, rows,
                           columns, reach_row, reach_column, here, there, 2, 0, 1)
    tl.store(x + (item * (plane * depth) + voxel[:, None]), total, mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def _reach(total, image, of, sides, oa, ob, oc, depth, row,  # type: ignore[no-untyped-def]
           column, present, rows, columns, reach_row, reach_column, here, there,
           A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """``total`` and what the rays stepped along axis A give to voxels ``o`` from the source.

    Detector pixel ``(row + dr, column + dc)`` sees along ``w = o / depth + dr down + dc right``, so
    that its ray passes the voxel's plane at ``(o_a d_b - o_b d_a) / w_a`` from the voxel, with
    ``d = dr down + dc right``.
    """
    real = total.dtype
    down_a, right_a = tl.load(of + 6 + A).to(real), tl.load(of + 9 + A).to(real)
    down_b, right_b = tl.load(of + 6 + B).to(real), tl.load(of + 9 + B).to(real)
    down_c, right_c = tl.load(of + 6 + C).to(real), tl.load(of + 9 + C).to(real)
    va, vb = tl.load(sides + A).to(real), tl.load(sides + B).to(real)
    vc = tl.load(sides + C).to(real)
    # where the corners of the square of rays that can reach the voxel fall, from its own place
    least_row = tl.zeros_like(oa).to(real)
    least_column = tl.zeros_like(oa).to(real)
    near, at_row, at_column = depth.to(real), row.to(real), column.to(real)
    for corner in tl.static_range(4):
        eb = 1 - 2 * (corner % 2)
        ec = 1 - 2 * (corner // 2)
        nearer = (eb * tl.load(of + 18 + B) + ec * tl.load(of + 18 + C)).to(real)
        right_of = (eb * tl.load(of + 12 + B) + ec * tl.load(of + 12 + C)).to(real)
        below = (eb * tl.load(of + 15 + B) + ec * tl.load(of + 15 + C)).to(real)
        least_row = tl.minimum(least_row, (below - at_row * nearer) / (near + nearer))
        least_column = tl.minimum(least_column, (right_of - at_column * nearer) / (near + nearer))
    # reaches are no larger than the detector, so what they are counted from lies on it
    first_row = tl.maximum(tl.floor(row + least_row.to(tl.float64)) + 1, 0.0)
    first_column = tl.maximum(tl.floor(column + least_column.to(tl.float64)) + 1, 0.0)
    from_row, from_column = (first_row - row).to(real), (first_column - column).to(real)
    whole_row, whole_column = _whole(first_row), _whole(first_column)

    wa0, wb0, wc0 = (oa / depth).to(real), (ob / depth).to(real), (oc / depth).to(real)
    oa, ob, oc = oa.to(real), ob.to(real), oc.to(real)
    for more_row in range(reach_row):
        r = whole_row + more_row
        dr = from_row + more_row
        for more_column in range(reach_column):
            c = whole_column + more_column
            dc = from_column + more_column
            da = dr * down_a + dc * right_a
            db = dr * down_b + dc * right_b
            dc_ = dr * down_c + dc * right_c
            wa, wb, wc = wa0 + da, wb0 + db, wc0 + dc_
            tent_b = 1 - tl.abs((oa * db - ob * da) / wa)
            tent_c = 1 - tl.abs((oa * dc_ - oc * da) / wa)
            inside = (there & (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
                      & (tent_b > 0) & (tent_c > 0))
            if (present & (present - 1)) != 0:
                # rays of this view are stepped along several axes: as the forward decides
                r_, c_ = r.to(tl.float64), c.to(tl.float64)
                za = tl.abs(tl.load(of + 3) + r_ * tl.load(of + 6) + c_ * tl.load(of + 9))
                ya = tl.abs(tl.load(of + 4) + r_ * tl.load(of + 7) + c_ * tl.load(of + 10))
                xa = tl.abs(tl.load(of + 5) + r_ * tl.load(of + 8) + c_ * tl.load(of + 11))
                if A == 0:
                    inside = inside & (za >= ya) & (za >= xa)
                if A == 1:
                    inside = inside & (ya > za) & (ya >= xa)
                if A == 2:
                    inside = inside & (xa > za) & (xa > ya)
            pa, pb, pc = wa * va, wb * vb, wc * vc
            way = tl.sqrt(pa * pa + pb * pb + pc * pc) / tl.abs(wa)
            weight = tl.where(inside, tent_b * tent_c * way, 0.0)
            pixel = r.to(tl.int64) * columns + c
            value = tl.load(image + pixel[:, None], mask=here & inside[:, None], other=0.0)
            total += weight[:, None] * value
    return total


@triton.jit
def _part(views, of, row, column, there):  # type: ignore[no-untyped-def]
    """One part of the sources and of the ways from there through detector pixels."""
    way = (tl.load(views + (of + 3), mask=there, other=0.0)
           + row * tl.load(views + (of + 6), mask=there, other=0.0)
           + column * tl.load(views + (of + 9), mask=there, other=0.0))
    return tl.load(views + of, mask=there, other=0.0), way


@triton.jit
def _pick(first, second, one, two, three):  # type: ignore[no-untyped-def]
    return tl.where(first, one, tl.where(second, two, three))


@triton.jit
def _whole(floor):  # type: ignore[no-untyped-def]
    """As 32 bits; what is farther than they reach is outside whatever the size."""
    return tl.maximum(tl.minimum(floor, 536870912.0), -536870912.0).to(tl.int32)
