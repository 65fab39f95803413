"""How far an image is from a reference, with the range and the region always said."""

from recon.metrics.images import best_scale, nmse, psnr, ssim

__all__ = ["best_scale", "nmse", "psnr", "ssim"]
