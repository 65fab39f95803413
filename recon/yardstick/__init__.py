"""Any sampler measured against posteriors known in closed form."""

from recon.yardstick.posterior import PosteriorReport, evaluate_posterior
from recon.yardstick.problems import Problem

__all__ = ["PosteriorReport", "Problem", "evaluate_posterior"]
