"""Posterior denoisers ``E[x0 | x, y] = D(x) + sigma^2 grad_x log p(y | x)``, each with its own law.

``p(y | x)`` is known only where ``p(x0 | x)`` is. DPS takes a point ``D`` for it, PiGDM a Gaussian
of one variance, TMPD one of covariance ``sigma^2 J``, with ``J`` the Jacobian of ``D``. Every
function here returns ``denoise(x, sigma)`` for any integrator; one call runs the network once
forward and at least once backward. Norms and solves belong to one item of one sample.
"""

import torch
from torch import Tensor

from recon.guidance.gradient import denoise_with_pullback
from recon.integrators.base import Denoise
from recon.operators.base import LinearOperator, Operator
from recon.operators.solve import minimal_residual
from recon.priors import Prior


def misfit_descent(prior: Prior, operator: Operator, y: Tensor, x: Tensor,
                   sigma: Tensor) -> tuple[Tensor, Tensor]:
    """``D(x)`` and ``-grad_x ||y - A(D(x))||``, zero where nothing is left to fit."""
    x0, pull = denoise_with_pullback(prior, x, sigma)
    left = y - operator(x0)
    dims = tuple(range(-len(operator.range.shape), 0))
    norm = torch.linalg.vector_norm(left, dim=dims, keepdim=True)
    return x0, pull(operator.vjp(x0, left / torch.where(norm > 0, norm, 1)))


def norm_guided(prior: Prior, operator: Operator, y: Tensor, *, zeta: float) -> Denoise:
    """DPS by the paper's rule: ``log p(y|x) = -zeta ||y - A(D(x))|| / (scale beta(sigma))``.

    Chung et al. 2023, Alg. 1, adds ``-zeta grad ||y - A(D)||`` to each of 1000 ancestral steps,
    whatever their length. A prediction moved by ``d`` moves such a step by ``1 - (sigma'/sigma)^2``
    of it, so that the same is, per level, a prediction moved by ``sigma^2 / beta`` times the
    gradient, with the noise ``beta`` of one of the 1000 linear VP steps. ``noise_std`` has no part
    in it: the rule is a tuned step size, not a likelihood. ``zeta`` is meant for operators of norm
    about one.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x0, descent = misfit_descent(prior, operator, y, x, sigma)
        scale = torch.as_tensor(prior.scale, dtype=sigma.dtype, device=sigma.device)
        # beta from log(1 / abar), the integral of beta_min + (beta_max - beta_min) t / 1000
        log_abar = torch.log1p((sigma / scale).square())
        beta = (1e-4**2 + 2 * (0.02 - 1e-4) / 1000 * log_abar).sqrt()
        return x0 + spread(zeta * sigma.square() / (scale * beta), operator) * descent

    return denoise


def annealed_guided(prior: Prior, operator: Operator, y: Tensor, noise_std: Tensor, *,
                    zeta: float = 1.0, gain: Tensor | float) -> Denoise:
    """DPS as a likelihood: ``log p(y|x) = -zeta ||y - A(D(x))||^2 / (2 (s^2 + gain sigma^2))``.

    ``s`` is ``noise_std``; ``gain`` is ``||A||^2``, one number or one per item, which makes the sum
    a bound on the variance of ``y`` given ``x`` as long as ``D`` contracts. Jalal et al. 2021
    anneal like this; close to exact for Gaussian priors.
    """
    gained = torch.as_tensor(gain, dtype=noise_std.dtype, device=noise_std.device)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x0, pull = denoise_with_pullback(prior, x, sigma)
        variance = noise_std.square() + gained * sigma.square()
        weight = zeta * sigma.square() / torch.where(variance > 0, variance, 1)
        return x0 + spread(weight, operator) * pull(operator.vjp(x0, y - operator(x0)))

    return denoise


def pseudoinverse_guided(prior: Prior, operator: LinearOperator, y: Tensor, noise_std: Tensor, *,
                         prior_std: Tensor | float, cg_iterations: int) -> Denoise:
    """PiGDM (Song et al. 2023, eq. 7): ``Cov[x0 | x] = r^2 I``, ``1/r^2 = 1/sigma^2 + 1/p^2``.

    The gradient is ``J^T A^H (r^2 A A^H + s^2)^-1 (y - A D)``, solved in the image as
    ``J^T (A^H A + s^2 / r^2)^-1 A^H (y - A D) / r^2``; without noise the inverse is the
    pseudo-inverse, by ``cg_iterations`` conjugate-gradient steps from zero. ``p`` is ``prior_std``,
    the standard deviation of a pixel, one number or one per item. Exact for ``N(m, p^2 I)``.
    """
    noiseless = bool((noise_std == 0).all())
    if not noiseless and bool((noise_std == 0).any()):
        raise ValueError("noise_std is zero for some items only: reconstruct those apart")
    p2 = torch.as_tensor(prior_std, dtype=noise_std.dtype, device=noise_std.device).square()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x0, pull = denoise_with_pullback(prior, x, sigma)
        rhs = operator.adjoint(y - operator(x0))
        if noiseless:
            inverse = operator.solve_cg(rhs, 0.0, None, cg_iterations, rtol=1e-6).x
        else:
            shift = noise_std.square() * (1 / sigma.square() + 1 / p2)
            inverse = operator.solve(rhs, shift, None, cg_iterations, rtol=1e-6)
        return x0 + spread(1 + sigma.square() / p2, operator) * pull(inverse)

    return denoise


def moment_guided(prior: Prior, operator: LinearOperator, y: Tensor, noise_std: Tensor, *,
                  iterations: int) -> Denoise:
    """TMPD in full (Boys et al. 2024, arXiv 2310.06721): ``Cov[x0 | x] = sigma^2 J``.

    The gradient is ``J^T A^H v`` with ``(A sigma^2 J^T A^H + s^2) v = y - A D``, by minimal
    residuals in the data, each step of which runs the network backward once. Exact for Gaussian
    priors. A trained network's ``J`` is symmetric only nearly: conjugate gradients then diverge.
    """
    tolerance = 8 * torch.finfo(noise_std.dtype).eps

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x0, pull = denoise_with_pullback(prior, x, sigma)
        ratio = (noise_std / sigma).square()  # solved divided by sigma^2: no small numbers squared
        shift = ratio.reshape(*ratio.shape, *(1,) * len(operator.range.shape))

        def covariance(v: Tensor) -> Tensor:
            return operator(pull(operator.adjoint(v))) + shift * v

        v = minimal_residual(covariance, y - operator(x0), max_iter=iterations,
                             item_ndim=len(operator.range.shape), rtol=tolerance)
        return x0 + pull(operator.adjoint(v))

    return denoise


def row_sum_guided(prior: Prior, operator: LinearOperator, y: Tensor,
                   noise_std: Tensor) -> Denoise:
    """TMPD as published: ``A sigma^2 J^T A^H`` replaced by the diagonal of its row sums.

    One more run backward, of ``A^H 1``, gives the sums. They bound the covariance where no entry is
    negative, as for images measured by masks, blurs and downsampling. In k-space entries cancel and
    a sum says little about its diagonal: sums that come out negative are taken as zero, and a third
    run backward shortens the step to the best multiple of itself wherever the sums would have it
    overshoot (our addition: without it such steps grow without bound). ``moment_guided`` has no
    such limit.
    """
    dims = tuple(range(-len(operator.range.shape), 0))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x0, pull = denoise_with_pullback(prior, x, sigma)
        left = y - operator(x0)
        ratio = (noise_std / sigma).square()
        ratio = ratio.reshape(*ratio.shape, *(1,) * len(dims))
        sums = operator(pull(operator.adjoint(torch.ones_like(left))))
        total = sums.real.clamp(min=0) + ratio
        v = torch.where(total > 0, left / torch.where(total > 0, total, 1), 0)
        move = pull(operator.adjoint(v))
        # v^H (A J^T A^H + ratio) v, against what the diagonal takes it for
        curvature = (v.conj() * (operator(move) + ratio * v)).real.sum(dims)
        taken = (v.conj() * left).real.sum(dims)
        share = torch.where(curvature > taken, taken / torch.where(curvature > 0, curvature, 1), 1)
        return x0 + spread(share, operator) * move

    return denoise


def spread(value: Tensor, operator: Operator) -> Tensor:
    """``value``, one or one per item, shaped to multiply images of the operator's domain."""
    ones = (1,) * len(operator.domain.shape)
    return value.reshape(*value.shape, *ones) if value.ndim else value
