"""Readers under random damage: ``python -m tests.fuzz_readers SECONDS [SEED] [FOLDER]``.

Small files of every kind are damaged, byte by byte and by the rules of their format, and given to
``recognise``, ``describe`` and ``open``, whole and one slice. Found is whatever is neither a sound
result nor a ``FormatError``: other exceptions, warnings, crashes, a call of more than 10 s, more
than 300 MB for a file of kilobytes, values that are not finite or do not fit together, a file cut
short or renamed that gives other values than the whole one, and messages that name a folder or a
patient or cannot be printed. Each finding is told once, and its files are kept in FOLDER (by
default ``recon-fuzz`` where temporary files go) with the error. Pytest does not collect this: it is
for an hour at night, after a change of a reader. One process, on Linux.
"""

import faulthandler
import gzip
import io
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pydicom
import torch
from numpy.random import Generator
from torch import Tensor

from recon import datasets
from recon.datasets import FormatError, Projections, Scan, Volume
from tests.datasets import dicom_files, ismrmrd_files, nrrd_files, test_twix

CPU_SECONDS, WALL_SECONDS = 10, 60
MOST_MEGABYTES = 300
ROOM_BYTES = 2 << 30
BATCH = 400
PERSONAL = ("Roentgen", "HOSPITAL-4711", "Nachname", "ACC-0815", "18951222", "18390422", "Bertha")
KNOWN_UNITS = ("HU", "arbitrary")


class Seed(NamedTuple):
    """Whole files that belong together, and which of them is opened."""

    kind: str
    files: dict[str, bytes]
    name: str
    """The file that is opened; empty for their folder."""


class Case(NamedTuple):
    seed: Seed
    told: str
    same: bool
    """Whether a result must have the values of the whole file."""


# whole files


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def seeds(folder: Path) -> list[Seed]:
    found: list[Seed] = []

    def add(kind: str, make: Callable[[Path], object], name: str | None = None) -> None:
        place = folder / str(len(found))
        place.mkdir()
        make(place)
        files = {path.name: path.read_bytes() for path in sorted(place.iterdir())}
        found.append(Seed(kind, files, next(iter(files)) if name is None else name))

    kspace, mask = noise(2, 2, 12, 10), torch.arange(10) % 3 > 0
    add("fastmri train", lambda p: datasets.write_fastmri(p / "a.h5", kspace, recon_size=(6, 6)))
    add("fastmri test", lambda p: datasets.write_fastmri(p / "a.h5", kspace, mask=mask))
    add("fastmri single", lambda p: datasets.write_fastmri(p / "a.h5", kspace[:, 0]))
    add("fastmri chunked", lambda p: _chunked(p / "a.h5", kspace))
    lines = [*ismrmrd_files.lines_of(kspace), ismrmrd_files.line(noise(2, 16), 0, 19)]
    add("ismrmrd", lambda p: ismrmrd_files.save(p / "a.mrd", lines))
    add("ismrmrd ours", lambda p: datasets.write_ismrmrd(p / "a.h5", kspace, noise=noise(2, 20)))
    for vd in (True, False):
        blocks = test_twix.image_blocks(test_twix.noise(6, 2, 8), vd)
        add("twix", partial(lambda p, b, v: test_twix.save(p / "a.dat", b, v), b=blocks, v=vd))
    for end in ("hdr", "cfl"):
        add("bart", lambda p: datasets.write_cfl(p / "a", datasets.to_bart_axes(kspace)),
            f"a.{end}")  # fmt: skip
    add("ra", lambda p: datasets.write_ra(p / "a.ra", datasets.to_bart_axes(kspace)))
    parts: dict[str, Any] = {"kspace": kspace, "mask": mask, "maps": noise(2, 12, 10), "tr": 3.5,
             "reference": torch.ones(2, 6, 6)}  # fmt: skip
    add("npz", lambda p: datasets.write_npz(p / "a.npz", parts))
    add("npz packed", lambda p: np.savez_compressed(p / "a.npz", kspace=kspace.numpy()))
    add("npy", lambda p: np.save(p / "a.npy", kspace.numpy()))
    affine = torch.tensor([[0, 0, 2, 5], [0, 3, 0, 6], [4, 0, 0, 7], [0, 0, 0, 1.0]])
    for name in ("a.nii", "a.nii.gz"):
        add(f"nifti {name[2:]}",
            partial(lambda p, n: datasets.write_nifti(p / n, kspace[0].real, affine), n=name))
    add("nifti int16", lambda p: save_int16_nifti(p / "a.nii"))
    for encoding in ("raw", "gzip", "bzip2", "ascii"):
        add(f"nrrd {encoding}", partial(lambda p, e: save_nrrd(p / "a.nrrd", e), e=encoding))
    add("nrrd header", lambda p: save_nrrd(p / "a.nhdr", "gzip"), "a.nhdr")
    stored = np.arange(3 * 40 * 33).reshape(3, 40, 33)  # as small as JPEG 2000 allows
    for told, syntax in (("native", dicom_files.EXPLICIT), ("implicit", dicom_files.IMPLICIT),
                         ("big-endian", dicom_files.BIG_ENDIAN), ("RLE", dicom_files.RLE),
                         ("deflated", dicom_files.DEFLATED), ("JPEG-LS", dicom_files.JPEG_LS),
                         ("JPEG 2000", dicom_files.JPEG_2000)):  # fmt: skip
        add(f"dicom {told}",
            partial(lambda p, s: dicom_files.write_series(p, stored[:1], syntax=s), s=syntax))
    add("dicom series", lambda p: dicom_files.write_series(p, stored), "")
    add("dicom MR", lambda p: dicom_files.write_series(p, stored, modality="MR", bits=12), "")
    add("lodopab", _pair, "observation_test_000.hdf5")
    return found


def _chunked(path: Path, kspace: Tensor) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("kspace", data=kspace.numpy(), chunks=(1, 1, 12, 10),
                            compression="gzip", shuffle=True, fletcher32=True)  # fmt: skip
        file["mask"] = np.arange(10) % 2
        file.attrs["acquisition"] = "AXT1"


def save_int16_nifti(path: Path) -> None:
    import nibabel

    image: Any = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(2, -1000)
    nibabel.save(image, path)


def save_nrrd(path: Path, encoding: str) -> None:
    values: Any = nrrd_files.counted(3, 4, 5)
    if encoding == "ascii":
        values = b" ".join(b"%d" % number for number in values.flat)
    fields = {**nrrd_files.LPS, "sizes": "5 4 3", "kinds": "domain domain domain",
              "space units": '"mm" "mm" "mm"', "byte skip": "0", "encoding": encoding}  # fmt: skip
    apart = path.suffix == ".nhdr"
    nrrd_files.laid_out(path, values, {**fields, "data file": "a.raw.gz" if apart else None})
    head, _, data = path.read_bytes().partition(b"\n\n")
    pairs = b"\nPatientName:=Roentgen^Bertha\nHOSPITAL-4711:=Nachname"
    path.write_bytes(head + pairs + b"\n\n" + (b"" if apart else data))
    if apart:
        path.with_name("a.raw.gz").write_bytes(data)


def _pair(folder: Path) -> None:
    """Packed: what is damaged shall not be some bytes of millions."""
    for kind, shape, value in (("observation", (1, 1000, 513), 0.03),
                               ("ground_truth", (1, 362, 362), 0.5)):  # fmt: skip
        with h5py.File(folder / f"{kind}_test_000.hdf5", "w") as file:
            file.create_dataset("data", data=np.full(shape, value, np.float32), chunks=True,
                                maxshape=(128, *shape[1:]), compression="gzip")  # fmt: skip


# damage of bytes

NUMBERS = (b"0", b"-1", b"1e999", b"nan", b"inf", b"99999999999999999999", b"", b"1e5", b"0x10",
           b"1.5", b"65536", b"4294967295", b"\xd9\xa3", b"1 2", b"-0", b"2", b"256")  # fmt: skip
LENGTHS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x40000000,
           0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 40)  # fmt: skip


def _at(rng: Generator, data: bytes) -> int:
    """A place, half of the time in the first part, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 1500)
    return int(rng.integers(max(end, 1)))


def flipped(rng: Generator, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        out[_at(rng, data)] = int(rng.integers(256))
    return bytes(out)


def one_bit(rng: Generator, data: bytes) -> bytes:
    out = bytearray(data)
    out[_at(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def region(rng: Generator, data: bytes) -> tuple[int, int]:
    start = _at(rng, data)
    return start, start + int(2 ** rng.uniform(0, 10))


def zeroed(rng: Generator, data: bytes) -> bytes:
    start, stop = region(rng, data)
    fill = bytes([int(rng.choice([0, 0, 255, 32]))])
    return data[:start] + fill * len(data[start:stop]) + data[stop:]


def doubled(rng: Generator, data: bytes) -> bytes:
    start, stop = region(rng, data)
    return data[:stop] + data[start:]


def deleted(rng: Generator, data: bytes) -> bytes:
    start, stop = region(rng, data)
    return data[:start] + data[stop:]


def inserted(rng: Generator, data: bytes) -> bytes:
    start, stop = region(rng, data)
    return data[:start] + rng.bytes(stop - start) + data[start:]


def exchanged(rng: Generator, data: bytes) -> bytes:
    (a, b), start = region(rng, data), _at(rng, data)
    out = bytearray(data)
    out[start : start + len(data[a:b])] = data[a:b]
    return bytes(out)


def length(rng: Generator, data: bytes) -> bytes:
    value, size = int(rng.choice(np.array(LENGTHS, np.uint64))), int(rng.choice([2, 4, 8]))
    start = _at(rng, data) // 2 * 2
    order = "<" if rng.random() < 0.8 else ">"
    word = struct.pack(f"{order}Q", value & ((1 << 64) - 1))
    word = word[:size] if order == "<" else word[-size:]
    return data[:start] + word + data[start + size :]


def text(rng: Generator, data: bytes) -> bytes:
    """A number in a text replaced, or a word doubled or removed."""
    start = _at(rng, data)
    first = next((i for i in range(start, min(len(data), start + 4000))
                  if data[i : i + 1].isdigit()), start)  # fmt: skip
    stop = first
    while stop < len(data) and data[stop : stop + 1] in b"0123456789.+-":
        stop += 1
    new = NUMBERS[int(rng.integers(len(NUMBERS)))]
    if rng.random() < 0.2:
        new = bytes(rng.choice(list(b"<>/&;'\"=\n\t\0\xff{}[]%\x1b"), int(rng.integers(1, 4))))
    if rng.random() < 0.3:  # of the same length, so that what follows keeps its place
        new = new[: stop - first].ljust(stop - first)
    return data[:first] + new + data[stop:]


BYTES = (flipped, one_bit, zeroed, doubled, deleted, inserted, exchanged, length, length, text,
         text)  # fmt: skip


def bytes_damaged(rng: Generator, data: bytes) -> tuple[str, bytes]:
    told = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        how = BYTES[int(rng.integers(len(BYTES)))]
        data = how(rng, data) if data else data
        told.append(how.__name__)
    return "+".join(told), data


# damage by the rules of a format


def odd_array(rng: Generator, like: Any) -> Any:
    """An array of another shape, type or contents."""
    shape = list(np.shape(like))
    match int(rng.integers(8)):
        case 0:
            return np.zeros(shape, str(rng.choice(["i2", "f2", "f8", ">c8", "c16", "?", "u8"])))
        case 1:
            return np.array([["a", "bc"]], "S2") if rng.random() < 0.5 else b"text"
        case 2:
            pair = [("r", "f4"), ("i", "f4")] if rng.random() < 0.5 else [("a", "i4"), ("b", "S3")]
            return np.zeros(shape, pair)
        case 3:
            shape[int(rng.integers(len(shape))) if shape else 0 :] = [0]
            return np.zeros(shape, "c8")
        case 4:
            return np.zeros([1] * int(rng.integers(9)), "c8")
        case 5:
            bad = np.array(like, copy=True)
            if bad.size and bad.dtype.kind in "fc":
                bad.flat[int(rng.integers(bad.size))] = rng.choice([np.nan, np.inf, 1e38, -0.0])
            return bad
        case 6:
            return np.swapaxes(like, 0, -1) if np.ndim(like) else like
    return np.full(shape, rng.choice([0, 1, -1, np.nan, 1e300, 3e38]), "f8")


def in_hdf5(rng: Generator, data: bytes) -> tuple[str, bytes]:
    stream = io.BytesIO(data)
    told = "nothing"
    with h5py.File(stream, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[int(rng.integers(len(names)))]
        item = file[name]
        match int(rng.integers(7)):
            case 0:
                told = f"{name} removed"
                del file[name]
            case 1 | 2 if isinstance(item, h5py.Dataset):
                told = f"{name} odd"
                value = item[()]
                del file[name]
                vlen = np.asarray(value).dtype.hasobject or rng.random() < 0.1
                file[name] = odd_array(rng, np.zeros(3) if vlen else value)
            case 3:
                told = f"{name} a group"
                del file[name]
                file.create_group(name)
            case 4:
                told = f"{name} linked"
                del file[name]
                file[name] = [h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"),
                              h5py.ExternalLink("/etc/hostname", "a"),
                              h5py.ExternalLink("a.h5", name)][int(rng.integers(4))]  # fmt: skip
            case 5:
                told = f"{name} empty"
                del file[name]
                file[name] = h5py.Empty(str(rng.choice(["f4", "c8", "S3"])))
            case _:
                told = "attribute"
                keys = [*file.attrs, "acquisition", "max", "acceleration", "new"]
                odd = [h5py.Empty("f4"), np.zeros(0), np.zeros((2, 3)), np.nan, b"\xff\xfe",
                       file.ref, np.array(["a", "b"], "S1"), np.zeros((), "V5"), True, -1, 1e300,
                       np.complex64(1j), "\x1b[2J\nx", "x" * 5000]  # fmt: skip
                file.attrs[keys[int(rng.integers(len(keys)))]] = odd[int(rng.integers(len(odd)))]
    return told, stream.getvalue()


def in_zip(rng: Generator, data: bytes) -> tuple[str, bytes]:
    out = io.BytesIO()
    how = int(rng.integers(4))
    told = "zip"
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        members = old.namelist()
        chosen = members[int(rng.integers(len(members)))]
        for name in members:
            member = old.read(name)
            if name == chosen and how == 0:
                continue
            if name == chosen and how == 1:
                told, member = bytes_damaged(rng, member)
            if name == chosen and how == 2:
                stream = io.BytesIO()
                np.save(stream, odd_array(rng, np.load(io.BytesIO(member))))
                told, member = "odd array", stream.getvalue()
            if name == chosen and how == 3:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    new.writestr(str(rng.choice(["../a.npy", "kspace.npy", "ksp.npy", "x", ".npy",
                                                 "/etc/a.npy"])), member)  # fmt: skip
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new.writestr(name, member)
    return told, out.getvalue()


def in_npy(rng: Generator, data: bytes) -> tuple[str, bytes]:
    if rng.random() < 0.5:
        end = data.index(b"\n")
        told, head = bytes_damaged(rng, data[10:end])
        return told, data[:8] + struct.pack("<H", len(head) + 1) + head + data[end:]
    stream = io.BytesIO()
    np.save(stream, odd_array(rng, np.load(io.BytesIO(data))))
    return "odd array", stream.getvalue()


def in_gzip(rng: Generator, data: bytes) -> tuple[str, bytes]:
    told, inner = bytes_damaged(rng, gzip.decompress(data))
    return told, gzip.compress(inner, 1)


def in_dicom(rng: Generator, data: bytes) -> tuple[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = pydicom.dcmread(io.BytesIO(data))
        tags = [element.tag for element in one] + [e.tag for e in one.file_meta]
        tag = tags[int(rng.integers(len(tags)))]
        where = one.file_meta if tag.group == 2 else one
        vr, value = where[tag].VR, where[tag].value
        numbers = ["0", "-1", "1e300", "nan", "inf", "", "x", "1\\2", "99999999999", "1e-300"]
        told = f"{tag} {vr}"
        if rng.random() < 0.3:
            del where[tag]
            told += " removed"
        elif vr in ("US", "SS", "UL", "SL"):
            value = int(rng.choice([0, 1, 2, 7, 255, 12, 32767, 65535]))
            where.add_new(tag, vr, value)
        elif vr in ("OB", "OW"):
            where.add_new(tag, vr, bytes_damaged(rng, value)[1])
        elif vr in ("DS", "IS") and rng.random() < 0.5 and not isinstance(value, str):
            many = list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]
            many[int(rng.integers(len(many)))] = str(rng.choice(numbers[:6]))
            where._dict[tag] = _raw(tag, vr, "\\".join(map(str, many)).encode())
        else:
            new = numbers[int(rng.integers(len(numbers)))].encode()
            where._dict[tag] = _raw(tag, vr, rng.bytes(6) if rng.random() < 0.2 else new)
        stream = io.BytesIO()
        try:
            pydicom.dcmwrite(stream, one, enforce_file_format=False,
                             little_endian=None if one.file_meta.get("TransferSyntaxUID") else True,
                             implicit_vr=None if one.file_meta.get("TransferSyntaxUID") else False)
        except Exception:  # pydicom writes less than it reads
            return bytes_damaged(rng, data)
    return told, stream.getvalue()


def _raw(tag: Any, vr: str, value: bytes) -> Any:
    value += b" " * (len(value) % 2)
    return pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)


INSIDE: dict[bytes, Callable[[Generator, bytes], tuple[str, bytes]]] = {
    b"\x89HDF": in_hdf5, b"PK": in_zip, b"\x93NUMPY": in_npy, b"\x1f\x8b": in_gzip}  # fmt: skip


def by_rule(rng: Generator, data: bytes) -> tuple[str, bytes]:
    if data[128:132] == b"DICM":
        return in_dicom(rng, data)
    for signature, inside in INSIDE.items():
        if data.startswith(signature):
            return inside(rng, data)
    return bytes_damaged(rng, data)


SUFFIXES = (".h5", ".hdf5", ".mrd", ".dat", ".hdr", ".cfl", ".ra", ".npz", ".npy", ".nii",
            ".nii.gz", ".nrrd", ".nhdr", ".dcm", "", ".IMA", ".txt", ".H5")  # fmt: skip


def damaged(rng: Generator, whole: list[Seed]) -> Case:
    seed = whole[int(rng.integers(len(whole)))]
    files = dict(seed.files)
    name = list(files)[int(rng.integers(len(files)))]
    data = files[name]
    chance = rng.random()
    if chance < 0.5:
        told, files[name] = bytes_damaged(rng, data)
    elif chance < 0.8:
        told, files[name] = by_rule(rng, data)
        if rng.random() < 0.2:
            told, files[name] = f"{told}, then more", bytes_damaged(rng, files[name])[1]
    elif chance < 0.88:
        end = int(rng.integers(len(data))) if rng.random() < 0.5 else \
            max(0, len(data) - int(rng.integers(1, 200)))  # fmt: skip
        files[name] = data[:end]
        return Case(seed._replace(files=files), f"{name} cut at {end}", same=True)
    elif chance < 0.92 and len(files) == 1:
        new = Path(name).stem.removesuffix(".nii") + SUFFIXES[int(rng.integers(len(SUFFIXES)))]
        return Case(Seed(seed.kind, {new: data}, new), f"renamed to {new}", same=True)
    elif chance < 0.96 or len(files) == 1:
        other = whole[int(rng.integers(len(whole)))]
        second = next(iter(other.files.values()))
        files[name] = data + second if rng.random() < 0.5 else second + data
        told = f"joined with {other.kind}"
    else:
        other = whole[int(rng.integers(len(whole)))]
        told, stray = "stray or missing", next(iter(other.files.items()))
        if rng.random() < 0.4 and name != seed.name:
            del files[name]
        else:
            files.setdefault(*stray)
    return Case(seed._replace(files=files), told, same=False)


# what must hold


def checked(found: Any, path: Path) -> Tensor:
    """The values of a sound result."""
    assert datasets.stem(found.name) == datasets.stem(path), f"name {found.name!r}"  # BART has two
    for key, value in found.attributes.items():
        assert isinstance(key, str), f"attribute {key!r}"
        assert isinstance(value, str | float | int), f"attribute {key} is {type(value)}"
        _check_text(f"{key}: {value}", path)
    if isinstance(found, Scan):
        return _scan(found)
    if isinstance(found, Volume):
        return _volume(found)
    assert isinstance(found, Projections), type(found)
    assert found.values.dtype == torch.float32
    assert found.values.ndim == 3
    assert found.values.shape[1:] == (len(found.angles), 513)
    assert found.angles.isfinite().all()
    if found.reference is not None:
        assert found.reference.shape == (len(found.values), *found.size)
        assert found.reference.isfinite().all()
    return found.values


def _scan(found: Scan) -> Tensor:
    x = found.kspace
    assert x.dtype == torch.complex64, x.dtype
    assert x.ndim == 4 and x.numel(), x.shape  # noqa: PT018
    if found.mask is not None:
        assert found.mask.dtype == torch.bool
        assert found.mask.shape in (x.shape[-1:], x.shape[-2:]), found.mask.shape
        assert found.mask.any()
        outside = torch.view_as_real(x.resolve_conj())[~found.mask.expand(x.shape)]
        assert not outside.any(), "not 0 outside the mask"
        assert not outside.signbit().any(), "not +0 outside the mask"
    if found.maps is not None:
        assert found.maps.shape == x.shape
        assert found.maps.dtype == x.dtype
        assert torch.view_as_real(found.maps).isfinite().all()
    if found.reference is not None:
        assert found.reference.dtype == torch.float32
        assert found.reference.ndim == 3 and len(found.reference) == len(x)  # noqa: PT018
        assert found.reference.isfinite().all()
        assert found.reference.numel()
    if found.crop is not None:
        assert 0 < found.crop[0] <= x.shape[-2], found.crop
        assert 0 < found.crop[1] <= x.shape[-1], found.crop
    if (cov := found.noise_covariance) is not None:
        assert cov.shape == (x.shape[1],) * 2
        assert torch.view_as_real(cov).isfinite().all()
        assert torch.allclose(cov, cov.mH)
        assert (cov.diagonal().real > 0).all()
    return x


def _volume(found: Volume) -> Tensor:
    x = found.values
    assert x.dtype in (torch.float32, torch.complex64)
    assert x.ndim == 3 and x.numel(), x.shape  # noqa: PT018
    assert found.unit in KNOWN_UNITS
    if found.affine is not None:
        assert found.affine.dtype == torch.float64
        assert found.affine.isfinite().all()
        assert found.affine[3].tolist() == [0, 0, 0, 1]
        assert min(found.spacing_mm or (0,)) > 0, found.spacing_mm
        assert abs(float(torch.linalg.det(found.affine[:3, :3]))) > 0
    if found.padding is not None:
        assert found.padding.dtype == torch.bool
        assert found.padding.shape == x.shape
    return x


def _check_text(words: str, path: Path) -> None:
    assert str(path.parent) not in words, f"names its folder: {words}"
    assert not any(person in words for person in PERSONAL), f"names a patient: {words}"


def _check_error(error: Exception, path: Path, missing: bool) -> None:
    if isinstance(error, FileNotFoundError) and missing:
        return
    if isinstance(error, ImportError) and "pip install" in str(error):
        return
    if not isinstance(error, FormatError):
        raise error
    _check_text(str(error), path)
    assert str(error).isprintable(), f"cannot be printed: {str(error)!r}"
    assert len(str(error)) < 1000, f"{len(str(error))} characters: {str(error)[:300]}"


# running


def examine(case: Case, place: Path, whole: dict[str, list[Tensor]]) -> str:
    """``read``, or ``refused``; raises what is a finding."""
    for name, data in case.seed.files.items():
        (place / name).write_bytes(data)
    path = place / case.seed.name if case.seed.name else place
    missing = ((bool(case.seed.name) and case.seed.name not in case.seed.files)
               or (len(case.seed.files) < 2 and path.suffix in (".hdr", ".cfl")))
    outcome, results = "refused", []
    for call in (datasets.recognise, datasets.describe, datasets.open,
                 lambda p: datasets.open(p, slice(0, 1))):  # fmt: skip
        try:
            faulthandler.dump_traceback_later(WALL_SECONDS, exit=True)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            result = call(path)
        except Exception as error:
            _check_error(error, path, missing)
            result = None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        results.append(result)
    kind, about, all_of_it, first = results
    described_as: Any = about
    values = None if all_of_it is None else checked(all_of_it, path)
    part = None if first is None else checked(first, path)
    for x in (values, part):
        if x is not None:
            parts = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
            assert parts.isfinite().all(), "not finite"
    if values is not None:
        outcome = "read"
        assert kind is not None, "opened but not recognised"
        # the whole table of contents is described, damaged or not
        assert about is None or described_as["slices"] == len(values), "described otherwise"
        assert part is not None, "opened but not its first slice"
    if part is not None:
        assert len(part) == 1
        if values is not None:
            assert torch.equal(part, values[:1]), "its first slice has other values"
        if case.same and not any(x.shape[1:] == part.shape[1:] and torch.equal(part, x[:1])
                                 for x in whole[case.seed.kind]):  # fmt: skip
            raise AssertionError("other values than the whole file")
    return outcome


def described(error: BaseException, kind: str) -> tuple[str, str]:
    """What makes a finding the same as another, and its full text."""
    every = traceback.extract_tb(error.__traceback__)
    frames = [f for f in every if "/datasets/" in f.filename and "/tests/" not in f.filename]
    frames = frames or list(every)
    last = frames[-1]
    brief = f"{str(error).split(':')[0][:60]} ({kind})" if isinstance(error, AssertionError) else ""
    key = f"{type(error).__name__} {brief} {Path(last.filename).name}:{last.lineno}"
    return key, "".join(traceback.format_exception(error))


def keep(folder: Path, number: int, case: Case, key: str, told: str) -> None:
    place = folder / f"case-{number}"
    place.mkdir(exist_ok=True)
    for name, data in case.seed.files.items():
        (place / name).write_bytes(data)
    report = f"{key}\n{case.seed.kind}, {case.told}\nopened: {case.seed.name or 'the folder'}\n"
    (place / "report.txt").write_text(f"{report}\n{told}")


def work(numbers: range, seed: int, whole: list[Seed], values: dict[str, list[Tensor]],
         folder: Path, scratch: Path, known: set[str]) -> None:  # fmt: skip
    """In a process of its own: one line of ``progress`` for each case, begun and ended."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM_BYTES, resource.RLIM_INFINITY))
    trace = (folder / "trace.txt").open("w")
    os.dup2(trace.fileno(), 2)
    faulthandler.enable(trace)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    faulthandler.register(signal.SIGPROF, trace, chain=True)
    warnings.simplefilter("error")
    # what was deprecated is for the tests of a new library, not for damaged files
    warnings.simplefilter("ignore", DeprecationWarning)
    with (folder / "progress.txt").open("w") as progress:
        for number in numbers:
            case = damaged(np.random.default_rng([seed, number]), whole)
            progress.write(f"{number}\t{case.seed.kind}\t")
            progress.flush()
            place = scratch / "case"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                outcome = examine(case, place, values)
                more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
                assert more < MOST_MEGABYTES, f"{more} MB of memory"
            except Exception as error:
                outcome = "found"
                key, told = described(error, case.seed.kind)
                if key not in known:
                    known.add(key)
                    keep(folder, number, case, key, told)
                    with (folder / "known.txt").open("a") as file:
                        file.write(f"{key}\tcase-{number}\t{case.seed.kind}\t{case.told}\n")
            progress.write(f"{outcome}\n")
            progress.flush()


def main(seconds: float, seed: int, folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    end, start = time.monotonic() + seconds, time.monotonic()
    counts: Counter[tuple[str, str]] = Counter()
    known: set[str] = set()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        whole = seeds(scratch)
        values: dict[str, list[Tensor]] = {}
        for i, one in enumerate(whole):
            place = scratch / str(i)
            found = datasets.open(place / one.name if one.name else place)
            values.setdefault(one.kind, []).append(checked(found, place / one.name))
        print(f"{len(whole)} whole files of {len(values)} kinds, seed {seed}, into {folder}",
              flush=True)  # fmt: skip
        number, told = 0, time.monotonic()
        while time.monotonic() < end:
            child = os.fork()
            if child == 0:
                try:
                    work(range(number, number + BATCH), seed, whole, values, folder, scratch, known)
                finally:
                    os._exit(0)
            _, status = os.waitpid(child, 0)
            lines = (folder / "progress.txt").read_text().splitlines()
            for line in lines:
                last, kind, outcome = line.split("\t")
                counts[kind, outcome or "died"] += 1
            number = int(last) + 1
            if not lines[-1].split("\t")[2]:
                _died(folder, int(last), seed, whole, status, known)
            if (folder / "known.txt").exists():
                listed = (folder / "known.txt").read_text().splitlines()
                for line in listed:
                    if line.split("\t")[0] not in known:
                        print(f"FOUND {line}", flush=True)
                known |= {line.split("\t")[0] for line in listed}
            if time.monotonic() > told + 60:
                told = time.monotonic()
                _tell(counts, known, told - start)
    _tell(counts, known, time.monotonic() - start)


def _died(folder: Path, number: int, seed: int, whole: list[Seed], status: int,
          known: set[str]) -> None:  # fmt: skip
    case = damaged(np.random.default_rng([seed, number]), whole)
    trace = (folder / "trace.txt").read_text(errors="replace")
    at = [line.strip() for line in trace.splitlines() if "/datasets/" in line]
    key = f"died {status}: {at[0] if at else trace.strip()[-200:]}"
    if key not in known:
        keep(folder, number, case, key, trace)
        with (folder / "known.txt").open("a") as file:
            file.write(f"{key}\tcase-{number}\t{case.seed.kind}\t{case.told}\n")


def _tell(counts: Counter[tuple[str, str]], known: set[str], seconds: float) -> None:
    print(f"after {seconds:.0f} s: {counts.total()} cases, {len(known)} findings", flush=True)
    for kind in sorted({kind for kind, _ in counts}):
        row = {outcome: n for (k, outcome), n in counts.items() if k == kind}
        told = ", ".join(f"{row[outcome]} {outcome}" for outcome in sorted(row))
        print(f"  {kind:16s} {sum(row.values()):7d}: {told}", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    place = Path(tempfile.gettempdir()) / "recon-fuzz"
    main(float(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0,
         Path(arguments[2]) if len(arguments) > 2 else place)  # fmt: skip
