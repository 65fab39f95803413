"""CT numbers: errors in HU within the body, and attenuation from HU and back."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recon.metrics.region import chosen_pixels

MU_WATER = 0.0192  # 1/mm, water at about 70 keV, the mean energy of a 120 kV spectrum
BODY_HU = -500.0  # half way from air to water


class HUErrors(NamedTuple):
    """Errors of ``image - reference`` over the counted pixels, all slices together, in HU."""

    mae: float
    rmse: float
    bias: float
    """Mean of ``image - reference``: positive where the image is too dense."""
    p95: float
    """95 % of the pixels have a smaller absolute error (interpolated linearly)."""
    pixels: int
    window: tuple[float, float] | None
    """What both images were clipped to, if anything."""


def hu_errors(image: Tensor, reference: Tensor, mask: Tensor | None = None, *,
              window: tuple[float, float] | None = None) -> HUErrors:
    """Mean absolute and root mean square error, bias and 95th percentile, in HU.

    Images of one shape, real; ``mask``, bool, says which pixels count: all of them where it is
    None, and the air around a patient then makes every error small. With ``window``, for instance
    ``(-1000, 1000)``, both images are clipped to it first; the result carries it.
    Raises ValueError for other shapes, NaN or infinity among the counted pixels, an empty mask.
    """
    for name, x in (("image", image), ("reference", reference)):
        _want_real(f"hu_errors: {name}", x)
    if image.shape != reference.shape:
        raise ValueError(f"hu_errors wants one shape, got image {tuple(image.shape)} and reference "
                         f"{tuple(reference.shape)}")
    counted = chosen_pixels(mask, image.shape)
    a, b = (x.detach().cpu()[counted].double() for x in (image, reference))
    for name, x in (("image", a), ("reference", b)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"hu_errors: the {name} holds NaN or infinity where it counts")
    if window is not None:
        low, high = (float(end) for end in window)
        if not low < high:
            raise ValueError(f"window wants (low, high) in HU, got {window}")
        window = low, high
        a, b = a.clamp(low, high), b.clamp(low, high)
    error = a - b
    return HUErrors(float(error.abs().mean()), float(error.square().mean().sqrt()),
                    float(error.mean()), float(np.quantile(error.abs().numpy(), 0.95)),
                    error.numel(), window)


def body_mask(hu: Tensor, *, threshold: float = BODY_HU) -> Tensor:
    """The patient without table and surrounding air, bool like ``hu``, ``(..., height, width)``.

    In each slice: pixels above ``threshold`` in HU, of these the largest piece connected along
    rows and columns, its holes (lungs, bowel gas) filled. A second leg or an arm that does not
    touch the trunk in the slice is left out, and a lung that the image's edge opens stays a hole.
    A slice of air has no pixel.
    """
    from scipy import ndimage

    _want_real("body_mask: hu", hu)
    if hu.ndim < 2:
        raise ValueError(f"body_mask wants (..., height, width), got {tuple(hu.shape)}")
    if not bool(torch.isfinite(hu).all()):
        raise ValueError("body_mask: hu holds NaN or infinity")
    dense = (hu.detach().cpu() > threshold).numpy()
    found = np.zeros_like(dense)
    for index in np.ndindex(dense.shape[:-2]):
        pieces, count = ndimage.label(dense[index])
        if count:
            largest = 1 + int(np.bincount(pieces.ravel())[1:].argmax())
            found[index] = ndimage.binary_fill_holes(pieces == largest)
    return torch.from_numpy(found).to(hu.device)


def hu_to_mu(hu: Tensor, mu_water: float = MU_WATER) -> Tensor:
    """``max(0, mu_water (1 + HU / 1000))``, in the unit of ``mu_water``: 1/mm by default.

    Air counts as vacuum. Values below -1000 HU, which padding and noise have, become 0: nothing
    attenuates less. Energy and calibration of the scanner are not in the file, so ``mu_water`` is
    a choice; LoDoPaB-CT takes 20 per m with 0.02 per m for air. Of whole numbers and of half
    precision the result is in single.
    """
    _want_real("hu_to_mu: hu", hu)
    return (_positive(mu_water) * (1 + _precise(hu) / 1000)).clamp(min=0)


def mu_to_hu(mu: Tensor, mu_water: float = MU_WATER) -> Tensor:
    """``1000 (mu / mu_water - 1)``, both in one unit. Negative ``mu`` stays below -1000 HU.

    Of half precision the result is in single.
    """
    _want_real("mu_to_hu: mu", mu)
    return 1000 * (_precise(mu) / _positive(mu_water) - 1)


def _precise(x: Tensor) -> Tensor:
    # near air and near water both formulas cancel, of which half precision leaves little
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _positive(mu_water: float) -> float:
    if not (math.isfinite(mu_water) and mu_water > 0):
        raise ValueError(f"mu_water wants a finite number > 0, got {mu_water}")
    return mu_water


def _want_real(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} wants a real tensor, got {got}")
