"""Filtered backprojection of cone beams, for first images and as a baseline."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from recon.operators.ct.cone import ConeBeamCT
from recon.operators.ct.cone_geometry import magnification
from recon.operators.ct.geometry import Fan
from recon.operators.ct.redundancy import measured_once, unseen


def fdk(y: Tensor, operator: ConeBeamCT) -> Tensor:
    """The volume by filtered backprojection of a full circular orbit, in the units of the volume.

    ``x = sum_v (d_angle / 2) (R / L_v)^2 ramp(w cos g * y)``, Feldkamp's, where a voxel's rays meet
    the detector: ``g`` is the angle of a ray to the central one, ``R`` the distance from the source
    to the axis and ``L_v`` to the voxel along the central ray. The sum is taken by the adjoint: the
    rays that pass a voxel lie the denser the nearer it is to the source, so that
    ``c A^H (cos g * .)`` carries ``(R / L_v)^2`` itself, with
    ``c = d_angle / 2 * R^2 / (R + D)^2 * pixel area / voxel volume``. How many rays pass a voxel
    depends on where between pixels it falls, for which it is divided by the same of ones.

    ``w`` is 1, but Wang's where the detector is shifted so far that one side ends inside the volume
    (half-fan scans): by column, as in the plane of the source, ``2 sin^2(pi / 4 (1 + d / short))``
    for rays that pass the axis at a distance ``d``, so that the weights of a ray and of the same
    one seen from opposite add up to 2.

    ``y`` is ``(*batch, 1, views, rows, columns)``. Exact in the plane of the source for fine grids,
    approximate beyond it; views want to be equidistant over a full turn, in any order. What some
    views miss, above or below, is averaged over the others, and too low where those are fewer than
    half; a body larger than the field of view is not extrapolated, and what lies beyond is wrong.
    Raises ValueError for other orbits, for detectors that miss the axis, and for slices so thin
    that no row's rays pass some.

    Sources: Feldkamp, Davis, Kress 1984, J. Opt. Soc. Am. A 1(6), 612; Wang 2002, Med. Phys.
    29(7), 1634; the ramp is band-limited and taken of the samples (Kak, Slaney 1988, eq. 3.61).
    """
    operator.range.check(y, "fdk")
    fan = _mid_plane(operator)
    step = _step(fan.angles)
    shape = operator.domain.shape
    height, width = fan.pixel
    radius = min(shape[2] * height, shape[3] * width) / 2
    row = float(operator.vectors[0, 9:12].norm())
    _check_seen(fan)
    _check_rows(row * fan.source / fan.reaches, operator.voxel[0], shape[1])
    batch = operator.range.batch_of(y)
    if not y.numel():  # no Fourier transform of nothing
        return y.new_zeros(*batch, *shape)
    precision = torch.float64 if y.dtype == torch.float64 else torch.float32
    weight = _cosines(operator, fan, 0) * 2 * measured_once(fan, radius)[:, None]
    weighted = y.reshape(-1, *y.shape[-3:]).to(precision) * weight.to(y.device, precision)

    # The adjoint shares a voxel out to all rays that pass within one voxel of it: there must be
    # some where the detector ends. Filtered projections go on there, rows like their last one.
    largest = magnification(operator._views)
    rows = math.ceil(largest * operator.voxel[0] / row)
    columns = math.ceil(largest * math.hypot(height, width) / fan.spacing)
    below, above = (n + columns for n in unseen(fan, radius))
    filtered = _ramp(pad(weighted, (below, above)), fan.spacing * fan.source / fan.reaches)
    filtered = pad(filtered, (0, 0, rows, rows), mode="replicate")

    rays = _cosines(operator, fan.widened(below, above), rows).to(filtered)
    every = rays.expand(1, *filtered.shape[1:])
    sums = operator.widened(rows, below, above).adjoint(
        torch.cat([filtered * rays, every])[:, None])
    wanted = _nearness(fan, (shape[2], shape[3]), step).to(sums)
    scale = step / 2 * (fan.source / fan.reaches) ** 2 * row * fan.spacing / math.prod(
        operator.voxel)
    x = sums[:-1] * (wanted / (sums[-1] * scale).clamp(min=wanted / 2) * scale)
    return x.to(y.dtype).view(*batch, *shape)


def _mid_plane(operator: ConeBeamCT) -> Fan:
    """Its views in the plane of the source."""
    source, detector = operator.orbit
    assert operator.angles is not None
    # the foot of the source on the detector, from the first view
    centre, right = operator.vectors[0, 3:6] - operator.vectors[0, :3], operator.vectors[0, 6:9]
    column = float(right.norm())
    return Fan(operator.angles, operator.range.shape[-1], column,
               float(centre @ right) / column**2, (operator.voxel[1], operator.voxel[2]),
               source=source, detector=detector)


def _cosines(operator: ConeBeamCT, fan: Fan, more: int) -> Tensor:
    """Of the angles of rays to the central one, ``(rows, columns)``, ``more`` rows at both ends."""
    n, down = operator.range.shape[-2], operator.vectors[0, 9:12]
    centre = operator.vectors[0, 3:6] - operator.vectors[0, :3]
    v = torch.arange(-more, n + more, dtype=torch.float64) - (n - 1) / 2
    v = v[:, None] * down.norm() + (centre @ down) / down.norm()
    return fan.reaches / (fan.reaches**2 + fan.positions().square() + v.square()).sqrt()


def _nearness(fan: Fan, shape: tuple[int, int], step: float) -> Tensor:
    """``sum_v (step / 2) (R / L_v)^2`` of the voxels of a slice, ``(H, W)``."""
    (rows, columns), (height, width) = shape, fan.pixel
    y = ((rows - 1) / 2 - torch.arange(rows, dtype=torch.float64))[:, None] * height
    x = (torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2) * width
    total = torch.zeros(rows, columns, dtype=torch.float64)
    for angle in fan.angles:
        total += (step / 2) * (fan.source / (fan.source - x * angle.sin() + y * angle.cos()))**2
    return total


def _step(angles: Tensor) -> float:
    """Between neighbours, of a full turn; ValueError where they are not equidistant."""
    step = 2 * math.pi / len(angles)
    places = (angles.remainder(2 * math.pi)).sort().values
    gaps = torch.cat([places, places[:1] + 2 * math.pi]).diff()
    if not bool(((gaps - step).abs() < 0.01 * step).all()):
        raise ValueError(f"fdk: want {len(angles)} angles equidistant over a full turn, got gaps "
                         f"from {float(gaps.min()):.4g} to {float(gaps.max()):.4g} rad: for other "
                         "orbits solve least squares with operator.solve or samplers.tv")
    return step


def _check_seen(fan: Fan) -> None:
    """ValueError where no view sees the axis."""
    ends = [(fan.offset + end * fan.bins / 2) * fan.spacing * fan.source / fan.reaches
            for end in (-1, 1)]
    if min(ends[1], -ends[0]) < -1e-9 * max(ends[1], -ends[0]):
        raise ValueError("fdk: want a detector that sees the axis, got one from "
                         f"{ends[0]:.4g} to {ends[1]:.4g} (scaled to the axis): no view sees the "
                         "middle; want another detector_offset, or solve least squares with "
                         "operator.solve or samplers.tv")


def _check_rows(row: float, depth: float, slices: int) -> None:
    """ValueError where slices between two rows, scaled to the axis, have too few rays to go by.

    A slice midway is shared out to both by ``1 - row / (2 depth)``: half of what it has on average,
    or of ``depth / row``, where ``depth / row`` is ``2 - sqrt(2)``.
    """
    least = 2 - math.sqrt(2)
    if slices > 1 and depth < least * row:
        raise ValueError(f"fdk: want slices of {least:.2g} detector rows or more, scaled to the "
                         f"axis, which are {row:.4g} there, got a depth of {depth:.4g}: too few "
                         "rays pass the slices between rows; want thicker voxels, or solve least "
                         "squares with operator.solve or samplers.tv")


def _ramp(y: Tensor, spacing: float) -> Tensor:
    """Ramp filter along the last axis, of samples ``spacing`` apart as seen at the axis."""
    n = y.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * n))
    k = torch.arange(length, dtype=torch.float64)
    k = torch.minimum(k, length - k)
    kernel = torch.where(k % 2 == 1, -1 / (math.pi * k).square(), 0.0)
    kernel[0] = 0.25
    response = torch.fft.rfft(kernel).real.to(y.device, y.dtype) / spacing
    filtered = torch.fft.irfft(torch.fft.rfft(y, length) * response, length)
    return filtered[..., :n]
