"""Priors: denoisers of image distributions, exact ones and networks."""

from recon.priors.base import Prior
from recon.priors.errors import CheckpointError
from recon.priors.gaussian import Gaussian, GaussianMixture
from recon.priors.latent import Codec
from recon.priors.network import DenoisingUNet, EDMPrior, UNetSettings
from recon.priors.parameterisation import (
    EpsilonPrior,
    Flow,
    FlowPrior,
    ScorePrior,
    VarianceExploding,
    VariancePreserving,
    VelocityPrior,
    X0Prior,
)
from recon.priors.weights import SHIPPED, card, load, save

__all__ = [
    "SHIPPED", "CheckpointError", "Codec", "DenoisingUNet", "EDMPrior", "EpsilonPrior", "Flow",
    "FlowPrior", "Gaussian", "GaussianMixture", "Prior", "ScorePrior", "UNetSettings",
    "VarianceExploding", "VariancePreserving", "VelocityPrior", "X0Prior", "card", "load", "save",
]
