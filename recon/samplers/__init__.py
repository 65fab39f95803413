"""Posterior samplers and classical baselines, all called as ``sampler(y, operator, prior, ...)``."""

from recon.samplers.base import Sampler, sampler
from recon.samplers.dds import dds

__all__ = ["Sampler", "dds", "sampler"]
