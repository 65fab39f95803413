"""PSNR, SSIM and NMSE the way others report them, each under the name of who does.

The same two images score several dB apart under these conventions, so every number carries its
own: where the range came from, what was cropped, clipped or scaled, and over what it is averaged.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recon.datasets import centre_crop
from recon.metrics.images import SSIM_WINDOW

# piq's, hence InverseBench's
_GAUSSIAN_WINDOW, _GAUSSIAN_STD, _PIQ_EPS = 11, 1.5, 1e-8

_OF_THE_VOLUME = "maximum of the reference volume"


class SliceScores(NamedTuple):
    """One number per slice, float64 ``(slices,)``; NaN where the convention defines none."""

    psnr: Tensor
    ssim: Tensor
    range: Tensor


class Score(NamedTuple):
    """What one volume scores under one convention.

    ``psnr`` in dB. Of a convention that scores slices, ``psnr``, ``ssim`` and ``range`` are means
    over the ``counted`` slices, those with a reference that is not constant; ``slices`` holds each.
    NaN stands for a number the convention does not have.
    """

    nmse: float
    psnr: float
    ssim: float
    range: float
    range_source: str
    convention: str
    counted: int
    slices: SliceScores | None = None


class SliceSums(NamedTuple):
    """What :func:`fastmri_from_slices` needs of one slice: plain numbers, to be stored as such."""

    squared_error: float
    """Sum over the pixels."""
    reference_energy: float
    """Sum of the squares of the reference."""
    pixels: int
    ssim: float
    """Mean over the slice, with ``maximum`` for its range."""
    maximum: float
    """The range: one for all slices of a volume."""
    peak: float
    """The slice's own largest reference value."""


def fastmri(image: Tensor, reference: Tensor, *, maximum: float | None = None) -> Score:
    """Volume-level NMSE, PSNR and SSIM of ``python -m fastmri.evaluate``.

    ``image`` and ``reference`` ``(slices, height, width)``; complex ones count by magnitude, real
    ones as they are. Both are cropped about their centres to the square whose side is the width of
    ``reference``; ``image`` may be the larger. NMSE and PSNR are of the whole volume; SSIM, by
    scikit-image with its 7 x 7 uniform window, is the mean over slices. The range is the largest
    value of the cropped reference volume unless ``maximum`` is given; training-time validation
    takes the file's attribute ``max``. In double precision.

    Slices that are zero in both score an SSIM of 1, as there. Raises ValueError for a reference
    without a positive value, NaN or infinity, and sizes that do not fit.
    """
    image, reference = _real("fastmri", image, reference, 3)
    image, reference = _squares(image, reference)
    if maximum is None:
        maximum = float(reference.max())
    pairs = zip(image, reference, strict=True)
    return fastmri_from_slices([_sums(a, b, maximum) for a, b in pairs])


def fastmri_maximum(reference: Tensor) -> float:
    """The range :func:`fastmri` takes from a reference ``(slices, height, width)``: after its crop.

    Raises ValueError where that is not positive, before any work is spent on the volume.
    """
    reference, _ = _real("fastmri_maximum", reference, reference, 3)
    return _positive(float(_squares(reference, reference)[1].max()))


def slice_sums(image: Tensor, reference: Tensor, maximum: float) -> SliceSums:
    """One slice's part of :func:`fastmri`: ``(height, width)`` each, cropped as there.

    ``maximum`` is :func:`fastmri_maximum` of the whole volume, not of the slice.
    """
    image, reference = _real("slice_sums", image, reference, 2)
    return _sums(*_squares(image, reference), maximum)


def whole_slice_sums(image: Tensor, reference: Tensor, maximum: float) -> SliceSums:
    """As :func:`slice_sums` without its crop: for images that are not of fastMRI's layout.

    Equal shapes, of any proportions. ``maximum`` is the largest value of the whole volume. The
    score made of them still names fastMRI: where it is shown, say that nothing was cropped.
    """
    image, reference = _real("whole_slice_sums", image, reference, 2)
    if image.shape != reference.shape:
        raise ValueError(f"whole_slice_sums wants one shape, got image {tuple(image.shape)} and "
                         f"reference {tuple(reference.shape)}")
    return _sums(image, reference, maximum)


def fastmri_from_slices(slices: Sequence[SliceSums]) -> Score:
    """What :func:`fastmri` gives for the volume these slices make up.

    Raises ValueError for no slice, slices measured with different ranges or of different sizes,
    and where the reference is zero everywhere: NMSE is undefined there.
    """
    if not slices:
        raise ValueError("fastmri_from_slices wants at least one slice, got none")
    for what, found in (("ranges", {s.maximum for s in slices}),
                        ("numbers of pixels", {s.pixels for s in slices})):
        if len(found) > 1:
            raise ValueError(f"the slices have different {what}, {sorted(found)[:4]}: they are not "
                             "of one volume, or the range is not the volume's")
    maximum = _positive(slices[0].maximum)
    error = math.fsum(s.squared_error for s in slices)
    energy = math.fsum(s.reference_energy for s in slices)
    if energy == 0:
        raise ValueError("the reference is zero everywhere and NMSE is undefined: leave this "
                         "volume out")
    mse = error / sum(s.pixels for s in slices)
    psnr = 10 * math.log10(maximum**2 / mse) if mse > 0 else math.inf
    own = maximum == max(s.peak for s in slices)
    return Score(error / energy, psnr, math.fsum(s.ssim for s in slices) / len(slices), maximum,
                 _OF_THE_VOLUME if own else "given", "fastmri", len(slices))


def inversebench(image: Tensor, reference: Tensor) -> Score:
    """PSNR and SSIM of InverseBench's MRI evaluation, by slice (arXiv 2503.11043, its code).

    Equal shapes ``(slices, height, width)``; complex images count by magnitude. Each image is
    clipped to ``[0, max]`` of its reference slice, which is the range. PSNR is piq's, with 1e-8
    added to the scaled MSE: 80 dB at most. SSIM is piq's: 11 x 11 Gaussian window of standard
    deviation 1.5, population covariance, no border, after average pooling by
    ``max(1, round(min(height, width) / 256))``: 1 at 320, 2 at 384.

    Raises ValueError for negative references, as piq does, and for slices of which the window
    leaves nothing.
    """
    image, reference = _same("inversebench", image, reference)
    if bool((reference < 0).any()):
        raise ValueError("inversebench wants references >= 0: pass magnitudes")
    peak = reference.amax((-2, -1))
    counts = peak > 0
    unit = torch.where(counts, peak, 1)[:, None, None]
    clipped = image.clamp(min=0).minimum(peak[:, None, None]) / unit
    mse = (clipped - reference / unit).square().mean((-2, -1))
    return _by_slice("inversebench", "maximum of each reference slice",
                     -10 * torch.log10(mse + _PIQ_EPS), _gaussian_ssim(clipped, reference / unit),
                     peak, counts)


def dds(image: Tensor, reference: Tensor) -> Score:
    """PSNR as the code of DDS prints it, by slice (Chung et al. 2024, arXiv 2303.05754).

    Equal shapes ``(slices, height, width)``. Magnitudes, each image and each reference scaled to
    ``[0, 1]`` by its own minimum and maximum, range 1: errors of offset and scale do not show. A
    constant image, whose scaling is undefined there, counts as zero. It has no SSIM.
    """
    image, reference = _same("dds", image, reference)
    image, reference = image.abs(), reference.abs()
    spread = reference.amax((-2, -1)) - reference.amin((-2, -1))
    mse = (_min_max(image) - _min_max(reference)).square().mean((-2, -1))
    nothing = torch.full_like(mse, torch.nan)
    return _by_slice("dds", "1, each image scaled to [0, 1] by its own minimum and maximum",
                     -10 * torch.log10(mse), nothing, torch.ones_like(mse), spread > 0)


def lodopab(image: Tensor, reference: Tensor, *, data_range: float | None = None) -> Score:
    """PSNR and SSIM of the LoDoPaB-CT challenge, by slice, as dival computes them.

    Equal shapes ``(slices, height, width)``, real. The range is ``max - min`` of each reference, or
    ``data_range``, 1 for the challenge's "FR" numbers; SSIM by scikit-image with its 7 x 7 uniform
    window. Nothing is clipped.
    """
    if image.is_complex() or reference.is_complex():
        raise TypeError("lodopab wants real images of attenuation, got complex ones: pass the real "
                        "part or the magnitude, whichever you mean")
    image, reference = _same("lodopab", image, reference)
    wide = reference.amax((-2, -1)) - reference.amin((-2, -1))
    source = "maximum minus minimum of each reference slice"
    if data_range is not None:
        wide, source = torch.full_like(wide, _positive(float(data_range))), "given"
    counts = wide > 0
    mse = (image - reference).square().mean((-2, -1))
    ssim = [_uniform_ssim(a, b, float(w)) if w > 0 else math.nan
            for a, b, w in zip(image, reference, wide, strict=True)]
    return _by_slice("lodopab", source, 10 * torch.log10(wide.square() / mse),
                     torch.tensor(ssim, dtype=torch.float64), wide, counts)


CONVENTIONS: dict[str, Callable[[Tensor, Tensor], Score]] = {
    "fastmri": fastmri, "inversebench": inversebench, "dds": dds, "lodopab": lodopab}


def _by_slice(convention: str, source: str, psnr: Tensor, ssim: Tensor, wide: Tensor,
              counts: Tensor) -> Score:
    if not bool(counts.any()):
        raise ValueError(f"{convention}: every slice of the reference is constant: no range")
    slices = SliceScores(*(torch.where(counts, x, torch.nan) for x in (psnr, ssim, wide)))
    mean_psnr, mean_ssim, mean_range = (float(x[counts].mean()) for x in slices)
    return Score(math.nan, mean_psnr, mean_ssim, mean_range, source, convention,
                 int(counts.sum()), slices)


def _real(call: str, image: Tensor, reference: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Both in double precision on the CPU, complex ones as magnitudes."""
    want = "(slices, height, width)" if ndim == 3 else "(height, width)"
    found = []
    for name, x in (("image", image), ("reference", reference)):
        if x.ndim != ndim or not x.numel():
            raise ValueError(f"{call}: want {name} {want}, got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            where = (~torch.isfinite(x)).nonzero()[0, 0]
            place = f" in slice {int(where)}" if ndim == 3 else ""
            raise ValueError(f"{call}: the {name} holds NaN or infinity{place}")
        x = x.detach().cpu()
        found.append(x.to(torch.complex128).abs() if x.is_complex() else x.double())
    if ndim == 3 and len(image) != len(reference):
        raise ValueError(f"{call}: image has {len(image)} slices, reference {len(reference)}")
    return found[0], found[1]


def _same(call: str, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape:
        raise ValueError(f"{call}: want one shape, got image {tuple(image.shape)} and reference "
                         f"{tuple(reference.shape)}: crop first")
    return _real(call, image, reference, 3)


def _squares(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    side = reference.shape[-1]
    for name, x in (("image", image), ("reference", reference)):
        if min(x.shape[-2:]) < side:
            raise ValueError(f"fastMRI compares the {side} x {side} square in the middle, {side} "
                             f"being the reference's width; the {name} is {tuple(x.shape[-2:])}")
    return centre_crop(image, (side, side)), centre_crop(reference, (side, side))


def _positive(wide: float) -> float:
    if not (math.isfinite(wide) and wide > 0):
        raise ValueError(f"want a range > 0, got {wide:g}: is the reference all zero? Leave this "
                         "volume out")
    return wide


def _sums(image: Tensor, reference: Tensor, maximum: float) -> SliceSums:
    maximum = _positive(float(maximum))
    return SliceSums(float((image - reference).square().sum()), float(reference.square().sum()),
                     reference.numel(), _uniform_ssim(image, reference, maximum), maximum,
                     float(reference.max()))


def _uniform_ssim(image: Tensor, reference: Tensor, data_range: float) -> float:
    from skimage.metrics import structural_similarity

    if min(image.shape) < SSIM_WINDOW:
        raise ValueError(f"SSIM wants images of at least {SSIM_WINDOW} x {SSIM_WINDOW}, got "
                         f"{tuple(image.shape)}")
    return float(structural_similarity(  # type: ignore[no-untyped-call]
        reference.numpy(), image.numpy(), win_size=SSIM_WINDOW, data_range=data_range))


def _gaussian_ssim(image: Tensor, reference: Tensor) -> Tensor:
    """piq's SSIM of images ``(slices, height, width)`` in ``[0, 1]``."""
    pool = max(1, round(min(image.shape[-2:]) / 256))
    if min(image.shape[-2:]) // pool < _GAUSSIAN_WINDOW:
        raise ValueError(f"inversebench wants images of at least {_GAUSSIAN_WINDOW} x "
                         f"{_GAUSSIAN_WINDOW}, got {tuple(image.shape[-2:])}")
    x, y = (functional.avg_pool2d(t[:, None], pool) for t in (image, reference))
    offset = torch.arange(_GAUSSIAN_WINDOW, dtype=x.dtype) - _GAUSSIAN_WINDOW // 2
    weight = torch.exp(-offset.square() / (2 * _GAUSSIAN_STD**2))
    weight = (weight / weight.sum()).view(1, 1, -1, 1)

    def blurred(t: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(t, weight), weight.mT)

    mx, my = blurred(x), blurred(y)
    vx, vy = blurred(x * x) - mx * mx, blurred(y * y) - my * my
    cov = blurred(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mx * my + c1) / (mx * mx + my * my + c1) * (2 * cov + c2) / (vx + vy + c2)
    return found.mean((-3, -2, -1))


def _min_max(x: Tensor) -> Tensor:
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return (x - low) / torch.where(high > low, high - low, 1)
