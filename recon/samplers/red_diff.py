"""RED-diff: an image pulled by the data and by what a denoiser would change, level by level."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from recon.integrators import Step, schedules
from recon.noise import Source
from recon.operators.base import LinearOperator, Operator
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, scaled
from recon.samplers.problem import check_problem, check_sigmas
from recon.space import Space

Reduction = Literal["noise", "mean", "sum"]
Weighting = Literal["linear", "sqrt", "square", "log", "clip", "power2over3", "const"]
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]

_PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda s: s,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "log": torch.log1p,
    "clip": lambda s: s.clamp(max=1),
    "power2over3": lambda s: s ** (2 / 3),
    "const": torch.ones_like,
}
_BETAS = (0.9, 0.99)
# the release's 1e-8 against gradients of means over 3 x 256 x 256 numbers, about 5e-6
_EPSILON = 2e-3


class RedDiffStep(NamedTuple):
    """The image and Adam's moments of its gradient, which is a pure number."""

    index: int  # type: ignore[assignment]  # levels done; hides tuple.index
    sigma: Tensor  # level to come
    x: Tensor  # mu
    x0: Tensor  # mu as well
    m: Tensor
    v: Tensor


def check_settings(*, steps: int, lr: float, prior_weight: float, data_weight: float,
                   weighting: Weighting, reduction: Reduction | None, cg_iterations: int,
                   sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    if not lr > 0:
        raise ValueError(f"lr wants a number > 0, in units of the prior's scale, got {lr}")
    for name, weight in (("prior_weight", prior_weight), ("data_weight", data_weight)):
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} wants a finite number >= 0, got {weight}")
    if weighting not in _PHI:
        raise ValueError(f"weighting wants one of {sorted(_PHI)}, got {weighting!r}")
    if reduction not in (None, "noise", "mean", "sum"):
        raise ValueError('reduction wants "noise", "mean", "sum", or None for "noise" where '
                         f'noise_std is known and "mean" where it is 0, got {reduction!r}')
    if cg_iterations < 1:
        raise ValueError(f"cg_iterations wants at least 1, got {cg_iterations}")
    check_sigmas(schedules.vp(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def red_diff(y: Tensor, operator: Operator, prior: Prior, *, noise_std: Tensor | float = 0.0,
             samples: int = 1, steps: int = 1000, lr: float = 0.1, prior_weight: float = 0.25,
             data_weight: float = 1.0, weighting: Weighting = "linear",
             reduction: Reduction | None = None, initial: Tensor | None = None,
             cg_iterations: int = 10, sigmas: Tensor | None = None, generator: Source = None,
             start: RedDiffStep | None = None) -> Iterator[RedDiffStep]:
    """RED-diff (Mardani, Song, Kautz, Vahdat, ICLR 2024, arXiv 2305.04391).

    Minimises ``data_weight ||y - A(mu)||^2 / 2 + prior_weight phi(sigma) <eps_hat - eps, mu>`` over
    the image ``mu`` by Adam, one step and one call of the network at each falling level of noise,
    ``mu + sigma eps`` being denoised and ``eps_hat - eps`` held fixed. A search for one good image:
    samples differ by the noise of the search alone and their spread is no uncertainty. Any
    operator, linear or not. Returns ``(samples, *batch, channel, *spatial)``.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``; one number or one per item.
    lr
        Length of Adam's steps, in units of the prior's scale.
    prior_weight, data_weight
        The paper's lambda and v; Adam sees their ratio only.
    weighting
        The paper's phi, of ``sigma`` in units of the prior's scale.
    reduction
        ``"mean"`` is the paper's: means over the numbers of ``y`` and of the image, blind to the
        noise, which it fits; ``"sum"`` takes sums. ``"noise"`` puts the misfit that noise explains
        in place of none, ``(||y - A(mu)|| - sqrt(M) noise_std)^2 / noise_std^2``, so that the
        residual ends near ``noise_std`` in each of the M numbers of ``y`` (``1 / noise_std^2``
        alone would fit the noise all the more: the prior's weight falls to 0 with the level). The
        gradient is damped inside, to none at a perfect fit. None takes ``"noise"`` where
        ``noise_std`` is known and ``"mean"`` where it is 0.
    initial
        First image, broadcast to the samples; by default ``A^+ y`` by ``cg_iterations`` steps of
        conjugate gradients, few since many blow up noise, and for a nonlinear operator the multiple
        of ``J(0)^H (y - A(0))`` that fits best, A taken for affine: 0 where that is, so pass one
        for phase retrieval.
    sigmas
        Noise levels in the units of ``y``'s image, falling to 0, ``(n,)`` or ``(n, *batch)``, in
        place of ``steps``; by default the linear VP levels times ``prior.scale``.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved step to go on from, with the settings and the generator's state it was saved at.

    Departures from the released code: entries of ``y`` that are 0 and that no image reaches (masked
    ones) are not counted, so that gathering and masking agree; Adam's epsilon is relative to the
    item; its second moment is of complex magnitudes, halved, so that a global phase passes through;
    the result is ``mu`` after the last step; no additional noise on ``mu`` (``s0 = 0``).
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples, linear=False)
    check_settings(steps=steps, lr=lr, prior_weight=prior_weight, data_weight=data_weight,
                   weighting=weighting, reduction=reduction, cg_iterations=cg_iterations,
                   sigmas=sigmas)
    if reduction is None:
        reduction = "noise" if bool((noise_std > 0).any()) else "mean"
    if reduction == "noise" and not bool((noise_std > 0).all()):
        raise ValueError('reduction="noise" wants noise_std > 0 for every item: reconstruct items '
                         'without noise apart, by "mean" or "sum"')
    if reduction == "noise" and prior_weight == 0:
        raise ValueError('reduction="noise" wants prior_weight > 0: nothing else says which of the '
                         'images that fit to within the noise is meant')
    if sigmas is None:
        sigmas = scaled(schedules.vp(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=None if start is None else Step(*start[:4]))
    gradient = objective(y, operator, prior, noise_std, prior_weight=prior_weight,
                         data_weight=data_weight, weighting=weighting, reduction=reduction)
    if start is None:
        if initial is None:
            initial = first_image(y, operator, cg_iterations)
        operator.domain.check(initial, "initial")
        mu = initial.to(run.x).expand(run.x.shape)
        m, v = torch.zeros_like(mu), torch.zeros_like(mu.real)
    else:
        mu, m, v = start.x0, start.m, start.v
    step_length = lr * _per_item(prior.scale, mu, run.noise.item_ndim)
    for i in range(run.first, len(run.sigmas) - 1):
        g = gradient(mu, run.sigmas[i], run.noise.like(mu))
        m = _BETAS[0] * m + (1 - _BETAS[0]) * g
        v = _BETAS[1] * v + (1 - _BETAS[1]) * _mean_square(g)
        mu = mu - step_length * direction(m, v, i + 1, run.noise.item_ndim)
        yield RedDiffStep(i + 1, run.sigmas[i + 1], mu, mu, m, v)


def objective(y: Tensor, operator: Operator, prior: Prior, noise_std: Tensor, *,
              prior_weight: float, data_weight: float, weighting: Weighting,
              reduction: Reduction) -> Gradient:
    """``(mu, sigma, eps) -> `` the gradient by ``mu`` in units of the prior's scale, a pure number.

    The regulariser's is ``phi(s) (eps_hat - eps) = phi(s) / s (mu - D(mu + sigma eps)) / scale``
    with ``s = sigma / scale``: one call of the network and no derivative of it.
    """
    item_ndim, y_ndim = len(operator.domain.shape), len(operator.range.shape)
    dims = tuple(range(-y_ndim, 0))
    M, N = numbers_measured(y, operator), _numbers(operator.domain)
    scale = _per_item(prior.scale, y, item_ndim)
    if reduction == "noise":
        weight = data_weight * (scale / _per_item(noise_std, y, item_ndim)).square()
    elif reduction == "mean":
        weight = data_weight * N / _per_item(M, y, item_ndim)
    else:
        weight = torch.full_like(scale, data_weight)
    radius = _per_item(M.sqrt() * noise_std, y, y_ndim)

    def gradient(mu: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
        residual = operator(mu) - y
        if reduction == "noise":
            ratio = torch.linalg.vector_norm(residual, dim=dims, keepdim=True) / radius
            # min(): 1 - 1 / ratio outside; none at 0, where the residual is rounding
            residual = residual * (ratio - 1) * torch.minimum(ratio, 1 / ratio)
        pull = weight * operator.vjp(mu, residual)
        level = _per_item(sigma, mu, item_ndim)
        s = level / scale
        change = mu - prior(mu + level * eps, sigma)
        return (pull + prior_weight * _PHI[weighting](s) / s * change) / scale

    return gradient


def direction(m: Tensor, v: Tensor, steps: int, item_ndim: int) -> Tensor:
    """Adam's, from its moments after ``steps``: about one per real number, whatever the units."""
    m, v = m / (1 - _BETAS[0]**steps), v / (1 - _BETAS[1]**steps)
    typical = v.mean(tuple(range(-item_ndim, 0)), keepdim=True).sqrt()
    length = v.sqrt() + _EPSILON * typical
    return m / torch.where(length > 0, length, 1)  # no gradient at all: m is 0 as well


def first_image(y: Tensor, operator: Operator, cg_iterations: int) -> Tensor:
    """``A^+ y``, or the multiple of ``J(0)^H (y - A(0))`` whose measurements come nearest to ``y``.

    Nearest where the operator is affine, for which it is taken.
    """
    if isinstance(operator, LinearOperator):
        return operator.solve(operator.adjoint(y), 0.0, max_iter=cg_iterations)
    zero = operator.domain.zeros(*operator.range.batch_of(y), device=y.device)
    zero = zero.to(_kind(y, operator))
    background = operator(zero)  # dark counts, which no multiple of an image scales
    left = y - background
    pulled = operator.vjp(zero, left)
    seen = operator(pulled) - background
    dims = tuple(range(-len(operator.range.shape), 0))
    overlap, energy = (seen.conj() * left).real.sum(dims), seen.abs().square().sum(dims)
    factor = torch.where(energy > 0, overlap / torch.where(energy > 0, energy, 1), 0)
    return _per_item(factor, pulled, len(operator.domain.shape)) * pulled


def numbers_measured(y: Tensor, operator: Operator) -> Tensor:
    """Real numbers measured of each item, ``(*batch,)``, at least 1.

    Entries of ``y`` that are 0 and that noise and its negative leave at 0 were not measured.
    """
    generator = torch.Generator().manual_seed(0)
    kind = _kind(y, operator)
    x = operator.domain.randn(generator=generator, dtype=kind).to(y.device)
    x = x.expand(*operator.range.batch_of(y), *x.shape)
    # of an operator that is not linear, one sign alone may give zeros
    seen = (y != 0) | (operator(x) != 0) | (operator(-x) != 0)
    count = seen.sum(tuple(range(-len(operator.range.shape), 0))).clamp(min=1)
    return (2 if operator.range.is_complex else 1) * count.to(y.dtype.to_real())


def _kind(y: Tensor, operator: Operator) -> torch.dtype:
    return y.dtype.to_complex() if operator.domain.is_complex else y.dtype.to_real()


def _numbers(space: Space) -> int:
    return math.prod(space.shape) * (2 if space.is_complex else 1)


def _mean_square(g: Tensor) -> Tensor:
    return g.abs().square() / 2 if g.is_complex() else g.square()


def _per_item(value: Tensor | float, like: Tensor, item_ndim: int) -> Tensor:
    """One number or ``(*batch,)``, shaped to multiply items, in the precision of ``like``."""
    value = torch.as_tensor(value, dtype=like.dtype.to_real(), device=like.device)
    return value.reshape(*value.shape, *(1,) * item_ndim) if value.ndim else value
