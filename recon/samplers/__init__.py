"""Posterior samplers and classical baselines, called as ``sampler(y, operator, prior, ...)``."""

from recon.samplers.base import Sampler, sampler
from recon.samplers.dds import dds
from recon.samplers.tv import tv
from recon.samplers.wavelet import wavelet

__all__ = ["Sampler", "dds", "sampler", "tv", "wavelet"]
