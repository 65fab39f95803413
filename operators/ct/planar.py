"""What parallel and fan beams of one plane share: arguments, products, state."""

import dataclasses
import math
import operator
import warnings
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.ct.geometry import Geometry, settled
from recon.operators.ct.symmetry import LineIntegrals, Method
from recon.space import Space


class PlanarCT(LinearOperator):
    """Line integrals of an image along the rays of a ``Geometry``.

    A subclass checks its arguments and names its geometry; weights and their transpose are here.
    """

    items = ()
    geometry: Geometry

    def __init__(self, shape: tuple[int, int], geometry: Geometry, tolerance: float,
                 method: Method, memory_limit: float, dtype: torch.dtype) -> None:
        name = type(self).__name__
        if method not in ("auto", "symmetry", "matrix", "gather"):
            raise ValueError(f"{name}: want method auto, symmetry, matrix or gather, "
                             f"got {method!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: want dtype float32 or float64, got {dtype}")
        if not memory_limit >= 0:
            raise ValueError(f"{name}: want a memory_limit >= 0, got {memory_limit}")
        views = len(geometry.angles)
        super().__init__(Space((1, *shape), dtype), Space((1, views, geometry.bins), dtype))
        self.geometry, self._tolerance = geometry, tolerance
        covered = self._covered()
        if covered < 1 - 1e-9:
            warnings.warn(
                f"{self.label()}: the detector covers {covered:.1%} of the circle inscribed in the "
                "image, so views are truncated; want more detectors, a larger "
                "detector_spacing or a smaller detector_offset", stacklevel=3)
        self._method: Method = method
        self._memory_limit, self._dtype = memory_limit, dtype
        self.lines = self._lines()

    @property
    def angles(self) -> Tensor:
        """Of the views, float64 ``(views,)``, in radians."""
        return self.geometry.angles

    def forward(self, x: Tensor) -> Tensor:
        y = self.lines.project(x.reshape(-1, self.lines.pixels))
        return y.view(*self.domain.batch_of(x), *self.range.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        x = self.lines.backproject(y.reshape(-1, self.lines.rays))
        return x.view(*self.range.batch_of(y), *self.domain.shape)

    def _lines(self) -> LineIntegrals:
        placed = dataclasses.replace(self.geometry,
                                     angles=settled(self.angles, self._tolerance))
        return LineIntegrals(placed, (self.domain.shape[1], self.domain.shape[2]), self._method,
                             self._memory_limit, self._dtype)

    def _covered(self) -> float:
        """Covered part of the diameter of the circle inscribed in the image."""
        low, high = self.geometry.reach()
        height, width = self.geometry.pixel
        radius = min(self.domain.shape[1] * height, self.domain.shape[2] * width) / 2
        return max(0.0, min(high, radius) - max(low, -radius)) / (2 * radius)

    def get_extra_state(self) -> Tensor:
        # The weights follow from the geometry, so this is all that need be saved.
        numbers = (*self.domain.shape, *self.range.shape, self._tolerance, *self.geometry.pixel,
                   *self.geometry.numbers())
        return torch.cat([torch.tensor(numbers, dtype=torch.float64), self.angles])

    def set_extra_state(self, state: Tensor) -> None:
        state = state.to("cpu", torch.float64)
        mine = self.get_extra_state()
        if torch.equal(state, mine):
            return
        if not torch.equal(state[:6], mine[:6]) or state.shape != mine.shape:
            domain, image = (tuple(int(n) for n in part) for part in (state[:3], state[3:6]))
            raise ValueError(f"{self.label()}: want the state of an operator of this kind and "
                             f"shape, got one of {domain} -> {image}")
        self._tolerance, height, width = state[6:9].tolist()
        end = 9 + len(self.geometry.names)
        found = dict(zip(self.geometry.names, state[9:end].tolist(), strict=True))
        if "curved" in found:
            found["curved"] = bool(found["curved"])
        self.geometry = dataclasses.replace(self.geometry, angles=state[end:].clone(),
                                            pixel=(height, width), **found)
        if self.lines.folded is not None:
            self._dtype = self.lines.folded.value.dtype
        self.lines = self._lines().to(self.lines.place.device)

    def extra_repr(self) -> str:
        _, views, bins = self.range.shape
        height, width = self.geometry.pixel
        pixel = f"{height:g}" if height == width else f"({height:g}, {width:g})"
        numbers = zip(self.geometry.names, self.geometry.numbers(), strict=True)
        return (f"size={self.domain.shape[1:]}, views={views}, detectors={bins}, "
                f"pixel_size={pixel}, " + ", ".join(f"{name}={n:g}" for name, n in numbers))


def counted(call: str, name: str, value: SupportsIndex) -> int:
    """A whole number of at least 1."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{call}: want a whole number as {name}, got {value!r}") from None
    if count < 1:
        raise ValueError(f"{call}: want {name} of at least 1, got {count}")
    return count


def length_of(call: str, name: str, value: float) -> float:
    """A positive, finite number."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{call}: want a positive {name}, got {value}")
    return float(value)


def finite_of(call: str, name: str, value: float) -> float:
    """A finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{call}: want a finite {name}, got {value}")
    return float(value)


def shape_of(call: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """``(rows, columns)`` of ``N`` or ``(H, W)``."""
    pair = size if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"{call}: want size N or (H, W), got {size}")
    return counted(call, "size", pair[0]), counted(call, "size", pair[1])


def pixel_of(call: str, pixel_size: float | tuple[float, float]) -> tuple[float, float]:
    """``(height, width)`` of a pixel from its side, or from both."""
    pair = pixel_size if isinstance(pixel_size, tuple | list) else (pixel_size, pixel_size)
    if len(pair) != 2:
        raise ValueError(f"{call}: want pixel_size as a side or (height, width), got {pixel_size}")
    return length_of(call, "pixel_size", pair[0]), length_of(call, "pixel_size", pair[1])


def angles_of(call: str, angles: Tensor | Sequence[float]) -> tuple[Tensor, float]:
    """Float64 angles, and how far symmetric ones may miss one another for their rounding."""
    # a list of Python floats is double precision, which as_tensor would drop
    given = torch.as_tensor(
        angles, dtype=torch.float64 if isinstance(angles, list | tuple) else None).detach().cpu()
    if given.ndim != 1 or given.is_complex():
        raise ValueError(f"{call}: want angles as a list of real numbers, got a tensor of "
                         f"shape {tuple(given.shape)} and {given.dtype}")
    if len(given) == 0:
        raise ValueError(f"{call}: want at least one view, got zero angles")
    finite = given.isfinite()
    if not bool(finite.all()):
        first = int((~finite).int().argmax())
        raise ValueError(f"{call}: want finite angles, got {float(given[first])} at view {first}")
    found = given.to(torch.float64, copy=True)
    rounding = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
    return found, max(1e-9, 2 * rounding * max(math.pi, float(found.abs().max())))
