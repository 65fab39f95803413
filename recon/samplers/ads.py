"""Active diffusion subsampling: the particles of one reverse diffusion say what to measure next."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recon.acquisition import (
    Belief,
    Candidates,
    Policy,
    PosteriorVariance,
    Selection,
    choose,
    moments,
)
from recon.guidance import check_weights, proximal
from recon.integrators import DDIM, Integrator, Step, schedules
from recon.integrators.base import Denoise
from recon.noise import Source
from recon.operators.base import LinearOperator, Operator
from recon.operators.mri import Covariance, whiten
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, drive, scaled
from recon.samplers.problem import check_problem, check_sigmas

Acquire = Callable[[Selection], Tensor]
Guidance = Callable[[Tensor, Operator, Prior, Tensor], Denoise]


class AdsStep(NamedTuple):
    """What is carried from one noise level to the next: the particles and what is measured."""

    index: int  # type: ignore[assignment]  # levels done; hides tuple.index
    sigma: Tensor
    x: Tensor
    x0: Tensor
    y: Tensor  # (*batch, *operator.range.shape), as acquired, zero where nothing is measured yet
    mask: Tensor  # bool, the same shape
    order: Tensor  # int64 (*batch, acquired), candidates in the order of acquisition
    scores: Tensor  # (*batch, acquired - initial), the policy's score of each when chosen


def check_settings(*, budget: int, steps: int, window: tuple[int, int] | None,
                   cg_iterations: int, gamma: float | None, sigmas: Tensor | None,
                   **_: Any) -> None:
    """Refuse what no measurement could make work."""
    check_weights(gamma, cg_iterations)
    grid = schedules.vp(steps) if sigmas is None else sigmas
    check_sigmas(grid)
    if budget < 1:
        raise ValueError(f"budget wants at least 1 candidate, got {budget}")
    last = len(grid) - 1
    if window is not None and not 0 <= window[0] < window[1] < last:
        raise ValueError(f"window wants steps 0 <= a < b < {last}, so that a level follows every "
                         f"acquisition, got {window}")


@sampler_with(check_settings, joint=True)
def ads(acquire: Acquire, operator: Operator, prior: Prior, *, candidates: Tensor, budget: int,
        initial: Tensor | Sequence[int] = (), batch: tuple[int, ...] = (),
        policy: Policy | None = None, noise_std: Tensor | float | Covariance = 0.0,
        samples: int = 16, steps: int = 50, window: tuple[int, int] | None = None,
        cg_iterations: int = 5,
        gamma: float | None = None, guidance: Guidance | None = None,
        sigmas: Tensor | None = None, integrator: Integrator | None = None,
        generator: Source = None, start: AdsStep | None = None) -> Iterator[AdsStep]:
    """Active diffusion subsampling (Nolan et al., TMLR 2025, arXiv 2406.14388).

    Particles of one reverse diffusion, guided by what is measured so far, predict the measurement;
    at some of its steps a policy chooses from their predictions what is measured next. Returns the
    particles, ``(samples, *batch, channel, *spatial)``; ``ads.run`` the ``AdsStep`` with the
    measurements, their mask, and the candidates in their order as well.

    Results have the precision of what is measured first, that of ``operator.range`` where
    ``initial`` is empty, and the device of ``candidates``.

    Parameters
    ----------
    acquire
        A scanner or what answers for one: from a ``Selection`` to measurements ``(*batch,
        *operator.range.shape)``, of which the entries of ``selection.mask`` are used.
    operator
        The forward model of all candidates, without a mask.
    candidates
        Whole numbers that broadcast to ``operator.range.shape``: what is measured together has one
        number, from 0 on, what never is -1; ``acquisition.columns``, ``pixels``, ``views``.
    budget
        Candidates measured in the end, those of ``initial`` among them.
    initial
        Candidates measured first, ``(k,)`` or ``(*batch, k)``.
    batch
        Items scanned at once, each with choices of its own.
    policy
        Of ``recon.acquisition``, or any function of its form. By default ``PosteriorVariance``, for
        the squared error. The paper's, ``MaximumEntropy``, cannot tell candidates of many numbers
        apart: see there.
    noise_std
        Standard deviation of each real number of the measurement; one number or one per item. Of a
        ``Covariance``, guidance and policy see whitened coils, the step holds them as acquired; a
        candidate is then of all coils.
    window
        Steps ``[a, b)`` over which acquisitions are spread, exactly evenly; the first four fifths
        by default. Where there are more acquisitions than steps, some measure several candidates.
    cg_iterations, gamma
        Of the guidance by default, as in ``dds``.
    guidance
        From ``(y, operator, prior, noise_std)``, the operator masked to what is measured, to a
        guided ``denoise(x, sigma)``; made anew after each acquisition.
    sigmas, start
        As in ``dds``; ``start`` is an ``AdsStep``, and what it holds is not measured again.
    integrator
        By default deterministic DDIM, as in the paper. Reset after each acquisition.
    generator
        One generator, or one per item of the flattened batch, or per sample and item.

    Departures: data consistency by conjugate gradients in place of the gradient of ``||y - A x0||``
    through the network, which the released code takes jointly for all particles; the budget is
    exact, where its rounding takes up to 60 % more; levels fall to 0, where it ends at 0.33.
    """
    policy = PosteriorVariance() if policy is None else policy
    check_settings(budget=budget, steps=steps, window=window, cg_iterations=cg_iterations,
                   gamma=gamma, sigmas=sigmas)
    if not callable(acquire):
        raise TypeError("ads measures as it goes: acquire wants a function of a Selection that "
                        f"returns measurements, got {type(acquire).__name__}")
    if not isinstance(operator, Operator):
        raise TypeError(f"operator wants a recon Operator, got {type(operator).__name__}")
    labelled = Candidates(candidates, operator)
    y = operator.range.zeros(*batch, device=labelled.labels.device)
    linear = guidance is None
    by_coil = labelled.labels
    if isinstance(noise_std, Covariance) and not bool((by_coil == by_coil[:1]).all()):
        raise ValueError("candidates want one label for all coils where noise_std is a Covariance: "
                         "coils that are not measured together can not be whitened")
    white = _whitened(y, operator, noise_std)
    check_problem(white.y, white.operator, prior, white.noise_std, samples=samples, linear=linear)
    first = _initial(initial, batch, labelled, budget)
    gain = _gain(white.operator, labelled, y)
    sigmas = scaled(schedules.vp(steps), prior) if sigmas is None else sigmas
    wanted, last = budget - first.shape[-1], len(sigmas) - 1
    if wanted and last < 2:
        raise ValueError(f"budget and initial leave {wanted} candidates to be measured between "
                         f"steps, of which there is {last}: want 2 or more")
    due = Counter(moments(wanted, default_window(last) if window is None else window))
    if guidance is None:
        guidance = functools.partial(_consistent, gamma=gamma, cg_iterations=cg_iterations)
    if start is None:
        y = _asked(acquire, labelled, first, y) if first.shape[-1] else y
        unscored = torch.empty_like(first[..., :0], dtype=y.dtype.to_real())
        held = Acquired(y, labelled.mask(first), first, unscored)
    else:
        held = Acquired(start.y, start.mask, start.order, start.scores)
        _check_resumed(held, first, due, start.index)

    white = _whitened(held.y, operator, noise_std)
    std = check_problem(white.y, white.operator, prior, white.noise_std, linear=linear)
    run = begin(held.y, batch, operator.domain, sigmas, samples=samples, generator=generator,
                start=start and Step(*start[:4]))
    integrator = DDIM() if integrator is None else integrator
    while run.first < len(run.sigmas) - 1:
        white = _whitened(held.y, operator, noise_std)
        guided = guidance(white.y, white.operator.masked(held.mask), prior, std)
        for step in drive(run, guided, integrator):
            k = due[step.index - 1]
            if k:
                belief = Belief(step.x0, white.operator, labelled, noise_std=std, noise=run.noise,
                                unresolved=gain * run.sigmas[step.index - 1])
                chosen, scores = choose(policy, belief, labelled.taken(held.order), k)
                held = held.joined(_asked(acquire, labelled, chosen, held.y), labelled.mask(chosen),
                                   chosen, scores)
            run = run._replace(x=step.x, first=step.index)
            yield AdsStep(*step, *held)
            if k:
                break  # to another guidance; a new drive resets the integrator


class Acquired(NamedTuple):
    """What is measured so far: the last four fields of ``AdsStep``."""

    y: Tensor
    mask: Tensor
    order: Tensor
    scores: Tensor

    def joined(self, y: Tensor, mask: Tensor, chosen: Tensor, scores: Tensor) -> "Acquired":
        return Acquired(torch.where(mask, y.to(self.y), self.y), self.mask | mask,
                        torch.cat([self.order, chosen], -1),
                        torch.cat([self.scores, scores.to(self.scores)], -1))


class White(NamedTuple):
    """What guidance and policy see."""

    y: Tensor
    operator: Operator
    noise_std: Tensor | float


def _whitened(y: Tensor, operator: Operator, noise_std: Tensor | float | Covariance) -> White:
    """The coils mixed so that their noise is white, where a ``Covariance`` says that it is not."""
    if isinstance(noise_std, Covariance):
        return White(*whiten(y, operator, noise_std))
    return White(y, operator, noise_std)


def default_window(steps: int) -> tuple[int, int]:
    """The first four fifths of the steps, and at least one step."""
    return 0, max(1, min(steps - 1, 4 * steps // 5))


def _consistent(y: Tensor, operator: Operator, prior: Prior, noise_std: Tensor, *,
                gamma: float | None, cg_iterations: int) -> Denoise:
    """DDS's prediction: denoised, then moved towards the data."""
    assert isinstance(operator, LinearOperator)  # checked with the problem
    move = proximal(y, operator, noise_std, gamma=gamma, cg_iterations=cg_iterations)
    return lambda x, sigma: move(prior(x, sigma), sigma)


def _asked(acquire: Acquire, labelled: Candidates, chosen: Tensor, y: Tensor) -> Tensor:
    """What ``acquire`` returns for the chosen candidates, zero elsewhere."""
    now = labelled.mask(chosen)
    found = acquire(Selection(chosen, now))
    if not isinstance(found, Tensor) or found.shape != now.shape \
            or found.is_complex() != y.is_complex() \
            or not (found.is_complex() or found.is_floating_point()):
        got = (f"{tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor)
               else type(found).__name__)
        kind = "complex" if y.is_complex() else "real"
        raise ValueError(f"acquire wants to return {kind} measurements {tuple(now.shape)}, of "
                         f"which those of selection.mask are used, got {got}")
    found = found.to(now.device)
    wrong = now & ~torch.isfinite(found)
    if bool(wrong.any()):
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(f"acquire returned NaN or infinity at {at}, which was asked for: mend it "
                         "or measure again")
    return torch.where(now, found, 0)


def _initial(initial: Tensor | Sequence[int], batch: tuple[int, ...], labelled: Candidates,
             budget: int) -> Tensor:
    """The first candidates, ``(*batch, k)``."""
    first = torch.as_tensor(initial, device=labelled.labels.device)
    if not first.numel():
        first = first.new_empty(*batch, 0, dtype=torch.int64)
    if first.is_floating_point() or first.is_complex():
        raise TypeError(f"initial wants whole numbers of candidates, got {first.dtype}")
    first = first.long()
    try:
        first = first.expand(*batch, first.shape[-1] if first.ndim else 1)
    except RuntimeError:
        raise ValueError(f"initial wants candidates (k,) or (*batch, k) for the batch {batch}, got "
                         f"{tuple(first.shape)}") from None
    k = first.shape[-1]
    if k and not bool(((first >= 0) & (first < labelled.count)).all()):
        raise ValueError(f"initial wants candidates 0 to {labelled.count - 1}, got "
                         f"{int(first.min())} to {int(first.max())}")
    if not bool((labelled.taken(first).sum(-1) == k).all()):
        raise ValueError("initial names a candidate twice")
    if not max(k, 1) <= budget <= labelled.count:
        raise ValueError(f"budget counts the {k} initial candidates too and wants at most the "
                         f"{labelled.count} that there are, got {budget}")
    return first


def _gain(operator: Operator, labelled: Candidates, y: Tensor) -> Tensor:
    """How much larger than white noise in the image it is in the measurement, per real number.

    Less what is measured of an empty image. One number per item, over all that is labelled. Refuses
    candidates that the operator does not measure: it must not hold a mask.
    """
    generator = torch.Generator(y.device).manual_seed(0)
    batch, image = operator.range.batch_of(y), operator.domain.shape
    x = operator.domain.randn(4, generator=generator, device=y.device)
    # the same images for every item; both signs, as one of them alone may be clipped away
    x = torch.cat([x, -x]).view(8, *(1,) * len(batch), *image).expand(8, *batch, *image)
    x = x.contiguous()  # as samplers pass images: users' operators may view them
    gap = operator(x) - operator(torch.zeros_like(x[0]))
    power = labelled.sums(gap.abs().square().mean(0))
    if not bool((power > 0).all()):
        at = int((power == 0).nonzero()[0, -1])
        raise ValueError(f"the operator measures nothing at candidate {at}: pass the forward model "
                         "of all candidates, without a mask, and label -1 what can not be measured")
    parts = 2 if y.is_complex() else 1
    return (power.sum(-1) / (parts * int((labelled.labels >= 0).sum()))).sqrt()


def _check_resumed(held: Acquired, first: Tensor, due: Counter[int], index: int) -> None:
    """Refuse a saved step of another plan of acquisition."""
    wanted = first.shape[-1] + sum(n for step, n in due.items() if step < index)
    if held.order.shape[-1] != wanted or not torch.equal(held.order[..., : first.shape[-1]], first):
        raise ValueError(f"start holds the candidates {held.order.tolist()}, these settings have "
                         f"{wanted} after {index} steps, the first {first.tolist()}: pass the "
                         "initial, budget and window it was saved with")
