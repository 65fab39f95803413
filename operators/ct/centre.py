"""Where the axis of rotation falls on the detector, found from the projections alone."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, optimize
from torch import Tensor

from recon.operators.ct.fbp import filtered_back
from recon.operators.ct.planar import PlanarCT, angles_of
from recon.operators.ct.redundancy import scanned

# Side of the image that is judged, and the part of the detector's frequencies in it.
_SIZE, _CUTOFF = 128, 0.3
# Part of the detector that must overlap with itself mirrored.
_OVERLAP = 0.25


def offset_by_opposite_views(y: Tensor, angles: Tensor) -> float:
    """``detector_offset`` of parallel projections, from views that are half a turn apart.

    The view from behind is the same one mirrored: the shift between both is twice the offset. They
    are registered by the least squared difference over what overlaps, relative to its energy, with
    splines between bins. The opposite of a view is interpolated between its neighbours, or, for
    equidistant views that end a step before half a turn, extrapolated by that step. All slices are
    taken together, for they share the axis.

    Parameters
    ----------
    y
        Line integrals, ``(*batch, views, bins)``; not cut off by the detector on both sides.
    angles
        In radians, ``(views,)``.

    Raises ValueError where no view has an opposite: ``offset_by_centroids`` needs none.
    """
    angles, _ = angles_of("offset_by_opposite_views", angles)
    _refuse("offset_by_opposite_views", y, len(angles))
    front, back = _opposites(
        y.detach().double().cpu().reshape(-1, *y.shape[-2:]).numpy(), angles)
    bins = y.shape[-1]
    most = math.floor((1 - _OVERLAP) * bins)
    shifts = np.arange(-most, most + 1)
    best = float(shifts[np.argmin([_mismatch(front, back, float(t)) for t in shifts])])
    found = optimize.minimize_scalar(lambda t: _mismatch(front, back, t), method="bounded",
                                     bounds=(best - 1, best + 1), options={"xatol": 1e-3})
    return float(found.x) / 2


def offset_by_centroids(y: Tensor, angles: Tensor) -> float:
    """``detector_offset`` of parallel projections, from how their centroids move.

    The centroid of a view lies where that of the object does, ``X cos(angle) + Y sin(angle)`` from
    the axis; a least squares fit over all views gives X, Y and the place of the axis. Any angles
    do, limited ones the worse the fewer degrees they cover. The whole object must be seen, with
    nothing beside it: a background of the integrals draws the result to the detector's middle.

    Parameters
    ----------
    y
        Line integrals, ``(*batch, views, bins)``. All slices are taken together.
    angles
        In radians, ``(views,)``, three or more that differ by other than half a turn.
    """
    angles, _ = angles_of("offset_by_centroids", angles)
    _refuse("offset_by_centroids", y, len(angles))
    views = y.detach().double().cpu().reshape(-1, *y.shape[-2:]).sum(0)
    mass, place = views.sum(1), torch.arange(y.shape[-1], dtype=torch.float64)
    centroid = (views * (place - (y.shape[-1] - 1) / 2)).sum(1) / mass
    design = torch.stack([angles.cos(), angles.sin(), -torch.ones_like(angles)], 1)
    if int(torch.linalg.matrix_rank(design, rtol=1e-6)) < 3 or not bool(centroid.isfinite().all()):
        raise ValueError("offset_by_centroids: want three different views or more, each with "
                         f"something in it, got {len(angles)}")
    return float(torch.linalg.lstsq(design, centroid[:, None]).solution[2])


def offset_by_sharpness(y: Tensor, operator: PlanarCT, *, within: float = 20.0) -> float:
    """``detector_offset`` at which the filtered back-projection is sharpest.

    Over half a turn a wrong axis adds arcs below zero, and the image with the least sum of
    magnitudes over its sum is taken (Donath et al. 2006, J. Opt. Soc. Am. A 23(5), 1048). Over a
    full turn everything is doubled symmetrically: the greatest sum of squares over the squared sum
    is taken. For fans, and projections that are cut off; not for less than half a turn, whose
    streaks hide what is looked for. The image is smoothed, for noise is the same everywhere.

    Parameters
    ----------
    y
        Line integrals, ``(*batch, 1, views, detectors)``. All slices are taken together.
    operator
        The geometry; its own offset is where the search begins.
    within
        Bins to search on each side of it.
    """
    operator.range.check(y, "offset_by_sharpness")
    _refuse("offset_by_sharpness", y, y.shape[-2])
    if not 0 < within < math.inf:
        raise ValueError(f"offset_by_sharpness: want a positive within, got {within}")
    geometry, (_, rows, columns) = operator.geometry, operator.domain.shape
    coarse = (rows / _SIZE * geometry.pixel[0], columns / _SIZE * geometry.pixel[1])
    views = y.detach().reshape(-1, *y.shape[-2:])
    closed = scanned(geometry.angles, 2 * math.pi).closed

    def blur(offset: float) -> float:
        here = dataclasses.replace(geometry, offset=offset, pixel=coarse)
        image = filtered_back(views, here, (_SIZE, _SIZE), "hann", _CUTOFF).double()
        if closed:
            return -float(image.square().sum() / image.sum().square())
        return float(image.abs().sum() / image.sum().abs())

    step = min(1.0, within)
    tried = geometry.offset + np.arange(-within, within + step / 2, step)
    best = _least(blur, tried)
    found = optimize.minimize_scalar(blur, method="bounded", bounds=(best - step, best + step),
                                     options={"xatol": 0.05})
    return float(found.x)


def _least(cost: Callable[[float], float], tried: NDArray[np.float64]) -> float:
    return float(tried[np.argmin([cost(float(t)) for t in tried])])


def _refuse(call: str, y: Tensor, views: int) -> None:
    if y.ndim < 2 or y.shape[-2] != views or y.is_complex():
        raise ValueError(f"{call}: want line integrals (*batch, {views}, bins) for {views} angles, "
                         f"got {tuple(y.shape)}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError(f"{call}: the projections hold NaN or infinity: mend them before")
    if not bool(y.any()):
        raise ValueError(f"{call}: the projections are all zero")


def _opposites(y: NDArray[np.float64],
               angles: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Views, and those half a turn on as seen from in front, both ``(pairs, bins)``."""
    turn = scanned(angles, 2 * math.pi)
    place = (angles - turn.start).remainder(2 * math.pi).numpy()
    order = np.argsort(place)
    ordered, views = place[order], y[:, order]
    step = turn.length / len(ordered)
    if turn.closed:  # neighbours across the end
        ordered = np.concatenate([ordered[-1:] - 2 * math.pi, ordered, ordered[:1] + 2 * math.pi])
        views = np.concatenate([views[:, -1:], views, views[:, :1]], 1)
    front, back = [], []
    for v, at in enumerate(place):
        for target in (at + math.pi, at - math.pi):
            if len(ordered) < 2 or not (ordered[0] - 1.01 * step <= target
                                        <= ordered[-1] + 1.01 * step):
                continue
            right = int(np.clip(np.searchsorted(ordered, target), 1, len(ordered) - 1))
            share = (target - ordered[right - 1]) / (ordered[right] - ordered[right - 1])
            front.append(y[:, v])
            back.append(((1 - share) * views[:, right - 1] + share * views[:, right])[:, ::-1])
    if not front:
        raise ValueError(
            "offset_by_opposite_views: want views half a turn apart, got angles over "
            f"{math.degrees(turn.length):.0f} degrees: use offset_by_centroids")
    return np.concatenate(front), np.concatenate(back)


def _mismatch(front: NDArray[np.float64], back: NDArray[np.float64], shift: float) -> float:
    """Squared difference of ``back`` and ``front`` moved up, over the energy of both."""
    whole = math.floor(shift)
    if shift != whole:
        front = ndimage.shift(front, (0, shift - whole), order=3, mode="nearest")
    bins = front.shape[1]
    moved = front[:, max(0, -whole) : bins - max(0, whole)]
    kept = back[:, max(0, whole) : bins - max(0, -whole)]
    energy = float((moved**2).sum() + (kept**2).sum())
    return float(((moved - kept) ** 2).sum()) / energy if energy else 1.0
