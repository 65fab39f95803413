"""Magnetic resonance imaging: Cartesian sampling, coil maps, sampling masks."""

from recon.operators.mri import masks
from recon.operators.mri.cartesian import CartesianMRI
from recon.operators.mri.espirit import espirit

__all__ = ["CartesianMRI", "espirit", "masks"]
