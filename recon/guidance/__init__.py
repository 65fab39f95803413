"""What turns a prior's prediction into one that agrees with the measurements."""

from recon.guidance.consistency import Consistency, check_weights, proximal

__all__ = ["Consistency", "check_weights", "proximal"]
