"""DAPS: at every level a whole trajectory to a clean image, a draw around it, and noise again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from recon.integrators import Step, schedules
from recon.noise import Noise, Source
from recon.operators.base import LinearOperator, Operator
from recon.operators.norm import squared_norm
from recon.priors import Prior
from recon.samplers.base import sampler_with
from recon.samplers.levels import begin, scaled
from recon.samplers.problem import check_problem, check_sigmas

_RHO = 7.0  # Karras et al. 2022, of the trajectory's levels
_SLOWEST = 0.01  # the paper's last step size, relative to the first
_POWER_STEPS = 12


class Conditional(Protocol):
    """Draws ``x0`` given its prediction and the data, ``N(x0; predicted, r^2) N(y; A x0, s^2)``.

    ``r`` and ``s`` are shaped to multiply images, ``progress`` runs from 0 to 1 over the levels.
    """

    linear: ClassVar[bool]  # whether it wants a linear operator

    def draw(self, y: Tensor, operator: Operator, predicted: Tensor, r: Tensor, s: Tensor,
             progress: float, noise: Noise) -> Tensor: ...


@dataclass(frozen=True)
class Langevin:
    """The paper's: ``iterations`` steps of unadjusted Langevin dynamics, for any operator.

    ``step`` is the first step size in units of ``1 / L``, with ``L = 1 / r^2 + ||J||^2 / s^2`` the
    curvature of the target at the prediction; at most 1, and stable below 2. It falls in a
    straight line to a hundredth of it over the levels. (The paper gives one absolute size for every
    operator.) The largest variance is too large by ``1 / (1 - step / 2)``.
    """

    iterations: int = 100
    step: float = 0.5
    linear: ClassVar[bool] = False

    def draw(self, y: Tensor, operator: Operator, predicted: Tensor, r: Tensor, s: Tensor,
             progress: float, noise: Noise) -> Tensor:
        gain = squared_norm(operator, predicted, _POWER_STEPS)
        gain = gain.reshape(*gain.shape, *(1,) * len(operator.domain.shape))
        curvature = 1 / r.square() + gain / s.square()
        size = self.step * (1 + progress * (_SLOWEST - 1)) / curvature
        x0 = predicted
        misfit = _misfit_gradient(y, operator)
        for _ in range(self.iterations):  # eq. 8
            pull = (predicted - x0) / r.square() - misfit(x0) / s.square()
            x0 = x0 + size * pull + (2 * size).sqrt() * noise.like(x0)
        return x0


@dataclass(frozen=True)
class PerturbAndSolve:
    """Exact, for linear operators: one system with perturbed right-hand side.

    ``(A^H A + s^2/r^2) x0 = A^H (y + s n) + s^2/r^2 (predicted + r n')`` by conjugate gradients, or
    in closed form where the operator has one (Papandreou & Yuille 2010).
    """

    cg_iterations: int = 30
    linear: ClassVar[bool] = True

    def draw(self, y: Tensor, operator: Operator, predicted: Tensor, r: Tensor, s: Tensor,
             progress: float, noise: Noise) -> Tensor:  # noqa: ARG002 no step size
        assert isinstance(operator, LinearOperator)  # check_problem
        item_ndim, y_ndim = noise.item_ndim, len(operator.range.shape)
        y = y.expand(*predicted.shape[: predicted.ndim - item_ndim], *operator.range.shape)
        of_data = Noise(noise.source, noise.samples_ndim, y_ndim).like(y)
        plain = s.reshape(s.shape[: s.ndim - item_ndim])
        seen = operator.adjoint(y + plain.reshape(*plain.shape, *(1,) * y_ndim) * of_data)
        shift = (s / r).square()
        rhs = seen + shift * (predicted + r * noise.like(predicted))
        flat = shift.reshape(shift.shape[: shift.ndim - item_ndim])
        return operator.solve(rhs, flat, predicted, self.cg_iterations, rtol=1e-6)


_LANGEVIN = Langevin()


def check_settings(*, steps: int, ode_steps: int, spread: float, conditional: Conditional,
                   sigmas: Tensor | None, **_: Any) -> None:
    """Refuse what no measurement could make work."""
    if ode_steps < 1:
        raise ValueError(f"ode_steps wants at least 1, got {ode_steps}")
    if not 0 < spread < float("inf"):
        raise ValueError(f"spread wants a finite number > 0, got {spread}")
    if isinstance(conditional, Langevin) and not (
            conditional.iterations >= 1 and 0 < conditional.step <= 1):
        raise ValueError("Langevin wants iterations of at least 1 and a step in (0, 1], got "
                         f"{conditional.iterations} and {conditional.step}")
    if isinstance(conditional, PerturbAndSolve) and conditional.cg_iterations < 1:
        raise ValueError("PerturbAndSolve wants cg_iterations of at least 1, got "
                         f"{conditional.cg_iterations}")
    check_sigmas(_annealing(steps) if sigmas is None else sigmas)


@sampler_with(check_settings)
def daps(y: Tensor, operator: Operator, prior: Prior, *, noise_std: Tensor | float = 0.0,
         samples: int = 1, steps: int = 200, ode_steps: int = 5, spread: float = 1.0,
         conditional: Conditional = _LANGEVIN, sigmas: Tensor | None = None,
         generator: Source = None, start: Step | None = None) -> Iterator[Step]:
    """Decoupled annealing posterior sampling (Zhang et al., CVPR 2025, arXiv 2407.01521).

    At each level: ``ode_steps`` Euler steps of the probability flow lead to a clean image; one near
    it that fits the data is drawn from ``exp(-||x0 - predicted||^2 / 2 r^2 - ||A(x0) - y||^2 /
    2 noise_std^2)``, ``r = spread sigma``; noise of the next level is added. Levels are not coupled
    otherwise, so that early errors can be mended. ``steps * ode_steps`` calls of the network. Any
    operator, linear or not. Returns ``(samples, *batch, channel, *spatial)``.

    The draws are biased: ``r`` is not the spread that the prior leaves, and the end of a trajectory
    is not the mean. Pixels of ``N(0, 1)`` end with deviation 1.26 where nothing is measured (1.40
    with 20 steps of the trajectory) and 0.495 where they are with noise 0.5 (exact 0.447). With
    ``ode_steps=1`` and ``PerturbAndSolve()`` this is 1.02 and 0.446; for uncorrelated Gaussian
    images, many levels and a low last one it tends to the exact posterior.

    Parameters
    ----------
    noise_std
        Standard deviation of each real number of ``y``, above 0; one number or one per item.
    conditional
        How ``x0`` is drawn: ``Langevin()``, or ``PerturbAndSolve()``, exact where the operator is
        linear and far fewer calls of it.
    sigmas
        Noise levels in the units of ``y``'s image, falling to 0, ``(n,)`` or ``(n, *batch)``, in
        place of ``steps``; by default the paper's, ``schedules.karras(steps, 0.1, 100)`` times
        ``prior.scale``. Trajectories end at a tenth of the last level above 0, then at 0.
    generator
        One generator, or one per item of the flattened batch.
    start
        A saved ``Step`` to go on from, with the settings and the generator's state it was saved at.
    """
    noise_std = check_problem(y, operator, prior, noise_std, samples=samples,
                              linear=conditional.linear, noisy=True)
    check_settings(steps=steps, ode_steps=ode_steps, spread=spread, conditional=conditional,
                   sigmas=sigmas)
    if sigmas is None:
        sigmas = scaled(_annealing(steps), prior)
    run = begin(y, operator.range.batch_of(y), operator.domain, sigmas, samples=samples,
                generator=generator, start=start)
    s = noise_std.reshape(*noise_std.shape, *(1,) * run.noise.item_ndim)
    x, levels = run.x, len(run.sigmas) - 1
    for i in range(run.first, levels):
        predicted = x  # Alg. 1, line 3: the probability flow from this level to 0
        path = trajectory(run.shaped[i], run.shaped[-2] / 10, ode_steps)
        for k in range(ode_steps):
            now, after = path[k], path[k + 1]
            clean = prior(predicted, run.plain(now))
            predicted = clean + after / now * (predicted - clean)
        x0 = conditional.draw(y, operator, predicted, spread * run.shaped[i], s, i / levels,
                              run.noise)  # lines 4-7
        x = x0 + run.shaped[i + 1] * run.noise.like(x0) if i + 1 < levels else x0  # line 8
        yield Step(i + 1, run.sigmas[i + 1], x, x0)


def _misfit_gradient(y: Tensor, operator: Operator) -> Callable[[Tensor], Tensor]:
    """``x -> J(x)^H (A(x) - y)``; of a linear operator by its ``normal``, often much cheaper."""
    if isinstance(operator, LinearOperator):
        pulled = operator.adjoint(y)
        return lambda x: operator.normal(x) - pulled
    return lambda x: operator.vjp(x, operator(x) - y)


def trajectory(sigma: Tensor, last: Tensor, steps: int) -> Tensor:
    """Levels of one probability flow, ``(steps + 1, ...)``: Karras's from ``sigma``, then 0."""
    ramp = torch.linspace(0, 1, steps, dtype=sigma.dtype, device=sigma.device)
    ramp = ramp.view(-1, *(1,) * sigma.ndim)
    high, low = sigma ** (1 / _RHO), last ** (1 / _RHO)
    path = (high + ramp * (low - high)) ** _RHO
    path[0] = sigma  # not its rounded root
    return torch.cat([path, torch.zeros_like(path[:1])])


def _annealing(steps: int) -> Tensor:
    return schedules.karras(steps, 0.1, 100.0)
