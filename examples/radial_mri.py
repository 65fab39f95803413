"""A head from few golden-angle spokes: ``python examples/radial_mri.py t1.nii.gz --spokes 24``.

One slice of real magnitudes, of a person the prior has not seen; coils, phase and noise are
simulated, on a grid twice as fine as the reconstructed one, so that no operator here repeats the
one that made the data. Everything else comes from the spokes alone: the density compensation by
Pipe and Menon, and coil maps by ESPIRiT from the middle of the gridded k-space, which the spokes
sample in full.

Gridding (the density-compensated adjoint), CG-SENSE and total variation are set against DDS by
``brain-mri``. CG-SENSE and TV have the best of a sweep of weights, chosen by the truth: in their
favour. PSNR has the largest value of the truth as its range. Without a file, a made-up head.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from recon import datasets, metrics, priors, reconstruct
from recon.files import refuse_results
from recon.operators.mri import NonCartesianMRI, espirit, pipe_menon, trajectories
from recon.operators.mri.fourier import fft2c, ifft2c
from recon.report import comparison, panels
from recon.report.figure import Panel
from recon.simulate import coil_maps

COILS = 8
SENSE_WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3)
TV_WEIGHTS = (3e-4, 1e-3, 3e-3)


def load(file: Path | None, number: int | None) -> Tensor:
    """A slice ``(n, n)``, n a multiple of 8, in the middle, white one."""
    if file is None:
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, 48)] * 2, indexing="ij")
        head = ((y / 0.85).square() + (x / 0.7).square() < 1).float()
        inner = (y / 0.75).square() + (x / 0.6).square() < 1
        head[inner] = 0.5 + 0.2 * torch.cos(7 * x[inner] * y[inner] + 3 * y[inner])
        for side in (-0.2, 0.2):
            head[((x - side) / 0.1).square() + (y / 0.3).square() < 1] = 0.15
        return head
    volume = datasets.open(file)
    if not isinstance(volume, datasets.Volume):
        raise ValueError(f"{file.name} holds no images: want a volume of magnitudes")
    values = volume.values.abs()
    number = len(values) // 2 if number is None else number
    if not 0 <= number < len(values):
        raise ValueError(f"{file.name} has {len(values)} slices, got --slice {number}")
    one = values[number]
    one = (one / one[one > 0.1 * one.max()].quantile(0.995)).clamp(0, 1.5)
    side = 8 * math.ceil(max(one.shape) / 8)  # a size that the network divides
    (top, bottom), (left, right) = ((spare // 2, spare - spare // 2)
                                    for spare in (side - n for n in one.shape))
    return torch.nn.functional.pad(one, (left, right, top, bottom))


def measured(truth: Tensor, k: Tensor, noise: float, seed: int) -> Tensor:
    """Noisy samples ``(coils, spokes, readout)`` of a slice, made on a grid twice as fine."""
    n = len(truth)
    padded = torch.nn.functional.pad(fft2c(truth.to(torch.complex64)), [n // 2] * 4)
    fine = 2 * ifft2c(padded).real
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, 2 * n)] * 2, indexing="ij")
    phase = torch.exp(1j * (0.5 + 0.7 * u - 0.4 * v + 0.5 * u * v))
    A = NonCartesianMRI((2 * n, 2 * n), k, coil_maps(COILS, 2 * n, 2 * n), tolerance=2.5e-6)
    y = A((fine * phase)[None]) / 2  # of four times as many pixels, over the root of their number
    return y + noise * A.range.randn(generator=torch.Generator().manual_seed(seed))


def maps_of(y: Tensor, k: Tensor, weights: Tensor, n: int) -> Tensor:
    """ESPIRiT's maps from the middle of k-space, where neighbouring spokes are a cycle apart."""
    coil = NonCartesianMRI((n, n), k)
    gridded = fft2c(coil.adjoint((weights * y)[:, None])[:, 0])
    side = min(24, 2 * int(len(k) / math.pi))
    return espirit(gridded, calibration=side, kernel=max(3, min(6, side // 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", help="volume of magnitudes, such as NIfTI")
    parser.add_argument("--out", type=Path, default=Path("radial-mri"))
    parser.add_argument("--slice", type=int, default=None, help="the middle one if absent")
    parser.add_argument("--spokes", type=int, default=24)
    parser.add_argument("--noise", type=float, default=0.01,
                        help="of each number of the samples, where white is 1")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cg", type=int, default=8, help="conjugate-gradient steps of a level")
    parser.add_argument("--weights", type=float, nargs="+", default=list(TV_WEIGHTS),
                        help="of TV, in units of the data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if args.spokes < 10:
        parser.error(f"want at least 10 --spokes to find coil maps from, got {args.spokes}")
    args.out.mkdir(parents=True, exist_ok=True)
    figure, text = args.out / "radial_mri.png", args.out / "radial_mri.txt"
    refuse_results([figure, text], args.overwrite)

    truth = load(args.file, args.slice)
    n = len(truth)
    k = trajectories.golden_angle(n, args.spokes)
    y = measured(truth, k, args.noise, args.seed)
    weights = pipe_menon((n, n), k)
    A = NonCartesianMRI((n, n), k, maps_of(y, k, weights, n))

    def score(x: Tensor) -> float:
        return float(metrics.psnr(x[0], truth))

    pulled = A.adjoint(y)
    prior = priors.load("brain-mri", max_batch=4)
    drawn = reconstruct(y, A, prior, "dds", noise_std=args.noise, samples=args.samples,
                        steps=args.steps, cg_iterations=args.cg, seed=args.seed)
    images = {
        "gridding": A.adjoint(weights * y),
        "CG-SENSE": max((A.solve(pulled, w) for w in SENSE_WEIGHTS), key=score),
        "TV": max((reconstruct(y, A, None, "tv", weight=w).mean for w in args.weights), key=score),
        "DDS, one sample": drawn.samples[0],
        f"DDS, mean of {args.samples}": drawn.mean,
    }
    told = comparison({name: {"PSNR dB": score(x), "SSIM": float(metrics.ssim(x[0], truth)),
                              "NMSE %": 100 * float(metrics.nmse(x[0], truth))}
                       for name, x in images.items()})
    full = math.pi / 2 * n
    told = f"{args.spokes} spokes of {full:.0f} that sample {n} x {n} in full\n{told}"
    print(told)
    with datasets.replacing(text, overwrite=args.overwrite) as (part,):
        part.write_text(told + "\n")
    row = [Panel("truth", truth), *(Panel(name, x[0], f"{score(x):.1f} dB")
                                    for name, x in images.items()),
           Panel("std", drawn.std[0].nan_to_num(), "white = 0.1", 0.1, "magma")]
    panels(figure, row, peak=1.0, overwrite=args.overwrite,
           title="Simulated golden-angle samples of a real slice" if args.file else "")


if __name__ == "__main__":
    main()
