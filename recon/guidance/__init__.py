"""What turns a prior's prediction into a posterior's."""

from recon.guidance.consistency import check_weights, proximal
from recon.guidance.gradient import denoise_with_pullback

__all__ = ["check_weights", "denoise_with_pullback", "proximal"]
