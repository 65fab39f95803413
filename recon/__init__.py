"""Recover images from incomplete, noisy measurements with diffusion priors, and say how surely."""

from importlib.metadata import PackageNotFoundError, version

from recon import datasets, integrators, operators, priors, samplers
from recon.reconstruct import Reconstruction, reconstruct
from recon.yardstick import PosteriorReport, evaluate_posterior

try:
    __version__ = version("recon")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["PosteriorReport", "Reconstruction", "datasets", "evaluate_posterior", "integrators",
           "operators", "priors", "reconstruct", "samplers"]
