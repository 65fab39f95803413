"""From measurements to a Reconstruction: scaling, seeds, chunks, classical methods, files."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

import recon
from recon import datasets, samplers
from recon.integrators import DDIM, Step, schedules
from recon.noise import per_draw
from recon.operators import CartesianMRI, Masking, Space
from recon.priors import Codec, Gaussian, Prior
from recon.reconstruct import RECOMMENDED, Reconstruction, data_scale, reconstruct
from recon.samplers import Sampler, dds, latent_dps, red_diff, tv, wavelet

Run = Callable[..., Reconstruction]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def smooth(n: int = 16) -> Gaussian:
    f = torch.fft.fftfreq(n)
    return Gaussian(torch.full((1, n, n), 0.5 + 0j),
                    spectrum=0.5 / (1 + 100 * (f[:, None].square() + f.square()))[None])


class Normalised(Prior):
    """A Gaussian that asks to be brought to the data, as networks do."""

    def __init__(self) -> None:
        super().__init__(channels=1, is_complex=True, normalised=True)
        self.of = smooth()

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.of.denoise(x, sigma)


PRIOR, NORMALISED = smooth(), Normalised()
v, u = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 2, indexing="ij")
MAPS = torch.stack([torch.exp(-(u - a).square() + 1j * a * v) for a in (-0.8, 0.0, 0.8)])
A = CartesianMRI((16, 16), torch.arange(16) % 2 + (torch.arange(16) - 8).abs().lt(2) > 0,
                 MAPS / MAPS.abs().square().sum(0).sqrt())
X = PRIOR.sample(3, torch.Generator().manual_seed(1))
Y = A(X + 0.01 * PRIOR.sample(3)) + 0.02 * A.mask * noise(3, 3, 16, 16, dtype=torch.complex64)


def check_seeds(run: Run) -> None:
    """Fails if a draw knows of any other: of its chunk, its batch, or how many there are."""
    whole = run(Y, A, PRIOR, noise_std=0.02, samples=5, seed=0, steps=6).samples
    for chunk in (1, 2, 4, 5, 9):
        assert relative(run(Y, A, PRIOR, noise_std=0.02, samples=5, seed=0, steps=6,
                            chunk=chunk).samples, whole) < 1e-5
    fewer = run(Y[:2], A, PRIOR, noise_std=0.02, samples=2, seed=0, steps=6).samples
    assert relative(fewer, whole[:2, :2]) < 1e-5
    alone = run(Y[0], A, PRIOR, noise_std=0.02, samples=5, seed=0, steps=6).samples
    assert relative(alone, whole[:, 0]) < 1e-5
    again = run(Y, A, PRIOR, noise_std=0.02, samples=5, seed=0, steps=6).samples
    assert torch.equal(again, whole)
    same = run(Y[:1].repeat(2, 1, 1, 1), A, PRIOR, noise_std=0.02, samples=2, steps=6).samples
    other = run(Y, A, PRIOR, noise_std=0.02, samples=5, seed=1, steps=6).samples
    for a, b in ((same[:, 0], same[:, 1]), (same[0], same[1]), (other, whole)):
        assert relative(a, b) > 0.01


def test_draws_do_not_depend_on_chunks_or_batches() -> None:
    check_seeds(reconstruct)

    def one_stream(y: Tensor, *args: Any, seed: int = 0, chunk: int | None = None,
                   **settings: Any) -> Reconstruction:
        source = torch.Generator().manual_seed(seed)
        n = settings.pop("samples", 1)
        parts = [dds(y, *args, generator=source, samples=min(chunk or n, n - i), **settings)
                 for i in range(0, n, chunk or n)]
        return Reconstruction(torch.cat(parts))

    with pytest.raises(AssertionError):
        check_seeds(one_stream)


def test_an_item_with_a_seed_of_its_own_draws_what_it_draws_alone() -> None:
    seeds = [7, 2, 7]
    together = reconstruct(Y, A, PRIOR, noise_std=0.02, samples=2, seed=seeds, chunk=1)
    assert together.settings["seed"] == seeds
    for i, seed in enumerate(seeds):
        alone = reconstruct(Y[i:i + 1], A, PRIOR, noise_std=0.02, samples=2, seed=seed)
        assert relative(together.samples[:, i], alone.samples[:, 0]) < 1e-5
    elsewhere = reconstruct(Y, A, PRIOR, noise_std=0.02, samples=2, seed=7)
    assert relative(elsewhere.samples[:, 2], together.samples[:, 2]) > 1e-3
    with pytest.raises(ValueError, match=r"one for each item of the batch \(3,\), got 2"):
        reconstruct(Y, A, PRIOR, seed=[1, 2])


def test_is_the_sampler_with_its_own_settings() -> None:
    got = reconstruct(Y, A, PRIOR, noise_std=0.02, samples=2, seed=3)
    want = dds(Y, A, PRIOR, noise_std=0.02, samples=2, generator=per_draw(3, range(2), range(3)))
    assert torch.equal(got.samples, want)
    given = reconstruct(Y, A, PRIOR, noise_std=0.02, samples=2, seed=3, steps=7, eta=0.5)
    want = dds(Y, A, PRIOR, noise_std=0.02, samples=2, generator=per_draw(3, range(2), range(3)),
               steps=7, eta=0.5)
    assert torch.equal(given.samples, want)
    assert float((got.mean - X).norm() / X.norm()) < 0.25
    scaled = reconstruct(5 * Y, A, PRIOR, noise_std=0.1, scale=5.0, samples=2, seed=3)
    assert relative(scaled.samples / 5, got.samples) < 1e-5


def check_units(run: Run) -> None:
    """Fails unless a normalised prior follows the data from 1e-6 to 1e6, each item by itself."""
    want = run(Y, A, NORMALISED, noise_std=0.02, samples=2, steps=12)
    assert float((want.mean - X).norm() / X.norm()) < 0.3
    c = torch.tensor([1e-6, 1e6, 1.0])
    spread = c.view(-1, 1, 1, 1)
    got = run(spread * Y, A, NORMALISED, noise_std=0.02 * c, samples=2, steps=12)
    for i in range(3):
        assert relative(got.samples[:, i] / c[i], want.samples[:, i]) < 1e-5
    assert relative(torch.tensor(got.settings["scale"]) / c,
                    torch.tensor(want.settings["scale"])) < 1e-5


@pytest.mark.filterwarnings("ignore:.*worse than an empty image")  # of the planted mistakes
def test_units_cancel() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_units(reconstruct)
    with pytest.raises(AssertionError):
        check_units(lambda *args, **settings: reconstruct(*args, scale=1.0, **settings))
    with pytest.raises(AssertionError):  # one scale for the batch
        check_units(lambda y, *args, **settings: reconstruct(
            y, *args, scale=float(data_scale(y, A).mean()), **settings))


def test_scale_of_data() -> None:
    full = CartesianMRI((16, 16))
    scale = data_scale(full(X), full)
    want = torch.quantile(X.abs().flatten(1), 0.995, dim=1) / 0.85
    assert relative(scale, want) < 1e-5
    y = full(X) * torch.tensor([1.0, 0.0, 3.0]).view(-1, 1, 1, 1)
    assert data_scale(y, full)[1] == 1
    assert relative(data_scale(y, full)[::2], want[::2] * torch.tensor([1.0, 3.0])) < 1e-5
    got = reconstruct(Y, A, NORMALISED, noise_std=0.02, steps=9)
    assert got.settings["scale"] == pytest.approx(data_scale(Y, A).tolist())
    assert got.settings["sigmas"] == "karras, 3 to 0.01 of the scale"
    unit = data_scale(Y, A)
    grid = schedules.karras(9, 0.01, 3.0)[:, None] * unit
    want = dds(Y, A, NORMALISED.rescaled(unit), noise_std=0.02, sigmas=grid,
               generator=per_draw(0, range(1), range(3)), **RECOMMENDED["dds"])
    assert relative(got.samples, want) < 1e-5
    own = reconstruct(Y, A, NORMALISED, noise_std=0.02, sigmas=schedules.vp(5))
    assert own.settings["sigmas"] == schedules.vp(5).tolist()
    assert own.settings["steps"] == 5


@pytest.mark.parametrize("prior", [PRIOR, NORMALISED])
def test_zero_measurements_give_zero(prior: Prior) -> None:
    y = Y.clone()
    y[1] = 0
    with pytest.warns(UserWarning, match=r"all zero, the result is zero there: \[\(1,\)\]") as seen:
        got = reconstruct(y, A, prior, noise_std=0.02, samples=2, steps=5).samples
    assert seen[0].filename == __file__
    assert not got[:, 1].any()
    want = reconstruct(Y, A, prior, noise_std=0.02, samples=2, steps=5).samples
    assert relative(got[:, ::2], want[:, ::2]) < 1e-5
    with pytest.warns(UserWarning, match="result is zero there: all"):
        assert not reconstruct(0 * Y[0], A, prior, steps=5).samples.any()
    with pytest.warns(UserWarning, match="all zero"):
        assert not reconstruct(y, A, None, "tv", weight=1e-3, iterations=3).samples[:, 1].any()


def test_mean_and_spread() -> None:
    draws = noise(7, 2, 1, 4, 5, dtype=torch.complex64)
    got, values = Reconstruction(draws), draws.numpy()
    assert np.allclose(got.mean.numpy(), values.mean(0))
    assert np.allclose(got.std.numpy(), values.std(0, ddof=1), rtol=1e-5)
    assert not got.std.is_complex()
    both = (values.real.var(0, ddof=1) + values.imag.var(0, ddof=1)) ** 0.5
    assert np.allclose(got.std.numpy(), both, rtol=1e-5)
    one = Reconstruction(draws[:1])
    assert torch.equal(one.mean, draws[0])
    assert bool(one.std.isnan().all())


def test_settings_say_what_was_done() -> None:
    got = reconstruct(Y, A, PRIOR, noise_std=torch.tensor([0.02, 0.03, 0.04]), samples=2, seed=4,
                      steps=3, integrator=DDIM(0.5), chunk=1)
    assert got.settings == {
        "sampler": "dds", "samples": 2, "seed": 4, "noise_std": pytest.approx([0.02, 0.03, 0.04]),
        "scale": 1.0, "gamma": None, "sigmas": None, "cg_iterations": 5, "eta": 0.85,
        "rule": "ddim", "steps": 3, "integrator": "DDIM(eta=0.5, rule='ddim')"}
    assert reconstruct(Y, A, PRIOR, noise_std=0.02).settings["steps"] == 50
    long = torch.linspace(1, 0, 336).double()[:, None] * torch.ones(3)
    got = reconstruct(Y, A, PRIOR, noise_std=0.02, sigmas=long, cg_iterations=1)
    assert got.settings["sigmas"] == "(336, 3), 1 to 0"
    assert got.settings["steps"] == 335


def test_settings_that_are_complex_images() -> None:
    """As ``red_diff`` begins with: short ones by their numbers, long ones by their magnitudes."""
    for n, told in ((8, None), (40, "(1, 40, 40), magnitudes 5 to 0")):
        B, first = CartesianMRI((n, n)), torch.zeros(1, n, n, dtype=torch.complex64)
        first[0, 1, 2] = torch.tensor(3 - 4j)
        y, prior = B(first), smooth(n)
        got = reconstruct(y, B, prior, "red_diff", noise_std=0.1, steps=3, initial=first)
        assert got.settings["initial"] == (told or first.tolist())
        want = red_diff(y, B, prior, noise_std=0.1, steps=3, initial=first,
                        generator=per_draw(0, range(1), range(1)))
        assert torch.equal(got.samples, want)


def test_numbers_of_numpy() -> None:
    """Seeds, counts and scales are what the same numbers of Python are."""
    given: dict[str, Any] = {"noise_std": 0.02}
    own = torch.tensor([1.0, 2.0, 3.0])
    want = reconstruct(Y, A, PRIOR, samples=2, steps=4, seed=3, scale=own, **given)
    scales: list[Any] = [own.numpy(), own.tolist()]
    for scale in scales:
        counts: dict[str, Any] = {"samples": np.int64(2), "steps": np.int64(4), "seed": np.int64(3)}
        got = reconstruct(Y, A, PRIOR, scale=scale, **counts, **given)
        assert torch.equal(got.samples, want.samples)
        assert got.settings == want.settings
        assert {type(got.settings[name]) for name in counts} == {int}
    seeds = np.array([3, 1, 4])
    each = reconstruct(Y, A, PRIOR, steps=4, seed=seeds, **given)  # type: ignore[arg-type]
    assert each.settings["seed"] == [3, 1, 4]
    assert torch.equal(each.samples, reconstruct(Y, A, PRIOR, steps=4, seed=[3, 1, 4],
                                                 **given).samples)
    one, other = (per_draw(seed, range(1), range(2))  # type: ignore[arg-type]
                  for seed in (np.int32(5), 5))
    assert [g.initial_seed() for g in one] == [g.initial_seed() for g in other]
    wrong: Any
    for wrong in (2.5, [1, 2.5, 3], None, torch.tensor(3)):
        with pytest.raises(TypeError, match=r"seed wants a whole number, or one for each item"):
            reconstruct(Y, A, PRIOR, seed=wrong, **given)


def test_what_only_the_samplers_take_is_said() -> None:
    with pytest.raises(ValueError, match="in reconstruct pass scale=, one number"):
        reconstruct(Y, A, NORMALISED, "mbir", noise_std=0.02, steps=3, max_slices=2)
    got = reconstruct(Y, A, NORMALISED, "mbir", noise_std=0.02, steps=3, max_slices=2, scale=1.5)
    assert got.samples.shape == (1, *X.shape)
    ways: list[dict[str, Any]] = [{}, {"acquire": lambda _: Y}]
    for given in ways:
        with pytest.raises(TypeError, match=r"ads measures as it goes.*call samplers\.ads"):
            reconstruct(Y, A, PRIOR, "ads", candidates=torch.arange(16), budget=4, **given)


@pytest.mark.parametrize("name", [n for n in samplers.__all__
                                  if isinstance(getattr(samplers, n), Sampler)])
def test_no_items_are_refused(name: str) -> None:
    """By every sampler, before the transforms that want one say something of their own."""
    method, full = getattr(samplers, name), CartesianMRI((16, 16))
    own = {"weight": 1e-3} if name in ("tv", "wavelet") else {"prior": PRIOR}
    if name == "ads":
        with pytest.raises(ValueError, match=r"y hold no item, got \(0, 1, 16, 16\)"):
            method(lambda _: Y[:0], full, candidates=torch.arange(16), budget=4, batch=(0,), **own)
        return
    with pytest.raises(ValueError, match=r"y hold no item, got \(0, 3, 16, 16\)"):
        method(Y[:0], A, noise_std=0.02, **own)
    with pytest.raises(ValueError, match=r"y hold no item, got \(0, 3, 16, 16\)"):
        reconstruct(Y[:0], A, sampler=name, noise_std=0.02, **own)


@pytest.mark.parametrize(("sampler", "method"), [("tv", tv), ("wavelet", wavelet)])
def test_classical_methods(sampler: str, method: Callable[..., Tensor]) -> None:
    settings: dict[str, Any] = {"weight": 1e-3, "iterations": 5}
    settings |= {"levels": 2} if sampler == "wavelet" else {}
    seen: list[Step] = []
    got = reconstruct(Y, A, None, sampler, callback=seen.append, noise_std=0.02, **settings)
    assert torch.equal(got.samples, method(Y, A, **settings))
    assert [step.index for step in seen] == [1, 2, 3, 4, 5]
    assert got.samples.shape == (1, 3, 1, 16, 16)
    assert got.settings["weight"] == 1e-3
    assert "scale" not in got.settings
    for extra in ({"prior": PRIOR}, {"prior": NORMALISED, "samples": 4}, {"samples": 2}):
        with pytest.warns(UserWarning, match=f"{sampler} uses no prior and has one answer") as w:
            same = reconstruct(Y, A, sampler=sampler, **extra, **settings)
        assert w[0].filename == __file__
        assert torch.equal(same.samples, got.samples)
        assert same.settings["samples"] == 1


@pytest.mark.parametrize("sampler", ["dds", "tv"])
def test_progress_and_callback(sampler: str, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Step] = []
    settings: dict[str, Any] = {"steps": 4, "samples": 3, "chunk": 2} if sampler == "dds" else {
        "weight": 1e-3, "iterations": 8, "rtol": 0.0}
    reconstruct(Y, A, PRIOR if sampler == "dds" else None, sampler, noise_std=0.02, progress=True,
                callback=seen.append, **settings)
    assert len(seen) == 8
    shown = capsys.readouterr().err
    assert sampler in shown
    assert "8/8" in shown
    reconstruct(Y, A, PRIOR, noise_std=0.02, steps=2)
    assert capsys.readouterr().out == ""


def test_gradients_are_not_recorded() -> None:
    y = Y.clone().requires_grad_()
    got = reconstruct(y, A, NORMALISED, noise_std=0.02, steps=2)
    assert not got.samples.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("batch", [(), (3,), (1, 3)])
def test_files(tmp_path: Path, batch: tuple[int, ...]) -> None:
    y = (Y if batch else Y[0]).view(*batch, 3, 16, 16)
    got = reconstruct(y, A, PRIOR, noise_std=0.02, samples=2, steps=3)
    slices = got.samples.view(2, -1, 16, 16)
    for suffix in ("h5", "npz", "cfl"):
        path = tmp_path / f"r.{suffix}"
        got.save(path)
        with pytest.raises(FileExistsError, match="exists: pass overwrite=True"):
            got.save(path)
        got.save(str(path), overwrite=True)
    with h5py.File(tmp_path / "r.h5") as file:
        assert torch.equal(torch.from_numpy(file["samples"][:]), slices)
        assert np.allclose(file["reconstruction"][:], slices.mean(0).abs(), rtol=1e-5)
        assert np.allclose(file["std"][:], got.std.view(-1, 16, 16), rtol=1e-5)
        assert file.attrs["sampler"] == "dds"
        assert file.attrs["steps"] == "3"
        assert set(file.attrs) == set(got.settings)
    with np.load(tmp_path / "r.npz") as arrays:
        assert np.allclose(arrays["mean"], got.mean.squeeze(-3), rtol=1e-5)
        assert np.array_equal(arrays["samples"], got.samples.squeeze(-3))
        assert np.allclose(arrays["std"], got.std.squeeze(-3), rtol=1e-5)
    image = datasets.read_cfl(tmp_path / "r.cfl").reshape(16, 16, -1).movedim(-1, 0)
    assert relative(image, slices.mean(0)) < 1e-6
    assert not list(tmp_path.glob("*.part"))


def test_files_keep_the_sign_of_real_images(tmp_path: Path) -> None:
    """CT in HU is negative in air: a magnitude would be wrong there and nowhere else."""
    hu = torch.tensor([-1000.0, -80.0, 40.0, 900.0]).expand(2, 3, 1, 4, 4)
    got = Reconstruction(hu + torch.arange(2.0)[:, None, None, None, None])
    for name in ("r.h5", "r.npz", "r.cfl"):
        got.save(tmp_path / name)
    with h5py.File(tmp_path / "r.h5") as file:
        assert np.array_equal(file["reconstruction"][:], got.mean[:, 0])
    with np.load(tmp_path / "r.npz") as arrays:
        assert np.array_equal(arrays["mean"], got.mean[:, 0])
    image = datasets.read_cfl(tmp_path / "r.cfl").reshape(4, 4, 3).movedim(-1, 0)
    assert torch.equal(image.real, got.mean[:, 0])


def test_files_refused(tmp_path: Path) -> None:
    got = Reconstruction(noise(1, 2, 1, 4, 4))
    for name in ("r.nii", "r", "r.h5.tmp"):
        with pytest.raises(ValueError, match=r"want a name ending in .h5, .npz or .cfl"):
            got.save(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        got.save(tmp_path / "absent" / "r.h5")
    for shape in ((2, 3, 4, 4), (2, 1, 4)):  # three channels are not three slices
        with pytest.raises(ValueError, match=r"want \(samples, \*batch, 1, height, width\), got"):
            Reconstruction(noise(*shape)).save(tmp_path / "r.npz")
    assert list(tmp_path.iterdir()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got.save(tmp_path / "one.h5")  # of a single sample: the spread is not known
    with h5py.File(tmp_path / "one.h5") as file:
        assert np.isnan(file["std"][:]).all()
        assert file["reconstruction"].dtype == np.float32
    assert math.isfinite(float(got.mean.sum()))
    assert recon.Reconstruction is Reconstruction


def test_a_codec_takes_the_scale_in_place_of_the_prior_of_its_latents() -> None:
    basis = torch.linalg.qr(noise(16, 8))[0]
    image, latent = Space((1, 4, 4)), Space((1, 1, 8))
    codec = Codec(lambda x: (x.flatten(-3) @ basis)[..., None, None, :],
                  lambda z: ((z + z.square() / 4).flatten(-3) @ basis.mT).unflatten(-1, (1, 4, 4)),
                  image=image, latent=latent)
    prior = Gaussian(torch.zeros(1, 1, 8), variance=1.0)
    prior.is_latent = True
    half = Masking(torch.arange(16).view(4, 4) % 2, image)
    y = half(codec.decode(prior.sample(2, torch.Generator().manual_seed(0))))
    settings: dict[str, Any] = {"samples": 2, "steps": 20, "seed": 0, "noise_std": 0.05}
    want = reconstruct(y, half, prior, "latent_dps", codec=codec, **settings)
    assert want.samples.shape == (2, 2, 1, 4, 4)
    settings["noise_std"] *= 1e3
    got = reconstruct(1e3 * y, half, prior, "latent_dps", codec=codec, scale=1e3, **settings)
    assert relative(got.samples / 1e3, want.samples) < 1e-4
    wrong = latent_dps(1e3 * y, half, prior.rescaled(1e3), codec=codec, steps=20, samples=2,
                       generator=per_draw(0, range(2), range(2)))
    assert relative(wrong / 1e3, want.samples) > 0.1
    assert "0x" not in str(got.settings)
    with pytest.raises(TypeError, match="of latents, not of images: use a sampler that takes"):
        reconstruct(y, half, prior, "dds")
    with pytest.raises(ValueError, match="pass a codec of the operator's images"):
        reconstruct(noise(1, 4, 6), Masking(torch.ones(4, 6), Space((1, 4, 6))), prior, "stsl",
                    codec=codec)


def test_draws_that_fit_nothing_are_told() -> None:
    """A scale far from the data, and a prior that blows up or gives no numbers."""
    settings: dict[str, Any] = {"noise_std": 0.02, "steps": 9, "samples": 2}

    class Wild(Normalised):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.factor * self.of.denoise(x, sigma)

    for prior in (Wild(1e3), Wild(math.nan)):
        with pytest.warns(UserWarning, match="6 of 6 draws of diffpir fit .* worse than an empty"):
            reconstruct(Y, A, prior, "diffpir", cg_iterations=1, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reconstruct(1e-12 * Y, A, NORMALISED, **settings | {"noise_std": 2e-14})
        reconstruct(Y, A, NORMALISED, **settings | {"noise_std": 3.0})
