"""Training priors from files: ``recon train``."""

from recon.training.command import Settings, train
from recon.training.images import read_stacks

__all__ = ["Settings", "read_stacks", "train"]
