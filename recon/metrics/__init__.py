"""How far an image is from a reference, with the range and the region always said."""

from recon.metrics.conventions import (
    CONVENTIONS,
    Score,
    SliceScores,
    SliceSums,
    dds,
    fastmri,
    fastmri_from_slices,
    fastmri_maximum,
    inversebench,
    lodopab,
    slice_sums,
    whole_slice_sums,
)
from recon.metrics.ct import HUErrors, body_mask, hu_errors, hu_to_mu, mu_to_hu
from recon.metrics.images import best_scale, nmse, psnr, ssim
from recon.metrics.perceptual import Perceptual, lpips
from recon.metrics.uncertainty import (
    CRPS,
    Coverage,
    RankHistogram,
    Residual,
    Sparsification,
    crps,
    gaussian_crps,
    interval_coverage,
    rank_histogram,
    reliability,
    residual_over_noise,
    sparsification,
)

__all__ = [
    "CONVENTIONS", "CRPS", "Coverage", "HUErrors", "Perceptual", "RankHistogram", "Residual",
    "Score", "SliceScores", "SliceSums", "Sparsification", "best_scale", "body_mask", "crps", "dds",
    "fastmri", "fastmri_from_slices", "fastmri_maximum", "gaussian_crps", "hu_errors", "hu_to_mu",
    "interval_coverage", "inversebench", "lodopab", "lpips", "mu_to_hu", "nmse", "psnr",
    "rank_histogram", "reliability", "residual_over_noise", "slice_sums", "sparsification", "ssim",
    "whole_slice_sums",
]
