"""Evaluations that nothing ends for good: slices that diverge, files that cannot be measured."""

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from recon import datasets, priors
from recon.datasets import FormatError
from recon.evaluation import Settings, diverged, evaluate
from recon.evaluation.compute import Worker
from recon.evaluation.plan import Cell
from recon.simulate import multicoil_kspace
from tests.conftest import Ran

SIZE = (40, 36)


def image(number: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    found = torch.zeros(size)
    found[8:-8, 6:-6], found[16 + number:28, 12:24] = 0.6, 1.0
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    generator = torch.Generator().manual_seed(0)
    for v in range(3):
        datasets.write_fastmri(folder / f"file{v}.h5", torch.stack(
            [multicoil_kspace(image(v + n), coils=4, generator=generator) for n in range(2)]))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    torch.manual_seed(0)
    network = priors.DenoisingUNet(priors.UNetSettings(2, (4, 4, 4, 4), 1))
    priors.save(path, network, sigma_data=0.25, sigma_min=0.003, sigma_max=40.0, is_complex=True,
                card={})
    return Settings({"tv": {"iterations": 5}, "dds": {"steps": 2}}, accelerations=(3,),
                    center_fractions=(0.2,), prior=str(path), samples=2, batch=2)


def run(folder: Path, out: Path, settings: Settings, said: list[str] | None = None,
        **options: Any) -> None:
    evaluate(folder, out, settings, progress=False,
             say=(lambda _: None) if said is None else said.append, **options)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def spoil(patch: pytest.MonkeyPatch, value: float) -> None:
    """One draw of slice 1 of file1.h5 by dds at 3x gets a value that is none."""
    real = Worker._draws

    def draws(self: Worker, cell: Cell, numbers: Sequence[int], *rest: Any) -> Any:
        found, told = real(self, cell, numbers, *rest)
        if (cell.file.name, cell.sampler, cell.sampling.label) == ("file1.h5", "dds", "3x"):
            for place, number in enumerate(numbers):
                if number == 1:
                    found[0, place, 0, 12, 12] = value
        return found, told

    patch.setattr(Worker, "_draws", draws)


LOST = ("file1.h5", "3x", "dds")


@pytest.fixture(scope="module")
def sound(folder: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sound"
    run(folder, out, settings)
    assert diverged(out) == []
    return out


def table_rows(out: Path, name: str) -> list[list[str]]:
    """The cells of the summary's rows that begin with ``name``."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in (out / "summary.md").read_text().splitlines() if line.startswith("|")]
    return [row for row in cells if row[0] == name]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_diverged_slice_is_recorded_and_left_out_of_means(
    sound: Path, folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    spoil(monkeypatch, value)
    said: list[str] = []
    run(folder, tmp_path / "out", settings, said)
    assert "diverged: dds, 3x: 1 slice(s), which summary.md leaves out" in said
    assert any("file1.h5: dds, 3x, seed 0" in line and "1 of 2 slices diverged" in line
               for line in said)
    (lost,) = diverged(tmp_path / "out")
    assert (lost["file"], lost["sampling"], lost["sampler"], lost["slice"]) == (*LOST, 1)
    assert lost["squared_error"] is lost["residual_over_noise"] is None
    assert "ssim" not in lost
    for one, other in zip(records(sound), records(tmp_path / "out"), strict=True):
        assert one == other or other == lost  # also what was computed beside it
    with h5py.File(tmp_path / "out/submissions/dds/3x/seed0/file1.h5") as file:
        shown = torch.from_numpy(file["reconstruction"][()])
    assert not bool((shown[1] < 1e20).all())
    assert bool(torch.isfinite(shown[0]).all())
    check_summary(sound, tmp_path / "out")


def check_summary(sound: Path, out: Path) -> None:
    """Two volumes of three in the means of dds and in its differences, and all in those of tv."""
    (before,), (after,) = (table_rows(place, "AXT2, 3x, tv") for place in (sound, out))
    assert before == after
    assert after[1] == "3"
    (found,) = table_rows(out, "AXT2, 3x, dds")
    psnr = []
    for name in ("file0.h5", "file2.h5"):
        mine = [r for r in records(out) if (r["file"], r["sampler"]) == (name, "dds")]
        mse = sum(r["squared_error"] for r in mine) / sum(r["pixels"] for r in mine)
        psnr.append(10 * np.log10(mine[0]["maximum"] ** 2 / mse))
    assert found[1] == "2"
    assert found[3].startswith(f"{np.mean(psnr):.2f} ±")
    assert table_rows(sound, "AXT2, 3x, dds")[0][1] == "3"
    (difference,) = table_rows(out, "AXT2, 3x, tv - dds")
    assert difference[1] == "2"
    assert ["3x, dds", "1 of 6", "1 of 3"] in table_rows(out, "3x, dds")
    assert "Diverged" not in (sound / "summary.md").read_text()


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()
            and p.name not in (".lock", "timings.jsonl")}


def test_killed_with_diverged_slices_it_goes_on_to_the_same_bits(
    folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, np.nan)
    run(folder, tmp_path / "unbroken", settings)
    real, left, source = os.fsync, [0], random.Random(0)

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    runs = 0
    while True:
        left[0], runs = source.randint(5, 23), runs + 1
        try:
            run(folder, tmp_path / "out", settings)
            break
        except Killed:
            pass
    assert runs > 4
    found, want = contents(tmp_path / "out"), contents(tmp_path / "unbroken")
    assert found.keys() == want.keys()
    assert [name for name in want if found[name] != want[name]] == []
    monkeypatch.setattr(Worker, "compute", lambda *_: pytest.fail("computed again"))
    run(folder, tmp_path / "out", settings)
    assert len(diverged(tmp_path / "out")) == 1


@pytest.mark.filterwarnings("ignore:.*fit the measurements worse than an empty image")
def test_the_command_ends_with_1_after_all_slices(
    recon: Callable[..., Ran], folder: Path, settings: Settings, tmp_path: Path
) -> None:
    """A step size that no prior survives: the real thing, in every slice."""
    call = ("evaluate", folder, "--out", tmp_path / "out", "--sampler", "red_diff", "--sampler",
            "tv", "--set", "red_diff.lr=1e30", "--set", "red_diff.steps=3", "--set",
            "tv.iterations=3", "--center-fractions", "0.2", "--accelerations", "2",
            "--prior", settings.prior, "--samples", "1", "--device", "cpu")
    ran = recon(*call)
    assert ran.code == 1, ran.err
    assert "diverged: red_diff, 2x: 6 slice(s), which summary.md leaves out" in ran.out
    assert len(diverged(tmp_path / "out")) == 6
    assert sum(r["ssim"] > 0.5 for r in records(tmp_path / "out") if r["sampler"] == "tv") == 6
    assert table_rows(tmp_path / "out", "AXT2, 2x, red_diff") == [
        ["AXT2, 2x, red_diff", "0", "", "", ""]]
    assert "no volume was measured by two samplers" in (tmp_path / "out/summary.md").read_text()
    assert table_rows(tmp_path / "out", "2x, red_diff") == [["2x, red_diff", "6 of 6", "3 of 3"]]
    again = recon(*call)
    assert again.code == 1
    assert "red_diff, 2x, seed" not in again.out


def test_errors_name_file_slice_and_sampler(
    folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draws(*_: Any) -> Any:
        raise ValueError("every particle has weight zero")

    monkeypatch.setattr(Worker, "_draws", draws)
    with pytest.raises(ValueError, match=r"^file0\.h5, slices 0, 1, tv, 3x: every"):
        run(folder, tmp_path / "out", settings)


def test_data_that_came_later_is_told(folder: Path, settings: Settings, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(folder, copy)
    settings = settings._replace(samplers={"tv": {"iterations": 3}})
    run(copy, tmp_path / "out", settings)
    (copy / "notes.txt").write_text("to do")
    run(copy, tmp_path / "out", settings)
    shutil.copy(copy / "file0.h5", copy / "file3.h5")
    with pytest.raises(ValueError, match=r"^file3\.h5 came into set after out was begun: take it "):
        run(copy, tmp_path / "out", settings)
    (copy / "file3.h5").unlink()
    run(copy, tmp_path / "out", settings)


# --- what no slice could be measured by is refused before the first -----------------------------


def one_file(path: Path, images: torch.Tensor) -> None:
    pytest.importorskip("nibabel", reason="the extra `nifti` is not installed")
    affine = torch.eye(4, dtype=torch.float64)
    datasets.write_nifti(path, images, affine)


@pytest.mark.parametrize(("shape", "unit", "said"), [
    ((2, *SIZE), None, "range > 0, got 0"),
    ((2, *SIZE), "HU", "range > 0, got 0"),
    ((2, 6, 40), None, "at least 7 x 7, got .6, 40."),
])
def test_a_volume_that_cannot_be_measured_is_refused_or_listed(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...],
    unit: str | None, said: str,
) -> None:
    (tmp_path / "in").mkdir()
    good = torch.stack([image(0), image(1)])
    bad = torch.ones(shape) if shape[1] < 7 else torch.zeros(shape)
    if unit == "HU":
        good, bad = 1000 * good - 1000, bad - 1000
    one_file(tmp_path / "in" / "a.nii", bad)
    one_file(tmp_path / "in" / "b.nii", good)
    settings = settings._replace(samplers={"tv": {"iterations": 3}}, unit=unit, views=(12,))
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "compute", lambda *_: pytest.fail("work was begun"))
        with pytest.raises(FormatError, match=rf"a\.nii: .*{said}.*skip-bad"):
            run(tmp_path / "in", tmp_path / "out", settings)
    run(tmp_path / "in", tmp_path / "out", settings, skip_bad=True)
    assert {r["file"] for r in records(tmp_path / "out")} == {"b.nii"}


@pytest.mark.parametrize(("samplers", "said"), [
    ({"dds": {"eta": "abc"}}, r"dds\.eta wants a number, got 'abc'"),
    ({"tv": {"iterations": "many"}}, r"tv\.iterations wants a number, got 'many'"),
    ({"dds": {"steps": 2, "eta": -1.0}}, r"dds: .*eta"),
    ({"red_diff": {"lr": 0.0}}, r"red_diff: lr wants a number > 0"),
    ({"red_diff": {"weighting": "of the moon"}}, r"red_diff: weighting wants one of"),
])
def test_settings_of_samplers_are_refused_before_files_are_read(
    folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    samplers: dict[str, dict[str, Any]], said: str,
) -> None:
    monkeypatch.setattr(datasets, "open", lambda *_: pytest.fail("a file was read"))
    with pytest.raises((ValueError, TypeError), match=said):
        run(folder, tmp_path / "out", settings._replace(samplers=samplers))
    assert not (tmp_path / "out").exists()


def test_a_plan_without_a_slice_gives_way(
    folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that ended at its first slice holds nothing to be mixed."""
    settings = settings._replace(samplers={"tv": {"iterations": 3}})
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_draws", lambda *_: (_ for _ in ()).throw(ValueError("no")))
        with pytest.raises(ValueError, match="no"):
            run(folder, tmp_path / "out", settings._replace(seeds=(1,)))
    assert (tmp_path / "out" / "plan.json").exists()
    said: list[str] = []
    run(folder, tmp_path / "out", settings, said)
    assert "out: planned anew, for no slice was done by the plan there" in said
    run(folder, tmp_path / "straight", settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    (tmp_path / "out" / "records.jsonl").unlink()  # results are there: not nothing
    with pytest.raises(ValueError, match="other settings: seeds was"):
        run(folder, tmp_path / "out", settings._replace(seeds=(1,)))
