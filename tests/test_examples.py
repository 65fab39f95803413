"""Every example runs, in a small setting; the demonstration reaches what the README shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recon import demo

ROOT = Path(__file__).parents[1]
RAW = ROOT.parent / "shared" / "data" / "raw" / "brain_8ch_full.cfl"
TOOTH = RAW.with_name("tooth.h5")


@pytest.mark.skipif(not RAW.exists(), reason="the raw head scan is not distributed with recon")
def test_real_brain(tmp_path: Path) -> None:
    """TV at the weight that wins the sweep of the example's own, by 0.15 dB."""
    command = [sys.executable, str(ROOT / "examples" / "real_brain.py"), str(RAW), "--out",
               str(tmp_path), "--samples", "2", "--steps", "20", "--weights", "1e-3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    reached = {line[:16].strip(): float(line[16:].split()[0])
               for line in done.stdout.splitlines() if line.endswith(" dB") and " to " not in line}
    assert reached["DDS mean of 2"] > reached["least squares"] + 2
    assert reached["DDS mean of 2"] > reached["TV"]
    assert (tmp_path / "real_brain.png").stat().st_size > 10_000


@pytest.mark.parametrize("file", [None, RAW])
def test_adaptive_mri(tmp_path: Path, file: Path | None) -> None:
    """In a setting too small to say which columns are best."""
    if file is not None and not file.exists():
        pytest.skip("the raw head scan is not distributed with recon")
    small = ["--seeds", "1", "--particles", "2", "--levels", "6", "--samples", "1", "--steps", "4"]
    command = [sys.executable, str(ROOT / "examples" / "adaptive_mri.py"),
               *([] if file is None else [str(file)]), "--out", str(tmp_path), *small]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "adaptive_mri.txt").read_text()
    assert table in done.stdout
    for name in ("ADS", "random", "equispaced", "variable density"):
        row = next(line for line in table.splitlines() if line.startswith(name))
        assert 15 < float(row.split()[-1]) < 40
    assert (tmp_path / "adaptive_mri.png").stat().st_size > 10_000


def test_volume(tmp_path: Path) -> None:
    """Made up and small, with noise that neighbouring slices help against."""
    command = [sys.executable, str(ROOT / "examples" / "volume.py"), "--out", str(tmp_path),
               "--slices", "8", "--steps", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "volume.txt").read_text()
    assert table == done.stdout
    apart, coupled = ([float(f) for f in line.split()[-3:]] for line in table.splitlines()[2:])
    assert all(b > a for a, b in zip(apart, coupled, strict=True))
    for name in ("axial", "coronal", "sagittal"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_latent(tmp_path: Path) -> None:
    """A piece of the slice and too few calls to say which sampler is best."""
    command = [sys.executable, str(ROOT / "examples" / "latent.py"), "--out", str(tmp_path),
               "--calls", "24", "--samples", "1", "--crop", "48"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "latent.txt").read_text()
    assert table == done.stdout
    for name in ("autoencoder", "latent_dps", "psld", "stsl, no trace", "stsl, fresh start", "dds"):
        found = [line for line in table.splitlines() if line.startswith(name)]
        assert len(found) == 2  # both problems
        assert all(0 < float(line[34:].split()[0]) < 45 for line in found)
    for name in ("inpainting", "blur"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


@pytest.mark.skipif(not TOOTH.exists(), reason="the tooth is not distributed with recon")
def test_tooth(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "tooth.py"), str(TOOTH), "--out",
               str(tmp_path), "--bins", "80", "--iterations", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    (axis,) = (line.split() for line in done.stdout.splitlines() if line.startswith("axis"))
    opposite, sharp = float(axis[3]), float(axis[7])
    assert opposite == pytest.approx(296 / 8 - 7 / 16, abs=0.2)  # as TomoPy's page has it
    assert sharp == pytest.approx(opposite, abs=0.3)
    misfits = [float(line.split()[-1]) for line in done.stdout.splitlines() if "misfit" in line]
    fbp_all, tv_all, fbp_few, tv_few = misfits
    assert tv_all < fbp_all
    assert tv_few < fbp_few
    assert (tmp_path / "tooth.png").stat().st_size > 10_000


def test_chest_ct(tmp_path: Path) -> None:
    """A made-up body of few pixels."""
    command = [sys.executable, str(ROOT / "examples" / "chest_ct.py"), "--out", str(tmp_path),
               "--views", "20", "--slices", "0", "--samples", "2", "--steps", "12", "--weights",
               "3e-4", "3e-3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "chest_ct.txt").read_text()
    assert table == done.stdout
    rows = {line[:28].strip(): float(line.split()[-2]) for line in table.splitlines()[1:]}
    assert set(rows) == {"20 views, TV", "20 views, DDS, one sample", "20 views, DDS, mean of 2"}
    assert all(psnr > 20 for psnr in rows.values())
    assert (tmp_path / "chest_ct.png").stat().st_size > 10_000


def test_radial_mri(tmp_path: Path) -> None:
    """A made-up head of few pixels."""
    command = [sys.executable, str(ROOT / "examples" / "radial_mri.py"), "--out", str(tmp_path),
               "--spokes", "16", "--samples", "1", "--steps", "8", "--weights", "1e-3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "radial_mri.txt").read_text()
    assert table == done.stdout
    reached = {line[:17].strip(): float(line[17:].split()[0]) for line in table.splitlines()[2:]}
    assert set(reached) == {"gridding", "CG-SENSE", "TV", "DDS, one sample", "DDS, mean of 1"}
    assert all(15 < psnr < 45 for psnr in reached.values())
    assert reached["DDS, one sample"] > reached["gridding"] + 3
    assert (tmp_path / "radial_mri.png").stat().st_size > 10_000


def test_the_demonstration_beats_the_classical_methods(tmp_path: Path) -> None:
    found = demo.run(tmp_path / "demo", samples=2, steps=30, progress=False, say=lambda _: None)
    reached = {name: row["PSNR dB"] for name, row in found.rows.items()}
    assert reached["DDS, mean of 2"] >= reached["zero-filled"] + 8
    assert reached["DDS, mean of 2"] >= reached["TV"] + 1.5
    assert reached["DDS, mean of 2"] > reached["DDS, one sample"]
