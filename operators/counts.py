"""Photon counts: their mean as an operator, their noise as a function."""

import torch
from torch import Tensor

from recon.operators.base import Operator
from recon.space import Space


class Counts(Operator):
    """The mean number of counts, ``y = gain x + background``; what is measured is Poisson of it.

    An operator is deterministic: ``draw_counts(A(x))`` simulates a measurement. The variance of a
    count is its mean. With another operator, ``Counts(B.range, gain) @ B``.

    Parameters
    ----------
    space
        Real images, in units of which ``gain`` counts are expected; not negative where counts are
        to be drawn.
    gain
        Counts per unit, a number or a tensor that broadcasts to ``space.shape``; above 0.
    background
        Counts without any signal, likewise; not negative.

    Examples
    --------
    >>> A = Counts(Space((1, 8, 8)), gain=100.0, background=2.0)
    >>> y = draw_counts(A(torch.ones(1, 8, 8)))
    """

    items = ()
    gain: Tensor
    background: Tensor

    def __init__(self, space: Space, gain: Tensor | float,
                 background: Tensor | float = 0.0) -> None:
        if space.is_complex:
            raise TypeError(f"Counts: want a real space, got {space.dtype}")
        super().__init__(space, space)
        for name, value, low in (("gain", gain, "> 0"), ("background", background, ">= 0")):
            values = torch.as_tensor(value, dtype=None if isinstance(value, Tensor)
                                     else torch.float64)
            if values.is_complex() or not bool(torch.isfinite(values).all()) or not bool(
                    (values > 0 if name == "gain" else values >= 0).all()):
                raise ValueError(f"Counts: want a finite {name} {low}, got "
                                 f"{value if values.ndim == 0 else values.amin().item()}")
            if any(m not in (1, n) for m, n in zip(values.shape[::-1], space.shape[::-1],
                                                   strict=False)) or values.ndim > len(space.shape):
                raise ValueError(f"Counts: {name} {tuple(values.shape)} does not fit {space.shape}")
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        return self._cast(self.gain, x) * x + self._cast(self.background, x)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002 the same wherever x is
        return self._cast(self.gain, v) * v

    def _cast(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device, like.dtype)


def draw_counts(mean: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One Poisson draw of each mean, whole numbers in the precision of ``mean``.

    Raises ValueError for a mean that is negative or not finite.
    """
    if mean.is_complex() or not mean.is_floating_point():
        raise TypeError(f"draw_counts: want real floating means, got {mean.dtype}")
    bad = ~torch.isfinite(mean) | (mean < 0)
    if bool(bad.any()):
        raise ValueError(f"draw_counts: want finite means >= 0, got {mean[bad][0].item()} and "
                         f"{int(bad.sum()) - 1} others of {mean.numel()}")
    return torch.poisson(mean, generator=generator)
