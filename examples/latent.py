"""Samplers of latents on one real head slice: ``python examples/latent.py --out latent``.

The slice that ships with the package, of a person no prior has seen; its measurements are
simulated: half of the pixels missing, and a Gaussian blur, both with noise. ``latent_dps``,
``psld`` and ``stsl`` draw with ``brain-latent.safetensors``, a prior of the latents of an
autoencoder (see ``brain-latent.md``); ``dds`` with ``brain-mri``, a prior of complex images, stands
beside them, told nothing of the imaginary part but that it was measured as zero. All have the same
number of network calls, forwards and backwards counted alike, and so different numbers of noise
levels; runs of the codec come on top.

PSNR is over the whole slice, peak one, the mean over draws; misfit is ``||y - A x||^2`` over what
noise alone leaves, 1 where the data are met as well as they should be. "autoencoder" is the truth
encoded and decoded: what no draw of these latents is likely to surpass. "least squares" uses no
prior. Step lengths are the papers'; ``--tune`` prints both figures for several of them, on a slice
of a person of the training.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon import demo, priors, samplers
from recon.datasets import replacing
from recon.files import refuse_results
from recon.integrators import schedules
from recon.operators import Blur, LinearOperator, Masking, Space
from recon.priors import LatentPrior, Prior
from recon.report import panels
from recon.report.figure import Panel

NOISE = 0.03  # of each measured number, where the image's white is one
PROBLEMS = ("inpainting", "blur")


class Method(NamedTuple):
    """A sampler and what one of its noise levels costs."""

    sampler: samplers.Sampler[Any, Any]
    calls: int  # of the network at each level, forwards and backwards
    settings: dict[str, Any]
    lengths: tuple[str, tuple[float, ...]]  # what --tune tries


METHODS = {
    "latent_dps": Method(samplers.latent_dps, 2, {"zeta": 1.0}, ("zeta", (0.3, 1.0, 3.0))),
    "psld": Method(samplers.psld, 2, {"omega": 1.0, "gamma": 0.1}, ("omega", (0.3, 1.0, 3.0))),
    "stsl": Method(samplers.stsl, 27, {}, ("guidance", (1.0, math.inf))),
    "stsl, no trace": Method(samplers.stsl, 12, {"hessian_weight": 0.0},
                             ("guidance", (1.0, math.inf))),
    "stsl, fresh start": Method(samplers.stsl, 12, {"hessian_weight": 0.0, "start_noise": 1.0,
                                                    "discrepancy": 1.0},
                                ("discrepancy", (0.7, 1.0))),
}


def operator(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> LinearOperator:
    """Half of the pixels at random, or a blur of two pixels' deviation."""
    space = Space((1, *shape), dtype)
    if name == "inpainting":
        kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        return Masking(kept, space)
    line = torch.exp(-torch.arange(-6, 7.0).square() / 8)
    kernel = line[:, None] * line
    return Blur(kernel / kernel.sum(), space)


def psnr(x: Tensor, truth: Tensor) -> float:
    """In dB, peak one, the mean over draws."""
    errors = (x - truth).square().mean((-3, -2, -1))
    return float((-10 * errors.log10()).mean())


def misfit(x: Tensor, y: Tensor, A: LinearOperator) -> float:
    """Over what noise alone leaves, the mean over draws."""
    measured = int(A.mask.sum()) if isinstance(A, Masking) else y.numel()
    left = (A(x) - y).square().sum((-3, -2, -1))
    return float(left.mean()) / (measured * NOISE**2)


def drawn(method: Method, calls: int, y: Tensor, A: LinearOperator, prior: LatentPrior, *,
          samples: int, seed: int, **other: Any) -> Tensor:
    """Draws of a sampler of latents within so many network calls."""
    settings = method.settings | other
    if settings.get("start_noise", 0.0) == 0.0 and settings.get("hessian_weight") == 0.0:
        samples = 1  # nothing is random
    return method.sampler(y, A, prior, noise_std=NOISE, samples=samples,
                          sigmas=schedules.vp(max(calls // method.calls, 2)),
                          generator=torch.Generator().manual_seed(seed), **settings)


def by_images(A: LinearOperator, y: Tensor, calls: int, prior: Prior, *, samples: int,
              seed: int) -> Tensor:
    """DDS of the same problem, ``A`` of complex images, with a prior of those; its real parts."""
    x = samplers.dds(y + 0j, A, prior, noise_std=NOISE, samples=samples, rule="released", eta=0.95,
                     cg_iterations=8, sigmas=schedules.karras(calls, 0.01, 3.0),
                     generator=torch.Generator().manual_seed(seed))
    return x.real


def training_slice(volume: Path) -> Tensor:
    """An axial slice of a volume as the shipped one is: 2 mm, ``(height, width)``, white one."""
    import nibabel
    import numpy as np

    voxels = np.asarray(nibabel.Nifti1Image.from_filename(volume).dataobj, dtype=np.float32)
    voxels = voxels / np.quantile(voxels[voxels > 0.1 * voxels.max()], 0.998)
    plane = torch.from_numpy(voxels[:, :, voxels.shape[2] // 2]).clamp(0, 1.5)
    small = torch.nn.functional.avg_pool2d(plane[None, None], 2)[0, 0]
    return small[: small.shape[0] // 8 * 8, : small.shape[1] // 8 * 8]


def rows(name: str, truth: Tensor, prior: LatentPrior, args: argparse.Namespace,
         ) -> Iterator[tuple[str, Tensor, float, float, int]]:
    """Name, draws, PSNR, misfit and noise levels of each method on a problem."""
    A = operator(name, tuple(truth.shape[-2:]), torch.float32, args.seed)
    n = A.range.randn(generator=torch.Generator().manual_seed(args.seed + 1))
    y = A(truth) + NOISE * (torch.where(A.mask, n, 0) if isinstance(A, Masking) else n)
    codec = prior.codec_of(A.domain)

    def row(title: str, x: Tensor, levels: int = 0) -> tuple[str, Tensor, float, float, int]:
        return title, x, psnr(x, truth), misfit(x, y, A), levels

    yield row("least squares", A.solve_cg(A.adjoint(y), NOISE**2, max_iter=20).x)
    yield row("autoencoder", codec.decode(codec.encode(truth)))
    given: dict[str, Any] = {"samples": args.samples, "seed": args.seed + 2}
    for title, method in METHODS.items():
        levels = max(args.calls // method.calls, 2)
        if args.tune is None:
            yield row(title, drawn(method, args.calls, y, A, prior, **given), levels)
            continue
        word, lengths = method.lengths
        for length in lengths:
            yield row(f"{title}, {word} {length:g}",
                      drawn(method, args.calls, y, A, prior, **{**given, word: length}), levels)
    if args.tune is None:
        images = priors.load("brain-mri")
        complex_A = operator(name, tuple(truth.shape[-2:]), torch.complex64, args.seed)
        yield row("dds, prior of images", by_images(complex_A, y, args.calls, images, **given),
                  args.calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("recon-latent"))
    parser.add_argument("--calls", type=int, default=324, help="of the network, for each draw")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", type=Path,
                        default=Path(__file__).with_name("brain-latent.safetensors"))
    parser.add_argument("--crop", type=int, help="only so many pixels of the middle, squared")
    parser.add_argument("--tune", type=Path, metavar="T1", help="volume of someone trained on")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    refuse_results([args.out / "latent.txt", *(args.out / f"{p}.png" for p in PROBLEMS)],
                   args.overwrite)
    prior = priors.load(args.prior)
    if not isinstance(prior, LatentPrior):
        raise SystemExit(f"--prior wants a prior of latents, {args.prior.name} is of images")
    truth = demo.shipped_slice() if args.tune is None else training_slice(args.tune)
    if args.crop:
        first = [(n - args.crop) // 2 // 4 * 4 for n in truth.shape]
        truth = truth[first[0] : first[0] + args.crop, first[1] : first[1] + args.crop]

    lines = [f"{args.calls} network calls for each draw, noise {NOISE:g}"]
    for name in PROBLEMS:
        lines.append(f"{name:<34}{'PSNR dB':>9}{'misfit':>9}{'levels':>8}")
        print("\n".join(lines[-2:] if name == PROBLEMS[0] else lines[-1:]))
        shown = [Panel("truth", truth, "")]
        for title, x, decibels, left, levels in rows(name, truth[None], prior, args):
            lines.append(f"{title:<34}{decibels:>9.2f}{left:>9.2f}{levels or '':>8}")
            print(lines[-1], flush=True)
            shown.append(Panel(title, x.reshape(-1, *truth.shape)[0], f"{decibels:.1f} dB"))
        panels(args.out / f"{name}.png", shown, peak=1.0, title=name, overwrite=args.overwrite)
    with replacing(args.out / "latent.txt", overwrite=args.overwrite) as (part,):
        part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
