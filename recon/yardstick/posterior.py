"""Measuring any sampler against a posterior that is known exactly."""

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon.noise import per_draw
from recon.operators import LinearOperator
from recon.priors import Gaussian, GaussianMixture, Prior
from recon.progress import Bar
from recon.reconstruct import is_classical
from recon.samplers import Sampler
from recon.yardstick.distances import (
    Law,
    Line,
    directions,
    in_reals,
    law_of,
    moments,
    on_lines,
    total_variation,
    uniformity,
    wasserstein2,
)
from recon.yardstick.problems import Problem

LINES = 32  # directions of the sliced distance
FUNCTIONALS = 4  # of these, the ones whose ranks are tested
RANKED = 19  # draws a rank is taken among: 20 values
PARTICLES = 128  # draws asked for in calibration where they may depend on each other
FLOOR_RUNS = 128
_NUMBERS = 1 << 24  # of images or measurements in one call


class Measures(NamedTuple):
    """How far draws are from the posterior; see ``evaluate_posterior``."""

    mean_error: float
    covariance_error: float
    variance_ratio: float
    mode_tv: float  # NaN where there is one mode
    sliced_w2: float
    misfit: float


@dataclass(frozen=True, eq=False)
class PosteriorReport:
    """What ``evaluate_posterior`` found, and the ``floor``: the same of as many exact draws."""

    problem: str
    sampler: str
    samples: int
    seeds: int
    settings: dict[str, Any]
    weighted: bool
    found: Measures
    floor: Measures
    network_calls: float
    network_backward: float
    operator_calls: float
    seconds: float
    ranks: Tensor | None = field(default=None, repr=False)
    calibration_p: float = math.nan
    fresh_misfit: float = math.nan
    fresh_misfit_error: float = math.nan

    @property
    def sliced_w2_ratio(self) -> float:
        """The sliced distance in units of that of exact draws: 1 is perfect."""
        return self.found.sliced_w2 / self.floor.sliced_w2


def evaluate_posterior(sampler: Callable[..., Any], problem: Problem, *, samples: int = 1024,
                       seeds: int = 8, calibration: int = 200, batched: bool | None = None,
                       settings: Mapping[str, Any] | None = None,
                       progress: bool = False) -> PosteriorReport:
    """Measure draws of a sampler against the exact posterior of a closed-form problem.

    Any function ``sampler(y, operator, prior, *, noise_std, samples, generator, **settings)`` that
    returns ``(samples, *batch, *operator.domain.shape)`` can be measured. A sampler of
    ``recon.samplers`` whose last step holds ``log_weights`` is measured by its weighted ensemble,
    ``x`` with these.

    ``found`` and ``floor``, the same of ``samples`` exact draws, averaged over up to 128 runs:

    - ``mean_error``: ``||mean - m|| / sqrt(tr C)``, root mean square over seeds; exact draws have
      ``1 / sqrt(samples)``
    - ``covariance_error``: ``||cov - C||_F / ||C||_F``, root mean square over seeds
    - ``variance_ratio``: ``tr cov / tr C``, mean over seeds
    - ``mode_tv``: total variation between mode weights, draws shared out by responsibility
    - ``sliced_w2``: root mean square 2-Wasserstein distance along 32 fixed directions, in units of
      the image, mean over seeds
    - ``misfit``: mean of ``||y - A x||^2 / (m noise_std^2)``; in ``floor`` the exact expectation

    Calibration: for fresh pairs ``(x0, y)`` the rank of ``<u, x0>`` among 19 draws given ``y`` is
    uniform on 0..19 (Talts et al. 2018, arXiv 1804.06788). ``calibration_p`` is the least of the
    chi-square p values of four fixed directions, times four; ``fresh_misfit`` the misfit averaged
    over these pairs, whose expectation is exactly 1, with its standard error. Draws of the prior
    pass the test of ranks, and only that.

    Calls of the network (items forward; items backward, by automatic differentiation) and of the
    operator (``A`` or ``A^H``; closed-form solves count none) are per draw, of the runs on
    ``problem.y`` alone. ``seconds`` is the processor time of all of these.

    Parameters
    ----------
    seeds
        Independent runs on ``problem.y``.
    calibration
        Fresh pairs, at least 10 (100 for twenty bins); 0 leaves this part out. Samplers whose draws
        may depend on each other (all but independent ones of ``recon``) make up to 128 a pair, of
        which 19 are picked at random.
    batched
        Whether the sampler takes a batch of ``y`` with a list of one generator per item, and treats
        items separately; then seeds and pairs run as one batch. By default samplers of ``recon``
        do, and any other function gets one ``y`` without batch and one ``torch.Generator`` a call.
    """
    name = getattr(sampler, "__name__", type(sampler).__name__)
    settings = dict(settings or {})
    _check(sampler, name, samples, seeds, calibration)
    if batched is None:
        batched = isinstance(sampler, Sampler)
    calls = _Calls()
    run = _Runs(sampler, name, problem, settings, batched, calls)
    independent = isinstance(sampler, Sampler) and not sampler.joint
    asked = RANKED if independent else max(RANKED, min(samples, PARTICLES))
    total = run.pieces(seeds, samples) + run.pieces(calibration, asked)
    with Bar(progress, total, name) as advance:
        began = time.process_time()
        y = problem.y.expand(seeds, *problem.y.shape).clone()
        drawn = _joined(list(run(y, samples, 0, advance)))
        seconds = time.process_time() - began
        counted = copy.copy(calls)
        found = _measures(drawn, problem)
        ranks, fresh, error = None, math.nan, math.nan
        if calibration:
            ranks, misfits = _calibrate(run, problem, calibration, asked, advance)
            fresh = float(misfits.mean())
            error = float(misfits.std()) / math.sqrt(calibration)
    p = math.nan if ranks is None else min(
        1.0, FUNCTIONALS * float(uniformity(ranks, RANKED).min()))
    draws = samples * seeds
    return PosteriorReport(
        problem=problem.name, sampler=name, samples=samples, seeds=seeds, settings=settings,
        weighted=drawn.weights is not None, found=found, floor=floor(problem, samples),
        network_calls=counted.network / draws, network_backward=counted.backward / draws,
        operator_calls=counted.operator / draws, seconds=seconds, ranks=ranks, calibration_p=p,
        fresh_misfit=fresh, fresh_misfit_error=error)


def _check(sampler: Callable[..., Any], name: str, samples: int, seeds: int,
           calibration: int) -> None:
    if not callable(sampler):
        raise TypeError(f"sampler wants a function of (y, operator, prior, ...), got {name}")
    if isinstance(sampler, Sampler) and is_classical(sampler):
        raise TypeError(f"{name} has one answer and no draws: there is no posterior to measure")
    if samples < 2 or seeds < 1:
        raise ValueError(f"want at least 2 samples and 1 seed, got {samples} and {seeds}")
    if calibration != 0 and calibration < 10:
        raise ValueError(f"calibration wants at least 10 fresh pairs, or 0 to leave it out, got "
                         f"{calibration}")


class _Drawn(NamedTuple):
    x: Tensor  # (samples, items, *domain)
    weights: Tensor | None  # (samples, items), float64, sum to one over samples


@dataclass
class _Calls:
    network: int = 0
    backward: int = 0
    operator: int = 0


class _Runs:
    """Calls of one sampler on batches of measurements of one problem, checked and counted."""

    def __init__(self, sampler: Callable[..., Any], name: str, problem: Problem,
                 settings: dict[str, Any], batched: bool, calls: _Calls) -> None:
        self.sampler, self.name, self.problem, self.settings = sampler, name, problem, settings
        self.batched = batched
        self.prior = _CountingPrior(problem.prior, calls)
        self.operator = _counting(problem.operator, calls)

    def __call__(self, y: Tensor, samples: int, seed: int,
                 advance: Callable[[], None]) -> Iterator[_Drawn]:
        """Draws for every item of ``y``, a piece of the items at a time."""
        sources, size = per_draw(seed, range(1), range(len(y))), self._at_once(samples)
        for i in range(0, len(y), size):
            if self.batched:
                yield self._once(y[i : i + size], samples, sources[i : i + size])
            else:
                x, weights = self._once(y[i], samples, sources[i])
                yield _Drawn(x[:, None], None if weights is None else weights[:, None])
            advance()

    def pieces(self, items: int, samples: int) -> int:
        return -(-items // self._at_once(samples))

    def _at_once(self, samples: int) -> int:
        spaces = (self.problem.operator.domain.shape, self.problem.operator.range.shape)
        return max(1, _NUMBERS // (samples * max(map(math.prod, spaces)))) if self.batched else 1

    def _once(self, y: Tensor, samples: int, generator: Any) -> _Drawn:
        given = {"noise_std": self.problem.noise_std, "samples": samples, "generator": generator}
        # a copy of y, for a sampler may write into it and misfits are of what was measured
        arguments = (y.clone(), self.operator, self.prior)
        if not isinstance(self.sampler, Sampler):
            x, logs = self.sampler(*arguments, **given, **self.settings), None
        else:
            last = self.sampler.run(*arguments, **given, **self.settings)
            logs = getattr(last, "log_weights", None)
            x = last.x0 if logs is None else last.x  # x0 are equally weighted draws of these
        batch = y.shape[: y.ndim - self.problem.y.ndim]
        self._check(x, (samples, *batch, *self.problem.operator.domain.shape))
        weights = None if logs is None else logs.detach().double().softmax(0)
        if weights is not None and not bool(torch.isfinite(weights).all()):
            raise ValueError(f"{self.name} returned weights that are not finite")
        return _Drawn(x.detach(), weights)

    def _check(self, x: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"{self.name} returned {type(x).__name__}: want a tensor of draws "
                            f"{shape}, (samples, *batch, channel, *spatial)")
        if tuple(x.shape) != shape:
            raise ValueError(f"{self.name} returned {tuple(x.shape)}: want (samples, *batch, "
                             f"channel, *spatial), here {shape}")
        if x.is_complex() != self.problem.prior.is_complex or not (
                x.is_floating_point() or x.is_complex()):
            kind = "complex" if self.problem.prior.is_complex else "real"
            raise TypeError(f"{self.name} returned {x.dtype}: want {kind} floating draws")
        bad = ~torch.isfinite(x).flatten(-len(self.problem.operator.domain.shape)).all(-1)
        if bool(bad.any()):
            raise ValueError(f"{self.name}: {int(bad.sum())} of {bad.numel()} draws hold NaN or "
                             "infinity")


def _joined(pieces: list[_Drawn]) -> _Drawn:
    weights = [piece.weights for piece in pieces if piece.weights is not None]
    return _Drawn(torch.cat([piece.x for piece in pieces], 1),
                  torch.cat(weights, 1) if weights else None)


class _Exact(NamedTuple):
    posterior: Gaussian | GaussianMixture
    law: Law
    along: Tensor
    line: Line
    misfit: float


@functools.lru_cache(maxsize=4)
def _exact(problem: Problem) -> _Exact:
    posterior = problem.posterior()
    law = law_of(posterior)
    along = directions(law.means.shape[-1], LINES)
    return _Exact(posterior, law, along, on_lines(law, along), _exact_misfit(problem, posterior))


def _exact_misfit(problem: Problem, posterior: Gaussian | GaussianMixture) -> float:
    """``E ||y - A x||^2 / (m noise_std^2)`` under the posterior."""
    weights, means, values, basis = (
        (posterior.weights, posterior.means, posterior.eigenvalues, posterior.basis)
        if isinstance(posterior, GaussianMixture) else
        (torch.ones(1), posterior.mean[None], posterior.eigenvalues[None], posterior.basis[None]))
    y = problem.y.to(torch.complex128 if problem.y.is_complex() else torch.float64)
    roots = (basis * values.sqrt().unsqueeze(-2)).mT.reshape(len(means), -1, *means.shape[1:])
    parts = 2 if problem.prior.is_complex else 1  # deviations are per real number
    spread = torch.stack([problem.misfit(root, 0 * y).sum() for root in roots])
    return float(weights.double() @ (problem.misfit(means, y) + parts * spread))


@functools.lru_cache(maxsize=8)
def floor(problem: Problem, samples: int) -> Measures:
    """The measures of exact draws, over 128 runs or what fits: what none can beat but by chance."""
    exact = _exact(problem)
    runs = min(FLOOR_RUNS, max(8, _NUMBERS // (samples * exact.law.means.numel())))
    x = exact.posterior.sample(samples * runs, torch.Generator().manual_seed(1))
    found = _measures(_Drawn(x.view(samples, runs, *x.shape[1:]), None), problem)
    return found._replace(misfit=exact.misfit)


def _measures(drawn: _Drawn, problem: Problem) -> Measures:
    exact = _exact(problem)
    samples, seeds = drawn.x.shape[:2]
    item_ndim = problem.prior.item_ndim
    x = in_reals(drawn.x, item_ndim).movedim(1, 0)  # (seeds, samples, d)
    equal = torch.full((seeds, samples), 1 / samples, dtype=torch.float64)
    weights = equal if drawn.weights is None else drawn.weights.mT
    m, C = exact.law.mean, exact.law.covariance
    mean_errors, covariance_errors, ratios = [], [], []
    for one, w in zip(x, weights, strict=True):
        mean, covariance = moments(one, w)
        mean_errors.append((mean - m).square().sum() / C.trace())
        covariance_errors.append((covariance - C).square().sum() / C.square().sum())
        ratios.append(covariance.trace() / C.trace())
    tv = math.nan
    if isinstance(exact.posterior, GaussianMixture):
        flat = drawn.x.movedim(1, 0).flatten(0, 1).to(exact.posterior.means.dtype)
        shares = exact.posterior.responsibilities(flat, 0.0).view(seeds, samples, -1)
        found = (weights[..., None] * shares).sum(1)
        tv = float(total_variation(found, exact.posterior.weights).mean())
    squares = wasserstein2(exact.along @ x.mT, None if drawn.weights is None else weights,
                           exact.line)
    misfit = (problem.misfit(drawn.x.movedim(1, 0), problem.y) * weights).sum(1).mean()
    return Measures(
        mean_error=_rms(mean_errors), covariance_error=_rms(covariance_errors),
        variance_ratio=float(torch.stack(ratios).mean()), mode_tv=tv,
        sliced_w2=float(squares.mean(-1).sqrt().mean()), misfit=float(misfit))


def _rms(squares: list[Tensor]) -> float:
    return float(torch.stack(squares).mean().sqrt())


def _calibrate(run: _Runs, problem: Problem, pairs: int, asked: int,
               advance: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """Ranks ``(pairs, functionals)`` of the truth among draws, and misfits ``(pairs,)``."""
    generator = torch.Generator().manual_seed(2)
    x0, y = problem.draw(pairs, generator)
    item_ndim = problem.prior.item_ndim
    truth = in_reals(x0, item_ndim)
    along = directions(truth.shape[-1], LINES)[:FUNCTIONALS]
    ranks, misfits, first = [], [], 0
    for x, weights in run(y, asked, 1, advance):
        items = slice(first, first + x.shape[1])
        first = items.stop
        w = torch.ones(x.shape[:2], dtype=torch.float64) if weights is None else weights
        misfits.append((problem.misfit(x, y[items]) * w).sum(0) / w.sum(0))
        # equal weights: a random choice; else draws from what the weights stand for
        kept = torch.multinomial(w.mT, RANKED, replacement=weights is not None, generator=generator)
        along_lines = in_reals(x, item_ndim).movedim(1, 0) @ along.mT  # (items, asked, functionals)
        picked = along_lines.gather(1, kept[..., None].expand(-1, -1, FUNCTIONALS))
        ranks.append((picked < (truth[items] @ along.mT)[:, None]).sum(1))
    return torch.cat(ranks), torch.cat(misfits).double()


class _CountingPrior(Prior):
    """A prior that counts the items it denoises, and those differentiated."""

    def __init__(self, of: Prior, calls: _Calls) -> None:
        super().__init__(channels=of.channels, is_complex=of.is_complex, space=of.space,
                         spatial_ndim=of.spatial_ndim, sigma_min=of.sigma_min,
                         sigma_max=of.sigma_max, normalised=of.normalised)
        self.of, self.calls = of, calls

    @property
    def scale(self) -> Tensor | float:
        return self.of.scale

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        items = x.shape[: x.ndim - self.item_ndim].numel()
        self.calls.network += items
        x0 = self.of(x, sigma)
        if x0.requires_grad:
            x0.register_hook(functools.partial(self._backward, items))  # type: ignore[no-untyped-call]
        return x0

    def _backward(self, items: int, _: Tensor) -> None:
        self.calls.backward += items


def _counting(operator: LinearOperator, calls: _Calls) -> LinearOperator:
    """The same operator, of the same class, counting the items it is applied to."""
    counted = copy.copy(operator)
    inside = False

    def counting(method: Callable[..., Tensor], space_ndim: int,
                 each: int) -> Callable[..., Tensor]:
        @functools.wraps(method)
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal inside
            outermost, inside = not inside, True
            try:
                if outermost:
                    calls.operator += each * x.shape[: x.ndim - space_ndim].numel()
                return method(x, *args, **kwargs)
            finally:
                inside = not outermost
        return call

    to, back = len(operator.domain.shape), len(operator.range.shape)
    vars(counted).update(forward=counting(counted.forward, to, 1),
                         adjoint=counting(counted.adjoint, back, 1),
                         normal=counting(counted.normal, to, 2))
    return counted
