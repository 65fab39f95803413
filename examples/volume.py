"""A head in three dimensions from a prior of slices: ``python examples/volume.py t1.nii.gz``.

Real magnitude images of one person; coils, phase, noise and undersampling are simulated: every
axial slice has 4-fold random columns of its own, seen by 8 coils. Slices reconstructed apart
(``samplers.dds``) are set against ``samplers.mbir``, which couples them by total variation along z,
with the same prior, seeds and settings otherwise.

PSNR is the mean over the slices of one orientation, magnitude against the magnitude of the truth
within the head's bounding box, peak the largest value of the volume: over all voxels at once it
would be the same number in every orientation. Without a file, a small made-up volume.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recon import priors, samplers
from recon.datasets import replacing
from recon.files import refuse_results
from recon.integrators import schedules
from recon.operators import CartesianMRI
from recon.operators.mri import masks
from recon.reconstruct import data_scale
from recon.report import panels
from recon.report.figure import Panel
from recon.simulate import coil_maps

AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


def load(path: Path | None, slices: int) -> Tensor:
    """Neighbouring axial slices ``(z, y, x)`` through the middle of the head, peak one."""
    if path is None:
        grid = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (slices, 32, 32)], indexing="ij")
        radius = torch.stack([g / r for g, r in zip(grid, (1.4, 0.9, 0.8), strict=True)])
        head = (radius.norm(dim=0) < 1).float()
        return head * (0.6 + 0.3 * torch.cos(6 * grid[1] + 2 * grid[0]) * (grid[2].abs() > 0.1))
    import nibabel

    image = nibabel.as_closest_canonical(  # type: ignore[no-untyped-call]
        nibabel.Nifti1Image.from_filename(path))
    voxels = np.ascontiguousarray(image.dataobj, dtype=np.float32).squeeze()
    voxels /= np.quantile(voxels[voxels > 0.1 * voxels.max()], 0.998)
    volume = torch.from_numpy(voxels).clamp(0, 1.5).permute(2, 1, 0).flip(1)  # front up
    inside = (volume > 0.15).flatten(1).sum(1).cumsum(0)
    middle = int((inside < inside[-1] / 2).sum())
    first = min(max(middle - slices // 2, 0), len(volume) - slices)
    return padded(volume[first : first + slices])


def padded(volume: Tensor, multiple: int = 8) -> Tensor:
    """In-plane sizes the network divides."""
    grow = [-n % multiple for n in volume.shape[1:]]
    return torch.nn.functional.pad(volume, (0, grow[1], 0, grow[0]))


def box(truth: Tensor) -> tuple[slice, ...]:
    """The head's bounding box."""
    where = (truth > 0.1).nonzero()
    return tuple(slice(int(a), int(b) + 1)
                 for a, b in zip(where.amin(0), where.amax(0), strict=True))


def psnr(found: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean PSNR in dB of the slices of each orientation."""
    inside = box(truth)
    square = (found[inside] - truth[inside]).square()
    peak = float(truth.max())
    figures = {}
    for name, axis in AXES.items():
        mean = square.mean([a for a in range(3) if a != axis])
        figures[name] = float((10 * (peak**2 / mean).log10()).mean())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("volume", type=Path, nargs="?", help="T1-weighted NIfTI file")
    parser.add_argument("--out", type=Path, default=Path("recon-volume"))
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--acceleration", type=int, default=4)
    parser.add_argument("--noise", type=float, default=0.03, help="of each number of the k-space")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--weight", type=float, default=0.01, help="of the differences along z")
    parser.add_argument("--rho", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-slices", type=int, default=8, help="seen by the network at once")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    refuse_results([args.out / "volume.txt", *(args.out / f"{name}.png" for name in AXES)],
                   args.overwrite)

    truth = load(args.volume, args.slices)
    A = scanner(truth.shape, args.acceleration, args.seed)
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in truth.shape[1:]], indexing="ij")
    image = (truth * torch.exp(1j * (0.5 + 0.7 * u - 0.4 * v + 0.5 * u * v)))[:, None]
    n = A.range.randn(len(truth), generator=torch.Generator().manual_seed(args.seed))
    y = A(image) + args.noise * torch.where(A.mask, n, 0)
    scale = float(data_scale(y, A).median())
    prior = priors.load("brain-mri", max_batch=args.max_slices).rescaled(scale)

    def drawn(sampler: samplers.Sampler[Any, Any], **coupling: Any) -> Tensor:
        return sampler(y, A, prior, noise_std=args.noise, samples=args.samples, eta=0.95,
                       rule="released", cg_iterations=8,
                       sigmas=scale * schedules.karras(args.steps, 0.01, 3.0),
                       generator=torch.Generator().manual_seed(args.seed + 1), **coupling
                       ).mean(0)[:, 0].abs()

    found = {"truth": truth, "zero-filled": A.adjoint(y)[:, 0].abs(),
             "slice by slice": drawn(samplers.dds),
             "coupled": drawn(samplers.mbir, weight=args.weight, rho=args.rho)}
    figures = {name: psnr(volume, truth) for name, volume in found.items() if name != "truth"}
    heading = f"{'mean PSNR of slices, dB':<24}" + "".join(f"{name:>10}" for name in AXES)
    lines = [heading, *(f"{name:<24}" + "".join(f"{f:>10.2f}" for f in row.values())
                        for name, row in figures.items())]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    with replacing(args.out / "volume.txt", overwrite=args.overwrite) as (part,):
        part.write_text(text)
    for name, axis in AXES.items():
        middle = truth.shape[axis] // 2
        row = [Panel(title, volume.movedim(axis, 0)[middle].flip(0 if axis else ()),
                     "" if title == "truth" else f"{figures[title][name]:.1f} dB")
               for title, volume in found.items()]
        panels(args.out / f"{name}.png", row, peak=0.9, title=name,
               overwrite=args.overwrite)


def scanner(shape: tuple[int, ...], acceleration: int, seed: int) -> CartesianMRI:
    """8 coils; every slice has random columns of its own."""
    z, height, width = shape
    each = torch.stack([masks.random(width, 0.08, acceleration, seed=1000 * seed + i)
                        for i in range(z)])
    return CartesianMRI((height, width), each[:, None, None], coil_maps(8, height, width))


if __name__ == "__main__":
    main()
