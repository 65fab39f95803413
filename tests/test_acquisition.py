"""Candidates, and what policies score, against closed forms and plain loops.

A1 to A11 are the checks of active subsampling by number; each has a faulty twin that fails it.
"""

import math

import pytest
import torch
from torch import Tensor

from recon.acquisition import (
    Belief,
    Candidates,
    EntrywiseEntropy,
    GaussianEntropy,
    GreedyVariance,
    MaximumEntropy,
    Policy,
    PosteriorVariance,
    Random,
    choose,
    columns,
    pixels,
)
from recon.noise import Noise
from recon.operators import Identity, LinearOperator, Masking, Space
from recon.priors import Gaussian

F64, C128 = torch.float64, torch.complex128
NONE = torch.empty(0, dtype=torch.int64)
ALL: list[Policy] = [MaximumEntropy(), GaussianEntropy(), EntrywiseEntropy(), GreedyVariance(),
                     PosteriorVariance()]
# shown here to be of no use where it warns
pytestmark = pytest.mark.filterwarnings("ignore:MaximumEntropy cannot tell")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def believed(x0: Tensor, std: Tensor | float = 0.1, operator: LinearOperator | None = None,
             labels: Tensor | None = None, generator: torch.Generator | None = None,
             unresolved: float = 0.0) -> Belief:
    """What particles ``(n, *batch, 1, 1, entries)`` say of themselves, or of ``operator``."""
    A = operator or Identity(Space(tuple(x0.shape[-3:]), x0.dtype))
    return Belief(x0, A, Candidates(pixels(A) if labels is None else labels, A),
                  noise_std=torch.as_tensor(std, dtype=x0.dtype.to_real()),
                  unresolved=torch.tensor(unresolved), noise=Noise(generator, 1, 3))


def scored(policy: Policy, particles: Tensor, std: float) -> Tensor:
    """Scores of candidates of one entry, from ``(n, entries)``."""
    return policy(believed(particles[:, None, None], std), NONE)


def kernel(sign: float) -> Policy:
    """The mixture entropy entry by entry, in a plain loop; the released code has ``sign`` +1."""

    def score(belief: Belief, chosen: Tensor) -> Tensor:  # noqa: ARG001 a policy's arguments
        y, s = belief.predicted.flatten(1), float(belief.noise_std)
        gaps = (y[:, None] - y[None]).abs().square() / (2 * s * s)
        return -sign * -((sign * gaps).exp().mean(1).log()).mean(0)

    return score


def test_entropy_kernel() -> None:
    """A1: the sign of the exponent decides between balanced particles and an outlier."""
    balanced = torch.tensor([0.5] * 8 + [-0.5] * 8, dtype=F64)
    outlier = torch.tensor([0.0] * 15 + [2.5], dtype=F64)
    spread = 0.35 * torch.randn(16, generator=seeded(3), dtype=F64)
    particles = torch.stack([balanced, outlier, spread], 1)

    def check(policy: Policy) -> None:
        scores = scored(policy, particles, 0.3)
        assert scores[:2].tolist() == pytest.approx([0.690, 0.237], abs=4e-3)
        assert int(scores.argmax()) == 0
        assert int(scored(policy, particles, 0.05).argmax()) == 2
        wide = scored(policy, particles, 10.0)
        variance = particles.var(0, correction=0) / 100
        assert wide.tolist() == pytest.approx(variance.tolist(), rel=0.05)

    check(MaximumEntropy())
    check(kernel(-1))
    for wrong in (kernel(1), GreedyVariance(), GaussianEntropy(), PosteriorVariance()):
        assert int(scored(wrong, particles, 0.3).argmax()) == 1
        with pytest.raises(AssertionError):
            check(wrong)


def test_entropy_limits() -> None:
    """A1: clusters far apart give the entropy of their shares; all apart log n; equal ones 0."""
    shares = torch.tensor([8, 4, 2, 1])
    far = torch.stack([torch.where(torch.arange(16) < k, 1.0, -1.0) for k in shares], 1).to(F64)
    far += 1e-6 * torch.randn(16, 4, generator=seeded(), dtype=F64)
    p = shares / 16
    want = -(p * p.log() + (1 - p) * (1 - p).log())
    assert scored(MaximumEntropy(), far, 0.05).tolist() == pytest.approx(want.tolist(), abs=1e-6)
    apart = torch.arange(16, dtype=F64)[:, None]
    assert float(scored(MaximumEntropy(), apart, 0.05)) == pytest.approx(math.log(16))
    assert float(scored(MaximumEntropy(), 0 * apart, 0.05)) == 0


def templates(n: int, which: list[int]) -> Tensor:
    """A2: draws of some of four templates of 16 pixels, deviation 0.03 each."""
    mean = torch.linspace(-0.4, 0.4, 16, dtype=F64).repeat(4, 1)
    mean[:, 3] = torch.tensor([0.3, 0.3, -0.3, -0.3])
    mean[:, 11] = torch.tensor([0.3, -0.3, 0.3, -0.3])
    mean[:, 7] = torch.tensor([1.5, -0.5, -0.5, -0.5])
    picks = torch.tensor(which).repeat(n // len(which))
    return mean[picks] + 0.03 * torch.randn(len(picks), 16, generator=seeded(1), dtype=F64)


def test_templates() -> None:
    """A2: the entropy asks the pixels that split the templates evenly, variance the large one."""
    particles = templates(400, [0, 1, 2, 3])
    scores = scored(MaximumEntropy(), particles, 0.1)
    assert scores[[3, 11, 7]].tolist() == pytest.approx([0.77, 0.77, 0.63], abs=0.02)
    rest = [i for i in range(16) if i not in (3, 7, 11)]
    assert scores[rest].tolist() == pytest.approx([0.08] * 13, abs=0.015)
    for wrong in (GreedyVariance(), kernel(1)):
        assert int(scored(wrong, particles, 0.1).argmax()) == 7
    after = scored(MaximumEntropy(), templates(400, [0, 1]), 0.1)  # pixel 3 said plus
    after[3] = -math.inf
    assert int(after.argmax()) in (7, 11)
    assert sorted(after.topk(2).indices.tolist()) == [7, 11]


def test_a_nuisance_is_asked_for() -> None:
    """A4: entropy is of the image, whatever one wants to know of it."""
    particles = templates(400, [0, 1, 2, 3])
    particles[:, 0] = 2 * torch.randn(400, generator=seeded(2), dtype=F64)
    for policy in ALL:
        assert int(scored(policy, particles, 0.1).argmax()) == 0
    with pytest.raises(AssertionError):
        assert int(Random()(believed(particles[:, None, None], 0.1, generator=seeded()), NONE
                            ).argmax()) == 0


def covariance_of(n: int) -> Gaussian:
    """Correlated pixels of unequal variance, in rows of ``n``."""
    root = torch.randn(n * n, n, generator=seeded(4), dtype=F64)
    size = torch.linspace(0.3, 1.5, n).repeat(n).to(F64)[:, None]
    shared = root @ root.mT + 0.1 * torch.eye(n * n, dtype=F64)
    return Gaussian(torch.zeros(1, n, n, dtype=F64), covariance=size * shared * size.mT)


def test_gaussian_lines() -> None:
    """A5: log det(I + C_a / s^2) / 2 of the columns of a Gaussian, and its choice.

    The mixture's entropy is log n for each: it does not follow the closed form, nor any order.
    """
    n, s = 6, 0.5
    prior = covariance_of(n)
    A = Identity(prior.space or Space((1, n, n)))
    belief = believed(prior.sample(1000, seeded()), s, A, columns(A))
    C = prior.covariance.view(n, n, n, n)
    blocks = torch.stack([C[:, a, :, a] for a in range(n)])
    want = torch.logdet(torch.eye(n, dtype=F64) + blocks / s**2) / 2
    entries = (1 + prior.covariance.diagonal().view(n, n) / s**2).log().sum(0) / 2

    def check(policy: Policy, want: Tensor) -> None:
        scores = policy(belief, NONE)
        assert float(((scores - want) / want).abs().max()) < 0.06
        assert int(scores.argmax()) == int(want.argmax())

    check(GaussianEntropy(), want)
    check(EntrywiseEntropy(), entries)
    check(GreedyVariance(), blocks.diagonal(dim1=-2, dim2=-1).sum(-1))
    with pytest.raises(AssertionError):
        check(GaussianEntropy(noise_std=2 * s), want)
    with pytest.raises(AssertionError):
        check(EntrywiseEntropy(), want)
    with pytest.raises(AssertionError):
        check(MaximumEntropy(), want)
    few = believed(prior.sample(16, seeded()), s, A, columns(A))
    with pytest.warns(UserWarning, match="cannot tell candidates apart"):
        MaximumEntropy()(few, NONE)
    assert float((MaximumEntropy()(few, NONE) - math.log(16))[1:].abs().max()) < 0.005
    assert float((want[1:] - want.mean()).abs().max()) > 1


def test_gaussian_pixels() -> None:
    """A5: a single number: the largest posterior variance, by every policy but the random ones."""
    prior = covariance_of(4)
    A = Masking(torch.tensor([1.0, 1, 0, 0]), Space((1, 4, 4)))
    posterior = prior.posterior(A, torch.ones(1, 4, 4, dtype=F64), 0.3)
    variance = posterior.covariance.diagonal()
    first, second = variance.topk(2).values.tolist()
    assert first > 1.2 * second  # 1000 draws tell
    belief = believed(posterior.sample(1000, seeded(1)), 1.0, generator=seeded())
    for policy in ALL:
        assert int(policy(belief, NONE).argmax()) == int(variance.argmax())
    with pytest.raises(AssertionError):
        assert int(Random()(belief, NONE).argmax()) == int(variance.argmax())


@pytest.mark.parametrize("sigma", [0.01, 1.0, 100.0])
def test_variance_behind_early_predictions(sigma: float) -> None:
    """Predictions from any noise level give the variance of the image; their own variance fades.

    Entries of variance 9, 1 and 0.09: at sigma 100 the predictions of the last vary by 8e-7.
    """
    variance = torch.tensor([9.0, 1.0, 0.09], dtype=F64).repeat_interleave(200).view(1, 1, 600)
    prior = Gaussian(torch.zeros(1, 1, 600, dtype=F64), variance=variance)
    x = prior.sample(16, seeded())
    x = x + sigma * torch.randn(x.shape, generator=seeded(1), dtype=F64)
    labels = torch.arange(3).repeat_interleave(200)
    A = Identity(Space((1, 1, 600), F64))
    belief = believed(prior(x, sigma), 0.1, A, labels, unresolved=sigma)

    def check(policy: Policy, want: Tensor) -> None:
        assert torch.allclose(policy(belief, NONE), want, rtol=0.05)

    spread = variance.flatten()[::200] * 200
    check(PosteriorVariance(), spread)
    check(GreedyVariance(), spread * (spread / (spread + 200 * sigma**2)))
    if sigma >= 1:
        with pytest.raises(AssertionError):
            check(GreedyVariance(), spread)


def test_picks_of_one_acquisition_know_of_each_other() -> None:
    """Two copies of the widest entry: the second brings next to nothing once the first is taken."""
    x = torch.randn(500, 1, 1, 3, generator=seeded(), dtype=F64) * torch.tensor([3.0, 0, 1.0])
    x[..., 1] = x[..., 0]
    belief, free = believed(x, 0.1), torch.zeros(3, dtype=torch.bool)
    for policy in (MaximumEntropy(), GaussianEntropy()):
        chosen, scores = choose(policy, belief, free, 2)
        assert chosen.tolist() == [0, 2]
        alone = torch.stack([policy(belief, NONE)[a] for a in (0, 2)])
        assert float(scores.sum()) <= float(alone.sum()) + 1e-6
    assert choose(GreedyVariance(), belief, free, 2)[0].tolist() == [0, 1]
    # the chain rule: gains add up to the score of both together
    A = Identity(Space((1, 1, 3), F64))
    joined = believed(x, 0.1, A, torch.tensor([0, 1, 0]))
    for policy in (MaximumEntropy(), GaussianEntropy()):
        total = choose(policy, belief, free, 2)[1].sum()
        assert float(total) == pytest.approx(float(policy(joined, NONE)[0]), rel=1e-6)


def line_scores(policy: Policy, y: Tensor, labels: Tensor, std: float = 0.1) -> Tensor:
    A = Identity(Space(tuple(y.shape[1:]), y.dtype))
    return policy(believed(y, std, A, labels), NONE)


@pytest.mark.parametrize("policy", ALL, ids=lambda p: type(p).__name__)
def test_a_column_is_all_its_rows_coils_and_both_parts(policy: Policy) -> None:
    """A8, against a loop over the entries of a candidate; blind to phases and constants."""
    y = torch.randn(7, 2, 5, 4, generator=seeded(), dtype=C128)
    labels, std = torch.arange(4), 2.0 if isinstance(policy, MaximumEntropy) else 0.1
    got = line_scores(policy, y, labels, std)
    turned = torch.exp(torch.tensor(1.1j, dtype=C128)) * y
    assert torch.allclose(line_scores(policy, turned, labels, std), got, rtol=1e-9)
    assert torch.allclose(line_scores(policy, y + 3 - 2j, labels, std), got, rtol=1e-8)
    assert torch.allclose(line_scores(policy, y.flip(0), labels, std), got, rtol=1e-9)  # A10
    if isinstance(policy, EntrywiseEntropy):
        v = y.real.var(0) / 2 + y.imag.var(0) / 2
        assert torch.allclose((1 + v / 0.01).log().sum((0, 1)), got)
        return
    for a in range(4):
        one = torch.view_as_real(y[..., a]).reshape(7, 1, 1, -1)
        whole = torch.zeros(one.shape[-1], dtype=torch.int64)
        assert float(line_scores(policy, one, whole, std)) == pytest.approx(float(got[a]), rel=1e-9)
        part = line_scores(policy, y.real[..., a].reshape(7, 1, 1, -1), whole[:10], std)
        assert float(part) != pytest.approx(float(got[a]), rel=1e-2)


def test_mixture_against_a_loop() -> None:
    y, s = torch.randn(6, 3, 4, 5, generator=seeded(), dtype=C128), 1.5
    labels = torch.tensor([0, 1, -1, 1, 2])
    got = line_scores(MaximumEntropy(s), y, labels)
    for a in range(3):
        part = y[..., labels == a].flatten(1)
        square = (part[:, None] - part[None]).abs().square().sum(-1)
        want = -(-square / (2 * s * s)).exp().mean(1).log().mean()
        assert float(got[a]) == pytest.approx(float(want), rel=1e-9)


@pytest.mark.parametrize("policy", ALL, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("std", [0.1, 1e-3, 0.0])
@pytest.mark.parametrize("kind", [torch.float32, F64])
def test_degenerate_beliefs(policy: Policy, std: float, kind: torch.dtype) -> None:
    """A11: one particle, equal ones, tiny noise or none: no NaN, no infinity, lowest index."""
    image = 1e3 * torch.randn(1, 1, 1, 6, generator=seeded(), dtype=kind)
    free = torch.zeros(6, dtype=torch.bool)
    for same in (image, image.repeat(7, 1, 1, 1)):
        belief = believed(same, std)
        assert policy(belief, NONE).tolist() == [0] * 6
        assert choose(policy, belief, free, 3)[0].tolist() == [0, 1, 2]
    apart = torch.randn(7, 1, 1, 6, generator=seeded(), dtype=kind)
    apart[..., 4] *= 50
    apart[..., 2] = 1.0
    scores = policy(believed(apart, std), NONE)
    assert bool(scores.isfinite().all())
    assert float(scores[2]) == 0
    if not isinstance(policy, MaximumEntropy):  # which has no more to say than log n
        assert int(scores.argmax()) == 4
    # the exponents of the other sign overflow
    assert not bool(scored(kernel(1), apart.view(7, 6), 1e-3).isfinite().all())


@pytest.mark.parametrize("policy", ALL, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("c", [1e-6, 1e6])
def test_scores_have_units(policy: Policy, c: float) -> None:
    """Entropies do not see the unit of particles and noise; variances are in its square."""
    x = torch.randn(5, 2, 3, 4, 5, generator=seeded())
    std = torch.tensor([0.1, 0.4])
    A = Identity(Space((3, 4, 5)))
    got, want = (policy(believed(f * x, f * std, A, columns(A)), torch.zeros(2, 0).long())
                 for f in (c, 1.0))
    unit = c * c if isinstance(policy, GreedyVariance | PosteriorVariance) else 1
    assert torch.allclose(got / unit, want, rtol=1e-4)


def test_items_stand_alone() -> None:
    x = torch.randn(6, 3, 2, 4, 5, generator=seeded())
    x = x * torch.tensor([1.0, 5, 0.1]).view(3, 1, 1, 1)
    std, A = torch.tensor([0.1, 0.5, 0.02]), Identity(Space((2, 4, 5)))
    for policy in ALL:
        chosen = torch.tensor([[0], [1], [4]])
        whole = policy(believed(x, std, A, columns(A)), chosen)
        assert whole.shape == (3, 5)
        for i in range(3):
            alone = policy(believed(x[:, i], float(std[i]), A, columns(A)), chosen[i])
            assert torch.allclose(whole[i], alone, rtol=1e-4, atol=1e-5)

