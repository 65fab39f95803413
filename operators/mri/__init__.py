"""Magnetic resonance imaging: Cartesian and other sampling, coil maps, masks, noise of coils."""

from recon.operators.mri import masks, trajectories
from recon.operators.mri.cartesian import CartesianMRI
from recon.operators.mri.coils import (
    CoilCompression,
    CoilMixing,
    coil_compression,
    combine,
    mix_coils,
    rss,
    walsh,
)
from recon.operators.mri.density import pipe_menon
from recon.operators.mri.espirit import espirit
from recon.operators.mri.noise import Covariance, whiten
from recon.operators.mri.noncartesian import NonCartesianMRI

__all__ = [
    "CartesianMRI",
    "CoilCompression",
    "CoilMixing",
    "Covariance",
    "NonCartesianMRI",
    "coil_compression",
    "combine",
    "espirit",
    "masks",
    "mix_coils",
    "pipe_menon",
    "rss",
    "trajectories",
    "walsh",
    "whiten",
]
