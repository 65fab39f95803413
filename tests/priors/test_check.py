"""The self-test of priors: the right reading of an exact network passes, each mistake is named."""

import functools
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recon import priors
from recon.priors import (
    EpsilonPrior,
    Flow,
    Gaussian,
    Interpolant,
    Prior,
    PriorReport,
    VarianceExploding,
    VariancePreserving,
    check,
    from_network,
)

N = 24
LINEAR = VariancePreserving.linear()


@functools.cache
def family(channels: int = 1) -> Gaussian:
    """Smooth images in about [0, 1], whose mean is bright inside; each channel has its own."""
    f = torch.fft.fftfreq(N, dtype=torch.float64)
    spectrum = 1.2 / (1 + 150 * (f[:, None].square() + f.square())) ** 2
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, N, dtype=torch.float64)] * 2, indexing="ij")
    means = [0.8 * torch.exp(-2 * (u.square() + v.square())), 0.3 + 0.2 * u][:channels]
    spectra = [spectrum, 0.1 * spectrum.sqrt()][:channels]
    return Gaussian(torch.stack(means).float(), spectrum=torch.stack(spectra).float())


def images(channels: int = 1) -> Tensor:
    return family(channels).sample(4, torch.Generator().manual_seed(3))


class Exact(nn.Module):
    """A network that knows the family, in units of ``scale x + shift``, by its schedule."""

    def __init__(self, schedule: Any, predicts: str, scale: float = 2.0, shift: float = -1.0,
                 channels: int = 1) -> None:
        super().__init__()
        self.schedule, self.predicts = schedule, predicts
        self.prior = family(channels).rescaled(scale, shift)
        sigmas = torch.logspace(-3, 3, 4001, dtype=torch.float64)
        times = schedule.time(sigmas)
        self.sigmas, self.times = (t if times[-1] > times[0] else t.flip(0)
                                   for t in (sigmas, times))

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        i = torch.searchsorted(self.times, time.double()).clamp(1, len(self.times) - 1)
        low, high = self.times[i - 1], self.times[i]
        share = ((time - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        sigma = (self.sigmas[i - 1].log() * (1 - share) + self.sigmas[i].log() * share).exp()
        sigma = sigma.to(z.dtype)
        scale, s = (a.view(-1, 1, 1, 1) for a in (self.schedule.scale(sigma), sigma))
        x = z / scale
        x0 = self.prior(x, sigma)
        eps = (x - x0) / s
        made = {"eps": eps, "-eps": -eps, "score": -eps / (scale * s), "x0": x0,
                "v": scale * eps - scale * s * x0, "flow": eps - x0}[self.predicts]
        return torch.cat([made, torch.zeros_like(made)], 1)  # a learned variance, left out


class ToldSigma(VariancePreserving):
    """The scale of the linear schedule, with the noise level where the index belongs."""

    def time(self, sigma: Tensor) -> Tensor:
        return sigma


def told_sigma() -> VariancePreserving:
    return ToldSigma((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))


def made(schedule: Any, predicts: Any, *, network: str = "", value_range: Any = (-1, 1),
         told: Any = None, scale: float = 2.0, shift: float = -1.0, channels: int = 1) -> Prior:
    return from_network(Exact(schedule, network or predicts, scale, shift, channels), channels,
                        predicts=predicts, schedule=told or schedule, value_range=value_range)


RIGHT: dict[str, Callable[[], Prior]] = {
    "eps": lambda: made(LINEAR, "eps"),
    "score": lambda: made(VarianceExploding(0.01, 300.0), "score"),
    "x0": lambda: made(LINEAR, "x0"),
    "v": lambda: made(LINEAR, "v"),
    "flow": lambda: made(Flow(), "flow"),
    "values from 0 to 1": lambda: made(LINEAR, "eps", value_range=(0, 1), scale=1.0, shift=0.0),
    "two channels": lambda: made(LINEAR, "eps", channels=2),
}
WRONG: dict[str, tuple[Callable[[], Prior], set[str]]] = {
    "[-1, 1] taken for [0, 1]": (lambda: made(LINEAR, "eps", value_range=(0, 1)), {"range"}),
    "[0, 1] taken for [-1, 1]": (lambda: made(LINEAR, "eps", scale=1.0, shift=0.0), {"range"}),
    "the noise with the sign of a score": (lambda: made(LINEAR, "eps", network="-eps"), {"sign"}),
    "noise taken for a score": (lambda: made(LINEAR, "score", network="eps"), {"prediction"}),
    "a score taken for noise": (lambda: made(VarianceExploding(0.01, 300.0), "eps",
                                             network="score"), {"prediction"}),
    "the image taken for noise": (lambda: made(LINEAR, "eps", network="x0"), {"prediction"}),
    "sigma told to a network of indices": (lambda: made(LINEAR, "eps", told=told_sigma()),
                                           {"level"}),
    "variance exploding for preserving": (
        lambda: made(LINEAR, "eps", told=VarianceExploding(0.01, 100.0)), {"level"}),
    "an index told to a network of sigmas": (
        lambda: made(VarianceExploding(0.01, 150.0), "eps", told=LINEAR), {"level"}),
    "a flow counted backwards": (lambda: made(Flow(time=lambda t: 1 - t), "flow", told=Flow()),
                                 {"level"}),
}


def of(prior: Prior, x: Tensor) -> PriorReport:
    return check(prior, x)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_prior_passes(name: str) -> None:
    report = of(RIGHT[name](), images(2 if name == "two channels" else 1))
    assert report.passed, str(report)
    errors = [row.error for row in report.levels]
    assert all(a < b for a, b in itertools.pairwise(errors))  # noisier is harder
    assert all(row.error < row.sigma for row in report.levels)  # than leaving it as it is
    assert all(0.8 < row.found < 1.25 for row in report.levels)
    assert "nothing wrong found" in str(report)
    report.raise_if_failed()


@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_is_named(name: str) -> None:
    build, faults = WRONG[name]
    report = of(build(), images())
    assert not report.passed
    assert set(report.faults) - {"noise"} == faults, str(report)
    assert "dB better" in str(report)
    with pytest.raises(ValueError, match="something is wrong"):
        report.raise_if_failed()


@pytest.mark.parametrize("scale", [255.0, 1e-5])
def test_a_missing_rescale(scale: float) -> None:
    x = scale * images()
    report = of(made(LINEAR, "eps"), x)
    assert set(report.faults) - {"noise"} == {"scale"}, str(report)
    quantile = float(x.abs().flatten().quantile(0.995))
    assert f"take prior.rescaled({quantile:.3g})" in str(report)
    assert of(made(LINEAR, "eps").rescaled(scale), x).passed


def test_swapped_channels() -> None:
    x = images(2)
    prior = made(LINEAR, "eps", channels=2)
    report = of(prior, x.flip(-3))
    assert set(report.faults) - {"noise"} == {"channels"}, str(report)
    as_complex = prior.rescaled(2.0, -1.0).as_complex("channels")  # zero stays zero
    z = 2 * x - 1
    assert of(as_complex, torch.complex(z[:, :1], z[:, 1:])).passed
    report = of(as_complex, torch.complex(z[:, 1:], z[:, :1]))
    assert set(report.faults) - {"noise"} == {"channels"}, str(report)
    assert "real and imaginary parts are swapped" in str(report)


def test_a_normalised_prior_is_brought_to_the_images() -> None:
    prior = made(LINEAR, "eps", value_range="normalised", scale=1.0, shift=0.0)
    assert prior.normalised
    assert of(prior, 3e-6 * images()).passed


def test_what_can_be_said_without_images() -> None:
    right = check(made(LINEAR, "eps"), size=(N, N))
    assert right.passed, str(right)
    assert "range: cannot be told without images; its own draws go from" in str(right)
    assert check(made(LINEAR, "eps", value_range=(0, 1)), size=(N, N)).passed  # another unit
    for name in ("the noise with the sign of a score", "sigma told to a network of indices",
                 "noise taken for a score"):
        assert not check(WRONG[name][0](), size=(N, N)).passed, name


def test_a_prior_of_other_images_is_not_blamed_on_its_units() -> None:
    """Noise without structure is nothing the family knows, and no other reading mends that."""
    x = 0.5 + 0.5 * torch.randn(2, 1, N, N, generator=torch.Generator().manual_seed(0))
    report = of(made(LINEAR, "eps"), x)
    assert report.faults == ("noise",), str(report)
    assert "does not know such images, or has a fault of another kind" in str(report)


def test_a_posterior_mean_finds_the_noise_once() -> None:
    """The identity behind the table: E <sigma n, x - D> = E |x - D|^2, for D the mean alone."""
    prior, x0 = family(), images()
    generator = torch.Generator().manual_seed(5)
    for sigma in (0.05, 0.4, 3.0):
        products, squares, shrunk = 0.0, 0.0, 0.0
        for _ in range(50):
            n = sigma * torch.randn(x0.shape, generator=generator)
            taken = x0 + n - prior(x0 + n, sigma)
            products += float((n * taken).sum())
            squares += float(taken.square().sum())
            shrunk += float((0.5 * taken).square().sum()) - float((n * 0.5 * taken).sum())
        assert products / squares == pytest.approx(1, abs=0.05)
        assert abs(shrunk) > 0.2 * squares  # of a denoiser that takes half


def test_images_of_almost_nothing_but_zeros() -> None:
    images = torch.zeros(1, 1, 16, 16)
    images[..., 3, 3] = 1.0
    prior = Gaussian(torch.zeros(1, 16, 16), variance=0.04)
    prior.normalised = True
    with pytest.raises(ValueError, match=r"whose 99\.5 % quantile is one, and that of these is 0"):
        check(prior, images)
    assert check(prior, images + 0.1 * torch.arange(256.0).view(16, 16)).levels


@pytest.mark.parametrize("seed", range(8))
def test_an_exact_prior_of_few_numbers(seed: int) -> None:
    """Chance alone takes the noise found far from one in 1024 numbers, and no fault is one."""
    prior = Gaussian(torch.zeros(1, 16, 16), variance=0.04)
    x = prior.sample(4, torch.Generator().manual_seed(seed))  # of the seed that check is given
    report = check(prior, x, seed=seed)
    assert report.passed, str(report)
    row = report.levels[0]
    assert row.doubt == pytest.approx(20 / 32, rel=0.1)  # spread / sigma / sqrt(1024)
    assert not row._replace(found=1 + 4 * row.doubt).passed
    assert not row._replace(found=math.inf, doubt=math.inf).passed
    # of what takes away nothing but rounding, whose doubt is as wide as what it finds
    assert not row._replace(found=-99332.0, doubt=4e4).passed


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"check: want a Prior, got Linear: wrap a network with"):
        check(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"want at least one image, got none"):
        check(family(), torch.zeros(0, 1, N, N))
    with pytest.raises(ValueError, match="images that are not constant"):
        check(family(), torch.ones(1, 1, N, N))
    bad = images()
    bad[1, 0, 3, 3] = math.nan
    assert check(family(), bad).faults == ("finite",)
    with pytest.raises(ValueError, match="this prior wants"):
        check(family(), torch.zeros(1, 3, N, N))


# ---- what the wrappers make of an exact network is the exact denoiser (schedule facts)

@pytest.mark.parametrize("case", ["eps", "score", "v", "x0", "flow", "interpolant"])
def test_wrapped_exact_networks_are_the_exact_denoiser(case: str) -> None:
    turn = torch.pi / 2
    trigonometric = Interpolant(image=lambda t: (turn * t).sin(), noise=lambda t: (turn * t).cos(),
                                ends=(1e-3, 1 - 1e-3))
    x = images() + 0.3
    if case == "interpolant":
        prior = from_network(_Velocity(trigonometric), 1, predicts="flow", schedule=trigonometric,
                             value_range=(-1, 1))
    else:
        prior = RIGHT[case]()
    for sigma in (0.02, 0.3, 5.0):
        want = family()(x, sigma)
        assert float((prior(x, sigma) - want).abs().max()) < 2e-3 * float(want.abs().max())
    # a schedule of twice the betas is another denoiser
    if case == "eps":
        other = made(LINEAR, "eps", told=VariancePreserving.linear(1000, 2e-4, 0.04))
        assert float((other(x, 0.3) - family()(x, 0.3)).abs().max()) > 0.01


class _Velocity(nn.Module):
    """The velocity of an interpolant of the family in [-1, 1], by finite differences."""

    def __init__(self, plan: Interpolant) -> None:
        super().__init__()
        self.plan, self.prior = plan, family().rescaled(2.0, -1.0)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        t, step = t.double(), 1e-5
        image, noise = self.plan.image(t), self.plan.noise(t)
        turn = (self.plan.image(t + step) - self.plan.image(t - step)) / (2 * step)
        rise = (self.plan.noise(t + step) - self.plan.noise(t - step)) / (2 * step)
        image, noise, turn, rise = (a.view(-1, 1, 1, 1) for a in (image, noise, turn, rise))
        x0 = self.prior((z / image).float(), (noise / image).flatten().float())
        n = (z - image * x0) / noise
        return (turn * x0 + rise * n).to(z.dtype)


def test_interpolants_that_go_back_and_forth_are_refused() -> None:
    with pytest.raises(ValueError, match="rising or falling all the way over t in"):
        Interpolant(image=lambda t: 1 + 0 * t, noise=lambda t: 1 + (6 * t).sin(), ends=(0.1, 0.9))
    linear = Interpolant(image=lambda t: 1 - t, noise=lambda t: t, ends=(1e-3, 0.999))
    sigma = torch.tensor([0.01, 1.0, 300.0], dtype=torch.float64)
    assert torch.allclose(linear.time(sigma), Flow().time(sigma), rtol=1e-12)
    assert torch.allclose(linear.scale(sigma), Flow().scale(sigma), rtol=1e-12)
    with pytest.raises(TypeError, match="InterpolantPrior wants a Interpolant schedule"):
        priors.InterpolantPrior(nn.Identity(), Flow(), 1)


def test_index_and_scale_of_the_linear_schedule() -> None:
    """abar of the last index is 4.0e-5 and of the first 0.9999 (DDS's release)."""
    seen: list[Tensor] = []

    def network(z: Tensor, time: Tensor) -> Tensor:
        seen.extend([z, time])
        return torch.zeros_like(z)

    betas = [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]
    abar = 1.0
    for i in range(981):
        abar *= 1 - betas[i]
    EpsilonPrior(network, LINEAR, 1)(torch.ones(1, 1, 4, 4), math.sqrt((1 - abar) / abar))  # type: ignore[arg-type]
    assert float(seen[1]) == pytest.approx(980, abs=1e-2)
    assert float(seen[0].mean()) == pytest.approx(math.sqrt(abar), rel=1e-4)
    assert abar == pytest.approx(5.9e-5, rel=0.02)


def test_the_adapters_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "priors.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python adapter\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    assert len(blocks[0].strip().splitlines()) <= 12
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "priors.md", "exec"), space)
    prior = space["prior"]
    assert (prior.channels, prior.is_complex) == (1, True)
    # by hand: values from -2 to 2 are twice the images
    x, sigma = torch.randn(1, 1, 8, 8, dtype=torch.complex64), 0.3
    abar = 1 / (1 + (2 * sigma) ** 2)
    want = (2 * x - 2 * sigma * 0.1 * math.sqrt(abar) * 2 * x) / 2
    assert torch.allclose(prior(x, sigma), want, atol=1e-6)
    assert "noise found (1 is right)" in capsys.readouterr().out
