"""Measured X-ray projections of a tooth: filtered back-projection and TV from 181 and 45 views.

    python examples/tooth.py tooth.h5 --out tooth

The file is TomoPy's example (synchrotron, parallel beam, Data Exchange layout). Readings become the
part of photons that came through by the flat and dark fields, and line integrals by the logarithm;
the noise of each ray follows from the photons counted, whose number follows from how the flat
frames scatter. The axis of rotation is found from views half a turn apart and, for comparison, from
the sharpness of the image. TV sees whitened data. There is no truth to compare with: captions tell
how far each image is from TV of all views, and the mean square of its residuals over their noise,
which is 1 where an image explains the data and the noise is what the photons say.
"""

import argparse
import math
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from recon.operators import ParallelBeamCT, ct, whitened
from recon.report.figure import Panel, grid
from recon.samplers import tv


def readings(path: Path, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projections, flat and dark frames of one detector row, ``(n, bins)``, and the angles."""
    with h5py.File(path) as file:
        parts = [torch.from_numpy(np.asarray(file[f"exchange/{name}"])[:, row])
                 for name in ("data", "data_white", "data_dark")]
        degrees = torch.from_numpy(np.asarray(file["exchange/theta"], dtype=np.float64))
    return parts[0], parts[1], parts[2], degrees.deg2rad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tooth"))
    parser.add_argument("--row", type=int, default=0, help="of the detector")
    parser.add_argument("--bins", type=int, default=320, help="640 averaged to so many")
    parser.add_argument("--weight", type=float, default=2e-4, help="of TV")
    parser.add_argument("--iterations", type=int, default=60)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    raw, flat, dark, angles = readings(args.file, args.row)
    together = raw.shape[-1] // args.bins  # bins averaged, before the logarithm
    raw, flat, dark = (t.view(-1, args.bins, together).mean(-1) for t in (raw, flat, dark))
    through = ct.flat_field(raw, flat, dark)
    gain = ct.readings_per_photon(flat, dark)
    photons = (flat.mean(0) - dark.mean(0)) / gain
    y, noise_std = ct.log_transform(through * photons, photons)
    offset = ct.offset_by_opposite_views(y, angles)
    size = args.bins - 2 * math.ceil(abs(offset))  # what every view sees
    every = ParallelBeamCT(size, angles, args.bins, offset, method="gather")
    sharp = ct.offset_by_sharpness(y[None], every, within=4.0)
    print(f"{photons.median():.0f} photons a bin in the open beam, noise of the integrals "
          f"{noise_std.min():.4f} to {noise_std.max():.4f}")
    print(f"axis on bin {(args.bins - 1) / 2 - offset:.2f} by opposite views, "
          f"{(args.bins - 1) / 2 - sharp:.2f} by sharpness")

    rows: list[list[Panel]] = []
    full: dict[str, Tensor] = {}
    for views in (len(angles), len(angles) // 4):
        kept = torch.arange(views) * len(angles) // views
        A = ParallelBeamCT(size, angles[kept], args.bins, offset)
        case = whitened(y[None, kept], A, noise_std[None, kept])
        images = {"fbp": ct.fbp(y[None, kept], A, "hann")[0],
                  "TV": tv(case.y, case.operator, weight=args.weight, noise_std=case.noise_std,
                           iterations=args.iterations)[0, 0]}
        full = full or images
        inside = _circle(size)
        peak = float(full["fbp"][inside].quantile(0.998))
        panels = []
        for name, image in images.items():
            change = (image - full["TV"])[inside].norm() / full["TV"][inside].norm()
            misfit = (case.y - case.operator(image[None])) / case.noise_std
            caption = f"{change:.0%} from TV of all; misfit {misfit.square().mean():.2f}"
            print(f"{views:>4} views  {name:<4} {caption}")
            panels.append(Panel(f"{name}, {views} views", image.clamp(min=0) * inside, caption,
                                peak))
        panels += [Panel("fbp - TV", (images["fbp"] - images["TV"]) * inside, "white = 0.3 max",
                         0.3 * peak, "magma")]
        rows.append(panels)
    grid(args.out / "tooth.png", rows, overwrite=True,
         title=f"Measured projections of a tooth, {args.bins} bins, one slice")


def _circle(n: int) -> Tensor:
    at = torch.arange(n) - (n - 1) / 2
    return at[:, None] ** 2 + at**2 < n**2 / 4


if __name__ == "__main__":
    main()
