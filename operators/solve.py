"""Batched conjugate gradients for Hermitian positive definite systems."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class ConjugateGradient(NamedTuple):
    """The solution and how it was reached."""

    x: Tensor
    iterations: Tensor  # (*batch,), steps each item took
    residuals: Tensor  # (steps + 1, *batch), ||b - A x|| / ||b|| by recursion


def conjugate_gradient(operator: Callable[[Tensor], Tensor], rhs: Tensor, x0: Tensor | None = None,
                       *, item_ndim: int = 3, max_iter: int = 50,
                       rtol: float = 1e-6) -> ConjugateGradient:
    """Solve ``operator(x) = rhs`` for each item of a batch, for a Hermitian positive operator.

    Hestenes & Stiefel 1952. ``rhs`` is ``(*batch, *item)`` with ``item_ndim`` trailing dimensions
    to an item; real or complex (inner products conjugate). Every item has its own step sizes and
    stops by itself once ``||r|| <= rtol ||rhs||``; a stopped item does not change any more. There
    is no absolute threshold, so the scale of ``rhs`` does not matter, and ``rhs = 0`` without an
    ``x0`` returns zeros. On a GPU nothing is read back: all ``max_iter`` steps are queued, stopped
    items standing still; on a CPU the loop ends when every item has stopped.
    """
    if max_iter < 0 or rtol < 0:
        raise ValueError(f"conjugate_gradient wants max_iter, rtol >= 0, got {max_iter}, {rtol}")
    if rhs.ndim < item_ndim:
        raise ValueError(f"conjugate_gradient: want rhs (*batch, *item) of at least {item_ndim} "
                         f"dimensions, got {tuple(rhs.shape)}: pass item_ndim")
    if not (rhs.is_floating_point() or rhs.is_complex()):
        raise TypeError(f"conjugate_gradient: want a floating or complex rhs, got {rhs.dtype}")
    if x0 is not None and x0.shape != rhs.shape:
        raise ValueError(f"conjugate_gradient: x0 is {tuple(x0.shape)}, rhs {tuple(rhs.shape)}")
    batch = rhs.shape[: rhs.ndim - item_ndim]

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return _dot(a, b, item_ndim)

    x = torch.zeros_like(rhs) if x0 is None else x0
    r = rhs if x0 is None else rhs - operator(x0)
    # residuals and directions in units of their own: squares of 1e-23 or 1e20 are 0 or infinite
    unit = _largest(rhs, item_ndim)
    unit = unit if x0 is None else torch.maximum(unit, _largest(r, item_ndim))
    unit = torch.where(unit > 0, unit, 1)
    b = rhs / unit
    r = b if x0 is None else r / unit
    p = r
    rr, bb = dot(r, r), dot(b, b)
    x = x + 0 * (rr + bb)  # an item of rhs that is not finite is NaN, never zeros
    active = rr > rtol**2 * bb
    steps = torch.zeros(batch, dtype=torch.int64, device=rhs.device)
    history = [rr]
    for _ in range(max_iter):
        if rhs.device.type == "cpu" and not bool(active.any()):
            break
        Ap = operator(p)
        curvature = dot(p, Ap)
        active = active & (curvature > 0)
        # where() on both sides: a stopped item may hold 0 / 0
        alpha = torch.where(active, rr / torch.where(active, curvature, 1), 0)
        x = x + alpha * unit * p
        r = r - alpha * Ap
        rr_next = torch.where(active, dot(r, r), rr)
        steps += active.view(batch)
        p = r + torch.where(active, rr_next / torch.where(active, rr, 1), 0) * p
        rr = rr_next
        active = active & (rr > rtol**2 * bb)
        history.append(rr)
    own = _largest(rhs, item_ndim)  # of rhs in its own unit: in that of r it may vanish
    own = torch.where(own > 0, own, 1)
    size = dot(rhs / own, rhs / own).sqrt()
    size = torch.where(size > 0, size * (own / unit), 1 / unit)
    residuals = (torch.stack(history).sqrt() / size).view(len(history), *batch)
    return ConjugateGradient(x, steps, residuals)


def minimal_residual(operator: Callable[[Tensor], Tensor], rhs: Tensor, *, item_ndim: int = 3,
                     max_iter: int = 20, rtol: float = 1e-6) -> Tensor:
    """Solve ``operator(x) = rhs`` for each item where the operator need not be Hermitian.

    Generalised conjugate residuals (Eisenstat, Elman & Schultz 1983), from zero: each step lowers
    ``||rhs - operator(x)||`` as far as all directions so far allow, so that it never grows,
    whatever the operator. Inner products are those of real and imaginary parts, for operators
    linear over the reals. Keeps two tensors of the size of ``rhs`` per step. Items stop as in
    ``conjugate_gradient``.
    """
    def dot(a: Tensor, b: Tensor) -> Tensor:
        return _dot(a, b, item_ndim)

    unit = _largest(rhs, item_ndim)
    unit = torch.where(unit > 0, unit, 1)  # as of conjugate_gradient
    x, r = torch.zeros_like(rhs), rhs / unit
    bb = dot(r, r)
    directions: list[tuple[Tensor, Tensor]] = []
    for _ in range(max_iter):
        active = dot(r, r) > rtol**2 * bb
        if rhs.device.type == "cpu" and not bool(active.any()):
            break
        p, Ap = r, operator(r)
        size = dot(Ap, Ap)
        for q, Aq in directions:
            overlap = dot(Aq, Ap)
            p, Ap = p - overlap * q, Ap - overlap * Aq
        left = dot(Ap, Ap)
        # what rounding leaves of a direction that is not new is none
        active = active & (left > torch.finfo(left.dtype).eps * size)
        norm = torch.where(active, left, 1).sqrt()
        p, Ap = torch.where(active, p / norm, 0), torch.where(active, Ap / norm, 0)
        alpha = dot(Ap, r)
        x, r = x + alpha * unit * p, r - alpha * Ap
        directions.append((p, Ap))
    return x


def _dot(a: Tensor, b: Tensor, item_ndim: int) -> Tensor:
    """``Re <a, b>`` per item, without temporaries."""
    batch, n = a.shape[: a.ndim - item_ndim], math.prod(a.shape[a.ndim - item_ndim :])
    if a.is_complex():
        a, b, n = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj()), 2 * n
    a, b = a.reshape(batch.numel(), 1, n), b.reshape(batch.numel(), n, 1)
    return torch.bmm(a, b).view(*batch, *(1,) * item_ndim)


def _largest(x: Tensor, item_ndim: int) -> Tensor:
    return x.detach().abs().amax(tuple(range(-item_ndim, 0)), keepdim=True)
