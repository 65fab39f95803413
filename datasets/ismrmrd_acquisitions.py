"""Acquisitions of an ISMRMRD file: which group holds them, their headers, their samples."""

import re
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.datasets.errors import FormatError
from recon.datasets.hdf5 import reading
from recon.datasets.hdf5_heaps import REFERENCE, check_heaps

NOISE, CALIBRATION, REVERSED = 19, 20, 22
NOT_IMAGING = {
    NOISE: "noise",
    23: "navigator",
    24: "phase correction",
    26: "feedback",
    27: "dummy",
    28: "feedback",
    29: "surface coil correction",
    30: "phase stabilisation",
    31: "phase stabilisation",
}
HEAD = ("flags", "number_of_samples", "active_channels", "discard_pre", "discard_post",
        "center_sample", "encoding_space_ref", "trajectory_dimensions")  # fmt: skip
COUNTERS = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", "contrast", "phase",
            "repetition", "set", "average")  # fmt: skip
READ_AT_ONCE = 256

Heads = dict[str, NDArray[Any]]
"""The fields ``HEAD`` and ``COUNTERS`` (int64), ``user`` ``(n, 8)`` and ``sample_time_us``.

``length`` and ``heaps``, where they are known, say how many numbers an acquisition has, and where
in the file they lie.
"""


def is_ismrmrd(file: Any) -> bool:
    """Whether an open HDF5 file has ISMRMRD's layout: a group with ``xml`` or acquisitions."""
    try:
        return bool(_groups(file))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return False  # damaged: the reader that is tried next says where


def flagged(heads: Heads, *bits: int) -> NDArray[np.bool_]:
    """Which acquisitions carry one of these flags; flag n is bit n - 1."""
    wanted = sum(1 << (bit - 1) for bit in bits)
    found: NDArray[np.bool_] = (heads["flags"] & wanted) != 0
    return found


def imaging_lines(heads: Heads) -> NDArray[np.bool_]:
    return ~flagged(heads, *NOT_IMAGING, CALIBRATION)


def _groups(file: Any) -> list[str]:
    """Groups with a header or acquisitions; ``dataset_2`` before ``dataset_10``."""
    import h5py

    found = []
    for name in file:
        item = file[name] if _is_here(file, name) else None
        if isinstance(item, h5py.Group) and (_is_here(item, "xml") or _has_acquisitions(item)):
            found.append(name)
    return sorted(found, key=lambda name: [(len(w), w) if w.isdigit() else (0, w)
                                           for w in re.split("([0-9]+)", name)])  # fmt: skip


def _is_here(group: Any, name: str) -> bool:
    """Not behind another kind of link, which may lead to other files of the machine."""
    import h5py

    return isinstance(group.get(name, getlink=True), h5py.HardLink)


def _has_acquisitions(group: Any) -> bool:
    import h5py

    data = group["data"] if _is_here(group, "data") else None
    return isinstance(data, h5py.Dataset) and "head" in (data.dtype.names or ())


def choose_group(file: Any, path: Path, group: str | None,
                 notes: list[str]) -> tuple[str, Any, Heads]:  # fmt: skip
    """The group to read, its acquisitions, and their headers.

    Without ``group`` it is the last that holds imaging lines: converters put noise and adjustment
    scans before the one they belong to.
    """
    import h5py

    with reading(path, "its table of contents"):
        names = _groups(file)
        there = ", ".join(sorted(str(name) for name in file)) or "nothing"
        if group is not None:
            found = file.get(group)
            if not isinstance(found, h5py.Group) or found.file.filename != file.filename:
                raise FormatError.about(path, f"no such group; the file holds {there}", group)
            names = [group.strip("/")]
        if not names and "kspace" in file:
            raise FormatError.about(path, "a fastMRI file, not ISMRMRD: use read_fastmri")
        if not names:
            problem = f"no group with `xml` and `data`, so not ISMRMRD; the file holds {there}"
            raise FormatError.about(path, problem)
        contents = {name: sorted(str(key) for key in file[name]) for name in names}
    with_data = [name for name in names if "data" in contents[name]]
    if not with_data:
        inside = ", ".join(contents[names[-1]]) or "nothing"
        problem = f"no acquisitions (`data`) but {inside}: reconstructed images, or an empty scan"
        raise FormatError.about(path, problem, names[-1])
    passed = []
    for name in reversed(with_data):
        data = inner_dataset(file, path, f"{name}/data")
        heads = _read_heads(path, f"{name}/data", data)
        if bool(imaging_lines(heads).any()):
            others = [n for n in with_data if n != name]
            if others:
                notes.append(f"group {name} was read, not {', '.join(others)}")
            rest = [key for key in contents[name] if key not in ("data", "xml")]
            if rest:
                notes.append(f"{', '.join(rest)} in {name} not read")
            return name, data, heads
        passed.append(f"{name} has {_told(heads)}")
    raise FormatError.about(path, f"no imaging lines: {'; '.join(passed)}")


def _told(heads: Heads) -> str:
    """What acquisitions are that are no imaging lines."""
    kinds: dict[str, int] = {}
    rest = np.ones(len(heads["flags"]), dtype=bool)
    for bit, kind in (*NOT_IMAGING.items(), (CALIBRATION, "parallel calibration")):
        count = int((rest & flagged(heads, bit)).sum())
        rest &= ~flagged(heads, bit)
        if count:
            kinds[kind] = kinds.get(kind, 0) + count
    return ", ".join(f"{count} of {kind}" for kind, count in kinds.items()) or "no acquisitions"


def inner_dataset(file: Any, path: Path, key: str) -> Any:
    """A dataset whose values lie in this file."""
    import h5py

    with reading(path, key):
        if not _is_here(file, key):
            raise FormatError.about(path, "missing, or a link to be replaced by a copy", key)
        found = file[key]
        if not isinstance(found, h5py.Dataset):
            raise FormatError.about(path, "want an array, got a group", key)
        if found.is_virtual or found.external or found.file.filename != file.filename:
            raise FormatError.about(path, "its values lie in other files: copy them in", key)
    return found


def _read_heads(path: Path, key: str, data: Any) -> Heads:
    import h5py

    with reading(path, key):
        shape, dtype = data.shape, data.dtype
        if not {"head", "data"} <= set(dtype.names or ()):
            problem = f"want acquisitions, got values of {str(dtype)[:60]}: not raw data"
            raise FormatError.about(path, problem, key)
        if len(shape) != 1:
            raise FormatError.about(path, f"want one axis of acquisitions, got shape {shape}", key)
        if shape[0] * 16 > path.stat().st_size:  # the reference to its samples takes 16 bytes
            problem = f"promises {shape[0]} acquisitions, more than the file holds: it is damaged"
            raise FormatError.about(path, problem, key)
        if h5py.check_vlen_dtype(dtype["data"]) != np.dtype("<f4"):  # h5py misreads lists of ">f4"
            problem = "want lists of little-endian float32"
            raise FormatError.about(path, problem, f"{key}: data")
        head = dtype["head"]
        _check_fields(path, f"{key}: head", head, HEAD)
        _check_fields(path, f"{key}: head", head, ("sample_time_us",), "f")
        _check_fields(path, f"{key}: head", head, ("idx",), "V")
        _check_fields(path, f"{key}: head/idx", head["idx"], (*COUNTERS, "user"))
        if head["idx"]["user"].shape != (8,):
            raise FormatError.about(path, "want eight numbers", f"{key}: head/idx/user")
        rows = _unpacked(path, data)
        if rows is None:
            return _columns(data.fields(["head"])[:]["head"])
        heads = _columns(rows["head"])
        base = np.uint64(data.file.userblock_size)
        heads["length"] = rows["data"]["length"].astype(np.int64)
        members = [rows[name] for name in data.dtype.names if name != "head"]
        heads["heaps"] = np.stack([np.where(m["length"] > 0, m["address"] + base, 0)
                                   for m in members], axis=1)  # fmt: skip
        return heads


def _columns(head: NDArray[Any]) -> Heads:
    heads: Heads = {name: head[name].astype(np.int64) for name in HEAD}
    heads |= {name: head["idx"][name].astype(np.int64) for name in (*COUNTERS, "user")}
    heads["sample_time_us"] = head["sample_time_us"].astype(np.float64)
    return heads


def _unpacked(path: Path, data: Any) -> NDArray[Any] | None:
    """Heads and references to samples as they stand in the file; None if that is compressed.

    Asked for heads alone, the HDF5 library would read all samples as well.
    """
    kind, names = data.id.get_type(), data.dtype.names
    formats = [data.dtype["head"] if name == "head" else REFERENCE for name in names]
    sizes = [kind.get_member_type(i).get_size() for i in range(len(names))]
    if (
        data.chunks is None
        or data.id.get_create_plist().get_nfilters() > 0
        or data.file.id.get_create_plist().get_sizes()[0] != 8
        or sizes != [f.itemsize for f in formats]
    ):
        return None
    offsets = [kind.get_member_offset(i) for i in range(len(names))]
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets,
                      "itemsize": kind.get_size()})  # fmt: skip
    places = [0] * -(-len(data) // data.chunks[0])

    def place(chunk: Any) -> None:
        if chunk.chunk_offset[0] < len(data):
            places[chunk.chunk_offset[0] // data.chunks[0]] = chunk.byte_offset

    data.id.chunk_iter(place)
    size = data.chunks[0] * dtype.itemsize
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as whole:
        raw = b"".join(whole[start : start + size] for start in places if start > 0)
    return np.frombuffer(raw, dtype, len(data))


def _check_fields(path: Path, key: str, dtype: np.dtype[Any], names: tuple[str, ...],
                  kind: str = "u") -> None:  # fmt: skip
    for name in names:
        if name not in (dtype.names or ()):
            raise FormatError.about(path, f"no field {name}: not version 1 of ISMRMRD", key)
        if dtype[name].base.kind != kind:
            told = {"u": "unsigned numbers", "f": "a float", "V": "counters"}[kind]
            raise FormatError.about(path, f"want {told}, got {dtype[name]}", f"{key}/{name}")


def read_samples(path: Path, key: str, data: Any, heads: Heads,
                 numbers: NDArray[np.int64]) -> Iterator[NDArray[np.complex64]]:  # fmt: skip
    """Samples ``(channels, samples)`` of acquisitions in rising order, discarded ones cut off.

    Reversed readouts come turned forwards.
    """
    for start in range(0, len(numbers), READ_AT_ONCE):
        block = numbers[start : start + READ_AT_ONCE]
        gapless = block[-1] - block[0] + 1 == len(block)
        if "heaps" in heads:
            _check_lengths(path, key, heads, block, heads["length"][block])
            check_heaps(path, key, heads["heaps"][block])
        with reading(path, key):
            rows = data.fields("data")[slice(block[0], block[-1] + 1) if gapless else block]
        _check_lengths(path, key, heads, block, np.array([len(row) for row in rows]))
        for number, row in zip(block, rows, strict=True):
            channels = int(heads["active_channels"][number])
            samples = int(heads["number_of_samples"][number])
            values = np.ascontiguousarray(row, "<f4").view(np.complex64).reshape(channels, samples)
            values = values[:, heads["discard_pre"][number] :
                            max(0, samples - heads["discard_post"][number])]  # fmt: skip
            yield values[:, ::-1] if flagged(heads, REVERSED)[number] else values


def _check_lengths(path: Path, key: str, heads: Heads, numbers: NDArray[np.int64],
                   lengths: NDArray[np.int64]) -> None:  # fmt: skip
    channels, samples = heads["active_channels"][numbers], heads["number_of_samples"][numbers]
    for i in np.nonzero(lengths != 2 * channels * samples)[0][:1]:
        problem = (f"acquisition {numbers[i]} holds {lengths[i]} numbers, its header promises "
                   f"{channels[i]} channels of {samples[i]} complex samples")  # fmt: skip
        raise FormatError.about(path, problem, key)
