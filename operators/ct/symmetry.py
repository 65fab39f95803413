"""Line integrals through a grid, with the grid's own symmetries taken out of the matrix.

The flips of a rectangular grid, and the transpositions of a square one, map lines to lines. A line
is therefore kept once for all lines it is mapped to: the integral along a line equals the integral
along its kept one through the flipped or transposed image. The variants of the image (8, or 4, or
only those needed) are the dense columns of one sparse product, which is bound by streaming the
matrix, so that 8 columns cost about as much as one while the matrix shrinks up to eightfold.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from recon.operators.ct import kernels
from recon.operators.ct.gather import Gather
from recon.operators.ct.geometry import Geometry
from recon.operators.ct.joseph import count_taps, joseph_rows
from recon.operators.linear_map import linear_map
from recon.operators.sparse import Rows, SparsePair

Method = Literal["auto", "symmetry", "matrix", "gather"]

# Lines this close, in radians and in pixels, are one.
_MEET = 1e-9
# Columns of one sparse product: from about 32 the dense operand leaves the L3 cache.
_MAX_COLUMNS = 16
# Bytes of one dense operand: glibc maps and faults in anew every block above 32 MiB.
_MAX_OPERAND = 16 * 2**20


class Folding(NamedTuple):
    """Which kept line, and which variant of the image, gives the integral along each line."""

    normal: Tensor  # (kept, 2)
    offset: Tensor  # (kept,)
    row: Tensor  # (rays,), index of the kept line
    variant: Tensor  # (rays,), index into elements
    elements: Tensor  # (variants,), bits: 1 flips X, 2 flips Y, then 4 exchanges X and Y


def fold(normal: Tensor, offset: Tensor, square: bool) -> Folding:
    """Map each line ``normal . (X, Y) = offset`` to its kept line.

    Kept lines have ``offset >= 0`` and an angle within [0, 90] degrees, or [0, 45] for a ``square``
    grid of square pixels. Every line is mapped by its own symmetry, so nothing is assumed about the
    set of lines: lines that meet (angles within 1e-9 rad, offsets within 1e-9 pixels) share one
    kept line, others just do not.
    """
    sign = torch.where(offset < 0, -1.0, 1.0).to(offset)  # (n, q) and (-n, -q): the same line
    a, b = (normal * sign[:, None]).unbind(1)
    flip_x, flip_y = a < 0, b < 0
    a, b = a.abs(), b.abs()
    swap = (b > a) & square
    angle = torch.atan2(torch.where(swap, a, b), torch.where(swap, b, a))
    angle_label, angles = _clusters(angle, _MEET)
    offset_label, offsets = _clusters(offset.abs(), _MEET)
    kept, row = torch.unique(angle_label * len(offsets) + offset_label, return_inverse=True)
    angle = angles[kept // len(offsets)]
    elements, variant = torch.unique(flip_x + 2 * flip_y + 4 * swap, return_inverse=True)
    return Folding(torch.stack([angle.cos(), angle.sin()], 1), offsets[kept % len(offsets)],
                   row, variant, elements)


def _clusters(values: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Label values so that neighbours closer than ``tolerance`` share one; one value per label."""
    ordered, order = values.sort()
    first = torch.ones(len(values), dtype=torch.bool)
    first[1:] = ordered.diff() > tolerance
    label = torch.empty_like(order)
    label[order] = first.cumsum(0) - 1
    return label, ordered[first]


def variants(shape: tuple[int, int], elements: Tensor) -> Tensor:
    """``(pixels, variants)``: pixel of the image that stands at each pixel of each variant."""
    plane = torch.arange(math.prod(shape)).view(shape)
    columns = []
    for element in elements.tolist():
        moved = plane.flip(1) if element & 1 else plane
        moved = moved.flip(0) if element & 2 else moved
        # Y points up and rows run down: exchanging X and Y is the other diagonal's transposition
        moved = moved.flip(0, 1).T if element & 4 else moved
        columns.append(moved.reshape(-1))
    return torch.stack(columns, 1)


class LineIntegrals(nn.Module):
    """Integrals of ``(items, pixels)`` images along the rays of a geometry, and the exact adjoint.

    Three paths give the same numbers to rounding. "symmetry" keeps only the folded matrix and takes
    one image at a time; "matrix" has a row for every line and takes up to 16 images at a time;
    "gather" stores nothing, is the slowest on a CPU, and on a GPU runs Triton kernels where triton
    is installed. "auto" takes the cheaper of the first two for the number of items, but no matrix
    pair larger than ``memory_limit`` bytes; where both are, the third. Matrices are made when first
    wanted.

    Parameters
    ----------
    geometry
        Its rays, in the order ``(views, bins)``.
    shape
        ``(rows, columns)`` of the image.
    dtype
        In which weights are stored.
    """

    row: Tensor
    variant: Tensor
    pick: Tensor
    unpick: Tensor
    slot: Tensor
    ray: Tensor
    place: Tensor
    full: SparsePair | None
    folded: SparsePair | None

    def __init__(self, geometry: Geometry, shape: tuple[int, int], method: Method,
                 memory_limit: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.gather = Gather(geometry, shape, dtype)
        self.method, self.memory_limit, self.dtype = method, memory_limit, dtype
        self.pixels, self.rays = math.prod(shape), len(geometry.angles) * geometry.bins
        self.folded = self.full = None
        self.entries, self.columns, self.parts = 0, 0, [slice(0, 0)]
        # what says where this lives, where nothing else is stored
        self.register_buffer("place", torch.zeros(()), persistent=False)
        if method != "gather":
            self._fold(geometry, shape)

    def _fold(self, geometry: Geometry, shape: tuple[int, int]) -> None:
        normal, offset = (t.flatten(0, 1) for t in geometry.lines())
        pixel = geometry.pixel
        folding = fold(normal, offset, shape[0] == shape[1] and pixel[0] == pixel[1])
        kept = float(count_taps(folding.normal, folding.offset, shape).sum())
        if self.method == "auto" and self._bytes(kept) > self.memory_limit:
            return
        rows = joseph_rows(folding.normal, folding.offset, shape, self.dtype, pixel)
        self.folded = SparsePair(rows, math.prod(shape))
        self.entries = int(rows.start.diff()[folding.row].sum())
        self.columns = len(folding.elements)

        pick = variants(shape, folding.elements)
        unpick = torch.argsort(pick, 0) * self.columns + torch.arange(self.columns)
        slot = folding.row * self.columns + folding.variant
        # Lines measured twice share a slot. Sorted by how often a slot has come before, no part
        # holds a slot twice, and the adjoint adds part by part: the same bits on every run.
        ordered, order = slot.sort(stable=True)
        begin = torch.ones(len(slot), dtype=torch.bool)
        begin[1:] = ordered.diff() != 0
        place = torch.arange(len(slot))
        repeat = torch.empty_like(slot)
        repeat[order] = place - torch.cummax(torch.where(begin, place, 0), 0).values
        ray = torch.argsort(repeat, stable=True)
        ends = [0, *torch.bincount(repeat).cumsum(0).tolist()]
        self.parts = [slice(lo, hi) for lo, hi in itertools.pairwise(ends)]
        for name, index in (("row", folding.row), ("variant", folding.variant),
                            ("pick", pick.reshape(-1)), ("unpick", unpick.reshape(-1)),
                            ("slot", slot), ("ray", ray)):
            self.register_buffer(name, index.to(torch.int32), persistent=False)

    def project(self, x: Tensor) -> Tensor:
        """``(items, pixels)`` to ``(items, rays)``."""
        return linear_map(x, self._project, self._backproject)

    def backproject(self, y: Tensor) -> Tensor:
        """``(items, rays)`` to ``(items, pixels)``."""
        return linear_map(y, self._backproject, self._project)

    def path(self, items: int) -> Method:
        """Which path that many items take."""
        if self.folded is None:
            return "gather"
        if self.method != "auto":
            return self.method
        if self._bytes(self.entries) > self.memory_limit:
            return "symmetry"
        # In units of one weight streamed: a further column costs 1/20 of the first, making and
        # merging a variant 2 per pixel (fitted to timings at 256^2 x 60 and 512^2 x 180 views).
        folded = len(self.folded.value) * (1 + self.columns / 20) + 2 * self.pixels * self.columns
        return "matrix" if self.entries * (1 + items / 20) < items * folded else "symmetry"

    def _bytes(self, entries: float) -> float:
        """Of a pair of matrices with so many weights."""
        return 2 * entries * (4 + self.dtype.itemsize)

    def _project(self, x: Tensor) -> Tensor:
        if (path := self.path(len(x))) != "symmetry":
            return self._columns(x, self.rays, path, transposed=False)
        folded = _stored(self.folded)

        def one(image: Tensor) -> Tensor:
            columns = image.index_select(0, self.pick).view(self.pixels, self.columns)
            return folded.multiply(columns).view(-1).index_select(0, self.slot)

        return self._each(x, self.rays, one)

    def _backproject(self, y: Tensor) -> Tensor:
        if (path := self.path(len(y))) != "symmetry":
            return self._columns(y, self.pixels, path, transposed=True)
        folded = _stored(self.folded)
        slots = folded.shape[0] * self.columns

        def one(sinogram: Tensor) -> Tensor:
            columns = sinogram.new_zeros(slots)
            if len(self.parts) == 1:
                columns.index_add_(0, self.slot, sinogram)
            else:
                for part in self.parts:
                    ray = self.ray[part]
                    columns.index_add_(0, self.slot[ray], sinogram[ray])
            images = folded.multiply(columns.view(-1, self.columns), adjoint=True)
            # picks and sums in one pass
            picked = self.unpick.view(self.pixels, -1)
            return embedding_bag(picked, images.view(-1, 1), mode="sum").view(-1)

        return self._each(y, self.pixels, one)

    def _each(self, x: Tensor, size: int, one: Callable[[Tensor], Tensor]) -> Tensor:
        result = x.new_empty(len(x), size)
        for i, item in enumerate(x.to(_precision(x))):
            result[i] = one(item)
        return result

    def _columns(self, x: Tensor, size: int, path: Method, transposed: bool) -> Tensor:
        if path == "matrix" and self.full is None:
            self.full = self._unfolded()
        result = x.new_empty(len(x), size)
        precision = _precision(x)
        widest = _MAX_OPERAND // (max(self.pixels, self.rays) * precision.itemsize)
        width = min(max(widest, 1), _MAX_COLUMNS)
        for i in range(0, len(x), width):
            dense = x[i : i + width].to(precision).T.contiguous()
            if path == "matrix":
                product = _stored(self.full).multiply(dense, transposed)
            else:
                product = self._gathered(dense, transposed)
            result[i : i + width] = product.T
        return result

    def _gathered(self, dense: Tensor, transposed: bool) -> Tensor:
        if kernels.present(dense.device):
            from recon.operators.ct import gather_triton

            kernels.check_planar(dense.device)
            kernel = gather_triton.backproject if transposed else gather_triton.project
            return kernel(self.gather, dense)
        return (self.gather.backproject if transposed else self.gather.project)(dense)

    def _unfolded(self) -> SparsePair:
        """The matrix with a row for every line: kept rows with their columns moved."""
        kept = _stored(self.folded)
        start, column, value, row, variant, pick = (
            t.cpu() for t in (kept.start.long(), kept.column, kept.value, self.row, self.variant,
                              self.pick.view(self.pixels, self.columns)))
        pick = pick.T.contiguous()
        length = start.diff()[row]
        full = torch.zeros(len(row) + 1, dtype=torch.int64)
        torch.cumsum(length, 0, out=full[1:])
        columns = torch.empty(self.entries, dtype=torch.int32)
        values = torch.empty(self.entries, dtype=value.dtype)
        for first in range(0, len(row), 4096):
            rays = slice(first, min(first + 4096, len(row)))
            lo, hi = int(full[rays.start]), int(full[rays.stop])
            source = torch.arange(lo, hi) + torch.repeat_interleave(
                start[row[rays]] - full[rays], length[rays])
            of = torch.repeat_interleave(variant[rays], length[rays])
            columns[lo:hi] = pick[of, column[source]]
            values[lo:hi] = value[source]
        return SparsePair(Rows(full, columns, values), self.pixels).to(self.place.device)


def _stored(pair: SparsePair | None) -> SparsePair:
    assert pair is not None, "this path has its matrix"
    return pair


def _precision(x: Tensor) -> torch.dtype:
    """The precision to multiply in: sparse products do not exist in half precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
