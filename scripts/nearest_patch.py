"""How near a prior's samples come to what it was trained on, against images it has not seen.

    python scripts/nearest_patch.py CT_TRAINING upper_abdomen_dicom --prior chest-ct --unit HU

Patches of 24 x 24 pixels without their mean and with a norm of one, in eight turns and flips; flat
ones are left out. The distance to the nearest of the training patches (every slice and stride of
the axial planes, at several pixel sizes, as thick as in training) is between 0, the same but for
brightness and contrast, and the square root of 2. Samples that repeat the training images lie
nearer to them than patches of another person do.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, unfold

from recon import priors
from recon.priors.training import Stack, held_out_images
from recon.training import read_stacks
from recon.training.preview import samples

PATCH, FLAT = 24, 0.03


def patches(images: Tensor, stride: int) -> Tensor:
    """Rows of ``(n, 1, height, width)`` without mean, of norm one; flat ones left out."""
    rows = unfold(images, PATCH, stride=stride).movedim(1, 2).reshape(-1, PATCH**2)
    rows = rows - rows.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    keep = norm[:, 0] > FLAT * PATCH
    return rows[keep] / norm[keep]


def of_training(stack: Stack, pixels: list[float], thickness: float, stride: int) -> Tensor:
    """The patches of one stack's own slices at each pixel size."""
    spacing = stack.spacing_mm or (1.0, 1.0, 1.0)
    thick = max(1, round(thickness / spacing[0])) if stack.spacing_mm else 1
    planes = stack.values.unfold(0, thick, thick).mean(-1)[:, None] * 0.57
    found = []
    for pixel in pixels if stack.spacing_mm else [1.0]:
        factor = min(1.0, spacing[1] / pixel)
        size = [round(n * factor) for n in planes.shape[-2:]]
        found.append(patches(interpolate(planes, size=size, mode="bilinear", antialias=True),
                             stride))
        if factor == 1.0:
            break  # larger pixels are not made finer
    return torch.cat(found)


def nearest(queries: Tensor, known: Tensor) -> Tensor:
    """The distance of each query, in its nearest turn, to the nearest known patch."""
    square = queries.view(-1, PATCH, PATCH)
    best = torch.full((len(queries),), -1.0)
    for turned in (square, square.transpose(1, 2)):
        for flips in ((), (1,), (2,), (1, 2)):
            rows = turned.flip(flips).reshape(-1, PATCH**2)
            for first in range(0, len(known), 20_000):
                part = known[first : first + 20_000]
                best = torch.maximum(best, (rows @ part.T).amax(1))
    return (2 - 2 * best).clamp(min=0).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--prior", default="chest-ct")
    parser.add_argument("--unit")
    parser.add_argument("--pixels", type=float, nargs="+", default=[2.5, 2.0, 1.5, 1.0])
    parser.add_argument("--thickness", type=float, default=4.5)
    parser.add_argument("--stride", type=int, default=6)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    prior = priors.load(args.prior, max_batch=4)
    if prior.is_complex:
        raise ValueError("nearest_patch wants a prior of real images")
    stacks = read_stacks(args.train, unit=args.unit)
    known = torch.cat([of_training(s, args.pixels, args.thickness, args.stride) for s in stacks])
    drawn = samples(prior, args.samples, args.side, torch.Generator().manual_seed(0),
                    steps=args.steps)
    others = held_out_images(read_stacks(args.held_out, unit=args.unit))
    apart = torch.cat([patches(x[None], PATCH) for x in others])
    print(f"{len(known):,} training patches; distance to the nearest")
    for name, rows in (("samples", patches(drawn, PATCH)), ("held out", apart)):
        d = nearest(rows, known)
        low, middle, high = torch.quantile(d, torch.tensor([0.05, 0.5, 0.95])).tolist()
        print(f"{name:<10} {len(rows):>5} patches, least {float(d.min()):.3f}, 5 % {low:.3f}, "
              f"median {middle:.3f}, 95 % {high:.3f}")


if __name__ == "__main__":
    main()
