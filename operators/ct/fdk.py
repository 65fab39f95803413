"""Filtered backprojection of cone beams, for first images and as a baseline."""

import math

import torch
from torch import Tensor

from recon.operators.ct.cone import ConeBeamCT


def fdk(y: Tensor, operator: ConeBeamCT) -> Tensor:
    """The volume by filtered backprojection of a full circular orbit, in the units of the volume.

    ``x = c A^H (cos g * ramp(cos g * y))`` with ``g`` the angle of a ray to the central one and
    ``c = d_angle / 2 * R^2 / (R + D)^2 * pixel area / voxel volume``. The rays through a voxel lie
    the denser the nearer it is to the source, so that the adjoint itself carries the weight
    ``1 / distance^2`` of Feldkamp's formula.

    ``y`` is ``(*batch, 1, views, rows, columns)``. Exact in the plane of the source for fine grids,
    approximate beyond it; views want to be equidistant over a full turn, in any order. Raises
    ValueError for other orbits. Source: Feldkamp, Davis, Kress 1984, J. Opt. Soc. Am. A 1(6), 612;
    the ramp is band-limited and taken of the samples (Kak, Slaney 1988, eq. 3.61).
    """
    source, detector = operator.orbit
    operator.range.check(y, "fdk")
    angles = operator.angles
    assert angles is not None
    step = 2 * math.pi / len(angles)
    places = (angles.remainder(2 * math.pi)).sort().values
    gaps = torch.cat([places, places[:1] + 2 * math.pi]).diff()
    if not bool(((gaps - step).abs() < 0.01 * step).all()):
        raise ValueError(f"fdk: want {len(angles)} angles equidistant over a full turn, got gaps "
                         f"from {float(gaps.min()):.4g} to {float(gaps.max()):.4g} rad: for other "
                         "orbits solve least squares with operator.solve or samplers.tv")
    _, _, rows, columns = operator.range.shape
    row, column = (operator.vectors[0, part].norm() for part in (slice(9, 12), slice(6, 9)))
    # the foot of the source on the detector, in pixels, from the first view
    centre = operator.vectors[0, 3:6] - operator.vectors[0, :3]
    across, down = operator.vectors[0, 6:9] / column, operator.vectors[0, 9:12] / row
    u = (torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2) * column + centre @ across
    v = (torch.arange(rows, dtype=torch.float64) - (rows - 1) / 2) * row + centre @ down
    far = source + detector
    cosine = (far / (far**2 + u.square() + v[:, None].square()).sqrt()).to(y.device, y.dtype)
    scale = (step / 2 * (source / far) ** 2 * float(row * column)
             / (operator.voxel[0] * operator.voxel[1] * operator.voxel[2]))
    return scale * operator.adjoint(cosine * _ramp(cosine * y, float(column) * source / far))


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
