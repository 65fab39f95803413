"""What sensors do to light: they saturate, count in steps, and bend the scale."""

import math

import torch
from torch import Tensor

from recon.operators.base import Operator
from recon.operators.blur import Blur
from recon.space import Space


class Clipping(Operator):
    """Too much light: ``y = min(max(gain x, low), high)``, as in high dynamic range imaging.

    ``vjp`` is exact: ``gain v`` where nothing is clipped, 0 where it is.

    Parameters
    ----------
    space
        Real images.
    gain
        Exposure; above 1 more is clipped.
    low, high
        What the sensor can say, in the units of ``y``.

    Examples
    --------
    >>> A = Clipping(Space((3, 64, 64)), gain=2.0)
    """

    items = ()

    def __init__(self, space: Space, gain: float = 1.0, low: float = 0.0,
                 high: float = 1.0) -> None:
        _want_real("Clipping", space)
        _want_interval("Clipping", low, high)
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"Clipping: want a finite gain > 0, got {gain}")
        super().__init__(space, space)
        self.gain, self.low, self.high = gain, low, high

    def forward(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(self.low, self.high)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        light = self.gain * x
        return torch.where((light >= self.low) & (light <= self.high), self.gain * v, 0)


class Quantisation(Operator):
    """The nearest of ``levels`` equally spaced values from ``low`` to ``high``.

    Its derivative is zero wherever it exists, so ``vjp`` returns zeros, exactly, and a sampler that
    follows gradients learns nothing from ``y``: use ``StraightThroughQuantisation`` there.

    Parameters
    ----------
    space
        Real images.
    levels
        At least 2.
    low, high
        The first and the last value; what lies beyond becomes these.

    Examples
    --------
    >>> Quantisation(Space((1, 3)), levels=3)(torch.tensor([[0.1, 0.3, 2.0]]))
    tensor([[0.0000, 0.5000, 1.0000]])
    """

    items = ()

    def __init__(self, space: Space, levels: int, low: float = 0.0, high: float = 1.0) -> None:
        _want_real(type(self).__name__, space)
        _want_interval(type(self).__name__, low, high)
        if not isinstance(levels, int) or levels < 2:
            raise ValueError(f"{type(self).__name__}: want 2 levels or more, got {levels}")
        super().__init__(space, space)
        self.levels, self.low, self.high = levels, low, high

    def forward(self, x: Tensor) -> Tensor:
        step = (self.high - self.low) / (self.levels - 1)
        return self.low + step * ((x.clamp(self.low, self.high) - self.low) / step).round()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002 the same wherever x is
        return torch.zeros_like(v)


class StraightThroughQuantisation(Quantisation):
    """``Quantisation`` with a surrogate gradient: ``vjp`` is that of clipping to [low, high].

    Values are those of ``Quantisation``, to the bit. The surrogate (Bengio et al. 2013,
    arXiv 1308.3432) treats rounding as the identity; it is not the derivative, and ``check`` says
    so in its rows on differences.
    """

    def forward(self, x: Tensor) -> Tensor:
        inside = x.clamp(self.low, self.high)
        # the second term is 0, and carries the gradient
        return super().forward(x).detach() + (inside - inside.detach())

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.where((x >= self.low) & (x <= self.high), v, 0)


class NonlinearBlur(Operator):
    """Blur of light seen through a camera's response: ``y = c(kernel * c^-1(x))``.

    ``x`` and ``y`` are pictures as stored, 0 dark and 1 bright; light adds up, stored values do
    not, so that bright points spread further than a blur of ``x`` itself would say. ``c`` is the
    curve of sRGB (IEC 61966-2-1), continued as an odd function below 0 and by its formula above 1.
    It is linear near 0, so that the derivative is bounded. ``vjp`` is exact.

    Parameters
    ----------
    kernel, space, boundary
        As of ``Blur``; real.

    Examples
    --------
    >>> A = NonlinearBlur(gaussian_kernel(2.0), Space((3, 64, 64)))
    """

    def __init__(self, kernel: Tensor, space: Space, boundary: str = "periodic") -> None:
        _want_real("NonlinearBlur", space)
        blur = Blur(kernel, space, boundary)
        super().__init__(space, blur.range)
        self.blur, self.items = blur, blur.items

    def forward(self, x: Tensor) -> Tensor:
        return stored(self.blur(light(x)))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        inner = self.blur(light(x))
        return _light_slope(x) * self.blur.adjoint(v * _stored_slope(inner))


_KNEE, _SLOPE = 0.0031308, 12.92  # of the straight part, in light
_BENT_KNEE = _KNEE * _SLOPE


def stored(t: Tensor) -> Tensor:
    """sRGB's curve: stored values of light, both from 0 to 1; odd."""
    size = t.abs()
    # clamped, so that the side not taken has a finite slope to be multiplied by 0
    bent = 1.055 * size.clamp(min=_KNEE) ** (1 / 2.4) - 0.055
    return torch.where(size <= _KNEE, _SLOPE * t, t.sgn() * bent)


def light(x: Tensor) -> Tensor:
    """The light of stored values: the inverse of ``stored``."""
    size = x.abs()
    bent = ((size.clamp(min=_BENT_KNEE) + 0.055) / 1.055) ** 2.4
    return torch.where(size <= _BENT_KNEE, x / _SLOPE, x.sgn() * bent)


def _stored_slope(t: Tensor) -> Tensor:
    size = t.abs()
    return torch.where(size <= _KNEE, _SLOPE, 1.055 / 2.4 * size.clamp(min=_KNEE) ** (1 / 2.4 - 1))


def _light_slope(x: Tensor) -> Tensor:
    size = x.abs()
    bent = 2.4 / 1.055 * ((size.clamp(min=_BENT_KNEE) + 0.055) / 1.055) ** 1.4
    return torch.where(size <= _BENT_KNEE, 1 / _SLOPE, bent)


def _want_real(call: str, space: Space) -> None:
    if space.is_complex:
        raise TypeError(f"{call}: want a real space, got {space.dtype}")


def _want_interval(call: str, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{call}: want finite low < high, got {low} and {high}")
