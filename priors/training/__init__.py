"""Training priors: examples from volumes, the loop, and the check on images held out."""

from recon.priors.training.examples import Examples, Look, Stack, batch
from recon.priors.training.held_out import CHECKED, denoising_psnr, held_out_images
from recon.priors.training.loop import Check, Recipe, Training

__all__ = ["CHECKED", "Check", "Examples", "Look", "Recipe", "Stack", "Training", "batch",
           "denoising_psnr", "held_out_images"]
