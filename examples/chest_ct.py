"""Few-view CT of a real body: ``python examples/chest_ct.py DICOM_FOLDER --views 60 8``.

Slices in HU, of a person the prior has not seen, are projected by parallel beams at their own
pixels and with bins half as wide, which are averaged in pairs; images are reconstructed with pixels
twice as large, so that no operator here repeats the one that made the data. ``--noise`` of Gaussian
noise is added to the line integrals: 0.01 is that of 10,000 photons.

DDS by ``chest-ct`` is set against total variation with the best of a sweep of weights, chosen by
the truth for every slice: in its favour. PSNR has the largest value of the truth as its range, and
the root mean square error in HU is inside the body. Without a folder, a made-up body.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from recon import datasets, metrics, priors, reconstruct
from recon.ct import attenuation, pixel_of
from recon.files import refuse_results
from recon.metrics.ct import body_mask, mu_to_hu
from recon.operators.ct import ParallelBeamCT
from recon.report import comparison
from recon.report.figure import Panel, grid

TV_WEIGHTS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def load(folder: Path | None, slices: list[int]) -> tuple[Tensor, float]:
    """Slices in 1/mm, with even sides, and the pixel in mm."""
    if folder is None:
        v, u = torch.meshgrid(*[torch.linspace(-1, 1, 96)] * 2, indexing="ij")
        hu = torch.where((u / 0.85).square() + (v / 0.65).square() < 1, 40.0, -1000.0)
        for side in (-0.42, 0.42):
            hu[((u - side) / 0.3).square() + (v / 0.45).square() < 1] = -800.0
        hu[u.square() + (v - 0.45).square() < 0.012] = 700.0
        return metrics.hu_to_mu(hu)[None].expand(len(slices), -1, -1), 4.0
    volume = datasets.open(folder)
    mu, pixel = attenuation(volume), pixel_of(volume)
    if max(slices) >= len(mu):
        raise ValueError(f"{folder.name} has {len(mu)} slices: want --slices below that")
    height, width = (n - n % 2 for n in mu.shape[-2:])
    return mu[slices, :height, :width], pixel


def measured(fine: Tensor, views: int, pixel: float, noise: float, seed: int
             ) -> tuple[Tensor, ParallelBeamCT]:
    """Projections of one slice ``(1, views, bins)``, and the operator on pixels twice as large."""
    size = (fine.shape[-2] // 2, fine.shape[-1] // 2)
    bins = math.ceil(math.hypot(*size)) + 1
    angles = torch.arange(views, dtype=torch.float64) * (math.pi / views)
    finer = ParallelBeamCT((2 * size[0], 2 * size[1]), angles, 2 * bins, 0.0, pixel, pixel)
    y = finer(fine[None])
    y = (y[..., ::2] + y[..., 1::2]) / 2
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    return y, ParallelBeamCT(size, angles, bins, 0.0, 2 * pixel, 2 * pixel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="DICOM series or file in HU")
    parser.add_argument("--out", type=Path, default=Path("chest-ct"))
    parser.add_argument("--prior", default="chest-ct")
    parser.add_argument("--views", type=int, nargs="+", default=[60, 8])
    parser.add_argument("--slices", type=int, nargs="+", default=[10, 16])
    parser.add_argument("--noise", type=float, default=0.01, help="of the line integrals")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cg", type=int, default=8, help="conjugate-gradient steps of a level")
    parser.add_argument("--eta", type=float, default=0.95)
    parser.add_argument("--weights", type=float, nargs="+", default=list(TV_WEIGHTS),
                        help="of TV, in units of the data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    figure, text = args.out / "chest_ct.png", args.out / "chest_ct.txt"
    refuse_results([figure, text], args.overwrite)

    fine, pixel = load(args.folder, args.slices)
    truths = avg_pool2d(fine[:, None], 2)
    prior = priors.load(args.prior, max_batch=4)
    rows: list[list[Panel]] = []
    table: dict[str, dict[str, float]] = {}
    for views in args.views:
        scores: dict[str, list[tuple[float, float]]] = {}
        for number, truth, slice_mu in zip(args.slices, truths, fine, strict=True):
            y, A = measured(slice_mu, views, pixel, args.noise, args.seed + number)
            body = body_mask(mu_to_hu(truth[0]))

            def score(x: Tensor, truth: Tensor = truth, body: Tensor = body) -> tuple[float, float]:
                off = mu_to_hu(x[0])[body] - mu_to_hu(truth[0])[body]
                return float(metrics.psnr(x[0], truth[0])), float(off.square().mean().sqrt())

            fits = {w: reconstruct(y, A, None, "tv", weight=w).mean for w in args.weights}
            best = max(fits, key=lambda w: score(fits[w])[0])
            drawn = reconstruct(y, A, prior, "dds", noise_std=args.noise, samples=args.samples,
                                steps=args.steps, cg_iterations=args.cg, eta=args.eta,
                                seed=args.seed + number)
            found = {f"TV {best:g}": fits[best], "DDS, one sample": drawn.samples[0],
                     f"DDS, mean of {args.samples}": drawn.mean}
            for name, x in found.items():
                scores.setdefault(name.split(" ")[0] if name.startswith("TV") else name,
                                  []).append(score(x))
            white = float(truth.max()) * 0.7
            rows.append([Panel(f"slice {number}", truth[0], f"{views} views", white),
                         *(Panel(name, x[0], f"{score(x)[0]:.1f} dB", white)
                           for name, x in found.items()),
                         Panel("std", drawn.std[0].nan_to_num(), "white = 0.1", 0.1 * white,
                               "magma")])
        for name, each in scores.items():
            psnr, hu = (sum(values) / len(values) for values in zip(*each, strict=True))
            table[f"{views} views, {name}"] = {"PSNR dB": psnr, "RMSE HU": hu}
    told = comparison(table)
    print(told)
    with datasets.replacing(text, overwrite=args.overwrite) as (part,):
        part.write_text(told + "\n")
    grid(figure, rows, title="Simulated projections of real slices" if args.folder else "",
         overwrite=args.overwrite)


if __name__ == "__main__":
    main()
