"""Where DICOM slices lie: their order, their distance, and whether they make a straight stack.

Positions are those along the normal ``n = row cosines x column cosines``, in mm.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.dicom_header import Header
from recon.datasets.errors import FormatError

Vector = NDArray[np.float64]

# Directions and pixel sizes written as decimal text differ in their last digits.
TOLERANCE = 1e-3
# Of the distance between slices: positions rounded to 0.01 mm pass, a missing slice never.
POSITION_TOLERANCE = 1e-2
SMALLEST_MM = 1e-6  # pixels and slices of less are damage


def listed(values: tuple[float, ...] | tuple[str, ...]) -> str:
    """Values of an element for a message."""
    words = [f"{round(v, 6) + 0.0:.4g}" if isinstance(v, float) else v for v in values]
    return "/".join(words)[:60] or "nothing"


def orientation(header: Header) -> tuple[float, ...]:
    """Row and column cosines, checked; empty where there are none."""
    values = header.numbers["ImageOrientationPatient"]
    if len(values) == 6:
        row, column = np.array(values).reshape(2, 3)
        lengths = np.linalg.norm(row), np.linalg.norm(column)
        if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) <= TOLERANCE:
            return values
    if values:
        problem = f"want two unit vectors at right angles, got {listed(values)}"
        raise FormatError.about(header.path, problem, "ImageOrientationPatient")
    return ()


def pixel_size(header: Header) -> tuple[float, ...]:
    """Distances between rows and between columns, checked; empty where there are none."""
    values = header.numbers["PixelSpacing"]
    if values and (len(values) != 2 or min(values) < SMALLEST_MM):
        problem = f"want two positive sizes, got {listed(values)}"
        raise FormatError.about(header.path, problem, "PixelSpacing")
    return values


def normal(header: Header) -> Vector:
    row, column = np.array(orientation(header)).reshape(2, 3)
    across = np.cross(row, column)
    return across / np.linalg.norm(across)


def origin(header: Header) -> Vector:
    values = header.numbers["ImagePositionPatient"]
    if len(values) != 3:
        problem = f"want three coordinates in mm, got {listed(values)}"
        raise FormatError.about(header.path, problem, "ImagePositionPatient")
    return np.array(values)


def missing(header: Header) -> list[str]:
    """What is needed to place the slice and is not there."""
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    return [keyword for keyword in needed if not header.numbers[keyword]]


def ordered(headers: list[Header]) -> list[Header]:
    """Ascending along the normal; neither names nor instance numbers count."""
    n = normal(headers[0])
    return sorted(headers, key=lambda header: float(origin(header) @ n))


def coinciding(headers: list[Header]) -> list[tuple[Header, Header]]:
    """Neighbours in order that are nearer than slices can be."""
    n, nearest = normal(headers[0]), POSITION_TOLERANCE * min(pixel_size(headers[0]))
    return [(a, b) for a, b in pairwise(headers) if (origin(b) - origin(a)) @ n <= nearest]


def affine_of(headers: list[Header], notes: list[str]) -> Tensor | None:
    """The affine of a :class:`Volume` of ordered slices; None for one that has no position.

    Raises
    ------
    FormatError
        Slices are missing, doubled, at unequal distances, tilted or shifted against each other.
    """
    first = headers[0]
    if lacking := missing(first):
        notes.append(f"no {' and no '.join(lacking)}: no affine")
        return None
    n, start = normal(first), origin(first)
    distance = _distance(headers, notes) if len(headers) > 1 else _thickness(first, notes)
    down, right = pixel_size(first)
    row, column = np.array(orientation(first)).reshape(2, 3)
    affine = np.eye(4)
    affine[:3] = np.stack([n * distance, column * down, row * right, start], axis=1)
    return torch.from_numpy(affine)


def _thickness(header: Header, notes: list[str]) -> float:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = header.number(keyword)
        if value is not None and value >= SMALLEST_MM:
            notes.append(f"one slice: its extent along the stack is {keyword}")
            return value
    notes.append("one slice without SliceThickness: its extent along the stack is set to 1 mm")
    return 1.0


def _distance(headers: list[Header], notes: list[str]) -> float:
    folder = headers[0].path.parent
    n = normal(headers[0])
    origins = np.stack([origin(header) for header in headers])
    positions = origins @ n
    if twins := coinciding(headers):
        a, b = twins[0]
        raise FormatError.about(
            folder,
            f"duplicate slices at {len(twins)} positions, the first at {origin(a) @ n:g} mm "
            f"({a.path.name} and {b.path.name}): remove copies, or give each image set a folder",
        )
    gaps = np.diff(positions)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    times = np.round(gaps / usual)
    if bool((np.abs(gaps / usual - times) <= 0.05).all()) and times.max() > 1:
        told = ", ".join(f"{times[i] - 1:g} between {positions[i]:g} and {positions[i + 1]:g} mm"
                         for i in np.flatnonzero(times > 1))  # fmt: skip
        raise FormatError.about(
            folder, f"slices are missing: {told}; the others are {usual:g} mm apart: copy them all"
        )
    distance = float(positions[-1] - positions[0]) / len(gaps)
    off = np.abs(positions - positions[0] - distance * np.arange(len(positions))).max()
    if off > POSITION_TOLERANCE * distance:
        i = int(np.abs(gaps - usual).argmax())
        raise FormatError.about(
            folder,
            f"slices are not at equal distances: those at {positions[i]:g} and "
            f"{positions[i + 1]:g} mm are {gaps[i]:g} mm apart, others {usual:g} mm",
        )
    if off > TOLERANCE * distance:
        notes.append(f"positions deviate by up to {off:.2g} mm from equal distances")
    _check_straight(headers, origins, distance)
    stated = headers[0].number("SpacingBetweenSlices")
    if stated and abs(abs(stated) / distance - 1) > POSITION_TOLERANCE:
        notes.append(f"positions are {distance:g} mm apart, SpacingBetweenSlices says {stated:g}")
    return distance


def _check_straight(headers: list[Header], origins: Vector, distance: float) -> None:
    """The first pixels of all slices lie on one line along the normal."""
    folder, n = headers[0].path.parent, normal(headers[0])
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    sideways = float(np.linalg.norm(step - (step @ n) * n))
    if sideways > TOLERANCE * distance:
        angle = math.degrees(math.atan2(sideways, distance))
        raise FormatError.about(
            folder,
            f"the stack is tilted by {angle:.3g} degrees against its slices (gantry tilt): correct "
            "that first, for example with dcm2niix",
        )
    strays = origins - origins[0] - np.outer(np.arange(len(origins)), step)
    strays -= np.outer(strays @ n, n)
    far = np.linalg.norm(strays, axis=1)
    i = int(far.argmax())
    if far[i] > POSITION_TOLERANCE * distance:
        raise FormatError.about(
            folder,
            f"slice {headers[i].path.name} at {origins[i] @ n:g} mm lies {far[i]:.3g} mm beside "
            "the line of the others",
        )
