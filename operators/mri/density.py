"""Density compensation: how much of k-space each sample of a trajectory stands for."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon.operators.mri.arguments import (
    checked_shape,
    checked_trajectory,
    item_trajectories,
)
from recon.operators.mri.gridding import fast_even_size, taps
from recon.operators.sparse import Rows, SparsePair

# The kernel: 2.5 cycles wide, its transform down to nothing one field of view from the middle, so
# that samples one cycle apart add up to a constant.
_OVERSAMPLING, _WIDTH, _BETA = 2, 5, 7.0


def pipe_menon(shape: Sequence[int], trajectory: Tensor, iterations: int = 30, *,
               item_axes: int = 0) -> Tensor:
    """Weights of the samples, ``trajectory.shape[:-1]``: the area of k-space that each one covers.

    With ``item_axes`` as of ``NonCartesianMRI``, every item is weighed by itself, and the weights
    are ``(*items, 1, *samples)``: they multiply measurements of any number of coils.

    In squared cycles per field of view (to the power of the axes), so that each sample of a full
    Cartesian grid weighs 1. ``A.adjoint(weights * y)`` is then the gridding reconstruction in the
    units of the image, ``A`` being ``NonCartesianMRI``. The fixed point of ``w <- w / (C C^T w)``,
    with ``C C^T`` the convolution of the samples by a kernel of unit integral (Pipe & Menon 1999,
    Magn. Reson. Med. 41, 179-186); here a Kaiser-Bessel kernel of 2.5 cycles, applied twice, on a
    grid of two points a cycle. Within two cycles of the edge of what is sampled the weights swing
    about the area. Computed in double precision on the CPU; the result is in the precision and on
    the device of ``trajectory``.

    Parameters
    ----------
    shape
        Of the image, ``(height, width)`` or ``(depth, height, width)``.
    trajectory
        ``(*samples, axes)`` in cycles per field of view; ``(*items, *samples, axes)`` of items.
    """
    size = checked_shape("pipe_menon", shape)
    k = checked_trajectory("pipe_menon", trajectory, size)
    if iterations < 1:
        raise ValueError(f"pipe_menon: want at least 1 iteration, got {iterations}")
    item_trajectories("pipe_menon", k, item_axes)
    real = trajectory.dtype if trajectory.is_floating_point() else torch.float32
    if item_axes:
        items = k.flatten(0, item_axes - 1).flatten(1, -2)
        w = torch.stack([_weights(one, size, iterations) for one in items])
        return w.view(*k.shape[:item_axes], 1, *k.shape[item_axes:-1]).to(trajectory.device, real)
    return _weights(k.flatten(0, -2), size, iterations).view(k.shape[:-1]).to(
        trajectory.device, real)


def _weights(flat: Tensor, size: tuple[int, ...], iterations: int) -> Tensor:
    """Of ``(samples, axes)``, float64 ``(samples,)``."""
    # a margin of the kernel, so that nothing wraps around to the other edge of k-space
    grid = tuple(fast_even_size(math.ceil(_OVERSAMPLING * (1.1 * n + _WIDTH))) for n in size)
    column = torch.zeros(len(flat), 1, dtype=torch.int64)
    value = torch.ones(len(flat), 1, dtype=torch.float64)
    for axis, m in enumerate(grid):
        point, weight = taps(flat[:, axis] * _OVERSAMPLING, _WIDTH, _BETA)
        column = (column[:, :, None] * m + (point % m)[:, None]).flatten(1)
        value = (value[:, :, None] * weight[:, None]).flatten(1)
    value = value / value.sum(1, keepdim=True)
    start = torch.arange(len(flat) + 1) * _WIDTH ** len(size)
    C = SparsePair(Rows(start, column.flatten().int(), value.flatten()), math.prod(grid))
    w = torch.ones(len(flat), 1, dtype=torch.float64)
    for _ in range(iterations):
        w = w / C.multiply(C.multiply(w, adjoint=True))
    # the convolution was per point of the grid: a point is oversampling^-axes of a cell
    return w.squeeze(1) * _OVERSAMPLING ** -len(size)
