"""What a prior in training does: an image held out denoised, and samples out of nothing."""

from pathlib import Path

import torch
from torch import Tensor

from recon.integrators import DDIM, integrate, schedules
from recon.noise import Noise
from recon.priors import Prior
from recon.priors.training import CHECKED
from recon.report.figure import Panel, grid


def write_preview(path: Path, prior: Prior, x0: Tensor, *, side: int, seed: int = 0,
                  device: torch.device | str = "cpu") -> None:
    """Write a PNG: one image with noise of each level over what is left, and as many samples."""
    white = float(torch.quantile(x0.abs().flatten(), 0.995)) / 0.85
    generator = torch.Generator().manual_seed(seed)
    source = Noise(generator)
    noisy = [x0 + sigma * source.like(x0) for sigma in CHECKED]
    with torch.no_grad():
        clean = [prior(x.to(device), sigma).cpu() for x, sigma in zip(noisy, CHECKED, strict=True)]
    draws = samples(prior, len(CHECKED), side, generator, device=device, dtype=x0.dtype)
    rows = [[Panel(f"noise {sigma:g}", x[0]) for x, sigma in zip(noisy, CHECKED, strict=True)],
            [Panel("denoised", x[0]) for x in clean],
            [Panel(f"sample {i + 1}", x[0]) for i, x in enumerate(draws)]]
    grid(path, [[panel._replace(peak=white) for panel in row] for row in rows], overwrite=True)


def samples(prior: Prior, count: int, side: int, generator: torch.Generator, *, steps: int = 25,
            device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws of the prior, ``(count, channels, side, side)``, by ancestral DDIM from its top level.
    """
    sigmas = schedules.karras(steps, 0.01, prior.sigma_max)
    start = Noise(generator).like(torch.empty(count, prior.channels, side, side, dtype=dtype))
    with torch.no_grad():
        return integrate(prior, (float(sigmas[0]) * start).to(device), sigmas, DDIM(1.0),
                         generator).cpu()
