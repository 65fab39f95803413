"""An encoder or a decoder applied tile by tile, with seams that blend."""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

Half = Callable[[Tensor], Tensor]


class Tiles(NamedTuple):
    """How images are cut, in latent pixels.

    Tiles of ``side`` overlap their neighbours by at least ``blend``, over which they fade into one
    another, and see ``halo`` more on every side, which is thrown away. With ``halo`` no less than
    the receptive field the result is that of the whole image, to rounding.
    """

    side: int
    halo: int
    blend: int

    def checked(self) -> "Tiles":
        """Raise ValueError for tiles that cannot cover an image."""
        if not (self.side >= 1 and self.halo >= 0 and 0 <= self.blend < self.side):
            raise ValueError("tiled wants side >= 1, halo >= 0 and 0 <= blend < side, got "
                             f"{self.side}, {self.halo} and {self.blend}")
        return self


class _Cut(NamedTuple):
    """One tile along one axis, in latent pixels."""

    first: int
    stop: int
    seen_first: int
    seen_stop: int


def by_tiles(half: Half, tiles: Tiles, spatial_ndim: int, before: int, behind: int,
             x: Tensor) -> Tensor:
    """``half(x)``, ``x`` ``(n, channels, *spatial)``, from tiles.

    A latent pixel is ``before`` pixels of what goes in and ``behind`` of what comes out.
    """
    sizes = [n // before for n in x.shape[-spatial_ndim:]]
    cuts = [list(_cut(n, tiles)) for n in sizes]
    if all(len(along) == 1 for along in cuts):
        return half(x)
    weights = [_weights(along, n, tiles.blend, behind, x) for along, n in zip(cuts, sizes,
                                                                              strict=True)]
    whole: Tensor | None = None
    for where in product(*(range(len(along)) for along in cuts)):
        tile = [along[i] for along, i in zip(cuts, where, strict=True)]
        out = half(x[_box([(c.seen_first, c.seen_stop) for c in tile], before)])
        out = out[_box([(c.first - c.seen_first, c.stop - c.seen_first) for c in tile], behind)]
        for axis, (along, i) in enumerate(zip(weights, where, strict=True)):
            out = out * along[i].view(-1, *(1,) * (spatial_ndim - 1 - axis))
        if whole is None:
            whole = out.new_zeros((*out.shape[:2], *(n * behind for n in sizes)))
        whole[_box([(c.first, c.stop) for c in tile], behind)] += out  # known to autograd
    assert whole is not None  # an image has a tile
    return whole


def _box(ends: list[tuple[int, int]], pixels: int) -> Any:
    """The index of a box, its ends in latent pixels of so many pixels each."""
    return (..., *(slice(first * pixels, stop * pixels) for first, stop in ends))


def _cut(n: int, tiles: Tiles) -> Iterator[_Cut]:
    """Tiles along an axis of ``n`` latent pixels; the last ends where the axis does."""
    if n <= tiles.side:
        yield _Cut(0, n, 0, n)
        return
    many = math.ceil((n - tiles.blend) / (tiles.side - tiles.blend))
    for i in range(many):
        first = min(i * (tiles.side - tiles.blend), n - tiles.side)
        stop = first + tiles.side
        yield _Cut(first, stop, max(first - tiles.halo, 0), min(stop + tiles.halo, n))


def _weights(along: list[_Cut], n: int, blend: int, behind: int, like: Tensor) -> list[Tensor]:
    """Weights of the tiles, which add up to one; they fall over ``blend`` latent pixels."""
    kind = like.dtype.to_real()
    line = torch.arange(n * behind, dtype=kind, device=like.device) + 0.5
    found = []
    for c in along:
        a, b, fall = c.first * behind, c.stop * behind, max(blend * behind, 1)
        rise = torch.ones_like(line) if a == 0 else ((line - a) / fall).clamp(0, 1)
        drop = torch.ones_like(line) if c.stop == n else ((b - line) / fall).clamp(0, 1)
        found.append(rise * drop)
    total = torch.stack(found).sum(0)
    return [(w / total)[c.first * behind : c.stop * behind]
            for w, c in zip(found, along, strict=True)]
