"""``recon evaluate``: samplers over a folder of files, resumable, with fastMRI's metrics."""

from recon.evaluation.run import diverged, evaluate
from recon.evaluation.settings import Settings

__all__ = ["Settings", "diverged", "evaluate"]
