"""RawArray files: against bytes laid out by hand and against BART, which reads and writes them."""

import math
import re
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
from recon.datasets.ra import is_ra, layout_ra, read_ra, write_ra
from tests.datasets.damaged import refusals

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw"
needs_bart = pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
COUNT = 24


def noise(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


def bart(*command: str | Path) -> str:
    done = subprocess.run(["bart", *map(str, command)], check=True, capture_output=True, text=True)
    return done.stdout


def laid_out(dims: tuple[int, ...] = (2, 3, 1, 4), flags: int = 0, kind: int = 4, size: int = 8,
             length: int | None = None, count: int | None = None, wide: bool = False) -> bytes:
    """The numbers 1 to 2 n in pairs of real and imaginary part."""
    n = math.prod(dims)
    values = struct.pack(f"<{2 * n}{'d' if wide else 'f'}", *range(1, 2 * n + 1))
    header = struct.pack("<5Q", flags, kind, size, len(values) if length is None else length,
                         len(dims) if count is None else count)  # fmt: skip
    return b"rawarray" + header + struct.pack(f"<{len(dims)}Q", *dims) + values


def check_reader(read: Callable[[Path], Tensor], path: Path) -> None:
    """Element (x, y, coil) is number x + 2 y + 6 coil of the file."""
    path.write_bytes(laid_out())
    got = read(path)
    want = torch.empty(1, 4, 2, 3, dtype=torch.complex64)
    for x in range(2):
        for y in range(3):
            for coil in range(4):
                number = x + 2 * y + 6 * coil
                want[0, coil, x, y] = torch.tensor(complex(2 * number + 1, 2 * number + 2))
    assert torch.equal(got, want)


def test_reader_against_bytes_laid_out_by_hand(tmp_path: Path) -> None:
    check_reader(lambda path: read_ra(path).kspace, tmp_path / "a.ra")
    scan = read_ra(tmp_path / "a.ra")
    assert (scan.name, scan.kind, scan.mask, scan.attributes) == ("a.ra", "ra", None, {})
    layout = layout_ra(tmp_path / "a.ra")
    assert layout == ("ra", 1, {"ra": {"shape": (2, 3, 1, 4, *[1] * 12), "dtype": "complex64"}})

    def row_major(path: Path) -> Tensor:
        values = np.frombuffer(path.read_bytes(), "<c8", offset=80).reshape(2, 3, 1, 4).copy()
        return torch.from_numpy(values).permute(2, 3, 0, 1)

    with pytest.raises(AssertionError):
        check_reader(row_major, tmp_path / "a.ra")


def test_writer_against_bytes_laid_out_by_hand(tmp_path: Path) -> None:
    values = torch.tensor([[1 + 2j, 5 + 6j], [3 + 4j, 7 + 8j]])
    write_ra(tmp_path / "a.ra", values)
    assert (tmp_path / "a.ra").read_bytes() == laid_out((2, 2))
    with pytest.raises(FileExistsError):
        write_ra(tmp_path / "a.ra", values)
    write_ra(tmp_path / "a.ra", values.numpy().real, overwrite=True)
    assert read_ra(tmp_path / "a.ra").kspace[0, 0].tolist() == [[1, 5], [3, 7]]
    with pytest.raises(ValueError, match=re.escape("none empty, got (0, 2)")):
        write_ra(tmp_path / "b.ra", torch.zeros(0, 2))
    with pytest.raises(TypeError, match="want numbers"):
        write_ra(tmp_path / "b.ra", np.array(["a"]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.ra"]


def test_scan_round_trip_and_masks(tmp_path: Path) -> None:
    kspace = noise(3, 2, 6, 5)
    kspace[..., 1] = 0
    write_ra(tmp_path / "a.ra", datasets.to_bart_axes(kspace))
    scan = read_ra(tmp_path / "a.ra", slice(1, 3))
    assert torch.equal(scan.kspace, kspace[1:])
    assert scan.mask is not None
    assert scan.mask.tolist() == [True, False, True, True, True]


def test_wide_numbers_and_what_follows_them(tmp_path: Path) -> None:
    data = laid_out(size=16, wide=True)
    (tmp_path / "a.ra").write_bytes(data + b"written on Monday")
    (tmp_path / "b.ra").write_bytes(laid_out())
    scan = read_ra(tmp_path / "a.ra")
    assert torch.equal(scan.kspace, read_ra(tmp_path / "b.ra").kspace)
    assert scan.attributes == {"note": "17 bytes after the array left out; "
                               "kspace was complex128, cast to complex64"}  # fmt: skip


@needs_bart
def test_the_program_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    kspace = noise(2, 3, 7, 4)
    write_ra(tmp_path / "a.ra", datasets.to_bart_axes(kspace))
    datasets.write_cfl(tmp_path / "a", datasets.to_bart_axes(kspace))
    assert float(bart("nrmse", tmp_path / "a.ra", tmp_path / "a")) == 0
    bart("scale", "1.5", tmp_path / "a", tmp_path / "b")
    assert float(bart("nrmse", tmp_path / "a.ra", tmp_path / "b")) > 0.1  # it does compare
    bart("copy", tmp_path / "a", tmp_path / "c.ra")
    assert torch.equal(read_ra(tmp_path / "c.ra").kspace, kspace)
    bart("fft", "-u", "3", tmp_path / "a.ra", tmp_path / "d.ra")
    axes = (-2, -1)
    want = torch.fft.fft2(torch.fft.ifftshift(kspace, dim=axes), norm="ortho")
    want = torch.fft.fftshift(want, dim=axes)
    torch.testing.assert_close(read_ra(tmp_path / "d.ra").kspace, want, atol=1e-5, rtol=1e-5)


@needs_bart
@pytest.mark.skipif(not DATA.exists(), reason="the development data is absent")
def test_real_brain_scan(tmp_path: Path) -> None:
    bart("copy", DATA / "brain_8ch_full", tmp_path / "a.ra")
    want = datasets.read_bart(DATA / "brain_8ch_full")
    got = read_ra(tmp_path / "a.ra")
    assert got.kspace.shape == (1, 8, 230, 180)
    assert torch.equal(got.kspace, want.kspace)


GOOD = laid_out()
REFUSED = {
    "empty": (b"", "the file is empty"),
    "login page": (b"<!DOCTYPE html><html>log in</html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "other magic": (b"Rawarray" + GOOD[8:], "does not begin with `rawarray`"),
    "cut in the header": (GOOD[:47], "cut short within its header"),
    "cut in the dimensions": (GOOD[:79], "cut short within its dimensions"),
    "cut in the data": (GOOD[:-1], "holds 271 bytes but promises 272 (2 x 3 x 1 x 4): it is cut"),
    "big-endian flag": (laid_out(flags=1), "flags: big-endian numbers are not supported"),
    "big-endian magic": (b"yarrawar" + GOOD[8:], "flags: big-endian numbers"),
    "other flags": (laid_out(flags=6), "flags: want none, got 0x6"),
    "floats": (laid_out(kind=3), "eltype: want complex numbers of 8 bytes, got floats of 8 bytes"),
    "half complex": (laid_out(size=4), "got complex numbers of 4 bytes"),
    "unknown kind": (laid_out(kind=99), "got unknown kind 99 of 8 bytes"),
    "no dimensions": (laid_out(count=0), "ndims: want 1 to 16 dimensions, got 0"),
    "17 dimensions": (laid_out((1,) * 17), "ndims: want 1 to 16 dimensions, got 17"),
    "a dimension of 0": (laid_out((2, 0)), "dimensions: want positive numbers, got 2 x 0"),
    "huge dimensions": (laid_out((1,)).replace(struct.pack("<2Q", 1, 1),
                                               struct.pack("<2Q", 1, 1 << 61)),
                        "dimensions: 2305843009213693952 complex numbers are not the 8 bytes"),
    "wrong length": (laid_out(length=8), "are not the 8 bytes promised: damaged"),
    "3-D": (laid_out((2, 3, 4)), "dimensions: 3-D data (2, 3, 4) is not supported"),
    "echoes": (laid_out((2, 3, 1, 1, 1, 4)), "also has 5 (echo time) = 4"),
    "NaN": (GOOD[:-4] + struct.pack("<f", math.nan), "kspace: slice 0 holds NaN or infinity"),
    "too large": (laid_out((1,), size=16, wide=True)[:-8] + struct.pack("<d", 1e300),
                  "kspace: slice 0 holds NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    data, match = REFUSED[name]
    (tmp_path / "a.ra").write_bytes(data)
    with pytest.raises(FormatError, match=re.escape(match)) as caught:
        read_ra(tmp_path / "a.ra")
    assert str(caught.value).startswith("a.ra: ")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_ra(tmp_path / "a.ra")
    with pytest.raises(IsADirectoryError):
        read_ra(tmp_path)
    assert is_ra(GOOD)
    assert not is_ra(b"rawarra")


def test_random_damage_is_a_format_error_or_harmless(tmp_path: Path) -> None:
    whole = np.frombuffer(GOOD, np.uint8)
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.integers(8, 100, size=2)] = rng.integers(256, size=2)
        kept = damaged.tobytes()[: rng.integers(60, 400)]
        failed += refusals(tmp_path / "a.ra", kept, read_ra, layout_ra)
    assert failed > 200


def test_pairs_of_several_arrays_are_refused(tmp_path: Path) -> None:
    """BART's header of two arrays, laid out as its ``write_multi_cfl_header`` does."""
    (tmp_path / "a.cfl").write_bytes(bytes(8 * 10))
    for lines in ("# SizesDimensions\n2 2 \n# MultiDimensions\n2 3 \n2 2 \n",
                  "# MultiDimensions\n2 3 \n2 2 \n"):  # fmt: skip
        (tmp_path / "a.hdr").write_text(f"# Dimensions\n10 \n{lines}# Creator\nBART v0.8.00\n")
        with pytest.raises(FormatError, match=r"a\.hdr: # .*Dimensions: several arrays in one"):
            datasets.read_bart(tmp_path / "a")
