"""Real raw k-space of a head, 8 coils, four-fold undersampled: DDS against classical methods.

    python examples/real_brain.py brain_8ch_full.cfl --out real-brain

The file is the fully sampled example of the ESPIRiT Matlab code (BART layout). Columns are kept by
fastMRI's equispaced-fraction rule (8 % centre, seed 0) and coil maps come from the centre columns
alone. PSNR is inside the head, against the coil-combined full data, after the best single scale,
with the image's maximum as the range. TV and wavelet have the best of a sweep of weights, chosen
by that PSNR. ``--bart`` sweeps BART's ``pics`` as well, on the same k-space and the same maps.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from scipy import ndimage
from torch import Tensor

from recon import datasets, metrics, priors, reconstruct
from recon.mri import problem, undersampling
from recon.report import panels
from recon.report.figure import Panel

WEIGHTS = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3)
BART_LAMBDAS = (5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2)


def head(magnitude: Tensor) -> Tensor:
    """Where the head is: above a tenth of the maximum, opened, closed and filled."""
    bright = (magnitude > 0.1 * magnitude.max()).numpy()
    solid = ndimage.binary_closing(ndimage.binary_opening(bright), iterations=5)
    return torch.from_numpy(ndimage.binary_fill_holes(solid))


def bart_best(y: Tensor, maps: Tensor, score: Callable[[Tensor], float]) -> dict[str, Tensor]:
    """The best of each sweep of BART's ``pics``: l1-wavelet and TV, 100 iterations."""
    found = {}
    for name, option in [("BART wavelet", "W:3:0:"), ("BART TV", "T:3:0:")]:
        images = []
        for weight in BART_LAMBDAS:
            with tempfile.TemporaryDirectory() as folder:
                for file, x in [("y", y), ("maps", maps)]:
                    datasets.write_cfl(Path(folder) / f"{file}.cfl", datasets.to_bart_axes(x[None]))
                subprocess.run(["bart", "pics", "-S", "-R", f"{option}{weight}", "-i", "100", "y",
                                "maps", "x"], cwd=folder, check=True, capture_output=True)
                images.append(datasets.read_cfl(Path(folder) / "x.cfl").squeeze()[None])
        found[name] = max(images, key=score)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, default=Path("real-brain"))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS,
                        help="of TV and wavelets, swept")
    parser.add_argument("--bart", action="store_true", help="sweep BART's pics too")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    scan = datasets.open(args.file)
    mask = undersampling(scan, "equispaced_fraction", acceleration=4, center_fraction=0.08, seed=0)
    case = problem(scan, 0, mask)
    y, A = case.y, case.operator
    if case.reference is None or A.maps is None:
        raise ValueError(f"{args.file.name} is not fully sampled multi-coil k-space")
    reference = case.reference[0].abs()
    region = head(reference)

    def score(x: Tensor) -> float:
        scaled = metrics.best_scale(x[0], reference, region=region) * x[0].abs()
        return float(metrics.psnr(scaled, reference, region=region))

    prior = priors.load("brain-mri", precision=getattr(torch, args.precision), max_batch=4)
    noise = case.noise_std
    draws = reconstruct(y, A, prior, noise_std=noise, samples=args.samples, steps=args.steps,
                        progress=True)
    still = reconstruct(y, A, prior, noise_std=noise, steps=args.steps, eta=0.0, progress=True)
    images = {
        "zero-filled": A.adjoint(y),
        "least squares": max((A.solve(A.adjoint(y), w) for w in (3e-3, 1e-2, 3e-2)), key=score),
        "TV": max((reconstruct(y, A, None, "tv", weight=w).mean for w in args.weights), key=score),
        "wavelet": max((reconstruct(y, A, None, "wavelet", weight=w).mean for w in args.weights),
                       key=score),
    }
    if args.bart:
        if shutil.which("bart") is None:
            raise FileNotFoundError("--bart wants the program bart on the PATH")
        images |= bart_best(y, A.maps, score)
    images |= {"DDS eta 0": still.mean, "DDS sample": draws.samples[0],
               f"DDS mean of {args.samples}": draws.mean}

    print(f"noise {noise:.3g}, maximum {float(reference.max()):.3g}, "
          f"{int(mask.sum())} of {len(mask)} columns")
    for name, x in images.items():
        print(f"{name:<16} {score(x):6.2f} dB")
    singles = [score(x) for x in draws.samples]
    print(f"single samples   {min(singles):.2f} to {max(singles):.2f} dB")
    peak = float(reference.max())
    row = [Panel("full data", reference)]
    row += [Panel(name, x[0], f"{score(x):.1f} dB") for name, x in images.items()]
    row.append(Panel("std", draws.std[0], "white = 0.1 max", 0.1 * peak, "magma"))
    panels(args.out / "real_brain.png", row, peak=peak, overwrite=True,
           title="Real raw k-space, 8 coils, 4x equispaced fraction, one slice of one person")
    arrays = {name.replace(" ", "_"): x[0].numpy() for name, x in images.items()}
    datasets.write_npz(args.out / "real_brain.npz", {"reference": reference.numpy(), **arrays},
                       overwrite=True)


if __name__ == "__main__":
    main()
