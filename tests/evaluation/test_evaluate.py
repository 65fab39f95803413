"""``recon evaluate`` end to end: numbers, resuming to the bit, engines, refusals."""

import json
import os
import random
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

from recon import datasets, mri, priors
from recon.evaluation import Settings, evaluate
from recon.evaluation.compute import Worker
from recon.evaluation.identity import source_hash
from recon.evaluation.plan import read_plan
from recon.evaluation.summary import mean_interval
from recon.metrics import fastmri
from recon.operators.mri import masks
from recon.operators.mri.fourier import ifft2c
from recon.simulate import multicoil_kspace

ROOT = Path(__file__).parents[2]
UNIT = 1e-5
SIZES = ((48, 40), (44, 48))
SLICES = (2, 1)


def truth(size: tuple[int, int], number: int) -> torch.Tensor:
    image = torch.zeros(size)
    image[8:-8, 6:-6], image[16 + number:28, 12:24] = 0.6, 1.0
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two volumes of different sizes, one undersampled slice without reference, and a stray."""
    folder = tmp_path_factory.mktemp("set")
    generator = torch.Generator().manual_seed(0)
    for v, size in enumerate(SIZES):
        kspace = UNIT * torch.stack([
            multicoil_kspace(truth(size, n), coils=4, generator=generator)
            for n in range(SLICES[v])])
        datasets.write_fastmri(folder / f"file{v}.h5", kspace, recon_size=(40, 36),
                               attributes={"acquisition": ("AXT2", "AXFLAIR")[v]})
    mask = masks.equispaced_fraction(48, center_fraction=0.2, acceleration=3, seed=0)
    datasets.write_fastmri(folder / "test.h5", kspace, mask=mask, recon_size=(40, 36))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return folder


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "tiny.safetensors"
    torch.manual_seed(0)
    network = priors.DenoisingUNet(priors.UNetSettings(2, (4, 4, 4, 4), 1))
    priors.save(path, network, sigma_data=0.25, sigma_min=0.003, sigma_max=40.0, is_complex=True,
                card={})
    return path


@pytest.fixture(scope="module")
def settings(prior: Path) -> Settings:
    return Settings({"zero_filled": {}, "tv": {"iterations": 20}, "dds": {"steps": 3}},
                    accelerations=(2, 3), center_fractions=(0.2, 0.16), prior=str(prior),
                    samples=2, seeds=(0, 1))


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def unbroken(folder: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    evaluate(folder, out, settings, progress=False, say=silent)
    return out


def contents(out: Path) -> dict[str, bytes]:
    """Every result that must not depend on how the evaluation went."""
    kept = [p for p in out.rglob("*") if p.is_file() and p.name != ".lock"
            and p.name != "timings.jsonl" and ".maps" not in p.parts]
    return {str(p.relative_to(out)): p.read_bytes() for p in kept}


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def check_equal(out: Path, unbroken: Path) -> None:
    found, want = contents(out), contents(unbroken)
    assert found.keys() == want.keys()
    assert [name for name in want if found[name] != want[name]] == []


def volume(out: Path, sampler: str, sampling: str, seed: int, stem: str) -> torch.Tensor:
    with h5py.File(out / "submissions" / sampler / sampling / f"seed{seed}" / f"{stem}.h5") as file:
        assert list(file) == ["reconstruction"]
        assert not file.attrs
        assert file["reconstruction"].dtype == np.float32
        return torch.from_numpy(file["reconstruction"][()])


# --- numbers ------------------------------------------------------------------------------------


def test_each_slice_has_one_record_and_volumes_one_submission(unbroken: Path) -> None:
    found = records(unbroken)
    keys = [(r["file"], r["sampling"], r["seed"], r["sampler"], r["slice"]) for r in found]
    assert len(set(keys)) == len(keys) == (2 + 1) * 2 * 2 * 3 + 2 * 3
    names = [p for p in contents(unbroken) if p.startswith("submissions/")]
    assert len(names) == 2 * 2 * 2 * 3 + 2 * 3
    assert not (unbroken / "slices").exists()


def test_records_and_table_are_the_metrics_of_the_submissions(
    unbroken: Path, folder: Path
) -> None:
    """Aggregated slices against the whole volumes, and the printed table against both."""
    table = (unbroken / "summary.md").read_text()
    for sampler in ("zero_filled", "tv", "dds"):
        for sampling in ("2x", "3x"):
            psnr = []
            for stem in ("file0", "file1"):
                reference = datasets.open(folder / f"{stem}.h5").reference
                scores = [fastmri(volume(unbroken, sampler, sampling, seed, stem), reference)
                          for seed in (0, 1)]
                psnr.append(sum(s.psnr for s in scores) / 2)
                mine = [r for r in records(unbroken) if (r["sampler"], r["sampling"], r["file"])
                        == (sampler, sampling, f"{stem}.h5") and r["seed"] == 0]
                mse = sum(r["squared_error"] for r in mine) / sum(r["pixels"] for r in mine)
                assert 10 * np.log10(mine[0]["maximum"] ** 2 / mse) == pytest.approx(
                    scores[0].psnr, abs=1e-9)
                assert np.mean([r["ssim"] for r in mine]) == pytest.approx(scores[0].ssim, abs=1e-9)
            mean, half = mean_interval(psnr)
            line = next(x for x in table.splitlines()
                        if x.startswith(f"| all, {sampling}, {sampler} "))
            assert f" {mean:.2f} ± {half:.2f} " in line


def test_the_interval_is_students() -> None:
    from scipy import stats

    values = [30.0, 31.5, 29.0, 33.0]
    mean, half = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)
    assert np.isnan(mean_interval([30.0])[1])


def test_zero_filled_is_fastmris(unbroken: Path, folder: Path) -> None:
    scan = datasets.open(folder / "file0.h5")
    mask = masks.equispaced_fraction(40, 0.2, 2, seed="file0.h5")
    image = ifft2c(torch.where(mask, scan.kspace, 0)).abs().square().sum(1).sqrt()
    want = datasets.centre_crop(image, (40, 36))
    assert torch.allclose(volume(unbroken, "zero_filled", "2x", 0, "file0"), want)


def test_seeds_differ_where_there_are_draws(unbroken: Path) -> None:
    same = [torch.equal(*(volume(unbroken, sampler, "2x", seed, "file0") for seed in (0, 1)))
            for sampler in ("zero_filled", "tv", "dds")]
    assert same == [True, True, False]


def test_a_file_without_reference_is_reconstructed_by_its_own_mask(unbroken: Path) -> None:
    mine = [r for r in records(unbroken) if r["file"] == "test.h5"]
    assert {r["sampling"] for r in mine} == {"as-measured"}
    assert all(r["squared_error"] is None for r in mine)
    assert volume(unbroken, "dds", "as-measured", 1, "test").shape == (1, 40, 36)
    text = (unbroken / "summary.md").read_text()
    assert "Reconstructed without a reference: test.h5" in text
    assert "- .DS_Store: a hidden file" in text


def test_coil_maps_are_estimated_once_and_hold_no_code(
    unbroken: Path, folder: Path, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not (unbroken / ".maps").exists()  # as large as the data, and of no more use
    made, maps = [0], tmp_path / "maps"
    real = mri.coil_maps

    def coil_maps(*arguments: Any) -> torch.Tensor:
        made[0] += 1
        return real(*arguments)

    monkeypatch.setattr(mri, "coil_maps", coil_maps)
    settings = settings._replace(samplers={"tv": {"iterations": 20}}, seeds=(0,))
    evaluate(folder, tmp_path / "out", settings, maps=maps, progress=False, say=silent)
    files = sorted(path for path in maps.rglob("*") if path.is_file())
    # slices, samplings; and the test file's
    assert made[0] == len(files) == (2 + 1) * 2 + 1
    assert {p.suffix for p in files} == {".safetensors"}
    # damaged ones, a pickle among them, are as good as absent
    kept = [path.read_bytes() for path in files]
    bomb = b"cposix\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR."
    for i, path in enumerate(files[:4]):
        path.write_bytes(bomb if i % 2 else kept[i][:-40])
    evaluate(folder, tmp_path / "again", settings, maps=maps, progress=False, say=silent)
    assert made[0] == len(files) + 4
    assert [path.read_bytes() for path in files] == kept
    assert not (tmp_path / "run").exists()
    check_equal(tmp_path / "again", tmp_path / "out")


def test_maps_to_keep_may_lie_among_the_results(
    folder: Path, settings: Settings, tmp_path: Path
) -> None:
    settings = settings._replace(samplers={"tv": {"iterations": 2}}, seeds=(0,))
    out = tmp_path / "out"
    evaluate(folder, out, settings, maps=out / "maps", progress=False, say=silent)
    assert len(list((out / "maps").rglob("*.safetensors"))) == (2 + 1) * 2 + 1
    assert not (out / ".maps").exists()
    evaluate(folder, out, settings, progress=False, say=silent)  # nothing to do, nothing to delete
    assert len(list((out / "maps").rglob("*.safetensors"))) == (2 + 1) * 2 + 1


def test_batches_change_nothing_but_rounding(
    unbroken: Path, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    evaluate(folder, tmp_path / "out", settings._replace(batch=2), progress=False, say=silent)
    for one, other in zip(records(unbroken), records(tmp_path / "out"), strict=True):
        assert one.keys() == other.keys()
        coverage = one.pop("coverage", 0.0), other.pop("coverage", 0.0)
        assert abs(coverage[0] - coverage[1]) < 0.01  # a count: rounding moves single pixels
        for key, value in one.items():
            assert other[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float)
                                  else value)


# --- ended before it was done -------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run as abruptly as an exception can."""


def test_ended_at_any_write_it_goes_on_to_the_same_bits(
    unbroken: Path, folder: Path, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that dies at every 5th to 23rd call of fsync, which every write ends with."""
    real, left = os.fsync, [0]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        real(handle)

    out, runs, source = tmp_path / "out", 0, random.Random(0)
    monkeypatch.setattr(os, "fsync", fsync)
    while True:
        left[0] = source.randint(5, 23)
        runs += 1
        try:
            evaluate(folder, out, settings, progress=False, say=silent)
            break
        except Killed:
            lines = (out / "records.jsonl")
            assert not lines.exists() or len(records(out)) <= len(records(unbroken))
    assert runs > 8
    check_equal(out, unbroken)


def test_killed_it_goes_on_to_the_same_bits(
    unbroken: Path, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    """The real thing: kill -9 three times at random moments, and a torn last line."""
    out, program = tmp_path / "out", (
        "import sys\nfrom recon.evaluation import Settings, evaluate, identity\n"
        # that of this process, should a file be edited meanwhile
        f"identity.source_hash = lambda: {source_hash()!r}\n"
        f"evaluate({str(folder)!r}, sys.argv[1], {settings!r}, progress=False)")
    source, killed = random.Random(1), 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program, str(out)], cwd=tmp_path,
                                   stdout=subprocess.DEVNULL, start_new_session=True,
                                   env=os.environ | {"PYTHONPATH": str(ROOT)})
        until = time.monotonic() + 300
        before = len(records(out)) if (out / "records.jsonl").exists() else 0
        while process.poll() is None and time.monotonic() < until:
            there = (out / "records.jsonl").exists() and len(records(out)) > before
            if there:
                break
            time.sleep(0.01)
        time.sleep(source.uniform(0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed
    with (out / "records.jsonl").open("ab") as file:
        file.write(b'{"file": "file0.h5", "sli')
    evaluate(folder, out, settings, progress=False, say=silent)
    check_equal(out, unbroken)


def test_a_finished_evaluation_computes_nothing(
    unbroken: Path, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "compute", lambda *_: pytest.fail("computed again"))
    before = contents(unbroken)
    evaluate(folder, unbroken, settings, progress=False, say=silent)
    assert contents(unbroken) == before


def test_a_lost_image_is_computed_again(
    unbroken: Path, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    (out / "submissions" / "tv" / "2x" / "seed0" / "file1.h5").unlink()
    evaluate(folder, out, settings, progress=False, say=silent)
    check_equal(out, unbroken)


def test_ray_gives_the_same_bits(
    unbroken: Path, folder: Path, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the workers
    evaluate(folder, tmp_path / "out", settings, engine="ray", workers=2, progress=False,
             say=silent)
    check_equal(tmp_path / "out", unbroken)


def test_ray_is_asked_for_before_files_are_read(
    folder: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    monkeypatch.setattr(datasets, "open", None)
    with pytest.raises(ImportError, match=r"--engine ray needs Ray: pip install \"recon\[ray\]\""):
        evaluate(folder, tmp_path / "out", settings, engine="ray", progress=False, say=silent)
    with pytest.raises(ValueError, match="engine wants local or ray, got 'spark'"):
        evaluate(folder, tmp_path / "out", settings, engine="spark",  # type: ignore[arg-type]
                 progress=False, say=silent)
    assert not list(tmp_path.iterdir())


# --- refusals -----------------------------------------------------------------------------------


def test_other_settings_files_or_weights_are_not_mixed(
    unbroken: Path, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    out, copy = tmp_path / "out", tmp_path / "set"
    shutil.copytree(unbroken, out)
    shutil.copytree(folder, copy)

    def again(**changed: Any) -> None:
        evaluate(copy, out, settings._replace(**changed), progress=False, say=silent)

    with pytest.raises(ValueError, match="other settings: samples was 2, is 3: choose another"):
        again(samples=3)
    with pytest.raises(ValueError, match="samplers' order was zero_filled, tv, dds"):
        again(samplers=dict(reversed(list(settings.samplers.items()))))
    plan = json.loads((out / "plan.json").read_text())
    plan["environment"]["torch"] = "1.0"
    (out / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"torch was 1\.0, is "):
        again()
    shutil.copy(unbroken / "plan.json", out)
    again()  # dates differ, contents do not
    path = copy / "file0.h5"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(datasets.FormatError, match=r"file0\.h5: has changed or gone"):
        again()
    shutil.copy(folder / "file0.h5", path)
    plan["environment"] = json.loads((unbroken / "plan.json").read_text())["environment"]
    (out / "plan.json").write_text(json.dumps(plan | {"prior_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"prior .* is not what it was"):
        again()
    (out / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is damaged or of another version"):
        again()


BAD: dict[str, tuple[Callable[[Settings], Settings], str]] = {
    "no sampler": (lambda s: s._replace(samplers={}), "at least one sampler"),
    "unknown sampler": (lambda s: s._replace(samplers={"ddz": {}}), "no sampler 'ddz'"),
    "volumes": (lambda s: s._replace(samplers={"mbir": {}}), "does not reconstruct slice by slice"),
    "unknown setting": (lambda s: s._replace(samplers={"tv": {"wieght": 1}}), "'wieght'"),
    "zero_filled has none": (lambda s: s._replace(samplers={"zero_filled": {"a": 1}}), "no setti"),
    "pairs": (lambda s: s._replace(center_fractions=(0.1,)), "2 accelerations but 1 center"),
    "mask": (lambda s: s._replace(mask="poison"), "mask wants one of"),
    "seeds": (lambda s: s._replace(seeds=(1, 1)), "seeds want different"),
    "noise": (lambda s: s._replace(noise_std=float("nan")), "noise_std wants a finite"),
    "slices": (lambda s: s._replace(slices=(2, 2)), "slices want first < stop"),
    "batch": (lambda s: s._replace(batch=0), "batch wants at least 1"),
    "no such slices": (lambda s: s._replace(slices=(50, 60)), "chooses none"),
    "centre": (lambda s: s._replace(center_fractions=(0.05, 0.05)), "at least 6 fully sampled"),
    "no room": (lambda s: s._replace(accelerations=(8, 9)), "center_fraction \\* acceleration < 1"),
    "prior": (lambda s: s._replace(prior="nobody"), "nobody"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_before_the_first_slice(
    folder: Path, settings: Settings, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "compute", lambda *_: pytest.fail("work was begun"))
    change, said = BAD[name]
    with pytest.raises((ValueError, TypeError, OSError), match=said):
        evaluate(folder, tmp_path / "out", change(settings), progress=False, say=silent)
    assert not (tmp_path / "out" / "plan.json").exists()


def test_bad_files_are_refused_or_listed(
    folder: Path, settings: Settings, tmp_path: Path
) -> None:
    copy = tmp_path / "set"
    shutil.copytree(folder, copy)
    (copy / "cut.h5").write_bytes((folder / "file0.h5").read_bytes()[:2000])
    with h5py.File(folder / "file0.h5") as file:
        kspace = file["kspace"][()]
    kspace[1, 0, 3, 3] = np.nan
    datasets.write_fastmri(copy / "nan.h5", torch.from_numpy(kspace))
    with pytest.raises(datasets.FormatError, match=r"cut\.h5: .*skip"):
        evaluate(copy, tmp_path / "out", settings, progress=False, say=silent)
    (copy / "cut.h5").unlink()
    with pytest.raises(datasets.FormatError, match=r"nan\.h5: .*slice 1 holds NaN"):
        evaluate(copy, tmp_path / "out", settings, progress=False, say=silent)
    said: list[str] = []
    plan = evaluate(copy, tmp_path / "out", settings._replace(samplers={"zero_filled": {}}),
                    skip_bad=True, progress=False, say=said.append)
    assert [name for name, _ in plan.bad] == ["nan.h5"]
    assert any(line.startswith("bad, left out: nan.h5:") for line in said)
    assert "Bad, left out" in (tmp_path / "out" / "summary.md").read_text()
    assert read_plan(tmp_path / "out" / "plan.json") == plan


def test_a_folder_of_something_else_is_left_alone(folder: Path, settings: Settings,
                                                  tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(FileExistsError, match="holds other files"):
        evaluate(folder, tmp_path, settings, progress=False, say=silent)
    with pytest.raises(NotADirectoryError, match="want a folder"):
        evaluate(folder / "file0.h5", tmp_path / "out", settings, progress=False, say=silent)
    assert (tmp_path / "thesis.tex").read_text() == "dear"
