"""What particles believe of the measurement, and policies that choose what to measure next.

Which one: in ``tests/samplers/test_ads.py`` all but ``MaximumEntropy`` find at least 90 % of the
best columns of a stationary Gaussian, and leave less than half of the error of the best fixed mask
where images are of two kinds. ``MaximumEntropy``, with the noise as its kernel, scores log n for
all columns and does worse than that fixed mask: it is for candidates of one or a few numbers.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recon.acquisition.candidates import Candidates
from recon.noise import Noise
from recon.operators.base import Operator


class Belief:
    """What particles say of the measurement.

    ``predicted``, ``(n, *batch, *range.shape)``, is ``A x0``, of the particles' predictions of the
    clean image. ``noise_std``, of one real number of the measurement, and ``unresolved``, the same
    for the noise that was in the particles when ``x0`` was predicted, measured by ``A``, are one
    number or ``(*batch,)``. ``noise`` is where a policy that draws takes its numbers from.
    ``predicted`` and ``grams`` are computed where a policy asks for them.
    """

    def __init__(self, x0: Tensor, operator: Operator, candidates: Candidates, *,
                 noise_std: Tensor, unresolved: Tensor, noise: Noise) -> None:
        self.x0, self.operator, self.candidates = x0, operator, candidates
        self.noise_std, self.unresolved, self.noise = noise_std, unresolved, noise

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.x0.shape[1 : self.x0.ndim - len(self.operator.domain.shape)])

    @functools.cached_property
    def predicted(self) -> Tensor:
        return self.operator(self.x0)

    @functools.cached_property
    def variance(self) -> Tensor:
        """Of one real number of each entry over the particles, ``(*batch, *range.shape)``."""
        gap = self.predicted - self.predicted[:1]
        parts = 2 if gap.is_complex() else 1
        return (gap - gap.mean(0)).abs().square().sum(0) / (parts * max(1, len(gap) - 1))

    @functools.cached_property
    def grams(self) -> Tensor:
        """``G[..., a, i, j] = Re <d_i, d_j>`` over candidate a, ``(*batch, count, n, n)``.

        ``d_i`` is what particle i predicts, less what the first predicts. Squared distances and
        covariances of any set of candidates follow from the sum of their ``G``.
        """
        return self.candidates.grams(self.predicted - self.predicted[:1])

    def joined(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """``G`` of the chosen ones together, ``(*batch, 1, n, n)``, and of them with each other."""
        index = chosen[..., None, None].expand(*chosen.shape, *self.grams.shape[-2:])
        held = self.grams.gather(-3, index).sum(-3, keepdim=True)
        return held, held + self.grams


class Policy(Protocol):
    """Scores of the candidates; the highest is measured next."""

    def __call__(self, belief: Belief, chosen: Tensor) -> Tensor:
        """``(*batch, count)``. ``chosen``, ``(*batch, k)``, are those that will be measured in the
        same acquisition; -inf forbids a candidate.
        """


@dataclass(frozen=True)
class MaximumEntropy:
    """Entropy of a mixture of one Gaussian per particle, to zeroth order, over whole candidates.

    ``H_a = -1/n sum_i log 1/n sum_j exp(-||yhat_a[i] - yhat_a[j]||^2 / (2 s^2))``, between 0 (all
    agree) and log n (all apart). ADS (Nolan et al., TMLR 2025, arXiv 2406.14388), with the sign of
    the paper; that of the released code is the opposite and ranks by variance. The score is the
    gain over what is chosen in the same acquisition.

    Once all particles lie several s apart, every candidate scores log n and the lowest index wins,
    with a warning: a candidate of m numbers needs s of about sqrt(m) times the spread of one.

    Parameters
    ----------
    kernel_std
        ``s``, in the units of the measurement; None for its ``noise_std``.
    """

    kernel_std: float | None = None

    def __call__(self, belief: Belief, chosen: Tensor) -> Tensor:
        s = belief.noise_std if self.kernel_std is None else torch.as_tensor(self.kernel_std)
        s = s.to(belief.grams)[..., None, None, None]
        held, joint = belief.joined(chosen)
        scores = _mixture_entropy(joint, s)
        most = math.log(len(belief.x0))
        if most and bool(((scores > 0.999 * most).double().mean(-1) > 0.5).any()):
            warnings.warn("MaximumEntropy cannot tell candidates apart: more than half of them "
                          "score log(samples), and the lowest index wins; pass a larger kernel_std "
                          "or take PosteriorVariance or GaussianEntropy", stacklevel=2)
        return scores - _mixture_entropy(held, s)


def _mixture_entropy(gram: Tensor, s: Tensor) -> Tensor:
    own = gram.diagonal(dim1=-2, dim2=-1)
    square = (own[..., :, None] + own[..., None, :] - 2 * gram).clamp(min=0)
    square = square - torch.diag_embed(square.diagonal(dim1=-2, dim2=-1))  # rounding
    exponent = torch.where(square > 0, -square / (2 * s.square()), 0)
    return math.log(gram.shape[-1]) - exponent.logsumexp(-1).mean(-1)


@dataclass(frozen=True)
class GaussianEntropy:
    """``1/2 log det(I + C_a / s^2)``, C_a the particles' covariance of the whole candidate.

    The information that a candidate brings where the belief is Gaussian; the score is the gain
    over what is chosen in the same acquisition. ``n`` particles vary in ``n - 1`` directions, so
    that a candidate of more numbers than that is known by those alone.

    Parameters
    ----------
    noise_std
        ``s``, in the units of the measurement; None for its own. Where it is less than what
        rounding leaves of the widest candidate, that.
    """

    noise_std: float | None = None

    def __call__(self, belief: Belief, chosen: Tensor) -> Tensor:
        n, rounding = len(belief.x0), torch.finfo(belief.grams.dtype).eps
        held, joint = (_centred(g.double()) / max(1, n - 1) for g in belief.joined(chosen))
        widest = joint.diagonal(dim1=-2, dim2=-1).sum(-1).amax(-1)
        variance = _noise_variance(belief, self.noise_std, n * rounding * widest)
        eye, shaped = torch.eye(n).to(joint), variance[..., None, None, None]
        joint_log, held_log = (torch.linalg.cholesky(eye + c / shaped)
                               .diagonal(dim1=-2, dim2=-1).log().sum(-1) for c in (joint, held))
        return joint_log - held_log


@dataclass(frozen=True)
class EntrywiseEntropy:
    """``1/2 sum_(e in a) log(1 + v_e / s^2)``, v_e the particles' variance of one real number.

    The information that a candidate would bring were its entries independent; of a complex entry
    both parts are given the mean of their variances.

    Parameters
    ----------
    noise_std
        ``s``, in the units of the measurement; None for its own. Where it is less than what
        rounding leaves of the widest entry, that.
    """

    noise_std: float | None = None

    def __call__(self, belief: Belief, chosen: Tensor) -> Tensor:  # noqa: ARG002 adds nothing
        v, item_ndim = belief.variance, len(belief.operator.range.shape)
        rounding = torch.finfo(v.dtype).eps * v.flatten(-item_ndim).amax(-1)
        variance = _noise_variance(belief, self.noise_std, rounding)
        ratio = v / variance.reshape(*variance.shape, *(1,) * item_ndim)
        return _parts(belief) / 2 * belief.candidates.sums(torch.log1p(ratio))


def _noise_variance(belief: Belief, noise_std: float | None, least: Tensor) -> Tensor:
    """``s^2``, ``(*batch,)``, at least ``least``; 1 where both are 0 and nothing varies."""
    s = belief.noise_std if noise_std is None else torch.as_tensor(noise_std)
    variance = torch.maximum(s.to(least).square(), least)
    return torch.where(variance > 0, variance, 1)


def _centred(gram: Tensor) -> Tensor:
    """``G`` of deviations from the mean."""
    row = gram.mean(-1, keepdim=True)
    return gram - row - row.mT + row.mean(-2, keepdim=True)


@dataclass(frozen=True)
class GreedyVariance:
    """The particles' variance, summed over the entries of a candidate."""

    def __call__(self, belief: Belief, chosen: Tensor) -> Tensor:  # noqa: ARG002 adds nothing
        return _parts(belief) * belief.candidates.sums(belief.variance)


@dataclass(frozen=True)
class PosteriorVariance:
    """``sum_(e in a) (v_e + sqrt(v_e^2 + 4 v_e t^2)) / 2``, the variance that x0 has, not D(x).

    What particles predict is an expectation: an entry of variance P under noise of variance t^2 is
    predicted with the variance ``v = P^2 / (P + t^2)`` only, so that early predictions differ in
    the widest entries alone. The score is the sum of P, exact for independent Gaussian entries: the
    squared error that measuring them prevents. t is ``belief.unresolved``. Ours, not the paper's.

    Where t is far above all deviations and entries hang together closely, as in a sinogram at the
    first levels, this ranks by the sum of deviations: begin the window later there.
    """

    def __call__(self, belief: Belief, chosen: Tensor) -> Tensor:  # noqa: ARG002 adds nothing
        v = belief.variance
        t = belief.unresolved.to(v)
        t = t.reshape(*t.shape, *(1,) * len(belief.operator.range.shape))
        # v outside of the root: its square leaves the range of single precision
        whole = v.sqrt() * (v.sqrt() + (v + 4 * t.square()).sqrt()) / 2
        return _parts(belief) * belief.candidates.sums(whole)


def _parts(belief: Belief) -> int:
    return 2 if belief.operator.range.is_complex else 1


@dataclass(frozen=True)
class Random:
    """Any candidate, with equal chances."""

    def __call__(self, belief: Belief, chosen: Tensor) -> Tensor:  # noqa: ARG002 none is better
        like = torch.empty(len(belief.x0), *belief.batch, belief.candidates.count,
                           dtype=belief.x0.dtype.to_real(), device=belief.x0.device)
        return Noise(belief.noise.source, 1, 1).like(like)[0]


@dataclass(frozen=True)
class Fixed:
    """Candidates in a given order, whatever the particles say; those not listed are forbidden."""

    order: Sequence[int]

    def __call__(self, belief: Belief, chosen: Tensor) -> Tensor:  # noqa: ARG002 order is given
        count, order = belief.candidates.count, [int(a) for a in self.order]
        if len(set(order)) < len(order) or not all(0 <= a < count for a in order):
            raise ValueError(f"Fixed wants different candidates of 0 to {count - 1}, got {order}")
        scores = torch.full((count,), -math.inf)
        scores[order] = -torch.arange(len(order), dtype=scores.dtype)
        return scores.to(belief.x0.device).expand(*belief.batch, -1)


def choose(policy: Policy, belief: Belief, taken: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` next candidates of each item and their scores, both ``(*batch, k)``.

    One after the other, each scored with those before it: of equal ones the lowest index. ``taken``
    is bool ``(*batch, count)``. ValueError where a policy leaves no candidate, or scores NaN.
    """
    chosen = torch.empty(*taken.shape[:-1], 0, dtype=torch.int64, device=taken.device)
    scores = []
    for _ in range(k):
        found = policy(belief, chosen)
        if found.shape != taken.shape:
            raise ValueError(f"the policy wants scores {tuple(taken.shape)}, one per candidate, "
                             f"got {tuple(found.shape)}")
        found = torch.where(taken, -math.inf, found)
        best = found.argmax(-1, keepdim=True)
        scores.append(found.gather(-1, best))
        if not bool((scores[-1] > -math.inf).all()):  # NaN is not
            raise ValueError(f"{policy} leaves no candidate that is not measured yet, or scores "
                             "NaN: want finite scores for more candidates than the budget")
        taken = taken.scatter(-1, best, True)
        chosen = torch.cat([chosen, best], -1)
    return chosen, torch.cat(scores, -1)
