"""Measuring some pixels and not others."""

import torch
from torch import Tensor

from recon.operators.base import LinearOperator, Space


class Masking(LinearOperator):
    """``y = mask * x``: unmeasured entries are zero.

    Parameters
    ----------
    mask
        Zero or one (bool or number), broadcastable to ``(*batch, *space.shape)``; leading
        dimensions give each item its own mask.
    space
        The image space; real or complex.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, space: Space) -> None:
        super().__init__(space, space)
        mask = torch.as_tensor(mask)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("Masking: want a mask of zeros and ones; "
                             "for weights, write a LinearOperator or use from_functions")
        tail = tuple(mask.shape[-len(space.shape) :])
        if any(m not in (1, n) for m, n in zip(tail[::-1], space.shape[::-1], strict=False)):
            raise ValueError(f"Masking: mask {tuple(mask.shape)} does not fit {space.shape}")
        self.register_buffer("mask", mask != 0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.where(self.mask, y, 0)

    def normal(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, 0)

    def solve(self, rhs: Tensor, shift: Tensor | float,
              x0: Tensor | None = None,  # noqa: ARG002 closed form
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:  # noqa: ARG002
        gain = self.mask + self.per_item(shift, rhs)
        # shift 0: nothing is known where nothing was measured, and 0 / 0 is not an answer
        return torch.where(gain == 0, 0, rhs / torch.where(gain == 0, 1, gain))
