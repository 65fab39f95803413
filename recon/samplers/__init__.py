"""Posterior samplers and classical baselines, called as ``sampler(y, operator, prior, ...)``."""

from recon.samplers.ads import ads
from recon.samplers.base import Sampler, sampler
from recon.samplers.daps import Langevin, PerturbAndSolve, daps
from recon.samplers.ddnm import ddnm
from recon.samplers.ddrm import ddrm
from recon.samplers.dds import dds
from recon.samplers.diffpir import diffpir
from recon.samplers.diffusion_mbir import diffusion_mbir
from recon.samplers.dps import dps
from recon.samplers.kernels import AnnealedSde, FullyAdapted, OdeCorrector
from recon.samplers.latent_dps import latent_dps
from recon.samplers.mbir import mbir
from recon.samplers.mcgdiff import mcgdiff
from recon.samplers.particles import Particles
from recon.samplers.pigdm import pigdm
from recon.samplers.psld import psld
from recon.samplers.red_diff import red_diff
from recon.samplers.smc import smc
from recon.samplers.stsl import stsl
from recon.samplers.tmpd import tmpd
from recon.samplers.tv import tv
from recon.samplers.twisted import twisted
from recon.samplers.wavelet import wavelet

__all__ = [
    "AnnealedSde",
    "FullyAdapted",
    "Langevin",
    "OdeCorrector",
    "Particles",
    "PerturbAndSolve",
    "Sampler",
    "ads",
    "daps",
    "ddnm",
    "ddrm",
    "dds",
    "diffpir",
    "diffusion_mbir",
    "dps",
    "latent_dps",
    "mbir",
    "mcgdiff",
    "pigdm",
    "psld",
    "red_diff",
    "sampler",
    "smc",
    "stsl",
    "tmpd",
    "tv",
    "twisted",
    "wavelet",
]
