"""Fan-beam computed tomography."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon.operators.ct.geometry import Fan
from recon.operators.ct.planar import (
    PlanarCT,
    angles_of,
    counted,
    finite_of,
    length_of,
    pixel_of,
    shape_of,
)
from recon.operators.ct.symmetry import Method


class FanBeamCT(PlanarCT):
    """Integrals along rays that leave a source: ``y[v, d] = integral of x along ray (v, d)``.

    Axes, centre and units are those of ``ParallelBeamCT``. At angle ``t`` the source stands at
    ``source_distance * (sin(t), -cos(t))``, the middle of the detector at
    ``-detector_distance * (sin(t), -cos(t))``, and the bins run along ``(cos(t), sin(t))``: as
    ``source_distance`` grows, a view becomes the parallel one of the same angle. Bin ``d`` has its
    middle at ``u[d] = (d - (detectors - 1) / 2 + detector_offset) * detector_spacing`` along a flat
    detector, or along the arc of a curved one, whose centre is the source. ASTRA's ``fanflat`` and
    ODL's ``FanBeamGeometry`` turn in the same way.

    Images are ``(*batch, 1, H, W)``, real; sinograms ``(*batch, 1, views, detectors)`` in units of
    the image times those of ``pixel_size``. The adjoint is the transpose of the same weights, to
    rounding, in float32 and float64. Weights: Joseph 1982, along the middle of each bin.

    Parameters
    ----------
    size
        ``N`` for an ``(N, N)`` image, or ``(H, W)``.
    angles
        Of the source, in radians, in any order and number: over a full turn, a short scan (half a
        turn and the fan), or any part.
    source_distance
        From the axis of rotation to the source, in the unit of ``pixel_size``.
    detector_distance
        From the axis to the middle of the detector. 0 for a detector through the axis, on which one
        bin is as wide as it is seen in the image.
    detectors
        Number of bins; None for the fewest that cover the diagonal of the image.
    detector_offset
        Shift of the detector along itself, in bins.
    pixel_size
        Side of a pixel, in any unit of length, or ``(height, width)``.
    detector_spacing
        Distance of neighbouring bins along the detector; None for the (smaller) side of a pixel,
        magnified from the axis to the detector.
    curved
        Whether the detector is an arc around the source, with bins of equal angles, or flat.
    method, memory_limit, dtype
        As of ``ParallelBeamCT``. Symmetries of the grid shrink the matrix eightfold where the
        number of equidistant views over a full turn divides by four.

    Raises ValueError for sizes, counts or lengths that are not positive, for angles that are not
    finite, for a source that is not a pixel outside the circle around the image, and for a curved
    detector of half a turn or more. Warns if the detector misses part of the circle inscribed in
    the image.

    Example
    -------
    >>> A = FanBeamCT(64, torch.arange(30) * torch.pi / 15, source_distance=120.0)
    >>> A(torch.ones(2, 1, 64, 64)).shape
    torch.Size([2, 1, 30, 98])
    """

    geometry: Fan

    def __init__(self, size: int | tuple[int, int], angles: Tensor | Sequence[float],
                 source_distance: float, detector_distance: float = 0.0,
                 detectors: int | None = None, detector_offset: float = 0.0,
                 pixel_size: float | tuple[float, float] = 1.0,
                 detector_spacing: float | None = None, *, curved: bool = False,
                 method: Method = "auto", memory_limit: float = 2**30,
                 dtype: torch.dtype = torch.float32) -> None:
        call = "FanBeamCT"
        shape, pixel = shape_of(call, size), pixel_of(call, pixel_size)
        source = length_of(call, "source_distance", source_distance)
        if not (math.isfinite(detector_distance) and detector_distance >= 0):
            raise ValueError(f"{call}: want a detector_distance >= 0, got {detector_distance}")
        radius = math.hypot(shape[0] * pixel[0], shape[1] * pixel[1]) / 2
        if source < radius + max(pixel):
            raise ValueError(f"{call}: want the source a pixel or more outside the image, whose "
                             f"corners are {radius:g} from the axis, got source_distance "
                             f"{source_distance}")
        reaches = source + float(detector_distance)
        spacing = min(pixel) * reaches / source if detector_spacing is None else length_of(
            call, "detector_spacing", detector_spacing)
        if detectors is None:
            fan = math.asin(radius / source)
            width = 2 * reaches * (fan if curved else math.tan(fan))
            detectors = math.ceil(width / spacing - 1e-9)
        detectors = counted(call, "detectors", detectors)
        offset = finite_of(call, "detector_offset", detector_offset)
        end = (detectors / 2 + abs(offset)) * spacing / reaches
        if curved and end >= math.pi / 2:
            raise ValueError(f"{call}: want a curved detector that ends before 90 degrees, got one "
                             f"up to {math.degrees(end):.0f}: want fewer detectors or a smaller "
                             "detector_spacing")
        found, tolerance = angles_of(call, angles)
        super().__init__(
            shape, Fan(found, detectors, spacing, offset, pixel, source=source,
                       detector=float(detector_distance), curved=bool(curved)),
            tolerance, method, memory_limit, dtype)
