"""Images already reconstructed, and where their voxels lie in the patient."""

from typing import NamedTuple

import torch
from torch import Tensor

from recon.datasets.scan import Attributes

AIR_HU = -1000.0


class Volume(NamedTuple):
    """A stack of slices in physical units.

    Slices are in the order of the axis they are stacked along, not of names or instance numbers.
    """

    values: Tensor
    """float32 ``(slices, H, W)``, or complex64 where the file holds complex images."""
    unit: str
    """``HU``, or ``arbitrary``."""
    affine: Tensor | None
    """float64 ``(4, 4)``: ``affine @ (slice, row, column, 1)`` is the centre of a voxel in mm, in
    DICOM's patient coordinates: towards the left, back and head. Slices count from the first one
    read. None where the file says nothing."""
    padding: Tensor | None
    """bool like ``values``: outside what the scanner measured; ``values`` are air there (CT) or
    zero. None where nothing is marked."""
    attributes: Attributes
    """What the file says, without anything that names a patient, and under ``note`` whatever the
    reader inferred, left out or changed, sentences joined by ``"; "``."""
    name: str
    """Base name of the file or folder."""
    kind: str
    """``dicom_ct``, ``dicom_mr``, ``nifti`` or ``nrrd``."""

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance of neighbouring voxels along slices, rows (down) and columns (right)."""
        if self.affine is None:
            return None
        a, b, c = torch.linalg.vector_norm(self.affine[:3, :3], dim=0).tolist()
        return a, b, c


def affine_of_slices(affine: Tensor | None, chosen: slice) -> Tensor | None:
    """The affine of ``values[chosen]`` from that of all slices, neither end of ``chosen`` open."""
    if affine is None:
        return None
    affine = affine.clone()
    affine[:3, 3] += affine[:3, 0] * chosen.start
    affine[:3, 0] *= chosen.step
    return affine
