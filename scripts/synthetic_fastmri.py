"""Make a folder in fastMRI's layout from T1 head volumes: simulated multi-coil training files.

    python scripts/synthetic_fastmri.py made --brains ../shared/data/brain

Volumes differ as fastMRI's do: readout with and without oversampling, phase encoding wider and
narrower than the image, columns that were never acquired, 4 to 16 coils, values of about 1e-4. All
contrasts are T1: the names of acquisitions only give a filter something to choose. ``--raw`` adds
a measured slice from a BART pair. Each person is named in the attribute ``source``: a prior must
not be judged on those it was trained on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from recon.datasets import centre_crop, read_bart, refuse_existing, write_fastmri
from recon.simulate import multicoil_kspace

FOV = 220.0  # mm, as fastMRI's brains
UNIT = 2e-4  # of white matter


class Kind(NamedTuple):
    """How one volume is acquired; the image is ``size`` pixels each way."""

    acquisition: str
    larger: float
    """Size of the image, in parts of the size asked for."""
    oversampling: int
    wider: float
    """Columns, in parts of the image's."""
    padding: tuple[float, float]
    """Parts of the columns never acquired, left and right."""
    coils: int


KINDS = (
    Kind("AXT2", 1.0, 2, 1.0, (0.0, 0.0), 8),
    Kind("AXFLAIR", 1.0, 2, 1.25, (0.0, 0.0), 4),
    Kind("AXT1", 1.2, 1, 1.0, (0.0, 0.0), 8),  # GE does not oversample
    Kind("AXT1POST", 1.0, 2, 1.125, (0.09, 0.06), 16),
    Kind("AXT2", 1.2, 2, 0.8, (0.0, 0.0), 8),
    Kind("AXT1PRE", 1.1, 2, 1.0, (0.125, 0.0), 8),  # partial Fourier
)


def even(n: float) -> int:
    return 2 * round(n / 2)


def axial(path: Path, count: int, later: float, size: int) -> Tensor:
    """Axial slices, nose up, white matter about 1, ``(count, h, w)`` with pixels of FOV / size.

    They are spread over the upper half of the head, ``later`` of one distance higher.
    """
    volume = nibabel.Nifti1Image.from_filename(path)
    volume = nibabel.as_closest_canonical(volume)  # type: ignore[no-untyped-call]
    voxels = np.asarray(volume.dataobj, dtype=np.float32).clip(0)
    voxels /= np.quantile(voxels[voxels > 0.1 * voxels.max()], 0.998)
    rows = np.nonzero((voxels > 0.2).mean((0, 1)) > 0.02)[0]  # the head, without air above it
    at = rows[-1] - (rows[-1] - rows[0]) * (0.5 - 0.3 * (np.arange(count) + later) / count)
    planes = torch.from_numpy(voxels[:, :, at.astype(int)].transpose(2, 1, 0)[:, ::-1].copy())
    mm = volume.header.get_zooms()
    to = [max(1, round(n * z * size / FOV)) for n, z in
          zip(planes.shape[1:], (mm[1], mm[0]), strict=True)]  # fmt: skip
    return interpolate(planes[None], size=to, mode="bilinear", antialias=True)[0].clamp(0, 1.5)


def on_grid(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut or zero-pad to ``size`` about the centre."""
    images = centre_crop(images, (min(size[0], images.shape[-2]), min(size[1], images.shape[-1])))
    (h, w), (height, width) = images.shape[-2:], size
    top, left = height // 2 - h // 2, width // 2 - w // 2
    return pad(images, [left, width - w - left, top, height - h - top])


def brains_in(sources: Sequence[Path]) -> list[Path]:
    """The NIfTI files among ``sources``, and in those that are folders, by name."""
    found = [path for source in sources
             for path in (sorted(source.iterdir()) if source.is_dir() else [source])
             if path.name.endswith((".nii", ".nii.gz"))]  # fmt: skip
    if not found:
        raise FileNotFoundError("no .nii or .nii.gz files given")
    return found


def make(out: Path, brains: Sequence[Path], *, volumes: int = 6, slices: int = 4, size: int = 96,
         noise_std: float = 0.01, seed: int = 0, raw: Path | None = None,
         overwrite: bool = False) -> list[Path]:  # fmt: skip
    """Write the files and return them; ``noise_std`` is per real number, white matter being 1."""
    brains = brains_in(brains)
    kinds = [KINDS[i % len(KINDS)] for i in range(volumes)]
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"file_brain_{kind.acquisition}_{200 + i}_{6000000 + i}.h5"
             for i, kind in enumerate(kinds)]  # fmt: skip
    measured = [] if raw is None else [out / f"file_brain_AXT1_300_{raw.with_suffix('').name}.h5"]
    for path in (*paths, *measured):
        refuse_existing(path, overwrite)
    for i, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        brain, again = brains[i % len(brains)], i // len(brains)
        image = even(kind.larger * size)
        grid = (kind.oversampling * image, even(kind.wider * image))
        planes = on_grid(axial(brain, slices, again * len(brains) / volumes, image), grid)
        kspace = UNIT * torch.stack([
            multicoil_kspace(plane, coils=kind.coils, noise_std=noise_std, generator=generator)
            for plane in planes])  # fmt: skip
        left, right = (round(part * grid[1]) for part in kind.padding)
        width = min(image, grid[1])
        write_fastmri(path, kspace, recon_size=(image, width), overwrite=overwrite,
                      padding=(left, grid[1] - right), field_of_view_mm=(FOV, FOV * width / image),
                      attributes={"acquisition": kind.acquisition,
                                  "source": f"simulated from {brain.name}"})  # fmt: skip
    if raw is not None:
        scan = read_bart(raw)
        if scan.mask is not None:
            raise ValueError(f"{scan.name}: want fully sampled k-space: a reference is made of it")
        height, width = scan.kspace.shape[-2:]
        # BART keeps no pixel size: square ones over the usual field of view
        write_fastmri(measured[0], scan.kspace, recon_size=(height, width), overwrite=overwrite,
                      field_of_view_mm=(FOV, FOV * width / height),
                      attributes={"acquisition": "AXT1",
                                  "source": f"measured, {scan.name}"})  # fmt: skip
    return paths + measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--brains", type=Path, nargs="+", required=True,
                        help="T1 head volumes (NIfTI), or folders of them")  # fmt: skip
    parser.add_argument("--volumes", type=int, default=6)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raw", type=Path, help="a BART pair, fully sampled")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    for path in make(args.out, args.brains, volumes=args.volumes, slices=args.slices,
                     size=args.size, noise_std=args.noise, seed=args.seed, raw=args.raw,
                     overwrite=args.overwrite):  # fmt: skip
        print(path.name)


if __name__ == "__main__":
    main()
