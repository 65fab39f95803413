"""From photon counts to line integrals and back: flat fields, the logarithm, and its noise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recon.operators.counts import draw_counts


class LineIntegralsOf(NamedTuple):
    """Line integrals and the standard deviation of each."""

    y: Tensor
    noise_std: Tensor


def draw_transmission(line_integrals: Tensor, photons: Tensor | float, electronic_std: float = 0.0,
                      generator: torch.Generator | None = None) -> Tensor:
    """Counts behind an object: ``Poisson(photons exp(-line_integrals)) + electronic_std n``.

    In float32, or float64 for such integrals: half precision does not hold numbers of photons.

    Parameters
    ----------
    line_integrals
        Of attenuation, without unit, of any shape.
    photons
        That reach a bin where nothing is in the way, a number or a tensor that broadcasts.
    electronic_std
        Standard deviation of the detector's Gaussian noise, in counts.
    """
    incident = _photons("draw_transmission", photons)
    _electronic("draw_transmission", electronic_std)
    lines = line_integrals.to(_precise(line_integrals))
    counts = draw_counts(incident.to(lines) * (-lines).exp(), generator)
    if electronic_std:
        noise = torch.randn(counts.shape, generator=generator, dtype=counts.dtype,
                            device=counts.device if generator is None else generator.device)
        counts = counts + electronic_std * noise.to(counts.device)
    return counts


def log_transform(counts: Tensor, photons: Tensor | float, electronic_std: float = 0.0,
                  floor: float = 1.0) -> LineIntegralsOf:
    """``log(photons / N)`` and its noise, ``sqrt(N + electronic_std^2) / N``, of counts ``N``.

    The noise is that of the delta method: the variance of a Poisson count is its mean, for which
    the count itself stands, and the derivative of the logarithm is ``1 / N``. With few photons the
    logarithm is biased as well, upwards by about ``(N + electronic_std^2) / (2 N^2)``, which is not
    corrected. ``whitened`` turns both into what a sampler takes.

    Parameters
    ----------
    counts
        With the detector's background subtracted; may be negative where few photons arrive. Whole
        numbers of any integer type are taken in float32.
    photons, electronic_std
        As of ``draw_transmission``.
    floor
        Fewer counts are taken as this many, for the logarithm has no value at zero. Such rays say
        little: for their noise they count as ``floor`` photons.
    """
    incident = _photons("log_transform", photons)
    _electronic("log_transform", electronic_std)
    if not 0 < floor < math.inf:
        raise ValueError(f"log_transform: want a floor above 0, got {floor}")
    if not bool(torch.isfinite(counts).all()):
        raise ValueError(f"log_transform: want finite counts, got {_first_bad(counts)}")
    seen = counts.to(_precise(counts)).clamp(min=floor)
    kind = counts.dtype if counts.is_floating_point() else torch.float32
    return LineIntegralsOf((incident.to(seen) / seen).log().to(kind),
                           ((seen + electronic_std**2).sqrt() / seen).to(kind))


def flat_field(raw: Tensor, flat: Tensor, dark: Tensor | float = 0.0) -> Tensor:
    """The part of the photons that came through: ``(raw - dark) / (flat - dark)``.

    Parameters
    ----------
    raw
        Readings with the object, ``(views, *detector)``.
    flat, dark
        Readings without it, and without a beam: frames ``(frames, *detector)``, which are averaged,
        or one, ``detector``. ``dark`` may be a number.

    Raises ValueError for shapes that do not fit, for readings that are not finite, and where a flat
    field is no brighter than the dark one: such bins are dead, and wanted mended before.
    """
    detector = tuple(raw.shape[1:])
    beam = _frame("flat", flat, detector)
    off = _frame("dark", dark, detector) if isinstance(dark, Tensor) and dark.ndim else (
        torch.as_tensor(dark, dtype=torch.float64).expand(detector))
    if not bool(torch.isfinite(raw).all()):
        raise ValueError(f"flat_field: want finite readings, got {_first_bad(raw)}")
    bright = beam - off.to(beam.device)
    dead = ~(bright > 0)  # NaN as well
    if bool(dead.any()):
        first = tuple(int(i) for i in dead.nonzero()[0])
        raise ValueError(f"flat_field: the flat field is no brighter than the dark one at "
                         f"{int(dead.sum())} of {dead.numel()} bins, the first {first}: mend or "
                         "leave out dead bins")
    kind = raw.dtype if raw.is_floating_point() else torch.float32
    return ((raw.double() - off.to(raw.device)) / bright.to(raw.device)).to(kind)


def readings_per_photon(flat: Tensor, dark: Tensor | float = 0.0) -> float:
    """The gain of a detector, from how flat frames ``(frames, *detector)`` scatter.

    The variance of ``gain N`` over its mean is ``gain``, for a Poisson number ``N``; electronic
    noise must be small beside it. The median over the bins, freed of the skewness of a variance
    from so few frames (Wilson & Hilferty 1931). ``(raw - dark) / gain`` are the counts that
    ``log_transform`` takes.
    """
    if flat.ndim < 2 or len(flat) < 2:
        raise ValueError("readings_per_photon: want at least two flat frames (frames, *detector), "
                         f"got {tuple(flat.shape)}")
    off = _frame("dark", dark, tuple(flat.shape[1:])) if isinstance(dark, Tensor) and dark.ndim \
        else torch.as_tensor(dark, dtype=torch.float64)
    bright = flat.double().mean(0) - off
    lit = bright > 0
    spread = float((flat.double().var(0)[lit] / bright[lit]).median()) if bool(lit.any()) else 0.0
    if not 0 < spread < math.inf:
        raise ValueError("readings_per_photon: want flat frames above dark that differ from one "
                         "another, and finite: these say nothing of their noise")
    return spread / (1 - 2 / (9 * (len(flat) - 1))) ** 3


def _frame(name: str, frames: Tensor, detector: tuple[int, ...]) -> Tensor:
    if tuple(frames.shape) == detector:
        frames = frames[None]
    if tuple(frames.shape[1:]) != detector or not len(frames):
        want = ", ".join(str(n) for n in detector)
        raise ValueError(f"flat_field: want {name} as (frames, {want}) or ({want}) for this "
                         f"detector, got {tuple(frames.shape)}")
    if not bool(torch.isfinite(frames).all()):
        raise ValueError(f"flat_field: want a finite {name}, got {_first_bad(frames)}")
    return frames.double().mean(0)


def _first_bad(values: Tensor) -> str:
    bad = ~torch.isfinite(values)
    first = tuple(int(i) for i in bad.nonzero()[0])
    return f"{float(values[first])} at {first} and {int(bad.sum()) - 1} others"


def _precise(values: Tensor) -> torch.dtype:
    """In which to compute: integers and half precision do not hold numbers of photons."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _photons(call: str, photons: Tensor | float) -> Tensor:
    found = torch.as_tensor(photons)
    if not bool((found > 0).all()) or not bool(torch.isfinite(found).all()):
        raise ValueError(f"{call}: want a finite number of photons above 0, got "
                         f"{float(found.amin())}")
    return found


def _electronic(call: str, electronic_std: float) -> None:
    if not 0 <= electronic_std < math.inf:
        raise ValueError(f"{call}: want an electronic_std >= 0, got {electronic_std}")
