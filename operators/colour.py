"""Colours lost: grey images of coloured ones, and the filter arrays of cameras."""

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.closed_form import solved_by_modes
from recon.space import Space

REC_601 = (0.299, 0.587, 0.114)
"""Luma weights of red, green and blue (ITU-R BT.601), those of Pillow's ``convert("L")``."""


class Greyscale(LinearOperator):
    """One channel from several: ``y = sum_c weights[c] x[c]``, to be coloured again.

    Parameters
    ----------
    space
        The coloured images, real or complex.
    weights
        One number for each channel; those of red, green and blue by default.

    ``solve`` is a closed form. Measurements are ``(*batch, 1, *spatial)``.

    Examples
    --------
    >>> A = Greyscale(Space((3, 8, 8)))
    >>> y = A(torch.ones(3, 8, 8))
    """

    items = ()
    weights: Tensor

    def __init__(self, space: Space, weights: tuple[float, ...] | Tensor = REC_601) -> None:
        w = torch.as_tensor(weights, dtype=None if isinstance(weights, Tensor) else torch.float64)
        if tuple(w.shape) != space.shape[:1]:
            raise ValueError(f"Greyscale: want one weight for each of {space.shape[0]} channels, "
                             f"got {tuple(w.shape)}")
        if w.is_complex() or not bool(torch.isfinite(w).all()) or not bool(w.any()):
            raise ValueError(f"Greyscale: want real, finite weights, not all 0, got {w.tolist()}")
        super().__init__(space, Space((1, *space.shape[1:]), space.dtype))
        self.register_buffer("weights", w.view(-1, *(1,) * (len(space.shape) - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return (self._weights(x) * x).sum(-len(self.domain.shape), keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._weights(y) * y

    def solve(self, rhs: Tensor, shift: Tensor | float, x0: Tensor | None = None,
              max_iter: int = 50, rtol: float = 1e-6) -> Tensor:  # noqa: ARG002 closed form
        gain = self._weights(rhs).square().sum()
        # grey images show what is along the weights, with one gain
        return solved_by_modes(rhs, self.per_item(shift, rhs), x0, gain, self.forward,
                               lambda y: self.adjoint(y) / gain, len(self.domain.shape))

    def _weights(self, like: Tensor) -> Tensor:
        return self.weights.to(like.device, like.dtype.to_real())


def colour_filter(pattern: str, size: tuple[int, int]) -> Tensor:
    """Which colour a camera measures at each pixel, bool ``(3, *size)``, for ``Masking``.

    ``pattern`` names the colours of the upper left pixels, row by row, a square of "R", "G" and
    "B": "RGGB", "BGGR", "GRBG" and "GBRG" are Bayer's. It repeats across the image.

    Examples
    --------
    >>> A = Masking(colour_filter("RGGB", (8, 8)), Space((3, 8, 8)))
    """
    side = round(len(pattern) ** 0.5)
    if not pattern or side**2 != len(pattern) or set(pattern) - set("RGB"):
        raise ValueError("colour_filter: want a square of R, G and B row by row, such as 'RGGB', "
                         f"got {pattern!r}")
    if min(size) < 1:
        raise ValueError(f"colour_filter: want a size (height, width) >= 1, got {size}")
    tile = torch.tensor(["RGB".index(colour) for colour in pattern]).view(side, side)
    colours = tile[torch.arange(size[0])[:, None] % side, torch.arange(size[1]) % side]
    return colours == torch.arange(3)[:, None, None]
