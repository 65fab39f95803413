"""One file of an evaluation: its slices as problems, and the images to compare with."""

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recon import ct, datasets, mri
from recon.datasets import Projections, Scan, Volume, fully_sampled
from recon.datasets.open import WITHOUT_UNIT
from recon.evaluation.settings import AS_MEASURED, Sampling, Settings
from recon.operators import CartesianMRI, LinearOperator
from recon.operators.mri.fourier import ifft2c
from recon.simulate import simulated_scan, white_of_file

_MAPS_VERSION = "1"  # of the estimate: a change of its numbers must not meet old maps


class Subject(NamedTuple):
    """A volume that is in memory."""

    data: Scan | Projections | Volume
    """A ``Volume`` is in HU: its projections are simulated slice by slice."""
    numbers: tuple[int, ...]
    """Of its slices, in the file."""
    references: Tensor | None
    """float32 ``(slices, h, w)``."""
    reference_source: str
    noise_std: float | None
    """Where the file measured it."""


class Batch(NamedTuple):
    """Some slices of one subject, ready to be sampled together."""

    y: Tensor  # (slices, *operator.range.shape)
    operator: LinearOperator
    noise_std: Tensor  # (slices,)


def open_subject(path: Path, settings: Settings) -> Subject:
    """Read a file; images become simulated measurements of the kind their unit says.

    In HU they become projections, when they are needed; other images become k-space.
    """
    unit = settings.unit if datasets.recognise(path) in WITHOUT_UNIT else None
    found = datasets.open(path, None if settings.slices is None else slice(*settings.slices),
                          unit=unit)
    count = len(found.kspace if isinstance(found, Scan) else found.values)
    first = 0 if settings.slices is None else settings.slices[0]
    std = None
    if isinstance(found, Volume):
        if found.unit != "HU":
            white = None if settings.slices is None else white_of_file(path, unit=unit)
            found = simulated_scan(found, seed=_simulation_seed(path.name, first), white=white)
    elif isinstance(found, Scan):
        found, std = mri.whitened(found)
    references, source = _references(found)
    return Subject(found, tuple(range(first, first + count)), references, source, std)


def samplings_of(data: Scan | Projections | Volume, settings: Settings) -> tuple[Sampling, ...]:
    """The ways this file is sampled: its own where it is undersampled already."""
    if not isinstance(data, Scan):
        most = len(data.angles) if isinstance(data, Projections) else math.inf
        return tuple(Sampling(f"{n}views", views=n) for n in settings.views if n <= most)
    if not fully_sampled(data):
        return (AS_MEASURED,)
    pairs = zip(settings.accelerations, settings.center_fractions, strict=True)
    return tuple(Sampling(f"{a}x", a, c) for a, c in pairs)


def views_left_out(data: Scan | Projections | Volume, settings: Settings) -> str:
    """Of measured projections: which numbers of views they are too few for, in words."""
    if not isinstance(data, Projections):
        return ""
    more = [n for n in settings.views if n > len(data.angles)]
    return f"has {len(data.angles)} views, and not {' or '.join(map(str, more))}" if more else ""


def check_sampling(subject: Subject, sampling: Sampling, settings: Settings) -> None:
    """Raise now what the first slice would raise: a mask or a centre that cannot be."""
    data = subject.data
    if not isinstance(data, Scan):
        return
    mask = mask_of(data, sampling, settings)
    if data.maps is None and data.kspace.shape[1] > 1 and settings.calibration is None:
        mri.calibration_region(mask, data.kspace.shape[-2])


def batch_of(subject: Subject, sampling: Sampling, numbers: Sequence[int], settings: Settings,
             cache: Path) -> Batch:
    """The measurements of the slices with these numbers in the file, and one operator for all.

    Coil maps are kept in ``cache``, so that they are estimated once.
    """
    places = [subject.numbers.index(number) for number in numbers]
    std = subject.noise_std if settings.noise_std is None else settings.noise_std
    if not isinstance(subject.data, Scan):
        return _projected(subject.data, sampling, places, numbers, std)
    scan = subject.data
    mask = mask_of(scan, sampling, settings)
    y = [mri.measurements(scan, i, mask) for i in places]
    noise = [mri.estimate_noise_std(one, mask) if std is None else std for one in y]
    maps = None if scan.maps is None else scan.maps[places]
    if maps is None and scan.kspace.shape[1] > 1:
        rows = min(24, scan.kspace.shape[-2])
        centre = None if settings.calibration is None else (rows, settings.calibration)
        maps = torch.stack([_cached_maps(one, mask, centre, cache) for one in y])
    operator = CartesianMRI(scan.kspace.shape[-2:], mask=mask, maps=maps)
    return Batch(torch.stack(y), operator, torch.tensor(noise))


def _projected(data: Projections | Volume, sampling: Sampling, places: Sequence[int],
               numbers: Sequence[int], std: float | None) -> Batch:
    assert sampling.views is not None
    if isinstance(data, Volume):  # batches are of neighbouring slices
        some = data._replace(values=data.values[places])
        chosen = ct.simulated_projections(some, sampling.views,
                                          seed=_simulation_seed(data.name, numbers[0]))
        places = range(len(places))
    else:
        chosen = ct.chosen_views(data, sampling.views)
    operator = ct.operator_of(chosen)
    cases = [ct.problem(chosen, i, operator, noise_std=std) for i in places]
    noise = torch.tensor([case.noise_std for case in cases])
    return Batch(torch.stack([case.y for case in cases]), operator, noise)


def _simulation_seed(name: str, number: int) -> int:
    return zlib.crc32(name.encode()) + number


def mask_of(scan: Scan, sampling: Sampling, settings: Settings) -> Tensor:
    """The file's own mask, or fastMRI's for the file's name."""
    kind = None if sampling.acceleration is None else settings.mask
    return mri.undersampling(scan, kind, acceleration=sampling.acceleration or 1,
                             center_fraction=sampling.center_fraction, seed=settings.mask_seed)


def finished(image: Tensor, subject: Subject) -> Tensor:
    """Magnitudes of MR images, cut as the file says; CT images as they are."""
    if isinstance(subject.data, Scan):
        return mri.cropped(image, subject.data).abs()
    return image


def zero_filled(batch: Batch, subject: Subject) -> Tensor:
    """fastMRI's baseline ``(slices, 1, h, w)``: root-sum-of-squares of the coils' images."""
    if not isinstance(subject.data, Scan):
        raise ValueError("zero_filled is for k-space: take tv as the baseline of CT")
    return ifft2c(batch.y).abs().square().sum(-3, keepdim=True).sqrt()


def _references(data: Scan | Projections | Volume) -> tuple[Tensor | None, str]:
    if isinstance(data, Volume):
        ct.pixel_of(data)
        return ct.attenuation(data), "attenuation of the file's images"
    if isinstance(data, Projections):
        if data.reference is not None and data.reference.shape[-2:] == data.size:
            return data.reference, "the file's ground truth"
        return None, ""
    size = data.kspace.shape[-2:] if data.crop is None else data.crop
    if data.reference is not None and data.reference.shape[-2:] == size:
        return data.reference, "the file's reference"
    if not fully_sampled(data) or not bool(data.kspace.any()):
        return None, ""
    image = torch.stack([ifft2c(one).abs().square().sum(0).sqrt() for one in data.kspace])
    return mri.cropped(image, data), "root-sum-of-squares of the full k-space"


def _cached_maps(y: Tensor, mask: Tensor, calibration: tuple[int, int] | None,
                 cache: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    said = json.dumps([_MAPS_VERSION, calibration, list(y.shape), str(y.dtype)])
    told = hashlib.sha256(said.encode() + mask.numpy().tobytes())
    told.update(torch.view_as_real(y).contiguous().numpy().tobytes())
    path = cache / f"{told.hexdigest()[:32]}.safetensors"
    if path.exists():
        try:
            maps = load(path.read_bytes())["maps"]
            if maps.shape == y.shape and maps.dtype == y.dtype:
                return maps
        except (SafetensorError, KeyError, OSError):  # damaged: as good as absent
            pass
    maps = mri.coil_maps(y, mask, calibration).contiguous()
    cache.mkdir(parents=True, exist_ok=True)
    with datasets.replacing(path, overwrite=True) as (part,):
        part.write_bytes(save({"maps": maps}))
    return maps
