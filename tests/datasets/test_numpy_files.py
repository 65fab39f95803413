"""npz and npy files, the door that recognises all kinds, and its description of them."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recon import datasets
from recon.datasets import FormatError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw"


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


def test_npz_round_trip(tmp_path: Path) -> None:
    kspace, maps = noise(3, 2, 6, 5), noise(2, 6, 5)
    mask = torch.tensor([True, False, True, True, False])
    reference = torch.rand(3, 4, 3)
    arrays: dict[str, Any] = {"kspace": kspace, "mask": mask, "maps": maps, "reference": reference,
              "field": 3.0, "site": "here", "extra": np.arange(3)}  # fmt: skip
    datasets.write_npz(tmp_path / "a.npz", arrays)
    scan = datasets.open(tmp_path / "a.npz", slice(1, None))
    assert torch.equal(scan.kspace, torch.where(mask, kspace, 0)[1:])
    assert scan.mask is not None
    assert torch.equal(scan.mask, mask)
    assert scan.maps is not None
    assert torch.equal(scan.maps, maps.expand(2, 2, 6, 5))
    assert scan.reference is not None
    assert torch.equal(scan.reference, reference[1:])
    assert (scan.crop, scan.kind) == ((4, 3), "npz")
    assert scan.attributes["field"] == 3.0
    assert str(scan.attributes["note"]).startswith(
        "left out: extra; left out, as they may name a patient: site; ")


def test_aliases(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ksp=noise(2, 6, 5), pattern=np.ones(5), csm=noise(2, 6, 5))
    scan = datasets.open(tmp_path / "a.npz")
    assert scan.kspace.shape == (1, 2, 6, 5)
    assert scan.mask is not None
    assert scan.maps is not None


@pytest.mark.parametrize("shape", [(6, 5), (2, 6, 5), (3, 2, 6, 5)])
def test_npy_three_axes_are_coils(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", noise(*shape).numpy())
    scan = datasets.open(tmp_path / "a.npy")
    assert torch.equal(scan.kspace, noise(*shape).reshape((1,) * (4 - len(shape)) + shape))
    scan.kspace.zero_()  # a copy, not the file
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "a.npy")), noise(*shape))


def test_npy_stored_column_major(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(noise(2, 6, 5).numpy()))
    assert torch.equal(datasets.open(tmp_path / "a.npy").kspace[0], noise(2, 6, 5))


def by_python_2(array: Any) -> bytes:
    """An npy file whose header has long integers, as Python 2 wrote sizes on some machines."""
    sizes = ", ".join(f"{n}L" for n in array.shape)
    header = f"{{'descr': '<c8', 'fortran_order': False, 'shape': ({sizes}), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + array.tobytes()


def test_files_of_python_2(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Python 2"):
        np.load(io.BytesIO(by_python_2(K)))
    (tmp_path / "a.npy").write_bytes(by_python_2(K))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("kspace.npy", by_python_2(K))
    for name in ("a.npy", "b.npz"):
        assert np.array_equal(datasets.open(tmp_path / name).kspace[0], K)


K = noise(2, 6, 5).numpy()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": K}, r"a\.npz: kspace: want a key kspace or ksp .*the file holds x"),
        ({"kspace": K, "ksp": K}, "kspace: two names for one array, keep one: kspace, ksp"),
        ({"kspace": K[0, 0]}, r"want \(H, W\), .*got \(5,\)"),
        ({"kspace": np.array([{}], dtype=object)}, "kspace: holds Python objects"),
        ({"kspace": K, "note": np.array([{}], dtype=object)}, "note: holds Python objects"),
        ({"kspace": K, "mask": np.ones(6)}, "mask: has 6 columns"),
        ({"kspace": K, "maps": np.ones((3, 6, 5))}, r"maps: want shape \(1, 2, 6, 5\) or"),
        ({"kspace": K, "maps": K * np.nan}, "maps: slice 0 holds NaN"),
        ({"kspace": K, "reference": np.ones((2, 6, 5))}, "k-space with three axes is"),
        ({"kspace": K, "reference": K[0]}, "reference: want real values"),
        ({"kspace": K * np.inf}, "kspace: slice 0 holds NaN or infinity"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], match: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FormatError, match=match):
        datasets.open(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(64, 48), (3, 64, 48), (4, 6, 8, 24)])
def test_real_numbers_are_no_kspace(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """An image saved as npy, and Calgary-Campinas' alternating parts, would both be transformed."""
    real = np.random.default_rng(0).random(shape)
    np.save(tmp_path / "a.npy", real)
    np.savez(tmp_path / "a.npz", kspace=real.astype(np.float32))
    for name, dtype in (("a.npy", "float64"), ("a.npz", "float32")):
        for read in (datasets.open, datasets.describe):
            with pytest.raises(FormatError, match=f"kspace: want complex values, got {dtype} of"):
                read(tmp_path / name)
    np.savez(tmp_path / "b.npz", kspace=K, maps=np.ones(K.shape, np.float32))  # these may be real
    assert bool((datasets.open(tmp_path / "b.npz").maps == 1).all())


def test_alternating_parts_as_the_error_says(tmp_path: Path) -> None:
    """(slices, H, W, 2 coils): the line of the message gives (slices, coils, H, W)."""
    kspace = noise(4, 12, 6, 8)
    x = np.moveaxis(kspace.numpy(), 1, -1).copy().view(np.float32)
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(FormatError) as told:
        datasets.open(tmp_path / "a.npy")
    line = str(told.value).split("write ")[1].removesuffix(" instead")
    np.save(tmp_path / "b.npy", eval(line, {"np": np, "x": x}))
    assert torch.equal(datasets.open(tmp_path / "b.npy").kspace, kspace)


def test_damaged_numpy_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", K)
    whole = (tmp_path / "a.npy").read_bytes()
    for content in (whole[:-8], whole[:60], whole[:6], whole[:10] + b"(" * 70):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(FormatError, match=r"a\.npy: kspace: cannot be read"):
            datasets.open(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", kspace=K)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[:-30])
    with pytest.raises(FormatError, match=r"a\.npz: damaged npz file"):
        datasets.open(tmp_path / "a.npz")
    middle = len(whole) // 2
    (tmp_path / "a.npz").write_bytes(whole[:middle] + b"!" * 8 + whole[middle + 8 :])
    with pytest.raises(FormatError, match=r"a\.npz: kspace: cannot be read.*CRC"):
        datasets.open(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("kspace", "no array")
    with pytest.raises(FormatError, match=r"b\.npz: kspace: not a numpy array"):
        datasets.open(tmp_path / "b.npz")


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", kspace=np.array([Trap()], dtype=object))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(FormatError, match="Python objects"):
            datasets.open(tmp_path / name)
        with pytest.raises(FormatError, match="Python objects"):
            datasets.describe(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


# The door


def test_contents_decide_not_the_suffix(tmp_path: Path) -> None:
    datasets.write_npz(tmp_path / "a.h5", {"kspace": K})
    datasets.write_fastmri(tmp_path / "b.npz", noise(1, 2, 6, 5))
    datasets.write_cfl(tmp_path / "c", K)
    assert datasets.recognise(tmp_path / "a.h5") == "npz"
    assert datasets.recognise(tmp_path / "b.npz") == "hdf5"
    assert datasets.recognise(tmp_path / "c") == "bart"
    assert datasets.open(tmp_path / "b.npz").kind == "fastmri_multicoil"


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.dat", b"\0" * 64, "of no known kind: want"),
        ("a.txt", b"hello", "of no known kind: want"),
        ("a.npz", b"", "the file is empty"),
        ("a.mat", b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n",
         r"a MATLAB file of version 7\.3 \(HDF5\), which is not read: save"),
        ("a.mat", b"MATLAB 5.0 MAT-file".ljust(128), "a MATLAB file of version 5, which"),
    ],
)
def test_unknown_kinds(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=match):
        datasets.open(tmp_path / name)


def test_describe(tmp_path: Path) -> None:
    kspace = noise(5, 2, 12, 10)
    kspace[2] *= 100  # the middle slice is the one that is looked at
    mask = torch.zeros(10, dtype=torch.bool)
    mask[[1, 4, 5, 6, 8]] = True
    datasets.write_fastmri(tmp_path / "my file.h5", kspace, mask=mask, recon_size=(8, 8))
    about = datasets.describe(tmp_path / "my file.h5")
    assert about["keys"]["kspace"] == {"shape": (5, 2, 12, 10), "dtype": "complex64"}
    assert (about["slices"], about["coils"], about["matrix"]) == (5, 2, (12, 10))
    assert (about["sampling"], about["sampled_columns"]) == ("columns", 5)
    assert (about["acceleration"], about["acs_width"]) == (2.0, 3)
    assert (about["crop"], about["described_slice"]) == ((8, 8), 2)
    magnitude = kspace[2, ..., mask].abs()
    assert about["value_range"] == (float(magnitude.min()), float(magnitude.max()))
    assert about["next_command"].startswith("recon reconstruct '")
    np.save(tmp_path / "a.npy", K)
    about = datasets.describe(tmp_path / "a.npy")
    assert (about["sampling"], about["acceleration"], about["acs_width"]) == ("full", 1.0, 5)


def test_a_name_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("-a b.npy", K)
    told = datasets.describe("-a b.npy")["next_command"]
    assert told == "recon reconstruct './-a b.npy' --out results"


def test_describe_a_file_without_kspace(tmp_path: Path) -> None:
    datasets.write_hdf5(tmp_path / "a.h5", torch.ones(2, 3, 3))
    about = datasets.describe(tmp_path / "a.h5")
    assert about["kind"] == "hdf5"
    assert about["keys"] == {"reconstruction": {"shape": (2, 3, 3), "dtype": "float32"}}
    assert about["next_command"] is None


@pytest.mark.parametrize(
    ("columns", "stated", "width"),
    [("0001110100", None, 3), ("0001110100", 2, 2), ("0001110100", 9, 3), ("1111111111", None, 10),
     ("1111101111", None, 0), ("0000010000", None, 1), ("00111", None, 3)],
)  # fmt: skip
def test_acs_width(columns: str, stated: int | None, width: int) -> None:
    mask = torch.tensor([c == "1" for c in columns])
    assert datasets.acs_width(mask, stated) == width


def test_centre_crop_refuses_what_does_not_fit() -> None:
    assert datasets.centre_crop(torch.arange(6.0)[None], (1, 3)).tolist() == [[1, 2, 3]]
    assert datasets.centre_crop(torch.arange(5.0)[None], (1, 2)).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="want a size within"):
        datasets.centre_crop(torch.zeros(4, 4), (5, 4))


@pytest.mark.skipif(not DATA.exists(), reason="the development data is not on this machine")
def test_real_files_of_other_kinds() -> None:
    with pytest.raises(FormatError, match=r"tooth\.h5: kspace: no such key.*exchange"):
        datasets.open(DATA / "tooth.h5")
    assert datasets.describe(DATA / "tooth.h5")["keys"]["exchange/data"]["shape"] == (181, 2, 640)
