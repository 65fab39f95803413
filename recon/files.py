"""Reconstructing files: every slice of every file, one result and one figure each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recon import datasets, metrics, priors
from recon.datasets import Scan
from recon.mri import Problem, cropped, problem, undersampling
from recon.reconstruct import Reconstruction, reconstruct
from recon.report import panels
from recon.report.figure import Panel

CLASSICAL = ("tv", "wavelet")


class Settings(NamedTuple):
    """What ``recon reconstruct`` is asked for; the command line explains each."""

    sampler: str = "dds"
    prior: str = "brain-mri"
    samples: int = 4
    steps: int | None = None
    seed: int = 0
    device: str = "cpu"
    precision: torch.dtype = torch.float32
    mask: str | None = None
    acceleration: int = 4
    center_fraction: float = 0.08
    mask_seed: int | None = None
    slices: slice | None = None
    noise_std: float | None = None
    calibration: int | None = None
    baseline_weight: float = 1e-3
    suffix: str = "h5"
    overwrite: bool = False


def reconstruct_file(files: Sequence[Path], out: Path, settings: Settings,
                     say: Callable[[str], None] = print) -> None:
    """Reconstruct each file into ``out``; every output name is checked before the first slice.

    Writes ``NAME_recon.<suffix>`` in the units of the file, cropped as the file says, and
    ``NAME_recon.png`` of the middle slice: zero-filled, TV, mean, std and, where the file holds a
    reference or full k-space, the error.
    """
    stems = [path.with_suffix("").name for path in files]
    if len(set(stems)) < len(stems):
        raise ValueError("two files have one name, and would overwrite each other's result: "
                         "reconstruct them into different folders")
    out.mkdir(parents=True, exist_ok=True)
    targets = [out / f"{stem}_recon.{settings.suffix}" for stem in stems]
    for target in targets:
        names = [target, target.with_suffix(".png")]
        names += [target.with_suffix(".hdr")] if settings.suffix == "cfl" else []
        for name in names:
            datasets.refuse_existing(name, settings.overwrite)
    prior = None
    if settings.sampler not in CLASSICAL:
        prior = priors.load(settings.prior, precision=settings.precision, device=settings.device)
    for path, target in zip(files, targets, strict=True):
        _one(path, target, prior, settings, say)


def _one(path: Path, target: Path, prior: priors.Prior | None, settings: Settings,
         say: Callable[[str], None]) -> None:
    scan = datasets.open(path, settings.slices)
    if "note" in scan.attributes:
        say(f"{path.name}: {scan.attributes['note']}")
    mask = undersampling(scan, settings.mask, acceleration=settings.acceleration,
                         center_fraction=settings.center_fraction, seed=settings.mask_seed)
    calibration = settings.calibration and (24, settings.calibration)
    cases = [problem(scan, i, mask, calibration=calibration or None, noise_std=settings.noise_std)
             for i in range(len(scan.kspace))]
    say(f"{path.name}: {len(cases)} slice(s), {scan.kspace.shape[1]} coil(s), "
        f"{float(mask.float().mean()):.0%} of k-space sampled")
    found = []
    for i, case in enumerate(cases):
        say(f"slice {i + 1} of {len(cases)}, noise {case.noise_std:.3g}")
        found.append(_slice(case, prior, settings, settings.seed + i))
    whole = Reconstruction(
        torch.stack([cropped(r.samples.cpu(), scan) for r in found], 1),
        {**found[0].settings, "file": path.name, "mask": settings.mask or "of the file",
         "noise_std": [c.noise_std for c in cases], "prior": settings.prior,
         "scale": [r.settings.get("scale") for r in found]},
    )
    whole.save(target, overwrite=settings.overwrite)
    middle = len(cases) // 2
    _figure(target.with_suffix(".png"), scan, cases[middle], whole, middle, settings)
    say(f"wrote {target} and {target.with_suffix('.png').name}")


def _slice(case: Problem, prior: priors.Prior | None, settings: Settings, seed: int) -> Reconstruction:
    y, A = case.y.to(settings.device), case.operator.to(settings.device)
    if settings.sampler in CLASSICAL:
        return reconstruct(y, A, None, settings.sampler, weight=settings.baseline_weight)
    steps = {} if settings.steps is None else {"steps": settings.steps}
    return reconstruct(y, A, prior, settings.sampler, noise_std=case.noise_std,
                       samples=settings.samples, seed=seed, progress=True, **steps)


def _figure(path: Path, scan: Scan, case: Problem, whole: Reconstruction, index: int,
            settings: Settings) -> None:
    A, y = case.operator.cpu(), case.y.cpu()
    tv = reconstruct(y, A, None, "tv", weight=settings.baseline_weight).mean
    images: dict[str, Tensor] = {
        "zero-filled": cropped(A.adjoint(y), scan)[0].abs(), "TV": cropped(tv, scan)[0].abs(),
        f"{settings.sampler}, mean of {len(whole.samples)}": whole.mean[index, 0].abs()}
    mean = list(images.values())[-1]
    peak = float(mean.max())
    reference = None
    if case.reference is not None:
        reference = cropped(case.reference, scan)[0].abs()
    captions = dict.fromkeys(images, "")
    if reference is not None and reference.shape == mean.shape and bool(reference.any()):
        captions = {n: f"{float(metrics.psnr(x, reference)):.1f} dB" for n, x in images.items()}
    row = [Panel(name, x, captions[name]) for name, x in images.items()]
    spread = whole.std[index, 0].nan_to_num()
    row.append(Panel("std of samples", spread, "white = 0.1 max", 0.1 * peak, "magma"))
    if captions[next(iter(images))] and reference is not None:
        row.append(Panel("error of the mean", mean - reference, "white = 0.1 max", 0.1 * peak, "magma"))
    panels(path, row, peak=peak, title=f"{scan.name}, slice {index}", overwrite=settings.overwrite)
