"""Scores of samples against scoringrules, closed forms and binomial error."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recon import metrics
from recon.operators import CartesianMRI, Space, from_functions, from_nonlinear

Made = Callable[..., Any]


def ensemble() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    y = rng.standard_normal(5)
    return torch.from_numpy(rng.standard_normal((5, 8)).T.copy()), torch.from_numpy(y)


def normals(m: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    draws = torch.randn(m + 1, n, generator=rng, dtype=torch.float64)
    return draws[1:], draws[0]


def check_crps(crps: Made) -> None:
    samples, truth = ensemble()
    assert crps(samples, truth).mean == pytest.approx(0.38682708919317454, rel=1e-12)
    assert crps(samples, truth, True).mean == pytest.approx(0.3245066412136751, rel=1e-12)
    rules = pytest.importorskip("scoringrules", reason="needs scoringrules")
    samples, truth = normals(6, 30)
    samples = samples.view(6, 5, 6).clone()
    samples[1, 0] = samples[0, 0]  # ties
    for fair in (False, True):
        found = crps(samples, truth.view(5, 6), fair)
        wanted = rules.crps_ensemble(truth.view(5, 6).numpy(), samples.movedim(0, -1).numpy(),
                                     estimator="fair" if fair else "nrg", backend="numpy")
        torch.testing.assert_close(found.map, torch.from_numpy(wanted), rtol=1e-12, atol=1e-13)
        assert found.mean == pytest.approx(wanted.mean(), rel=1e-12)
        assert found.pixels == 30


def _crps_with(fair_divisor: Callable[[int], float], divisor: Callable[[int], float]) -> Made:
    def wrong(samples: Tensor, truth: Tensor, fair: bool = False) -> metrics.CRPS:
        m = len(samples)
        spread = (samples[:, None] - samples).abs().sum((0, 1))
        score = (samples - truth).abs().mean(0) - spread / (fair_divisor if fair else divisor)(m)
        return metrics.CRPS(float(score.mean()), score.numel(), score)

    return wrong


def test_crps() -> None:
    check_crps(metrics.crps)
    check_crps(_crps_with(lambda m: 2 * m * (m - 1), lambda m: 2 * m * m))
    alone = metrics.crps(torch.tensor([[3.0, -1.0]]), torch.tensor([1.0, -4.0]))
    assert alone.map.tolist() == [2, 3]
    with pytest.raises(ValueError, match="fair score wants at least 2 samples"):
        metrics.crps(torch.ones(1, 4), torch.ones(4), fair=True)


@pytest.mark.parametrize("divisors", [
    (lambda m: 2 * m * m, lambda m: 2 * m * (m - 1)),  # the two mixed up
    (lambda m: m * (m - 1), lambda m: m * m), (lambda m: 2 * m, lambda m: 2 * m * m),
    (lambda m: 2 * (m - 1) ** 2, lambda m: 2 * m * m)])
def test_wrong_crps_is_noticed(divisors: Any) -> None:
    with pytest.raises(AssertionError):
        check_crps(_crps_with(*divisors))


def test_the_fair_score_does_not_depend_on_the_number_of_samples() -> None:
    wanted = 1 / math.sqrt(math.pi)  # of N(0, 1) and a truth from it
    fair, plain = (metrics.crps(*normals(3, 100_000), fair=f) for f in (True, False))
    error = float(fair.map.std()) / math.sqrt(fair.pixels)
    assert abs(fair.mean - wanted) < 4 * error
    # the plain score of 3 samples exceeds it by E|x - x'| / (2 M)
    assert abs(plain.mean - wanted * 4 / 3) < 4 * error


def check_gaussian(gaussian_crps: Made) -> None:
    from scipy.integrate import quad
    from scipy.stats import norm

    one = torch.ones(1, dtype=torch.float64)
    assert gaussian_crps(0 * one, one, 0.3 * one).mean == pytest.approx(
        0.2693329006866634, rel=1e-12)
    for mean, std, y in ((1.5, 0.2, 1.1), (-3.0, 4.0, 5.0)):
        below, above = (quad(f, *ends, epsabs=1e-12)[0] for f, ends in (
            (lambda t, m=mean, s=std: norm.cdf(t, m, s) ** 2, (mean - 12 * std, y)),
            (lambda t, m=mean, s=std: norm.sf(t, m, s) ** 2, (y, max(y, mean) + 12 * std))))
        found = gaussian_crps(mean * one, std * one, y * one)
        assert found.mean == pytest.approx(below + above, rel=1e-8)
    exact = gaussian_crps(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([1.5, 2.0]))
    assert exact.map.tolist() == [0.5, 0]


def test_gaussian_crps() -> None:
    check_gaussian(metrics.gaussian_crps)

    def of_variances(mean: Tensor, std: Tensor, truth: Tensor) -> metrics.CRPS:
        return metrics.gaussian_crps(mean, std.square(), truth)

    def absolute(mean: Tensor, std: Tensor, truth: Tensor) -> metrics.CRPS:
        return metrics.gaussian_crps(mean, 0 * std, truth)

    for wrong in (of_variances, absolute):
        with pytest.raises(AssertionError):
            check_gaussian(wrong)
    one = torch.ones(2)
    with pytest.raises(ValueError, match="std >= 0"):
        metrics.gaussian_crps(one, -one, one)
    with pytest.raises(TypeError, match="wants real tensors"):
        metrics.gaussian_crps(one, one, one + 0j)
    with pytest.raises(ValueError, match=r"one shape, got mean \(2,\), std \(1,\)"):
        metrics.gaussian_crps(one, one[:1], one)


def check_coverage(interval_coverage: Made) -> None:
    """What independent normals cover, within four standard errors of a binomial share."""
    n = 20_000
    for m, levels in ((9, (0.2, 0.5, 0.8)), (19, (0.5, 0.8, 0.9)), (4, (0.6,))):
        found = interval_coverage(*normals(m, n, seed=m), levels)
        assert bool((found.nominal >= found.levels - 1e-12).all())
        assert bool((found.nominal - found.levels < 2 / (m + 1)).all())
        error = (found.nominal * (1 - found.nominal) / n).sqrt()
        assert bool(((found.empirical - found.nominal).abs() < 4 * error).all())
        assert (found.pixels, found.constant) == (n, 0)


def _coverage_with(between: Callable[[int, float], tuple[float, float]]) -> Made:
    """Intervals between quantiles of the samples, taken at their nominal level as it stands."""

    def wrong(samples: Tensor, truth: Tensor, levels: tuple[float, ...]) -> metrics.Coverage:
        wanted = torch.tensor(levels, dtype=torch.float64)
        inside = []
        for level in levels:
            ends = between(len(samples), level)
            low, high = (samples.quantile(min(max(q, 0), 1), 0) for q in ends)
            inside.append(float(((low <= truth) & (truth <= high)).double().mean()))
        return metrics.Coverage(wanted, wanted, torch.tensor(inside), wanted, wanted, len(truth), 0)

    return wrong


def test_coverage_of_independent_normals() -> None:
    check_coverage(metrics.interval_coverage)
    # Weibull's plotting positions, k / (M + 1), are the correction itself
    check_coverage(_coverage_with(lambda m, a: (
        ((m + 1) * (1 - a) / 2 - 1) / (m - 1), ((m + 1) * (1 + a) / 2 - 1) / (m - 1))))


@pytest.mark.parametrize("between", [
    lambda _, a: ((1 - a) / 2, (1 + a) / 2), lambda _, a: (0, a),
    lambda m, a: ((1 - a) * m / (2 * (m - 1)), 1 - (1 - a) * m / (2 * (m - 1)))])
def test_coverage_without_the_correction_is_noticed(between: Any) -> None:
    with pytest.raises(AssertionError):
        check_coverage(_coverage_with(between))


def test_intervals_by_hand() -> None:
    samples = torch.tensor([3.0, 1.0, 2.0, 4.0])[:, None].expand(4, 3)
    truth = torch.tensor([1.0, 4.5, 2.2])
    found = metrics.interval_coverage(samples, truth, (0.6, 0.2, 0.1))
    # [1, 4] covers 3 / 5; [2, 3] covers 1 / 5
    assert found.nominal.tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert found.empirical.tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert found.width.tolist() == [3, 1, 1]
    narrow = 1 + (1 + 1.5) * 2 / 0.8 / 3
    assert found.interval_score.tolist() == pytest.approx([3 + 0.5 * 2 / 0.4 / 3, narrow, narrow])
    gaps = (abs(2 / 3 - 0.6), 1 / 3 - 0.2, 1 / 3 - 0.2)
    assert metrics.reliability(found) == pytest.approx(sum(gaps) / 3)
    rules = pytest.importorskip("scoringrules", reason="needs scoringrules")
    wanted = rules.interval_score(truth.numpy(), 1.0, 4.0, 0.4).mean()
    assert float(found.interval_score[0]) == pytest.approx(wanted)


def test_levels_that_few_samples_do_not_reach() -> None:
    samples, truth = normals(18, 10)
    with pytest.raises(ValueError, match=r"18 samples reach .* 0.8947 at most, 0.9 wants 19"):
        metrics.interval_coverage(samples, truth, (0.9,))
    assert metrics.interval_coverage(*normals(19, 10), (0.9,)).nominal[0] == pytest.approx(0.9)
    with pytest.raises(ValueError, match=r"1 samples reach .* 0\.2 wants 2: draw more"):
        metrics.interval_coverage(samples[:1], truth, (0.2,))
    for bad in (0.0, 1.0, 90):
        with pytest.raises(ValueError, match="levels want numbers within 0 and 1"):
            metrics.interval_coverage(samples, truth, (bad,))
    with pytest.raises(ValueError, match="at least one level"):
        metrics.interval_coverage(samples, truth, ())


def check_ranks(rank_histogram: Made) -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    samples = torch.tensor([2.0, 0.0, 1.0])[:, None].expand(3, 4)
    by_hand = rank_histogram(samples, torch.tensor([-1.0, 0.5, 0.6, 7.0]), generator())
    assert by_hand.counts.tolist() == [1, 2, 0, 1]
    assert math.isnan(by_hand.p_value)
    assert by_hand.statistic == pytest.approx(2)
    flat = rank_histogram(*normals(9, 20_000), generator())
    assert (flat.pixels, int(flat.counts.sum()), len(flat.counts)) == (20_000, 20_000, 10)
    assert flat.p_value > 1e-3
    narrow, truth = normals(9, 20_000)
    bowl = rank_histogram(0.8 * narrow, truth, generator())
    assert bowl.p_value < 1e-9
    assert bowl.counts[0] > bowl.counts[4] < bowl.counts[9]
    tied = rank_histogram(torch.zeros(4, 5000), torch.zeros(5000), generator())
    assert tied.p_value > 1e-3
    # ties with some of the samples: rank 1 or 2 of 0..3
    some = rank_histogram(torch.tensor([0.0, 1.0, 2.0])[:, None].expand(3, 4000),
                          torch.ones(4000), generator())
    assert some.counts[0] == some.counts[3] == 0
    assert abs(int(some.counts[1]) - 2000) < 4 * math.sqrt(1000)


def _ranks_with(fault: str) -> Made:
    def wrong(samples: Tensor, truth: Tensor, generator: torch.Generator) -> metrics.RankHistogram:
        from scipy.stats import chisquare

        ties = (samples == truth).sum(0)
        u = torch.rand(len(truth), generator=generator)
        extra = {"lowest": 0 * ties, "highest": ties, "middle": ties // 2,
                 "beyond": (u * (ties + 2)).long(), "none": (u * (ties + 1)).long()}[fault]
        rank = ((samples < truth).sum(0) + extra).clamp(max=len(samples))
        counts = torch.bincount(rank, minlength=len(samples) + 1)
        statistic, p = chisquare(counts.numpy())
        few = len(truth) < 5 * len(counts)
        return metrics.RankHistogram(counts, statistic, math.nan if few else p, len(truth))

    return wrong


def test_rank_histogram() -> None:
    check_ranks(metrics.rank_histogram)
    check_ranks(_ranks_with("none"))
    for fault in ("lowest", "highest", "middle", "beyond"):
        with pytest.raises(AssertionError):
            check_ranks(_ranks_with(fault))


def check_sparsification(sparsification: Made) -> None:
    error = torch.tensor([4.0, -3.0, 2.0, 1.0])
    worst = sparsification(error, torch.tensor([1.0, 2.0, 3.0, 4.0]), points=4)
    assert worst.removed.tolist() == [0, 0.25, 0.5, 0.75]
    assert worst.curve.tolist() == [2.5, 3, 3.5, 4]
    assert worst.oracle.tolist() == [2.5, 2, 1.5, 1]
    assert worst.ause == pytest.approx(1.5)
    assert worst.correlation == pytest.approx(-1)
    best = sparsification(error, error.abs() * 7, points=2)
    assert (best.ause, best.correlation) == (pytest.approx(0), pytest.approx(1))
    assert best.curve.tolist() == [2.5, 1.5]
    # no order at all: each removal leaves the mean, whatever the pixels' places
    for order in (error, error.flip(0)):
        level = sparsification(order, torch.ones(4), points=4)
        assert level.curve.tolist() == [2.5] * 4
        assert level.ause == pytest.approx(0.75)
    some = sparsification(error, torch.tensor([1.0, 5.0, 5.0, 1.0]), points=4)
    assert some.curve.tolist() == pytest.approx([2.5, 2.5, 2.5, 2.5])


def _sparsification_with(fault: str) -> Made:
    def wrong(error: Tensor, std: Tensor, points: int) -> metrics.Sparsification:
        e = error if fault == "signed" else error.abs()
        e = e.square() if fault == "squared" else e
        order = std.argsort(descending=fault == "least first", stable=True)
        n = len(e)
        left = torch.arange(1, n + 1)
        curve, oracle = e[order].cumsum(0) / left, e.sort().values.cumsum(0) / left
        at = n - 1 - torch.arange(points) * n // points
        gap = (curve - oracle)[at]
        correlation = float(torch.corrcoef(torch.stack([e, std]))[0, 1])
        return metrics.Sparsification(torch.arange(points) / points, curve[at], oracle[at],
                                      float(gap.mean()), correlation, n)

    return wrong


def test_sparsification() -> None:
    check_sparsification(metrics.sparsification)
    assert math.isnan(metrics.sparsification(torch.rand(9), torch.ones(9)).correlation)
    zero = metrics.sparsification(torch.zeros(9), torch.zeros(9))
    assert (zero.ause, float(zero.curve.sum())) == (0, 0)
    for fault in ("signed", "squared", "least first", "ties by place"):
        with pytest.raises(AssertionError):
            check_sparsification(_sparsification_with(fault))
    big, std = (torch.rand(40_000, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    found = metrics.sparsification(big, std)
    assert found.ause == pytest.approx(0.25, abs=0.01)  # int 1/2 - (1 - t) / 2, t to 1
    assert found.correlation == pytest.approx(np.corrcoef(big, std)[0, 1], rel=1e-4)
    with pytest.raises(ValueError, match="std >= 0"):
        metrics.sparsification(big, -std)
    with pytest.raises(ValueError, match="one shape"):
        metrics.sparsification(big, std[:3])
    with pytest.raises(TypeError, match="real std"):
        metrics.sparsification(big, std + 0j)
    with pytest.raises(ValueError, match="points wants at least 1"):
        metrics.sparsification(big, std, points=0)


def scan(batch: int = 1) -> tuple[CartesianMRI, Tensor, Tensor]:
    """Half the columns of 16 x 12 white images of standard deviation 2, noise 0.5, draws of x."""
    mask = (torch.arange(12) % 2 == 0) | (torch.arange(12) == 5)
    A = CartesianMRI((16, 12), mask=mask)
    rng = torch.Generator().manual_seed(4)
    x = 2 * A.domain.randn(batch, generator=rng, dtype=torch.float64)
    k = A(x)
    noise = 0.5 * A.range.randn(batch, generator=rng, dtype=torch.float64)
    y = torch.where(mask, k + noise, 0)
    # the posterior of a white image is diagonal in k-space
    keep, std = 4 / 4.25, math.sqrt(4 * 0.25 / 4.25)
    fresh = A.range.randn(3, batch, generator=rng, dtype=torch.float64)
    full = CartesianMRI((16, 12))
    return A, y, full.adjoint(torch.where(mask, keep * y + std * fresh, 2 * fresh))


def check_residual(residual: Made) -> None:
    A, y, draws = scan(100)
    found = residual(y, A, draws, 0.5)
    m = 2 * 16 * 7  # real numbers measured
    assert found.numbers.tolist() == [m] * 100
    assert found.ratio.shape == (3, 100)
    by_hand = torch.linalg.vector_norm(y - A(draws), dim=(-3, -2, -1)) / (0.5 * math.sqrt(m))
    torch.testing.assert_close(found.ratio, by_hand, rtol=1e-12, atol=0)
    # jointly with y, draws are distributed as the truth: squared ratios have mean 1, variance 2/m
    assert float(found.ratio[0].square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / m / 100))
    each = residual(y, A, draws, torch.full((100,), 0.25)).ratio
    torch.testing.assert_close(each, 2 * by_hand, rtol=1e-12, atol=0)


def _residual_with(count: float) -> Made:
    def wrong(y: Tensor, A: Any, samples: Tensor, noise_std: Tensor | float) -> metrics.Residual:
        kept = metrics.residual_over_noise(y, A, samples, noise_std)
        return kept._replace(ratio=kept.ratio / math.sqrt(count))

    return wrong


def test_residual_over_noise() -> None:
    check_residual(metrics.residual_over_noise)
    for count in (12 / 7, 0.5, 2):  # every entry; complex ones once; a deviation of both parts
        with pytest.raises(AssertionError):
            check_residual(_residual_with(count))


def test_what_counts_as_measured() -> None:
    A, y, draws = scan()
    whole = metrics.residual_over_noise(y, 2 * A, draws, 0.5)
    assert whole.numbers.tolist() == [2 * 16 * 7]  # a mask within a composition
    few = torch.zeros(16, 12, dtype=torch.bool)
    few[:, :2] = True
    part = metrics.residual_over_noise(y, A, draws, 0.5, region=few)
    assert part.numbers.tolist() == [2 * 16 * 2]
    wanted = torch.linalg.vector_norm((y - A(draws))[..., :1], dim=(-3, -2, -1))
    torch.testing.assert_close(part.ratio, wanted / (0.5 * math.sqrt(64)))
    # masks of each item
    masks = torch.stack([torch.arange(12) < n for n in (3, 7)])[:, None, None]
    B = CartesianMRI((16, 12), mask=masks)
    two = metrics.residual_over_noise(B(draws[:2, 0]), B, draws[:, :1].expand(3, 2, 1, 16, 12), 1.0)
    assert two.numbers.tolist() == [2 * 16 * 3, 2 * 16 * 7]
    # real; a ray that passes the image by is measured where it holds noise
    space = Space((1, 1, 4))
    rays = from_functions(lambda x: x * torch.tensor([1.0, 1, 0, 0]), domain=space, range=space)
    y = torch.tensor([1.0, 0, 0.5, 0]).view(1, 1, 4)
    found = metrics.residual_over_noise(y, rays, torch.zeros(1, 1, 1, 4), 1.0)
    assert int(found.numbers) == 3
    assert float(found.ratio) == pytest.approx(math.sqrt(1.25 / 3))
    half = from_nonlinear(lambda x: x.clamp(min=0), domain=space, range=space)
    found = metrics.residual_over_noise(0 * y, half, torch.zeros(1, 1, 1, 4), 1.0)
    assert int(found.numbers) == 4


def test_residuals_of_what_does_not_fit_are_refused() -> None:
    A, y, draws = scan(2)
    call = metrics.residual_over_noise
    for bad in (draws[0], draws[:, :1], draws[:0]):
        with pytest.raises(ValueError, match=r"wants samples \(samples, \*batch, \*domain\)"):
            call(y, A, bad, 0.5)
    with pytest.raises(TypeError, match="want a complex floating tensor"):
        call(y, A, draws.real, 0.5)
    for noise in (0.0, math.nan, torch.ones(3)):
        with pytest.raises(ValueError, match="noise_std wants finite numbers > 0"):
            call(y, A, draws, noise)
    with pytest.raises(ValueError, match="samples hold NaN"):
        call(y, A, draws * math.nan, 0.5)
    with pytest.raises(ValueError, match="nothing was measured of an item"):
        call(y, A, draws, 0.5, region=torch.tensor([True, False])[:, None, None, None])


def test_regions_and_complex_images() -> None:
    samples, truth = normals(7, 40)
    region = torch.arange(40) < 13
    spoilt = samples.clone()
    spoilt[:, 13:] = torch.nan
    within = metrics.crps(spoilt, truth, region=region)
    assert within.mean == pytest.approx(metrics.crps(samples[:, :13], truth[:13]).mean)
    assert within.pixels == 13
    assert within.map.isnan().tolist() == (~region).tolist()
    assert metrics.gaussian_crps(spoilt[0], spoilt[1].abs(), truth, region=region).pixels == 13
    assert metrics.rank_histogram(spoilt, truth, torch.Generator(), region=region).pixels == 13
    kept = metrics.interval_coverage(spoilt, truth, (0.5,), region=region)
    alone = metrics.interval_coverage(samples[:, :13], truth[:13], (0.5,))
    assert [float(x) for x in kept] == [float(x) for x in alone]
    assert metrics.sparsification(spoilt[0], spoilt[1].abs(), region=region).pixels == 13
    same = torch.where(region, 3.0, samples)
    assert metrics.interval_coverage(same, truth, (0.5,)).constant == 13

    turned = samples.abs() * torch.exp(5j * samples)
    of_complex = metrics.crps(turned, truth * 1j)
    assert of_complex.mean == pytest.approx(metrics.crps(samples.abs(), truth.abs()).mean)
    for call in (metrics.crps, metrics.interval_coverage,
                 lambda x, y: metrics.rank_histogram(x, y, torch.Generator())):
        with pytest.raises(TypeError, match="samples are complex, truth is real: pass magnitudes"):
            call(turned, truth)
        with pytest.raises(TypeError, match="samples are real, truth is complex"):
            call(samples, truth + 0j)
        with pytest.raises(ValueError, match="NaN or infinity in samples where it counts"):
            call(spoilt, truth)
        with pytest.raises(ValueError, match="NaN or infinity in truth where it counts"):
            call(samples, truth / 0)
        with pytest.raises(ValueError, match=r"wants samples \(samples, \*shape\)"):
            call(samples, truth[:5])
        with pytest.raises(ValueError, match=r"wants samples \(samples, \*shape\)"):
            call(samples[:0], truth)
    with pytest.raises(ValueError, match="region chooses no pixel"):
        metrics.crps(samples, truth, region=torch.zeros(40, dtype=torch.bool))
