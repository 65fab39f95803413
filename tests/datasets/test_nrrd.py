"""NRRD: against bytes laid out by hand, SimpleITK and pynrrd, and a real CT; damaged files."""

import bz2
import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recon import datasets
from recon.datasets import FormatError, Volume, nrrd_geometry
from recon.datasets.nrrd import data_file, layout_nrrd, read_nrrd
from recon.datasets.nrrd_header import is_nrrd
from tests.datasets.damaged import refusals
from tests.datasets.nrrd_files import LPS, counted, laid_out

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct" / "lung1.nrrd"
OBLIQUE = np.array([[-0.8, 0.6, 0], [0.48, 0.64, 0.6], [0.36, 0.48, -0.8]])
UNKNOWN = ("the file does not say where its axes{} lie in the patient: they were taken to run to "
           "the left, {} and head")  # fmt: skip
NO_UNIT = "the unit of length is not given and was taken as mm"


# --- values and places ------------------------------------------------------------------------


def check_reader(read: Callable[[Path], Volume], folder: Path) -> None:
    """x right, y front, z head, 2, 3 and 4 mm, in the coordinates of NIfTI."""
    fields = {"space": "right-anterior-superior", "space origin": "(50,-60,70)",
              "space directions": "(2,0,0) (0,3,0) (0,0,4)", "sizes": "4 5 3"}  # fmt: skip
    volume = read(laid_out(folder / "a.nrrd", counted(3, 5, 4), {**fields}))
    assert volume.values.dtype == torch.float32
    assert volume.values.shape == (3, 5, 4)
    assert volume.affine is not None
    for k in range(3):
        for j in range(5):
            for i in range(4):
                assert volume.values[k, j, i] == i + 4 * (j + 5 * k)
                place = volume.affine @ torch.tensor([k, j, i, 1], dtype=torch.float64)
                # 50 mm to the right is -50 to the left, and -60 to the front 60 to the back
                assert place.tolist() == [-50 - 2 * i, 60 - 3 * j, 70 + 4 * k, 1]
    assert volume.spacing_mm == (4, 3, 2)
    assert (volume.unit, volume.kind, volume.name) == ("arbitrary", "nrrd", "a.nrrd")
    assert volume.attributes == {"orientation": "RAS"}


def test_reader_against_bytes_laid_out_by_hand(tmp_path: Path) -> None:
    check_reader(read_nrrd, tmp_path)
    layout = layout_nrrd(tmp_path / "a.nrrd")
    assert layout == ("nrrd", 3, {"image": {"shape": (4, 5, 3), "dtype": "int16"}})


def of(affine: Any) -> Any:
    assert affine is not None
    return affine


@pytest.mark.parametrize("wrong", [
    lambda v: v._replace(affine=torch.diag(torch.tensor([-1.0, -1, 1, 1]).double()) @ of(v.affine)),
    lambda v: v._replace(affine=of(v.affine)[:, [2, 1, 0, 3]]),
    lambda v: v._replace(values=v.values.flip(1)),
    lambda v: v._replace(values=v.values.reshape(4, 5, 3).permute(2, 1, 0)),
])  # fmt: skip
def test_the_check_of_the_reader_catches(tmp_path: Path, wrong: Callable[[Volume], Volume]) -> None:
    with pytest.raises(AssertionError):
        check_reader(lambda path: wrong(read_nrrd(path)), tmp_path)


def test_the_check_of_the_reader_catches_a_space_taken_for_lps(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setitem(nrrd_geometry.PATIENT, "right-anterior-superior", (1, 1, 1))
    with pytest.raises(AssertionError):
        check_reader(read_nrrd, tmp_path)


def check_against_itk(volume: Volume, image: Any) -> None:
    """Values, and the places of the corners, as SimpleITK has them."""
    sitk = pytest.importorskip("SimpleITK", reason="needs SimpleITK")
    theirs = sitk.GetArrayFromImage(image)
    assert volume.values.shape == theirs.shape
    assert torch.equal(volume.values, torch.from_numpy(theirs.astype(np.float32)))
    for k in (0, theirs.shape[0] - 1):
        for j in (0, theirs.shape[1] - 1):
            for i in (0, theirs.shape[2] - 1):
                place = of(volume.affine) @ torch.tensor([k, j, i, 1], dtype=torch.float64)
                there = image.TransformIndexToPhysicalPoint((i, j, k))
                np.testing.assert_allclose(place[:3], there, rtol=1e-12, atol=1e-9)


@pytest.fixture
def sitk() -> Any:
    return pytest.importorskip("SimpleITK", reason="needs SimpleITK")


DIRECTIONS = {"LPS": np.eye(3), "RAS": np.diag([-1.0, -1, 1]), "oblique": OBLIQUE,
              "coronal": np.eye(3)[[0, 2, 1]] * [1, 1, -1],
              "sagittal": np.eye(3)[[2, 0, 1]]}  # fmt: skip


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_what_simpleitk_writes(tmp_path: Path, sitk: Any, direction: str, name: str,
                               compressed: bool) -> None:  # fmt: skip
    values = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.SetDirection(DIRECTIONS[direction].ravel().tolist())
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-120.5, 33.25, 801.125))
    sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
    volume = read_nrrd(tmp_path / name)
    check_against_itk(volume, image)
    np.testing.assert_allclose(of(volume.spacing_mm), (2.5, 0.9, 0.7))
    note = str(volume.attributes.get("note", ""))
    assert note == ("" if direction not in ("coronal", "sagittal") else
                    f"slices, along the file's z, are {direction}")  # fmt: skip
    assert data_file(tmp_path / name) == (
        None if name == "a.nrrd" else tmp_path / ("a.raw.gz" if compressed else "a.raw"))
    with pytest.raises(AssertionError):
        check_against_itk(volume._replace(values=volume.values.flip(len(direction) % 3)), image)
    turned = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)) @ of(volume.affine)
    with pytest.raises(AssertionError):
        check_against_itk(volume._replace(affine=turned), image)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_types_that_simpleitk_writes(tmp_path: Path, sitk: Any, dtype: str) -> None:
    values = (np.random.default_rng(0).normal(size=(2, 3, 4)) * 50).astype(dtype)
    image = sitk.GetImageFromArray(values)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    volume = read_nrrd(tmp_path / "a.nrrd")
    check_against_itk(volume, image)
    cast = f"values were {np.dtype(dtype)}, cast to float32" if dtype in (
        "i4", "u4", "i8", "u8", "f8") else None  # fmt: skip
    assert volume.attributes.get("note") == cast
    assert layout_nrrd(tmp_path / "a.nrrd").keys["image"]["dtype"] == str(np.dtype(dtype))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("dtype", ["<i2", ">u2", ">f4", "<f8", "|u1"])
def test_what_pynrrd_writes(tmp_path: Path, encoding: str, name: str, dtype: str) -> None:
    nrrd = pytest.importorskip("nrrd", reason="needs pynrrd")
    values = np.abs(np.random.default_rng(0).normal(size=(3, 5, 4)) * 50).astype(dtype)
    if encoding == "ascii":  # pynrrd would write the bytes of big-endian numbers turned
        values = values.astype(values.dtype.newbyteorder("="))
    header = {"encoding": encoding, "space": "RAS", "space origin": [1, 2, 3],
              "space directions": np.diag([2.0, 3, 4])}  # fmt: skip
    nrrd.write(str(tmp_path / name), values, header, index_order="C")
    volume = read_nrrd(tmp_path / name)
    wanted = torch.from_numpy(values.astype(np.float32))
    if encoding == "ascii" and dtype[1] == "f":
        torch.testing.assert_close(volume.values, wanted, rtol=1e-6, atol=0)
    else:
        assert torch.equal(volume.values, wanted)
    assert of(volume.affine).tolist() == [
        [0, 0, -2, -1], [0, -3, 0, -2], [4, 0, 0, 3], [0, 0, 0, 1]]
    assert torch.equal(read_nrrd(tmp_path / name, slice(1, 2)).values, volume.values[1:2])


@pytest.mark.parametrize(("fields", "data"), [
    ({}, b""),
    ({"encoding": "gz"}, b""),
    ({"byte skip": "3"}, b"abc"),
    ({"line skip": "2", "byte skip": "1"}, b"two\nlines\nx"),
    ({"byte skip": "-1"}, b"anything"),
    ({"encoding": "gzip", "byte skip": "4"}, b"abcd"),
    ({"encoding": "gzip", "byteskip": "-1"}, b"abcd"),
    ({"TYPE": "Signed Short Int", "type": None, "Sizes": "4 3 2", "sizes": None,
      "ENCODING": "RAW", "encoding": None, "endian": "LITTLE"}, b""),
    ({"centerings": "cell cell cell"}, b""),
    ({"centerings": "node node node"}, b""),
    ({"space directions": "(1, 0, 0) ( 0.5,2,0 ) (0,-1e-1,3)"}, b""),
    ({"space": "RAS"}, b""),
    ({"space": "left-anterior-superior"}, b""),
    ({"space": "scanner-xyz"}, b""),
    ({"space": "3D-right-handed"}, b""),
    ({"space": None, "space dimension": "3"}, b""),
    ({"space": None, "space origin": None, "space directions": None, "spacings": "1 2 3"}, b""),
    ({"space": None, "space origin": None, "space directions": None, "spacings": "1 2 3",
      "axis mins": "10 20 30", "centerings": "cell cell node"}, b""),
    ({"space": None, "space origin": None, "space directions": None, "spacings": "1 2 3",
      "axis mins": "10 20 30"}, b""),
    ({"dimension": "4", "sizes": "1 4 3 2", "kinds": "vector domain domain domain",
      "space directions": "none (1,0,0) (0,2,0) (0,0,3)"}, b""),
    ({"dimension": "4", "sizes": "4 3 2 1", "kinds": "space space space list",
      "space directions": "(1,0,0) (0,2,0) (0,0,3) none"}, b""),
])  # fmt: skip
def test_headers_that_simpleitk_reads_alike(tmp_path: Path, sitk: Any,
                                            fields: dict[str, str | None], data: bytes) -> None:
    raw = data + counted(2, 3, 4).astype("<i2").tobytes()
    path = laid_out(tmp_path / "a.nrrd", raw, {**LPS, **fields})
    volume, image = read_nrrd(path), sitk.ReadImage(str(path))
    check_against_itk(volume, image)
    assert torch.equal(read_nrrd(path, slice(1, 2)).values, volume.values[1:2])
    moved = of(volume.affine).clone()  # half a voxel, which centerings might be thought to mean
    moved[:3, 3] += moved[:3, :3].sum(1) / 2
    with pytest.raises(AssertionError):
        check_against_itk(volume._replace(affine=moved), image)


def test_text_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(5, 7, 6)).astype(np.float32)
    text = "\r\n".join(" ".join(map(repr, row.tolist())) for row in values.reshape(-1, 6))
    path = laid_out(tmp_path / "a.nrrd", text.encode(), type="float", encoding="text",
                    endian=None, sizes="6 7 5", dimension="3")  # fmt: skip
    for size in (1, 2, 7, 64, 1 << 20):
        monkeypatch.setattr("recon.datasets.nrrd.TEXT_CHUNK", size)
        assert torch.equal(read_nrrd(path).values, torch.from_numpy(values))
    assert torch.equal(read_nrrd(path, slice(1, 4, 2)).values, torch.from_numpy(values[1:4:2]))


def test_lines_of_windows_and_a_header_of_one_old_version(tmp_path: Path) -> None:
    path = laid_out(tmp_path / "a.nrrd", b"")
    header = path.read_bytes().replace(b"\n", b"\r\n").replace(b"NRRD0005", b"NRRD00.01")
    path.write_bytes(header + counted(2, 3, 4).tobytes())
    assert read_nrrd(path).values.flatten().tolist() == list(range(24))


# --- geometry that others read differently, or not at all -------------------------------------


BARE: dict[str, str | None] = {"space": None, "space origin": None, "space directions": None}


@pytest.mark.parametrize(("fields", "places", "note"), [
    # SimpleITK takes left-handed axes for left, back and head: a mirror image
    ({"space": "3D-left-handed"}, [[0, 0, 1, 10], [0, -2, 0, -20], [3, 0, 0, 30]],
     f"{NO_UNIT}; {UNKNOWN.format(', 3d-left-handed,', 'front')}"),
    ({"space": "scanner-xyz", "space units": '"mm" "mm" "mm"'},
     [[0, 0, 1, 10], [0, 2, 0, 20], [3, 0, 0, 30]], UNKNOWN.format(", scanner-xyz,", "back")),
    # nor does SimpleITK read the units
    ({"space units": '"cm" "mm" "um"'}, [[0, 0, 10, 100], [0, 2, 0, 20], [3e-3, 0, 0, 0.03]],
     ""),
    ({"space units": '"" "mm" "none"'}, [[0, 0, 1, 10], [0, 2, 0, 20], [3, 0, 0, 30]], NO_UNIT),
    ({"space units": "m m m"}, [[0, 0, 1e3, 1e4], [0, 2e3, 0, 2e4], [3e3, 0, 0, 3e4]], ""),
    ({"space": None}, [[0, 0, 1, 10], [0, 2, 0, 20], [3, 0, 0, 30]],
     f"{NO_UNIT}; {UNKNOWN.format('', 'back')}"),
    ({"space origin": None}, [[0, 0, 1, 0], [0, 2, 0, 0], [3, 0, 0, 0]],
     "the file gives no origin, it was taken to be 0"),
    ({"spacings": "1 2 9"}, [[0, 0, 1, 10], [0, 2, 0, 20], [3, 0, 0, 30]],
     "spacings are not the lengths of the space directions, which were used"),
    ({"spacings": "1 2 3"}, [[0, 0, 1, 10], [0, 2, 0, 20], [3, 0, 0, 30]], ""),
    ({**BARE, "spacings": "1 2 3", "units": '"cm" "cm" "cm"', "axis mins": "0 0 0"},
     [[0, 0, 10, 5], [0, 20, 0, 10], [30, 0, 0, 15]], UNKNOWN.format("", "back")),
    ({"space": "RAS", "space directions": None, "spacings": "1 2 3"},
     [[0, 0, -1, -10], [0, -2, 0, -20], [3, 0, 0, 30]],
     "the file gives sides of voxels without directions, which were taken to be those of the "
     "space"),
    ({"dimension": "2", "sizes": "6 4", "space directions": "(1,0,0) (0,0,-2)"},
     [[0, 0, 1, 10], [1, 0, 0, 20], [0, -2, 0, 30]],
     "the thickness of the one slice is not known and was taken as 1 mm; slices, along the file's "
     "z, are coronal"),
    ({**BARE, "dimension": "2", "sizes": "6 4", "space dimension": "2", "space origin": "(5,6)",
      "space directions": "(0,1) (2,0)", "space units": '"mm" "mm"'},
     [[0, 2, 0, 5], [0, 0, 1, 6], [-1, 0, 0, 0]],
     "the thickness of the one slice is not known and was taken as 1 mm; "
     + UNKNOWN.format("", "back")),
    ({"space": "LPST", "dimension": "4", "sizes": "4 3 2 1", "space origin": "(10,20,30,7)",
      "space directions": "(1,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,5)"},
     [[0, 0, 1, 10], [0, 2, 0, 20], [3, 0, 0, 30]], ""),
])  # fmt: skip
def test_geometry(tmp_path: Path, fields: dict[str, str | None], places: list[list[float]],
                  note: str) -> None:  # fmt: skip
    volume = read_nrrd(laid_out(tmp_path / "a.nrrd", counted(2, 3, 4), {**LPS, **fields}))
    wanted = np.array([*places, [0, 0, 0, 1]], np.float64)
    np.testing.assert_allclose(of(volume.affine), wanted, rtol=1e-12)
    told = str(volume.attributes.get("note", ""))
    assert told == note
    assert ("orientation" in volume.attributes) == ("where its axes" not in told)


@pytest.mark.parametrize("fields", [{}, {"spacings": "1 2 NaN"}, {"axis mins": "1 2 3"}])
def test_without_a_place(tmp_path: Path, fields: dict[str, str | None]) -> None:
    volume = read_nrrd(laid_out(tmp_path / "a.nrrd", counted(2, 3, 4), fields))
    assert volume.affine is None
    assert volume.spacing_mm is None
    assert volume.attributes == {"note": "the file gives no position and orientation"}


@pytest.mark.parametrize(("fields", "shape"), [
    ({"dimension": "2", "sizes": "6 4"}, (1, 4, 6)),
    ({"dimension": "3", "sizes": "1 6 4", "kinds": "scalar domain domain"}, (1, 4, 6)),
    ({"dimension": "3", "sizes": "6 4 1", "kinds": "space space time"}, (1, 4, 6)),
    ({"dimension": "4", "sizes": "4 3 2 1"}, (2, 3, 4)),
    ({"dimension": "5", "sizes": "4 3 2 1 1", "kinds": "??? none domain domain domain"},
     (2, 3, 4)),
])
def test_dimensions(tmp_path: Path, fields: dict[str, str | None], shape: tuple[int, ...]) -> None:
    path = laid_out(tmp_path / "a.nrrd", counted(2, 3, 4), fields)
    assert read_nrrd(path).values.shape == shape
    assert layout_nrrd(path).keys["image"]["shape"] == shape[::-1]


# --- what is noted, kept and left out ---------------------------------------------------------


@pytest.mark.parametrize(("fields", "more", "note"), [
    ({}, b"abc", "3 bytes behind the image were left out"),
    ({"byte skip": "-4"}, b"abc", None),
    ({"old min": "0", "old max": "1"}, b"",
     "old min and old max say that values were quantised: they are given as stored"),
    ({"encoding": "bz2", "byte skip": "-4"}, b"abc", None),
    ({"encoding": "gz", "byte skip": "-4"}, b"abc", None),
    ({"flavour": "sweet"}, b"", "1 line(s) of the header are no fields of NRRD and were left out"),
])
def test_notes(tmp_path: Path, fields: dict[str, str | None], more: bytes,
               note: str | None) -> None:
    raw = counted(2, 3, 4).tobytes() + more
    volume = read_nrrd(laid_out(tmp_path / "a.nrrd", raw, {**LPS, **fields}))
    assert volume.values.flatten().tolist() == list(range(24))
    assert volume.attributes.get("note") == note


@pytest.mark.parametrize(("encoding", "pack", "note"), [
    ("gzip", gzip.compress, "bytes behind the gzip data were left out"),
    ("gzip", lambda raw: gzip.compress(raw[:20]) + gzip.compress(raw[20:]),
     "bytes behind the gzip data were left out"),
    ("bzip2", lambda raw: bz2.compress(raw[:20]) + bz2.compress(raw[20:]), None),
    ("ascii", lambda _: b" ".join(b"%d" % n for n in range(24)) + b"\n", "2 numbers behind"),
])  # fmt: skip
def test_packed_data_with_more_behind_them(
        tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes], note: str | None
) -> None:  # fmt: skip
    path = laid_out(tmp_path / "a.nrrd", b"", {**LPS})
    header = path.read_bytes().replace(b"encoding: raw", b"encoding: " + encoding.encode())
    behind = b"12 13" if encoding == "ascii" else b"xyz" if encoding == "gzip" else b""
    path.write_bytes(header + pack(counted(2, 3, 4).tobytes()) + behind)
    volume = read_nrrd(path)
    assert volume.values.flatten().tolist() == list(range(24))
    assert str(volume.attributes.get("note")).startswith(str(note))


def test_only_the_chosen_slices_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 40, 50)).astype("<f4")
    values[4, 3, 2] = np.nan
    for encoding in ("raw", "gzip", "bzip2"):
        path = laid_out(tmp_path / "a.nrrd", values.tobytes(), type="float", sizes="50 40 6",
                        encoding=encoding)  # fmt: skip
        assert torch.equal(read_nrrd(path, slice(1, 4, 2)).values, torch.from_numpy(values[1:4:2]))
        with pytest.raises(FormatError, match="image: slice 4 holds NaN or infinity"):
            read_nrrd(path, slice(3, None))
        with pytest.raises(ValueError, match="chooses none of the 6 slices"):
            read_nrrd(path, slice(6, 8))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
        if encoding == "gzip":  # a bzip2 block is whole or nothing
            assert torch.equal(read_nrrd(path, slice(0, 3)).values, torch.from_numpy(values[:3]))
        with pytest.raises(FormatError, match="cut short"):
            read_nrrd(path, slice(5, 6))


def test_no_free_text_is_passed_on(tmp_path: Path) -> None:
    lines = {"content": "DOE^JOHN", "labels": '"DOE^JOHN" "b" "c"', "sample units": "DOE^JOHN",
             "number": "1", "DOE^JOHN": "x"}  # fmt: skip
    path = laid_out(tmp_path / "a.nrrd", counted(2, 3, 4), {**LPS, **lines})
    pairs = b"PatientName:=DOE^JOHN\nDOE^JOHN:=1\nsizes:=9 9 9\nDOE: of:=x\n# DOE^JOHN\n"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"dimension", pairs + b"dimension", 1))
    volume = read_nrrd(path)
    assert "DOE" not in repr((volume, layout_nrrd(path), datasets.describe(path)))
    assert volume.values.flatten().tolist() == list(range(24))
    path.write_bytes(whole.replace(b"dimension", b"DOE^JOHN\ndimension", 1))
    with pytest.raises(FormatError, match="no field") as caught:
        read_nrrd(path)
    assert "DOE" not in str(caught.value)
    for joined in (b"0)PatientName:=DOE^JOHN", b"0)DOE^JOHN"):  # a lost end of a line
        path.write_bytes(whole.replace(b"0)", joined, 1))
        with pytest.raises(FormatError) as caught:
            read_nrrd(path)
        assert "DOE" not in str(caught.value)


def test_unit_is_the_callers(tmp_path: Path) -> None:
    def read(low: int) -> Volume:
        path = laid_out(tmp_path / "a.nrrd", counted(2, 3, 4) + np.int16(low), {**LPS})
        found = datasets.open(path, unit="HU")
        assert isinstance(found, Volume)
        return found

    assert read(-1024).unit == "HU"
    assert "note" not in read(-1024).attributes
    assert read(0).attributes["note"] == "values from 0 to 23 are unlike HU, where air is -1000"
    assert "values down to -3024 HU lie below air" in str(read(-3024).attributes["note"])
    with pytest.raises(ValueError, match="unit: want 'HU' or 'arbitrary', got 'hu'"):
        read_nrrd(tmp_path / "a.nrrd", unit="hu")


# --- data files -------------------------------------------------------------------------------


def detached(folder: Path, told: str, data: str | None = "a.raw", end: str = "\n") -> Path:
    if data is not None:
        (folder / data).parent.mkdir(exist_ok=True)
        (folder / data).write_bytes(counted(2, 3, 4).tobytes())
    path = laid_out(folder / "a.nhdr", b"", {**LPS, "data file": told})
    path.write_bytes(path.read_bytes().removesuffix(b"\n\n") + end.encode())
    return path


@pytest.mark.parametrize(("told", "data"), [
    ("a.raw", "a.raw"), ("./a.raw", "a.raw"), ("parts/a.raw", "parts/a.raw"),
    ("an image of 100%.raw", "an image of 100%.raw")])  # fmt: skip
def test_a_data_file_beside_the_header_or_below(tmp_path: Path, told: str, data: str) -> None:
    for end in ("\n", "\n\n", "\n\nwhatever"):
        path = detached(tmp_path, told, data, end)
        volume = datasets.open(path)
        assert volume.values.flatten().tolist() == list(range(24))
        assert "note" not in volume.attributes
        assert data_file(path) == tmp_path / data
    assert "may be cut short" in datasets.open(
        detached(tmp_path, told, data, "")).attributes["note"]  # fmt: skip


@pytest.mark.parametrize(("told", "why"), [
    ("{}/a.raw", "got one of another folder: move it here and write its bare name"),
    ("../a.raw", "got one of another folder"), ("parts/../../a.raw", "got one of another folder"),
    ("..\\\\a.raw", "got one of another folder"), ("C:\\\\a.raw", "got one of another folder"),
    ("\\\\\\\\server\\\\a.raw", "got one of another folder"),
    ("/etc/hostname", "got one of another folder"),
    ("LIST", "a list of files"), ("LIST 2", "a list of files"),
    ("a%03d.raw 1 48 1", "a list of files"), ("a%03d.raw 1 48 1 2", "a list of files"),
    ("b.raw", "no file of that name beside the header: copy both"), ("", "beside the header"),
    (".", "beside the header"), ("x" * 5000, "beside the header"),
    ("a\0.raw", "no file of that name beside the header"),
])  # fmt: skip
def test_data_files_elsewhere_are_not_opened(tmp_path: Path, told: str, why: str) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    (tmp_path / "a.raw").write_bytes(counted(2, 3, 4).tobytes())
    path = detached(folder, told.format(tmp_path), None)
    with pytest.raises(FormatError) as caught:
        read_nrrd(path)
    assert str(caught.value).startswith("a.nhdr: data file: ")
    assert why.replace(r"\\", "\\") in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


# --- damaged files ----------------------------------------------------------------------------

Damage = Callable[[Path], object]


def with_(fields: dict[str, str | None], values: Any = None) -> Damage:
    data = counted(2, 3, 4) if values is None else values
    return lambda path: laid_out(path, data, {**LPS, **fields})


def floats(*values: float) -> Damage:
    data = np.array(values, "<f4").tobytes()
    return with_({"type": "float", "sizes": f"1 1 {len(values)}"}, data)


def cut(encoding: str, end: int) -> Damage:
    def damage(path: Path) -> None:
        noise = np.random.default_rng(0).integers(99, size=(20, 30, 40))
        laid_out(path, noise, sizes="40 30 20", encoding=encoding)
        path.write_bytes(path.read_bytes()[:end])

    return damage


def replaced(old: bytes, new: bytes, **fields: str) -> Damage:
    def damage(path: Path) -> None:
        laid_out(path, counted(2, 3, 4), {**LPS, **fields})
        whole = path.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))

    return damage


def stored(flip: int) -> Damage:
    def damage(path: Path) -> None:
        laid_out(path, b"").write_bytes(path.read_bytes().replace(b": raw", b": gzip"))
        packed = bytearray(gzip.compress(counted(2, 3, 4).tobytes(), 0))
        packed[flip] ^= 1  # level 0 stores the bytes as they are
        path.write_bytes(path.read_bytes() + packed)

    return damage


TERABYTES = "32767 32767 32767"
DAMAGES: list[tuple[str, Damage, str]] = [
    ("empty", lambda p: p.write_bytes(b""), "the file is empty"),
    ("web page", lambda p: p.write_text("<html>log in</html>"), "a web page"),
    ("text", lambda p: p.write_text("plain text"), "not an NRRD file: want NRRD0001 to NRRD0005"),
    ("version", replaced(b"NRRD0005", b"NRRD0006"), "want NRRD of a version up to 5"),
    ("magic alone", lambda p: p.write_bytes(b"NRRD0004\n"), "type: the header has no such field"),
    ("header cut", cut("raw", 60), "(dimension|sizes|encoding): .* cut short"),
    ("header's end cut", replaced(b"\n\n", b"\n# "), "ends within its header: cut short|no field"),
    ("no colon", replaced(b"endian: ", b"endian = "), "line 6 of the header is no field"),
    ("white line", replaced(b"\n\n", b"\n  \n\n"), "line 11 of the header is no field"),
    ("twice", replaced(b"endian", b"sizes"), "sizes: twice in the header"),
    ("endless line", lambda p: p.write_bytes(b"NRRD0004\n#" + b"x" * (1 << 21)),
     "its header does not end within"),
    ("no type", with_({"type": None}), "type: the header has no such field: damaged"),
    ("no sizes", with_({"sizes": None}), "sizes: the header has no such field: damaged"),
    ("block", with_({"type": "block", "block size": "2"}), "type: want numbers such as short"),
    ("some type", with_({"type": "complex"}), "type: want numbers such as short or float, got"),
    ("hex", with_({"encoding": "hex"}), "encoding: want raw, ascii, gzip or bzip2, got 'hex'"),
    ("no endian", with_({"endian": None}), "endian: want little or big, got ''"),
    ("endian", with_({"endian": "middle"}), "endian: want little or big, got something else"),
    ("dimension", with_({"dimension": "4"}), "sizes: want 4, as dimension says, got 3"),
    ("dimension, text", with_({"dimension": "three"}), "dimension: want a whole number from 1"),
    ("one dimension", with_({"dimension": "1", "sizes": "24", "space directions": "(1,0,0)"}),
     r"dimension: want an image of 2 or 3 dimensions, got 1 \(24\)"),
    ("four dimensions", with_({"dimension": "4", "sizes": "2 3 2 2", "space directions": None}),
     "dimension: want an image of 2 or 3 dimensions, got 4"),
    ("half a size", with_({"sizes": "4.5 3 2"}), "sizes: want a whole number from 1, got '4.5'"),
    ("size 0", with_({"sizes": "4 0 2"}), "sizes: want a whole number from 1, got '0'"),
    ("size -1", with_({"sizes": "4 -1 2"}), "sizes: want a whole number from 1, got '-1'"),
    ("size, digits of others", with_({"sizes": "4 3 \u0662"}), "sizes: want a whole number"),
    ("colours", with_({"sizes": "3 4 2", "kinds": "RGB-color domain domain"}),
     r"kinds: axis 1 of 3 \(kind 'RGB-color'\) holds 3 values for each voxel, want one"),
    ("complex", with_({"sizes": "2 4 3", "kinds": "complex domain domain"}), "holds 2 values"),
    ("series", with_({"sizes": "4 3 2", "kinds": "domain domain time"}),
     r"axis 3 of 3 \(kind 'time'\) holds 2"),
    ("no direction", with_({"space directions": "none (0,2,0) (0,0,3)"}),
     r"sizes: axis 1 of 3 \(kind '', no direction\) holds 4 values"),
    ("kinds", with_({"kinds": "domain"}), "kinds: want 3, one of each axis, got 1"),
    ("cut short", with_({"sizes": "4 3 3"}), "holds \\d+ bytes but the header promises 4 x 3 x 3"),
    ("terabytes", with_({"sizes": TERABYTES}), "image: holds \\d+ bytes but .* cut short"),
    ("terabytes, packed", with_({"sizes": TERABYTES, "encoding": "gzip"}), "bytes, packed, but"),
    ("terabytes, bzip2", with_({"sizes": TERABYTES, "encoding": "bzip2"}), "bytes, packed, but"),
    ("gigabytes, bzip2", with_({"sizes": "9000 3000 1", "encoding": "bzip2"}), "ends within slice"),
    ("terabytes, text", with_({"sizes": TERABYTES, "encoding": "ascii"}), "image: holds \\d+ by"),
    ("raw cut", cut("raw", 900), "cut short"),
    ("gzip cut", cut("gzip", 900), "gzip data are cut short or damaged|ends within slice"),
    ("gzip's checksum cut", cut("gzip", -4), "gzip data are cut short or damaged"),
    ("bzip2 cut", cut("bzip2", 900), "bzip2 data are cut short or damaged"),
    ("bzip2's checksum cut", cut("bzip2", -4), "bzip2 data are cut short or damaged"),
    ("gzip, a voxel", stored(-20), "gzip data are cut short or damaged.*CRC"),
    ("not gzip", replaced(b": raw", b": gzip"), "gzip data are cut short or damaged"),
    ("not bzip2", replaced(b": raw", b": bzip2"), "bzip2 data are cut short or damaged"),
    ("far skip", with_({"byte skip": "99999999999"}), "cut short"),
    ("far skip back", with_({"byte skip": "-99999999999"}), "cut short"),
    ("skip into the header", with_({"byte skip": "-2"}), "cut short"),
    ("skip of a half", with_({"byte skip": "1.5"}), "byte skip: want a whole number, got '1.5'"),
    ("lines", with_({"line skip": "9" * 17}), "line skip: the file ends 9+8 lines too early"),
    ("-1 lines", with_({"line skip": "-1"}), "line skip: want a whole number from 0, got '-1'"),
    ("text from the end", with_({"encoding": "ascii", "byte skip": "-1"}), "skip: counts from"),
    ("text, words", with_({"encoding": "ascii"}, b"some words " * 9), "want numbers with white"),
    ("text, few", with_({"encoding": "ascii"}, b"1 " * 23 + b" " * 9), "want 24 numbers, got 23"),
    ("text, half", with_({"encoding": "ascii"}, b"1.5 " * 24), "image: 1.5 is no int16"),
    ("text, far", with_({"encoding": "ascii"}, b"40000 " * 24), "image: 40000 is no int16"),
    ("text, no number", with_({"encoding": "ascii"}, b"1e 1 " * 24), "image: no number"),
    ("text, NaN", with_({"encoding": "ascii", "type": "float"}, b"1 nan " * 12), "0 holds NaN"),
    ("text, one word", with_({"encoding": "ascii"}, b"1" * 9999), "number of more than 64 signs"),
    ("NaN", floats(0, np.nan), "image: slice 1 holds NaN or infinity"),
    ("infinity", floats(-np.inf), "image: slice 0 holds NaN or infinity"),
    ("overflow", with_({"type": "double", "sizes": "1 1 1"}, np.array([1e300]).tobytes()),
     "image: slice 0 holds NaN or infinity"),
    ("space", with_({"space": "outer"}), "space: want left-posterior-superior"),
    ("space and dimension", with_({"space dimension": "2"}), "space dimension: want 3, as"),
    ("flat", with_({"space directions": "(1,0,0) (2,0,0) (0,0,3)"}),
     "space directions: they span no volume"),
    ("flat plane", with_({"dimension": "2", "sizes": "6 4", "space directions": "(1,0,0) (2,0,0)"}),
     "space directions: they span no volume"),
    ("NaN directions", with_({"space directions": "(1,0,0) (0,nan,0) (0,0,3)"}), "span no volume"),
    ("far directions", with_({"space directions": "(1,0,0) (0,1e300,0) (0,0,3)"}), "no volume"),
    ("two vectors", with_({"space directions": "(1,0,0) (0,2,0)"}), "directions: want 3, one of"),
    ("short vectors", with_({"space directions": "(1,0) (0,2) (1,1)"}), "want vectors of 3"),
    ("odd vectors", with_({"space directions": "(1,0) (0,2,0) (1,1,0)"}), "vectors of one length"),
    ("no vectors", with_({"space directions": "1 2 3"}), r"want vectors such as \(1,0,0\)"),
    ("no numbers", with_({"space directions": "(a,b,c) (0,2,0) (1,1,0)"}),
     "want numbers, got some"),
    ("plane in space", with_({"space": None, "space dimension": "2"}), "want vectors of 3"),
    ("origin", with_({"space origin": "(1,2)"}), "space origin: want 3 numbers, got 2"),
    ("origin, text", with_({"space origin": "1 2 3"}), "space origin: want vectors such as"),
    ("origin, NaN", with_({"space origin": "(1,2,nan)"}), "span no volume"),
    ("units", with_({"space units": '"mm"'}), 'space units: want 3 such as "mm", got 1'),
    ("inch", with_({"space units": '"in" "in" "in"'}), "space units: want a unit of length such"),
    ("spacing 0", with_({**BARE, "spacings": "1 0 1"}), "spacings: they span no volume"),
    ("spacing, text", with_({**BARE, "spacings": "1 a 1"}), "spacings: want numbers, got some"),
    ("spacings", with_({**BARE, "spacings": "1 1"}), "spacings: want 3, one of each axis, got 2"),
    ("spacing, infinite", with_({**BARE, "spacings": "1 inf 1"}), "spacings: they span no volume"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "told"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damaged_files(tmp_path: Path, damage: Damage, told: str) -> None:
    path = tmp_path / "a.nrrd"
    damage(path)
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"(?s)^a\\.nrrd: .*({told})") as caught:
        read_nrrd(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26  # what the header promises is never asked of the memory
    assert str(tmp_path) not in str(caught.value)
    assert str(caught.value).isprintable()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_nrrd(tmp_path / "a.nrrd")
    with pytest.raises(IsADirectoryError):
        read_nrrd(tmp_path)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
def test_random_damage_is_a_format_error_or_harmless(tmp_path: Path, encoding: str) -> None:
    data = b"1 2 3 4 5 6 7 8 " * 3 if encoding == "ascii" else counted(2, 3, 4)
    path = laid_out(tmp_path / "a.nrrd", data, {**LPS, "kinds": "domain domain domain"},
                    encoding=encoding)  # fmt: skip
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(1)
    failed = 0
    for trial in range(300):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
        kept = rng.integers(len(whole)) if trial % 9 == 0 else len(whole)
        failed += refusals(path, damaged[:kept].tobytes(), read_nrrd, layout_nrrd)
    assert failed > 60


# --- through the doors ------------------------------------------------------------------------


def test_recognition_by_content(tmp_path: Path) -> None:
    path = laid_out(tmp_path / "a.nrrd", counted(2, 3, 4), {**LPS})
    assert is_nrrd(path.read_bytes())
    for name in ("a", "b.h5", "c.nii.gz", "d.dat", "e.dcm"):
        (tmp_path / name).write_bytes(path.read_bytes())
        assert datasets.recognise(tmp_path / name) == "nrrd"
        assert datasets.open(tmp_path / name).kind == "nrrd"
    np.save(tmp_path / "f.npy", np.ones(3))
    (tmp_path / "f.npy").rename(tmp_path / "f.nrrd")
    assert datasets.recognise(tmp_path / "f.nrrd") == "npy"
    assert datasets.stem("x.y.nrrd") == datasets.stem("x.y.nhdr") == "x.y"


def test_recon_info(recon: Any, tmp_path: Path) -> None:
    path = laid_out(tmp_path / "a.nrrd", counted(2, 3, 4), {**LPS})
    about = datasets.describe(path)
    assert (about["slices"], about["matrix"], about["unit"]) == (2, (3, 4), "arbitrary")
    assert about["spacing_mm"] == (3, 2, 1)
    assert about["next_command"].endswith("a.nrrd --out results --mask equispaced")
    ran = recon("info", path)
    assert (ran.code, ran.err) == (0, "")
    assert "kind: nrrd" in " ".join(ran.out.split())
    path.write_bytes(path.read_bytes()[:-5])
    ran = recon("info", path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("recon: a.nrrd: image: holds ")
    assert ran.err.count("\n") == 1


def test_a_folder_to_train_on_and_one_to_evaluate(tmp_path: Path) -> None:
    from recon.evaluation.plan import fingerprint
    from recon.evaluation.settings import Settings
    from recon.evaluation.subject import open_subject
    from recon.training.images import read_stacks

    path = detached(tmp_path, "b.raw", "b.raw")
    laid_out(tmp_path / "c.nrrd", counted(2, 3, 4), {**LPS, "space directions":
                                                     "(2,0,0) (0,2,0) (0,0,3)"})  # fmt: skip
    stacks = read_stacks(tmp_path, unit="HU")
    assert [(one.name, one.in_hu) for one in stacks] == [("a.nhdr", True), ("c.nrrd", True)]
    torch.testing.assert_close(stacks[1].values, 1 + torch.arange(24.0).view(2, 3, 4) / 1000)
    assert stacks[1].spacing_mm == (3, 2, 2)
    assert not any(one.in_hu for one in read_stacks(tmp_path))
    entries = datasets.Slices(tmp_path)
    assert {file.name for file, _ in entries.entries} == {"a.nhdr", "c.nrrd"}
    assert [name for name, _ in entries.left_out] == ["b.raw"]
    subject = open_subject(tmp_path / "c.nrrd", Settings({"tv": {}}, unit="HU"))
    assert isinstance(subject.data, Volume)
    assert subject.data.unit == "HU"
    before = fingerprint(path)
    (tmp_path / "b.raw").write_bytes(bytes(48))
    assert fingerprint(path)[2] != before[2]


@pytest.mark.skipif(not REAL.exists(), reason="the development data is not on this machine")
def test_a_real_ct_of_the_chest(sitk: Any) -> None:
    image = sitk.ReadImage(str(REAL))
    volume = datasets.open(REAL, unit="HU")
    check_against_itk(volume, image)
    assert volume.attributes == {"orientation": "LPS"} or "below air" in volume.attributes["note"]
    assert volume.spacing_mm == (5, 0.5703125, 0.5703125)
    middle = volume.values[24, 128:384, 96:416]
    assert -950 < float(middle[(middle < -500) & (middle > -990)].median()) < -700  # lung
    assert 0 < float(middle[(middle > -50) & (middle < 150)].median()) < 80  # soft tissue
    with pytest.raises(AssertionError):
        check_against_itk(volume._replace(values=volume.values.flip(1)), image)
