"""Parallel-beam computed tomography."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon.operators.ct.geometry import Parallel
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


class ParallelBeamCT(PlanarCT):
    """Line integrals of an image, view by view: ``y[v, d] = integral of x along line (v, d)``.

    Line ``(v, d)`` is ``X cos(angle[v]) + Y sin(angle[v]) = s[d]`` with
    ``s[d] = (d - (detectors - 1) / 2 + detector_offset) * detector_spacing``. X runs along image
    columns (right), Y against image rows (up), and the origin is the centre of the grid, which for
    an even size lies between two pixels: pixel ``(i, j)`` of an ``(H, W)`` image lies at
    ``X = (j - (W - 1) / 2) * width``, ``Y = ((H - 1) / 2 - i) * height`` of its pixels. So at angle
    0 the rays run along the columns and ``y[0, d]`` sums column ``d``; at pi / 2 they run along the
    rows and ``y[0, 0]`` sums the last row. The detector turns anticlockwise with the angle.
    These are the directions of ``skimage.transform.radon`` (which transposes the sinogram and has
    its centre at pixel N // 2).

    Images are ``(*batch, 1, H, W)``, real; sinograms ``(*batch, 1, views, detectors)`` in units of
    the image times those of ``pixel_size``. The slices of a volume are a batch. The adjoint is the
    transpose of the same weights, to rounding, in float32 and float64. Weights: Joseph 1982, IEEE
    Trans. Med. Imaging 1(3), 192.

    Parameters
    ----------
    size
        ``N`` for an ``(N, N)`` image, or ``(H, W)``.
    angles
        Of the views, in radians, in any order and number. Single precision angles are taken to be
        equal, up to a symmetry, where they differ by no more than their rounding.
    detectors
        Number of bins; None for the fewest that cover the diagonal of the image.
    detector_offset
        Shift of the detector along itself, in bins: ``(detectors - 1) / 2 - c`` where the axis of
        rotation falls on bin ``c``. ``offset_by_opposite_views``,
        ``offset_by_centroids`` and ``offset_by_sharpness`` find it.
    pixel_size
        Side of a pixel, in any unit of length, or ``(height, width)``.
    detector_spacing
        Distance of neighbouring bins in the same unit; None for the (smaller) side of a pixel.
    method
        "symmetry" stores each weight once for all symmetries of the grid and is fastest for few
        images at a time; "matrix" stores all and is fastest for many; "gather" stores none and is
        the slowest; "auto" chooses by the number of images and the memory. All agree to rounding.
    memory_limit
        Bytes that the weights stored by "auto" may take (512 x 512 pixels and 180 views: 1.4 GB for
        "matrix", 0.2 GB for "symmetry").
    dtype
        In which weights are stored, float32 or float64. Products are in the precision of the input.

    Raises ValueError for sizes, counts or lengths that are not positive, and for angles that are
    not finite. Warns if the detector misses part of the circle inscribed in the image.

    Example
    -------
    >>> A = ParallelBeamCT(64, torch.arange(30) * torch.pi / 30)
    >>> A(torch.ones(2, 1, 64, 64)).shape
    torch.Size([2, 1, 30, 91])
    """

    def __init__(self, size: int | tuple[int, int], angles: Tensor | Sequence[float],
                 detectors: int | None = None, detector_offset: float = 0.0,
                 pixel_size: float | tuple[float, float] = 1.0,
                 detector_spacing: float | None = None, *, method: Method = "auto",
                 memory_limit: float = 2**30, dtype: torch.dtype = torch.float32) -> None:
        call = "ParallelBeamCT"
        shape, pixel = shape_of(call, size), pixel_of(call, pixel_size)
        spacing = min(pixel) if detector_spacing is None else length_of(
            call, "detector_spacing", detector_spacing)
        if detectors is None:
            # 1e-9: the diagonal over the spacing may come out a rounding above a whole number
            diagonal = math.hypot(shape[0] * pixel[0], shape[1] * pixel[1])
            detectors = math.ceil(diagonal / spacing - 1e-9)
        detectors = counted(call, "detectors", detectors)
        offset = finite_of(call, "detector_offset", detector_offset)
        found, tolerance = angles_of(call, angles)
        super().__init__(shape, Parallel(found, detectors, spacing, offset, pixel), tolerance,
                         method, memory_limit, dtype)
