"""Kernels of common blurs: out of focus, moved, shaken. All sum to one."""

import math

import torch
from torch import Tensor


def gaussian_kernel(std: float | tuple[float, float], size: int | None = None,
                    angle: float = 0.0) -> Tensor:
    """``exp(-(u^2 / std_u^2 + v^2 / std_v^2) / 2)``, ``(size, size)``, summing to one.

    ``std`` in pixels, one or two: along u and v, the rows (down) and columns (right) of the image
    turned anticlockwise by ``angle`` radians. ``size`` is odd, and reaches four of the larger
    standard deviations unless given, as scipy.ndimage.gaussian_filter does.
    """
    stds = std if isinstance(std, tuple) else (std, std)
    if len(stds) != 2 or not all(math.isfinite(s) and s > 0 for s in stds):
        raise ValueError(f"gaussian_kernel: want a finite std > 0 in pixels, one or two, got {std}")
    if not math.isfinite(angle):
        raise ValueError(f"gaussian_kernel: want a finite angle in radians, got {angle}")
    size = 2 * int(4 * max(stds) + 0.5) + 1 if size is None else size
    _odd("gaussian_kernel", size)
    at = torch.arange(size, dtype=torch.float64) - size // 2
    i, j = at[:, None], at
    # rows run down: with y = -i pointing up, the turned axes are u = -(y cos - x sin), v = ...
    u = (i * math.cos(angle) + j * math.sin(angle)) / stds[0]
    v = (j * math.cos(angle) - i * math.sin(angle)) / stds[1]
    return _one(torch.exp(-(u**2 + v**2) / 2))


def motion_kernel(length: float, angle: float = 0.0, size: int | None = None) -> Tensor:
    """A straight move of ``length`` pixels at constant speed, ``(size, size)``, summing to one.

    ``angle`` in radians, anticlockwise from the columns' direction (right); the path is centred.
    Each point of the path is shared by the four pixels around it, in proportion to nearness. A
    ``length`` of 0 is no blur. ``size`` is odd, and holds the path unless given.
    """
    if not (math.isfinite(length) and length >= 0 and math.isfinite(angle)):
        raise ValueError("motion_kernel: want a finite length >= 0 in pixels and a finite angle in "
                         f"radians, got {length} and {angle}")
    size = 2 * math.ceil(length / 2) + 1 if size is None else size
    _odd("motion_kernel", size)
    steps = max(1, math.ceil(64 * length))
    along = length * ((torch.arange(steps, dtype=torch.float64) + 0.5) / steps - 0.5)
    path = torch.stack([-along * math.sin(angle), along * math.cos(angle)], 1)
    return _exposed("motion_kernel", path, size)


def shake_kernel(size: int, extent: float = 0.7, smoothness: float = 0.3,
                 generator: torch.Generator | None = None) -> Tensor:
    """The path of a shaken camera, ``(size, size)``, summing to one.

    The path is one draw of a two-dimensional Gaussian process over the time of exposure, with
    correlation ``exp(-(s - t)^2 / (2 smoothness^2))``, times in units of the exposure; its bounding
    box is centred and its longer side scaled to ``extent * (size - 1)``. ``size`` is odd.
    """
    _odd("shake_kernel", size)
    if not 0 < extent <= 1 or not (math.isfinite(smoothness) and smoothness > 0):
        raise ValueError("shake_kernel: want 0 < extent <= 1 and a finite smoothness > 0, "
                         f"got {extent} and {smoothness}")
    times = torch.linspace(0, 1, 32 * size, dtype=torch.float64)
    # the process by random Fourier features of its spectrum, a Gaussian of std 1 / smoothness
    draws = torch.randn(3, 64, 2, generator=generator, dtype=torch.float64)
    phase = times[:, None, None] * draws[0] / smoothness
    path = (draws[1] * phase.cos() + draws[2] * phase.sin()).sum(1)
    path = path - (path.amax(0) + path.amin(0)) / 2
    reach = path.abs().amax()
    path = path * torch.where(reach > 0, extent * (size - 1) / 2 / reach, 0)
    return _exposed("shake_kernel", path, size)


def _exposed(call: str, path: Tensor, size: int) -> Tensor:
    """The time that ``path``, ``(steps, 2)`` rows and columns from the centre, spends at each."""
    at = path + size // 2
    if bool(((at < 0) | (at > size - 1)).any()):
        raise ValueError(f"{call}: want a size that holds the path, got {size}: at least "
                         f"{2 * math.ceil(float(path.abs().max())) + 1}")
    corner = at.floor().clamp(max=max(size - 2, 0))
    part = at - corner
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for down in (0, 1):
        for right in (0, 1):
            weight = ((1 - part[:, 0]) if down == 0 else part[:, 0]) * (
                (1 - part[:, 1]) if right == 0 else part[:, 1])
            # a kernel of one pixel has no neighbour, and nothing to give it
            row, column = ((corner[:, n].long() + step).clamp(max=size - 1)
                           for n, step in ((0, down), (1, right)))
            kernel.index_put_((row, column), weight, accumulate=True)
    return _one(kernel)


def _one(kernel: Tensor) -> Tensor:
    return (kernel / kernel.sum()).to(torch.get_default_dtype())


def _odd(call: str, size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{call}: want an odd size >= 1, got {size}: "
                         "an even one has no central pixel and would shift the image")
