"""JPEG: what is lost between a picture and its file, and two ways through it for gradients."""

import math

import torch
from torch import Tensor

from recon.operators.base import Operator
from recon.space import Space

# ITU-T T.81, annex K.1, at quality 50
_LUMA = (16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69,
         56, 14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81,
         104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
_CHROMA = (17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99,
           99, 99, 47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32)
# JFIF: Y, Cb, Cr of red, green and blue
_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


class JPEG(Operator):
    """A picture written as a JPEG file and read again: baseline, with the tables of T.81.

    Colours become luma and chroma (JFIF), chroma is halved by the mean of 2 x 2 pixels where
    ``subsampling`` is "4:2:0" (and comes back by libjpeg's triangle filter, or repeated in images
    of at most 4 columns), blocks of 8 x 8 pixels become cosine coefficients, each is rounded to a
    multiple of its table's entry, and back; the last column and row are repeated to fill them. What
    lies outside ``low`` and ``high`` is clipped, and pixels are whole numbers out of 255, before
    and after. Results are Pillow's to one level, save in blocks where a coefficient lies within
    0.01 of half an entry: libjpeg computes in whole numbers, and may round it the other way.

    The derivative is zero wherever it exists, since coefficients are rounded, so ``vjp`` returns
    zeros, exactly. For samplers that follow gradients there are ``StraightThroughJPEG``, of the
    same values and with a surrogate for a derivative, and ``SmoothJPEG``, of other values and with
    their exact derivative.

    Parameters
    ----------
    space
        Real images of 1 channel (luma alone) or 3 (red, green, blue), any height and width.
    quality
        1 to 100, libjpeg's scale.
    subsampling
        Of chroma: "4:2:0", which most files have, or "4:4:4" for none.
    low, high
        Which values are black and white.

    Examples
    --------
    >>> A = JPEG(Space((3, 64, 64)), quality=10)
    """

    items = ()

    def __init__(self, space: Space, quality: int, subsampling: str = "4:2:0", low: float = 0.0,
                 high: float = 1.0) -> None:
        call = type(self).__name__
        if space.is_complex:
            raise TypeError(f"{call}: want a real space, got {space.dtype}")
        if len(space.shape) != 3 or space.shape[0] not in (1, 3):
            raise ValueError(f"{call}: want images (1 or 3, height, width), got {space.shape}")
        if not isinstance(quality, int) or not 1 <= quality <= 100:
            raise ValueError(f"{call}: want a whole quality from 1 to 100, got {quality}")
        if subsampling not in ("4:2:0", "4:4:4"):
            raise ValueError(f"{call}: want subsampling '4:2:0' or '4:4:4', got {subsampling!r}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{call}: want finite low < high, got {low} and {high}")
        super().__init__(space, space)
        self.quality, self.subsampling = quality, subsampling
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        levels = self.byte((255 * (x - self.low) / (self.high - self.low)).clamp(0, 255))
        if self.domain.shape[0] == 1:
            levels = self._coded(levels, _LUMA)
        else:
            matrix = torch.tensor(_YCC, dtype=torch.float64)
            y, cb, cr = torch.einsum("ab,...bhw->...ahw", matrix.to(levels), levels).chunk(3, -3)
            y = self._coded(self.byte(y), _LUMA)
            cb, cr = (self._chroma(self.byte(c + 128).clamp(max=255)) - 128 for c in (cb, cr))
            levels = torch.einsum("ab,...bhw->...ahw", matrix.inverse().to(levels),
                                  torch.cat([y, cb, cr], -3))
        levels = self.byte(levels.clamp(0, 255))
        return self.low + (self.high - self.low) / 255 * levels

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002 the same wherever x is
        return torch.zeros_like(v)

    def round(self, t: Tensor) -> Tensor:
        """What becomes of a coefficient in units of its table's entry."""
        return _rounded(t)

    def byte(self, t: Tensor) -> Tensor:
        """What becomes of a pixel, out of 255."""
        return self.round(t)

    def halved(self, means: Tensor) -> Tensor:
        """What becomes of means of 2 x 2 pixels: halves go down and up in turn, from the left."""
        even = torch.arange(means.shape[-1], device=means.device) % 2 == 0
        return self.byte(means - even.to(means) / 4)

    def doubled(self, plane: Tensor) -> Tensor:
        """What becomes of sixteenths between chroma pixels: halves go up and down in turn."""
        odd = torch.arange(plane.shape[-1], device=plane.device) % 2
        return self.byte(plane - odd.to(plane) / 16)

    def _chroma(self, plane: Tensor) -> Tensor:
        if self.subsampling == "4:4:4":
            return self._coded(plane, _CHROMA)
        height, width = plane.shape[-2:]
        # whole blocks of columns before halving, and of rows after, as libjpeg does
        plane = _padded(_padded(plane, -1, 16), -2, 2)
        plane = self.halved(_in_blocks(plane, 2).mean((-1, -2)))
        plane = self._coded(plane, _CHROMA)[..., : (width + 1) // 2]
        if plane.shape[-1] <= 2:  # libjpeg has no neighbours to interpolate from
            plane = plane.repeat_interleave(2, -1).repeat_interleave(2, -2)
        else:
            plane = self.doubled(_doubled(_doubled(plane).mT).mT)
        return plane[..., :height, :width]

    def _coded(self, plane: Tensor, table: tuple[int, ...]) -> Tensor:
        height, width = plane.shape[-2:]
        blocks = _in_blocks(_padded(_padded(plane - 128, -1, 8), -2, 8), 8)
        cosine, entries = _cosine(plane), _scaled(table, self.quality).to(plane)
        coefficients = entries * self.round(cosine @ blocks @ cosine.T / entries)
        blocks = cosine.T @ coefficients @ cosine
        plane = blocks.movedim(-2, -3).flatten(-4, -3).flatten(-2)[..., :height, :width]
        return self.byte(plane + 128).clamp(0, 255)


class StraightThroughJPEG(JPEG):
    """``JPEG`` with a surrogate gradient: ``vjp`` takes the rounding of coefficients for identity.

    Values are those of ``JPEG``. ``vjp`` is the adjoint of clipping, halving of chroma and back,
    which is not the derivative; ``check`` says so in its rows on differences.
    """

    def round(self, t: Tensor) -> Tensor:
        return _rounded(t.detach()) + (t - t.detach())  # the second term is 0, with a gradient

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return Operator.vjp(self, x, v)


class SmoothJPEG(JPEG):
    """JPEG with rounding made smooth, ``r + (t - r)^3`` for ``r = round(t)``; ``vjp`` is exact.

    Coefficients differ from those of ``JPEG`` by up to an eighth of a table's entry, and pixels are
    not rounded. Shin & Song 2017, JPEG-resistant adversarial images.
    """

    def round(self, t: Tensor) -> Tensor:
        whole = _rounded(t.detach())
        return whole + (t - whole) ** 3

    def byte(self, t: Tensor) -> Tensor:
        return t

    def halved(self, means: Tensor) -> Tensor:
        return means

    def doubled(self, plane: Tensor) -> Tensor:
        return plane

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return Operator.vjp(self, x, v)


def _rounded(t: Tensor) -> Tensor:
    # halves away from zero, as libjpeg: means of whole pixels lie on them often
    # halves that a cosine transform missed by rounding are halves, as those of flat blocks
    return t.sgn() * (t.abs() + (0.5 + 1e-4)).floor()


def _scaled(table: tuple[int, ...], quality: int) -> Tensor:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality  # libjpeg's
    return ((torch.tensor(table).view(8, 8) * scale + 50) // 100).clamp(1, 255)


def _cosine(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of 8 samples, ``(frequency, sample)``."""
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi / 8 * k[:, None] * (k + 0.5)) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)


def _padded(plane: Tensor, axis: int, multiple: int) -> Tensor:
    """The last row or column repeated up to a multiple."""
    missing = -plane.shape[axis] % multiple
    last = plane.narrow(axis, plane.shape[axis] - 1, 1)
    return torch.cat([plane, *[last] * missing], axis)


def _in_blocks(plane: Tensor, side: int) -> Tensor:
    """``(..., rows, columns, side, side)``."""
    *batch, height, width = plane.shape
    return plane.reshape(*batch, height // side, side, width // side, side).movedim(-3, -2)


def _doubled(plane: Tensor) -> Tensor:
    """Columns doubled with weights 3/4 and 1/4, the edge repeated."""
    before = torch.cat([plane[..., :1], plane[..., :-1]], -1)
    after = torch.cat([plane[..., 1:], plane[..., -1:]], -1)
    pairs = torch.stack([3 * plane + before, 3 * plane + after], -1)
    return pairs.flatten(-2) / 4
