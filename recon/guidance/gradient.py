"""Gradients through the denoiser, for guidance by the likelihood of its prediction."""

from collections.abc import Callable

import torch
from torch import Tensor

from recon.priors import Prior

Pullback = Callable[[Tensor], Tensor]


def denoise_with_pullback(prior: Prior, x: Tensor, sigma: Tensor) -> tuple[Tensor, Pullback]:
    """``D(x; sigma)`` and ``v -> J^T v`` with its Jacobian, real and imaginary parts as one vector.

    The network runs forward once; each pull runs it backward once and may be called again. For
    the exact denoiser ``J = Cov[x0 | x] / sigma^2`` is symmetric, so the pull is ``J v`` as well.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x).detach().requires_grad_()
        x0 = prior(x, sigma)

    def pull(v: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(x0, x, v, retain_graph=True)
        return pulled

    return x0.detach(), pull
