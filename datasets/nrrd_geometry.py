"""Where the voxels of an NRRD image lie: from the header's fields to ``Volume.affine``."""

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.errors import FormatError
from recon.datasets.nifti import AGREEMENT, is_geometry
from recon.datasets.nrrd_header import (
    Header,
    numbers,
    per_axis,
    quoted,
    vector,
    vectors,
    whole_number,
)
from recon.datasets.scan import Attributes

# Signs that turn the axes of a space to left, back, head.
PATIENT = {
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
}  # fmt: skip
# Of no stated place in the patient. A left-handed frame cannot be left, back, head.
FRAMES = {"scanner-xyz": (1, 1, 1), "3d-right-handed": (1, 1, 1), "3d-left-handed": (1, -1, 1)}
WITH_TIME = {"rast": "ras", "last": "las", "lpst": "lps"}
LENGTHS_MM = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "millimetre": 1.0, "millimetres": 1.0,
    "cm": 10.0, "centimeter": 10.0, "centimeters": 10.0, "centimetre": 10.0, "centimetres": 10.0,
    "m": 1000.0, "meter": 1000.0, "meters": 1000.0, "metre": 1000.0, "metres": 1000.0,
    "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "micron": 1e-3, "microns": 1e-3,
    "micrometer": 1e-3, "micrometers": 1e-3, "micrometre": 1e-3, "micrometres": 1e-3,
}  # fmt: skip
UNKNOWN = ("", "none", "???")
TOWARDS = ("LR", "PA", "SI")  # names of the ways along and against each axis


def affine_of(path: Path, header: Header, attributes: Attributes,
              notes: list[str]) -> Tensor | None:  # fmt: skip
    """Matrix from ``(slice, row, column, 1)`` to mm towards left, back and head.

    The origin is the centre of the first voxel, whatever ``centerings`` says: cell or node tells
    what ``axis mins`` are, and nothing of ``space origin``.
    """
    space, dimension = _space(path, header)
    directions = vectors(path, header.fields, _count(header))
    with np.errstate(all="ignore"):  # judged as a whole below
        if directions is not None:
            key = "space directions"
            found = _oriented(path, header, directions, dimension, space, notes)
        else:
            key, sides = "spacings", _spaced(path, header, space, notes)
            if sides is None:
                notes.append("the file gives no position and orientation")
                return None
            found = sides
        found *= np.array((PATIENT | FRAMES).get(space, (1, 1, 1)))[:, None]
        if found.shape[1] == 3:  # a plane: its normal, 1 mm long
            normal = np.cross(found[:, 0], found[:, 1])
            found = np.insert(found, 2, normal / np.linalg.norm(normal), axis=1)
            notes.append("the thickness of the one slice is not known and was taken as 1 mm")
        matrix = np.vstack([found, [0, 0, 0, 1]])
        if not is_geometry(matrix):
            problem = "they span no volume: write the right ones, or leave them out with the space"
            raise FormatError.about(path, problem, key)
    if space in PATIENT:
        _tell_orientation(matrix, attributes, notes)
    else:
        ways = "left, front and head" if space == "3d-left-handed" else "left, back and head"
        notes.append(f"the file does not say where its axes{f', {space},' if space else ''} lie in "
                     f"the patient: they were taken to run to the {ways}")
    return torch.from_numpy(matrix[:, [2, 1, 0, 3]])


def _tell_orientation(matrix: NDArray[np.float64], attributes: Attributes,
                      notes: list[str]) -> None:  # fmt: skip
    """The ways of x, y and z in letters, each of another axis of the patient, the nearest."""
    cosines = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    nearest = max(permutations(range(3)),
                  key=lambda rows: sum(abs(cosines[row, x]) for x, row in enumerate(rows)))
    letters = [TOWARDS[row][int(cosines[row, x] < 0)] for x, row in enumerate(nearest)]
    attributes["orientation"] = "".join(letters)
    if letters[2] not in "SI":
        plane = "sagittal" if letters[2] in "LR" else "coronal"
        notes.append(f"slices, along the file's z, are {plane}")


def _count(header: Header) -> int:
    return len(header.fields["sizes"].split())


def _space(path: Path, header: Header) -> tuple[str, int | None]:
    """The name of the space in small letters, or an empty one, and its number of dimensions."""
    named = " ".join(header.fields.get("space", "").lower().split())
    name = WITH_TIME.get(named, named.removesuffix("-time"))
    if named and name not in PATIENT | FRAMES:
        wanted = "left-posterior-superior, right-anterior-superior or another of NRRD's"
        raise FormatError.about(path, f"want {wanted}, got {quoted(named)}", "space")
    dimension = (4 if name != named else 3) if named else None
    if "spacedimension" in header.fields:
        told = whole_number(path, "space dimension", header.fields["spacedimension"], 1)
        if dimension not in (None, told):
            problem = f"want {dimension}, as the space has, or none, got {told}"
            raise FormatError.about(path, problem, "space dimension")
        dimension = told
    return name, dimension


def _oriented(path: Path, header: Header, directions: list[tuple[float, ...] | None],
              dimension: int | None, space: str, notes: list[str]) -> NDArray[np.float64]:
    """Columns of the image's axes and of its origin, in mm along the axes of the space."""
    used = [one for one in (directions[axis] for axis in header.axes) if one is not None]
    length = len(used[0]) if dimension is None else dimension
    wanted = (2,) if length == 2 and len(used) == 2 else (3, 4)
    if length not in wanted or len(used[0]) != length:
        wants = length if length in wanted else "3 (or 2 of a plane)"
        problem = f"want vectors of {wants} numbers, as the space, got {len(used[0])}"
        raise FormatError.about(path, problem, "space directions")
    origin = [0.0] * length
    if "spaceorigin" in header.fields:
        origin = list(vector(path, "space origin", header.fields["spaceorigin"]))
        if len(origin) != length:
            raise FormatError.about(path, f"want {length} numbers, got {len(origin)}",
                                    "space origin")  # fmt: skip
    else:
        notes.append("the file gives no origin, it was taken to be 0")
    columns = np.array([*used, origin]).T[:3]  # without the time of a space with time
    to_mm = _to_mm(path, header.fields.get("spaceunits"), length, range(min(length, 3)),
                   "space units", space, notes)  # fmt: skip
    told, sides = _sizes(path, header, "spacings"), np.linalg.norm(columns[:, :-1], axis=0)
    if told is not None and not (np.abs(told - sides) < AGREEMENT * sides).all():
        notes.append("spacings are not the lengths of the space directions, which were used")
    columns *= to_mm[:, None]
    return columns if length > 2 else np.vstack([columns, np.zeros(len(used) + 1)])


def _spaced(path: Path, header: Header, space: str, notes: list[str]) -> NDArray[np.float64] | None:
    """The same from the sides of the voxels alone; None where these are not given."""
    spacings = _sizes(path, header, "spacings")
    if spacings is None:
        return None
    count = len(spacings)
    to_mm = _to_mm(path, header.fields.get("units"), _count(header), header.axes, "units", space,
                   notes)  # fmt: skip
    columns = np.zeros((3, count + 1))
    columns[range(count), range(count)] = spacings * to_mm
    if "spaceorigin" in header.fields:
        origin = vector(path, "space origin", header.fields["spaceorigin"])
        if len(origin) != 3:
            raise FormatError.about(path, f"want 3 numbers, got {len(origin)}", "space origin")
        columns[:, -1] = origin
    elif (least := _sizes(path, header, "axismins")) is not None:
        # The least position of a cell is its border, half a voxel before its centre.
        kinds = (per_axis(path, header.fields, "centerings", _count(header))
                 or per_axis(path, header.fields, "centers", _count(header)) or [])
        inside = np.array([0.0 if kinds and kinds[axis].lower() == "node" else 0.5
                           for axis in header.axes])  # fmt: skip
        columns[:count, -1] = (least + inside * spacings) * to_mm
    if space:
        notes.append("the file gives sides of voxels without directions, which were taken to be "
                     "those of the space")
    return columns


def _sizes(path: Path, header: Header, name: str) -> NDArray[np.float64] | None:
    """A number for each of the image's axes; None where one is missing, which NaN says."""
    words = per_axis(path, header.fields, name, _count(header))
    found = np.array([numbers(path, name, words or [])[axis] for axis in header.axes]
                     if words else [np.nan])  # fmt: skip
    return None if np.isnan(found).any() else found


def _to_mm(path: Path, text: str | None, count: int, used: Sequence[int], key: str, space: str,
           notes: list[str]) -> NDArray[np.float64]:  # fmt: skip
    """Factors of units such as ``"mm" "mm" "mm"``; of the patient's spaces mm are the default."""
    words = [""] * count
    if text is not None:
        words = [" ".join((a or b).lower().split())
                 for a, b in re.findall(r'"([^"]*)"|([^\s"]+)', text)]
        if len(words) != count:
            raise FormatError.about(path, f'want {count} such as "mm", got {len(words)}', key)
    words = [words[axis] for axis in used]
    for word in words:
        if word not in LENGTHS_MM and word not in UNKNOWN:
            problem = f'want a unit of length such as "mm", got {quoted(word)}'
            raise FormatError.about(path, problem, key)
    if any(word in UNKNOWN for word in words) and (text is not None or space not in PATIENT):
        notes.append("the unit of length is not given and was taken as mm")
    return np.array([LENGTHS_MM.get(word, 1.0) for word in words])
