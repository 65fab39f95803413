"""Magnetic resonance imaging: Cartesian and other sampling, coil maps, masks, noise of coils."""

from recon.operators.mri import masks, trajectories
from recon.operators.mri.cartesian import CartesianMRI
from recon.operators.mri.density import pipe_menon
from recon.operators.mri.espirit import espirit
from recon.operators.mri.noncartesian import NonCartesianMRI

__all__ = ["CartesianMRI", "NonCartesianMRI", "espirit", "masks", "pipe_menon", "trajectories"]
