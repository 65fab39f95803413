"""`recon train`: the same weights after a kill, what it learns, what it refuses, what it writes."""

import contextlib
import functools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recon import datasets, priors
from recon.operators.mri import masks
from recon.priors.training import (
    CHECKED,
    Check,
    Look,
    Recipe,
    Stack,
    Training,
    batch,
    denoising_psnr,
    examples,
    held_out_images,
    loop,
    optimiser,
)
from recon.simulate import multicoil_kspace
from recon.training import Settings, read_stacks, train
from recon.training.images import check_alike
from recon.training.seen import APART, check_apart, fingerprints
from tests.conftest import Ran

TINY = Settings(crop=16, batch=2, widths=(4, 4, 4, 4), blocks=1, steps=12, every=4)
HELD = [torch.full((1, 16, 16), 0.5)]
RECIPE = Recipe(is_complex=False, steps=12, widths=(4, 4, 4, 4), blocks=1)


def blobs(n: int = 3, size: tuple[int, int] = (24, 20), seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    fine = rng.random((n, *size)).astype(np.float32)
    return fine + np.roll(fine, 1, 1) + np.roll(fine, 1, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    np.save(made / "a.npy", blobs())
    np.savez(made / "b.npz", images=blobs(seed=1))
    np.save(tmp_path / "other.npy", blobs(seed=2))
    return made


def quiet(_: str) -> None:
    """Say nothing."""


def stacks() -> list[Stack]:
    return [Stack(torch.from_numpy(blobs(seed=i)) / 3, None, f"{i}") for i in range(2)]


def training(folder: Path, recipe: Recipe = RECIPE, seed: int = 0) -> Training:
    folder.mkdir(exist_ok=True)
    source = functools.partial(batch, stacks(), Look(crop=16), 2, seed)
    return Training(folder, recipe, source, about={"seed": seed})


def everything(run: Training) -> list[Tensor]:
    return [*run.network.state_dict().values(), *run.average.state_dict().values(),
            *run.optimiser.muon.velocity]


# --- the same weights after a kill -----------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from recon.priors.training import Training
from recon.training import Settings, train
torch.set_num_threads(1)
one = Training.one
def dying(self, step, x0):
    if step == 6:  # two steps after the state was written
        os.kill(os.getpid(), signal.SIGKILL)
    return one(self, step, x0)
Training.one = dying
images, out, other = map(Path, sys.argv[1:])
train(images, out, other, Settings(crop=16, batch=2, widths=(4, 4, 4, 4), blocks=1, steps=12,
                                   every=4), name="prior")
"""


def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(folder: Path,
                                                               tmp_path: Path) -> None:
    other = tmp_path / "other.npy"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(tmp_path / "killed"),
                             str(other)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    state = torch.load(tmp_path / "killed" / "state.pt", weights_only=True)
    assert state["step"] == 4
    said: list[str] = []
    for out, say in [("killed", said.append), ("whole", quiet)]:
        train(folder, tmp_path / out, other, TINY, name="prior", say=say)
    assert "going on from step 4" in said
    a, b = ((tmp_path / out / "prior.safetensors").read_bytes() for out in ("killed", "whole"))
    assert a == b
    a, b = (torch.load(tmp_path / out / "state.pt", weights_only=True)
            for out in ("killed", "whole"))
    assert a["step"] == b["step"] == 12
    for x, y in zip(a["optimiser"]["velocity"], b["optimiser"]["velocity"], strict=True):
        assert torch.equal(x, y)


def resumed_differs(tmp_path: Path) -> bool:
    whole, first = training(tmp_path / "whole"), training(tmp_path / "parts")
    whole.run(HELD, every=4)
    first.run(HELD, every=4, stop=4)
    second = training(tmp_path / "parts")
    second.run(HELD, every=4)
    return not all(map(torch.equal, everything(whole), everything(second)))


def test_a_resumed_run_is_bit_equal(tmp_path: Path) -> None:
    assert not resumed_differs(tmp_path)


def _forget(what: str) -> Callable[[Any, Any], None]:
    load = optimiser.Optimiser.load_state_dict

    def careless(self: optimiser.Optimiser, state: dict[str, Any]) -> None:
        kept = self.state_dict()
        load(self, {**state, what: kept[what] if what == "adam" else
                    [torch.zeros_like(v) for v in state["velocity"]]})

    return careless


@pytest.mark.parametrize("forgotten", ["velocity", "adam", "noise", "examples"])
def test_forgetting_anything_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        forgotten: str) -> None:
    if forgotten == "noise":  # from a generator that goes on, and is not part of the state
        monkeypatch.setattr(loop, "noise_like", lambda x, _: torch.randn(x.shape))
    elif forgotten == "examples":  # numbered from the start of the process
        one, numbers = Training.one, iter([*range(12), *range(4), *range(12)])
        monkeypatch.setattr(Training, "one", lambda self, step, _: one(
            self, step, self.examples(next(numbers))))
    else:
        monkeypatch.setattr(optimiser.Optimiser, "load_state_dict", _forget(forgotten))
    assert resumed_differs(tmp_path)


def test_examples_depend_on_seed_and_step_alone() -> None:
    made = functools.partial(batch, stacks(), Look(crop=16), 3)
    ahead = [made(0, i) for i in range(4)]
    assert torch.equal(made(0, 3), ahead[3])
    assert not torch.equal(made(0, 3), made(0, 2))
    assert not torch.equal(made(1, 3), made(0, 3))
    assert ahead[0].shape == (3, 1, 16, 16)


def test_workers_change_nothing(tmp_path: Path) -> None:
    runs = [training(tmp_path / name) for name in ("here", "beside")]
    for run, workers in zip(runs, (0, 1), strict=True):
        run.run(HELD, every=4, stop=4, workers=workers)
    assert all(map(torch.equal, everything(runs[0]), everything(runs[1])))


# --- what it learns --------------------------------------------------------------------------


def test_the_prior_written_is_the_moving_average(folder: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Tensor]] = []
    runs: list[Training] = []
    one = Training.one

    def noted(self: Training, step: int, x0: Tensor) -> Tensor:
        if not seen:
            seen.append([p.detach().clone() for p in self.network.parameters()])
        loss = one(self, step, x0)
        seen.append([p.detach().clone() for p in self.network.parameters()])
        runs[:] = [self]
        return loss

    monkeypatch.setattr(Training, "one", noted)
    path = train(folder, tmp_path / "run", tmp_path / "other.npy", TINY._replace(rate=0.2),
                 say=quiet)
    average = [p.double() for p in seen[0]]
    for step, now in enumerate(seen[1:]):
        keep = min(0.999, (step + 1) / (step + 10))
        average = [keep * a + (1 - keep) * p.double() for a, p in zip(average, now, strict=True)]
    names = [name for name, _ in runs[0].network.named_parameters()]
    written = load_file(path)

    def check(weights: list[Tensor]) -> None:
        for name, w in zip(names, weights, strict=True):
            torch.testing.assert_close(written[name].double(), w.double(), rtol=2e-3, atol=1e-4)

    check(average)
    with pytest.raises(AssertionError):
        check(seen[-1])  # the raw weights


def gaussian(n: int) -> priors.Gaussian:
    f = torch.fft.fftfreq(n)
    spectrum = 1 / (1 + (6 * f[:, None]).square() + (6 * f).square()).square()
    return priors.Gaussian(torch.zeros(1, n, n), spectrum=0.06 * spectrum / spectrum.mean())


def wiener(x0: Tensor, sigma: float, n: int) -> float:
    """PSNR of the exact denoiser of :func:`gaussian`: ``mean S s^2 / (S + s^2)``."""
    f = torch.fft.fftfreq(n, dtype=torch.float64)
    S = 1 / (1 + (6 * f[:, None]).square() + (6 * f).square()).square()
    S = 0.06 * S / S.mean()
    assert x0.shape[-1] == n
    return -10 * math.log10(float((S * sigma**2 / (S + sigma**2)).mean()))


def test_it_approaches_the_wiener_filter_on_gaussian_images(tmp_path: Path) -> None:
    n = 32

    def draws(step: int) -> Tensor:
        return gaussian(n).sample(8, generator=torch.Generator().manual_seed(step))

    recipe = Recipe(is_complex=False, steps=260, widths=(8, 8, 8, 8), blocks=1, rate=6e-3)
    (tmp_path / "run").mkdir()
    run = Training(tmp_path / "run", recipe, draws, about={})
    held_out = list(draws(10**6))
    before = run.checked(held_out)
    run.run(held_out, every=260)

    def check(found: list[float]) -> None:
        exact = [wiener(held_out[0], sigma, n) for sigma in CHECKED]
        gaps = [e - f for e, f in zip(exact, found, strict=True)]
        assert max(gaps) < 0.5, gaps  # dB
        assert min(gaps) > -0.15, gaps  # nothing beats the exact one but by chance

    check(run.checked(held_out))
    check(denoising_psnr(gaussian(n), held_out))
    for wrong in (before, [psnr + 1 for psnr in run.checked(held_out)]):
        with pytest.raises(AssertionError):
            check(wrong)


def test_muon_orthogonalises() -> None:
    matrix = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    found = optimiser.orthogonalised(matrix)
    # its five steps leave singular values between about 0.7 and 1.2
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert float((found * (U @ Vh)).sum() / (found.norm() * (U @ Vh).norm())) > 0.97
    assert float((matrix * (U @ Vh)).sum() / (matrix.norm() * (U @ Vh).norm())) < 0.97
    torch.testing.assert_close(optimiser.orthogonalised(matrix.T), found.T)
    assert not optimiser.orthogonalised(torch.zeros(3, 4)).any()


# --- examples --------------------------------------------------------------------------------


def test_coarser_pixels_keep_means_and_places() -> None:
    draw = examples.Draw(0)
    flat = torch.full((21, 16), 0.7)
    for coarser in (examples.by_area, examples.by_kspace):
        assert coarser is examples.by_kspace or torch.allclose(
            coarser(flat, [13, 12], draw), torch.full((13, 12), 0.7), atol=1e-5)
    rows = torch.arange(32.0)
    wave = torch.cos(2 * math.pi * 3 * rows / 32)[:, None].expand(32, 32)

    class Plain(examples.Draw):
        def chance(self, p: float) -> bool:  # noqa: ARG002 no window
            return False

    small = examples.by_kspace(wave, [16, 16], Plain(0))
    kept = torch.cos(2 * math.pi * 3 * torch.arange(16.0) / 16)[:, None].expand(16, 16)
    torch.testing.assert_close(small, kept, atol=1e-5, rtol=0)
    phased = examples.by_kspace(torch.polar(wave.abs(), wave), [16, 16], Plain(0))
    assert phased.is_complex()


def test_hu_curves_keep_air_and_water_and_never_fall() -> None:
    values = torch.linspace(0, 2.9, 200)
    for seed in range(5):
        curve = examples.hu_recoloured(values, examples.Draw(seed))
        assert (curve.diff() > 0).all()
        ends = examples.hu_recoloured(torch.tensor([0.0, 1.0]), examples.Draw(seed))
        torch.testing.assert_close(ends, torch.tensor([0.0, 1.0]))
        assert not torch.allclose(curve, values, atol=0.02)


def test_what_lies_above_the_last_knot_of_hu_curves_keeps_rising() -> None:
    values = torch.linspace(0, 4, 401)  # of --window -1000:3000

    def check(curve: Callable[[Tensor, examples.Draw], Tensor]) -> None:
        for seed in range(5):
            assert (curve(values, examples.Draw(seed)).diff() > 1e-4).all()

    check(examples.hu_recoloured)
    with pytest.raises(AssertionError):
        check(lambda x, draw: examples.hu_recoloured(x.clamp(max=2.999), draw))
    metal = torch.ones(1, 32, 32)
    metal[:, 10:20, 10:20] = 4.0
    look = Look(crop=32, pixel_mm=(1, 1), thickness_mm=(5, 5), warp=0, recolour=1)
    made = batch([Stack(metal, (5.0, 1.0, 1.0), "metal", in_hu=True)], look, 8, 0, 0)
    ratios = made.amax((1, 2, 3)) / made.amin((1, 2, 3))
    assert ratios.min() > 2.75  # flattened at 2000 HU all were below


@pytest.mark.parametrize("in_hu", [True, False])
def test_coarser_pixels_are_as_coarse_both_ways(in_hu: bool) -> None:
    down, right = torch.arange(100.0)[:, None], torch.arange(256.0)
    waves = 1 + 0.5 * (torch.sin(down * math.pi / 8) + torch.sin(right * math.pi / 8))

    def check(sample: Tensor) -> None:
        assert sample.shape == (96, 96)
        spectrum = torch.fft.fft2(sample - sample.mean(), s=(2048, 2048)).abs()
        first, second = (2048 / int(line[40:1024].argmax() + 40)
                         for line in (spectrum[:, 0], spectrum[0]))
        assert abs(first / second - 1) < 0.05, (first, second)

    stack = Stack(waves[None], (1.0, 1.0, 1.0), "waves", in_hu)
    look = Look(crop=96, pixel_mm=(2.8, 2.8), thickness_mm=(1, 1), warp=0, recolour=0)
    for sample in batch([stack], look, 4, 0, 0):
        check(sample[0])
    coarser = examples.by_area if in_hu else examples.by_kspace
    with pytest.raises(AssertionError):  # each side on its own: as many pixels as a crop has
        check(coarser(waves, [96, 96], examples.Draw(0)))


def test_complex_images_keep_their_magnitude_and_real_ones_get_a_phase() -> None:
    image = torch.from_numpy(blobs(1))[0] / 3
    look = Look(crop=16, phase=True)
    cut = examples.crop(image, look, examples.Draw(1))
    plain = examples.crop(image, look._replace(phase=False), examples.Draw(1))
    torch.testing.assert_close(cut.abs(), plain)
    turned = examples.crop(torch.polar(image, image), look._replace(phase=False),
                           examples.Draw(1))
    torch.testing.assert_close(turned.abs(), plain)
    apart = (turned / torch.polar(plain, plain)).flatten()
    torch.testing.assert_close(apart, apart[0].expand_as(apart))  # one angle for all of it


def test_held_out_images_have_the_scale_reconstruct_gives() -> None:
    found = held_out_images(stacks())
    assert all(x.shape == (1, 24, 20) for x in found)
    for x in found:
        torch.testing.assert_close(torch.quantile(x, 0.995), torch.tensor(0.85))
    assert all(x.is_complex() for x in held_out_images(stacks(), phase=True))
    cube = Stack(torch.rand(20, 20, 20), (1.0, 1.0, 1.0), "cube")
    assert len(held_out_images([cube], side=16)) == 6
    assert held_out_images([cube], side=16)[0].shape == (1, 16, 16)


# --- files in --------------------------------------------------------------------------------


def test_it_reads_what_scanners_and_programs_write(tmp_path: Path) -> None:
    hu = torch.randint(-1500, 3500, (4, 20, 24)).float()
    affine = torch.diag(torch.tensor([2.0, 0.5, 0.5, 1.0], dtype=torch.float64))
    datasets.write_nifti(tmp_path / "ct.nii.gz", hu, affine)
    ct = read_stacks(tmp_path, unit="HU")[0]
    assert ct.in_hu
    assert ct.spacing_mm is not None
    np.testing.assert_allclose(sorted(ct.spacing_mm), [0.5, 0.5, 2.0])
    assert float(ct.values.min()) == 0
    assert float(ct.values.max()) == 3
    seen = read_stacks(tmp_path, unit="HU", window_hu=(-500, 1000))[0].values
    assert (float(seen.min()), float(seen.max())) == (0.5, 2.0)
    arbitrary = read_stacks(tmp_path, unit="arbitrary")[0]
    assert not arbitrary.in_hu


def test_arrays_are_in_the_unit_that_is_said(tmp_path: Path) -> None:
    hu = np.full((2, 20, 24), -1000, np.int16)
    hu[:, 4:16, 4:12], hu[:, 4:16, 12:20], hu[0, 0, 0] = 0, 900, 3000
    np.save(tmp_path / "a.npy", hu)
    np.savez(tmp_path / "b.npz", images=hu[0].astype(np.float64))

    def check(stacks: list[Stack]) -> None:
        for stack in stacks:
            assert stack.in_hu
            assert sorted(set(stack.values.flatten().tolist())) == pytest.approx([0, 1, 1.9, 3])

    check(read_stacks(tmp_path, unit="HU"))
    for other in (None, "arbitrary"):
        with pytest.raises(AssertionError):
            check(read_stacks(tmp_path, unit=other))
    np.save(tmp_path / "a.npy", hu.astype(np.complex64))
    with pytest.raises(ValueError, match=r"a\.npy is complex: HU are real"):
        read_stacks(tmp_path, unit="HU")


def test_kinds_are_not_mixed() -> None:
    values = torch.rand(1, 4, 4)
    with pytest.raises(ValueError, match=r"b is in HU and a is not.*say so with --unit HU"):
        check_alike([Stack(values, None, "a"), Stack(values, None, "b", in_hu=True)])


def test_full_kspace_becomes_complex_images(tmp_path: Path) -> None:
    truth = torch.zeros(32, 32)
    truth[6:26, 8:24] = 1.0
    kspace = multicoil_kspace(truth, noise_std=1e-3, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "raw.npz", kspace=kspace[None].numpy())
    stack = read_stacks(tmp_path)[0]
    assert stack.values.is_complex()
    assert stack.values.shape == (1, 32, 32)
    inside = stack.values[0].abs()[truth > 0]
    assert float(inside.std() / inside.mean()) < 0.2
    undersampled = kspace * masks.equispaced_fraction(32, center_fraction=0.2, acceleration=2,
                                                      seed=0)
    np.savez(tmp_path / "raw.npz", kspace=undersampled[None].numpy())
    with pytest.raises(ValueError, match="undersampled: want fully sampled"):
        read_stacks(tmp_path)


def test_oblong_pixels_become_square(tmp_path: Path) -> None:
    from recon.training.images import squared

    values, spacing = squared(torch.ones(2, 30, 20), (3.0, 1.0, 2.0))
    assert values.shape == (2, 15, 20)
    assert spacing == (3.0, 2.0, 2.0)
    assert squared(values, None)[0] is values
    del tmp_path


# --- refusals --------------------------------------------------------------------------------


def _mixed(folder: Path) -> None:
    np.save(folder / "c.npy", blobs().astype(np.complex64))


def _two_units(folder: Path) -> None:
    affine = torch.eye(4, dtype=torch.float64)
    datasets.write_nifti(folder / "c.nii.gz", torch.from_numpy(blobs()), affine)


def _kspace(folder: Path) -> None:
    truth = torch.ones(24, 20)
    kspace = multicoil_kspace(truth, noise_std=1e-3, generator=torch.Generator().manual_seed(0))
    np.savez(folder / "c.npz", kspace=kspace[None].numpy())


def _nan(folder: Path) -> None:
    np.save(folder / "c.npy", np.full((20, 20), np.nan, np.float32))


def _zero(folder: Path) -> None:
    np.save(folder / "c.npy", np.zeros((20, 20), np.float32))


def _objects(folder: Path) -> None:
    np.save(folder / "c.npy", np.array([{}], dtype=object), allow_pickle=True)


def _four_axes(folder: Path) -> None:
    np.save(folder / "c.npy", blobs()[None])


def _text(folder: Path) -> None:
    (folder / "c.txt").write_text("no image")


def _same_person(folder: Path) -> None:
    (folder.parent / "other.npy").write_bytes((folder / "a.npy").read_bytes())


def _one_slice(folder: Path) -> None:  # of seven times the scale, lying on its side
    np.save(folder.parent / "other.npy",
            np.stack([blobs(1, (20, 24), seed=9)[0], 7 * blobs(seed=1)[2].T[::-1]]))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _nothing(folder: Path) -> None:
    del folder


@pytest.mark.parametrize(("spoil", "settings", "said"), [
    (_empty, TINY, "holds no files"),
    (_mixed, TINY, "c.npy is complex and a.npy is not"),
    (_kspace, TINY._replace(unit="HU"), "c.npz is not in HU, but unit is 'HU'"),
    (_nothing, TINY._replace(unit="mm"), "unit wants HU or arbitrary, got 'mm'"),
    (_nan, TINY, "c.npy holds NaN or infinity"),
    (_zero, TINY, "c.npy is all zero"),
    (_objects, TINY, "c.npy.*damaged, or no array of numbers"),
    (_four_axes, TINY, r"c.npy holds float32 of shape \(1, 3, 24, 20\)"),
    (_text, TINY, "c.txt.*of no known kind"),
    (_same_person, TINY, "other.npy is held out, but its slice 0 is slice 0 of a.npy"),
    (_one_slice, TINY, "other.npy is held out, but its slice 1 is slice 2 of b.npz"),
    (_nothing, TINY._replace(crop=21), "a.npy has images of 24 x 20 pixels, smaller than crops"),
    (_nothing, TINY._replace(crop=8), "crop wants at least 16"),
    (_nothing, TINY._replace(batch=0), "batch wants at least 1"),
    (_nothing, TINY._replace(widths=(4, 4, 4)), "widths wants four numbers"),
    (_nothing, TINY._replace(widths=(4, 4, 0, 4)), "widths wants at least 1"),
    (_nothing, TINY._replace(pixel_mm=(2.0, 1.0)), "pixel_mm wants two numbers"),
    (_nothing, TINY._replace(rate=-1.0), "rate wants"),
    (_nothing, TINY._replace(decay=0.0), "decay wants"),
    (_nothing, TINY._replace(warp=1.5), "warp wants"),
    (_nothing, TINY._replace(window_hu=(0.0, 10.0)), "window_hu wants"),
])
def test_refusals_come_before_the_first_step(folder: Path, tmp_path: Path,
                                             spoil: Callable[[Path], None], settings: Settings,
                                             said: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=said):
        train(folder, tmp_path / "run", tmp_path / "other.npy", settings, say=quiet)
    assert not (tmp_path / "run").exists()


def test_phase_is_for_real_images_without_units(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", blobs().astype(np.complex64))
    np.save(tmp_path / "b.npy", blobs(seed=3).astype(np.complex64))
    with pytest.raises(ValueError, match="have a phase of their own"):
        train(tmp_path / "a.npy", tmp_path / "run", tmp_path / "b.npy",
              TINY._replace(phase=True), say=quiet)


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    run = training(tmp_path / "run")
    run.run(HELD, every=4, stop=4)
    for other in (RECIPE._replace(rate=1e-3), RECIPE._replace(widths=(8, 4, 4, 4)),
                  RECIPE._replace(seed=1), RECIPE._replace(is_complex=True)):
        with pytest.raises(ValueError, match=r"begun with other settings.*change=True"):
            training(tmp_path / "run", other)
    with pytest.raises(ValueError, match=r"other settings \(seed\)"):
        training(tmp_path / "run", seed=1)
    # four of twelve steps: the rate does not fall yet, and the length may change
    training(tmp_path / "run", RECIPE._replace(steps=20)).run(HELD, every=4, stop=12)
    with pytest.raises(ValueError, match=r"other settings \(steps\)"):
        training(tmp_path / "run", RECIPE._replace(steps=40))


def test_a_run_goes_on_with_other_settings_by_request_and_says_so(folder: Path,
                                                                 tmp_path: Path) -> None:
    run = functools.partial(train, folder, tmp_path / "run", tmp_path / "other.npy", say=quiet)
    first = TINY._replace(steps=40, decay=1.0)
    run(first, minutes=1e-9)
    with pytest.raises(ValueError, match=r"\(air, batch\)|\(batch, look\)"):
        run(first._replace(batch=3, air=0.5))
    with pytest.raises(ValueError, match=r"\(widths\)"):  # another network cannot go on
        run(first._replace(widths=(8, 4, 4, 4)), change=True)
    path = run(first._replace(batch=3, air=0.5, steps=3), change=True)
    card = priors.card(path)
    assert [(past["until_step"], past["batch"], past["air"]) for past in card["before"]] == [
        (1, 2, 0.1)]
    page = path.with_suffix(".md").read_text()
    assert "Until step 1: the same images; float32; steps 40, air 0.1, batch 2." in page
    assert card["steps"] == 3
    assert card["examples"] == 1 * 2 + 2 * 3
    assert f"{card['examples']} examples, float32" in page


def older(state: Path) -> None:
    """Make a state one of the versions that kept neither precision nor what the card says."""
    kept = torch.load(state, weights_only=True)
    for part in (kept, *kept["history"]):
        del part["precision"], part["record"]
    torch.save(kept, state)


def people(tmp_path: Path, *counts: int) -> list[Path]:
    """Folders of one file each, of so many slices."""
    found = []
    for i, n in enumerate(counts):
        folder = tmp_path / f"people{i}"
        folder.mkdir()
        np.save(folder / f"p{i}.npy", blobs(n, seed=20 + i))
        found.append(folder)
    return found


@pytest.mark.parametrize("old", [False, True])
def test_the_card_counts_all_that_was_trained_on(tmp_path: Path, old: bool) -> None:
    a, b, c = people(tmp_path, 3, 5, 2)
    run = functools.partial(train, out=tmp_path / "run", validate=c, change=True, say=quiet)
    run(a, settings=TINY._replace(steps=4, subjects=2))
    if old:
        older(tmp_path / "run" / "state.pt")
    path = run(b, settings=TINY._replace(steps=8, batch=5, list_files=True))
    card, page = priors.card(path), path.with_suffix(".md").read_text()
    assert card["trained_on"] == {"subjects": 1, "files": 1, "slices": 5, "names": ["p1.npy"]}
    known = {"subjects": None, "slices": None} if old else {"subjects": 2, "slices": 3}
    (before,) = card["before"]
    assert before["trained_on"] == {"files": 1, "names": ["p0.npy"], **known}
    assert (before["since_step"], before["until_step"], before["same_images"]) == (0, 4, False)
    assert card["examples"] == 4 * 2 + 4 * 5
    assert "Trained on 1 subject(s): 1 file(s), 5 slices since step 4; before, on what" in page
    counted = ("unknown subject(s): 1 file(s), unknown slices (p0.npy); precision not kept; " if old
               else "2 subject(s): 1 file(s), 3 slices (p0.npy); float32; ")
    assert f"Until step 4: {counted}steps 4, batch 2." in page


def test_another_precision_is_refused_and_told(folder: Path, tmp_path: Path) -> None:
    run = functools.partial(train, folder, tmp_path / "run", tmp_path / "other.npy", say=quiet)
    run(TINY, minutes=1e-9)
    other = TINY._replace(precision=torch.bfloat16)
    with pytest.raises(ValueError, match=r"other settings \(precision\)"):
        run(other)
    path = run(other, change=True)
    assert priors.card(path)["precision"] == "bfloat16"
    assert [past["precision"] for past in priors.card(path)["before"]] == ["float32"]
    page = path.with_suffix(".md").read_text()
    assert "Until step 1: the same images; float32; the same settings." in page
    assert "24 examples, bfloat16" in page


def test_a_run_of_an_older_version_goes_on_to_the_same_weights(folder: Path,
                                                               tmp_path: Path) -> None:
    settings = TINY._replace(steps=3)
    run = functools.partial(train, folder, validate=tmp_path / "other.npy", settings=settings,
                            name="prior", say=quiet)
    run(out=tmp_path / "old", minutes=1e-9)
    older(tmp_path / "old" / "state.pt")
    with pytest.raises(ValueError, match=r"other settings \(batch\)"):
        run(out=tmp_path / "old", settings=settings._replace(batch=3))
    path = run(out=tmp_path / "old")
    whole = run(out=tmp_path / "whole")
    for name, weights in load_file(whole).items():
        assert torch.equal(load_file(path)[name], weights)
    card = priors.card(path)
    assert card["precision"] == "float32"
    assert [(past["until_step"], past["precision"]) for past in card["before"]] == [(1, None)]
    assert "Until step 1: the same images; precision not kept; the same settings." in (
        path.with_suffix(".md").read_text())
    older(tmp_path / "whole" / "state.pt")  # it is done: nothing is known of any of its steps
    card = priors.card(run(out=tmp_path / "whole"))
    assert card["precision"] is None
    assert "before" not in card
    assert "precision not kept" in (tmp_path / "whole" / "prior.md").read_text()


def test_a_finished_run_has_no_steps_for_other_settings(folder: Path, tmp_path: Path) -> None:
    run = functools.partial(train, folder, tmp_path / "run", tmp_path / "other.npy", say=quiet)
    path = run(TINY._replace(steps=4))
    page = path.with_suffix(".md").read_text()
    with pytest.raises(ValueError, match=r"of 4 steps already: none is left .*\(batch\)"):
        run(TINY._replace(steps=4, batch=3), change=True)
    assert path.with_suffix(".md").read_text() == page


@pytest.mark.parametrize("old", [False, True])
def test_who_was_trained_on_before_a_change_is_not_held_out(tmp_path: Path, old: bool) -> None:
    a, b, c = people(tmp_path, 3, 3, 3)
    run = functools.partial(train, out=tmp_path / "run", change=True, say=quiet)
    run(a, validate=b, settings=TINY._replace(steps=2))
    if old:
        older(tmp_path / "run" / "state.pt")
    for _ in range(2):  # at the change, and after it
        with pytest.raises(ValueError, match=r"p0\.npy is held out, but .*p0\.npy, trained on "
                                             "until step 2: validate on other people"):
            run(b, validate=a, settings=TINY._replace(steps=6))
        run(b, validate=c, settings=TINY._replace(steps=6), minutes=1e-9)


def test_slices_of_one_voxel_say_nothing() -> None:
    """Dead pixels and markers lie at one place in everybody's images."""
    def marks(seed: int) -> dict[str, Tensor]:
        values = torch.rand(2, 96, 96, generator=torch.Generator().manual_seed(seed))
        values[1], value = 0, values[0, 0, 0]
        values[1, 47, 50] = value
        return {str(seed): fingerprints(Stack(values, None, str(seed)))}

    check_apart(marks(1), marks(2))
    with pytest.raises(ValueError, match="1 is held out, but its slice 0 is slice 0 of 1"):
        check_apart(marks(1), marks(1))


def test_copies_are_found_whatever_their_scale_and_nobody_else() -> None:
    """Smooth bodies like one another, and what rounding makes of a copy."""
    noise = np.random.default_rng(0).standard_normal((12, 1, 8, 8)).astype(np.float32)
    bodies = torch.nn.functional.interpolate(torch.from_numpy(noise), size=(96, 120),
                                             mode="bicubic")[:, 0]
    bodies = (0.5 + bodies).clamp(min=0)
    bodies = torch.cat([bodies, 0.98 * bodies + 0.02 * bodies.roll(1, 0)])  # and neighbours
    marks = fingerprints(Stack(bodies, None, "a"))

    def apart(values: Tensor, of: Callable[[Stack], Tensor] = fingerprints) -> None:
        check_apart({"b": of(Stack(values, None, "b"))}, {"a": of(Stack(bodies, None, "a"))})

    copy = bodies[5:6]
    copies = {"itself": copy, "times 7": copy * 7, "half": copy.half().float(),
              "integers": (copy * 5000).round(), "offset": copy - 3, "across": copy.mT.flip(-1),
              "phase": torch.polar(copy.abs(), torch.full_like(copy, 0.7))}
    for values in copies.values():
        with pytest.raises(ValueError, match="its slice 0 is slice 5 of a"):
            apart(values)

    def rounded(stack: Stack) -> Tensor:  # checksums of voxels rounded after normalisation
        scaled = stack.values / torch.quantile(stack.values.flatten(1), 0.998, 1).view(-1, 1, 1)
        voxels = (scaled * 2**12).round().flatten(1).double()
        return (voxels @ torch.arange(1.0, 1 + voxels.shape[1], dtype=torch.float64))[:, None]

    def missed(of: Callable[[Stack], Tensor]) -> int:
        count = 0
        for body in 7 * bodies:
            with contextlib.suppress(ValueError):
                apart(body[None], of)
                count += 1
        return count

    assert missed(fingerprints) == 0
    assert missed(rounded) > 0
    between = (marks[:, None] - marks).abs().amax(-1)
    assert between.fill_diagonal_(1).min() > 10 * APART
    apart(torch.full((2, 96, 120), 0.7))  # a slice of one value is nobody's
    check_apart({"b": fingerprints(Stack(torch.full((1, 8, 8), 0.7), None, "b"))},
                {"a": fingerprints(Stack(torch.full((1, 8, 8), 0.7), None, "a"))})


def test_what_a_run_wrote_is_not_replaced_once_its_state_is_gone(folder: Path,
                                                                 tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = functools.partial(train, folder, out, tmp_path / "other.npy", TINY, say=quiet)
    path = run()
    (out / "state.pt").unlink()
    for left in ("run.safetensors", "run.md", "log.txt", "preview_000012.png"):
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        with pytest.raises(FileExistsError, match=f"{left} in run is of another run, whose state"):
            run()
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        (out / left).unlink()
    (out / "notes.txt").write_text("not of a run")
    assert run() == path


def test_previews_are_of_the_weights_of_now(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    settings = TINY._replace(previews=4, steps=6)
    training_of = functools.partial(train, folder, out, tmp_path / "other.npy", say=quiet)
    training_of(settings, minutes=1e-9)
    stale = [out / "preview_000004.png", out / "preview_000006.png"]
    for path in stale:  # of a later state than the one that is there
        path.write_bytes(b"stale")
    training_of(settings)
    assert all(len(path.read_bytes()) > 1000 for path in stale)


def test_margins_grow_from_air_only() -> None:
    image = torch.zeros(6, 8)
    image[:, 2:] = 1  # air on the left alone
    found = examples.with_margin(image, 3)
    assert found.shape == (6, 11)
    assert not found[:, :5].any()


def test_a_damaged_state_is_refused_and_a_pickle_never_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    (tmp_path / "run").mkdir()
    state = tmp_path / "run" / "state.pt"
    torch.save({"recipe": Payload()}, tmp_path / "zip.pt")
    for spoilt in (pickle.dumps(Payload(), 2), b"", b"PK\x03\x04 cut short",
                   (tmp_path / "zip.pt").read_bytes()):
        state.write_bytes(spoilt)
        with pytest.raises(ValueError, match="damaged or no state of a training"):
            training(tmp_path / "run")
    assert not ran.exists()
    pickle.loads(pickle.dumps(Payload()))
    assert ran.exists()  # it would have


def test_a_loss_that_is_no_number_stops_before_the_state_is_spoilt(tmp_path: Path) -> None:
    run = training(tmp_path / "run")
    run.run(HELD, every=4, stop=4)
    again = training(tmp_path / "run")
    source = again.examples
    again.examples = lambda step: source(step) * (math.nan if step == 6 else 1)
    with pytest.raises(ValueError, match="the loss is nan by step 8: take a lower rate"):
        again.run(HELD, every=4)
    kept = training(tmp_path / "run")
    assert kept.step == 4
    assert all(bool(torch.isfinite(t).all()) for t in everything(kept))


# --- files out -------------------------------------------------------------------------------


@pytest.fixture
def recon_train(recon: Callable[..., Ran], folder: Path, tmp_path: Path) -> Callable[..., Ran]:
    def run(*more: str) -> Ran:
        return recon("train", folder, "--out", tmp_path / "run", "--validate",
                     tmp_path / "other.npy", "--crop", 16, "--batch", 2, "--widths", "4,4,4,4",
                     "--blocks", 1, "--steps", 4, "--every", 2, "--device", "cpu", *more)

    return run


def test_the_command_writes_a_prior_and_its_card(recon_train: Callable[..., Ran],
                                                 tmp_path: Path) -> None:
    ran = recon_train("--phase", "--subjects", "2", "--name", "blobs", "--note", "Made up, CC0.")
    assert ran.code == 0, ran.err
    out = tmp_path / "run"
    assert sorted(p.name for p in out.iterdir()) == [
        "blobs.md", "blobs.safetensors", "log.txt", "preview_000004.png", "state.pt"]
    assert "step 2 of 4, loss" in ran.out
    assert ran.out.count("held-out dB") == len((out / "log.txt").read_text().splitlines()) == 2
    assert (out / "preview_000004.png").stat().st_size > 10_000
    prior = priors.load(out / "blobs.safetensors")
    assert prior.is_complex
    assert prior.normalised
    x = torch.randn(1, 20, 23, dtype=torch.complex64)
    assert prior(x, 0.1).shape == x.shape
    card = priors.card(out / "blobs.safetensors")
    assert card["trained_on"] == {"subjects": 2, "files": 2, "slices": 6}
    assert card["held_out"] == {"files": 1, "slices": 3}
    assert card["steps"] == 4
    assert card["examples"] == 8
    assert "smooth phase" in card["images"]
    state = torch.load(out / "state.pt", weights_only=True)
    assert card["sigma_data"] == state["sigma_data"]
    other = read_stacks(tmp_path / "other.npy")
    found = denoising_psnr(prior, held_out_images(other, phase=True))
    np.testing.assert_allclose(list(card["held_out_psnr_db"].values()), found, atol=0.02)
    page = (out / "blobs.md").read_text()
    assert "2 subject(s): 2 file(s), 6 slices" in page
    assert "unfinished" not in page
    assert "Made up, CC0." in page
    assert card["note"] == "Made up, CC0."
    assert all(f"{p:.2f}" in page for p in card["held_out_psnr_db"].values())
    assert "a.npy" not in page + json.dumps(card)  # files may be called after patients


def test_the_command_stops_in_time_and_goes_on(recon_train: Callable[..., Ran],
                                               tmp_path: Path) -> None:
    ran = recon_train("--minutes", "1e-9", "--list-files")
    assert ran.code == 0, ran.err
    assert "3 steps are left: the same command goes on" in ran.out
    page = (tmp_path / "run" / "run.md").read_text()
    assert "1 steps of 4: unfinished" in page
    assert "Trained on a.npy, b.npz; held out other.npy." in page
    ran = recon_train()
    assert "going on from step 1" in ran.out
    assert priors.card(tmp_path / "run" / "run.safetensors")["steps"] == 4
    again = recon_train()  # nothing is left to do: the card is written again
    assert again.code == 0
    other = recon_train("--rate", "1e-3")
    assert other.code == 2
    assert "begun with other settings (rate): give those, or another folder" in other.err
    assert "or go on with --change" in other.err


@pytest.mark.parametrize(("options", "said"), [
    (("--widths", "4,x"), "--widths wants numbers with commas between them"),
    (("--pixel", "thin"), "--pixel wants first:last, got 'thin'"),
    (("--precision", "half"), "--precision wants float32 or bfloat16"),
    (("--name", "a/b"), "name wants the name of a file"),
    (("--unit", "mm"), "unit"),
])
def test_the_command_refuses_in_one_line(recon_train: Callable[..., Ran],
                                         options: tuple[str, str], said: str,
                                         folder: Path) -> None:
    _two_units(folder)
    ran = recon_train(*options)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_checks_tell_where_the_training_stands(tmp_path: Path) -> None:
    told: list[Check] = []
    steps: list[int] = []
    training(tmp_path / "run").run([torch.rand(1, 16, 16)], every=5, say=told.append,
                                   advance=lambda: steps.append(len(told)))
    assert [check.step for check in told] == [5, 10, 12]
    assert all(len(check.psnr) == len(CHECKED) for check in told)
    assert steps == 5 * [0] + 5 * [1] + 2 * [2]


def test_a_bar_begins_where_the_run_stands(folder: Path, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.npy"
    settings = TINY._replace(every=5)
    train(folder, tmp_path / "run", other, settings, minutes=1e-9, say=quiet, progress=True)
    assert "1/12" in capsys.readouterr().err
    train(folder, tmp_path / "run", other, settings, say=quiet, progress=True)
    assert "12/12" in capsys.readouterr().err
