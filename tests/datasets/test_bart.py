"""BART pairs: against bytes laid out by hand, against the program, against real data."""

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recon import datasets
from recon.datasets import FormatError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw"
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


def bart(*command: str | Path) -> str:
    done = subprocess.run(["bart", *map(str, command)], check=True, capture_output=True, text=True)
    return done.stdout


def pair(folder: Path, dims: str, count: int, name: str = "a") -> Path:
    (folder / f"{name}.hdr").write_text(f"# Dimensions\n{dims}\n")
    (folder / f"{name}.cfl").write_bytes(struct.pack(f"<{2 * count}f", *range(1, 2 * count + 1)))
    return folder / name


def check_reader(read: Callable[[Path], Tensor], folder: Path) -> None:
    """Element (x, y, coil) is number x + 2 y + 6 coil of the file, real part before imaginary."""
    got = read(pair(folder, "2 3 1 2", 12))
    want = torch.empty(2, 3, 1, 2, dtype=torch.complex64)
    for x in range(2):
        for y in range(3):
            for coil in range(2):
                number = x + 2 * y + 6 * coil
                want[x, y, 0, coil] = torch.tensor(complex(2 * number + 1, 2 * number + 2))
    assert torch.equal(got, want)


def test_reader_against_bytes_laid_out_by_hand(tmp_path: Path) -> None:
    check_reader(datasets.read_cfl, tmp_path)
    scan = datasets.read_bart(tmp_path / "a")
    assert torch.equal(scan.kspace, datasets.read_cfl(tmp_path / "a").permute(2, 3, 0, 1))


def test_the_check_catches_a_row_major_reader(tmp_path: Path) -> None:
    def row_major(path: Path) -> Tensor:
        values = np.fromfile(path.with_suffix(".cfl"), "<c8")
        return torch.from_numpy(values.reshape(2, 3, 1, 2))

    with pytest.raises(AssertionError):
        check_reader(row_major, tmp_path)


def test_writer_against_bytes_laid_out_by_hand(tmp_path: Path) -> None:
    datasets.write_cfl(tmp_path / "a", torch.tensor([[1 + 2j, 5 + 6j], [3 + 4j, 7 + 8j]]))
    assert (tmp_path / "a.cfl").read_bytes() == struct.pack("<8f", *range(1, 9))
    assert (tmp_path / "a.hdr").read_text() == "# Dimensions\n2 2" + " 1" * 14 + "\n"


@pytest.mark.parametrize("shape", [(5,), (3, 4, 1, 2), (2,) * 16])
def test_round_trip_of_any_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    datasets.write_cfl(tmp_path / "scan.v2", noise(*shape))  # only .hdr and .cfl are suffixes
    assert torch.equal(datasets.read_cfl(tmp_path / "scan.v2.cfl"), noise(*shape))


@pytest.mark.parametrize("suffix", ["", ".hdr", ".cfl"])
def test_scan_round_trip(tmp_path: Path, suffix: str) -> None:
    kspace, maps = noise(3, 2, 6, 5), noise(3, 2, 6, 5).conj()
    datasets.write_cfl(tmp_path / "a", datasets.to_bart_axes(kspace))
    datasets.write_cfl(tmp_path / "maps", datasets.to_bart_axes(maps))
    scan = datasets.open(tmp_path / f"a{suffix}", slice(1, 3))
    assert torch.equal(scan.kspace, kspace[1:])
    assert (scan.kind, scan.mask, scan.attributes) == ("bart", None, {})
    with_maps = datasets.read_bart(tmp_path / "a", slice(1, 3), maps=tmp_path / "maps")
    assert with_maps.maps is not None
    assert torch.equal(with_maps.maps, maps[1:])


@pytest.mark.parametrize(
    ("dims", "shape"),
    [("1 3 4 2", (1, 2, 3, 4)), ("3 1 4 2", (1, 2, 3, 4)), ("3 4 1 2 1", (1, 2, 3, 4)),
     ("1 24", (1, 1, 1, 24)), ("24", (1, 1, 24, 1)), ("1 1 24", (1, 1, 1, 24))],
)  # fmt: skip
def test_image_dimensions(tmp_path: Path, dims: str, shape: tuple[int, ...]) -> None:
    assert datasets.open(pair(tmp_path, dims, 24)).kspace.shape == shape


def test_masks_from_exact_zeros(tmp_path: Path) -> None:
    kspace = noise(1, 2, 6, 5)
    kspace[..., 1] = 0
    kspace[:, 0, :, 3] = 0  # one coil alone is no missing column
    datasets.write_cfl(tmp_path / "a", datasets.to_bart_axes(kspace))
    mask = datasets.open(tmp_path / "a").mask
    assert mask is not None
    assert mask.tolist() == [True, False, True, True, True]
    kspace[..., 2, 4] = 0
    datasets.write_cfl(tmp_path / "b", datasets.to_bart_axes(kspace))
    points = datasets.open(tmp_path / "b").mask
    assert points is not None
    assert torch.equal(points, (kspace[0] != 0).any(0))
    about = datasets.describe(tmp_path / "b")
    assert (about["sampling"], about["sampled_columns"]) == ("points", 4)
    assert about["acceleration"] == pytest.approx(30 / 23)


@pytest.mark.parametrize(
    ("dims", "count", "match"),
    [
        ("4 5", 19, r"a\.cfl: holds 152 bytes but a\.hdr promises 160"),
        ("4 5", 21, r"a\.cfl: holds 168 bytes but a\.hdr promises 160"),
        ("2 3 4", 24, r"dimensions: 3-D data \(2, 3, 4\) is not supported yet"),
        ("2 3 1 1 1 4", 24, r"also has 5 \(echo time\) = 4"),
        ("2 0", 0, "positive numbers"),
        ("2 -3", 6, "want whole numbers"),
        ("", 6, "want whole numbers"),
        (" ".join(["1"] * 17), 1, "want 1 to 16"),
    ],
)
def test_bad_pairs(tmp_path: Path, dims: str, count: int, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        datasets.open(pair(tmp_path, dims, count))


def test_other_bad_files(tmp_path: Path) -> None:
    path = pair(tmp_path, "2 3", 6)
    (tmp_path / "a.cfl").write_bytes(struct.pack("<12f", *[float("nan")] * 12))
    with pytest.raises(FormatError, match=r"a\.cfl: kspace: slice 0 holds NaN"):
        datasets.open(path)
    (tmp_path / "a.cfl").unlink()
    with pytest.raises(FileNotFoundError):
        datasets.open(path)
    path.with_suffix(".hdr").write_bytes(struct.pack("<i", 348) + b"\0" * 344)
    with pytest.raises(FormatError, match=r"a\.hdr: no `# Dimensions` line"):
        datasets.open(path)
    with pytest.raises(ValueError, match="to_bart_axes: want"):
        datasets.to_bart_axes(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="none empty"):
        datasets.write_cfl(tmp_path / "b", torch.zeros(0, 2))
    pair(tmp_path, "2 3", 6)
    pair(tmp_path, "3 2", 6, "maps")
    with pytest.raises(FormatError, match=r"maps\.cfl: maps: want shape"):
        datasets.read_bart(path, maps=tmp_path / "maps")


@needs_bart
def test_the_program_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    kspace = noise(2, 3, 7, 4)
    datasets.write_cfl(tmp_path / "a", datasets.to_bart_axes(kspace))
    shown = bart("show", "-m", tmp_path / "a")
    assert shown.splitlines()[-1].split()[1:] == ["7", "4", "1", "3", *"111111111", "2", "1", "1"]
    bart("fft", "-u", "3", tmp_path / "a", tmp_path / "b")
    axes = (-2, -1)
    want = torch.fft.fft2(torch.fft.ifftshift(kspace, dim=axes), norm="ortho")
    want = torch.fft.fftshift(want, dim=axes)
    torch.testing.assert_close(datasets.open(tmp_path / "b").kspace, want, atol=1e-5, rtol=1e-5)
    bart("rss", "8", tmp_path / "a", tmp_path / "c")  # its header carries a command and a creator
    rss = datasets.open(tmp_path / "c").kspace[:, 0].real
    torch.testing.assert_close(rss, kspace.abs().square().sum(1).sqrt())


@needs_bart
def test_coil_maps_of_the_program(tmp_path: Path) -> None:
    bart("phantom", "-x", "24", "-k", "-s", "4", tmp_path / "k")
    bart("ecalib", "-m", "1", "-r", "12", tmp_path / "k", tmp_path / "maps")
    scan = datasets.read_bart(tmp_path / "k", maps=tmp_path / "maps")
    assert scan.maps is not None
    assert scan.maps.shape == scan.kspace.shape == (1, 4, 24, 24)


@pytest.mark.skipif(not DATA.exists(), reason="the development data is not on this machine")
def test_real_brain_scan(tmp_path: Path) -> None:
    scan = datasets.open(DATA / "brain_8ch_full")
    assert scan.kspace.shape == (1, 8, 230, 180)
    assert scan.mask is None
    raw = np.fromfile(DATA / "brain_8ch_full.cfl", "<c8")  # element (0, 11, 5, 2)
    assert scan.kspace[0, 2, 11, 5] == torch.tensor(raw[11 + 230 * (5 + 180 * 2)])
    # The zero frequency of a head is its largest value, and lies near the middle.
    row, column = divmod(int(scan.kspace[0].abs().square().sum(0).argmax()), 180)
    assert abs(row - 115) <= 3
    assert abs(column - 90) <= 3
    datasets.write_fastmri(tmp_path / "brain.h5", scan.kspace)
    again = datasets.open(tmp_path / "brain.h5")
    assert torch.equal(again.kspace, scan.kspace)
    assert again.crop == (180, 180)
