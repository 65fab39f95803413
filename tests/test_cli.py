"""The command line as its users meet it: what it writes, says, refuses and leaves alone."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.io import imread
from torch import Tensor

import recon as package
from recon import datasets, priors
from recon.operators.mri import masks
from recon.simulate import coil_maps, multicoil_kspace
from tests.conftest import Ran

ROOT = Path(__file__).parents[1]
RAW = ROOT.parent / "shared" / "data" / "raw"
SIZE, COILS, SLICES, UNIT = (48, 40), 4, 3, 1e-5  # raw k-space lives at such units


Run = Callable[..., Ran]


def truth() -> Tensor:
    image = torch.zeros(SIZE)
    image[8:40, 6:34], image[16:30, 12:24] = 0.6, 1.0
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of every kind, and a small untrained prior."""
    folder = tmp_path_factory.mktemp("files")
    generator = torch.Generator().manual_seed(0)
    kspace = UNIT * torch.stack([multicoil_kspace(truth(), coils=COILS, generator=generator)
                                 for _ in range(SLICES)])
    mask = masks.equispaced_fraction(SIZE[1], center_fraction=0.2, acceleration=3, seed=0)
    datasets.write_fastmri(folder / "test.h5", kspace, mask=mask, recon_size=(40, 40))
    datasets.write_fastmri(folder / "full.h5", kspace)
    alone = multicoil_kspace(truth(), coils=1, generator=generator)
    datasets.write_fastmri(folder / "single.h5", UNIT * alone)
    datasets.write_cfl(folder / "bart.cfl", datasets.to_bart_axes(kspace))
    datasets.write_npz(folder / "named.npz", {"kspace": kspace * mask, "mask": mask})
    np.save(folder / "plain.npy", kspace[0].numpy())
    np.save(folder / "zero.npy", 0 * kspace[0].numpy())
    np.save(folder / "gap.npy", torch.stack([kspace[0], 0 * kspace[0]]).numpy())
    bad = kspace.numpy().copy()
    bad[2, 0, 0, 0] = np.nan
    np.save(folder / "nan.npy", bad)
    np.savez(folder / "wide.npz", kspace=kspace.numpy(), mask=np.ones(41))
    datasets.write_hdf5(folder / "result.h5", torch.ones(2, 8, 8))
    (folder / "cut.hdr").write_bytes((folder / "bart.hdr").read_bytes())
    (folder / "cut.cfl").write_bytes((folder / "bart.cfl").read_bytes()[:-80])
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04\x95" + b"\0" * 64)
    torch.manual_seed(0)
    network = priors.DenoisingUNet(priors.UNetSettings(2, (4, 4, 4, 4), 1))
    priors.save(folder / "tiny.safetensors", network, sigma_data=0.25, sigma_min=0.003,
                sigma_max=40.0, is_complex=True, card={})
    return folder


@pytest.fixture
def reconstruct(recon: Run, folder: Path, tmp_path: Path) -> Run:
    """``recon reconstruct``, quick, into ``tmp_path / "out"`` unless told otherwise."""

    def run(*arguments: object, quick: bool = True) -> Ran:
        chosen = ["--prior", folder / "tiny.safetensors", "--steps", 3, "--samples", 2]
        return recon("reconstruct", "--out", tmp_path / "out", *(chosen if quick else []),
                     *arguments)

    return run


def magnitude(path: Path) -> NDArray[Any]:
    """The mean of a result ``(slices, h, w)``, whatever it was written as."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return np.array(file["reconstruction"])
    if path.suffix == ".npz":
        return np.abs(np.load(path)["mean"])
    image: NDArray[Any] = datasets.read_cfl(path).abs().numpy()
    assert image.shape[:2] == SIZE
    return np.moveaxis(image.reshape(*SIZE, -1), -1, 0)


DRAWN = ("--mask", "equispaced_fraction", "--acceleration", 2, "--center-fraction", 0.2)
CASES = {
    "test.h5": ((), "h5", (SLICES, 40, 40), 0.10),
    "full.h5": (DRAWN, "npz", (SLICES, 40, 40), 0.05),
    "single.h5": ((), "npz", (1, 40, 40), 0.05),
    "bart.cfl": ((), "cfl", (SLICES, *SIZE), 0.05),
    "named.npz": ((), "cfl", (SLICES, *SIZE), 0.10),
    "plain.npy": (DRAWN, "h5", (1, *SIZE), 0.05),
}


@pytest.mark.parametrize("name", CASES)
def test_reconstructs_in_the_units_and_the_crop_of_the_file(
    reconstruct: Run, folder: Path, tmp_path: Path, name: str
) -> None:
    arguments, suffix, shape, error = CASES[name]
    ran = reconstruct(folder / name, *arguments, "--format", suffix)
    assert ran.code == 0, ran.err
    stem = Path(name).stem
    found = magnitude(tmp_path / "out" / f"{stem}_recon.{suffix}")
    assert found.shape == shape
    top = (SIZE[0] - shape[1]) // 2
    wanted = UNIT * truth().numpy()[top : top + shape[1]]
    assert np.square(found - wanted).sum((1, 2)).max() < error * np.square(wanted).sum()
    assert f"{name}: {shape[0]} slice(s), {1 if stem == 'single' else COILS} coil(s)" in ran.out
    picture = imread(tmp_path / "out" / f"{stem}_recon.png")
    assert picture.shape[1] == (5 if arguments else 4) * 390  # the fifth is the error
    assert picture[..., :3].std() > 20
    written = sorted(path.suffix for path in (tmp_path / "out").iterdir())
    assert written == sorted([f".{suffix}", ".png"] + ([".hdr"] if suffix == "cfl" else []))


@pytest.mark.skipif(shutil.which("bart") is None, reason="the bart program is not installed")
def test_bart_reads_the_result(reconstruct: Run, folder: Path, tmp_path: Path) -> None:
    assert reconstruct(folder / "bart.cfl", "--format", "cfl").code == 0
    out = tmp_path / "out"
    subprocess.run(["bart", "slice", "13", "1", "bart_recon", "one"], cwd=out, check=True)
    one = datasets.read_cfl(out / "one")
    assert torch.equal(one.abs(), torch.from_numpy(magnitude(out / "bart_recon.cfl")[1]))


def test_a_result_tells_its_settings_and_can_be_described(
    recon: Run, reconstruct: Run, folder: Path, tmp_path: Path
) -> None:
    ran = reconstruct(folder / "full.h5", *DRAWN, "--slices", "1:", "--noise-std", "2e-7")
    assert ran.code == 0, ran.err
    with h5py.File(tmp_path / "out" / "full_recon.h5") as file:
        assert file["samples"].shape == (2, 2, 40, 40)
        assert file["samples"].dtype == np.complex64
        mean = np.abs(np.array(file["samples"]).mean(0))
        np.testing.assert_allclose(file["reconstruction"], mean, rtol=1e-5, atol=1e-12)
        told = dict(file.attrs)
    assert told["mask"] == "equispaced_fraction"
    assert (told["file"], told["slices"], told["steps"]) == ("full.h5", "[1, 2]", "3")
    assert (told["acceleration"], told["seed"]) == ("2", "0")
    assert told["noise_std"] == str([float(torch.tensor(2e-7))] * 2)
    ran = recon("info", tmp_path / "out" / "full_recon.h5")
    assert ran.code == 0
    assert "samples: (2, 2, 40, 40) complex64" in ran.out


def test_seeds_repeat_and_slices_do_not_see_each_other(
    reconstruct: Run, folder: Path, tmp_path: Path
) -> None:
    found = {}
    for name, arguments in {"whole": (), "again": (), "one": ("--slices", 1),
                            "other": ("--seed", 7)}.items():
        ran = reconstruct(folder / "test.h5", *arguments, "--out", tmp_path / name)
        assert ran.code == 0, ran.err
        with h5py.File(tmp_path / name / "test_recon.h5") as file:
            found[name] = np.array(file["samples"])
    np.testing.assert_array_equal(found["whole"], found["again"])
    np.testing.assert_array_equal(found["whole"][:, 1:2], found["one"])
    assert not np.isclose(found["whole"], found["other"]).all()
    assert not np.isclose(found["whole"][0], found["whole"][1]).all()


def test_noise_std_is_used(reconstruct: Run, folder: Path, tmp_path: Path) -> None:
    for value in ("1e-7", "3e-6"):
        ran = reconstruct(folder / "plain.npy", "--noise-std", value, "--out", tmp_path / value)
        assert ran.code == 0, ran.err
    near, far = (magnitude(tmp_path / v / "plain_recon.h5") for v in ("1e-7", "3e-6"))
    wanted = UNIT * truth().numpy()
    assert np.square(far - wanted).sum() > 3 * np.square(near - wanted).sum()


def test_what_no_coil_sees_is_zero(reconstruct: Run, folder: Path, tmp_path: Path) -> None:
    maps = coil_maps(COILS, *SIZE)
    maps[..., :7, :] = 0
    kspace = datasets.open(folder / "plain.npy").kspace
    datasets.write_npz(tmp_path / "seen.npz", {"kspace": kspace, "maps": maps})
    assert reconstruct(tmp_path / "seen.npz").code == 0
    with h5py.File(tmp_path / "out" / "seen_recon.h5") as file:
        assert not file["samples"][..., :7, :].any()
        assert not file["std"][..., :7, :].any()
        assert file["samples"][..., 7:, :].all()


def test_one_sample_has_no_spread(reconstruct: Run, folder: Path, tmp_path: Path) -> None:
    assert reconstruct(folder / "plain.npy", "--samples", 1).code == 0
    with h5py.File(tmp_path / "out" / "plain_recon.h5") as file:
        assert np.isnan(file["std"]).all()
        assert np.isfinite(file["reconstruction"]).all()


def test_classical_methods_need_no_prior(reconstruct: Run, folder: Path, tmp_path: Path) -> None:
    ran = reconstruct(folder / "plain.npy", "--sampler", "tv", "--prior", "nothing", quick=False)
    assert ran.code == 0, ran.err
    with h5py.File(tmp_path / "out" / "plain_recon.h5") as file:
        assert file["samples"].shape[0] == 1
        assert "prior" not in file.attrs


def test_the_shipped_prior_beats_zero_filling(
    reconstruct: Run, folder: Path, tmp_path: Path
) -> None:
    ran = reconstruct(folder / "test.h5", "--slices", 0, "--samples", 1, "--steps", 8, quick=False)
    assert ran.code == 0, ran.err
    found = magnitude(tmp_path / "out" / "test_recon.h5")[0]
    scan = datasets.open(folder / "full.h5")
    mask = datasets.open(folder / "test.h5").mask
    assert mask is not None
    wanted = UNIT * truth().numpy()[4:44]
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(
        (scan.kspace[0] * mask).numpy(), axes=(1, 2)), norm="ortho"), axes=(1, 2))
    zero_filled = np.sqrt(np.square(np.abs(coils)).sum(0))[4:44]
    assert np.square(found - wanted).sum() < 0.5 * np.square(zero_filled - wanted).sum()


def test_bars_stay_out_of_pipes(reconstruct: Run, folder: Path) -> None:
    ran = reconstruct(folder / "test.h5", "--slices", "0:2")
    lines = ran.out.splitlines()
    assert [line[:16] for line in lines[1:3]] == ["test.h5: slice 0", "test.h5: slice 1"]
    assert len(lines) == 4
    assert "3/3" in ran.err
    assert "3/3" not in ran.out


@pytest.mark.parametrize("name", ["zero.npy", "gap.npy"])
def test_all_zero_kspace_gives_zeros_and_says_so(
    reconstruct: Run, folder: Path, tmp_path: Path, name: str
) -> None:
    ran = reconstruct(folder / name)
    assert ran.code == 0, ran.err
    number = 0 if name == "zero.npy" else 1
    line = next(line for line in ran.out.splitlines() if f"slice {number} " in line)
    assert line.endswith(": all zero, and so is its result")
    assert ran.out.count("all zero") == 1
    found = magnitude(tmp_path / "out" / f"{name.partition('.')[0]}_recon.h5")
    assert not found[number].any()
    assert found[0].any() == (number == 1)


def test_overwriting_must_be_asked_for_and_is_refused_before_any_work(
    reconstruct: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reconstruct(folder / "plain.npy").code == 0
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "open", None)  # reading anything would be a TypeError
        patch.setattr(priors, "load", None)
        ran = reconstruct(folder / "plain.npy", "--seed", 1)
        assert ran == (2, "", "recon: plain_recon.h5: exists: pass --overwrite to replace it\n")
        (out / "plain_recon.h5").unlink()
        ran = reconstruct(folder / "plain.npy")
        assert ran.err == "recon: plain_recon.png: exists: pass --overwrite to replace it\n"
    assert (out / "plain_recon.png").read_bytes() == before["plain_recon.png"]
    assert reconstruct(folder / "plain.npy", "--seed", 1, "--overwrite").code == 0
    assert {path.name for path in out.iterdir()} == set(before)
    assert (out / "plain_recon.h5").read_bytes() != before["plain_recon.h5"]


REFUSALS: dict[str, tuple[list[str], str]] = {
    "wrong mask": (["wide.npz"], "wide.npz: mask: has 41 columns but the k-space has 48 rows"),
    "nan": (["nan.npy"], "nan.npy: kspace: slice 2 holds NaN or infinity"),
    "no kspace": (["result.h5"], "result.h5: kspace: no such key"),
    "truncated": (["cut.cfl"], "cut.cfl: holds"),
    "missing": (["nothing.h5"], "nothing.h5: No such file or directory"),
    "second missing": (["test.h5", "nothing.h5"], "nothing.h5: No such file or directory"),
    "second damaged": (["test.h5", "nan.npy"], "nan.npy: kspace: slice 2 holds NaN"),
    "one name": (["test.h5", "test.npy"], "two files have one name"),
    "prior": (["test.h5", "--prior", "nonsense"], "no prior 'nonsense': want one of brain-mri"),
    "pickle": (["test.h5", "--prior", "pickle.safetensors"], "is a pickled checkpoint"),
    "sampler": (["test.h5", "--sampler", "nonsense"], "no sampler 'nonsense': want one of ads"),
    "mask kind": (["full.h5", "--mask", "nonsense"], "mask wants one of random, equispaced"),
    "no centre": (["full.h5", "--mask", "random", "--center-fraction", "0.05"],
                  "coil maps need at least 6 fully sampled centre columns, the mask has"),
    "calibration": (["test.h5", "--calibration", "20"], "pass a smaller calibration"),
    "steps": (["test.h5", "--steps", "0"], "Invalid value for '--steps'"),
    "noise": (["test.h5", "--noise-std", "-1"], "Invalid value for '--noise-std'"),
    "noise inf": (["test.h5", "--noise-std", "inf"], "noise_std wants a finite number >= 0"),
    "seed": (["test.h5", "--seed", "-1"], "Invalid value for '--seed'"),
    "slices": (["test.h5", "--slices", "nonsense"], "or first:stop, got 'nonsense'"),
    "no slices": (["test.h5", "--slices", ""], "--slices wants one number"),
    "negative": (["test.h5", "--slices=-1"], "--slices wants one number"),
    "beyond": (["test.h5", "--slices", "3"], "chooses none of the 3 slices"),
    "empty": (["test.h5", "--slices", "2:1"], "chooses none of the 3 slices"),
    "device": (["test.h5", "--device", "nonsense"], "--device nonsense cannot be used"),
    "folder": (["test.h5", "--out", "test.h5"], "test.h5 is a file, not a folder"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_one_line_and_leave_nothing(
    reconstruct: Run, folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = REFUSALS[name]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(folder.iterdir())
    ran = reconstruct(*arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.startswith("Usage") or ran.err.count("\n") == 1
    assert "slice " not in ran.out
    assert not (tmp_path / "out").exists()
    assert sorted(folder.iterdir()) == before


def test_a_full_disk_leaves_no_half_result(
    reconstruct: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    ran = reconstruct(folder / "plain.npy")
    assert (ran.code, list((tmp_path / "out").iterdir())) == (2, [])
    assert "No space left on device" in ran.err.splitlines()[-1]


def test_interrupting_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recon", "reconstruct", str(folder / "plain.npy"), "--prior",
               str(folder / "tiny.safetensors"), "--steps", "1000", "--samples", "50",
               "--out", str(tmp_path / "o")]
    # a shell's background jobs ignore interrupts, and so would their children
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)},
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
                          ) as process:
        assert process.stdout is not None
        assert "1 slice(s)" in process.stdout.readline()
        assert "slice 0" in process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list((tmp_path / "o").iterdir()) == []


def test_version_and_help(recon: Run) -> None:
    assert recon("--version") == (0, f"recon {package.__version__}\n", "")
    ran = recon("--help")
    assert all(command in ran.out for command in ("demo", "info", "reconstruct", "--version"))


@pytest.mark.parametrize(("name", "told"), [
    ("test.h5", ["fastmri_multicoil", "slices: 3", "coils: 4", "matrix: 48 x 40", "acs_width: 8",
                 "sampling: columns", "mask: (40,) bool", "crop: 40 x 40"]),
    ("single.h5", ["fastmri_singlecoil", "coils: 1", "sampling: full"]),
    ("bart.cfl", ["kind: bart", "slices: 3", "coils: 4", "acceleration: 1\n"]),
    ("named.npz", ["kind: npz", "sampled_columns: 12"]),
    ("plain.npy", ["kind: npy", "slices: 1"]),
])
def test_info_tells_what_a_file_holds_and_what_to_do(
    recon: Run, folder: Path, name: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    ran = recon("info", name)
    assert (ran.code, ran.err) == (0, "")
    assert all(line in ran.out for line in told)
    assert ran.out.endswith(f"  next_command: recon reconstruct {name} --out results\n")
    assert recon("info", "nothing.h5") == (2, "", "recon: nothing.h5: No such file or directory\n")


@pytest.mark.skipif(not RAW.is_dir(), reason="the shared raw data are not here")
def test_info_on_raw_data_of_scanners(recon: Run) -> None:
    ran = recon("info", RAW / "brain_8ch_full.cfl")
    assert ran.code == 0
    assert all(line in ran.out for line in ("coils: 8", "matrix: 230 x 180", "sampling: full"))
    pytest.importorskip("twixtools", reason="the extra `twix` is not installed")
    ran = recon("info", RAW / "gre.dat")
    assert ran.code == 0
    assert all(line in ran.out for line in ("kind: twix", "coils: 2", "matrix: 160 x 160"))


OWN = """
import torch

def drawing(y, operator, prior, *, noise_std, samples, generator):
    return prior.posterior(operator, y, noise_std).sample(samples, generator)

def prior_draws(y, operator, prior, *, noise_std, samples, generator):
    return torch.randn(samples, *operator.domain.shape, generator=generator)

def failing(y, operator, prior, *, noise_std, samples, generator):
    if operator.domain.shape[-1] == 2:
        raise RuntimeError("no\\nplanes")
    return prior_draws(y, operator, prior, noise_std=noise_std, samples=samples,
                       generator=generator)

constant = 3
"""
QUICK = ("--samples", 16, "--seeds", 2, "--calibration", 20)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_samplers.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "my_samplers", raising=False)
    return "my_samplers"


def test_yardstick_writes_the_table_it_prints(recon: Run, tmp_path: Path) -> None:
    paths = [tmp_path / "new" / f"y.{suffix}" for suffix in ("md", "json", "csv")]
    ran = recon("yardstick", "--samplers", "dds, ddnm", "--problems", "four_modes,multicoil",
                *QUICK, *(argument for path in paths for argument in ("--out", path)))
    assert ran.code == 0, ran.err
    assert "6/6" in ran.err  # dds twice
    text = paths[0].read_text()
    assert all(line in text for line in ran.out.splitlines())
    assert "`dds, released`: `steps=100`, `rule='released'`, `gamma=1.0`" in text
    assert "--samples 16 --seeds 2 --calibration 20" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table[:6]}) == 1
    assert [line.split("|")[1].strip() for line in table] == 2 * [
        "sampler", "-" * len("dds, released"), "exact draws", "dds", "dds, released", "ddnm"]
    rows = json.loads(paths[1].read_text())
    assert [(row["problem"], row["sampler"]) for row in rows[2:4]] == [("four_modes", "ddnm"),
                                                                      ("multicoil", "dds")]
    assert rows[0]["network_calls"] == 100
    assert rows[0]["sliced_w2_ratio"] == rows[0]["sliced_w2"] / rows[0]["floor_sliced_w2"]
    assert rows[3]["mode_tv"] is None
    read = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert float(read[5]["mean_error"]) == rows[5]["mean_error"]
    before = [path.read_bytes() for path in paths]
    ran = recon("yardstick", "--samplers", "dds", *QUICK, "--out", paths[1])
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "recon: y.json: exists: pass --overwrite to replace it\n"
    assert [path.read_bytes() for path in paths] == before


def test_yardstick_measures_a_function_of_the_users(recon: Run, own: str) -> None:
    found = {}
    for name in ("prior_draws", "failing"):
        ran = recon("yardstick", "--sampler-from", f"{own}:{name}", "--problems",
                    "gaussian,four_modes", *QUICK, "--out", f"{name}.json")
        assert ran.code == 0, ran.err
        found[name] = ran.out, json.loads(Path(f"{name}.json").read_text())
    rows = found["prior_draws"][1]
    assert [row["sampler"] for row in rows] == ["prior_draws"] * 2
    assert all(row["sliced_w2_ratio"] > 1.5 for row in rows)
    out, rows = found["failing"]
    assert [row["failure"] for row in rows] == ["", "RuntimeError: no planes"]
    assert "- failing failed: RuntimeError: no planes\n" in out
    assert out.count("| failed |") == 1


def test_yardstick_says_where_a_function_takes_the_prior_for_more(recon: Run, own: str) -> None:
    """The prior a sampler gets is a denoiser: it has no posterior to look up."""
    ran = recon("yardstick", "--sampler-from", f"{own}:drawing", "--problems", "gaussian", *QUICK)
    assert ran.code == 0
    assert "drawing failed: AttributeError" in ran.out


@pytest.mark.parametrize(("arguments", "told"), [
    (["--samplers", "nonsense"], "no sampler 'nonsense'"),
    (["--samplers", "tv"], "tv cannot be measured against these posteriors: it has one answer"),
    (["--samplers", "mbir"], "mbir cannot be measured against these posteriors: it wants volumes"),
    (["--problems", "nonsense"], "no problem 'nonsense': want one of gaussian, four_modes"),
    (["--calibration", "5"], "want at least 8 samples, 1 seed and calibration 0 or at least 10"),
    (["--out", "y.txt"], "cannot write y.txt: want a name ending in .md, .json or .csv"),
    (["--sampler-from", "nonsense"], "wants module:function, got 'nonsense'"),
    (["--sampler-from", "my_samplers:nothing"], "my_samplers has no function nothing"),
    (["--sampler-from", "my_samplers:constant"], "my_samplers has no function constant"),
    (["--sampler-from", "no_such_module:f"], "No module named 'no_such_module'"),
])
@pytest.mark.usefixtures("own")
def test_yardstick_refuses_before_any_work(recon: Run, arguments: list[str], told: str) -> None:
    ran = recon("yardstick", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert told in ran.err
    assert ran.err.count("\n") == 1
