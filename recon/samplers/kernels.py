"""What moves and weighs the particles of ``smc`` from one tilted noisy prior to the next.

``q_i(x) ~ p_i(x) exp(-alpha_i mu(x))``, with ``p_i`` the prior with noise ``sigma_i`` and
``mu = ||y - A x||^2 / (2 s^2)``. A kernel is an object whose ``along(path)`` returns the step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from recon.guidance.likelihood import spread
from recon.noise import Noise
from recon.operators.base import LinearOperator, Operator
from recon.operators.norm import squared_norm
from recon.operators.svd import svd
from recon.priors import Prior
from recon.samplers.levels import Run
from recon.samplers.particles import energy


class Path(NamedTuple):
    """The laws from noise to posterior, and their logarithms' gradients."""

    y: Tensor
    operator: Operator
    prior: Prior
    noise_std: Tensor
    sigmas: Tensor  # (steps + 1, *items), as priors take them
    shaped: Tensor  # the same, shaped to multiply x
    alpha: Tensor  # (steps + 1, *batch) in float64: 0 at first, 1 at last

    @property
    def last(self) -> int:
        return len(self.sigmas) - 1

    def mu(self, x: Tensor) -> Tensor:
        """``(samples, *batch)`` in float64."""
        return self._energy(self.operator(x) - self.y)

    def pull(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """``mu(x)`` and ``alpha_i grad mu(x)``."""
        gap = self.operator(x) - self.y
        weight = (self.alpha[i] / self.noise_std.double().square()).to(x.dtype.to_real())
        return self._energy(gap), spread(weight, self.operator) * self.operator.vjp(x, gap)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """``Re <a, b>`` of each image, in float64."""
        products = (a.conj() * b).real if a.is_complex() else a * b
        return products.double().sum(self._dims)

    def shortened(self, move: Tensor, longest: Tensor) -> Tensor:
        """``move``, where its root mean square passes ``longest`` scaled down to that.

        For nonlinear operators, whose gain is known at a few images alone; ``alpha`` bounds the
        moves of linear ones, and moves cut short would leave the law that the weights are for.
        """
        if isinstance(self.operator, LinearOperator):
            return move
        square = self.mean_square(move)
        return move * torch.where(square > longest.square(), longest * square.rsqrt(), 1)

    def mean_square(self, x: Tensor) -> Tensor:
        """Of the real numbers of each image, shaped to multiply it."""
        square = x.abs().square().mean(self._dims, keepdim=True)
        return square / 2 if x.is_complex() else square

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-len(self.operator.domain.shape), 0))

    def _energy(self, gap: Tensor) -> Tensor:
        return energy(gap, len(self.operator.range.shape)) / (2 * self.noise_std.double().square())


class Moved(NamedTuple):
    """Particles one level on, the prediction they came from, and what to add to their weights."""

    x: Tensor
    x0: Tensor
    log_weight: Tensor  # (samples, *batch) in float64


Step = Callable[[Tensor, int, Noise], Moved]


class Kernel(Protocol):
    """Makes of particles of ``q_i`` weighted particles of ``q_{i + 1}``."""

    def along(self, path: Path) -> Step: ...


def tilted_path(y: Tensor, operator: Operator, prior: Prior, noise_std: Tensor,
                run: Run) -> Path:
    """``alpha = (1 - sigma^2 / sigma_0^2) / (1 + g sigma^2 / s^2)`` with ``g = ||A||^2``.

    At level sigma the tilt is no narrower than the noise, so that steps fit both, however small
    ``s``. For a nonlinear operator g is the largest found of its Jacobian at images of that level.
    """
    squared, extra = run.sigmas.double().square(), len(operator.range.batch_of(y))
    squared = squared.reshape(len(squared), *(1,) * (extra + 1 - squared.ndim), *squared.shape[1:])
    if isinstance(operator, LinearOperator):
        gain = squared_norm(operator, operator.adjoint(y)).double()
    else:
        scale = torch.as_tensor(prior.scale, dtype=torch.float64, device=y.device)
        gain = torch.stack([local_gain(operator, y, (scale.square() + s).sqrt()) for s in squared])
    alpha = (1 - squared / squared[0]) / (1 + gain * squared / noise_std.double().square())
    return Path(y, operator, prior, noise_std, run.sigmas, run.shaped, alpha)


def local_gain(operator: Operator, y: Tensor, size: Tensor, probes: int = 4) -> Tensor:
    """The largest ``||J(x)||^2`` found at a few random images of deviation ``size``, ``(*batch,)``.

    By power iteration, ``J v`` as a central difference: approached from below.
    """
    space, batch = operator.domain, operator.range.batch_of(y)
    kind = y.dtype.to_complex() if space.is_complex else y.dtype.to_real()
    generator = torch.Generator(y.device).manual_seed(0)  # one set of images for all items
    z, v = (space.randn(probes, generator=generator, dtype=kind, device=y.device)
            .reshape(probes, *(1,) * len(batch), *space.shape).expand(probes, *batch, *space.shape)
            for _ in range(2))
    size = spread(size.to(y.dtype.to_real()), operator)
    dims = tuple(range(-len(space.shape), 0))
    x, most = size * z, torch.zeros((), device=y.device)
    for _ in range(6):
        v = v / torch.linalg.vector_norm(v, dim=dims, keepdim=True).clamp(
            min=torch.finfo(y.dtype.to_real()).tiny)
        step = 1e-2 * size * math.prod(space.shape) ** 0.5  # of one item, whatever the batch
        v = operator.vjp(x, (operator(x + step * v) - operator(x - step * v)) / (2 * step))
        most = torch.linalg.vector_norm(v, dim=dims).amax(0)
    return most.double()


@dataclass(frozen=True)
class OdeCorrector:
    """The probability flow of the prior, then Langevin steps on the tilted law of the new level.

    The flow carries ``p_i`` to ``p_{i+1}``, so that ``alpha_i mu(x_i) - alpha_{i+1} mu(x_{i+1})``
    is its log-weight, without discretising a rate. Then ``ula_steps`` unadjusted Langevin steps
    ``x + h sigma^2 grad log q + sigma sqrt(h (2 - h k)) n`` with ``h = ula_size``; none after the
    last level. Departure: the paper's noise has ``k = 0``, which inflates a Gaussian of curvature
    ``k / sigma^2`` by ``1 / (1 - h k / 2)``; here k is the mean curvature, ``E |sigma grad log
    q|^2`` for each number, over the particles. Any operator; of nonlinear ones no step of the
    likelihood is longer than ``sigma`` in the root mean square.
    """

    ula_steps: int = 5
    ula_size: float = 0.2

    def __post_init__(self) -> None:
        if self.ula_steps < 0:
            raise ValueError(f"ula_steps wants at least 0, got {self.ula_steps}")
        if not 0 < self.ula_size < 1:  # the curvature is at most 2 / sigma^2
            raise ValueError(f"ula_size wants a number in (0, 1), got {self.ula_size}")

    def along(self, path: Path) -> Step:
        h = self.ula_size

        def step(x: Tensor, i: int, noise: Noise) -> Moved:
            sigma, after = path.shaped[i], path.shaped[i + 1]
            x0 = path.prior(x, path.sigmas[i])
            log_weight = path.alpha[i] * path.mu(x)
            x = x0 + after / sigma * (x - x0)
            log_weight = log_weight - path.alpha[i + 1] * path.mu(x)
            for _ in range(self.ula_steps if i + 1 < path.last else 0):
                pull = path.shortened(after.square() * path.pull(x, i + 1)[1], after)
                drift = path.prior(x, path.sigmas[i + 1]) - x - pull
                k = (path.mean_square(drift).mean(0) / after.square()).clamp(max=2)
                x = x + h * drift + after * (h * (2 - h * k)).sqrt() * noise.like(x)
            return Moved(x, x0, log_weight)

        return step


@dataclass(frozen=True)
class AnnealedSde:
    """Reverse diffusion with the gradient of the tilt, in steps of Euler and Maruyama.

    ``"path"`` weighs by the ratio of the guided and unguided steps (Girsanov): exact for the chain
    at any step, without a Laplacian. ``"marginal"`` is the paper's rate with the value term, in
    which ``Laplacian mu`` is estimated by one random probe for each level and item: for linear
    operators that touches ``log_evidence`` alone.
    """

    weights: Literal["path", "marginal"] = "path"

    def __post_init__(self) -> None:
        if self.weights not in ("path", "marginal"):
            raise ValueError(f'weights wants "path" or "marginal", got {self.weights!r}')

    def along(self, path: Path) -> Step:
        rate = _path_weight if self.weights == "path" else _marginal_weight

        def step(x: Tensor, i: int, noise: Noise) -> Moved:
            sigma, after = path.shaped[i], path.shaped[i + 1]
            v = (sigma - after) * (sigma + after)
            x0 = path.prior(x, path.sigmas[i])
            mu, pull = path.pull(x, i)
            pull = path.shortened(v * pull, sigma) / v
            xi = noise.like(x)
            new = x + v / sigma.square() * (x0 - x) - v * pull + v.sqrt() * xi
            return Moved(new, x0, rate(path, i, x, x0, new, mu, pull, v, xi, noise))

        return step


def _path_weight(path: Path, i: int, x: Tensor, x0: Tensor, new: Tensor, mu: Tensor,  # noqa: ARG001
                 pull: Tensor, v: Tensor, xi: Tensor, noise: Noise) -> Tensor:  # noqa: ARG001
    push = v.sqrt() * pull
    return (path.alpha[i] * mu - path.alpha[i + 1] * path.mu(new)
            + path.dot(push, xi) - path.dot(push, push) / 2)


def _marginal_weight(path: Path, i: int, x: Tensor, x0: Tensor, new: Tensor,  # noqa: ARG001
                     mu: Tensor, pull: Tensor, v: Tensor, xi: Tensor,  # noqa: ARG001
                     noise: Noise) -> Tensor:
    z = noise.like(x)[:1]  # shared by the particles: a constant where A is linear
    z = torch.complex(z.real.sign(), z.imag.sign()) if z.is_complex() else z.sign()
    step = 0.03 * path.shaped[i]
    curved = (path.pull(x + step * z, i)[1] - path.pull(x - step * z, i)[1]) / (2 * step)
    score = (x0 - x) / path.shaped[i].square()
    return (path.dot(v / 2 * pull - v * score, pull) - path.dot(v / 2 * z.expand_as(x), curved)
            + (path.alpha[i] - path.alpha[i + 1]) * mu)


@dataclass(frozen=True)
class FullyAdapted:
    """A reverse diffusion step drawn from its product with the tilt at its end, both Gaussian.

    Weighted by the integral of that product: the least variance one step can have, stable for any
    step. For linear operators with an SVD (``operators.svd``).
    """

    def along(self, path: Path) -> Step:
        if not isinstance(path.operator, LinearOperator):
            raise TypeError(f"FullyAdapted wants a linear operator, {path.operator.label()} is "
                            "not: use OdeCorrector or AnnealedSde")
        item_ndim = len(path.operator.domain.shape)
        x_kind = path.y.dtype.to_complex() if path.operator.domain.is_complex else (
            path.y.dtype.to_real())
        of = svd(path.operator, torch.empty(0, dtype=x_kind, device=path.y.device))
        u, parts = of.left_adjoint(path.y), 2 if path.operator.domain.is_complex else 1
        s = spread(path.noise_std, path.operator)
        unseen = path.mu(of.right(torch.where(of.values > 0, u / torch.where(
            of.values > 0, of.values, 1), 0)))

        def step(x: Tensor, i: int, noise: Noise) -> Moved:
            sigma, after = path.shaped[i], path.shaped[i + 1]
            v = (sigma - after) * (sigma + after)
            x0 = path.prior(x, path.sigmas[i])
            mean = of.right_adjoint(x + v / sigma.square() * (x0 - x))
            a = spread(path.alpha[i + 1].to(s.dtype), path.operator)
            gap, total = u - of.values * mean, s.square() + a * v * of.values.square()
            drawn = (mean + a * v * of.values / total * gap
                     + (v / total).sqrt() * s * noise.like(x))
            exponent = energy((a / total).sqrt() * gap, item_ndim) / 2
            width = (total / s.square()).double().log().expand(gap.shape).sum(
                tuple(range(-item_ndim, 0))) * parts / 2
            log_weight = (path.alpha[i] * path.mu(x) - exponent - width
                          - path.alpha[i + 1] * unseen)
            return Moved(of.right(drawn), x0, log_weight)

        return step
