"""Total variation: the classical baseline without a learned prior."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from recon.integrators import Step
from recon.operators import conjugate_gradient
from recon.operators.base import LinearOperator
from recon.operators.norm import squared_norm
from recon.priors import Prior
from recon.samplers.base import sampler
from recon.samplers.problem import check_problem

# The best compromise measured on 8-coil Cartesian MRI and 30-view CT, weights 1e-4 to 5e-3; at
# equal time ahead of primal-dual steps by far for CT with small weights, elsewhere level with them.
_CG_STEPS = 4
_RELAXATION = 1.6
_JUMP = 0.05  # threshold of the splitting, in units of the image's scale


@sampler
def tv(y: Tensor, operator: LinearOperator,
       prior: Prior | None = None,  # noqa: ARG001 the place it has in every sampler
       *, weight: float, noise_std: Tensor | float = 0.0, iterations: int = 200,
       rtol: float = 1e-4, start: Step | None = None) -> Iterator[Step]:
    """``argmin_x 1/2 ||A x - y||^2 + weight max|A^H y| TV(x)`` by alternating directions.

    Returns ``(1, *batch, channel, *spatial)``: there is one answer, hence one sample. TV sums, over
    pixels and channels, the length of the vector of forward differences along all spatial
    dimensions (isotropic; none across the border). Complex differences count by their magnitude,
    so that a constant phase passes through. ``max|A^H y|``, taken per item, makes ``weight`` a pure
    number: ``y -> c y`` gives ``x -> c x``, and the units of the operator do not matter either.

    Boyd et al. 2011, sections 3.4.3 and 4.3.2, one variable standing for the split differences and
    their multiplier together (Eckstein & Bertsekas 1992). The quadratic step is a few steps of
    conjugate gradients from the last image, its weight a fixed part of ``||A||^2``.

    Parameters
    ----------
    prior, noise_std
        Not used; every sampler is called with them.
    weight
        For four-fold 8-coil MRI about 3e-4, 2e-3 and 1e-2 where ``noise_std`` is 0.2, 1 and 3 % of
        the image's peak. Below 1e-3, CT wants more iterations.
    rtol
        An item stands still once an iteration would move it by less than this part of its norm.
    start
        A saved ``Step`` to go on from: ``x0`` is the image, ``x`` the split differences
        ``(1, *batch, channel, dimensions, *spatial)``. ``sigma`` is always 0.
    """
    check_problem(y, operator, None, noise_std)
    check_settings(weight, iterations, start)
    if not rtol >= 0:
        raise ValueError(f"rtol wants a number >= 0, got {rtol}")
    pulled = operator.adjoint(y[None])
    item_ndim, ndim = len(operator.domain.shape), len(operator.domain.shape) - 1
    norm = squared_norm(operator, pulled)
    norm = operator.per_item(torch.where(norm > 0, norm, 1), pulled)
    threshold = (_JUMP * peak(pulled, item_ndim) / norm).unsqueeze(-1)
    rho = weight * norm / _JUMP  # weight max|A^H y| / threshold

    def shifted(x: Tensor) -> Tensor:
        return operator.normal(x) + rho * differences_adjoint(differences(x, ndim), ndim)

    if start is None:
        x = torch.zeros_like(pulled)
        w, first = differences(x, ndim), 0
    else:
        w, x, first = start.x, start.x0, start.index
    for i in range(first, iterations):
        z = shrink(w, lengths(w, ndim), threshold)
        rhs = pulled + rho * differences_adjoint(2 * z - w, ndim)
        x_next = conjugate_gradient(shifted, rhs, x, item_ndim=item_ndim, max_iter=_CG_STEPS,
                                    rtol=0.0).x
        w_next = w + _RELAXATION * (differences(x_next, ndim) - z)
        moved = _energy(x_next - x, item_ndim) + _energy(w_next - w, item_ndim + 1)
        # a small step is refused, not taken last: so stopping needs no memory beyond x and w
        moving = ~(moved <= rtol**2 * _energy(x_next, item_ndim))  # true for NaN, which must show
        x = torch.where(_spread(moving, item_ndim), x_next, x)
        w = torch.where(_spread(moving, item_ndim + 1), w_next, w)
        yield Step(i + 1, torch.zeros((), dtype=x.dtype.to_real(), device=x.device), w, x)
        if x.device.type == "cpu" and not bool(moving.any()):
            break


def differences(x: Tensor, ndim: int) -> Tensor:
    """Forward differences along the last ``ndim`` dimensions, stacked before them; 0 at the end."""
    d = x.new_zeros((*x.shape[: x.ndim - ndim], ndim, *x.shape[x.ndim - ndim :]))
    for axis in range(-ndim, 0):
        n = x.shape[axis] - 1
        part = d.select(-ndim - 1, ndim + axis).narrow(axis, 0, n)
        torch.sub(x.narrow(axis, 1, n), x.narrow(axis, 0, n), out=part)
    return d


def differences_adjoint(d: Tensor, ndim: int) -> Tensor:
    """Adjoint of ``differences``: minus the divergence."""
    x = torch.zeros_like(d.select(-ndim - 1, 0))
    for axis in range(-ndim, 0):
        n = x.shape[axis] - 1
        part = d.select(-ndim - 1, ndim + axis).narrow(axis, 0, n)
        x.narrow(axis, 1, n).add_(part)
        x.narrow(axis, 0, n).sub_(part)
    return x


def lengths(d: Tensor, ndim: int) -> Tensor:
    """Euclidean length of the vector of differences at every pixel."""
    return d.abs().square().sum(-ndim - 1, keepdim=True).sqrt()


def shrink(values: Tensor, length: Tensor, threshold: Tensor) -> Tensor:
    """``values`` shortened by ``threshold``, down to zero; their phase or direction stays."""
    return values * ((length - threshold).clamp(min=0) / torch.where(length > 0, length, 1))


def peak(x: Tensor, item_ndim: int) -> Tensor:
    """Largest magnitude of every item, shaped to multiply it."""
    return x.abs().amax(tuple(range(-item_ndim, 0)), keepdim=True)


def check_settings(weight: float, iterations: int, start: Step | None) -> None:
    """Refuse a bad ``weight``, and a number of ``iterations`` that leaves none to do."""
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight wants a finite number >= 0, got {weight}")
    if iterations < 1:
        raise ValueError(f"iterations wants at least 1, got {iterations}")
    if start is not None and start.index >= iterations:
        raise ValueError(f"iterations wants more than the {start.index} that start has done, "
                         f"got {iterations}")


def _energy(x: Tensor, item_ndim: int) -> Tensor:
    return x.abs().square().flatten(x.ndim - item_ndim).sum(-1)


def _spread(value: Tensor, item_ndim: int) -> Tensor:
    return value.reshape(value.shape + (1,) * item_ndim)
