"""Where the rays of each view run: parallel ones, and those that fan out from a source."""

import abc
import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

# Points of the circle around the image at which the density of rays is looked at.
_CIRCLE = 4096


@dataclass(frozen=True, eq=False)
class Geometry(abc.ABC):
    """Views of a plane, in any unit of length; X runs right, Y up, both from the turning axis.

    Every ray is a line ``normal . (X, Y) = distance``. Bin ``d`` of the detector has its middle at
    ``(d - (bins - 1) / 2 + offset) * spacing`` along it.
    """

    angles: Tensor  # (views,) float64, radians
    bins: int
    spacing: float
    offset: float  # in bins
    pixel: tuple[float, float]  # height, width

    names: ClassVar[tuple[str, ...]] = ("spacing", "offset")

    def positions(self) -> Tensor:
        """Middles of the bins along the detector, ``(bins,)``."""
        d = torch.arange(self.bins, dtype=torch.float64)
        return (d - (self.bins - 1) / 2 + self.offset) * self.spacing

    @abc.abstractmethod
    def rays(self, views: slice) -> tuple[Tensor, Tensor]:
        """Angles of the normals and distances from the axis, both ``(views, bins)``."""

    @abc.abstractmethod
    def bin_through(self, views: slice, X: Tensor, Y: Tensor) -> Tensor:
        """Number of the bin, whole or not, that the ray through ``(X, Y)`` meets.

        ``X`` and ``Y`` are ``(pixels,)``; the result is ``(views, pixels)``.
        """

    @abc.abstractmethod
    def finest(self, radius: float) -> float:
        """At most how many bins a step of unit length within ``radius`` of the axis passes."""

    @abc.abstractmethod
    def reach(self) -> tuple[float, float]:
        """Distances from the axis, signed, of the rays to both ends of the detector."""

    def lines(self, views: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The rays in units of pixels: unit normals ``(views, bins, 2)`` and offsets.

        A pixel need not be square: ``n . (X, Y)`` is ``(n_x width, n_y height) . (x, y)`` there.
        """
        angle, distance = self.rays(views)
        height, width = self.pixel
        normal = torch.stack([angle.cos() * width, angle.sin() * height], -1)
        length = normal.norm(dim=-1)
        return normal / length[..., None], distance / length

    def bin_at(self, views: slice, x: Tensor, y: Tensor) -> Tensor:
        """As ``bin_through``, of places in pixels."""
        return self.bin_through(views, x * self.pixel[1], y * self.pixel[0])

    def widened(self, below: int, above: int) -> Self:
        """With so many bins added at each end, the others where they are."""
        return dataclasses.replace(self, bins=self.bins + below + above,
                                   offset=self.offset + (above - below) / 2)

    def numbers(self) -> list[float]:
        """All that lies in the geometry besides its angles, pixels and number of bins."""
        return [float(getattr(self, name)) for name in self.names]

    def _bin(self, position: Tensor) -> Tensor:
        return position / self.spacing - self.offset + (self.bins - 1) / 2

    def _of(self, views: slice, X: Tensor) -> tuple[Tensor, Tensor]:
        angles = self.angles[views, None]
        return (angles.cos().to(X.device, X.dtype), angles.sin().to(X.device, X.dtype))


@dataclass(frozen=True, eq=False)
class Parallel(Geometry):
    """Rays ``X cos(angle) + Y sin(angle) = s`` with ``s`` the place on the detector."""

    def rays(self, views: slice) -> tuple[Tensor, Tensor]:
        angles = self.angles[views]
        return (angles[:, None].expand(-1, self.bins),
                self.positions().expand(len(angles), -1))

    def bin_through(self, views: slice, X: Tensor, Y: Tensor) -> Tensor:
        cos, sin = self._of(views, X)
        return self._bin(X * cos + Y * sin)

    def finest(self, radius: float) -> float:  # noqa: ARG002 the same everywhere
        return 1 / self.spacing

    def reach(self) -> tuple[float, float]:
        return tuple((self.offset + side * self.bins / 2) * self.spacing  # type: ignore[return-value]
                     for side in (-1, 1))


@dataclass(frozen=True, eq=False)
class Fan(Geometry):
    """Rays from a source at ``source * (sin(angle), -cos(angle))``, the detector opposite.

    A ray leaves the central one by the fan angle ``g``, towards ``(cos(angle), sin(angle))``: its
    normal has the angle ``angle - g`` and its distance from the axis is ``source * sin(g)``.
    ``g`` is ``atan(u / (source + detector))`` for a flat detector with ``u`` the place on it, and
    ``u / (source + detector)`` for one curved around the source.
    """

    source: float = 1.0  # from the axis
    detector: float = 0.0  # from the axis
    curved: bool = False

    names: ClassVar[tuple[str, ...]] = ("spacing", "offset", "source", "detector", "curved")

    @property
    def reaches(self) -> float:
        """From the source to the detector."""
        return self.source + self.detector

    def fan_angles(self) -> Tensor:
        """Of the middles of the bins, ``(bins,)``."""
        return self._fan(self.positions())

    def rays(self, views: slice) -> tuple[Tensor, Tensor]:
        g, angles = self.fan_angles(), self.angles[views]
        return angles[:, None] - g, (self.source * g.sin()).expand(len(angles), -1)

    def bin_through(self, views: slice, X: Tensor, Y: Tensor) -> Tensor:
        across, depth = self.from_source(views, X, Y)
        if self.curved:
            return self._bin(torch.atan2(across, depth) * self.reaches)
        return self._bin(across / depth * self.reaches)

    def from_source(self, views: slice, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """Places along the detector's direction and along the central ray, from the source."""
        cos, sin = self._of(views, X)
        return X * cos + Y * sin, self.source - X * sin + Y * cos

    def finest(self, radius: float) -> float:
        if self.curved:  # an arc of unit length at distance r is seen under 1 / r
            return self.reaches / (self.source - radius) / self.spacing
        # at distance r and fan angle g: 1 / (r cos(g)^2); the largest on the circle, 1 % added
        turn = torch.linspace(0, math.pi, _CIRCLE, dtype=torch.float64)
        depth = self.source - radius * turn.cos()
        far = torch.hypot(depth, radius * turn.sin())
        return 1.01 * self.reaches / self.spacing * float((far / depth**2).max())

    def reach(self) -> tuple[float, float]:
        ends = torch.tensor([(self.offset + side * self.bins / 2) * self.spacing
                             for side in (-1, 1)], dtype=torch.float64)
        low, high = (self.source * self._fan(ends).sin()).tolist()
        return low, high

    def _fan(self, position: Tensor) -> Tensor:
        ratio = position / self.reaches
        return ratio if self.curved else ratio.atan()


def settled(angles: Tensor, tolerance: float) -> Tensor:
    """``angles`` with those that are equal up to a flip or transposition made so to rounding.

    Single precision angles of equidistant views miss their symmetries by their rounding; moved by
    no more than ``tolerance``, they meet them. Views so many that unequal ones lie closer than that
    stay where they are: chains of neighbours say nothing of what is equal.
    """
    turn = (angles / (math.pi / 2)).floor()
    rest = angles - turn * (math.pi / 2)
    mirrored = rest > math.pi / 4
    folded = torch.where(mirrored, math.pi / 2 - rest, rest)
    ordered, order = folded.sort()
    first = torch.ones(len(folded), dtype=torch.bool)
    first[1:] = ordered.diff() > tolerance
    label = first.cumsum(0) - 1
    start = ordered[first][label]
    end = ordered[torch.cat([first[1:], first.new_ones(1)])][label]
    value = torch.where(end - start <= tolerance, start, ordered)
    value = torch.where(ordered <= tolerance, 0.0, value)
    value = torch.where(ordered >= math.pi / 4 - tolerance, math.pi / 4, value)
    kept = torch.empty_like(folded)
    kept[order] = value
    return turn * (math.pi / 2) + torch.where(mirrored, math.pi / 2 - kept, kept)
