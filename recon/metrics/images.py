"""How far an image is from a reference, with the range and the region always said.

Whole numbers and half precision are compared in double precision, others in their own.
"""

import torch
from torch import Tensor

SSIM_WINDOW = 7  # pixels: scikit-image's, hence fastMRI's


def psnr(image: Tensor, reference: Tensor, *, data_range: Tensor | float | None = None,
         region: Tensor | None = None) -> Tensor:
    """``10 log10(data_range^2 / MSE)`` of magnitudes, in dB, over the last two dimensions.

    ``data_range`` is the largest magnitude of the reference, per image, unless given. ``region``
    (bool) restricts the MSE, not the range. Images are compared as they are: no scaling.
    """
    image, reference = _magnitudes(image, reference)
    if data_range is None:
        data_range = reference.amax((-2, -1))
    peak = torch.as_tensor(data_range, dtype=reference.dtype, device=reference.device)
    return 10 * torch.log10(peak.square() / _mse(image, reference, region))


def nmse(image: Tensor, reference: Tensor, *, region: Tensor | None = None) -> Tensor:
    """``||image - reference||^2 / ||reference||^2`` of magnitudes over the last two dimensions."""
    image, reference = _magnitudes(image, reference)
    return _mse(image, reference, region) / _mse(torch.zeros_like(reference), reference, region)


def ssim(image: Tensor, reference: Tensor, *, data_range: float | None = None) -> Tensor:
    """Structural similarity of magnitudes by scikit-image, with its 7 x 7 uniform window.

    ``data_range`` is the largest magnitude of each reference unless given; fastMRI's is the
    largest of the volume. Float64, on the CPU.
    """
    from skimage.metrics import structural_similarity

    image, reference = _magnitudes(image, reference)
    image, reference = (x.detach().cpu().double() for x in (image, reference))
    found = []
    size = image.shape[-2:]
    if min(size) < SSIM_WINDOW:
        raise ValueError(f"ssim wants images of at least {SSIM_WINDOW} x {SSIM_WINDOW}, "
                         f"got {tuple(size)}")
    for a, b in zip(image.reshape(-1, *size), reference.reshape(-1, *size), strict=True):
        wide = float(b.max()) if data_range is None else data_range
        found.append(structural_similarity(  # type: ignore[no-untyped-call]
            b.numpy(), a.numpy(), win_size=SSIM_WINDOW, data_range=wide))
    return torch.tensor(found, dtype=torch.float64).view(image.shape[:-2])


def best_scale(image: Tensor, reference: Tensor, *, region: Tensor | None = None) -> Tensor:
    """The number per image that brings its magnitude closest to the reference's, ``(..., 1, 1)``.

    Say it where you use it: scaling hides errors of scale.
    """
    image, reference = _magnitudes(image, reference)
    weight = 1.0 if region is None else region.to(image.dtype)
    cross = (weight * image * reference).sum((-2, -1), keepdim=True)
    own = (weight * image.square()).sum((-2, -1), keepdim=True)
    return cross / torch.where(own > 0, own, 1)


def _magnitudes(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape:
        raise ValueError(f"metrics want one shape, got image {tuple(image.shape)} and reference "
                         f"{tuple(reference.shape)}: crop or combine coils first")
    if image.ndim < 2:
        raise ValueError(f"metrics want (..., height, width), got {tuple(image.shape)}")
    image, reference = _precise(image), _precise(reference)
    for name, x in (("image", image), ("reference", reference)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"the {name} holds NaN or infinity")
    return image.abs(), reference.abs()


def _precise(x: Tensor) -> Tensor:
    """What differences and squares neither wrap nor leave the range of."""
    if x.dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        return x
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _mse(image: Tensor, reference: Tensor, region: Tensor | None) -> Tensor:
    square = (image - reference).square()
    if region is None:
        return square.mean((-2, -1))
    try:
        weight = region.to(square.device, square.dtype).expand_as(square)
    except RuntimeError:
        raise ValueError(f"region wants a shape that fits the images {tuple(square.shape)}, got "
                         f"{tuple(region.shape)}") from None
    if not bool((weight.sum((-2, -1)) > 0).all()):
        raise ValueError("region chooses no pixel")
    return (weight * square).sum((-2, -1)) / weight.sum((-2, -1))
