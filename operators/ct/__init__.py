"""Computed tomography."""

from recon.operators.ct.centre import (
    offset_by_centroids,
    offset_by_opposite_views,
    offset_by_sharpness,
)
from recon.operators.ct.cone import ConeBeamCT
from recon.operators.ct.fan import FanBeamCT
from recon.operators.ct.fbp import fbp
from recon.operators.ct.fdk import fdk
from recon.operators.ct.parallel import ParallelBeamCT
from recon.operators.ct.transmission import (
    draw_transmission,
    flat_field,
    log_transform,
    readings_per_photon,
)

__all__ = [
    "ConeBeamCT",
    "FanBeamCT",
    "ParallelBeamCT",
    "draw_transmission",
    "fbp",
    "fdk",
    "flat_field",
    "log_transform",
    "offset_by_centroids",
    "offset_by_opposite_views",
    "offset_by_sharpness",
    "readings_per_photon",
]
