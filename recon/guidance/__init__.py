"""What turns a prior's prediction into a posterior's."""

from recon.guidance.consistency import check_weights, completing_noise, proximal
from recon.guidance.gradient import denoise_with_pullback
from recon.guidance.likelihood import (
    annealed_guided,
    misfit_descent,
    moment_guided,
    norm_guided,
    pseudoinverse_guided,
    row_sum_guided,
)

__all__ = [
    "annealed_guided",
    "check_weights",
    "completing_noise",
    "denoise_with_pullback",
    "misfit_descent",
    "moment_guided",
    "norm_guided",
    "proximal",
    "pseudoinverse_guided",
    "row_sum_guided",
]
