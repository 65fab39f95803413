"""Measuring some pixels and not others."""

import math

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
        self.items = tuple(mask.shape[: -len(space.shape)])

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


def random_pixels(size: tuple[int, ...], fraction: float,
                  seed: int | torch.Generator = 0) -> Tensor:
    """Pixels measured at random, bool ``(1, *size)``: exactly ``round(fraction * pixels)`` of them.

    Every set of that many is equally likely. The leading dimension lets all channels share it.

    Examples
    --------
    >>> A = Masking(random_pixels((64, 64), 0.3), Space((3, 64, 64)))
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"random_pixels: want a fraction above 0 and at most 1, got {fraction}")
    n = math.prod(_size("random_pixels", size))
    kept = round(fraction * n)
    if kept < 1:
        raise ValueError(f"random_pixels: a fraction {fraction} of {n} pixels keeps none")
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.randperm(n, generator=_generator(seed))[:kept]] = True
    return mask.view(1, *size)


def missing_block(size: tuple[int, ...], block: tuple[int, ...], at: tuple[int, ...] | None = None,
                  seed: int | torch.Generator = 0) -> Tensor:
    """All pixels but a block, bool ``(1, *size)``.

    ``at`` is the block's first pixel on each axis; None draws it, every place inside the image
    equally likely.

    Examples
    --------
    >>> A = Masking(missing_block((64, 64), (32, 32), at=(16, 16)), Space((1, 64, 64)))
    """
    _size("missing_block", size)
    if len(block) != len(size) or any(not 1 <= b <= n for b, n in zip(block, size, strict=True)):
        raise ValueError(f"missing_block: want a block of 1 to {size} pixels, got {block}")
    room = [n - b for n, b in zip(size, block, strict=True)]
    if at is None:
        generator = _generator(seed)
        at = tuple(int(torch.randint(r + 1, (), generator=generator)) for r in room)
    if len(at) != len(size) or any(not 0 <= a <= r for a, r in zip(at, room, strict=True)):
        raise ValueError(f"missing_block: want a place from 0 to {tuple(room)}, where a block "
                         f"{block} lies inside {size}, got {at}")
    inside = torch.ones(1, *size, dtype=torch.bool)
    for axis, (a, b) in enumerate(zip(at, block, strict=True), 1):
        index = torch.arange(size[axis - 1]).view(-1, *(1,) * (len(size) - axis))
        inside = inside & (index >= a) & (index < a + b)
    return ~inside


def _size(call: str, size: tuple[int, ...]) -> tuple[int, ...]:
    if not size or min(size) < 1:
        raise ValueError(f"{call}: want spatial sizes >= 1, got {size}")
    return size


def _generator(seed: int | torch.Generator) -> torch.Generator:
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
