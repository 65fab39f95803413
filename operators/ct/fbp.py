"""Filtered back-projection: the classical image, for a start or for comparison."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from recon.operators.base import LinearOperator
from recon.operators.ct.gather import bags
from recon.operators.ct.geometry import Fan, Geometry
from recon.operators.ct.planar import PlanarCT
from recon.operators.ct.redundancy import measured_once, unseen, view_weights

Filter = Literal["ramp", "shepp-logan", "cosine", "hann", "hamming"]
FILTERS = ("ramp", "shepp-logan", "cosine", "hann", "hamming")

# Pixels times views handled at once: 2**18 keeps each temporary within the cache of a core.
_CHUNK = 2**18


def fbp(y: Tensor, operator: LinearOperator, filter: Filter = "ramp",  # noqa: A002 the field's word
        *, cutoff: float = 1.0) -> Tensor:
    """The image whose integrals are ``y``, by filtered back-projection, ``(*batch, 1, H, W)``.

    Linear in ``y``, in absolute units: a disc of attenuation mu comes out as mu. Views may be few,
    uneven, or over part of a turn; what they do not show is then missing, as streaks. Views are
    weighed by the angle they stand for, and rays that are measured twice by weights that add up to
    one: one half each over a full turn, Parker's over a short scan, those of Noo et al. below it
    (and, over a full turn with a detector shifted so far that one side ends inside the image,
    Wang's). Each pixel takes from each view, by linear interpolation, what its ray measured.

    Parameters
    ----------
    y
        Line integrals, ``(*batch, 1, views, detectors)``.
    operator
        ``ParallelBeamCT`` or ``FanBeamCT``.
    filter
        Window of the ramp up to ``cutoff``: none, or those named after Shepp and Logan, the cosine,
        Hann and Hamming, from sharp to smooth. The ramp itself is that of Kak & Slaney, the
        band-limited one sampled in space, with projections padded by zeros to twice their length,
        so that the mean of the image is right.
    cutoff
        Part of the highest frequency of the detector that is kept.

    Kak & Slaney 1988, equations 3.61, 3.102 and 3.134; Parker 1982, Med. Phys. 9(2), 254.
    """
    if not isinstance(operator, PlanarCT):
        raise TypeError("fbp: want a ParallelBeamCT or FanBeamCT, got "
                        f"{type(operator).__name__}")
    if filter not in FILTERS:
        raise ValueError(f"fbp: want filter {', '.join(FILTERS)}, got {filter!r}")
    if not 0 < cutoff <= 1:
        raise ValueError(f"fbp: want a cutoff above 0 and up to 1, got {cutoff}")
    operator.range.check(y, "fbp")
    shape = (operator.domain.shape[1], operator.domain.shape[2])
    x = filtered_back(y.reshape(-1, *y.shape[-2:]), operator.geometry, shape, filter, cutoff)
    return x.view(*operator.range.batch_of(y), *operator.domain.shape)


def filtered_back(y: Tensor, geometry: Geometry, shape: tuple[int, int], window: Filter,
                  cutoff: float) -> Tensor:
    """``fbp`` of ``(items, views, bins)`` for any geometry, ``(items, *shape)``."""
    if not len(y):  # no Fourier transform of nothing
        return y.new_zeros(0, *shape)
    precision = torch.float64 if y.dtype == torch.float64 else torch.float32
    radius = min(shape[0] * geometry.pixel[0], shape[1] * geometry.pixel[1]) / 2
    weight = view_weights(geometry)[:, None] * measured_once(geometry, radius)
    if isinstance(geometry, Fan):
        weight = weight * (geometry.source * geometry.fan_angles().cos())
    views = y.to(precision) * weight.to(y.device, precision)
    below, above = unseen(geometry, radius)
    views, geometry = pad(views, (below, above)), geometry.widened(below, above)
    response = _response(geometry, window, cutoff)
    size = 2 * (len(response) - 1)
    spectrum = torch.fft.rfft(views, size) * response.to(y.device, precision)
    filtered = torch.fft.irfft(spectrum, size)[..., : geometry.bins]
    return _backproject(filtered.flatten(1), geometry, shape).to(y.dtype).view(-1, *shape)


def _response(geometry: Geometry, window: Filter, cutoff: float) -> Tensor:
    """Transfer function of the windowed ramp, times the distance of bins, ``(size / 2 + 1,)``."""
    size = 2 ** math.ceil(math.log2(max(2 * geometry.bins, 64)))
    n = torch.arange(size, dtype=torch.float64)
    n = torch.minimum(n, size - n)
    step = _step(geometry)
    kernel = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp(min=1) * step) ** 2, 0.0)
    kernel[0] = 1 / (2 * step) ** 2
    if isinstance(geometry, Fan) and geometry.curved:
        turn = (n * step).clamp(min=1e-9, max=math.pi - 1e-3)  # beyond lies only padding
        kernel = kernel * (turn / turn.sin()) ** 2
    response = torch.fft.rfft(kernel).real * step
    f = torch.linspace(0, 1, len(response), dtype=torch.float64) / cutoff
    shapes = {
        "ramp": torch.ones_like(f),
        "shepp-logan": torch.sinc(f / 2),
        "cosine": (math.pi / 2 * f).cos(),
        "hann": 0.5 + 0.5 * (math.pi * f).cos(),
        "hamming": 0.54 + 0.46 * (math.pi * f).cos(),
    }
    return response * torch.where(f <= 1, shapes[window], 0.0)


def _step(geometry: Geometry) -> float:
    """Distance of rays: on a line through the axis, or as an angle for a curved detector."""
    if not isinstance(geometry, Fan):
        return geometry.spacing
    return geometry.spacing / geometry.reaches * (1.0 if geometry.curved else geometry.source)


def _backproject(filtered: Tensor, geometry: Geometry, shape: tuple[int, int]) -> Tensor:
    """Sum over views of the ``(items, views * bins)`` projections where each pixel's ray falls."""
    like, (rows, columns), bins = filtered[:0], shape, geometry.bins
    y, x = torch.meshgrid(
        (rows - 1) / 2 - torch.arange(rows, dtype=like.dtype, device=like.device),
        torch.arange(columns, dtype=like.dtype, device=like.device) - (columns - 1) / 2,
        indexing="ij")
    x, y = x.reshape(-1), y.reshape(-1)
    table = filtered.T.contiguous()
    total = table.new_zeros(len(x), table.shape[1])
    width = max(1, _CHUNK // len(x))
    for first in range(0, len(geometry.angles), width):
        views = slice(first, min(first + width, len(geometry.angles)))
        place = geometry.bin_at(views, x, y).T  # (pixels, views)
        left = place.floor()
        share = place - left
        weight = torch.stack([1 - share, share], -1)
        if isinstance(geometry, Fan):
            weight = weight * _nearness(geometry, views, x, y).T[..., None]
        taps = torch.stack([left, left + 1], -1).int()
        weight = torch.where((taps >= 0) & (taps < bins), weight, 0)
        start = torch.arange(views.stop - first, device=like.device, dtype=torch.int32) * bins
        taps = taps.clamp(0, bins - 1) + start[:, None]
        total = total + bags(table[first * bins : views.stop * bins], taps.flatten(1),
                             weight.flatten(1))
    return total.T


def _nearness(geometry: Fan, views: slice, x: Tensor, y: Tensor) -> Tensor:
    """Weights of back-projection over ``source``: ``source / L^2``, ``1 / (source L^2)`` curved."""
    across, depth = geometry.from_source(views, x * geometry.pixel[1], y * geometry.pixel[0])
    if geometry.curved:
        return 1 / (across.square() + depth.square())
    return geometry.source / depth.square()
