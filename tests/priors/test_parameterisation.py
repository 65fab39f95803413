"""Networks of every kind, made exactly from a Gaussian, must come out as its denoiser again."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recon.priors import (
    EpsilonPrior,
    Flow,
    FlowPrior,
    Gaussian,
    Prior,
    ScorePrior,
    VarianceExploding,
    VariancePreserving,
    VelocityPrior,
    X0Prior,
)

Schedule = VarianceExploding | VariancePreserving | Flow
LINE = torch.linspace(-1, 1, 6, dtype=torch.float64)
TRUTH = Gaussian(torch.stack([LINE, LINE.flip(0)]).view(2, 2, 3),
                 variance=(LINE.cos().expand(2, 6).reshape(2, 2, 3)) * 1.7)


def abar_of(index: Tensor) -> Tensor:
    """The linear schedule of 1000 steps by its product, log sigma interpolated in between."""
    beta = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    abar = torch.tensor([1 - b for b in beta], dtype=torch.float64).cumprod(0)
    log_sigma = ((1 - abar) / abar).sqrt().log()
    low = index.floor().long().clamp(0, 998)
    between = log_sigma[low] + (index - low) * (log_sigma[low + 1] - log_sigma[low])
    return 1 / (1 + between.exp().square())


def coefficients(schedule: Schedule, time: Tensor) -> tuple[Tensor, Tensor]:
    """``a`` and ``b`` of the network's input ``a x0 + b n`` at its own second argument."""
    if isinstance(schedule, VariancePreserving):
        abar = abar_of(time)
        a, b = abar.sqrt(), (1 - abar).sqrt()
    elif isinstance(schedule, Flow):
        a, b = 1 - time / 1000, time / 1000
    else:
        a, b = torch.ones_like(time), (4 * time).exp()
    return a.view(-1, 1, 1, 1), b.view(-1, 1, 1, 1)


class Exact(nn.Module):
    """What a perfectly trained network says of ``TRUTH``, in terms of its own input alone."""

    def __init__(self, kind: str, schedule: Schedule) -> None:
        super().__init__()
        self.kind, self.schedule = kind, schedule

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        a, b = coefficients(self.schedule, time.double())
        v, m = TRUTH.eigenvalues, TRUTH.mean
        # E[n | z] and E[x0 | z] of z = a x0 + b n, each from the joint Gaussian
        total = a**2 * v + b**2
        eps, x0 = b / total * (z - a * m), m + a * v / total * (z - a * m)
        out: Tensor = {"eps": eps, "x0": x0, "v": a * eps - b * x0, "score": -(z - a * m) / total,
                       "flow": eps - x0, "-eps": -eps, "v swapped": a * x0 - b * eps,
                       "v negative": b * x0 - a * eps, "flow negative": x0 - eps}[self.kind]
        return out.to(z.dtype)


def vp() -> VariancePreserving:
    return VariancePreserving.linear()


def ve() -> VarianceExploding:
    return VarianceExploding(0.01, 50.0, time=lambda sigma: sigma.log() / 4)


def flow() -> Flow:
    return Flow(time=lambda t: 1000 * t)


WRAPPERS: dict[str, type[Any]] = {"eps": EpsilonPrior, "x0": X0Prior, "v": VelocityPrior,
                                  "score": ScorePrior, "flow": FlowPrior}
SCHEDULES: dict[str, Callable[[], Schedule]] = {"vp": vp, "ve": ve, "flow": flow}
PAIRS = [(kind, name) for kind in ("eps", "x0", "score") for name in SCHEDULES]
PAIRS += [("v", "vp"), ("flow", "flow")]


def wrapped(kind: str, schedule: Schedule, network: nn.Module | None = None) -> Prior:
    prior: Prior = WRAPPERS[kind](network or Exact(kind, schedule), schedule, 2)
    return prior


def check_exact(prior: Prior, dtype: torch.dtype, tolerance: float) -> None:
    """Fails unless it is the denoiser of ``TRUTH`` at every level, per item."""
    sigma = torch.tensor([0.0123, 0.1, 0.4567, 1.0, 3.0, 11.1, 49.0], dtype=torch.float64)
    n = torch.randn(7, 2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = TRUTH.mean + (1 + sigma.view(-1, 1, 1, 1)) * n
    got, want = prior(x.to(dtype), sigma.to(dtype)), TRUTH(x, sigma)
    assert got.dtype == dtype
    error = (got - want).abs().amax((1, 2, 3)) / want.abs().amax((1, 2, 3))
    assert float(error.max()) < tolerance


@pytest.mark.parametrize(("kind", "schedule"), PAIRS)
def test_exact_networks_give_the_exact_denoiser(kind: str, schedule: str) -> None:
    prior = wrapped(kind, SCHEDULES[schedule]())
    check_exact(prior, torch.float64, 1e-12)
    # sigma = 49 times noise subtracted from x leaves that many digits fewer
    check_exact(prior, torch.float32, 3e-5 if kind in ("eps", "score") else 1e-6)


class Tampered(nn.Module):
    """The network ``of``, its inputs or outputs changed."""

    def __init__(self, of: nn.Module, before: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.of, self.before = of, before

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.of(*self.before(z, time))
        return out


def sigma_at(index: Tensor) -> Tensor:
    abar = abar_of(index)
    return ((1 - abar) / abar).sqrt()


def unscaled(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    return z * (1 + sigma_at(index).square()).sqrt().view(-1, 1, 1, 1), index


FAULTS: dict[str, Callable[[], Prior]] = {
    "eps of the wrong sign": lambda: wrapped("eps", vp(), Exact("-eps", vp())),
    "sigma for the index": lambda: wrapped(
        "eps", vp(), Tampered(Exact("eps", vp()), lambda z, t: (z, sigma_at(t).clamp(max=999)))),
    "index rounded down": lambda: wrapped(
        "eps", vp(), Tampered(Exact("eps", vp()), lambda z, t: (z, t.floor()))),
    "index one off": lambda: wrapped(
        "eps", vp(), Tampered(Exact("eps", vp()), lambda z, t: (z, (t + 1).clamp(max=999)))),
    "input not scaled": lambda: wrapped("eps", vp(), Tampered(Exact("eps", vp()), unscaled)),
    "v with its roles swapped": lambda: wrapped("v", vp(), Exact("v swapped", vp())),
    "v of the other sign": lambda: wrapped("v", vp(), Exact("v negative", vp())),
    "eps for v": lambda: wrapped("v", vp(), Exact("eps", vp())),
    "score of x, not of the input": lambda: wrapped("eps", vp(), Exact("score", vp())),
    "flow of the other sign": lambda: wrapped("flow", flow(), Exact("flow negative", flow())),
    "time running from noise to image": lambda: wrapped(
        "flow", flow(), Tampered(Exact("flow", flow()), lambda z, t: (z, 1000 - t))),
    "x0 for eps": lambda: wrapped("eps", ve(), Exact("x0", ve())),
    "another schedule": lambda: wrapped("eps", VariancePreserving.linear(1000, 2e-4, 0.02),
                                        Exact("eps", vp())),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrong_networks_are_told(fault: str, dtype: torch.dtype) -> None:
    with pytest.raises(AssertionError):
        check_exact(FAULTS[fault](), dtype, 3e-5)


def test_learned_variance_is_dropped() -> None:
    class Learned(Exact):
        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            return torch.cat([super().forward(z, time), 9 * torch.ones_like(z)], 1)

    check_exact(wrapped("eps", vp(), Learned("eps", vp())), torch.float64, 1e-10)


def test_variance_preserving_index() -> None:
    schedule = vp()
    index = torch.tensor([0.0, 0.25, 17.0, 500.5, 998.9, 999.0], dtype=torch.float64)
    sigma = sigma_at(index)
    assert torch.allclose(schedule.time(sigma), index, rtol=1e-10, atol=1e-10)
    assert torch.allclose(schedule.time(sigma.float()).double(), index, atol=2e-3)
    outside = torch.tensor([0.0, 1e-6, 1e6], dtype=torch.float64)
    assert schedule.time(outside).tolist() == [0, 0, 999]
    assert schedule.sigma_min == pytest.approx(0.010001, rel=1e-4)
    assert schedule.sigma_max == pytest.approx(157.4, rel=1e-3)
    rising = schedule.time(torch.linspace(0.02, 150, 9999, dtype=torch.float64)).diff()
    assert bool((rising > 0).all())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_index_is_exact_in_any_precision_of_the_network(kind: torch.dtype) -> None:
    schedule, sigma = VariancePreserving.linear(), torch.tensor([0.02, 0.3, 1.0, 5.0, 40.0])
    want = VariancePreserving.linear().time(sigma)
    prior = EpsilonPrior(nn.Conv2d(1, 1, 1), schedule, 1).to(kind)
    assert torch.allclose(schedule.time(sigma), want, rtol=1e-4, atol=1e-3)
    assert next(prior.parameters()).dtype == kind
    rounded = VariancePreserving.linear()
    rounded.log_sigmas = rounded.log_sigmas.bfloat16()
    assert not torch.allclose(rounded.time(sigma), want, rtol=1e-4, atol=1e-2)


def test_below_and_above_the_trained_levels_stays_finite() -> None:
    x = torch.ones(3, 2, 2, 3, dtype=torch.float64)
    sigma = torch.tensor([0.0, 1e-5, 1e4], dtype=torch.float64)
    for kind in ("eps", "v", "score"):
        out = wrapped(kind, vp())(x, sigma)
        assert torch.isfinite(out).all()
        assert torch.allclose(out[:2], x[:2], atol=1e-3)


def test_levels_come_from_the_schedule() -> None:
    prior = wrapped("x0", ve())
    assert (prior.sigma_min, prior.sigma_max) == (0.01, 50.0)


ABAR = torch.tensor([0.9, 0.5, 0.1])


@pytest.mark.parametrize("schedule", [VarianceExploding(0.01, 50.0), Flow(),
                                      VariancePreserving.linear()])
def test_priors_can_be_sent_to_other_processes(schedule: Schedule) -> None:
    prior = EpsilonPrior(nn.Conv2d(1, 1, 1), schedule, 1)
    sent = pickle.loads(pickle.dumps(prior))
    sigma = torch.tensor([0.1, 3.0])
    assert torch.equal(sent.schedule.time(sigma), schedule.time(sigma))


@pytest.mark.parametrize(("error", "call", "message"), [
    (ValueError, lambda: VariancePreserving(ABAR.flip(0)), "falling values: index 0 is the least"),
    (ValueError, lambda: VariancePreserving(ABAR[:1]), "at least two numbers inside .0, 1."),
    (ValueError, lambda: VariancePreserving(ABAR - 0.1), "at least two numbers inside .0, 1."),
    (ValueError, lambda: VariancePreserving(ABAR * torch.nan), "at least two numbers inside"),
    (TypeError, lambda: wrapped("v", ve()), "VelocityPrior wants a VariancePreserving schedule, "
                                            "got VarianceExploding"),
    (TypeError, lambda: wrapped("flow", vp()), "FlowPrior wants a Flow schedule, got VarianceP"),
    (ValueError, lambda: EpsilonPrior(Tampered(Exact("eps", vp()), lambda z, t: (z[:, :2], t)),
                                      vp(), 3)(torch.ones(1, 3, 2, 3), 1.0),
     "want 3 channels or more, same size"),
])
def test_refusals(error: type[Exception], call: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
