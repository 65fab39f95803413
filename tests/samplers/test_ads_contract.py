"""What a caller of active subsampling can rely on: questions asked, resuming, items, units."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon.acquisition import (
    Candidates,
    GaussianEntropy,
    MaximumEntropy,
    Policy,
    PosteriorVariance,
    Random,
    Selection,
    columns,
    pixels,
)
from recon.integrators import DDIM, schedules
from recon.integrators.base import Denoise
from recon.noise import Noise, Source, per_draw
from recon.operators import (
    CartesianMRI,
    Clipping,
    Counts,
    Identity,
    Operator,
    PhaseRetrieval,
    Scale,
    Space,
    from_nonlinear,
)
from recon.priors import Gaussian
from recon.samplers import ads
from recon.samplers.ads import _gain
from recon.simulate import coil_maps

F64, C64 = torch.float64, torch.complex64
# shown here to be of no use where it warns
pytestmark = pytest.mark.filterwarnings("ignore:MaximumEntropy cannot tell")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def scanner(n: int = 12, coils: int = 3) -> tuple[CartesianMRI, Gaussian]:
    f = torch.fft.fftfreq(n, dtype=F64)
    spectrum = 3 / (1 + 40 * (f[:, None].square() + f.square()))[None]
    prior = Gaussian(torch.zeros(1, n, n, dtype=torch.complex128), spectrum=spectrum)
    return CartesianMRI((n, n), maps=coil_maps(coils, n, n).to(torch.complex128)), prior


class Scan:
    """Answers for a scanner, keeps what it was asked, and spoils what it was not asked for."""

    def __init__(self, y: Tensor) -> None:
        self.y, self.asked = y, list[Selection]()

    def __call__(self, selection: Selection) -> Tensor:
        self.asked.append(selection)
        return torch.where(selection.mask, self.y, math.nan)


def measured(A: CartesianMRI, prior: Gaussian, batch: int) -> Tensor:
    y = A(prior.sample(batch, seeded(5)))
    return y + 0.05 * A.range.randn(batch, generator=seeded(6), dtype=y.dtype)


def settings_for(A: Operator, **more: Any) -> dict[str, Any]:
    return {"candidates": columns(A), "budget": 7, "initial": [5, 6], "noise_std": 0.05,
            "samples": 4, "steps": 9, "window": (1, 7)} | more


def test_particles_have_no_order() -> None:
    """A10: particles drawn in another order come out in it; the choice is the same."""
    A, prior = scanner()
    y, sources = measured(A, prior, 1)[0], per_draw(0, range(4), range(1))
    one = ads.run(Scan(y), A, prior, generator=sources, **settings_for(A))
    sources = per_draw(0, range(4), range(1))[::-1]
    other = ads.run(Scan(y), A, prior, generator=sources, **settings_for(A))
    assert relative(other.x0.flip(0), one.x0) < 1e-9
    assert other.order.tolist() == one.order.tolist()


def test_what_the_scanner_is_asked() -> None:
    A, prior = scanner()
    scan = Scan(measured(A, prior, 2))
    steps = list(ads.steps(scan, A, prior, batch=(2,), generator=seeded(), **settings_for(A)))
    counts = [s.candidates.shape[-1] for s in scan.asked]
    assert counts == [2, 1, 1, 1, 1, 1]
    assert [s.order.shape[-1] for s in steps] == [2, 3, 4, 5, 6, 7, 7, 7, 7]
    last = steps[-1]
    assert torch.equal(torch.cat([s.candidates for s in scan.asked], -1), last.order)
    assert torch.equal(torch.stack([s.mask for s in scan.asked]).sum(0), last.mask.long())  # once
    assert torch.equal(last.y, torch.where(last.mask, scan.y, 0))
    assert last.mask.shape == scan.y.shape
    for item in range(2):
        held = last.mask[item].all(0).all(0).nonzero().flatten().tolist()
        assert held == sorted(last.order[item].tolist())
    assert last.scores.shape == (2, 5)  # none of the initial ones
    assert bool((last.scores > 0).all())
    assert last.x0.shape == (4, 2, 1, 12, 12)
    assert last.x0.dtype == torch.complex128  # as the measurements
    whole = ads(scan, A, prior, batch=(2,), generator=seeded(), **settings_for(A))
    assert torch.equal(whole, last.x0)


@pytest.mark.parametrize("policy", [PosteriorVariance(), Random()])
def test_resumes_bit_for_bit(policy: Policy) -> None:
    """And what is measured is not measured again."""
    A, prior = scanner()
    scan, source = Scan(measured(A, prior, 2)), seeded()
    given = settings_for(A, batch=(2,), policy=policy, integrator=DDIM(0.8))
    seen = [(step, source.get_state())
            for step in ads.steps(scan, A, prior, generator=source, **given)]
    for k in (0, 3, 7):
        saved, state = seen[k]
        later, again = seeded(), Scan(scan.y)
        later.set_state(state)
        last = ads.run(again, A, prior, generator=later, start=saved, **given)
        assert all(torch.equal(a, b) for a, b in zip(last[1:7], seen[-1][0][1:7], strict=True))
        assert sum(s.candidates.shape[-1] for s in again.asked) == 7 - saved.order.shape[-1]
    for wrong in ({"window": (2, 8)}, {"initial": [5, 7]}, {"budget": 9}):
        with pytest.raises(ValueError, match="start holds the candidates"):
            ads(scan, A, prior, start=seen[2][0], **given | wrong)


@pytest.mark.parametrize("policy", [None, MaximumEntropy(2.0), GaussianEntropy(), Random()])
def test_items_stand_alone(policy: Policy | None) -> None:
    """Four items of their own size, noise and prior's scale, as one by one."""
    A, prior = scanner()
    scale = torch.tensor([1.0, 30.0, 0.2, 5.0], dtype=F64)
    std = 0.05 * torch.tensor([1.0, 2.0, 0.3, 1.0], dtype=F64) * scale
    y = measured(A, prior, 4) * scale.view(-1, 1, 1, 1)
    given = settings_for(A, policy=policy)
    whole = ads.run(Scan(y), A, prior.rescaled(scale), batch=(4,),
                    generator=per_draw(7, range(4), range(4)), **given | {"noise_std": std})
    if not isinstance(policy, MaximumEntropy):  # told one kernel for all
        assert len({tuple(one) for one in whole.order.tolist()}) > 1
    for i in range(4):
        one = ads.run(Scan(y[i]), A, prior.rescaled(scale[i]),
                      generator=per_draw(7, range(4), range(i, i + 1)),
                      **given | {"noise_std": std[i]})
        assert one.order.tolist() == whole.order[i].tolist()
        assert relative(whole.x0[:, i], one.x0) < 1e-9
        assert relative(whole.scores[i], one.scores) < 1e-6
        few = torch.tensor([[5, 6]]).repeat(4, 1)
        again = ads.run(Scan(y), A, prior.rescaled(scale), batch=(4,),
                        generator=per_draw(7, range(4), range(4)),
                        **given | {"noise_std": std, "initial": few})
        assert torch.equal(again.x0, whole.x0)


S = Space((1, 8, 8), F64)
GAINS: dict[str, tuple[Operator, Operator, float]] = {
    "offset": (Counts(S, 2.0, 100.0), Scale(2.0, S), 1e-9),
    "fourier": (CartesianMRI((8, 8)), Identity(Space((1, 8, 8), C64)), 1e-6),
    "even": (PhaseRetrieval(S), Identity(S), 1e-6),  # |F x| has the power of x, and no odd part
    "half": (Clipping(S, high=100.0), Scale(math.sqrt(0.5), S), 1e-6),
}


@pytest.mark.parametrize("name", GAINS)
def test_gain(name: str) -> None:
    """What an operator adds is no gain; no item knows of others; one pixel is a candidate too."""
    A, B, within = GAINS[name]

    def gains(A: Operator, *batch: int) -> Tensor:
        return _gain(A, Candidates(pixels(A), A), A.range.zeros(*batch))

    seen = from_nonlinear(lambda x: A(x.view(-1, *A.domain.shape)).view(
        *x.shape[: -len(A.domain.shape)], *A.range.shape), domain=A.domain, range=A.range)
    assert gains(seen, 2).shape == (2,)  # whose function wants images that lie in order
    want = float(gains(B))
    assert float(gains(A)) == pytest.approx(want, rel=within)
    assert gains(A, 2, 3).shape == (2, 3)
    torch.testing.assert_close(gains(A, 2, 3), gains(A).expand(2, 3))

    def with_the_offset(A: Operator, *batch: int) -> Tensor:
        x = A.domain.randn(4, *batch, generator=seeded())
        return A(x).abs().square().mean((0, -3, -2, -1)).sqrt() / (
            math.sqrt(2) if A.range.is_complex else 1)

    if name == "offset":
        assert float(with_the_offset(A)) > 10 * want
    apart = with_the_offset(A, 3)
    assert float(apart.amax() - apart.amin()) > 1e-3 * want


@pytest.mark.parametrize("c", [1e-6, 1e6])
@pytest.mark.parametrize("policy", [PosteriorVariance(), GaussianEntropy(), MaximumEntropy()])
def test_units_cancel(c: float, policy: Policy) -> None:
    A, prior = scanner()
    y = measured(A, prior, 1)[0]
    got, want = (ads.run(Scan(f * y), A, prior.rescaled(f), generator=seeded(),
                         **settings_for(A, policy=policy, noise_std=0.05 * f)) for f in (c, 1.0))
    assert got.order.tolist() == want.order.tolist()
    assert relative(got.x0 / c, want.x0) < 1e-9


def test_integrators_are_reset() -> None:
    """Before the first step and after every acquisition, at once."""
    A, prior = scanner()
    calls = list[str]()

    class Noted(DDIM):
        def reset(self) -> None:
            calls.append("reset")

        def step(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor,
                 generator: Source | Noise) -> Tensor:
            calls.append("step")
            return super().step(denoise, x, sigma, sigma_next, generator)

    def acquire(_: Selection) -> Tensor:
        calls.append("acquire")
        return y

    y = measured(A, prior, 1)[0]
    ads(acquire, A, prior, integrator=Noted(), **settings_for(A, budget=4))
    first, second = (c for c in (1, 4))
    want = ["acquire", "reset"]
    for step in range(9):
        want += ["step"] + ["acquire", "reset"] * (step in (first, second))
    assert calls == want


def test_first_measurements_decide_the_precision() -> None:
    A, prior = scanner()
    y = measured(A, prior, 1)[0]
    for initial, kind in (([5, 6], torch.complex128), ([], C64)):
        last = ads.run(Scan(y), CartesianMRI((12, 12), maps=A.maps), prior,
                       **settings_for(A, initial=initial))
        assert last.x0.dtype == last.y.dtype == kind
        assert last.scores.dtype == kind.to_real()


def test_one_step_measures_only_the_initial() -> None:
    A, prior = scanner()
    y = measured(A, prior, 1)[0]
    given = settings_for(A, steps=1, window=None, initial=[5, 6, 7])
    last = ads.run(Scan(y), A, prior, **given | {"budget": 3})
    assert last.order.tolist() == [5, 6, 7]
    assert bool(last.x0.isfinite().all())
    with pytest.raises(ValueError, match="leave 4 candidates to be measured between steps"):
        ads(Scan(y), A, prior, **given)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "budget": ({"budget": 13}, "wants at most the 12 that there are, got 13"),
    "less than initial": ({"budget": 1}, "counts the 2 initial candidates too"),
    "no budget": ({"budget": 0}, "budget wants at least 1"),
    "window": ({"window": (3, 9)}, r"0 <= a < b < 9.*got \(3, 9\)"),
    "empty window": ({"window": (3, 3)}, "window wants steps"),
    "twice": ({"initial": [5, 5]}, "initial names a candidate twice"),
    "initial": ({"initial": [5, 12]}, "initial wants candidates 0 to 11, got 5 to 12"),
    "shape of initial": ({"initial": torch.zeros(3, 2).long()}, r"for the batch \(\), got \(3, 2"),
    "labels": ({"candidates": torch.arange(5)}, "candidates wants labels that broadcast"),
    "noise": ({"noise_std": -1.0}, "noise_std wants finite numbers >= 0"),
    "samples": ({"samples": 0}, "samples wants at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_before_any_measurement(case: str) -> None:
    A, prior = scanner()
    scan = Scan(measured(A, prior, 1)[0])
    wrong, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        ads(scan, A, prior, **settings_for(A) | wrong)
    assert not scan.asked


def test_refused_operators_and_callables() -> None:
    A, prior = scanner()
    y = measured(A, prior, 1)[0]
    with pytest.raises(TypeError, match="acquire wants a function of a Selection"):
        ads(y, A, prior, **settings_for(A))
    with pytest.raises(TypeError, match="initial wants whole numbers"):
        ads(Scan(y), A, prior, **settings_for(A, initial=[0.5]))
    some = CartesianMRI((12, 12), torch.arange(12) != 3, A.maps)
    with pytest.raises(ValueError, match="the operator measures nothing at candidate 3"):
        ads(Scan(y), some, prior, **settings_for(A))


@pytest.mark.parametrize(("answer", "words"), [
    (lambda y: y[0], r"complex measurements \(3, 12, 12\), .* got \(12, 12\)"),
    (lambda y: y.real, r"complex measurements .* got \(3, 12, 12\) of torch.float64"),
    (lambda y: None, "got NoneType"),  # noqa: ARG005
    (lambda y: torch.where(torch.arange(12) == 6, math.inf, y), r"infinity at \(0, 0, 6\)"),
])
def test_wrong_answers_of_the_scanner(answer: Callable[[Tensor], Any], words: str) -> None:
    A, prior = scanner()
    y = measured(A, prior, 1)[0]
    with pytest.raises(ValueError, match=words):
        ads(lambda _: answer(y), A, prior, **settings_for(A))


def test_little_noise_on_one_coil_in_single_precision() -> None:
    """What is not measured of a prediction survives a data step with noise 1e-5 of the level."""
    A, prior = CartesianMRI((12, 12)), scanner()[1]
    y = measured(A, prior, 1)
    given = settings_for(A, noise_std=1e-4, samples=8)
    got, want = (ads.run(Scan(y[0, :1].to(kind)), A, prior, generator=seeded(),
                         sigmas=schedules.geometric(9, 0.1, 10.0), **given).x0.abs().amax()
                 for kind in (C64, torch.complex128))
    assert float(got) == pytest.approx(float(want), rel=0.5)
