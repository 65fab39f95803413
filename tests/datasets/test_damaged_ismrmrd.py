"""ISMRMRD files that are cut short, altered, of another kind, or beyond what is read."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from recon import datasets
from recon.datasets import FormatError
from recon.datasets.ismrmrd import layout_ismrmrd, read_ismrmrd
from recon.datasets.ismrmrd_acquisitions import is_ismrmrd
from recon.datasets.write_ismrmrd import ACQUISITION_HEAD, write_ismrmrd
from tests.datasets.damaged import refusals
from tests.datasets.ismrmrd_files import (
    CALIBRATION,
    MATRIX,
    NOISE,
    PATIENT,
    PATIENT_ID,
    REVERSED,
    header,
    line,
    lines_of,
    noise,
    save,
)

KSPACE = noise(3, 2, *MATRIX)
Damage = Callable[[Path], object]


def whole(path: Path) -> None:
    save(path, [line(noise(2, 12), 0, NOISE), *lines_of(KSPACE)])


def contents(raw: bytes) -> Damage:
    return lambda path: path.write_bytes(raw)


def rewritten(change: Callable[[bytes], bytes]) -> Damage:
    """A whole file with its bytes changed."""

    def damage(path: Path) -> None:
        whole(path)
        path.write_bytes(change(path.read_bytes()))

    return damage


def text(xml: str | bytes) -> Damage:
    return lambda path: save(path, lines_of(KSPACE), xml)


def fields(at: int = 3, *flags: int, **values: Any) -> Damage:
    """A whole file, one of its lines with another header."""

    def damage(path: Path) -> None:
        lines = lines_of(KSPACE)
        lines[at] = line(torch.from_numpy(lines[at].samples), 3, *flags, **values)
        save(path, lines)

    return damage


def every(*flags: int, **values: Any) -> Damage:
    def damage(path: Path) -> None:
        lines = lines_of(KSPACE, **values)
        for head, _ in lines:
            head["flags"] = sum(1 << (flag - 1) for flag in flags)
        save(path, lines)

    return damage


def value(number: float, at: int) -> Damage:
    def damage(path: Path) -> None:
        kspace = KSPACE.clone()
        kspace[at, 1, 5, 5] = number
        save(path, lines_of(kspace))

    return damage


def typed(data: Any = None, head: np.dtype[Any] = ACQUISITION_HEAD, **members: Any) -> Damage:
    """Acquisitions of another type: without these members of the head, or with others."""
    kept = [(n, *((head[n].base, head[n].shape) if n not in members else (members[n],)))
            for n in head.names or () if members.get(n, 0) is not None]  # fmt: skip
    samples = h5py.vlen_dtype(np.float32) if data is None else data
    dtype = np.dtype([("head", np.dtype(kept)), ("data", samples)])

    def damage(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("dataset/data", (4,), dtype)
            file.create_dataset("dataset/xml", data=[header()])

    return damage


def inside(build: Callable[[Any], object]) -> Damage:
    """A whole file, something in it replaced."""

    def damage(path: Path) -> None:
        whole(path)
        with h5py.File(path, "a") as file:
            build(file)

    return damage


def replaced(key: str, **options: Any) -> Damage:
    def build(file: Any) -> None:
        del file[key]
        if "group" in options:
            file.create_group(key)
        elif options:
            file.create_dataset(key, **options)

    return inside(build)


def linked(file: Any) -> None:
    del file["dataset/xml"]
    file["dataset/xml"] = h5py.ExternalLink("other.h5", "xml")


def elsewhere(path: Path) -> None:
    """A dataset of its own kind, which lies in another file."""
    whole(path.with_name("other.h5"))
    with h5py.File(path, "w") as file:
        file["dataset/data"] = h5py.ExternalLink("other.h5", "dataset/data")
        file["dataset/xml"] = h5py.ExternalLink("other.h5", "dataset/xml")


def squeezed(path: Path) -> None:
    save(path, lines_of(KSPACE), compression="gzip", chunks=(30,))
    with h5py.File(path) as file:
        at = file["dataset/data"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[at + 20 : at + 60] = bytes(40)
    path.write_bytes(raw)


def repeated(path: Path) -> None:
    lines = lines_of(KSPACE) + lines_of(KSPACE, user=(0, 1, 0, 0, 0, 0, 0, 0))
    save(path, lines)


def coordinates(path: Path) -> None:
    save(path, lines_of(KSPACE, trajectory_dimensions=2),
         header().replace("<trajectory>cartesian</trajectory>", ""))  # fmt: skip


LAUGHS = ('<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
          "<ismrmrdHeader>&b;</ismrmrdHeader>")  # fmt: skip
SIGNALLING = np.uint32(0x7F800001).view(np.float32)  # a NaN that numpy warns of when cast
OVERSAMPLED = {"encoded_fov": (480, 200), "recon_fov": (240, 200)}

DAMAGES: list[tuple[str, Damage, str]] = [
    # the file
    ("cut short", rewritten(lambda b: b[: len(b) // 2]), "not a whole HDF5 file.*truncated"),
    ("empty", contents(b""), "the file is empty: copy or download it again"),
    ("web page", contents(b"<!DOCTYPE html><html>log in"), "a web page, not data"),
    ("Git LFS pointer", contents(b"version https://git-lfs.github.com/spec/v1\n"),
     "run `git lfs pull`"),
    ("text", contents(b"plain text"), "not a whole HDF5 file"),
    ("fastMRI", lambda p: datasets.write_fastmri(p, KSPACE), "a fastMRI file, not ISMRMRD: use "),
    ("another HDF5", replaced("dataset"), "no group with `xml` and `data`.* holds nothing"),
    ("links", elsewhere, "no group with `xml` and `data`, so not ISMRMRD; .* holds dataset"),
    # its arrays
    ("no header", replaced("dataset/xml"), "dataset/xml: missing"),
    ("header linked", inside(linked), "dataset/xml: missing, or a link to be replaced"),
    ("no data", replaced("dataset/data"), "dataset: no acquisitions .* but xml: reconstructed"),
    ("numbers for data", replaced("dataset/data", data=np.zeros(3)),
     "dataset/data: want acquisitions, got values of float64"),
    ("no acquisitions", lambda p: save(p, []), "no imaging lines: dataset has no acquisitions"),
    ("group for data", replaced("dataset/data", group=True),
     "dataset/data: want an array, got a group"),
    ("two headers", replaced("dataset/xml", data=[header()] * 2), "want one XML text, got 2"),
    ("header of numbers", replaced("dataset/xml", data=[7]), "want XML text, got int64"),
    ("no counters", typed(idx=None), "head: no field idx: not version 1 of ISMRMRD"),
    ("no flags", typed(flags=None), "head: no field flags: not version 1 of ISMRMRD"),
    ("flags in floats", typed(flags="<f8"), "head/flags: want unsigned numbers, got float64"),
    ("counters of one number", typed(idx="<u2"), "head/idx: want counters, got uint16"),
    ("dwell time in integers", typed(sample_time_us="<u2"), "head/sample_time_us: want a float"),
    ("samples in double", typed(h5py.vlen_dtype("<f8")), "data: want lists of little-endian float"),
    ("samples big-endian", typed(h5py.vlen_dtype(">f4")), "data: want lists of little-endian fl"),
    ("samples of one length", typed("<f4"), "data: want lists of little-endian float32"),
    ("a table of acquisitions", replaced("dataset/data", shape=(2, 2), dtype=[
        ("head", ACQUISITION_HEAD), ("data", h5py.vlen_dtype(np.float32))]),
     r"want one axis of acquisitions, got shape \(2, 2\)"),
    ("endless", inside(lambda f: f["dataset/data"].resize(10**9, 0)),
     "promises 1000000000 acquisitions, more than the file holds"),
    ("compressed and damaged", squeezed, "dataset/data: cannot be read, the file is damaged"),
    ("a part missing", inside(lambda f: f["dataset/data"].resize(120, 0)),
     "dataset/data: cannot be read, the file is damaged"),
    # its header
    ("no XML", text("patient: nobody"), "dataset/xml: not a readable XML header"),
    ("entities", text(LAUGHS), r"not a readable XML header \(a DOCTYPE is not allowed\)"),
    ("huge", text(header() + " " * (1 << 20)), "bytes is too large for a header"),
    ("no encoding", text(header(encodings=0)), "no encoding: the size of the k-space is not known"),
    ("no matrix", text(header().replace("matrixSize", "matrix")), "encodedSpace: no matrixSize"),
    ("matrix of 0", text(header((0, 10))), r"encodedSpace: a matrix of \(0, 10, 1\)"),
    ("matrix of text", text(header().replace("<x>12", f"<x>{PATIENT[:4]}")), "want a number, got"),
    ("matrix below 0", text(header((-12, 10))), "want a number, got '-12'"),
    ("matrix of another scan", text(header((12, 65000))),
     "10 lines of 12 samples for a matrix of 12 x 65000: the header is not that of this data"),
    ("axes swapped", text(header((10, 12))), "center_sample puts some outside the header's 10"),
    ("matrix too wide", text(header((120, 10))), "the header is not that of this data"),
    ("oversampling gone", text(header((24, 10), MATRIX, **OVERSAMPLED)),  # type: ignore[arg-type]
     "readouts of 12 samples, but the header's encoded x is 24: if their oversampling was removed"),
    ("3-D", text(header((12, 10, 8))), "3-D encoding is not read, .*: 8 partitions in the header"),
    ("radial", text(header(trajectory="radial")), "the trajectory is 'radial', only cartesian"),
    ("EPI", text(header(trajectory="epi")), "the trajectory is 'epi', only cartesian is read"),
    ("unnamed trajectory", coordinates, "k-space coordinates, and the header names no trajectory"),
    # its lines
    ("NaN", value(math.nan, 1), "dataset/data: slice 1 holds NaN or infinity"),
    ("infinity", value(math.inf, 2), "dataset/data: slice 2 holds NaN or infinity"),
    ("NaN noise", lambda p: save(p, [line(noise(2, 4) * math.nan, 0, NOISE), *lines_of(KSPACE)]),
     "the noise scan holds NaN, infinity or too much"),
    ("signalling NaN noise", lambda p: save(p, [
        line(torch.from_numpy(np.full((2, 4), SIGNALLING, np.complex64)), 0, NOISE),
        *lines_of(KSPACE)]), "the noise scan holds NaN, infinity or too much"),
    ("endless dwell time", lambda p: save(p, [line(noise(2, 4), 0, NOISE),
                                              *lines_of(KSPACE, sample_time_us=math.inf)]),
     "dwell times of 5 us for noise and inf us for imaging"),
    ("line after the last", fields(kspace_encode_step_1=10), "acquisition 3: a line outside the "),
    ("line before the first", lambda p: save(p, lines_of(KSPACE), header(centre=6)),
     "acquisition 0: a line outside the header's 10"),
    ("echo early", fields(center_sample=5), "3: center_sample puts some outside the header's 12"),
    ("echo beyond", fields(center_sample=12), "acquisition 3: its echo lies outside its samples"),
    ("all discarded", fields(discard_pre=6, discard_post=6), "3: every sample is discarded"),
    ("discarded more", fields(discard_pre=65535), "3: every sample is discarded"),
    ("reversed echo", fields(3, REVERSED, center_sample=5), "reversed with its echo off the mid"),
    ("fewer numbers", fields(number_of_samples=13), "want as many samples in every imaging line"),
    ("more channels", fields(active_channels=4), "want as many channels in every imaging line, "
     "got 2, 4"),
    ("no channels", every(active_channels=0), "want as many channels in every imaging line, got 0"),
    ("other length", every(number_of_samples=11, center_sample=5),
     "acquisition 0 holds 48 numbers, its header promises 2 channels of 11 complex samples"),
    ("3-D lines", fields(kspace_encode_step_2=2), "3-D encoding is not read, .* up to 2"),
    ("two encodings", fields(encoding_space_ref=1), r"imaging lines of 2 encodings \(0, 1\)"),
    ("unknown encoding", every(encoding_space_ref=4), r"encodings \(4\): want one of the 1 in"),
    ("compressed", every(54), "compressed samples are not read"),
    ("diffusion", repeated, "lines repeat with other user counters"),
    ("calibration alone", every(CALIBRATION), "no imaging lines: dataset has 30 of parallel calib"),
    ("noise alone", every(NOISE), "no imaging lines: dataset has 30 of noise"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "match"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damage_is_named(tmp_path: Path, damage: Damage, match: str) -> None:
    damage(tmp_path / "a.h5")
    with pytest.raises(FormatError, match=rf"^a\.h5: .*{match}") as caught:
        read_ismrmrd(tmp_path / "a.h5")
    for private in (str(tmp_path), PATIENT, PATIENT_ID):
        assert private not in str(caught.value)


def test_nothing_is_wrong_with_the_undamaged_file(tmp_path: Path) -> None:
    whole(tmp_path / "a.h5")
    scan = read_ismrmrd(tmp_path / "a.h5")
    assert torch.equal(scan.kspace, KSPACE)
    assert PATIENT not in str(scan.attributes)
    assert PATIENT_ID not in str(scan.attributes)
    with h5py.File(tmp_path / "a.h5") as file:
        assert is_ismrmrd(file)


def test_missing_file_is_not_made(tmp_path: Path) -> None:
    for read in (read_ismrmrd, layout_ismrmrd):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "a.h5")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_two_kinds_are_told_apart(tmp_path: Path) -> None:
    whole(tmp_path / "a.h5")
    datasets.write_fastmri(tmp_path / "b.h5", KSPACE)
    with pytest.raises(FormatError, match="ISMRMRD"):
        datasets.read_fastmri(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as one, h5py.File(tmp_path / "b.h5") as other:
        assert (is_ismrmrd(one), is_ismrmrd(other)) == (True, False)


@pytest.mark.parametrize("options", [{"chunks": (7,)}, {"compression": "gzip"}, {"chunks": None}])
def test_other_storage_reads_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    write_ismrmrd(tmp_path / "a.h5", KSPACE, noise=noise(2, 9))
    with h5py.File(tmp_path / "a.h5") as source:
        for userblock in (0, 512):
            path = tmp_path / f"{userblock}.h5"
            with h5py.File(path, "w", userblock_size=userblock) as file:
                file.create_dataset("dataset/data", data=source["dataset/data"][()], **options)
                file.copy(source["dataset/xml"], "dataset/xml")
            assert torch.equal(read_ismrmrd(path).kspace, KSPACE)


# Heaps: the HDF5 library would loop for ever or ask for gigabytes


def heaps(raw: bytes) -> list[int]:
    found = [at for at in range(len(raw)) if raw.startswith(b"GCOL\x01", at)]
    assert found
    return found


def free_space_of_nothing(raw: bytes) -> bytes:
    """The last object of a heap, number 0, is what is left of it."""
    damaged = bytearray(raw)
    for at in heaps(raw):
        struct.pack_into("<HHIQ", damaged, at + 16, 0, 0, 0, 0)
    return bytes(damaged)


def past_the_end(raw: bytes) -> bytes:
    damaged = bytearray(raw)
    for at in heaps(raw):
        struct.pack_into("<Q", damaged, at + 8, 1 << 40)
    return bytes(damaged)


def no_heap(raw: bytes) -> bytes:
    return raw.replace(b"GCOL", b"GOAL")


def reference(raw: bytes, size: int) -> int:
    """Where a text of this size is referred to: its length, then the place of its heap."""
    places = [struct.pack("<IQ", size, at) for at in heaps(raw)]
    (found,) = [raw.index(place) for place in places if place in raw]
    return found


def long_text(raw: bytes) -> bytes:
    at = reference(raw, len(header()))
    return raw[:at] + struct.pack("<I", 1 << 31) + raw[at + 4 :]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (free_space_of_nothing, "points to a damaged part of the file"),
        (past_the_end, "points to a damaged part of the file"),
        (no_heap, "points to a damaged part of the file"),
        (long_text, "promises more than the file holds"),
    ],
)
def test_damaged_heaps(tmp_path: Path, damage: Callable[[bytes], bytes], match: str) -> None:
    rewritten(damage)(tmp_path / "a.h5")
    with pytest.raises(FormatError, match=f"dataset/xml: {match}"):
        read_ismrmrd(tmp_path / "a.h5")


def test_damaged_heaps_of_the_samples(tmp_path: Path) -> None:
    long = noise(1, 2, 600, 4)  # too long to share the heap of the text
    save(tmp_path / "a.h5", lines_of(long), header((600, 4)))
    raw = bytearray((tmp_path / "a.h5").read_bytes())
    (text_heap,) = struct.unpack_from("<Q", raw, reference(bytes(raw), len(header((600, 4)))) + 4)
    others = [at for at in heaps(bytes(raw)) if at != text_heap]
    assert others
    for at in others:
        struct.pack_into("<HHIQ", raw, at + 16, 0, 0, 0, 0)
    (tmp_path / "a.h5").write_bytes(raw)
    with pytest.raises(FormatError, match="dataset/data: points to a damaged part of the file"):
        read_ismrmrd(tmp_path / "a.h5")


def test_random_damage_is_a_format_error_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_ismrmrd(path, noise(2, 2, 8, 6), noise=noise(2, 10), recon_size=(4, 6))
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    filled, rng, failed = np.flatnonzero(raw), np.random.default_rng(0), 0
    for _ in range(200):
        damaged = raw.copy()
        damaged[rng.choice(filled, size=3)] = rng.integers(256, size=3)
        failed += refusals(path, damaged.tobytes(), read_ismrmrd, layout_ismrmrd)
    assert failed > 60

