"""What turns a prior's prediction into one that agrees with the measurements."""

from recon.guidance.consistency import Consistency, proximal

__all__ = ["Consistency", "proximal"]
