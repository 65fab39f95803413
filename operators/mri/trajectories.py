"""Trajectories through k-space, in cycles per field of view, for ``NonCartesianMRI``.

A trajectory is ``(shots, readout, axes)``, float32, its components in the order of the axes of the
image; the edge of k-space is at half the image size. Angles are from the first axis to the second.
"""

import math

import torch
from torch import Tensor

# pi (sqrt(5) - 1) / 2, 111.2 degrees: pi divided by the golden ratio
GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2


def radial(size: int, spokes: int, readout: int | None = None) -> Tensor:
    """Spokes through the centre at angles ``pi i / spokes``, ``(spokes, readout, 2)``.

    Samples at ``(j - readout // 2) size / readout``, j from 0, so that sample ``readout // 2`` of
    every spoke is the centre; ``readout`` is twice the image size by default, two samples a cycle.
    """
    _positive(size=size, spokes=spokes)
    return _spokes(size, math.pi / spokes * torch.arange(spokes, dtype=torch.float64), readout)


def golden_angle(size: int, spokes: int, readout: int | None = None, first: int = 0) -> Tensor:
    """Spokes as of ``radial``, each turned by the golden angle against the one before.

    Any run of consecutive spokes covers k-space about evenly, for series whose frames are cut
    afterwards; ``first`` is the number of the first spoke. Winkelmann et al. 2007,
    doi 10.1109/TMI.2006.885337.
    """
    _positive(size=size, spokes=spokes)
    number = torch.arange(first, first + spokes, dtype=torch.float64)
    return _spokes(size, number * GOLDEN_ANGLE, readout)


def spiral(size: int, interleaves: int, readout: int | None = None, *, spacing: float = 1.0,
           ) -> Tensor:
    """Archimedean spirals from the centre to the edge, ``(interleaves, readout, 2)``.

    The interleaves are turned against one another so that neighbouring turns, of any of them, lie
    ``spacing`` cycles apart: 1 samples the field of view in full, 2 half of it. Samples are evenly
    spaced along the curve; ``readout`` is such that they are at most half a cycle apart by default.
    """
    _positive(size=size, interleaves=interleaves)
    if not (math.isfinite(spacing) and spacing > 0):
        raise ValueError(f"spiral: want a positive spacing, got {spacing}")
    # radius = pitch * angle / (2 pi); its arc length is pitch / (4 pi) (a sqrt(1 + a^2) + asinh a)
    pitch = interleaves * spacing
    last = 2 * math.pi * (size / 2) / pitch

    def length(angle: Tensor) -> Tensor:
        return pitch / (4 * math.pi) * (angle * (1 + angle**2).sqrt() + angle.asinh())

    whole = float(length(torch.tensor(last, dtype=torch.float64)))
    readout = math.ceil(2 * whole) + 1 if readout is None else readout
    _positive(readout=readout)
    wanted = torch.linspace(0, whole, readout, dtype=torch.float64)
    # Newton from above: the length is convex, so that it never overshoots
    angle = (4 * math.pi * wanted / pitch).sqrt()
    for _ in range(30):
        speed = pitch / (2 * math.pi) * (1 + angle**2).sqrt()
        angle = (angle - (length(angle) - wanted) / speed).clamp(0, last)
    turn = 2 * math.pi * torch.arange(interleaves, dtype=torch.float64)[:, None] / interleaves
    radius = pitch * angle / (2 * math.pi)
    return _polar(radius.expand(interleaves, -1), angle + turn)


def stack(trajectory: Tensor, planes: Tensor) -> Tensor:
    """One in-plane trajectory at each of ``planes`` along a first axis: a stack of stars, say.

    ``(shots, readout, 2)`` and frequencies ``(planes,)`` to ``(planes * shots, readout, 3)``.
    """
    if trajectory.ndim != 3 or trajectory.shape[-1] != 2 or planes.ndim != 1:
        raise ValueError("stack: want a trajectory (shots, readout, 2) and planes (planes,), got "
                         f"{tuple(trajectory.shape)} and {tuple(planes.shape)}")
    shots, readout, _ = trajectory.shape
    up = planes.to(trajectory).view(-1, 1, 1, 1).expand(-1, shots, readout, 1)
    flat = trajectory.expand(len(planes), -1, -1, -1)
    return torch.cat([up, flat], -1).flatten(0, 1)


def _spokes(size: int, angle: Tensor, readout: int | None) -> Tensor:
    readout = 2 * size if readout is None else readout
    _positive(readout=readout)
    radius = (torch.arange(readout, dtype=torch.float64) - readout // 2) * (size / readout)
    return _polar(radius.expand(len(angle), -1), angle[:, None])


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).to(torch.float32)


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"trajectories: want {name} of at least 1, got {count}")
