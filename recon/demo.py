"""The demonstration: one real slice, simulated coils and noise, four-fold undersampling."""

import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recon import datasets, metrics, priors
from recon.datasets import Scan
from recon.files import refuse_results
from recon.mri import problem, undersampling
from recon.reconstruct import reconstruct
from recon.report import comparison, panels
from recon.report.figure import Panel
from recon.simulate import multicoil_kspace

TV_WEIGHTS = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3)
NOISE = 0.01  # per real number of k-space, where the image's white is 1


class Demo(NamedTuple):
    """What the demonstration found."""

    rows: dict[str, dict[str, float]]
    images: dict[str, Tensor]
    seconds: float


def shipped_slice() -> Tensor:
    """A T1-weighted axial head slice at 2 mm, ``(112, 96)``, from a person no prior has seen."""
    with resources.files("recon.assets").joinpath("demo_slice.npz").open("rb") as file:
        return torch.from_numpy(np.load(file, allow_pickle=False)["image"].astype(np.float32))


def run(folder: str | Path, *, samples: int = 4, steps: int = 30, seed: int = 0,
        precision: torch.dtype = torch.float32, device: str = "cpu", progress: bool = True,
        overwrite: bool = False, say: Callable[[str], None] = print) -> Demo:
    """Reconstruct the shipped slice and write ``demo.png``, ``demo.txt`` and ``demo.npz``.

    Eight simulated coils, a smooth phase and noise; every fourth column by fastMRI's
    equispaced-fraction rule with a 12 % centre; coil maps estimated from that centre. TV has the
    best of five weights, chosen by the truth: in its favour.
    """
    folder = Path(folder)
    refuse_results([folder / name for name in ("demo.png", "demo.txt", "demo.npz")], overwrite)
    began = time.monotonic()
    truth = shipped_slice()
    kspace = multicoil_kspace(truth, noise_std=NOISE, generator=torch.Generator().manual_seed(seed))
    scan = Scan(kspace=kspace[None], mask=None, maps=None, reference=None, crop=None, attributes={},
                name="demo", kind="simulated")
    mask = undersampling(scan, "equispaced_fraction", acceleration=4, center_fraction=0.12, seed=0)
    case = problem(scan, 0, mask, noise_std=NOISE)
    y, A = case.y.to(device), case.operator.to(device)
    prior = priors.load("brain-mri", precision=precision, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{int(mask.sum())} of {len(mask)} columns, 8 coils, noise {NOISE:g} of the image's white")

    images = {"zero-filled": A.adjoint(y)}
    fits = [reconstruct(y, A, None, "tv", weight=w).mean for w in TV_WEIGHTS]
    images["TV"] = max(fits, key=lambda x: float(metrics.psnr(x[0].cpu(), truth)))
    found = reconstruct(y, A, prior, "dds", noise_std=case.noise_std, samples=samples, steps=steps,
                        seed=seed, progress=progress)
    images["DDS, one sample"] = found.samples[0]
    images[f"DDS, mean of {samples}"] = found.mean
    rows = {name: _scores(x[0].cpu(), truth) for name, x in images.items()}
    seconds = time.monotonic() - began
    _write(folder, truth, images, rows, found.std[0].cpu(), seconds, overwrite)
    say(comparison(rows))
    say(f"{seconds:.0f} s; figure, table and arrays in {folder.resolve()}")
    return Demo(rows, images, seconds)


def _scores(x: Tensor, truth: Tensor) -> dict[str, float]:
    return {"PSNR dB": float(metrics.psnr(x, truth)), "SSIM": float(metrics.ssim(x, truth)),
            "NMSE %": 100 * float(metrics.nmse(x, truth))}


def _write(folder: Path, truth: Tensor, images: dict[str, Tensor],
           rows: dict[str, dict[str, float]], std: Tensor, seconds: float,
           overwrite: bool) -> None:
    mean_name = list(images)[-1]
    mean = images[mean_name][0].abs().cpu()
    row = [Panel("truth", truth)]
    row += [Panel(name, x[0].cpu(), f"{rows[name]['PSNR dB']:.1f} dB")
            for name, x in images.items()]
    row += [Panel("std of samples", std.nan_to_num(), "white = 0.1", 0.1, "magma"),
            Panel("error of the mean", mean - truth, "white = 0.1", 0.1, "magma")]
    panels(folder / "demo.png", row, peak=1.0, overwrite=overwrite,
           title="Real T1 slice, simulated 8-coil k-space, 4x undersampled")
    text = comparison(rows) + f"\n\nPSNR range: maximum of the truth. {seconds:.0f} s.\n"
    with datasets.replacing(folder / "demo.txt", overwrite=overwrite) as (part,):
        part.write_text(text)
    arrays = {name.replace(", ", "_").replace(" ", "_"): x[0].cpu().numpy()
              for name, x in images.items()}
    datasets.write_npz(folder / "demo.npz", {"truth": truth.numpy(), "std": std.numpy(), **arrays},
                       overwrite=overwrite)
