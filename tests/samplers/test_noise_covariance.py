"""A full noise covariance in the likelihood: every sampler sees whitened measurements."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from recon import reconstruct, samplers
from recon.acquisition import Selection
from recon.noise import per_draw
from recon.operators import CartesianMRI, Operator
from recon.operators.mri import Covariance, mix_coils, whiten
from recon.priors import Gaussian
from recon.samplers.ads import AdsStep

C128 = torch.complex128
SETTINGS: dict[str, dict[str, Any]] = {
    "dds": {"steps": 4}, "ddnm": {"steps": 4}, "diffpir": {"steps": 4}, "dps": {"steps": 4},
    "pigdm": {"steps": 4}, "tmpd": {"steps": 4}, "red_diff": {"steps": 4}, "ddrm": {"steps": 4},
    "daps": {"steps": 2}, "smc": {"steps": 4}, "mcgdiff": {"steps": 4}, "twisted": {"steps": 4},
    "tv": {"iterations": 4, "weight": 0.1},
    "wavelet": {"iterations": 4, "weight": 0.1, "levels": 1},
}
pytestmark = [pytest.mark.filterwarnings("ignore:the . draws"),
              pytest.mark.filterwarnings("ignore:.*fit the measurements worse"),
              pytest.mark.filterwarnings("ignore:the residual y - A x")]


def problem() -> tuple[Tensor, CartesianMRI, Gaussian, Covariance]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, 4, dtype=C128, generator=generator)
    A = CartesianMRI((4, 4), torch.tensor([1, 1, 0, 1]), maps)
    prior = Gaussian(torch.zeros(1, 4, 4, dtype=C128), variance=0.7)
    x = torch.randn(1, 4, 4, dtype=C128, generator=generator)
    root = torch.randn(3, 3, dtype=C128, generator=generator) * torch.tensor([0.02, 0.1, 0.5])
    S = root.mH @ root + 0.002 * torch.eye(3)
    n = torch.linalg.cholesky(S) @ torch.randn(3, 16, dtype=C128, generator=generator)
    return torch.where(A.mask, A(x) + n.view(3, 4, 4), 0), A, prior, Covariance(S)


def run(name: str, y: Tensor, A: Operator, noise_std: Any) -> Tensor:
    method, prior = getattr(samplers, name), problem()[2]
    if "samples" not in inspect.signature(method).parameters:
        found: Tensor = method(y, A, noise_std=noise_std, **SETTINGS[name])
        return found
    result: Tensor = method(y, A, prior, noise_std=noise_std, samples=2,
                            generator=per_draw(3, range(2), range(1)), **SETTINGS[name])
    return result


@pytest.mark.parametrize("name", SETTINGS)
def test_result_is_that_of_whitened_measurements(name: str) -> None:
    y, A, _, covariance = problem()

    def assert_same(noise_std: Any) -> None:
        torch.testing.assert_close(run(name, y, A, noise_std), want, rtol=1e-9, atol=1e-9)

    want = run(name, *whiten(y, A, covariance))
    assert torch.equal(run(name, y, A, covariance), want)
    assert_same(covariance)
    for wrong in (covariance.noise_std, Covariance(covariance.matrix.conj())):
        with pytest.raises(AssertionError):
            assert_same(wrong)
    if name not in ("tv", "wavelet"):
        white = 0.2
        torch.testing.assert_close(run(name, y, A, Covariance(2 * white**2 * torch.eye(3))),
                                   run(name, y, A, white), rtol=1e-6, atol=1e-6)


def test_every_sampler_has_the_one_door() -> None:
    for name in samplers.__all__:
        method = getattr(samplers, name)
        if isinstance(method, samplers.Sampler) and name not in ("tv", "wavelet"):
            assert "noise_std" in inspect.signature(method).parameters
            assert list(inspect.signature(method).parameters)[1] == "operator"
    y, A, prior, covariance = problem()
    settings: dict[str, Any] = {"noise_std": covariance, "steps": 4}
    steps = list(samplers.dds.steps(y, A, prior, **settings))
    assert len(steps) == 4
    with pytest.raises(ValueError, match="the covariance is of 2 coils, the measurements are of 3"):
        samplers.dds(y, A, prior, noise_std=Covariance(torch.eye(2)))


def test_posterior_of_coloured_noise() -> None:
    """The mean of the exact posterior weighs each coil by its noise, which one number does not."""
    y, A, prior, covariance = problem()
    white, B, std = whiten(y, A, covariance)
    assert isinstance(B, CartesianMRI)
    want = prior.posterior(B, white, float(std)).mean
    matrix = A(torch.eye(16, dtype=C128).view(16, 1, 4, 4)).reshape(16, 48).mT
    seen = A.mask.expand(3, 4, 4).flatten()
    # n n^H over coils at each sample; torch's complex noise of variance 1 has 1/2 per real number
    S = torch.kron(covariance.matrix, torch.eye(16, dtype=C128))[seen][:, seen]
    M = matrix[seen]
    precision = torch.eye(16) / (2 * 0.7) + M.mH @ torch.linalg.solve(S, M)
    by_hand = torch.linalg.solve(precision, M.mH @ torch.linalg.solve(S, y.flatten()[seen]))
    torch.testing.assert_close(want.flatten(), by_hand)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            prior.posterior(A, y, covariance.noise_std).mean.flatten(), by_hand)


def test_reconstruct_takes_it_and_scales() -> None:
    y, A, prior, covariance = problem()
    found = reconstruct(y, A, prior, noise_std=covariance, samples=2, steps=4)
    white, B, std = whiten(y, A, covariance)
    want = reconstruct(white, B, prior, noise_std=std, samples=2, steps=4)
    assert torch.equal(found.samples, want.samples)
    assert found.settings["noise_covariance"] == repr(covariance)
    assert found.settings["noise_std"] == pytest.approx(covariance.noise_std)
    for c in (1e-6, 1e6):
        scaled = reconstruct(c * y, A, prior, scale=c, samples=2, steps=4,
                             noise_std=Covariance(c**2 * covariance.matrix))
        torch.testing.assert_close(scaled.samples / c, found.samples, rtol=1e-6, atol=1e-8)


def test_acquisition_sees_whitened_lines() -> None:
    y, A, prior, covariance = problem()
    full = CartesianMRI((4, 4), None, A.maps)
    white, B, std = whiten(y, full, covariance)
    columns = torch.arange(4).expand(4, 4)
    settings: dict[str, Any] = {"candidates": columns, "initial": [0], "budget": 3, "steps": 4,
                                "samples": 4}

    def scanner(of: Tensor) -> Any:
        return lambda selection: torch.where(selection.mask, of, 0)

    draws = [samplers.ads(scanner(data), operator, prior, noise_std=noise_std, **settings,
                          generator=torch.Generator().manual_seed(1))
             for data, operator, noise_std in ((y, full, covariance), (white, B, std))]
    torch.testing.assert_close(draws[0], draws[1])
    assert mix_coils(y, covariance.whitening).shape == white.shape


def test_acquisition_keeps_lines_as_they_were_acquired() -> None:
    """So that a step's measurements can be used with their covariance, or resumed."""
    y, A, prior, covariance = problem()
    full = CartesianMRI((4, 4), None, A.maps)
    asked = list[Selection]()

    def scanner(selection: Selection) -> Tensor:
        asked.append(selection)
        return torch.where(selection.mask, y, torch.nan)

    given: dict[str, Any] = {"candidates": torch.arange(4), "initial": [0], "budget": 3,
                             "steps": 6, "samples": 4, "noise_std": covariance}
    steps = list(samplers.ads.steps(scanner, full, prior, **given,
                                    generator=per_draw(1, range(4), range(1))))
    for step in steps:
        assert torch.equal(step.y, torch.where(step.mask, y, 0))

    def finished(start: AdsStep, acquire: Any) -> AdsStep:
        return samplers.ads.run(acquire, full, prior, start=start, **given,
                                generator=per_draw(1, range(4), range(1)))

    def check(lines: Tensor) -> None:
        """Draws from what a step holds are those from what was acquired."""
        first = per_draw(2, range(3), range(1))
        found, want = (samplers.pigdm(of, full.masked(steps[-1].mask), prior, samples=3, steps=5,
                                      noise_std=covariance, generator=sources)
                       for of, sources in ((lines, first),
                                           (torch.where(steps[-1].mask, y, 0),
                                            per_draw(2, range(3), range(1)))))
        torch.testing.assert_close(found, want)

    check(steps[-1].y)
    with pytest.raises(AssertionError):  # whitened twice
        check(whiten(steps[-1].y, full, covariance)[0])
    count = len(asked)
    resumed = finished(steps[2], scanner)
    assert torch.equal(resumed.order, steps[-1].order)
    torch.testing.assert_close(resumed.x0, steps[-1].x0)
    assert torch.equal(resumed.y, steps[-1].y)
    assert sum(s.candidates.shape[-1] for s in asked[count:]) == 3 - steps[2].order.shape[-1]


def test_coils_measured_apart_are_not_whitened() -> None:
    y, A, prior, covariance = problem()
    full = CartesianMRI((4, 4), None, A.maps)
    by_coil = torch.arange(3).view(3, 1, 1)
    with pytest.raises(ValueError, match="one label for all coils where noise_std is a Covariance"):
        samplers.ads(lambda _: y, full, prior, candidates=by_coil, budget=2, noise_std=covariance)
    samplers.ads(lambda _: y, full, prior, candidates=by_coil, budget=2, steps=4, samples=2)
