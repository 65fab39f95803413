"""Measured X-ray projections and their geometry."""

from typing import NamedTuple

from torch import Tensor

from recon.datasets.scan import Attributes


class Projections(NamedTuple):
    """Parallel-beam sinograms and what is needed to build the operator, in mm and radians.

    The operator is ``operators.ParallelBeamCT(size, angles, bins, detector_offset,
    pixel_mm, bin_mm)`` with ``bins = values.shape[-1]``; images come out in ``unit``.
    """

    values: Tensor
    """float32 ``(slices, views, bins)``: integrals of ``unit`` along the rays."""
    angles: Tensor
    """float64 ``(views,)``, in radians, by the convention of ``operators.ParallelBeamCT``."""
    size: tuple[int, int]
    """``(H, W)`` of the image."""
    pixel_mm: float
    bin_mm: float
    detector_offset: float
    """Shift of the detector along itself, in bins."""
    unit: str
    """What the image is in, ``1/mm`` times a number where the file divides by one."""
    reference: Tensor | None
    """float32 ``(slices, h, w)``, in ``unit``: the image to compare with."""
    attributes: Attributes
    name: str
    kind: str
    """``lodopab``."""
