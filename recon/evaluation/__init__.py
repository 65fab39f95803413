"""``recon evaluate``: samplers over a folder of files, resumable, with fastMRI's metrics."""

from recon.evaluation.run import evaluate
from recon.evaluation.settings import Settings

__all__ = ["Settings", "evaluate"]
