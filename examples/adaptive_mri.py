"""Columns of k-space chosen while scanning: active subsampling against masks fixed beforehand.

    python examples/adaptive_mri.py brain_8ch_full.cfl --out adaptive --seeds 10
    python examples/adaptive_mri.py --out adaptive             # simulated from the shipped slice

The file is fully sampled multi-coil k-space, such as the example of the ESPIRiT Matlab code (BART
layout); it answers for the scanner. Every policy has the same centre, from which coil maps and the
prior's scale are found, and the same number of columns; the image is then reconstructed from each
mask by the same DDS with the same seed. Noise comes from the corners of all of k-space, as from a
prescan. Per seed: ADS and random columns draw anew, equispaced ones start elsewhere. "random" is
uniform outside the centre; "variable density" falls off as ``(1 - |k| / k_max)^2``, a density that
was not tuned here. NMSE and PSNR of the mean of the samples are inside the head, against the
coil-combined full data, after the best single scale. The table and both figures are written anew
after every seed; ``adaptive_mri_columns.png`` holds no image, only columns and scores.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from recon import datasets, demo, metrics, priors, reconstruct, samplers, simulate
from recon.acquisition import Selection, columns
from recon.integrators import DDIM, schedules
from recon.mri import estimate_noise_std, problem
from recon.operators import CartesianMRI
from recon.reconstruct import data_scale
from recon.report import comparison, panels
from recon.report.figure import Panel

SCORES = ("NMSE %", "PSNR dB")
NAMES = ("ADS", "random", "equispaced", "variable density")


def head(magnitude: Tensor) -> Tensor:
    """Where the head is: above a tenth of the maximum, opened, closed and filled."""
    bright = (magnitude > 0.1 * magnitude.max()).numpy()
    solid = ndimage.binary_closing(ndimage.binary_opening(bright), iterations=5)
    return torch.from_numpy(ndimage.binary_fill_holes(solid))


def scan_of(file: Path | None) -> datasets.Scan:
    """The file's scan, or one simulated from the slice that ships with the package."""
    if file is not None:
        return datasets.open(file)
    kspace = simulate.multicoil_kspace(demo.shipped_slice(), noise_std=demo.NOISE,
                                       generator=torch.Generator().manual_seed(0))
    return datasets.Scan(kspace=kspace[None], mask=None, maps=None, reference=None, crop=None,
                         attributes={}, name="simulated", kind="simulated")


def fixed(name: str, rest: Tensor, count: int, width: int, seed: int) -> Tensor:
    """``count`` of the columns ``rest`` by a rule that does not look at data."""
    generator = torch.Generator().manual_seed(seed)
    if name == "equispaced":
        offset = torch.rand((), generator=generator)
        return rest[((torch.arange(count) + offset) * len(rest) / count).long()]
    far = 1 - (rest - width // 2).abs() / (width / 2)
    weight = torch.ones_like(far) if name == "random" else far.square() + 1e-6
    return rest[torch.multinomial(weight, count, generator=generator)]


def bootstrap(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of paired differences."""
    rng = np.random.default_rng(0)
    means = rng.choice(differences, (10_000, len(differences))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def compared(table: dict[str, np.ndarray]) -> str:
    """Means over seeds, and what ADS gains on each of the others, seed by seed."""
    rows = {n: dict(zip(SCORES, found.mean(0).tolist(), strict=True)) for n, found in table.items()}
    lines = [comparison(rows, digits=3), ""]
    for name in list(table)[1:]:
        for i, (unit, sign) in enumerate(zip(SCORES, (-1, 1), strict=True)):
            gain = sign * (table["ADS"] - table[name])[:, i]
            low, high = bootstrap(gain)
            lines.append(f"ADS better than {name} by {gain.mean():+.3f} {unit} "
                         f"[{low:+.3f}, {high:+.3f}], in {int((gain > 0).sum())} of {len(gain)}")
    return "\n".join(lines) + "\n"


def draw_columns(path: Path, masks: dict[str, list[Tensor]], table: dict[str, np.ndarray],
                 title: str) -> None:
    """Which columns each policy measured, a line a seed, and the PSNR that they led to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=150)
    FigureCanvasAgg(figure)
    places = figure.add_gridspec(len(table), 2, width_ratios=(2.2, 1))
    for i, name in enumerate(table):
        axes = figure.add_subplot(places[i, 0])
        axes.imshow(torch.stack(masks[name]).numpy(), cmap="gray", aspect="auto",
                    interpolation="nearest")
        axes.set_ylabel(name.replace(" ", "\n"), fontsize=8)
        axes.set_yticks([])
        axes.set_xticks([])
    axes.set_xlabel("columns of k-space, measured in white, a line a seed", fontsize=8)
    axes = figure.add_subplot(places[:, 1])
    reached = np.stack([found[:, 1] for found in table.values()])
    axes.plot(range(len(table)), reached, "-", color="0.75", linewidth=0.7)
    axes.plot(range(len(table)), reached, "k.", markersize=4)
    axes.plot(range(len(table)), reached.mean(1), "_", color="tab:red", markersize=20)
    axes.set_xticks(range(len(table)), [name.replace(" ", "\n") for name in table], fontsize=8)
    axes.set_xlim(-0.5, len(table) - 0.5)
    axes.set_ylabel("PSNR, dB; one line a seed, means in red", fontsize=8)
    axes.tick_params("y", labelsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    with datasets.replacing(path, overwrite=True) as (part,):
        figure.savefig(part, format="png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("adaptive-mri"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--levels", type=int, default=24)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--centre", type=float, default=0.08)
    parser.add_argument("--policies", nargs="+", choices=NAMES[1:], default=NAMES[1:],
                        help="what ADS is compared with")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    scan = scan_of(args.file)
    kspace = scan.kspace[0]
    height, width = kspace.shape[-2:]
    budget, side = width // 4, max(8, round(args.centre * width))
    centre = torch.arange((width - side + 1) // 2, (width - side + 1) // 2 + side)
    rest = torch.tensor(sorted(set(range(width)) - set(centre.tolist())))
    case = problem(scan, 0, torch.isin(torch.arange(width), centre))
    maps = case.operator.maps
    A = CartesianMRI((height, width), maps=maps)
    noise = estimate_noise_std(kspace, torch.ones(width, dtype=torch.bool))
    scale = float(data_scale(case.y, case.operator))
    reference = A.adjoint(kspace)[0].abs()
    region = head(reference)
    prior = priors.load("brain-mri", precision=getattr(torch, args.precision), max_batch=4)

    def acquire(selection: Selection) -> Tensor:
        return torch.where(selection.mask, kspace, 0)

    def chosen(name: str, seed: int) -> Tensor:
        if name != "ADS":
            return torch.cat([centre, fixed(name, rest, budget - side, width, seed)])
        return samplers.ads.run(
            acquire, A, prior.rescaled(scale), candidates=columns(A), budget=budget,
            initial=centre, noise_std=noise, samples=args.particles, cg_iterations=6,
            sigmas=scale * schedules.karras(args.levels, 0.01, 3.0),
            window=(1, max(2, args.levels - 2)), integrator=DDIM(0.95, "released"),
            generator=torch.Generator().manual_seed(seed)).order

    def image(mask: Tensor, seed: int) -> Tensor:
        found = reconstruct(torch.where(mask, kspace, 0), CartesianMRI((height, width), mask, maps),
                            prior, noise_std=noise, samples=args.samples, steps=args.steps,
                            seed=seed, scale=scale).mean[0]
        return metrics.best_scale(found, reference, region=region) * found.abs()

    scores: list[Callable[[Tensor], Tensor]] = [
        lambda x: 100 * metrics.nmse(x, reference, region=region),
        lambda x: metrics.psnr(x, reference, region=region)]
    names = ("ADS", *args.policies)
    table = {name: np.zeros((0, len(SCORES))) for name in names}
    masks: dict[str, list[Tensor]] = {name: [] for name in names}
    row = [Panel("full data", reference)]
    title = f"{budget} of {width} columns, {side} of them the centre"
    print(f"{scan.name}: noise {noise:.3g}, maximum {float(reference.max()):.3g}, {title}")
    for seed in range(args.seeds):
        for name in names:
            mask = torch.isin(torch.arange(width), chosen(name, seed))
            if int(mask.sum()) != budget:
                raise RuntimeError(f"{name} measured {int(mask.sum())} columns, not {budget}")
            x = image(mask, seed)
            found = [float(score(x)) for score in scores]
            table[name] = np.vstack([table[name], found])
            masks[name].append(mask)
            if seed == 0:
                row += [Panel(name, x, f"{found[1]:.1f} dB"),
                        Panel("its columns", mask.float().expand(height, width), peak=1.0)]
        print(f"seed {seed}: " + ", ".join(f"{n} {table[n][seed, 1]:.2f} dB" for n in names),
              flush=True)
        with datasets.replacing(args.out / "adaptive_mri.txt", overwrite=True) as (part,):
            part.write_text(compared(table))
        panels(args.out / "adaptive_mri.png", row, peak=float(reference.max()), overwrite=True,
               title=f"{title}, seed 0, mean of {args.samples} DDS samples")
        draw_columns(args.out / "adaptive_mri_columns.png", masks, table,
                     f"{scan.name}: {title}; mean of {args.samples} DDS samples")
    print(compared(table), end="")


if __name__ == "__main__":
    main()
