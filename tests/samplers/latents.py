"""A prior of latents of four numbers, a decoder of them to six pixels, and settings of STSL."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recon.operators import LinearOperator, Space, from_functions
from recon.priors import GaussianMixture
from tests.samplers.comparing import F64, noise

IMAGE, LATENT = Space((1, 2, 3)), Space((1, 1, 4))
NO_TRACE: dict[str, Any] = {"hessian_weight": 0.0}
quiet = pytest.mark.filterwarnings("ignore:the residual y - A x")
W = noise(6, 4, seed=3) / 2


def mixture() -> GaussianMixture:
    """Of latents of 4 numbers."""
    means = torch.tensor([[-2.0, 0, 1, 0], [1, 1, -1, 0.5], [0, -1, 0, 2]], dtype=F64)
    cov = 0.3 * torch.eye(4, dtype=F64) + 0.1
    return GaussianMixture(torch.tensor([1.0, 2, 1], dtype=F64), means.view(3, 1, 1, 4),
                           cov.expand(3, 4, 4).contiguous())


def decode(z: Tensor) -> Tensor:
    linear = (z.flatten(1) @ W.mT.to(z.dtype)).view(-1, 1, 2, 3)
    return linear + 0.2 * linear.sin()


def linearly(x: Tensor) -> Tensor:
    """Back by the pseudoinverse of what is linear in ``decode``."""
    return (x.flatten(1) @ torch.linalg.pinv(W).mT.to(x.dtype)).view(-1, 1, 1, 4)


def blurred() -> LinearOperator:
    """Not its own adjoint."""
    return from_functions(lambda x: x + 0.5 * x.roll(1, -1) + 0.2 * x.roll(1, -2), domain=IMAGE,
                          range=IMAGE)
