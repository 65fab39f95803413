"""Reconstructing files: every slice of every file, one result and one figure each."""

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon import datasets, metrics, priors
from recon.datasets import Scan
from recon.mri import Problem, cropped, problem, undersampling
from recon.reconstruct import Reconstruction, is_classical, reconstruct, sampler_named
from recon.report import panels
from recon.report.figure import Panel


class Settings(NamedTuple):
    """What ``recon reconstruct`` is asked for; the command line explains each.

    ``slices`` counts from the first: no negative numbers. Slice n is drawn with ``seed + n``, so
    that which others are reconstructed does not matter.
    """

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
    """Reconstruct each file into ``out``; what can be refused is refused before the first slice.

    Writes ``NAME_recon.<suffix>`` in the units of the file, cropped as the file says, and
    ``NAME_recon.png`` of the middle slice: zero-filled, TV, mean, std and, where the file holds a
    reference or full k-space, the error. Pixels that no coil sees (maps of zero) are zero.
    """
    classical = is_classical(sampler_named(settings.sampler))
    if settings.noise_std is not None and not 0 <= settings.noise_std < math.inf:
        raise ValueError(f"noise_std wants a finite number >= 0, got {settings.noise_std}")
    chosen = settings.slices or slice(None)
    if min(chosen.start or 0, chosen.stop or 0) < 0:
        raise ValueError(f"slices want numbers >= 0, got {chosen}")
    targets = _targets(files, out, settings)
    prior = None
    if not classical:
        prior = priors.load(settings.prior, precision=settings.precision, device=settings.device)
    for path in files[1:]:  # the first one's turn is now; hours of it must not hide another's fault
        _opened(path, settings)
    for path, target in zip(files, targets, strict=True):
        _one(path, target, prior, settings, say)


def refuse_results(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise what writing ``paths`` would raise; their folder may still have to be made."""
    for path in paths:
        folder = path.parent
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder.name} is a file, not a folder: choose another --out")
        if folder.is_dir():
            datasets.refuse_existing(path, overwrite)


def _targets(files: Sequence[Path], out: Path, settings: Settings) -> list[Path]:
    known = (".h5", ".hdf5", ".npz", ".npy", ".cfl", ".hdr")  # BART's scan.v2 has no suffix
    stems = [path.stem if path.suffix in known else path.name for path in files]
    if len(set(stems)) < len(stems):
        raise ValueError("two files have one name, and would overwrite each other's result: "
                         "reconstruct them into different folders")
    targets = [out / f"{stem}_recon.{settings.suffix}" for stem in stems]
    suffixes = [f".{settings.suffix}", ".png", *([".hdr"] if settings.suffix == "cfl" else [])]
    refuse_results((t.with_suffix(suffix) for t in targets for suffix in suffixes),
                   settings.overwrite)
    return targets


def _opened(path: Path, settings: Settings) -> tuple[Scan, Tensor]:
    """A file with its mask, refused if damaged, not finite or without the wanted slices."""
    scan = datasets.open(path, settings.slices)
    mask = undersampling(scan, settings.mask, acceleration=settings.acceleration,
                         center_fraction=settings.center_fraction, seed=settings.mask_seed)
    return scan, mask


def _one(path: Path, target: Path, prior: priors.Prior | None, settings: Settings,
         say: Callable[[str], None]) -> None:
    scan, mask = _opened(path, settings)
    if "note" in scan.attributes:
        say(f"{path.name}: {scan.attributes['note']}")
    count = len(scan.kspace)
    say(f"{path.name}: {count} slice(s), {scan.kspace.shape[1]} coil(s), "
        f"{float(mask.float().mean()):.0%} of k-space sampled")
    numbers = range(sys.maxsize)[settings.slices or slice(None)][:count]  # in the file
    shown = count // 2
    draws, told = [], []
    rows = min(24, scan.kspace.shape[-2])
    centre = None if settings.calibration is None else (rows, settings.calibration)
    for i, number in enumerate(numbers):
        case = problem(scan, i, mask, calibration=centre, noise_std=settings.noise_std)
        target.parent.mkdir(parents=True, exist_ok=True)
        empty = "" if bool(case.y.any()) else ": all zero, and so is its result"
        say(f"{path.name}: slice {number} ({i + 1} of {count}), noise {case.noise_std:.3g}{empty}")
        found = _slice(case, prior, settings, settings.seed + number)
        draws.append(cropped(found.samples.cpu(), scan))
        told.append(found.settings)
        if i == shown:
            kept = case
    whole = Reconstruction(torch.stack(draws, 1), _together(told, path, numbers, settings))
    whole.save(target, overwrite=settings.overwrite)
    left_out = not bool(mask.all())
    _figure(target.with_suffix(".png"), scan, kept, whole, shown, left_out,
            f"{scan.name}, slice {numbers[shown]}", settings)
    say(f"wrote {target} and {target.with_suffix('.png').name}")


def _together(told: Sequence[dict[str, Any]], path: Path, numbers: range,
              settings: Settings) -> dict[str, Any]:
    """The settings of one run for all its slices."""
    found = {**told[0], "seed": settings.seed, "file": path.name, "slices": list(numbers),
             "mask": settings.mask or "of the file"}
    found |= {key: [each[key] for each in told] for key in ("noise_std", "scale") if key in found}
    if settings.mask:
        found |= {key: getattr(settings, key)
                  for key in ("acceleration", "center_fraction", "mask_seed")}
    if "scale" in found:
        found["prior"] = settings.prior
    return found


def _slice(case: Problem, prior: priors.Prior | None, settings: Settings,
           seed: int) -> Reconstruction:
    chosen: dict[str, Any] = {} if settings.steps is None else {"steps": settings.steps}
    if prior is None:
        chosen["weight"] = settings.baseline_weight
    else:
        chosen["samples"] = settings.samples
    found = _run(case, prior, settings.sampler, settings.device, noise_std=case.noise_std,
                 seed=seed, progress=True, **chosen)
    if case.operator.maps is None:
        return found
    # where no coil sees, nothing is measured and a sample would show what the prior makes up
    seen = case.operator.maps.abs().amax(-3, keepdim=True) > 0
    return Reconstruction(torch.where(seen, found.samples, 0), found.settings)


def _run(case: Problem, prior: priors.Prior | None, sampler: str, device: str,
         **chosen: Any) -> Reconstruction:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "measurements are all zero")  # told with its number
        return reconstruct(case.y.to(device), case.operator.to(device), prior, sampler, **chosen)


def _figure(path: Path, scan: Scan, case: Problem, whole: Reconstruction, index: int,
            left_out: bool, title: str, settings: Settings) -> None:
    tv = _run(case, None, "tv", settings.device, weight=settings.baseline_weight).mean
    zero_filled = case.operator.adjoint(case.y.to(settings.device))
    draws = len(whole.samples)
    images: dict[str, Tensor] = {
        "zero-filled": cropped(zero_filled, scan)[0].abs().cpu(),
        "TV": cropped(tv, scan)[0].abs().cpu(),
        settings.sampler + (f", mean of {draws}" if draws > 1 else ""): whole.mean[index, 0].abs()}
    mean = list(images.values())[-1]
    peak = float(mean.max())
    # fully sampled data would only be compared with themselves
    reference = _reference(case, scan, mean) if left_out else None
    captions = dict.fromkeys(images, "")
    if reference is not None:
        captions = {n: f"{float(metrics.psnr(x, reference)):.1f} dB" for n, x in images.items()}
    row = [Panel(name, x, captions[name]) for name, x in images.items()]
    if draws > 1:
        row.append(Panel("std of samples", whole.std[index, 0], "white = 0.1 max", 0.1 * peak,
                         "magma"))
    if reference is not None:
        row.append(Panel("error of the mean", mean - reference, "white = 0.1 max", 0.1 * peak,
                         "magma"))
    panels(path, row, peak=peak, title=title, overwrite=settings.overwrite)


def _reference(case: Problem, scan: Scan, like: Tensor) -> Tensor | None:
    if case.reference is None:
        return None
    image = case.reference[0].abs()
    if image.shape == scan.kspace.shape[-2:]:
        image = cropped(image, scan)
    return image if image.shape == like.shape and bool(image.any()) else None
