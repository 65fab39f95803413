"""Computed tomography."""

from recon.operators.ct.parallel import ParallelBeamCT

__all__ = ["ParallelBeamCT"]
