"""NIfTI: against bytes laid out by hand, nibabel, SimpleITK and dcm2niix; damaged files."""

import gzip
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.datasets import FormatError, Volume
from recon.datasets.nifti import is_nifti, layout_nifti, read_nifti
from recon.datasets.write_nifti import write_nifti
from tests.datasets.damaged import refusals

nib = pytest.importorskip("nibabel", reason="NIfTI files need nibabel")
SERIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct" / "upper_abdomen_dicom"
needs_series = pytest.mark.skipif(
    not SERIES.exists(), reason="the development data is not on this machine")  # fmt: skip
OBLIQUE = np.array([[-0.8, 0.1, 0.5, 11.0], [0.2, 0.9, -0.7, -70.0],
                    [0.1, 0.3, 2.5, 30.0], [0, 0, 0, 1]])  # fmt: skip
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def laid_out(path: Path, values: NDArray[Any], code: int, **fields: Any) -> Path:
    """A NIfTI-1 file byte by byte from nifti1.h: ``values`` are ``(z, y, x)``."""
    header = bytearray(352)

    def put(at: int, kind: str, *numbers: Any) -> None:
        struct.pack_into(f"<{kind}", header, at, *numbers)

    put(0, "i", 348)
    put(40, "8h", *fields.get("dim", (3, *values.shape[::-1], 1, 1, 1, 1)))
    put(70, "2h", code, 8 * values.itemsize)
    put(76, "8f", 1, *fields.get("pixdim", (1, 1, 1)), 0, 0, 0, 0)
    put(108, "3f", fields.get("offset", 352), *fields.get("scale", (0, 0)))
    put(123, "B", fields.get("units", 2))
    put(148, "80s", fields.get("text", b""))
    put(252, "2h", fields.get("qform", 0), fields.get("sform", 1))
    put(256, "6f", *fields.get("quatern", (0,) * 6))
    rows = fields.get("rows", ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)))
    put(280, "12f", *(x for row in rows for x in row))
    put(344, "4s", fields.get("magic", b"n+1\0"))
    path.write_bytes(bytes(header) + values.astype(values.dtype.newbyteorder("<")).tobytes())
    return path


def counted(*shape: int) -> NDArray[np.int16]:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def check_reader(read: Callable[[Path], Volume], folder: Path) -> None:
    """x left, y front, z head in the file's own terms, 2, 3 and 4 mm; slope 2, inter -1000."""
    rows = ((-2, 0, 0, 50), (0, 3, 0, -60), (0, 0, 4, 70))  # towards right, front, head
    volume = read(laid_out(folder / "a.nii", counted(3, 5, 4), 4, scale=(2, -1000), rows=rows,
                           pixdim=(2, 3, 4)))  # fmt: skip
    assert volume.values.dtype == torch.float32
    assert volume.values.shape == (3, 5, 4)
    assert volume.affine is not None
    for k in range(3):
        for j in range(5):
            for i in range(4):
                assert volume.values[k, j, i] == 2 * (i + 4 * (j + 5 * k)) - 1000
                place = volume.affine @ torch.tensor([k, j, i, 1], dtype=torch.float64)
                # 50 mm to the right is -50 to the left, and -60 to the front 60 to the back
                assert place.tolist() == [-50 + 2 * i, 60 - 3 * j, 70 + 4 * k, 1]
    assert volume.spacing_mm == (4, 3, 2)
    assert (volume.unit, volume.kind, volume.name) == ("arbitrary", "nifti", "a.nii")
    assert volume.attributes == {"orientation": "LAS"}


def test_reader_against_bytes_laid_out_by_hand(tmp_path: Path) -> None:
    check_reader(read_nifti, tmp_path)
    layout = layout_nifti(tmp_path / "a.nii")
    assert layout == ("nifti", 3, {"image": {"shape": (4, 5, 3), "dtype": "int16"}})


def in_ras(volume: Volume) -> Volume:
    assert volume.affine is not None
    return volume._replace(affine=torch.from_numpy(RAS_TO_LPS) @ volume.affine)


def in_file_order(volume: Volume) -> Volume:
    assert volume.affine is not None
    return volume._replace(affine=volume.affine[:, [2, 1, 0, 3]])


@pytest.mark.parametrize("wrong", [
    in_ras,
    in_file_order,
    lambda v: v._replace(values=v.values.flip(1)),
    lambda v: v._replace(values=v.values.reshape(4, 5, 3).permute(2, 1, 0)),
    lambda v: v._replace(values=(v.values + 1000) / 2),
])  # fmt: skip
def test_the_check_of_the_reader_catches(tmp_path: Path, wrong: Callable[[Volume], Volume]) -> None:
    with pytest.raises(AssertionError):
        check_reader(lambda path: wrong(read_nifti(path)), tmp_path)


def numbers(dtype: str, *shape: int) -> NDArray[Any]:
    draws = np.random.default_rng(0).normal(size=(2, *shape)) * 50
    return (draws[0] + 1j * draws[1] if "c" in dtype else np.abs(draws[0])).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [
    "<f4", ">f4", ">i2", "<u2", "|u1", "|i1", "<i4", ">u4", "<i8", ">u8", "<f8", ">f8",
    "<c8", ">c8", ">c16"])
def test_what_nibabel_writes(tmp_path: Path, image: Any, dtype: str, suffix: str) -> None:
    array = numbers(dtype, 4, 5, 3)
    header = image.header_class(endianness=dtype[0] if dtype[0] in "<>" else "<")
    header.set_xyzt_units("mm")
    path = tmp_path / f"a{suffix}"
    nib.save(image(array, OBLIQUE, header, dtype=array.dtype), path)
    volume = read_nifti(path)
    assert nib.load(path).header.endianness == (dtype[0] if dtype[0] in "<>" else "<")
    wanted = array.astype(np.complex64 if "c" in dtype else np.float32).transpose(2, 1, 0)
    assert torch.equal(volume.values, torch.from_numpy(wanted.copy()))
    assert volume.affine is not None
    stored = nib.load(path).affine
    for k, j, i in ((0, 0, 0), (2, 4, 3), (1, 0, 3)):
        place = volume.affine @ torch.tensor([k, j, i, 1], dtype=torch.float64)
        np.testing.assert_allclose(place, RAS_TO_LPS @ stored @ [i, j, k, 1], atol=1e-12)
    cast = {"i4", "u4", "i8", "u8", "f8"} & {dtype[1:]}
    told = "cast to float32" if cast else "cast to complex64" if dtype[1:] == "c16" else ""
    assert told in str(volume.attributes.get("note", ""))
    assert bool(told) == ("note" in volume.attributes)
    assert is_nifti(path)
    assert layout_nifti(path).keys["image"]["shape"] == (4, 5, 3)


@pytest.mark.parametrize(("scale", "factor", "shift"), [
    ((0, 5), 1, 0), ((float("nan"), 5), 1, 0), ((0.1, 3), np.float32(0.1), 3), ((1, -7), 1, -7)])
def test_scaling(tmp_path: Path, scale: tuple[float, float], factor: float, shift: float) -> None:
    stored = counted(2, 3, 4)
    read = read_nifti(laid_out(tmp_path / "a.nii", stored, 4, scale=scale)).values
    exact = stored.astype(np.float64) * float(factor) + shift
    assert torch.equal(read, torch.from_numpy(exact.astype(np.float32)))


def test_scaling_of_complex_values_reaches_both_parts(tmp_path: Path) -> None:
    stored = numbers("c8", 2, 3, 4)
    read = read_nifti(laid_out(tmp_path / "a.nii", stored, 32, scale=(2, 3))).values
    np.testing.assert_array_equal(read, (2 * stored.astype(complex) + 3 + 3j).astype("c8"))


QUATERN = (0, 0, 0, 1, 2, 3)  # no rotation, at (1, 2, 3)


@pytest.mark.parametrize(("fields", "origin", "note"), [
    ({"sform": 2}, (0, 0, 0), ""),
    ({"sform": 0, "qform": 1, "quatern": QUATERN}, (-1, -2, 3), ""),
    ({"sform": 4, "qform": 1, "quatern": QUATERN}, (-1, -2, 3),
     "qform and sform are up to 3.74 mm apart: qform was used"),
    ({"sform": 1, "qform": 1, "quatern": QUATERN}, (0, 0, 0),
     "sform and qform are up to 3.74 mm apart: sform was used"),
    ({"sform": 1, "qform": 1}, (0, 0, 0), ""),
    ({"sform": 1, "qform": 1, "quatern": (2, 2, 2, 0, 0, 0)}, (0, 0, 0),
     "qform is no geometry and was left out"),
    ({"sform": 4}, (0, 0, 0), "positions are in mni coordinates, not the scanner's"),
    ({"sform": 77, "qform": 1, "quatern": QUATERN}, (-1, -2, 3),
     "header: sform_code 77 not valid; setting to 0"),
    ({"units": 0}, (0, 0, 0), "the unit of length is not given and was taken as mm"),
    ({"pixdim": (1, 1, 2)}, (0, 0, 0),
     "pixdim says 1 x 1 x 2 mm, the sform 1 x 1 x 1 mm, which was used"),
    ({"offset": 0}, (0, 0, 0), "vox_offset is 0, the image was taken to begin at byte 352"),
    ({"rows": ((1, 0, 0, 0), (0, 0, 1, 0), (0, -1, 0, 0))}, (0, 0, 0),
     "slices, along the file's z, are coronal"),
    ({"rows": ((0, 0, -1, 0), (1, 0, 0, 0), (0, 1, 0, 0))}, (0, 0, 0),
     "slices, along the file's z, are sagittal"),
])  # fmt: skip
def test_which_geometry(tmp_path: Path, fields: dict[str, Any], origin: tuple[float, ...],
                        note: str) -> None:  # fmt: skip
    volume = read_nifti(laid_out(tmp_path / "a.nii", counted(2, 3, 4), 4, **fields))
    assert volume.affine is not None
    assert volume.affine[:3, 3].tolist() == list(origin)
    assert volume.attributes.get("note", "") == note


@pytest.mark.parametrize(("units", "factor"), [(1, 1000), (2, 1), (3, 1e-3)])
def test_units_of_length(tmp_path: Path, units: int, factor: float) -> None:
    rows = ((0.5, 0, 0, 1), (0, 0.5, 0, 0), (0, 0, 0.5, 0))
    volume = read_nifti(laid_out(tmp_path / "a.nii", counted(2, 3, 4), 4, units=units, rows=rows,
                                 pixdim=(0.5, 0.5, 0.5)))  # fmt: skip
    assert volume.spacing_mm == pytest.approx((0.5 * factor,) * 3)
    assert volume.affine is not None
    assert float(volume.affine[0, 3]) == pytest.approx(-factor)


def test_without_a_place(tmp_path: Path) -> None:
    path = laid_out(tmp_path / "a.nii", counted(2, 3, 4), 4, sform=0, pixdim=(0.5, 0.5, 3))
    volume = read_nifti(path)
    assert volume.affine is None
    assert volume.spacing_mm is None
    assert volume.attributes == {"pixel_x_mm": 0.5, "pixel_y_mm": 0.5, "pixel_z_mm": 3.0,
                                 "note": "the file gives no position and orientation"}  # fmt: skip


@pytest.mark.parametrize(("dim", "shape"), [
    ((2, 4, 6, 1, 1, 1, 1, 1), (1, 6, 4)), ((4, 4, 3, 2, 1, 1, 1, 1), (2, 3, 4)),
    ((2, 4, 6, 9, 9, 9, 9, 9), (1, 6, 4)), ((7, 2, 3, 4, 1, 1, 1, 1), (4, 3, 2))])
def test_dimensions(tmp_path: Path, dim: tuple[int, ...], shape: tuple[int, ...]) -> None:
    path = laid_out(tmp_path / "a.nii", counted(2, 3, 4), 4, dim=dim)
    assert read_nifti(path).values.shape == shape


def test_unit_is_the_callers(tmp_path: Path) -> None:
    def read(low: int) -> Volume:
        path = laid_out(tmp_path / "a.nii", counted(2, 3, 4) + np.int16(low), 4)
        return read_nifti(path, unit="HU")

    assert read(-1024).unit == "HU"
    assert "note" not in read(-1024).attributes
    assert read(0).attributes["note"] == "values from 0 to 23 are unlike HU, where air is -1000"
    assert "values down to -3024 HU lie below air" in str(read(-3024).attributes["note"])
    with pytest.raises(ValueError, match="unit: want 'HU' or 'arbitrary', got 'hu'"):
        read_nifti(tmp_path / "a.nii", unit="hu")
    write_nifti(tmp_path / "b.nii", torch.ones(1, 2, 3, dtype=torch.complex64), None)
    with pytest.raises(FormatError, match="complex values cannot be HU"):
        read_nifti(tmp_path / "b.nii", unit="HU")


def test_only_the_chosen_slices_are_read(tmp_path: Path) -> None:
    values = numbers("<f4", 6, 40, 50)
    values[4, 3, 2] = np.nan
    for name in ("a.nii", "a.nii.gz"):
        path = tmp_path / name
        nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), OBLIQUE), path)
        read = read_nifti(path, slice(1, 4, 2)).values
        assert torch.equal(read, torch.from_numpy(values[1:4:2]))
        with pytest.raises(FormatError, match=r"image: slice 4 holds NaN or infinity"):
            read_nifti(path, slice(3, None))
        with pytest.raises(ValueError, match="chooses none of the 6 slices"):
            read_nifti(path, slice(6, 8))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert torch.equal(read_nifti(path, slice(0, 3)).values, torch.from_numpy(values[:3]))
    with pytest.raises(FormatError, match="gzip file is cut short or damaged"):
        read_nifti(path, slice(5, 6))


def test_a_checksum_is_checked(tmp_path: Path) -> None:
    path = laid_out(tmp_path / "a.nii", counted(2, 3, 4), 4)
    packed = bytearray(gzip.compress(path.read_bytes(), 0))
    packed[-20] ^= 1  # a voxel: level 0 stores the bytes as they are
    path.write_bytes(packed)
    with pytest.raises(FormatError, match=r"gzip file is cut short or damaged.*CRC"):
        read_nifti(path)


def test_no_text_of_the_header_is_passed_on(tmp_path: Path) -> None:
    image = nib.Nifti1Image(counted(4, 3, 2), OBLIQUE)
    for key in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[key] = b"DOE^JOHN"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JOHN"))
    nib.save(image, tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")
    assert "DOE" not in repr((volume.attributes, layout_nifti(tmp_path / "a.nii")))
    assert torch.equal(volume.values, torch.from_numpy(counted(4, 3, 2).T.astype("f4").copy()))


def test_bytes_behind_the_image_are_noted(tmp_path: Path) -> None:
    path = laid_out(tmp_path / "a.nii", counted(2, 3, 4), 4)
    path.write_bytes(path.read_bytes() + b"abc")
    assert read_nifti(path).attributes["note"] == "3 bytes behind the image were left out"


TERABYTES = (3, 32767, 32767, 32767, 1, 1, 1, 1)
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty", lambda p: p.write_bytes(b""), "the file is empty"),
    ("web page", lambda p: p.write_text("<html>log in</html>"), "a web page"),
    ("LFS pointer", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"),
     "git lfs pull"),
    ("text", lambda p: p.write_text("plain text"), "not a NIfTI file: want n\\+1 or n\\+2"),
    ("wrong magic", lambda p: laid_out(p, counted(2, 3, 4), 4, magic=b"n+9\0"), "not a NIfTI file"),
    ("Analyze", lambda p: laid_out(p, counted(2, 3, 4), 4, magic=b"\0" * 4), "not a NIfTI file"),
    ("pair", lambda p: laid_out(p, counted(2, 3, 4), 4, magic=b"ni1\0"),
     "header of a pair with .img: join them"),
    ("header alone", lambda p: p.write_bytes(
        laid_out(p, counted(2, 3, 4), 4).read_bytes()[:348]), "holds 348 bytes.*cut short"),
    ("cut short", lambda p: p.write_bytes(laid_out(p, counted(2, 3, 4), 4).read_bytes()[:-1]),
     "holds 399 bytes but the header promises 400 \\(4 x 3 x 2 of 2 bytes\\): cut short"),
    ("terabytes", lambda p: laid_out(p, counted(2, 3, 4), 4, dim=TERABYTES),
     "the header promises 70362301923678 \\(32767 x 32767 x 32767 of 2 bytes\\): cut short"),
    ("packed terabytes", lambda p: p.write_bytes(gzip.compress(laid_out(
        p, counted(2, 3, 4), 4, dim=TERABYTES).read_bytes())),
     "bytes, packed, but the header promises 70362301923678"),
    ("packed promise", lambda p: p.write_bytes(gzip.compress(laid_out(
        p, counted(2, 3, 4), 4, dim=(3, 40, 30, 20, *(1,) * 4)).read_bytes())),
     "image: ends within slice 0 of 20: cut short"),
    ("packed, cut", lambda p: p.write_bytes(gzip.compress(laid_out(
        p, numbers("<f4", 2, 30, 40), 16).read_bytes())[:-900]),
     "gzip file is cut short or damaged, copy it again"),
    ("packed garbage", lambda p: p.write_bytes(gzip.compress(b"garbage" * 99)), "not a NIfTI file"),
    ("gzip of nothing", lambda p: p.write_bytes(b"\x1f\x8b\x08\0" + b"\xff" * 60),
     "gzip file is cut short or damaged"),
    ("not gzip", lambda p: p.write_bytes(b"\x1f\x8b" + b"\7" * 60), "gzip file is cut short"),
    ("4-D", lambda p: laid_out(p, counted(2, 3, 4), 4, dim=(4, 4, 3, 1, 2, 1, 1, 1)),
     "dim: 4 x 3 x 1 x 2 are 2 volumes, want one: save it"),
    ("5-D", lambda p: laid_out(p, counted(2, 3, 4), 4, dim=(5, 4, 3, 1, 1, 2, 1, 1)),
     "are 2 volumes, want one"),
    ("1-D", lambda p: laid_out(p, counted(2, 3, 4), 4, dim=(1, 24, 1, 1, 1, 1, 1, 1)),
     "dim: want 2 to 7 positive sizes, got 1: \\[24\\]"),
    ("no voxel", lambda p: laid_out(p, counted(2, 3, 4), 4, dim=(3, 4, 0, 2, 1, 1, 1, 1)),
     "positive sizes, got 3: \\[4, 0, 2\\]"),
    ("negative", lambda p: laid_out(p, counted(2, 3, 4), 4, dim=(3, -4, 3, 2, 1, 1, 1, 1)),
     "positive sizes, got 3: \\[-4, 3, 2\\]"),
    ("dimensions", lambda p: laid_out(p, counted(2, 3, 4), 4, dim=(9, 4, 3, 2, 1, 1, 1, 1)),
     "positive sizes, got 9"),
    ("datatype", lambda p: laid_out(p, counted(2, 3, 4), 77), "damaged header \\(data code 77"),
    ("colours", lambda p: laid_out(p, numbers("|u1", 6, 3, 4), 128, dim=(3, 4, 3, 2, *(1,) * 4)),
     "datatype: want an image of numbers, got RGB"),
    ("offset", lambda p: laid_out(p, counted(2, 3, 4), 4, offset=16),
     "vox_offset: want a whole number from 352, got 16"),
    ("offset, NaN", lambda p: laid_out(p, counted(2, 3, 4), 4, offset=float("nan")),
     "vox_offset: want a whole number from 352, got nan"),
    ("offset, far", lambda p: laid_out(p, counted(2, 3, 4), 4, offset=1e18),
     "holds 400 bytes but the header promises 9\\d+"),
    ("slope", lambda p: laid_out(p, counted(2, 3, 4), 4, scale=(float("inf"), 0)),
     "scl_slope, scl_inter: want numbers, got inf"),
    ("inter", lambda p: laid_out(p, counted(2, 3, 4), 4, scale=(1, float("nan"))),
     "scl_slope, scl_inter: want numbers, got 1.0, nan"),
    ("overflow", lambda p: laid_out(p, counted(2, 3, 4), 4, scale=(3e38, 0)),
     "image: slice 0 holds NaN or infinity"),
    ("NaN", lambda p: laid_out(p, np.array([[[0]], [[np.nan]]], "f4"), 16),
     "image: slice 1 holds NaN or infinity"),
    ("infinity", lambda p: laid_out(p, np.array([[[-np.inf]]], "f4"), 16), "slice 0 holds NaN"),
    ("no sform", lambda p: laid_out(p, counted(2, 3, 4), 4, rows=((0,) * 4,) * 3),
     "sform: its matrix is not invertible"),
    ("sform, NaN", lambda p: laid_out(p, counted(2, 3, 4), 4, rows=((float("nan"),) * 4,) * 3),
     "sform: its matrix is not invertible"),
    ("no qform", lambda p: laid_out(p, counted(2, 3, 4), 4, sform=0, qform=1,
                                    quatern=(2, 2, 2, 0, 0, 0)), "qform: no rotation"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "told"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], object], told: str) -> None:
    path = tmp_path / "a.nii"
    damage(path)
    tracemalloc.start()
    with pytest.raises(FormatError, match=f"^a\\.nii: .*({told})") as caught:
        read_nifti(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26  # what the header promises is never asked of the memory
    assert str(tmp_path) not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_nifti(tmp_path / "a.nii")
    with pytest.raises(IsADirectoryError):
        read_nifti(tmp_path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "b.nii"])
def test_random_damage_is_a_format_error_or_harmless(tmp_path: Path, name: str) -> None:
    kind = nib.Nifti2Image if name == "b.nii" else nib.Nifti1Image
    nib.save(kind(numbers("<f4", 4, 5, 3), OBLIQUE), tmp_path / name)
    whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
    rng = np.random.default_rng(1)
    failed = 0
    for trial in range(300):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=5)] = rng.integers(256, size=5)
        kept = rng.integers(len(whole)) if trial % 9 == 0 else len(whole)
        failed += refusals(tmp_path / name, damaged[:kept].tobytes(), read_nifti, layout_nifti)
        is_nifti(tmp_path / name)
    assert failed > 60


def test_recognition_by_content(tmp_path: Path) -> None:
    path = laid_out(tmp_path / "a.nii", counted(2, 3, 4), 4)
    path.rename(tmp_path / "a")
    (tmp_path / "b").write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    (tmp_path / "c").write_bytes(gzip.compress(b"something else"))
    (tmp_path / "d").write_bytes(b"\x1f\x8b damaged")
    (tmp_path / "e.NII").write_bytes(b"")
    assert [is_nifti(tmp_path / name) for name in ("a", "b", "c", "d", "e.NII")] == [
        True, True, False, False, True]  # fmt: skip


LPS = torch.tensor([[0.5, 0.1, -0.8, 11], [-0.7, 0.9, 0.2, -70], [2.5, 0.3, 0.1, 30],
                    [0, 0, 0, 1]], dtype=torch.float64)  # fmt: skip
TURNED = torch.tensor([[0, 0.6, -1.2, -90.5], [0, 0.8, 0.9, 40.25], [-3, 0, 0, 800.125],
                       [0, 0, 0, 1]], dtype=torch.float64)  # fmt: skip


@pytest.mark.parametrize("affine", [LPS, TURNED, None])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_round_trip(tmp_path: Path, affine: Tensor | None, name: str, dtype: torch.dtype) -> None:
    values = torch.randn(3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    write_nifti(tmp_path / name, values, affine)
    volume = read_nifti(tmp_path / name)
    assert torch.equal(volume.values, values)
    assert (volume.affine is None) == (affine is None)
    if affine is not None and volume.affine is not None:
        torch.testing.assert_close(volume.affine, affine, rtol=1e-7, atol=0)
        assert "note" not in volume.attributes
    assert nib.load(tmp_path / name).header.get_xyzt_units()[0] in ("mm", "unknown")
    assert (tmp_path / name).read_bytes()[:2] == (b"\x1f\x8b" if name == "a.nii.gz" else b"\\\1")


def test_equal_images_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, torch.ones(2, 3, 4), TURNED)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.nii.gz", "b.nii.gz"]


Writer = Callable[[Path, Tensor, Tensor], None]


def check_writer(write: Writer, folder: Path) -> None:
    """What nibabel and SimpleITK make of it: values and places of voxels, both forms."""
    sitk = pytest.importorskip("SimpleITK", reason="needs SimpleITK")
    values = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    path = folder / "a.nii.gz"
    path.unlink(missing_ok=True)
    write(path, values, TURNED)
    theirs, itk = nib.load(path), sitk.ReadImage(str(path))
    assert itk.GetSize() == (5, 4, 3)
    assert theirs.shape == (5, 4, 3)
    assert (int(theirs.header["sform_code"]), int(theirs.header["qform_code"])) == (1, 1)
    assert nib.aff2axcodes(theirs.affine) == nib.aff2axcodes(
        RAS_TO_LPS @ TURNED.numpy()[:, [2, 1, 0, 3]]) == ("R", "P", "I")  # fmt: skip
    for s, r, c in ((0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 4), (1, 2, 3)):
        place = (TURNED @ torch.tensor([s, r, c, 1], dtype=torch.float64)).numpy()
        assert itk.GetPixel(c, r, s) == float(values[s, r, c]) == theirs.dataobj[c, r, s]
        found = itk.TransformIndexToPhysicalPoint((c, r, s))
        np.testing.assert_allclose(found, place[:3], atol=1e-4)
        for form in (theirs.header.get_sform(), theirs.header.get_qform()):
            np.testing.assert_allclose(form @ [c, r, s, 1], RAS_TO_LPS @ place, atol=1e-4)


def test_other_programs_agree(tmp_path: Path) -> None:
    check_writer(write_nifti, tmp_path)


@pytest.mark.parametrize("wrong", [
    lambda path, x, a: write_nifti(path, x, torch.from_numpy(RAS_TO_LPS) @ a),
    lambda path, x, a: write_nifti(path, x, a[:, [2, 1, 0, 3]]),
    lambda path, x, a: write_nifti(path, x.flip(1), a),
    lambda path, x, a: write_nifti(path, x.permute(2, 1, 0), a),
    lambda path, x, a: nib.save(nib.Nifti1Image(x.numpy().transpose(2, 1, 0), a.numpy()), path),
])  # fmt: skip
def test_the_check_of_the_writer_catches(tmp_path: Path, wrong: Writer) -> None:
    with pytest.raises(AssertionError):
        check_writer(wrong, tmp_path)


def test_a_sheared_affine_has_no_qform(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", torch.ones(2, 3, 4), LPS)
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)


@pytest.mark.parametrize(("values", "affine", "told"), [
    (torch.ones(3, 4), None, r"want \(slices, H, W\), each from 1 to 32767, got \(3, 4\)"),
    (torch.ones(0, 3, 4), None, "each from 1"),
    (torch.ones(1, 1, 32768), None, "each from 1 to 32767"),
    (torch.tensor([[[1.0]], [[torch.nan]]]), None, "slice 1 holds NaN or infinity"),
    (torch.ones(1, 2, 3), torch.eye(3), "affine: want an invertible"),
    (torch.ones(1, 2, 3), torch.zeros(4, 4), "affine: want an invertible"),
    (torch.ones(1, 2, 3), torch.diag(torch.tensor([1.0, 1, 0, 1])), "affine: want an invertible"),
    (torch.ones(1, 2, 3), torch.diag(torch.tensor([1.0, 1, 1, 2])), "last row 0 0 0 1"),
    (torch.ones(1, 2, 3), torch.full((4, 4), torch.nan), "affine: want an invertible"),
])  # fmt: skip
def test_refusals_of_the_writer(tmp_path: Path, values: Tensor, affine: Tensor | None,
                                told: str) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=told):
        write_nifti(tmp_path / "a.nii", values, affine)
    assert list(tmp_path.iterdir()) == []


def test_names_of_written_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"want a name ending in .nii or .nii.gz, got 'a.img'"):
        write_nifti(tmp_path / "a.img", torch.ones(1, 2, 3), None)
    write_nifti(tmp_path / "a.nii", torch.ones(1, 2, 3), None)
    with pytest.raises(FileExistsError, match=r"a\.nii: exists"):
        write_nifti(tmp_path / "a.nii", torch.zeros(1, 2, 3), None)
    write_nifti(tmp_path / "a.nii", torch.zeros(1, 2, 3), None, overwrite=True)
    assert not read_nifti(tmp_path / "a.nii").values.any()


def test_a_missing_nibabel_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = laid_out(tmp_path / "a.nii", counted(2, 3, 4), 4)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match=r'pip install "recon\[nifti\]"'):
        read_nifti(path)
    with pytest.raises(ImportError, match=r'pip install "recon\[nifti\]"'):
        write_nifti(tmp_path / "b.nii", torch.ones(1, 2, 3), None)


@pytest.fixture(scope="module")
def series() -> Any:
    sitk = pytest.importorskip("SimpleITK", reason="needs SimpleITK")
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(SERIES)))


def check_against_series(volume: Volume, series: Any) -> None:
    """Voxels of ours, by their place in the patient, in the series as SimpleITK reads it."""
    assert volume.affine is not None
    rng = np.random.default_rng(0)
    for s, r, c in rng.integers(0, volume.values.shape, size=(200, 3)):
        place = (volume.affine @ torch.tensor([s, r, c, 1], dtype=torch.float64))[:3].tolist()
        index = np.array(series.TransformPhysicalPointToContinuousIndex(place))
        np.testing.assert_allclose(index, np.round(index), atol=1e-4)
        assert volume.values[s, r, c] == series.GetPixel(*np.round(index).astype(int).tolist())


@needs_series
@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")
@pytest.mark.parametrize("packed", ["y", "n"])
def test_what_dcm2niix_makes_of_a_ct_series(tmp_path: Path, packed: str, series: Any) -> None:
    subprocess.run(["dcm2niix", "-z", packed, "-b", "n", "-o", tmp_path, "-f", "ct", SERIES],
                   check=True, capture_output=True)  # fmt: skip
    volume = read_nifti(tmp_path / ("ct.nii.gz" if packed == "y" else "ct.nii"), unit="HU")
    assert volume.attributes == {"orientation": "LAS"}
    check_against_series(volume, series)
    for wrong in (in_ras(volume), volume._replace(values=volume.values.flip(1)),
                  volume._replace(values=volume.values.flip(0))):  # fmt: skip
        with pytest.raises(AssertionError):
            check_against_series(wrong, series)


@needs_series
def test_our_file_of_a_ct_series(tmp_path: Path, series: Any) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="needs SimpleITK")
    affine = torch.eye(4, dtype=torch.float64)
    axes = np.array(series.GetDirection()).reshape(3, 3) * series.GetSpacing()
    affine[:3, :3] = torch.from_numpy(axes[:, ::-1].copy())
    affine[:3, 3] = torch.tensor(series.GetOrigin())
    write_nifti(tmp_path / "a.nii", sitk.GetArrayFromImage(series), affine)
    check_against_series(read_nifti(tmp_path / "a.nii"), series)
    again = sitk.ReadImage(str(tmp_path / "a.nii"))
    np.testing.assert_allclose(again.GetOrigin(), series.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(again.GetSpacing(), series.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(again.GetDirection(), series.GetDirection(), atol=1e-6)
    assert (sitk.GetArrayViewFromImage(again) == sitk.GetArrayViewFromImage(series)).all()
