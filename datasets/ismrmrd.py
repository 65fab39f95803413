"""Reading ISMRMRD raw data (MRD version 1): an XML header and a list of acquisitions in HDF5.

An acquisition is one readout of all channels with its counters and flags. The layout is that of
the ISMRMRD library and its XML schema: https://ismrmrd.readthedocs.io.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.errors import FormatError, StrPath
from recon.datasets.hdf5 import opened, reading
from recon.datasets.hdf5_heaps import check_one
from recon.datasets.ismrmrd_acquisitions import (
    CALIBRATION,
    NOISE,
    NOT_IMAGING,
    REVERSED,
    Heads,
    choose_group,
    flagged,
    imaging_lines,
    inner_dataset,
    read_samples,
)
from recon.datasets.ismrmrd_header import Encoding, MRDHeader, parse_mrd_header
from recon.datasets.scan import Layout, Scan, check_finite, select

CHOICES = ("contrast", "phase", "repetition", "set", "average")
COMPRESSED = (53, 54, 55, 56)
# Siemens' converter keeps the centre line and partition in two of the user counters.
USER_COUNTERS = (0, 1, 2, 3, 4, 7)
MOST_ACCELERATED = 100  # beyond this the matrix is wrong, and would fill the memory with zeros
LEAST_ECHO = 8  # likewise: even an echo at its edge needs half of the readout

Places = NDArray[np.int64]


class _Lines(NamedTuple):
    """Acquisitions that make up the k-space, and where each belongs."""

    number: Places
    slice: Places
    column: Places
    top: Places
    bottom: Places
    """Rows ``[top, bottom)`` take the samples kept."""


def read_ismrmrd(path: StrPath, slices: slice | None = None, group: str | None = None,
                 only: Mapping[str, int] | None = None) -> Scan:  # fmt: skip
    """Read Cartesian multi-slice k-space from ISMRMRD acquisitions.

    Lines go to column ``kspace_encode_step_1 + W // 2 - centre``, samples to the rows that put
    ``center_sample`` at ``H // 2``; lines measured several times are averaged. Oversampling of the
    readout is removed (centred inverse FFT, crop, FFT, all orthonormal) where the header's fields
    of view show it and no sample of the lines is missing. Lines for parallel calibration alone are
    used where the header's calibration mode is ``embedded``, ``interleaved`` or not given and they
    lie between the imaging lines. Values are as stored: Siemens' transform has the other sign, so
    images of its converted data come out turned by 180 degrees.

    ``noise_covariance`` is ``sum n n^H / N`` over the noise scan, times its dwell time over that of
    the imaging lines, over the header's ``relativeReceiverNoiseBandwidth`` (Kellman and McVeigh
    2005, doi 10.1002/mrm.20713), over the number of averages.

    ``group`` defaults to the last of ``dataset``, ``dataset_1``, ... with imaging lines. ``only``
    chooses one contrast, phase, repetition, set or average, as in ``{"repetition": 0}``.

    Raises
    ------
    FormatError
        The file is damaged or not in this layout, is 3-D or not Cartesian, holds several images of
        a slice and ``only`` does not choose, its slices differ in sampling, or its k-space holds
        NaN or infinity.
    """
    path = Path(path)
    notes: list[str] = []
    with opened(path) as file:
        name, data, heads = choose_group(file, path, group, notes)
        xml, key = f"{name}/xml", f"{name}/data"
        found = inner_dataset(file, path, xml)
        with reading(path, xml):
            check_one(path, xml, found)
            text = np.asarray(found[()])
        header = parse_mrd_header(path, xml, text, notes)
        used, encoding = _used(path, key, heads, header, only or {}, notes)
        numbers = np.unique(heads["slice"][used])
        _note_slices(encoding, numbers, notes)
        chosen = select(slices, len(numbers))
        used = used[np.isin(heads["slice"][used], numbers[chosen])]
        _check_repeats(path, key, heads, used)
        lines = _place(path, key, heads, used, encoding, notes)
        measured, least = _measured(path, key, lines, encoding, notes)
        whole = bool(measured[:, measured.any(0)].all())
        size = encoding.without_oversampling
        if size is not None and not whole:
            notes.append("the readouts are not whole: their oversampling is left in")
            size = None
        kspace = torch.stack([
            _assemble(path, key, data, heads, lines, number, encoding, size)
            for number in numbers[chosen]
        ])  # fmt: skip
        check_finite(path, key, kspace, chosen)
        covariance = _noise_covariance(path, key, data, heads, used, header, least, notes)
    # an FFT along the readout may leave -0 between the lines
    mask = torch.from_numpy(measured.any(0) if whole else measured)
    kspace.masked_fill_(~mask, 0)
    crop = _crop(encoding, (kspace.shape[-2], kspace.shape[-1]), notes)
    attributes = header.attributes | encoding.attributes()
    if notes:
        attributes["note"] = "; ".join(notes)
    sampled = None if bool(mask.all()) else mask
    return Scan(kspace, sampled, None, None, crop, attributes, path.name, "ismrmrd", covariance)


def layout_ismrmrd(path: StrPath) -> Layout:
    """The arrays of an ISMRMRD file, and the number of slices of what is read by default."""
    import h5py

    path = Path(path)
    keys: dict[str, dict[str, Any]] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            told = "records" if item.dtype.names else str(item.dtype)
            keys[name] = {"shape": tuple(item.shape or ()), "dtype": told}

    with opened(path) as file:
        with reading(path, "its table of contents"):
            file.visititems(visit)
        _, _, heads = choose_group(file, path, None, [])
    return Layout("ismrmrd", len(np.unique(heads["slice"][imaging_lines(heads)])), keys)


def _used(path: Path, key: str, heads: Heads, header: MRDHeader, only: Mapping[str, int],
          notes: list[str]) -> tuple[Places, Encoding]:  # fmt: skip
    """Numbers of the acquisitions to use: of one encoding, one image a slice."""
    imaging = imaging_lines(heads)
    calibration = flagged(heads, CALIBRATION) & ~flagged(heads, *NOT_IMAGING)
    for kind in dict.fromkeys(NOT_IMAGING.values()):
        count = int(flagged(heads, *(b for b, told in NOT_IMAGING.items() if told == kind)).sum())
        if count and kind != "noise":
            notes.append(f"{count} acquisitions of {kind} left out")
    for name, value in only.items():
        if name not in CHOICES:
            raise ValueError(f"only: want {', '.join(CHOICES)}, got {name!r}")
        there = np.unique(heads[name][imaging])
        if value not in there:
            raise ValueError(f"only: no {name} {value} here, there is {_list(there)}")
        imaging &= heads[name] == value
        calibration &= heads[name] == value
    for name in CHOICES[:-1]:
        there = np.unique(heads[name][imaging])
        if len(there) > 1:
            raise FormatError.about(
                path,
                f"{len(there)} values of {name} ({_list(there)}): choose one, "
                f'read_ismrmrd(path, only={{"{name}": {there[0]}}})',
                key,
            )
    spaces = np.unique(heads["encoding_space_ref"][imaging])
    known = len(header.encodings)
    if len(spaces) > 1 or spaces[0] >= known:
        problem = (f"imaging lines of {len(spaces)} encodings ({_list(spaces)}): want one of the "
                   f"{known} in the header, counted from 0")  # fmt: skip
        raise FormatError.about(path, problem, key)
    encoding = header.encodings[spaces[0]]
    _check_cartesian(path, key, heads, imaging, encoding, notes)
    for name, told in (("active_channels", "channels"), ("number_of_samples", "samples")):
        there = np.unique(heads[name][imaging])
        if len(there) > 1 or there[0] < 1:
            problem = f"want as many {told} in every imaging line, got {_list(there)}"
            raise FormatError.about(path, problem, key)
    fitting = _fitting_calibration(heads, imaging, calibration, encoding, notes)
    return np.nonzero(imaging | fitting)[0], encoding


def _list(values: NDArray[Any]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def _check_cartesian(path: Path, key: str, heads: Heads, imaging: NDArray[np.bool_],
                     encoding: Encoding, notes: list[str]) -> None:  # fmt: skip
    stored = bool(heads["trajectory_dimensions"][imaging].any())
    if encoding.trajectory not in ("cartesian", None):
        problem = f"the trajectory is {encoding.trajectory!r}, only cartesian is read"
        raise FormatError.about(path, problem, key)
    if stored and encoding.trajectory is None:
        problem = "lines with k-space coordinates, and the header names no trajectory"
        raise FormatError.about(path, problem, key)
    if stored:
        notes.append("the header says cartesian: k-space coordinates of the lines not read")
    steps, partitions = heads["kspace_encode_step_2"][imaging], encoding.encoded.size[2]
    if partitions > 1 or bool(steps.any()):
        problem = (f"3-D encoding is not read, want 2-D slices: {partitions} partitions in the "
                   f"header, kspace_encode_step_2 up to {steps.max()}")  # fmt: skip
        raise FormatError.about(path, problem, key)
    if bool((flagged(heads, *COMPRESSED) & imaging).any()):
        raise FormatError.about(path, "compressed samples are not read: store them plain", key)


def _fitting_calibration(heads: Heads, imaging: NDArray[np.bool_], calibration: NDArray[np.bool_],
                         encoding: Encoding, notes: list[str]) -> NDArray[np.bool_]:  # fmt: skip
    """The lines measured for calibration alone, if they continue the imaging lines.

    A calibration scan of its own, maybe of another contrast, must not be mixed in. It shows by the
    header, by its encoding or readout, or by repeating imaging lines.
    """
    if not calibration.any():
        return calibration
    alike = np.isin(heads["slice"], heads["slice"][imaging]) & (heads["kspace_encode_step_2"] == 0)
    for name in ("encoding_space_ref", "active_channels", "number_of_samples", "sample_time_us",
                 *CHOICES[:-1]):  # fmt: skip
        alike &= heads[name] == heads[name][imaging][0]
    line = heads["slice"] << 16 | heads["kspace_encode_step_1"]
    if encoding.calibration not in ("embedded", "interleaved", None):
        why = f"the header calls it {encoding.calibration!r}"
    elif not alike[calibration].all():
        why = "of another encoding, readout or slice"
    elif np.isin(line[calibration], line[imaging]).any():
        why = "they repeat imaging lines, so are a scan of their own"
    else:
        notes.append(f"{int(calibration.sum())} lines of parallel calibration used as data")
        return calibration
    notes.append(f"{int(calibration.sum())} lines of parallel calibration left out: {why}")
    return np.zeros_like(calibration)


def _note_slices(encoding: Encoding, numbers: Places, notes: list[str]) -> None:
    expected = max(encoding.slices, int(numbers[-1]) + 1)
    if len(numbers) < expected:
        notes.append(f"{len(numbers)} of {expected} slices are there: {_list(numbers)}")


def _check_repeats(path: Path, key: str, heads: Heads, used: Places) -> None:
    """Refuse to average what only the sequence's own counters tell apart."""
    known = np.stack([heads[name][used] for name in ("slice", "kspace_encode_step_1", "average")])
    every = np.concatenate([known, heads["user"][used][:, USER_COUNTERS].T])
    if np.unique(every, axis=1).shape[1] > np.unique(known, axis=1).shape[1]:
        problem = "lines repeat with other user counters: whether to average them is not known"
        raise FormatError.about(path, problem, key)


def _place(path: Path, key: str, heads: Heads, used: Places, encoding: Encoding,
           notes: list[str]) -> _Lines:  # fmt: skip
    """Where each acquisition belongs in the encoded matrix."""
    height, width, _ = encoding.encoded.size
    if encoding.centre is None:
        notes.append(f"the header gives no centre line: {width // 2} was taken")
    centre = width // 2 if encoding.centre is None else encoding.centre
    column = heads["kspace_encode_step_1"][used] + width // 2 - centre
    samples, echo = heads["number_of_samples"][used], heads["center_sample"][used]
    before, after = heads["discard_pre"][used], heads["discard_post"][used]
    reverse = flagged(heads, REVERSED)[used]
    kept = samples - before - after
    top = height // 2 - echo + np.where(reverse, after, before)
    for wrong, problem in (
        # Counted before or after turning it round: the specification does not say.
        (reverse & (echo != samples // 2), "reversed with its echo off the middle: ambiguous"),
        (kept < 1, "every sample is discarded"),
        (echo >= samples, "its echo lies outside its samples"),
        ((column < 0) | (column >= width), f"a line outside the header's {width}"),
        ((top < 0) | (top + kept > height),
         f"center_sample puts some outside the header's {height}"),
    ):  # fmt: skip
        if wrong.any():
            raise FormatError.about(path, f"acquisition {used[wrong][0]}: {problem}", key)
    count = len(np.unique(column))
    if height > LEAST_ECHO * samples[0] or width > MOST_ACCELERATED * count:
        problem = (f"{count} lines of {samples[0]} samples for a matrix of {height} x {width}: "
                   "the header is not that of this data")  # fmt: skip
        raise FormatError.about(path, problem, key)
    size = encoding.without_oversampling
    if size is not None and bool(((kept == size) & (top == height // 2 - size // 2)).all()):
        problem = (f"readouts of {size} samples, but the header's encoded x is {height}: if their "
                   "oversampling was removed, let encodedSpace say so")  # fmt: skip
        raise FormatError.about(path, problem, key)
    return _Lines(used, heads["slice"][used], column, top, top + kept)


def _counts(lines: _Lines, number: int, encoding: Encoding) -> NDArray[np.int32]:
    """How often each point of a slice was measured, ``(W, H)``."""
    height, width, _ = encoding.encoded.size
    counts = np.zeros((width, height), np.int32)
    for i in np.nonzero(lines.slice == number)[0]:
        counts[lines.column[i], lines.top[i] : lines.bottom[i]] += 1
    return counts


def _measured(path: Path, key: str, lines: _Lines, encoding: Encoding,
              notes: list[str]) -> tuple[NDArray[np.bool_], int]:  # fmt: skip
    """Points ``(H, W)`` measured in every slice, and how often those measured least were."""
    numbers = np.unique(lines.slice)
    first = _counts(lines, numbers[0], encoding) > 0
    least, most = len(lines.slice), 0
    for number in numbers:
        counts = _counts(lines, number, encoding)
        if not np.array_equal(first, counts > 0):
            problem = (f"slice {number} was sampled otherwise than slice {numbers[0]}: read them "
                       "apart, as in slices=slice(0, 1)")  # fmt: skip
            raise FormatError.about(path, problem, key)
        least, most = min(least, int(counts[first].min())), max(most, int(counts.max()))
    if most > 1:
        times = f"{most}" if least == most else f"{least} to {most}"
        notes.append(f"lines were measured {times} times and averaged")
    return first.T, least


def _assemble(path: Path, key: str, data: Any, heads: Heads, lines: _Lines, number: int,
              encoding: Encoding, size: int | None) -> Tensor:  # fmt: skip
    """k-space ``(coils, H, W)`` of one slice, H being ``size`` if that is given."""
    mine = np.nonzero(lines.slice == number)[0]
    height, width, _ = encoding.encoded.size
    coils = int(heads["active_channels"][lines.number[0]])
    total = np.zeros((width, coils, height), np.complex64)
    samples = read_samples(path, key, data, heads, lines.number[mine])
    with np.errstate(over="ignore", invalid="ignore"):  # check_finite names the slice
        for i, values in zip(mine, samples, strict=True):
            total[lines.column[i], :, lines.top[i] : lines.bottom[i]] += values
        total /= np.maximum(_counts(lines, number, encoding), 1)[:, None]
    kspace = torch.from_numpy(total).permute(1, 2, 0)
    return (kspace if size is None else _without_oversampling(kspace, size)).contiguous()


def _without_oversampling(kspace: Tensor, size: int) -> Tensor:
    """Cut the field of view along H to its middle, pixel ``n // 2`` staying there."""
    image = torch.fft.ifft(torch.fft.ifftshift(kspace, dim=-2), dim=-2, norm="ortho")
    start = image.shape[-2] // 2 - size // 2
    image = torch.fft.fftshift(image, dim=-2)[..., start : start + size, :]
    image = torch.fft.fft(torch.fft.ifftshift(image, dim=-2), dim=-2, norm="ortho")
    return torch.fft.fftshift(image, dim=-2)


def _crop(encoding: Encoding, size: tuple[int, int], notes: list[str]) -> tuple[int, int]:
    """The image's field of view in pixels of the k-space."""
    crop = []
    for axis, available in enumerate(size):
        want, pixels = encoding.recon.size[axis], encoding.pixels(axis)
        if pixels is None:
            pixels = want
            notes.append(f"no field of view: {'xy'[axis]} is cut to the header's {want} pixels")
        if pixels != want or pixels > available:
            notes.append(f"the header's image has {want} pixels along {'xy'[axis]}, the k-space "
                         f"gives {min(pixels, available)}: not interpolated")  # fmt: skip
        crop.append(min(pixels, available))
    return crop[0], crop[1]


def _noise_covariance(path: Path, key: str, data: Any, heads: Heads, used: Places,
                      header: MRDHeader, averages: int,
                      notes: list[str]) -> Tensor | None:  # fmt: skip
    """``E[n n^H]`` of the lines that were measured least often, ``(coils, coils)``."""
    noise = np.nonzero(flagged(heads, NOISE))[0]
    if not len(noise):
        return None
    coils = int(heads["active_channels"][used[0]])
    channels, imaging = heads["active_channels"][noise], np.unique(heads["sample_time_us"][used])
    left_out = f"{len(noise)} acquisitions of noise left out: "
    for wrong, why in (
        (bool((channels != coils).any()),
         f"they have {_list(np.unique(channels))} channels, the imaging lines {coils}"),
        (bool(flagged(heads, *COMPRESSED)[noise].any()), "compressed"),
        (len(imaging) > 1, "the imaging lines have several dwell times"),
    ):  # fmt: skip
        if wrong:
            notes.append(left_out + why)
            return None
    dwell = heads["sample_time_us"][noise]
    known = bool((dwell != 0).all() and imaging[0] != 0)
    with np.errstate(all="ignore"):
        ratios = dwell / imaging[0] if known else np.ones_like(dwell)
    if not bool(((ratios > 1e-3) & (ratios < 1e3)).all()):  # also NaN
        problem = f"dwell times of {dwell[0]:g} us for noise and {imaging[0]:g} us for imaging"
        raise FormatError.about(path, problem, key)
    total, count = np.zeros((coils, coils), np.complex128), 0
    for ratio, values in zip(ratios, read_samples(path, key, data, heads, noise), strict=True):
        with np.errstate(all="ignore"):  # damaged samples: what is not finite is refused below
            wide = values.astype(np.complex128)
            total += ratio * (wide @ wide.conj().T)
        count += wide.shape[1]
    if count < coils:
        notes.append(f"{left_out}{count} samples are too few for {coils} channels")
        return None
    covariance = torch.from_numpy(total / (count * header.noise_bandwidth * averages))
    covariance = covariance.to(torch.complex64)
    if not bool(torch.view_as_real(covariance).isfinite().all()):
        raise FormatError.about(path, "the noise scan holds NaN, infinity or too much", key)
    scale = float(ratios.mean()) / header.noise_bandwidth / averages
    notes.append(f"noise covariance from {count} samples"
                 + ("" if known else ", dwell times not given and taken as equal")
                 + ("" if scale == 1 else f", times {scale:.4g} for dwell time, bandwidth and "
                    "averages"))  # fmt: skip
    return covariance
