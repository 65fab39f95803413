"""Training examples: random planes of volumes, resampled, warped, recoloured and cropped."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

WATER = (0.42, 0.75)  # images in HU: water, in units of the prior
PEAK = (0.5, 1.15)  # others: the 99.5 % quantile of a plane


class Stack(NamedTuple):
    """Slices of one person or object."""

    values: Tensor
    """``(slices, height, width)`` with square pixels; of CT ``1 + HU / 1000``, else about one
    at its brightest."""
    spacing_mm: tuple[float, float, float] | None
    name: str
    in_hu: bool = False


class Look(NamedTuple):
    """How examples are drawn from stacks.

    ``pixel_mm`` and ``thickness_mm`` are ranges; pixels are never made smaller than they are, nor
    larger than leaves a crop along the shorter side, and without a spacing they count in pixels.
    ``warp`` is the part of the planes that is turned, stretched and bent; ``recolour`` the part
    whose contrast changes; ``phase`` makes real images complex with a smooth phase. ``margin`` is
    the part of the planes that get more air around them where they end in air, ``air`` the part of
    the nearly empty crops that is kept: images seen in wide fields of view are mostly air.
    """

    crop: int = 96
    pixel_mm: tuple[float, float] = (1.0, 2.8)
    thickness_mm: tuple[float, float] = (1.0, 5.0)
    warp: float = 0.5
    recolour: float = 0.5
    phase: bool = False
    margin: float = 0.0
    air: float = 0.02


class Draw:
    """Random numbers of one example, from a seed of its own."""

    def __init__(self, *seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape).astype(np.float32))

    def smooth(self, size: tuple[int, int], knots: int, channels: int = 1) -> Tensor:
        """A smooth field, of unit deviation at its knots, ``(channels, *size)``."""
        coarse = self.normal(1, channels, knots, knots)
        return interpolate(coarse, size=size, mode="bicubic", align_corners=True)[0]


def batch(stacks: Sequence[Stack], look: Look, size: int, seed: int, step: int) -> Tensor:
    """Examples ``(size, 1, crop, crop)`` of one step, made of the seed and its number alone."""
    found: list[Tensor] = []
    number = 0
    while len(found) < size:
        draw = Draw(seed, step, number)
        found += crops(stacks[draw.below(len(stacks))], look, draw)
        number += 1
    return torch.stack(found[:size])


def crops(stack: Stack, look: Look, draw: Draw) -> list[Tensor]:
    """Two crops of one random plane, ``(1, crop, crop)`` each."""
    image, pixel = plane(stack, look, draw)
    low, high = look.pixel_mm
    wanted = math.exp(draw.uniform(math.log(low), math.log(high)))
    # one factor for both axes, no coarser than leaves room for a crop
    factor = min(1.0, max(pixel / wanted, look.crop / min(image.shape)))
    sides = [round(n * factor) for n in image.shape]
    image = (by_area if stack.in_hu else by_kspace)(image, sides, draw)
    if draw.chance(look.warp):
        image = warped(image, draw)
    if stack.in_hu:
        image = hu_recoloured(image, draw) if draw.chance(look.recolour) else image
        image = image * draw.uniform(*WATER)
    else:
        image = recoloured(image, draw) if draw.chance(look.recolour) else image
        peak = torch.quantile(image.abs().flatten()[::7], 0.995).clamp(min=0.05)
        image = image / peak * draw.uniform(*PEAK)
    if look.margin and draw.chance(look.margin):
        image = with_margin(image, look.crop // 2)
    return [crop(image, look, draw) for _ in range(2)]


def with_margin(image: Tensor, width: int) -> Tensor:
    """Zeros along the sides whose edge is air already, less than a tenth on average."""
    left, right, top, bottom = (
        width if float(edge.abs().mean()) < 0.1 else 0
        for edge in (image[:, 0], image[:, -1], image[0], image[-1]))
    return pad(image, [left, right, top, bottom])


def plane(stack: Stack, look: Look, draw: Draw) -> tuple[Tensor, float]:
    """A plane, mean over its thickness, and its pixel's side.

    Across the slices only where voxels are about cubes and every side has room for a crop: then
    four in ten.
    """
    spacing = stack.spacing_mm or (1.0, 1.0, 1.0)
    axis = 0
    cubes = stack.spacing_mm is not None and max(spacing) < 1.3 * min(spacing)
    if cubes and min(stack.values.shape) >= look.crop and draw.chance(0.4):
        axis = 1 + draw.below(2)
    volume = stack.values.movedim(axis, 0)
    thick = round(draw.uniform(*look.thickness_mm) / spacing[axis])
    thick = min(max(thick, 1), len(volume)) if stack.spacing_mm is not None else 1
    first = draw.below(len(volume) - thick + 1)
    image = volume[first : first + thick].mean(0)
    return image, spacing[2]


def by_area(image: Tensor, sides: list[int], draw: Draw) -> Tensor:
    """Coarser pixels as means of finer ones, as a scanner with larger pixels would show them."""
    if sides == list(image.shape):
        return image
    mode = "bicubic" if draw.chance(0.5) else "bilinear"
    return interpolate(image[None, None], size=sides, mode=mode, antialias=True)[0, 0]


def by_kspace(image: Tensor, sides: list[int], draw: Draw) -> Tensor:
    """Coarser pixels by cutting k-space, as MR scanners do; three in ten with a window."""
    kspace = torch.fft.fftshift(torch.fft.fft2(image))
    # about the centre: for odd and even sides the zero frequency stays where fftshift puts it
    starts = [n // 2 - side // 2 for n, side in zip(image.shape, sides, strict=True)]
    kspace = kspace[starts[0] : starts[0] + sides[0], starts[1] : starts[1] + sides[1]]
    if draw.chance(0.3):
        strength = draw.uniform(0.2, 0.9)
        for dim, side in enumerate(sides):
            window = 1 - strength * torch.linspace(-1, 1, side).square()
            kspace = kspace * (window[:, None] if dim == 0 else window)
    small = torch.fft.ifft2(torch.fft.ifftshift(kspace)) * (sides[0] * sides[1] / image.numel())
    return small if image.is_complex() else small.real


def warped(image: Tensor, draw: Draw) -> Tensor:
    """Turned up to 15 degrees, stretched, sheared and bent, on the same grid; zero from outside."""
    size = (image.shape[0], image.shape[1])
    down, right = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in size)
    points = torch.stack(torch.meshgrid(down, right, indexing="ij"), -1)
    angle = math.radians(draw.uniform(-15, 15))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = torch.tensor([[1.0, draw.uniform(-0.06, 0.06)], [0.0, 1.0]])
    stretch = torch.tensor([draw.uniform(0.87, 1.15), draw.uniform(0.87, 1.15)])
    if draw.chance(0.6):
        points = points + draw.uniform(0.5, 3.0) * draw.smooth(size, 6, channels=2).movedim(0, -1)
    points = points @ (turn * stretch @ shear).T
    half = torch.tensor([(n - 1) / 2 for n in size])
    grid = (points / half).flip(-1)[None]  # grid_sample wants x, y
    parts = torch.view_as_real(image).movedim(-1, 0) if image.is_complex() else image[None]
    moved = grid_sample(parts[None], grid, align_corners=True)[0]
    return torch.complex(moved[0], moved[1]) if image.is_complex() else moved[0]


def hu_recoloured(image: Tensor, draw: Draw) -> Tensor:
    """CT by another energy or contrast agent: a rising curve that keeps air at 0 and water at 1."""
    knots = torch.tensor([0.0, 0.3, 0.85, 1.0, 1.15, 1.6, 3.0])
    rises = knots.diff() * torch.exp(0.25 * draw.normal(len(knots) - 1))
    levels = torch.cat([torch.zeros(1), rises.cumsum(0)])
    levels = levels / levels[3]
    image = image.clamp(min=0.0)
    low = torch.bucketize(image, knots[1:-1], right=True)  # the last piece has no end: metal
    part = (image - knots[low]) / (knots[low + 1] - knots[low])
    return levels[low] + part * (levels[low + 1] - levels[low])


def recoloured(image: Tensor, draw: Draw) -> Tensor:
    """Another tissue contrast and receive shading; zero stays zero, and phases as they are."""
    magnitude = image.abs()
    unit = torch.where(magnitude > 0, image / magnitude, 0)
    if draw.chance(0.5):  # a random curve, not always rising: T2-like contrasts
        levels = 0.15 + 0.95 * torch.from_numpy(draw.rng.random(5)).float()
        knots = torch.cat([torch.zeros(1), levels])
        position = (magnitude.clamp(max=1.0) * 5).clamp(max=4.999)
        low = position.long()
        magnitude = knots[low] + (position - low) * (knots[low + 1] - knots[low])
    else:
        magnitude = magnitude ** math.exp(0.25 * float(draw.normal(1)))
    size = (image.shape[0], image.shape[1])
    shading = torch.exp(draw.uniform(0.0, 0.25) * draw.smooth(size, 4)[0])
    return unit * magnitude * shading


def crop(image: Tensor, look: Look, draw: Draw) -> Tensor:
    """A square of the image, flipped and transposed at random; empty ones are drawn again."""
    n = look.crop
    for _ in range(6):
        row, column = (draw.below(side - n + 1) for side in image.shape)
        cut = image[row : row + n, column : column + n]
        if cut.abs().mean() > 0.08 or draw.chance(look.air):
            break
    if draw.chance(0.5):
        cut = cut.T
    cut = cut.flip([d for d in (0, 1) if draw.chance(0.5)])
    if cut.is_complex():  # which phase is zero depends on the receiver
        cut = cut * torch.exp(torch.tensor(1j * draw.uniform(-math.pi, math.pi)))
    elif look.phase:
        angle = phase(n, draw) if draw.chance(0.8) else torch.zeros(n, n)
        cut = torch.polar(cut.abs(), angle + math.pi * (cut < 0))
    return cut[None].contiguous()


def phase(n: int, draw: Draw) -> Tensor:
    """A smooth phase over a crop, in radians: global, linear and low-frequency parts."""
    line = torch.linspace(-1, 1, n)
    angle = torch.full((n, n), draw.uniform(-math.pi, math.pi))
    if draw.chance(0.8):
        slope = 1.2 * draw.normal(2)
        angle = angle + slope[0] * line[:, None] + slope[1] * line
    if draw.chance(0.7):
        angle = angle + draw.uniform(0.1, 0.8) * draw.smooth((n, n), 3 + draw.below(3))[0]
    return angle


Examples = Callable[[int], Tensor]
"""From the number of a step to its batch, ``(batch, 1, height, width)``, always the same."""
