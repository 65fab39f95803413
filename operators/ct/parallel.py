"""Parallel-beam computed tomography."""

import math
import operator
import warnings
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from recon.operators.base import LinearOperator
from recon.operators.ct.symmetry import LineIntegrals, Method
from recon.space import Space


class ParallelBeamCT(LinearOperator):
    """Line integrals of an image, view by view: ``y[v, d] = integral of x along line (v, d)``.

    Line ``(v, d)`` is ``X cos(angle[v]) + Y sin(angle[v]) = s[d]`` with
    ``s[d] = (d - (detectors - 1) / 2 + detector_offset) * detector_spacing``. X runs along image
    columns (right), Y against image rows (up), and the origin is the centre of the grid, which for
    an even size lies between two pixels: pixel ``(i, j)`` of an ``(H, W)`` image lies at
    ``X = (j - (W - 1) / 2) * pixel_size``, ``Y = ((H - 1) / 2 - i) * pixel_size``. So at angle 0
    the rays run along the columns and ``y[0, d]`` sums column ``d``; at pi / 2 they run along the
    rows and ``y[0, 0]`` sums the last row. The detector turns anticlockwise with the angle.
    These are the directions of ``skimage.transform.radon`` (which transposes the sinogram and has
    its centre at pixel N // 2).

    Images are ``(*batch, 1, H, W)``, real; sinograms ``(*batch, 1, views, detectors)`` in units of
    the image times those of ``pixel_size``. The adjoint is the transpose of the same weights, to
    rounding, in float32 and float64. Weights: Joseph 1982, IEEE Trans. Med. Imaging 1(3), 192.

    Parameters
    ----------
    size
        ``N`` for an ``(N, N)`` image, or ``(H, W)``.
    angles
        Of the views, in radians, in any order and number. Single precision angles are taken to be
        equal, up to a symmetry, where they differ by no more than their rounding.
    detectors
        Number of bins; None for the fewest that cover the diagonal of the image.
    detector_offset
        Shift of the detector along itself, in bins.
    pixel_size
        Side of a pixel, in any unit of length.
    detector_spacing
        Distance of neighbouring bins in the same unit; None for ``pixel_size``.
    method
        "symmetry" stores each weight once for all symmetries of the grid and is fastest for few
        images at a time; "matrix" stores all and is fastest for many; "auto" chooses by the number
        of images. Both agree to rounding.
    memory_limit
        Bytes up to which "auto" may store all weights (512 x 512 pixels and 180 views take
        1.4 GB).
    dtype
        In which weights are stored, float32 or float64. Products are in the precision of the input.

    Raises ValueError for sizes, counts or lengths that are not positive, and for angles that are
    not finite. Warns if the detector misses part of the circle inscribed in the image.

    Example
    -------
    >>> A = ParallelBeamCT(64, torch.arange(30) * torch.pi / 30)
    >>> A(torch.ones(2, 1, 64, 64)).shape
    torch.Size([2, 1, 30, 91])
    """

    def __init__(self, size: int | tuple[int, int], angles: Tensor | Sequence[float],
                 detectors: int | None = None, detector_offset: float = 0.0,
                 pixel_size: float = 1.0, detector_spacing: float | None = None, *,
                 method: Method = "auto", memory_limit: float = 2 * 2**30,
                 dtype: torch.dtype = torch.float32) -> None:
        pair = size if isinstance(size, tuple | list) else (size, size)
        if len(pair) != 2:
            raise ValueError(f"ParallelBeamCT: want size N or (H, W), got {size}")
        shape = (_count("size", pair[0]), _count("size", pair[1]))
        pixel_size = _length("pixel_size", pixel_size)
        spacing = pixel_size if detector_spacing is None else _length("detector_spacing",
                                                                      detector_spacing)
        if detectors is None:
            # 1e-9: the diagonal over the spacing may come out a rounding above a whole number
            detectors = math.ceil(math.hypot(*shape) * pixel_size / spacing - 1e-9)
        detectors = _count("detectors", detectors)
        if not math.isfinite(detector_offset):
            raise ValueError("ParallelBeamCT: want a finite detector_offset, "
                             f"got {detector_offset}")
        if method not in ("auto", "symmetry", "matrix"):
            raise ValueError("ParallelBeamCT: want method auto, symmetry or matrix, "
                             f"got {method!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"ParallelBeamCT: want dtype float32 or float64, got {dtype}")
        # a list of Python floats is double precision, which as_tensor would drop
        given = torch.as_tensor(
            angles, dtype=torch.float64 if isinstance(angles, list | tuple) else None)
        angles = _angles(given.detach().cpu())
        super().__init__(Space((1, *shape), dtype), Space((1, len(angles), detectors), dtype))
        self.angles = angles
        self.detector_offset, self.pixel_size = float(detector_offset), pixel_size
        self.detector_spacing = spacing
        rounding = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
        self._tolerance = max(1e-9, 2 * rounding * max(math.pi, float(angles.abs().max())))
        self._method: Method = method
        self._memory_limit, self._dtype = memory_limit, dtype
        covered = self._covered()
        if covered < 1 - 1e-9:
            warnings.warn(
                f"{self.label()}: the detector covers {covered:.1%} of the circle inscribed in the "
                "image, so views are truncated; want more detectors, a larger "
                "detector_spacing or a smaller detector_offset", stacklevel=2)
        self.lines = self._lines()

    def forward(self, x: Tensor) -> Tensor:
        y = self.lines.project(x.reshape(-1, self.lines.pixels))
        return y.view(*self.domain.batch_of(x), *self.range.shape)

    def adjoint(self, y: Tensor) -> Tensor:
        x = self.lines.backproject(y.reshape(-1, self.lines.rays))
        return x.view(*self.range.batch_of(y), *self.domain.shape)

    def _lines(self) -> LineIntegrals:
        normal = torch.stack([self.angles.cos(), self.angles.sin()], 1)
        n = self.range.shape[2]
        offset = torch.arange(n, dtype=torch.float64) - (n - 1) / 2 + self.detector_offset
        offset = offset * (self.detector_spacing / self.pixel_size)
        return LineIntegrals(
            normal.repeat_interleave(n, 0), offset.repeat(len(normal)),
            (self.domain.shape[1], self.domain.shape[2]), self.pixel_size, self._method,
            self._memory_limit, self._tolerance, self._dtype)

    def _covered(self) -> float:
        """Covered part of the diameter of the circle inscribed in the image."""
        half = self.range.shape[2] / 2
        low, high = ((self.detector_offset + side * half) * self.detector_spacing
                     for side in (-1, 1))
        radius = min(self.domain.shape[1:]) / 2 * self.pixel_size
        return max(0.0, min(high, radius) - max(low, -radius)) / (2 * radius)

    def get_extra_state(self) -> Tensor:
        # The weights follow from the geometry, so this is all that need be saved.
        numbers = (*self.domain.shape, *self.range.shape, self.detector_offset, self.pixel_size,
                   self.detector_spacing, self._tolerance)
        return torch.cat([torch.tensor(numbers, dtype=torch.float64), self.angles])

    def set_extra_state(self, state: Tensor) -> None:
        state = state.to("cpu", torch.float64)
        mine = self.get_extra_state()
        if torch.equal(state, mine):
            return
        if not torch.equal(state[:6], mine[:6]):
            domain, image = (tuple(int(n) for n in part) for part in (state[:3], state[3:6]))
            raise ValueError(f"{self.label()}: want the state of an operator of this shape, "
                             f"got one of {domain} -> {image}")
        self.detector_offset, self.pixel_size, self.detector_spacing, self._tolerance = (
            state[6:10].tolist())
        self.angles = state[10:].clone()
        device = self.lines.folded.value.device
        self._dtype = self.lines.folded.value.dtype
        self.lines = self._lines().to(device)

    def extra_repr(self) -> str:
        _, views, detectors = self.range.shape
        return (f"size={self.domain.shape[1:]}, views={views}, detectors={detectors}, "
                f"detector_offset={self.detector_offset:g}, pixel_size={self.pixel_size:g}, "
                f"detector_spacing={self.detector_spacing:g}")


def _count(name: str, value: SupportsIndex) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"ParallelBeamCT: want a whole number as {name}, got {value!r}") from None
    if count < 1:
        raise ValueError(f"ParallelBeamCT: want {name} of at least 1, got {count}")
    return count


def _length(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"ParallelBeamCT: want a positive {name}, got {value}")
    return float(value)


def _angles(given: Tensor) -> Tensor:
    if given.ndim != 1 or given.is_complex():
        raise ValueError("ParallelBeamCT: want angles as a list of real numbers, got a tensor of "
                         f"shape {tuple(given.shape)} and {given.dtype}")
    if len(given) == 0:
        raise ValueError("ParallelBeamCT: want at least one view, got zero angles")
    finite = given.isfinite()
    if not bool(finite.all()):
        first = int((~finite).int().argmax())
        raise ValueError(f"ParallelBeamCT: want finite angles, got {float(given[first])} at view "
                         f"{first}")
    return given.to(torch.float64, copy=True)
