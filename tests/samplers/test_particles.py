"""Effective number, resampling and ancestry, against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon.integrators import schedules
from recon.noise import Noise
from recon.operators import Identity, Space
from recon.priors import Gaussian
from recon.samplers.levels import Run
from recon.samplers.particles import (
    Particles,
    effective,
    moved,
    newborn,
    past_the_noise,
    systematic,
    taken,
)

F64 = torch.float64
Resample = Callable[[Tensor, Tensor], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(drawn: Tensor, n: int) -> Tensor:
    return torch.stack([torch.bincount(d, minlength=n) for d in drawn.mT])


def check_unbiased(resample: Resample) -> None:
    """Fails unless counts are within one of ``n w``, and are ``n w`` on average over ``u``."""
    n, repeats = 12, 20000
    w = torch.rand(n, generator=seeded(), dtype=F64).square()
    w = w / w.sum()
    u = (torch.arange(repeats, dtype=F64) + 0.5) / repeats
    found = counts(resample((w.log() - 1e6).unsqueeze(-1).expand(n, repeats), u), n)
    assert bool((found.sum(1) == n).all())
    assert float((found.double() - n * w).abs().max()) < 1
    assert float((found.double().mean(0) - n * w).abs().max()) < 2 / repeats * n


def multinomial(log_weights: Tensor, u: Tensor) -> Tensor:
    n = len(log_weights)
    return torch.multinomial(log_weights.softmax(0).mT, n, replacement=True,
                             generator=seeded()).mT.expand(n, len(u))


def test_systematic_resampling() -> None:
    check_unbiased(systematic)
    for wrong in (multinomial, lambda lw, u: systematic(2 * lw, u),
                  lambda lw, u: systematic(lw, 0 * u)):
        with pytest.raises(AssertionError):
            check_unbiased(wrong)
    equal = torch.zeros(7, 3, dtype=F64)
    assert torch.equal(systematic(equal, torch.rand(3, dtype=F64)).mT, torch.arange(7).expand(3, 7))
    one = torch.full((5, 1), -torch.inf, dtype=F64)
    one[3] = -2e6
    assert systematic(one, torch.tensor([0.999], dtype=F64)).flatten().tolist() == [3] * 5


def test_effective_share() -> None:
    assert float(effective(torch.full((8,), -1e6, dtype=F64))) == 1.0
    lone = torch.full((8,), -torch.inf, dtype=F64)
    lone[2] = 0
    assert float(effective(lone)) == pytest.approx(1 / 8)
    w = torch.tensor([0.5, 0.25, 0.25], dtype=F64)
    assert float(effective(w.log())) == pytest.approx(1 / (3 * 0.375))


def test_particles_follow_their_ancestors() -> None:
    x = torch.arange(24.0).view(4, 2, 1, 3, 1)
    drawn = torch.tensor([[0, 3], [0, 3], [2, 1], [2, 0]])
    got = taken(x, drawn)
    for j in range(4):
        for item in range(2):
            assert torch.equal(got[j, item], x[drawn[j, item], item])


def run_of(n: int, levels: int) -> Run:
    sigmas = schedules.geometric(levels, 0.1, 10.0)
    x = torch.randn(n, 1, 1, 2, generator=seeded(), dtype=F64)
    return Run(sigmas, sigmas, Noise(seeded(1), 1, 3), x, 0)


def step(old: Particles, run: Run, log_weight: Tensor, below: float) -> Particles:
    return moved(old, old.x, old.x, log_weight, run, below=below)


def test_when_it_resamples() -> None:
    """Strictly below the threshold; 0 never, 1 always unless the weights are equal."""
    run, n = run_of(8, 4), 8
    old = newborn(run)
    half = torch.tensor([0.0] * 4 + [-torch.inf] * 4, dtype=F64)  # effective share 1/2
    for below, resampled in ((0.0, 0), (0.5, 0), (0.5 + 1e-9, 1), (1.0, 1)):
        new = step(old, run, half, below)
        assert int(new.resamplings) == resampled
        assert float(new.ess) == pytest.approx(0.5)
        assert bool((new.log_weights == 0).all()) == bool(resampled)
        assert int(new.distinct_ancestors) == (4 if resampled else n)
    assert int(step(old, run, torch.zeros(n, dtype=F64), 1.0).resamplings) == 0


def test_evidence_is_the_product_of_mean_weights() -> None:
    run, n = run_of(8, 5), 8
    now, total = newborn(run), 0.0
    for i in range(3):
        log_weight = torch.randn(n, generator=seeded(i), dtype=F64)
        total += float((now.weights * log_weight.exp()).sum().log())
        now = step(now, run, log_weight, below=0.7)
    assert float(now.log_evidence) == pytest.approx(total, abs=1e-12)
    assert int(now.resamplings) > 0


def test_the_last_step() -> None:
    """``x`` with its weights, ``x0`` drawn from them; nobody left is an error, one a warning."""
    run, n = run_of(8, 1), 8
    weights = torch.linspace(1, 2, n, dtype=F64).log()
    last = step(newborn(run), run, weights, below=1.0)
    assert torch.equal(last.x, run.x)
    assert torch.allclose(last.weights, weights.exp() / weights.exp().sum())
    assert {tuple(d.flatten().tolist()) for d in last.x0} <= {
        tuple(d.flatten().tolist()) for d in run.x}
    with pytest.raises(ValueError, match="every particle has weight zero: take more samples"):
        step(newborn(run), run, torch.full((n,), -torch.inf, dtype=F64), below=0.5)
    with pytest.raises(ValueError, match="every particle has weight zero"):
        step(newborn(run), run, torch.full((n,), math.nan, dtype=F64), below=0.5)
    lone = torch.full((n,), -100.0, dtype=F64)
    lone[0] = 0
    with pytest.warns(UserWarning, match="the 8 draws hang on fewer than two particles"):
        step(newborn(run), run, lone, below=0.5)
    old = newborn(run)
    kin = old._replace(ancestors=0 * old.ancestors)
    with pytest.warns(UserWarning, match="hang on fewer than two particles, .* or by descent"):
        step(kin, run, weights, below=0.5)


@pytest.mark.parametrize(("std", "sigma_min", "last"), [
    (0.001, 0.0, 3e-4), (1.0, 0.0, 0.01), (0.001, 0.002, 0.002), (1.0, 0.002, 0.01),
    (0.001, 0.03, 0.03), (1.0, 0.03, 0.03)])
def test_levels_end_past_the_noise_but_where_the_prior_is_trained(std: float, sigma_min: float,
                                                                  last: float) -> None:
    prior = Gaussian(torch.zeros(1, 2, 3, dtype=F64), variance=1.0)
    prior.sigma_min, prior.sigma_max = sigma_min, 50.0
    y = torch.zeros(1, 2, 3, dtype=F64)
    levels = past_the_noise(4, y, Identity(Space((1, 2, 3))), prior, torch.tensor(std))
    assert levels[[0, -2, -1]].tolist() == pytest.approx([50.0, last, 0.0], rel=1e-6)
