"""Line integrals without a stored matrix: weights are worked out anew in every call.

The integral along a ray gathers two pixels for each row (or column) of the image it is stepped
along. The transpose is a gather as well: the rays of one view that pass between two neighbours of
a pixel in its row are consecutive bins, at most ``2 / (distance of rays)`` of them, so each pixel
looks at those few and sums. No two places are written at once: the same bits on every run, on any
device, and the same weights both ways.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recon.operators.ct.geometry import Geometry
from recon.operators.ct.joseph import Steps, steps

# Weights worked out at once: 2**20 keeps each temporary at 8 MiB.
_CHUNK = 2**20


class Gather(NamedTuple):
    """Integrals of ``(pixels, items)`` images along the rays of a geometry, and their adjoint.

    Weights are worked out in float64 and rounded to ``dtype``, as stored ones are.
    """

    geometry: Geometry
    shape: tuple[int, int]
    dtype: torch.dtype

    def project(self, x: Tensor) -> Tensor:
        """``(pixels, items)`` to ``(rays, items)``."""
        bins, (rows, columns) = self.geometry.bins, self.shape
        y = x.new_empty(len(self.geometry.angles) * bins, x.shape[1])
        for views in self._views(2 * bins * max(self.shape)):
            normal, offset = (t.flatten(0, 1) for t in self.geometry.lines(views))
            of = y[views.start * bins : views.start * bins + len(offset)]
            steep = normal[:, 0].abs() >= normal[:, 1].abs()
            for along_rows, kind in ((True, steep), (False, ~steep)):
                rays = kind.nonzero()[:, 0]
                line = _on(steps(normal[rays], offset[rays], self.shape, self.geometry.pixel,
                                 along_rows), x.device)
                count, limit = (rows, columns) if along_rows else (columns, rows)
                step = torch.arange(count, dtype=torch.float64, device=x.device)
                across = line.at[:, None] + line.slope[:, None] * step
                tap = across.floor()
                fraction, tap = across - tap, tap.long()
                taps = torch.stack([tap, tap + 1], -1)
                weight = torch.stack([1 - fraction, fraction], -1) * line.length[:, None, None]
                weight = self._rounded(weight, (taps >= 0) & (taps < limit), x)
                taps, step = taps.clamp(0, limit - 1), step.long()[:, None]
                pixel = step * columns + taps if along_rows else taps * columns + step
                of[rays.to(x.device)] = bags(x, pixel.flatten(1), weight.flatten(1))
        return y

    def backproject(self, y: Tensor) -> Tensor:
        """``(rays, items)`` to ``(pixels, items)``."""
        bins, (rows, columns) = self.geometry.bins, self.shape
        x = y.new_zeros(math.prod(self.shape), y.shape[1])
        row, column = (t.reshape(-1).double() for t in torch.meshgrid(
            torch.arange(rows, device=y.device), torch.arange(columns, device=y.device),
            indexing="ij"))
        px, py = column - (columns - 1) / 2, (rows - 1) / 2 - row
        height, width = self.geometry.pixel
        # the neighbours of pixels at the edge stand half a pixel outside
        finest = self.geometry.finest(math.hypot((rows + 1) * height, (columns + 1) * width) / 2)
        for view in range(len(self.geometry.angles)):
            views = slice(view, view + 1)
            normal, offset = (t[0] for t in self.geometry.lines(views))
            of = y[view * bins : (view + 1) * bins]
            steep = normal[:, 0].abs() >= normal[:, 1].abs()
            for along_rows, kind in ((True, steep), (False, ~steep)):
                if not bool(kind.any()):
                    continue
                line = _on(steps(normal, offset, self.shape, self.geometry.pixel, along_rows),
                           y.device)
                # rays stepped the other way pass nothing here, and some have no finite place
                kind = kind.to(y.device)
                line = Steps(*(torch.where(kind, part, 0.0) for part in line))
                side = width if along_rows else height
                step, place = (row, column) if along_rows else (column, row)
                dx, dy = (1.0, 0.0) if along_rows else (0.0, 1.0)
                ends = [self.geometry.bin_at(views, px + e * dx, py + e * dy)[0] for e in (-1, 1)]
                first = torch.minimum(*ends).floor().long() + 1
                # the open interval between both neighbours holds no more whole numbers than this
                bin_ = first[:, None] + torch.arange(math.ceil(2 * side * finest),
                                                     device=y.device)
                inside = (bin_ >= 0) & (bin_ < bins)
                bin_ = bin_.clamp(0, bins - 1)
                across = line.at[bin_] + line.slope[bin_] * step[:, None]
                weight = (1 - (across - place[:, None]).abs()).clamp(min=0) * line.length[bin_]
                weight = self._rounded(weight, inside, y)
                x += bags(of, bin_, weight)
        return x

    def _rounded(self, weight: Tensor, inside: Tensor, like: Tensor) -> Tensor:
        return torch.where(inside, weight, 0).to(self.dtype).to(like.dtype)

    def _views(self, weights: int) -> Iterator[slice]:
        total, width = len(self.geometry.angles), max(1, _CHUNK // weights)
        for first in range(0, total, width):
            yield slice(first, min(first + width, total))


def _on(line: Steps, device: torch.device) -> Steps:
    return Steps(*(part.to(device) for part in line))


def bags(of: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``out[i] = sum_k weight[i, k] of[index[i, k]]`` without the gathered rows in memory."""
    return embedding_bag(index, of, per_sample_weights=weight, mode="sum")
