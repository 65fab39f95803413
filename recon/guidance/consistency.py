"""Data consistency: moving a predicted image towards agreement with the measurements."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from recon.operators.base import LinearOperator

Consistency = Callable[[Tensor, Tensor], Tensor]


def proximal(y: Tensor, operator: LinearOperator, noise_std: Tensor, *, gamma: float | None,
             cg_iterations: int) -> Consistency:
    """``(x0, sigma) -> argmin_x gamma/2 ||y - A x||^2 + 1/2 ||x - x0||^2``, started at ``x0``.

    DDS (Chung et al. 2024, eq. 13): ``cg_iterations`` conjugate-gradient steps on
    ``(A^H A + 1/gamma) x = A^H y + x0/gamma``, or the closed form where the operator has one.
    ``gamma=None`` takes ``sigma^2 / noise_std^2``, the ratio of what the prior and the data know at
    this level. Where that is infinite (``noise_std = 0``, or ``gamma = inf``) the steps go on
    ``A^H A x = A^H y``, which keeps the part of ``x0`` that the data do not see.
    """
    check_weights(gamma, cg_iterations)
    noiseless = gamma == math.inf if gamma is not None else bool((noise_std == 0).all())
    if gamma is None and not noiseless and bool((noise_std == 0).any()):
        raise ValueError("noise_std is zero for some items only: reconstruct those apart")
    pulled = operator.adjoint(y)
    item_ndim = len(operator.domain.shape)
    if gamma and not noiseless:
        _warn_few_iterations(operator, pulled, gamma, cg_iterations)

    def consistent(x0: Tensor, sigma: Tensor) -> Tensor:
        if noiseless:
            return operator.solve_cg(pulled.expand_as(x0), 0.0, x0, cg_iterations, rtol=1e-6).x
        if gamma == 0:
            return x0
        weight = (noise_std / sigma).square() if gamma is None else 1 / gamma
        shift = torch.as_tensor(weight, dtype=x0.dtype.to_real(), device=x0.device)
        spread = shift.reshape(*shift.shape, *(1,) * item_ndim) if shift.ndim else shift
        rhs = pulled + spread * x0
        return operator.solve(rhs, shift, x0, cg_iterations, rtol=1e-6)

    return consistent


def completing_noise(operator: LinearOperator, noise_std: Tensor, *,
                     cg_iterations: int) -> Consistency:
    """``(n, sigma) -> n - 2 rho (A^H A + rho)^-1 n`` with ``rho = (noise_std / sigma)^2``.

    Noise of deviation ``sigma`` made to complete, to ``sigma`` in every direction, the noise that
    ``proximal`` carries into the image from data of noise ``2 noise_std``: the covariances
    ``4 noise_std^2 A^H A (A^H A + rho)^-2`` and ``sigma^2 (A^H A - rho)^2 (A^H A + rho)^-2`` add up
    to ``sigma^2 I``. Without noise all of ``n`` is kept.
    """
    noiseless = bool((noise_std == 0).all())

    def lacking(n: Tensor, sigma: Tensor) -> Tensor:
        if noiseless:
            return n
        rho = (noise_std / sigma).square()
        # rho first: where it is tiny, the inverse alone passes the largest number
        shaped = rho.reshape(*rho.shape, *(1,) * len(operator.domain.shape)) if rho.ndim else rho
        return n - operator.solve(2 * shaped * n, rho, None, cg_iterations, rtol=1e-6)

    return lacking


def check_weights(gamma: float | None, cg_iterations: int) -> None:
    """Refuse a weight or a number of steps that ``proximal`` has no use for."""
    if gamma is not None and not gamma >= 0:
        raise ValueError("gamma wants a number >= 0, or None for sigma^2 / noise_std^2, got "
                         f"{gamma}")
    if cg_iterations < 1:
        raise ValueError(f"cg_iterations wants at least 1, got {cg_iterations}")


def _warn_few_iterations(operator: LinearOperator, like: Tensor, gamma: float, steps: int) -> None:
    """Warn where the bound on the error that is left in the A-norm passes one tenth."""
    generator = torch.Generator(like.device).manual_seed(0)
    # of every item: the operator may hold a mask or maps for each
    v = operator.domain.randn(*operator.domain.batch_of(like), generator=generator,
                              dtype=like.dtype, device=like.device)
    dims = tuple(range(-len(operator.domain.shape), 0))
    x = operator.solve(v, 1 / gamma, max_iter=1)
    left = torch.linalg.vector_norm(v - operator.normal(x) - x / gamma, dim=dims)
    if bool((left <= 0.05 * torch.linalg.vector_norm(v, dim=dims)).all()):
        return  # a closed form, whatever the steps
    for _ in range(8):  # the largest eigenvalue of A^H A by power iteration
        norm = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
        v = operator.normal(v / torch.where(norm > 0, norm, 1))
    kappa = 1 + gamma * float(torch.linalg.vector_norm(v, dim=dims).amax())
    rate = (math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)
    if 2 * rate**steps > 0.1 and rate > 0:
        enough = math.ceil(math.log(0.05) / math.log(rate))
        warnings.warn(f"{steps} CG steps may be too few for gamma = {gamma:g}: about {enough} "
                      "bring the error of each data-consistency step below a tenth",
                      stacklevel=7)  # the sampler's caller
