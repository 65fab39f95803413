"""Priors: denoisers of image distributions, exact ones and networks."""

from recon.priors.base import Prior
from recon.priors.check import PriorReport, check
from recon.priors.errors import CheckpointError
from recon.priors.gaussian import Gaussian, GaussianMixture
from recon.priors.latent import Codec
from recon.priors.latent_autoencoder import Autoencoder
from recon.priors.latent_prior import LatentPrior
from recon.priors.loaders.deepinv_networks import DeepinvPrior
from recon.priors.loaders.own import from_network
from recon.priors.network import DenoisingUNet, EDMPrior, UNetSettings
from recon.priors.parameterisation import (
    EpsilonPrior,
    Flow,
    FlowPrior,
    Interpolant,
    InterpolantPrior,
    ScorePrior,
    VarianceExploding,
    VariancePreserving,
    VelocityPrior,
    X0Prior,
)
from recon.priors.weights import SHIPPED, card, load, save

__all__ = [
    "SHIPPED", "Autoencoder", "CheckpointError", "Codec", "DeepinvPrior", "DenoisingUNet",
    "EDMPrior", "EpsilonPrior", "Flow", "FlowPrior", "Gaussian", "GaussianMixture", "Interpolant",
    "InterpolantPrior", "LatentPrior", "Prior", "PriorReport", "ScorePrior", "UNetSettings",
    "VarianceExploding", "VariancePreserving", "VelocityPrior", "X0Prior", "card", "check",
    "from_network", "load", "save",
]
