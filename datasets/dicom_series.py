"""Which files of a folder make one stack of DICOM slices."""

import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from recon.datasets.dicom_geometry import (
    TOLERANCE,
    affine_of,
    coinciding,
    listed,
    missing,
    normal,
    ordered,
    orientation,
    pixel_size,
)
from recon.datasets.dicom_header import (
    PROJECTION,
    SCOUT,
    Header,
    NoSlice,
    has_signature,
    read_header,
)
from recon.datasets.errors import FormatError, StrPath, read_head

# What tells several images of one place apart, the likeliest first.
REPEATS = ("TemporalPositionIdentifier", "EchoNumbers", "ImageType", "DiffusionBValue",
           "TriggerTime", "EchoTime", "InversionTime", "FlipAngle", "KVP", "ConvolutionKernel",
           "AcquisitionNumber")  # fmt: skip
# What never takes turns within one stack. In MR the AcquisitionNumber may: odd slices, then even.
INTERLEAVED = {
    "dicom_ct": ("TemporalPositionIdentifier", "ImageType", "KVP", "AcquisitionNumber"),
    "dicom_mr": ("TemporalPositionIdentifier", "EchoNumbers", "ImageType"),
}
LISTED = 12


class Stack(NamedTuple):
    """Slices of one size and orientation at equal distances, in order of their position."""

    headers: list[Header]
    affine: Tensor | None
    """That of a :class:`Volume` of all these slices."""
    notes: list[str]


class _Choice(NamedTuple):
    label: str
    headers: list[Header]
    differs: list[str]
    """What tells it from the other stacks of its series."""


def find_stack(path: StrPath, series: str | None = None) -> Stack:
    """The one stack of CT or MR slices in a folder (not in folders inside it), or in one file.

    Raises
    ------
    FormatError
        There is none, there are several and ``series`` is None, a file is damaged, or the slices
        are not at equal distances along their normal.
    ValueError
        ``series`` is none of those there are.
    """
    if series is not None and not isinstance(series, str):
        raise TypeError(f"series: want the series number as text, got {series!r}")
    path = Path(os.path.abspath(path))  # noqa: PTH100 - "." gets a name, and links stay
    headers, left_out = _gather(path)
    if not headers:
        raise FormatError.about(path, _nothing(path, left_out))
    headers = _choose(path, headers, series)
    notes = []
    if left_out:
        counted = sorted((what, count) for (what, _), count in left_out.items())
        notes.append("left out: " + ", ".join(f"{count} x {what}" for what, count in counted))
    if not headers[0].text("SeriesInstanceUID"):
        notes.append("no SeriesInstanceUID: files belong together by series number and geometry")
    if len(headers) > 1:
        _refuse_unplaced(headers)
        headers = ordered(headers)
    return Stack(headers, affine_of(headers, notes), notes)


def is_series(folder: Path) -> bool:
    """Whether a folder has CT or MR slices, or what was to be some: damaged, or of another form.

    Segmentations, structures, reports and scouts alone are none.
    """
    try:
        headers, left_out = _gather(folder)
    except FormatError:
        return True
    return bool(headers) or any(
        found.advice for found in left_out
        if found.what != "folder" and found not in (SCOUT, PROJECTION))


def _gather(path: Path) -> tuple[list[Header], Counter[NoSlice]]:
    left_out: Counter[NoSlice] = Counter()
    headers = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_dir():
            advice = "folders inside a folder are not searched: name one of them"
            found: Header | NoSlice = NoSlice("folder", advice)
        elif not _is_dicom(file, alone=file == path):
            found = NoSlice("file that is not DICOM")
        else:
            found = read_header(file)
        if isinstance(found, Header):
            headers.append(found)
        else:
            left_out[found] += 1
    return headers, left_out


def _is_dicom(file: Path, alone: bool) -> bool:
    """False for what may lie beside slices; refuses what was to be a slice and is damaged."""
    if not alone and (
        not file.is_file()  # a pipe, or a link that leads nowhere
        or file.name.startswith(".")
        or file.suffix.lower() in (".xml", ".html", ".htm")  # which read_head takes for a login
    ):
        return False
    if has_signature(read_head(file)):
        return True
    if alone or file.suffix.lower() in (".dcm", ".ima"):
        raise FormatError.about(file, "not a DICOM file: it does not begin as one")
    return False


def _nothing(path: Path, left_out: Counter[NoSlice]) -> str:
    if not left_out:
        return "an empty folder: want one of CT or MR slices"
    told = [f"{count} x {found.what}" + (f" ({found.advice})" if found.advice else "")
            for found, count in sorted(left_out.items())]  # fmt: skip
    if path.is_dir():
        return f"holds no CT or MR slices but {', '.join(told)}"
    return f"want a CT or MR slice, got a {told[0].removeprefix('1 x ')}"


def _choose(path: Path, headers: list[Header], series: str | None) -> list[Header]:
    choices = _choices(headers)
    if series is None and len(choices) == 1:
        return choices[0].headers
    for choice in choices:
        if choice.label == series:
            return choice.headers
    told = [_described(choice) for choice in choices[:LISTED]]
    if len(choices) > LISTED:
        told.append(f"and {len(choices) - LISTED} more")
    if series is not None:
        raise ValueError(f"{path.name}: no series {series!r}; there are {'; '.join(told)}")
    for choice in choices:  # one slice without orientation is damaged, not one more choice
        if choice.differs:
            _refuse_unplaced(choice.headers)
    mixed = {name: None for choice in choices for name in choice.differs}
    why = f", which differ in {' and '.join(mixed)}" if mixed else ""
    problem = f"holds {len(choices)} stacks of slices{why}; choose one: {'; '.join(told)}"
    raise FormatError.about(path, problem)


def _refuse_unplaced(headers: list[Header]) -> None:
    for header in headers:
        for keyword in missing(header):
            raise FormatError.about(header.path, "missing: a series cannot be ordered without",
                                    keyword)  # fmt: skip


def _described(choice: _Choice) -> str:
    first, count = choice.headers[0], len(choice.headers)
    told = [first.kind.removeprefix("dicom_").upper(), f"{count} slice{'s' if count > 1 else ''}"]
    for name in choice.differs:
        if name == "size":
            told.append(f"{first.whole('Rows')} x {first.whole('Columns')}")
        elif name == "orientation":
            across = tuple(normal(first)) if orientation(first) else ()
            told.append(f"normal {listed(across)}")
        elif name != "FrameOfReferenceUID":
            told.append(f"{name} {listed(first.values(name))}")
    return f'series="{choice.label}" ({", ".join(told)})'


def _series(header: Header) -> tuple[str, ...]:
    """What files of one series agree in; the number too, because some anonymisers empty the UID."""
    return (header.text("SeriesNumber"), header.kind, header.text("StudyInstanceUID"),
            header.text("SeriesInstanceUID"))  # fmt: skip


def _choices(headers: list[Header]) -> list[_Choice]:
    """Every stack, labelled by its series number, with ``.1``, ``.2`` behind it where not alone."""
    families: dict[tuple[str, ...], list[Header]] = {}
    for header in headers:
        families.setdefault(_series(header), []).append(header)
    found: list[_Choice] = []
    for key in sorted(families, key=lambda key: (len(key[0]), key)):
        alike = _alike(families[key])
        differs = [name for name, same in _SAME.items()
                   if not all(same(group[0], alike[0][0]) for group in alike)]  # fmt: skip
        for group in alike:
            parts, names = _separate(group)
            found += [_Choice(key[0] or "none", part, differs + names) for part in parts]
    total = Counter(choice.label for choice in found)
    seen: Counter[str] = Counter()
    choices = []
    for choice in found:
        seen[choice.label] += 1
        unique = total[choice.label] == 1
        label = choice.label if unique else f"{choice.label}.{seen[choice.label]}"
        choices.append(choice._replace(label=label))
    return choices


def _near(a: tuple[float, ...], b: tuple[float, ...], relative: float, absolute: float) -> bool:
    return len(a) == len(b) and np.allclose(a, b, rtol=relative, atol=absolute)


_SAME: dict[str, Callable[[Header, Header], bool]] = {
    "size": lambda a, b: all(a.whole(k) == b.whole(k) for k in ("Rows", "Columns")),
    "orientation": lambda a, b: _near(orientation(a), orientation(b), 0, TOLERANCE),
    "PixelSpacing": lambda a, b: _near(pixel_size(a), pixel_size(b), TOLERANCE, 0),
    "FrameOfReferenceUID": lambda a, b: a.text("FrameOfReferenceUID")
    == b.text("FrameOfReferenceUID"),
}


def _alike(headers: list[Header]) -> list[list[Header]]:
    """Slices of one size, orientation, pixel size and frame of reference; the largest first."""
    groups: list[list[Header]] = []
    for header in headers:
        for group in groups:
            if all(same(header, group[0]) for same in _SAME.values()):
                group.append(header)
                break
        else:
            groups.append([header])
    return sorted(groups, key=len, reverse=True)


def _separate(group: list[Header]) -> tuple[list[list[Header]], list[str]]:
    """Time points, echoes or acquisitions of one place apart, and the elements they differ in.

    Images that coincide are told apart by the one element that does it in the fewest parts, or by
    all together. Where none coincide, what takes turns along the stack is several stacks too:
    sorted by position they would pass for one of half the distance.
    """
    if len(group) < 2 or any(missing(header) for header in group):
        return [group], []
    group = ordered(group)
    if twins := coinciding(group):
        names = [n for n in REPEATS if any(a.values(n) != b.values(n) for a, b in twins)]
        split = [(name, _parts(group, [name])) for name in names]
        clean = [(len(parts), name) for name, parts in split if not any(map(coinciding, parts))]
        # min is the first of equals, and names go from the likeliest on
        names = [min(clean, key=lambda item: item[0])[1]] if clean else names
    else:
        kind = group[0].kind
        names = [n for n in INTERLEAVED[kind] if _takes_turns([h.values(n) for h in group])]
    return (_parts(group, names), names) if names else ([group], [])


def _takes_turns(values: list[Any]) -> bool:
    runs = [values[0]] + [b for a, b in pairwise(values) if a != b]
    return len(runs) > len(set(runs))


def _parts(group: list[Header], names: list[str]) -> list[list[Header]]:
    parts: dict[Any, list[Header]] = {}
    for header in group:
        parts.setdefault(tuple(header.values(name) for name in names), []).append(header)
    return [parts[key] for key in sorted(parts)]
