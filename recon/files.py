"""Reconstructing files: every slice of every file, one result and one figure each."""

import math
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon import ct, datasets, metrics, priors
from recon.datasets import FormatError, Projections, Scan, Volume
from recon.datasets.nifti import nibabel_or_advice
from recon.mri import cropped, problem, undersampling, whitened
from recon.operators import CartesianMRI, LinearOperator
from recon.outputs import (
    FORMATS,
    Origin,
    description_of,
    origin_of,
    origin_of_projections,
    refuse_result,
    results_of,
    write_result,
)
from recon.problem import Problem
from recon.reconstruct import Reconstruction, is_classical, reconstruct, sampler_named
from recon.report import panels
from recon.report.figure import Panel
from recon.simulate import simulated_scan, white_of_file


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
    views: int | None = None
    unit: str | None = None
    series: str | None = None
    slices: slice | None = None
    noise_std: float | None = None
    calibration: int | None = None
    baseline_weight: float = 1e-3
    format: str = "h5"
    deidentify: bool = False
    overwrite: bool = False


class Opened(NamedTuple):
    """A file's measurements, or those simulated from its images."""

    data: Scan | Projections
    mask: Tensor | None  # of k-space
    operator: LinearOperator | None  # of projections
    noise_std: float | None  # where given, or measured by the file
    origin: Origin


def reconstruct_file(files: Sequence[Path], out: Path, settings: Settings,
                     say: Callable[[str], None] = print) -> None:
    """Reconstruct each file into ``out``; what can be refused is refused before the first slice.

    Writes ``NAME_recon`` in the wanted format and the units of the file, cropped as the file says,
    and ``NAME_recon.png`` of the middle slice: zero-filled (of k-space), TV, mean, std and, where
    there is a reference or full k-space, the error. Pixels that no coil sees (maps of zero) are
    zero. Images are measured by simulation: k-space with ``mask``, projections with ``views``.
    With ``deidentify`` results and messages say ``case_0001``, for files may be named by patients.
    """
    classical = is_classical(sampler_named(settings.sampler))
    if settings.noise_std is not None and not 0 <= settings.noise_std < math.inf:
        raise ValueError(f"noise_std wants a finite number >= 0, got {settings.noise_std}")
    if settings.format not in FORMATS:
        raise ValueError(f"format wants one of {', '.join(FORMATS)}, got {settings.format!r}")
    if settings.format == "nifti":
        nibabel_or_advice()
    if settings.deidentify and settings.format != "dicom":
        raise ValueError("--deidentify is for --format dicom: other results hold nothing of the "
                         "patient but the file's name, which is yours to change")
    chosen = settings.slices or slice(None)
    if min(chosen.start or 0, chosen.stop or 0) < 0:
        raise ValueError(f"slices want numbers >= 0, got {chosen}")
    # "." gets a name; other paths stay, for a link in them is followed before its ".."
    files = [path if path.name not in ("", "..") else path.resolve() for path in map(Path, files)]
    labels = [_label(path, number, settings) for number, path in enumerate(files, 1)]
    targets = _targets(labels, out, settings)
    prior = None
    if not classical:
        prior = priors.load(settings.prior, precision=settings.precision, device=settings.device)
    shown = labels if settings.deidentify else [path.name for path in files]
    # the first one's turn is now; hours of it must not hide another's fault
    for path, label in zip(files[1:], shown[1:], strict=True):
        with _called(path, label):
            _checked(path, settings)
    for path, target, label in zip(files, targets, shown, strict=True):
        with _called(path, label):
            _one(path, target, label, prior, settings, say)


def refuse_results(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise what writing ``paths`` would raise; their folder may still have to be made."""
    for path in paths:
        folder = path.parent
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder.name} is a file, not a folder: choose another --out")
        if folder.is_dir() and path.name.endswith("_dicom"):
            datasets.refuse_existing_folder(path, overwrite)
        elif folder.is_dir():
            datasets.refuse_existing(path, overwrite)


def _targets(stems: Sequence[str], out: Path, settings: Settings) -> list[Path]:
    if len(set(stems)) < len(stems):
        raise ValueError("two files have one name, and would overwrite each other's result: "
                         "reconstruct them into different folders")
    targets = [out / f"{stem}_recon" for stem in stems]
    refuse_results((path for t in targets for path in results_of(t, settings.format)),
                   settings.overwrite)
    return targets


def _label(path: Path, number: int, settings: Settings) -> str:
    return f"case_{number:04}" if settings.deidentify else datasets.stem(path)


@contextmanager
def _called(path: Path, label: str) -> Iterator[None]:
    """Errors of a file say ``label`` where they would give its name, or that of a file in it."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if label == path.name:
            raise
        if isinstance(error, OSError):
            raise OSError(f"{label}: {error.strerror or type(error).__name__}") from None
        kind = next(k for k in (ImportError, FormatError, ValueError) if isinstance(error, k))
        raise kind(_renamed(str(error), path, label)) from None


def _renamed(text: str, path: Path, label: str) -> str:
    """``text`` with ``label`` for every name by which it may call the file ``path``."""
    if label == path.name:
        return text
    inside = [one.name for one in path.iterdir()] if path.is_dir() else []
    names = {path.name, datasets.stem(path), path.stem, *inside}
    # Whole names, and short numbers only where they stand as names: there are others in a text.
    short = {name for name in names if name.isdigit() and len(name) < 4}
    any_of = "|".join(f"(?:{'|'.join(map(re.escape, sorted(some, key=len, reverse=True)))}){end}"
                      for some, end in ((names - short, ""), (short, "(?=: )")) if some)
    return re.sub(rf"(?<![^\W_])(?:{any_of})(?![^\W_])", label, text)


def opened(path: Path, settings: Settings) -> Opened:
    """A file with its sampling, refused if damaged, not finite or without the wanted slices."""
    found = datasets.open(path, settings.slices, series=settings.series, unit=settings.unit)
    first = (settings.slices.start or 0) if settings.slices else 0
    if isinstance(found, Scan):
        if settings.views is not None:
            raise ValueError(f"{path.name} holds k-space, which has no views: leave --views out")
        scan, std = whitened(found)
        origin = origin_of(path, None, found.attributes, len(found.kspace), first)
        return Opened(scan, _mask(scan, settings), None, _noise(settings, std), origin)
    if settings.mask is not None and not isinstance(found, Volume):
        raise ValueError(f"{path.name} holds projections, which have no k-space columns: leave "
                         "--mask out")
    if isinstance(found, Projections):
        projections = ct.chosen_views(found, settings.views)
        return Opened(projections, None, ct.operator_of(projections), settings.noise_std,
                      origin_of_projections(projections))
    if (settings.mask is None) == (settings.views is None):
        raise ValueError(f"{path.name} holds images, not measurements: pass --views N to simulate "
                         "CT projections of them (images in HU), or --mask to simulate "
                         "undersampled MR k-space")
    if settings.mask is not None and found.unit == "HU":
        raise ValueError(f"{path.name} is in HU, of which --mask could only simulate the k-space "
                         "of magnitudes: pass --views N to simulate CT projections")
    origin = origin_of(path, found, found.attributes, len(found.values), first,
                       settings.series)
    seed = zlib.crc32(path.name.encode()) + first
    if settings.views is not None:
        projections = ct.simulated_projections(found, settings.views, seed=seed)
        return Opened(projections, None, ct.operator_of(projections), settings.noise_std, origin)
    white = (None if settings.slices is None else
             white_of_file(path, series=settings.series, unit=settings.unit))
    scan = simulated_scan(found, seed=seed, white=white)
    return Opened(scan, _mask(scan, settings), None, settings.noise_std, origin)


def _mask(scan: Scan, settings: Settings) -> Tensor:
    return undersampling(scan, settings.mask, acceleration=settings.acceleration,
                         center_fraction=settings.center_fraction, seed=settings.mask_seed)


def _noise(settings: Settings, measured: float | None) -> float | None:
    return measured if settings.noise_std is None else settings.noise_std


def _problem(case: Opened, index: int, settings: Settings) -> Problem[LinearOperator]:
    if isinstance(case.data, Projections):
        assert case.operator is not None
        return ct.problem(case.data, index, case.operator, noise_std=case.noise_std)
    assert case.mask is not None
    rows = min(24, case.data.kspace.shape[-2])
    centre = None if settings.calibration is None else (rows, settings.calibration)
    return problem(case.data, index, case.mask, calibration=centre, noise_std=case.noise_std)


def _checked(path: Path, settings: Settings) -> Opened:
    """As `opened`, refused too where its result could not be written."""
    case = opened(path, settings)
    data = case.data
    count, size = ((len(data.kspace), data.crop or data.kspace.shape[-2:])
                   if isinstance(data, Scan) else (len(data.values), data.size))
    try:
        refuse_result(settings.format, case.origin, (count, size[0], size[1]),
                      description=_description(settings), deidentify=settings.deidentify)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return case


def _description(settings: Settings) -> str:
    classical = is_classical(sampler_named(settings.sampler))
    return description_of(settings.sampler, 1 if classical else settings.samples)


def _one(path: Path, target: Path, label: str, prior: priors.Prior | None, settings: Settings,
         say: Callable[[str], None]) -> None:
    case = _checked(path, settings)
    data = case.data
    if "note" in data.attributes:
        say(f"{label}: {_renamed(str(data.attributes['note']), path, label)}")
    if isinstance(data, Scan):
        count, sampled = len(data.kspace), float(_of(case.mask).float().mean())
        say(f"{label}: {count} slice(s), {data.kspace.shape[1]} coil(s), "
            f"{sampled:.0%} of k-space sampled")
    else:
        count = len(data.values)
        say(f"{label}: {count} slice(s), {len(data.angles)} views of "
            f"{data.values.shape[-1]} bins")
    numbers = range(sys.maxsize)[settings.slices or slice(None)][:count]  # in the file
    shown = count // 2
    draws, told = [], []
    for i, number in enumerate(numbers):
        one = _problem(case, i, settings)
        target.parent.mkdir(parents=True, exist_ok=True)
        empty = "" if bool(one.y.any()) else ": all zero, and so is its result"
        say(f"{label}: slice {number} ({i + 1} of {count}), noise {one.noise_std:.3g}{empty}")
        found = _slice(one, prior, settings, settings.seed + number)
        draws.append(_cut(found.samples.cpu(), data))
        told.append(found.settings)
        if i == shown:
            kept = one
    whole = Reconstruction(torch.stack(draws, 1), _together(told, path, numbers, case, settings))
    in_hu = case.origin.unit == "HU"
    result = Reconstruction(metrics.mu_to_hu(whole.samples), whole.settings) if in_hu else whole
    written = write_result(target, settings.format, result, case.origin,
                           description=_description(settings), deidentify=settings.deidentify,
                           overwrite=settings.overwrite)
    figure = target.with_name(f"{target.name}.png")
    _figure(figure, case, kept, whole, shown, f"{label}, slice {numbers[shown]}", settings)
    say("wrote " + ", ".join([str(written[0]), *(p.name for p in (*written[1:], figure))]))


def _together(told: Sequence[dict[str, Any]], path: Path, numbers: range, case: Opened,
              settings: Settings) -> dict[str, Any]:
    """The settings of one run for all its slices."""
    found = {**told[0], "seed": settings.seed, "file": path.name, "slices": list(numbers),
             "unit": "HU" if case.origin.unit == "HU" else "of the file"}
    found |= {key: [each[key] for each in told] for key in ("noise_std", "scale") if key in found}
    if isinstance(case.data, Projections):
        found["views"] = len(case.data.angles)
    else:
        found["mask"] = settings.mask or "of the file"
    if settings.mask:
        found |= {key: getattr(settings, key)
                  for key in ("acceleration", "center_fraction", "mask_seed")}
    if "scale" in found:
        found["prior"] = settings.prior
    if "note" in case.data.attributes:
        found["note"] = case.data.attributes["note"]
    return found


def _slice(case: Problem[LinearOperator], prior: priors.Prior | None, settings: Settings,
           seed: int) -> Reconstruction:
    chosen: dict[str, Any] = {} if settings.steps is None else {"steps": settings.steps}
    if prior is None:
        chosen["weight"] = settings.baseline_weight
    else:
        chosen["samples"] = settings.samples
    found = _run(case, prior, settings.sampler, settings.device, noise_std=case.noise_std,
                 seed=seed, progress=True, **chosen)
    operator = case.operator
    if not isinstance(operator, CartesianMRI) or operator.maps is None:
        return found
    # where no coil sees, nothing is measured and a sample would show what the prior makes up
    seen = operator.maps.abs().amax(-3, keepdim=True) > 0
    return Reconstruction(torch.where(seen, found.samples, 0), found.settings)


def _run(case: Problem[LinearOperator], prior: priors.Prior | None, sampler: str, device: str,
         **chosen: Any) -> Reconstruction:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "measurements are all zero")  # told with its number
        return reconstruct(case.y.to(device), case.operator.to(device), prior, sampler, **chosen)


def _cut(image: Tensor, data: Scan | Projections) -> Tensor:
    return cropped(image, data) if isinstance(data, Scan) else image


def _of(mask: Tensor | None) -> Tensor:
    assert mask is not None
    return mask


def _figure(path: Path, opened: Opened, case: Problem[LinearOperator], whole: Reconstruction,
            index: int, title: str, settings: Settings) -> None:
    data, draws = opened.data, len(whole.samples)
    images: dict[str, Tensor] = {}
    if isinstance(data, Scan):
        pulled = case.operator.adjoint(case.y.to(settings.device))
        images["zero-filled"] = _cut(pulled, data)[0].abs().cpu()
    if settings.sampler != "tv":
        tv = _run(case, None, "tv", settings.device, weight=settings.baseline_weight).mean
        images["TV"] = _cut(tv, data)[0].abs().cpu()
    mean = whole.mean[index, 0].abs()
    images[settings.sampler + (f", mean of {draws}" if draws > 1 else "")] = mean
    peak = float(mean.max())
    # fully sampled data would only be compared with themselves
    left_out = isinstance(data, Projections) or not bool(_of(opened.mask).all())
    reference = _reference(case, data, mean) if left_out else None
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


def _reference(case: Problem[LinearOperator], data: Scan | Projections,
               like: Tensor) -> Tensor | None:
    if case.reference is None:
        return None
    image = case.reference[0].abs()
    if isinstance(data, Scan) and image.shape == data.kspace.shape[-2:]:
        image = cropped(image, data)
    return image if image.shape == like.shape and bool(image.any()) else None
