"""Computed tomography."""

from recon.operators.ct.cone import ConeBeamCT
from recon.operators.ct.fan import FanBeamCT
from recon.operators.ct.fbp import fbp
from recon.operators.ct.fdk import fdk
from recon.operators.ct.parallel import ParallelBeamCT

__all__ = ["ConeBeamCT", "FanBeamCT", "ParallelBeamCT", "fbp", "fdk"]
