"""Reading Siemens raw data (twix, ``meas_*.dat``): Cartesian 2-D scans."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets.errors import FormatError, StrPath
from recon.datasets.scan import Attributes, Layout, Scan, check_finite, select, zero_outside
from recon.datasets.twix_file import (
    PROTOCOL,
    Measurement,
    TwixFile,
    is_twix,
    open_twix,
    read_measurement,
    read_samples,
)

__all__ = ["is_twix", "layout_twix", "read_twix"]

MOST_ACCELERATED = 16  # beyond this the matrix is wrong, and would fill the memory with zeros

# Besides these the loops of a 2-D scan are lines, slices, averages and segments.
LOOPS = {"Par": "partitions", "Eco": "contrasts", "Phs": "phases", "Rep": "repetitions",
         "Set": "sets"}  # fmt: skip
NOT_IMAGE = ("RTFEEDBACK", "HPFEEDBACK", "REFPHASESTABSCAN", "PHASESTABSCAN", "PHASCOR",
             "NOISEADJSCAN", "noname60")  # fmt: skip
TRAJECTORIES = {2: "radial", 4: "spiral", 8: "propeller"}
DIMENSIONS = {1: "1-D", 4: "3-D"}
IN_PLACE = 2  # ucRefScanMode: calibration lines that are part of the image scan
# ucInversion: 4 is no inversion pulse; 1 is said to be none too, or a slice-selective one. Without
# a pulse the time is only a default.
NO_INVERSION = (1, 4)


class _Plan(NamedTuple):
    """Which readouts make up the k-space, and where each belongs."""

    used: NDArray[np.intp]
    columns: NDArray[np.int64]
    """Column of each readout used."""
    slices: NDArray[np.int64]
    """The file's counter of each slice, in the order of positions."""
    counts: NDArray[np.int64]
    """How often each column was measured, ``(slices, W)``."""
    start: int
    """Row of a readout's first sample."""
    rows: NDArray[np.bool_]
    """Which rows are measured, those of the oversampling included."""
    oversampled: bool

    @property
    def halved(self) -> bool:
        """Whether oversampling is removed: a transform along whole readouts only."""
        return self.oversampled and bool(self.rows.all())


def read_twix(path: StrPath, slices: slice | None = None) -> Scan:
    """Read the Cartesian 2-D slices of the last measurement of a Siemens raw file.

    Lines go to column ``Lin - CenterLin + W // 2``, samples to the rows that put ``CenterCol`` in
    the middle. W is the protocol's number of lines, more where the lines reach further. Averages
    are averaged. Twofold oversampling of the readout is removed (centred inverse FFT, crop, FFT,
    all orthonormal), unless the echo is asymmetric: then ``mask`` is ``(H, W)``. Slices are in the
    order of their positions along the slice normal. Values are the complex conjugates of those
    stored, because Siemens' transform to the image is the FFT: so rows and columns of the image run
    along the file's directions of readout and phase encoding, and it is not turned by 180 degrees.

    ``noise_covariance`` comes from the noise adjustment, treated alike: without oversampling,
    conjugated, times its dwell time over that of the scan, over the number of averages.

    Raises
    ------
    FormatError
        The file is damaged or not in this layout; it is 3-D, EPI, not Cartesian or simultaneous
        multi-slice; it holds several images of a slice; its slices differ in sampling, or its
        k-space holds NaN or infinity.
    ImportError
        twixtools is not installed.
    """
    file = open_twix(path)
    scan = read_measurement(file, file.spans[-1])
    notes: list[str] = []
    plan = _planned(file, scan, notes)
    chosen = select(slices, len(plan.slices))
    kspace = _kspace(file, scan, plan, chosen)
    check_finite(file.path, "kspace", kspace, chosen)
    mask = torch.from_numpy(plan.counts[0] > 0)
    if plan.halved:
        notes.append("twofold oversampling of the readout removed")
    elif not plan.rows.all():
        mask = torch.from_numpy(plan.rows)[:, None] & mask
        left = ": its oversampling was left in" if plan.oversampled else ""
        notes.append(f"{np.count_nonzero(plan.rows)} of {len(plan.rows)} points of the readout "
                     f"measured{left}")  # fmt: skip
    kspace = zero_outside(kspace, mask, notes)  # conjugated zeros are -0
    covariance = _noise_covariance(file, scan, plan, notes)
    crop, attributes = _image(scan, plan, kspace)
    notes.append("values conjugated: Siemens' transform to the image is the FFT")
    attributes["note"] = "; ".join(notes)
    return Scan(kspace, None if bool(mask.all()) else mask, None, None, crop, attributes,
                file.path.name, "twix", covariance)  # fmt: skip


def layout_twix(path: StrPath) -> Layout:
    """Number of slices, and of image and noise the shape ``(readouts, coils, columns)``.

    All that can be checked without reading samples is, by the rules of :func:`read_twix`.
    """
    file = open_twix(path)
    scan = read_measurement(file, file.spans[-1])
    plan = _planned(file, scan, [])
    source, lines = _noise_lines(file, scan)
    keys: dict[str, dict[str, Any]] = {}
    for name, heads in (("image", scan.heads[plan.used]), ("noise", source.heads[lines])):
        if len(heads):
            shape = len(heads), int(heads["UsedChannels"][0]), int(heads["SamplesInScan"][0])
            keys[name] = {"shape": shape, "dtype": "complex64"}
    return Layout("twix", len(plan.slices), keys)


def _planned(file: TwixFile, scan: Measurement, notes: list[str]) -> _Plan:
    path = file.path
    _refuse_protocol(path, scan.protocol)
    used = _image_lines(path, scan, file.tables.flags, notes)
    heads = scan.heads[used]
    _refuse_loops(path, heads)
    for field in ("SamplesInScan", "UsedChannels", "CenterCol", "CutOff", "CenterLin"):
        there = np.unique(heads[field])
        if len(there) > 1:
            problem = f"want it alike in all image lines, got {there[0]} and {there[1]}"
            raise FormatError.about(path, problem, field)
    start, rows, oversampled = _rows(path, scan.protocol, heads[0])
    columns, width = _columns(path, scan.protocol, heads, notes)
    slices = _slice_order(heads, notes)
    promised = scan.protocol.get("slices", len(slices))
    if promised != len(slices):
        notes.append(f"{len(slices)} slices are there, the protocol promises {promised:.0f}")
    counts = np.zeros((len(slices), width), np.int64)
    np.add.at(counts, (np.argsort(slices)[heads["Counter"]["Sli"]], columns), 1)
    most, least = counts.max(), counts[counts > 0].min()
    if most > 1:
        told = f"{most}" if most == least else f"{least} to {most}"
        notes.append(f"lines are means of {told} averages")
    return _Plan(used, columns, slices, counts, start, rows, oversampled)


def _refuse_protocol(path: Path, protocol: dict[str, float]) -> None:
    """Refuse what the counters of the lines would not show, or not as plainly."""
    for name in ("base", "lines"):
        if name not in protocol:
            raise FormatError.about(path, "missing in the protocol", PROTOCOL[name])
        if not (1 <= protocol[name] <= 65535 and protocol[name] == int(protocol[name])):
            problem = f"want 1 to 65535, got {protocol[name]:g}"
            raise FormatError.about(path, problem, PROTOCOL[name])
    spread = protocol.get("phase oversampling", 0)
    if not 0 <= spread <= 10:
        problem = f"want a fraction, got {spread:g}"
        raise FormatError.about(path, problem, PROTOCOL["phase oversampling"])
    trajectory, dimension = protocol.get("trajectory", 1), protocol.get("dimension", 2)
    if trajectory != 1:
        told = TRAJECTORIES.get(int(trajectory), "not Cartesian")
        problem = f"the trajectory is {told}, only Cartesian scans are read"
        raise FormatError.about(path, problem, PROTOCOL["trajectory"])
    if dimension != 2:
        problem = f"the scan is {DIMENSIONS.get(int(dimension), 'not 2-D')}, want 2-D slices"
        raise FormatError.about(path, problem, PROTOCOL["dimension"])
    if protocol.get("bands", 1) > 1:
        problem = (f"{protocol['bands']:.0f} slices were excited at a time (simultaneous "
                   "multi-slice), which is not supported")  # fmt: skip
        raise FormatError.about(path, problem, PROTOCOL["bands"])


def _image_lines(path: Path, scan: Measurement, flags: dict[str, int],
                 notes: list[str]) -> NDArray[np.intp]:  # fmt: skip
    def flagged(*names: str) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (scan.heads["EvalInfoMask"] & sum(flags[n] for n in names)) != 0
        return found

    image = ~flagged(*NOT_IMAGE)
    calibration = image & flagged("PATREFSCAN") & ~flagged("PATREFANDIMASCAN")
    if scan.protocol.get("reference scan") == IN_PLACE:
        told = "used as data"
    else:
        told = "left out: a scan of their own"
        image &= ~calibration
    if calibration.any():
        notes.append(f"{np.count_nonzero(calibration)} lines of parallel calibration {told}")
    for name in NOT_IMAGE:
        if name != "NOISEADJSCAN" and flagged(name).any():
            count = np.count_nonzero(flagged(name))
            notes.append(f"{count} readouts with the flag {name} left out")
    if not image.any():
        problem = f"no image lines among the {len(image)} readouts of the last measurement"
        raise FormatError.about(path, problem)
    if (image & flagged("REFLECT")).any():
        problem = ("lines were read out in both directions (EPI), which needs a phase correction "
                   "and is not supported")  # fmt: skip
        raise FormatError.about(path, problem)
    if (image & flagged("RAWDATACORRECTION")).any():
        notes.append("the protocol's raw-data correction factors of the coils are not applied")
    return np.nonzero(image)[0]


def _refuse_loops(path: Path, heads: NDArray[Any]) -> None:
    """Want one image of every slice, and the same lines in each."""
    counters = heads["Counter"]
    sizes = {told: len(np.unique(counters[name])) for name, told in LOOPS.items()}
    several = [f"{size} {told}" for told, size in sizes.items() if size > 1]
    if several:
        problem = (f"holds {' and '.join(several)}, only one image of a slice is read: "
                   "write the one you want as npz or cfl")  # fmt: skip
        raise FormatError.about(path, problem)
    known = np.stack([counters[name].astype(np.int64) for name in ("Sli", "Lin", "Ave")], 1)
    rows, times = np.unique(known, axis=0, return_counts=True)
    if (times > 1).any():
        twice = rows[times > 1][0]
        again = counters[(known == twice).all(1)]
        differ = [n for n in again.dtype.names or () if len(np.unique(again[n])) > 1]
        problem = (f"line {twice[1]} of slice {twice[0]} was measured {len(again)} times, told "
                   f"apart by {', '.join(differ) or 'no counter'}: whether to average is not known")
        raise FormatError.about(path, problem)
    found = np.bincount(np.unique(known[:, :2], axis=0)[:, 0])
    lines = len(np.unique(known[:, 1]))
    if (found != lines).any():
        worst = int(np.argmin(found))
        problem = f"slice {worst} has {found[worst]} of {lines} lines: a scan that was broken off?"
        raise FormatError.about(path, problem)


def _rows(path: Path, protocol: dict[str, float],
          head: Any) -> tuple[int, NDArray[np.bool_], bool]:  # fmt: skip
    """Row of the first sample, which rows are measured, and whether they are oversampled."""
    base, samples, centre = int(protocol["base"]), int(head["SamplesInScan"]), head["CenterCol"]
    before, after = int(head["CutOff"]["Pre"]), int(head["CutOff"]["Post"])
    height = 2 * base if samples > base else base
    start = height // 2 - int(centre)
    # One side of the echo must be whole: else the oversampling is another, and so the pixel size.
    if min(start, height - start - samples) != 0 or 2 * samples <= height:
        problem = (f"want readouts of {base} samples or twice as many, or their longer part around "
                   f"the echo, got {samples} with the echo at {centre}")  # fmt: skip
        raise FormatError.about(path, problem, PROTOCOL["base"])
    rows = np.zeros(height, np.bool_)
    rows[start + before : start + max(before, samples - after)] = True
    if not rows[height // 2]:
        problem = f"leaves out the echo: {before} before, {after} after of {samples} samples"
        raise FormatError.about(path, problem, "CutOff")
    return start, rows, height > base


def _columns(path: Path, protocol: dict[str, float], heads: NDArray[Any],
             notes: list[str]) -> tuple[NDArray[np.int64], int]:  # fmt: skip
    """The column of each line, the centre line being at ``W // 2``, and W."""
    lines, centre = heads["Counter"]["Lin"].astype(np.int64), int(heads["CenterLin"][0])
    low, high = int(lines.min()) - centre, int(lines.max()) - centre
    if low > 0 or high < 0:
        problem = f"{centre} is not among lines {lines.min()} to {lines.max()}"
        raise FormatError.about(path, problem, "CenterLin")
    promised, count = int(protocol["lines"]), len(np.unique(lines))
    width = max(promised, -2 * low, 2 * high + 1)
    if width > 2 * promised or width > MOST_ACCELERATED * count:
        problem = (f"{promised} does not fit {count} lines from {-low} before to {high} after "
                   "the centre line")  # fmt: skip
        raise FormatError.about(path, problem, PROTOCOL["lines"])
    if width > promised:
        notes.append(f"{width} columns put the centre line in the middle, the protocol has "
                     f"{promised} lines")  # fmt: skip
    return lines - centre + width // 2, width


def _slice_order(heads: NDArray[Any], notes: list[str]) -> NDArray[np.int64]:
    """The counters of the slices in the order of their positions along their normal."""
    numbers, first = np.unique(heads["Counter"]["Sli"].astype(np.int64), return_index=True)
    if len(numbers) == 1:
        return numbers
    data = heads["SliceData"][first]
    with np.errstate(all="ignore"):  # NaN compares as neither parallel nor apart
        places = [data["SlicePos"][axis].astype(np.float64) for axis in ("Sag", "Cor", "Tra")]
        where, turn = np.stack(places, 1), data["Quaternion"].astype(np.float64)
        w, x, y, z = turn[0]
        normal = np.array([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)])
        depth = where @ normal
        order = np.argsort(depth, kind="stable")
        parallel = bool((np.abs(turn - turn[0]) < 1e-3).all())
        apart = bool((np.diff(depth[order]) > 1e-3).all())
    if not (parallel and apart):
        notes.append("the slices are not parallel or have no positions: they are in the order of "
                     "the file's counter")  # fmt: skip
        return numbers
    if not np.array_equal(order, numbers):
        notes.append("the slices are in the order of their positions, not of the file's counter")
    return numbers[order]


def _kspace(file: TwixFile, scan: Measurement, plan: _Plan, chosen: slice) -> Tensor:
    heads = scan.heads[plan.used]
    samples, coils = int(heads["SamplesInScan"][0]), int(heads["UsedChannels"][0])
    outside = ~plan.rows[plan.start : plan.start + samples]
    result = []
    for number in range(len(plan.slices))[chosen]:
        lines = np.zeros((plan.counts.shape[1], coils, len(plan.rows)), np.complex64)
        with np.errstate(all="ignore"):  # check_finite names the slice
            for i in np.nonzero(heads["Counter"]["Sli"] == plan.slices[number])[0]:
                values = read_samples(file, scan, plan.used[i])
                lines[plan.columns[i], :, plan.start : plan.start + samples] += values
            lines /= np.maximum(plan.counts[number], 1).astype(np.float32)[:, None, None]
        lines[..., plan.start : plan.start + samples][..., outside] = 0
        kspace = torch.from_numpy(np.conjugate(lines, out=lines))
        kspace = _without_oversampling(kspace) if plan.halved else kspace
        result.append(kspace.permute(1, 2, 0).contiguous())
    return torch.stack(result)


def _without_oversampling(lines: Tensor) -> Tensor:
    """The middle half of the field of view along the last axis, pixel ``n // 2`` staying there."""
    size = lines.shape[-1] // 2
    start = lines.shape[-1] // 2 - size // 2
    image = torch.fft.ifft(torch.fft.ifftshift(lines, dim=-1), norm="ortho")
    image = torch.fft.fftshift(image, dim=-1)[..., start : start + size]
    lines = torch.fft.fft(torch.fft.ifftshift(image, dim=-1), norm="ortho")
    return torch.fft.fftshift(lines, dim=-1)


def _noise_lines(file: TwixFile, scan: Measurement) -> tuple[Measurement, NDArray[np.intp]]:
    """The last noise adjustment, in the scan's own measurement or in one before it."""
    for i, span in enumerate(reversed(file.spans)):
        source = scan if i == 0 else read_measurement(file, span)
        noise = (source.heads["EvalInfoMask"] & file.tables.flags["NOISEADJSCAN"]) != 0
        if noise.any():
            return source, np.nonzero(noise)[0]
    return scan, np.zeros(0, np.intp)


def _noise_covariance(file: TwixFile, scan: Measurement, plan: _Plan,
                      notes: list[str]) -> Tensor | None:  # fmt: skip
    source, lines = _noise_lines(file, scan)
    if not len(lines):
        return None
    coils = int(scan.heads["UsedChannels"][plan.used[0]])
    heads = source.heads[lines]
    renamed = source.coils and scan.coils and source.coils != scan.coils
    if renamed or (heads["UsedChannels"] != coils).any() or heads["SamplesInScan"].min() < 2:
        notes.append("noise adjustment left out: its coils are not those of the scan")
        return None
    total, count = torch.zeros(coils, coils, dtype=torch.complex128), 0
    for readout in lines:
        with np.errstate(all="ignore"):  # of NaN, refused below
            values = read_samples(file, source, readout).astype(np.complex128).conj()
        samples = torch.from_numpy(values)
        samples = _without_oversampling(samples) if plan.halved else samples
        total += samples @ samples.mH
        count += samples.shape[1]
    if count < coils:
        notes.append(f"noise adjustment left out: {count} samples are too few for {coils} coils")
        return None
    averages = int(plan.counts[plan.counts > 0].min())
    ratio = 1.0
    dwell = source.protocol.get("dwell", 0), scan.protocol.get("dwell", 0)
    if source is not scan and min(dwell) > 0:
        ratio = dwell[0] / dwell[1]
        notes.append(f"noise covariance times {ratio:.4g}, the ratio of dwell times")
    else:
        notes.append("noise covariance as measured: the dwell time of the noise adjustment is not "
                     "in the file, so its scale is not known")  # fmt: skip
    covariance = (total * (ratio / (count * averages))).to(torch.complex64)
    if not bool(torch.view_as_real(covariance).isfinite().all()):
        raise FormatError.about(file.path, "holds NaN or infinity", "noise adjustment")
    return covariance


def _image(scan: Measurement, plan: _Plan,
           kspace: Tensor) -> tuple[tuple[int, int] | None, Attributes]:  # fmt: skip
    """What the finished image is cut to, and what the protocol says about it."""
    protocol, (height, width) = scan.protocol, (kspace.shape[-2], kspace.shape[-1])
    spread = 1 + protocol.get("phase oversampling", 0)
    crop = int(protocol["base"]), max(1, round(width / spread))
    found: Attributes = {
        "coils": kspace.shape[1], "slices": len(plan.slices), "encoded_x": len(plan.rows),
        "encoded_y": width, "recon_x": crop[0], "recon_y": crop[1],
    }  # fmt: skip
    for axis, fov, pixels in (("x", "readout fov", crop[0]), ("y", "phase fov", width / spread)):
        if protocol.get(fov, 0) > 0:
            found |= {f"fov_{axis}_mm": protocol[fov], f"pixel_{axis}_mm": protocol[fov] / pixels}
    for name, key, unit in (
        ("slice_thickness_mm", "thickness", 1),
        ("field_strength_T", "field", 1),
        ("repetition_time_ms", "tr", 1000),
        ("echo_time_ms", "te", 1000),
        ("inversion_time_ms", "ti", 1000),
        ("flip_angle_deg", "flip", 1),
    ):
        if key in protocol and (key != "ti" or protocol.get("inversion", 4) not in NO_INVERSION):
            found[name] = protocol[key] / unit
    if scan.sequence is not None:
        found["sequence"] = scan.sequence
    return (None if crop == (height, width) else crop), found
