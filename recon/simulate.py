"""Simulated multi-coil acquisitions of a magnitude image: smooth coils, smooth phase, noise."""

import contextlib
import math

import torch
from torch import Tensor

from recon import datasets
from recon.datasets import Scan, Volume
from recon.datasets.errors import FormatError, StrPath
from recon.operators.mri.fourier import fft2c, ifft2c


def coil_maps(coils: int, height: int, width: int) -> Tensor:
    """Smooth complex coil sensitivities around the image, ``(coils, height, width)``.

    Each falls off with the distance from its coil on a circle and turns its phase; the root sum of
    squares is one in every pixel.
    """
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)
    maps = []
    for c in range(coils):
        angle = 2 * math.pi * c / coils
        down, right = 1.3 * math.sin(angle), 1.3 * math.cos(angle)
        distance = (rows - down).square() + (columns - right).square()
        turn = angle + 0.9 * (rows * math.cos(angle) - columns * math.sin(angle))
        maps.append(torch.polar(torch.exp(-distance / 1.6), turn))
    stacked = torch.stack(maps)
    return stacked / stacked.abs().square().sum(0).sqrt()


def multicoil_kspace(magnitude: Tensor, *, coils: int = 8, noise_std: float = 0.01,
                     generator: torch.Generator | None = None) -> Tensor:
    """Fully sampled noisy k-space ``(coils, height, width)`` of a magnitude image, even sizes.

    Image, phase and coils are multiplied on a grid twice as fine and cut in k-space, so that no
    operator on the image's own grid reproduces the data exactly. ``noise_std`` is per real number
    of k-space, in the units of the image (``fft2c`` keeps the norm).
    """
    height, width = magnitude.shape
    if height % 2 or width % 2:
        raise ValueError(f"multicoil_kspace wants even sizes, got {(height, width)}: pad by one")
    pad = [width // 2, width // 2, height // 2, height // 2]
    padded = torch.nn.functional.pad(fft2c(magnitude.to(torch.complex64)), pad)
    fine = 2 * ifft2c(padded).real
    rows = torch.linspace(-1, 1, 2 * height)[:, None]
    columns = torch.linspace(-1, 1, 2 * width)
    phase = 0.5 + 0.8 * rows - 0.4 * columns + 0.6 * torch.cos(2.2 * rows * columns + columns)
    kspace = fft2c(coil_maps(coils, 2 * height, 2 * width) * fine * torch.polar(
        torch.ones_like(phase), phase))
    cut = kspace[..., height // 2 : -(height // 2), width // 2 : -(width // 2)] / 2
    n = torch.randn(*cut.shape, 2, generator=generator)
    return cut + noise_std * torch.view_as_complex(n)


def white_of_file(path: StrPath, *, series: str | None = None, unit: str | None = None) -> float:
    """The 99.5 % quantile of the magnitude of a file's images: every n-th, 16 to 31 of them."""
    count = datasets.describe(path, series=series)["slices"]

    def read(chosen: slice) -> Tensor:
        values: Tensor = datasets.open(path, chosen, series=series, unit=unit).values
        return values.abs()

    try:
        return _white(read(slice(None, None, _step(count))))
    except FormatError:  # of slices that nobody may have asked for: the good ones tell
        good = []
        for number in range(0, count, _step(count)):
            with contextlib.suppress(FormatError):
                good.append(read(slice(number, number + 1)))
        if not good:
            raise
        return _white(torch.cat(good))


def simulated_scan(volume: Volume, *, coils: int = 8, noise: float = 0.01, seed: int = 0,
                   white: float | None = None) -> Scan:
    """Fully sampled k-space of a volume's magnitude by :func:`multicoil_kspace`, not measured.

    ``noise`` is per real number of k-space, in parts of ``white``: of the volume's 99.5 % quantile,
    unless given, as :func:`white_of_file` where the volume is some slices of a file. ``seed`` and
    the slice's place in ``volume`` decide its draws. Odd sizes get a row or column of zeros, which
    ``crop`` takes away. ``reference`` is the magnitude itself.
    """
    magnitude = volume.values.abs()
    height, width = magnitude.shape[-2:]
    # centre_crop starts at (n - m) // 2, 0 for one line more, so the line goes behind
    padded = torch.nn.functional.pad(magnitude, [0, width % 2, 0, height % 2])
    unit = _white(magnitude[:: _step(len(magnitude))]) if white is None else white
    kspace = torch.stack([
        multicoil_kspace(one, coils=coils, noise_std=noise * unit,
                         generator=torch.Generator().manual_seed(seed + number))
        for number, one in enumerate(padded)])
    note = f"k-space was simulated from the images: {coils} coils, noise {noise:g} of their white"
    said = [str(volume.attributes["note"])] if "note" in volume.attributes else []
    return Scan(kspace, None, None, magnitude, (height, width),
                {**volume.attributes, "note": "; ".join([*said, note])}, volume.name, "simulated")


def _step(slices: int) -> int:
    return max(1, slices // 16)


def _white(magnitude: Tensor) -> float:
    values = magnitude.flatten()
    return float(values[:: max(1, values.numel() >> 23)].quantile(0.995))
