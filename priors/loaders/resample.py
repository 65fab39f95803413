"""Filtered doubling and halving of images, in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional


def separable(taps: tuple[float, ...]) -> Tensor:
    """The two-dimensional filter ``(k, k)`` of one-dimensional taps, of sum one."""
    row = torch.tensor(taps)
    return torch.outer(row, row) / row.sum().square()


def halved(x: Tensor, kernel: Tensor) -> Tensor:
    """Every second pixel of the filtered image; ``kernel`` is ``(k, k)`` with even ``k``."""
    width, weight = x.shape[1], kernel.to(x.dtype)
    weight = weight.expand(width, 1, *kernel.shape)
    return functional.conv2d(x, weight, stride=2, padding=len(kernel) // 2 - 1, groups=width)


def doubled(x: Tensor, kernel: Tensor) -> Tensor:
    """Zeros between the pixels, then the filter, times 4 to keep the mean."""
    width, weight = x.shape[1], 4 * kernel.to(x.dtype)
    weight = weight.expand(width, 1, *kernel.shape)
    return functional.conv_transpose2d(x, weight, stride=2, padding=len(kernel) // 2 - 1,
                                       groups=width)
