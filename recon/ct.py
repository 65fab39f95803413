"""From images in HU, or measured projections, to what a sampler needs."""

import copy
import functools
import math

import torch
from torch import Tensor

from recon.datasets import Projections, Volume
from recon.metrics.ct import hu_to_mu
from recon.operators import LinearOperator
from recon.operators.ct import ParallelBeamCT
from recon.problem import Problem

# The rows of a symmetric second difference of white noise have this standard deviation.
_SECOND_DIFFERENCE = math.sqrt(6.0)
_NORMAL_MEDIAN = 0.6744897501960817  # of the magnitude of a standard normal number


def simulated_projections(volume: Volume, views: int, *, noise_std: float = 0.01,
                          seed: int = 0) -> Projections:
    """Parallel-beam projections of a volume in HU, over half a turn: simulated, not measured.

    Line integrals of ``mu = mu_water (1 + HU / 1000)`` in 1/mm, which have no unit. Projected on a
    grid twice as fine with bins half as wide, which are averaged in pairs, so that no operator on
    the image's own grid reproduces the data exactly. ``noise_std`` of added Gaussian noise is in
    the units of the integrals: 0.01 is the noise of 10,000 photons. Slice ``i`` of ``volume`` draws
    with ``seed + i``. ``reference`` is ``mu``.
    """
    mu, pixel_mm = attenuation(volume), pixel_of(volume)
    if views < 1:
        raise ValueError(f"views wants at least 1, got {views}")
    height, width = mu.shape[-2:]
    bins = math.ceil(math.hypot(height, width)) + 1
    angles = torch.arange(views, dtype=torch.float64) * (math.pi / views)
    finer = _projector((2 * height, 2 * width), tuple(angles.tolist()), 2 * bins, 0.0,
                       pixel_mm / 2, pixel_mm / 2)
    doubled = mu.repeat_interleave(2, -1).repeat_interleave(2, -2)
    values = torch.stack([finer(one[None])[0] for one in doubled])
    values = (values[..., ::2] + values[..., 1::2]) / 2
    for number, one in enumerate(values):
        source = torch.Generator().manual_seed(seed + number)
        one += noise_std * torch.randn(one.shape, generator=source)
    note = f"projections were simulated: {views} views, noise {noise_std:g}"
    said = [str(volume.attributes["note"])] if "note" in volume.attributes else []
    return Projections(values, angles, (height, width), pixel_mm, pixel_mm, 0.0, "1/mm", mu,
                       {**volume.attributes, "note": "; ".join([*said, note])}, volume.name,
                       "simulated")


def attenuation(volume: Volume) -> Tensor:
    """``mu`` in 1/mm of a volume in HU. Raises ValueError for other units."""
    if volume.unit != "HU":
        raise ValueError(f"{volume.name} is in {volume.unit} units: want HU to simulate CT "
                         "projections; if it is in HU, say so with --unit HU")
    return hu_to_mu(volume.values)


def pixel_of(volume: Volume) -> float:
    """The side of its pixels in mm. Raises ValueError where they are not square."""
    spacing = volume.spacing_mm
    if spacing is None or not math.isclose(spacing[1], spacing[2], rel_tol=1e-3):
        found = "of unknown size" if spacing is None else f"of {spacing[1]:g} x {spacing[2]:g} mm"
        raise ValueError(f"{volume.name} has pixels {found}: want square ones, to place views and "
                         "bins")
    return spacing[1]


def chosen_views(projections: Projections, views: int | None) -> Projections:
    """Every n-th view, ``views`` of them about equally spaced; all where it is None."""
    total = len(projections.angles)
    if views is None or views == total:
        return projections
    if not 0 < views <= total:
        raise ValueError(f"{projections.name} has {total} views: want 1 to {total} of them, "
                         f"got {views}")
    kept = torch.arange(views) * total // views
    return projections._replace(values=projections.values[:, kept], angles=projections.angles[kept])


def operator_of(projections: Projections) -> LinearOperator:
    """The projector of these measurements, without a channel of its own: ``(1, views, bins)``.

    A new one each time, so that moving or loading one leaves the others; they share their weights.
    """
    p = projections
    kept = _projector(p.size, tuple(p.angles.tolist()), p.values.shape[-1], p.detector_offset,
                      p.pixel_mm, p.bin_mm)
    return copy.deepcopy(kept, {id(weights): weights for weights in kept.buffers()})


@functools.lru_cache(maxsize=4)  # weights take seconds, and the slices of a volume share them
def _projector(size: tuple[int, int], angles: tuple[float, ...], bins: int, offset: float,
               pixel_mm: float, bin_mm: float) -> ParallelBeamCT:
    return ParallelBeamCT(size, torch.tensor(angles, dtype=torch.float64), bins, offset, pixel_mm,
                          bin_mm)


def problem(projections: Projections, index: int, operator: LinearOperator, *,
            noise_std: float | None = None) -> Problem[LinearOperator]:
    """The measurements of one slice; noise is estimated where ``noise_std`` is not given."""
    y = projections.values[index][None]
    std = estimate_noise_std(y) if noise_std is None else noise_std
    reference = None if projections.reference is None else projections.reference[index][None]
    return Problem(y, operator, std, reference)


def estimate_noise_std(sinogram: Tensor) -> float:
    """Noise of projections from second differences along the detector, ``(..., bins)``.

    Their median magnitude over ``0.674 sqrt(6)``: projections are smooth along the detector but
    for edges, which the median ignores. One number for all bins, although photon noise grows with
    the attenuation: there it is about the noise of the median bin.
    """
    bend = sinogram[..., 2:] - 2 * sinogram[..., 1:-1] + sinogram[..., :-2]
    bend = bend[bend != 0]  # bins that nothing reached differ by nothing
    if not bend.numel():
        return 0.0
    return float(bend.abs().median()) / (_NORMAL_MEDIAN * _SECOND_DIFFERENCE)
