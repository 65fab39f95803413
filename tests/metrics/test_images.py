"""Metrics against scikit-image and hand values; plausible wrong ones must fail the same checks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from recon import metrics

Metric = Callable[..., Tensor]
RNG = torch.Generator().manual_seed(0)
UNITS = torch.tensor([1e-5, 5e-6, 3e-6])[:, None, None]  # one for each slice
REFERENCE = UNITS * torch.rand(2, 3, 20, 17, generator=RNG)
IMAGE = REFERENCE + 1e-6 * torch.randn(REFERENCE.shape, generator=RNG).abs()
PHASE = torch.polar(torch.ones_like(IMAGE), 6 * torch.rand(IMAGE.shape, generator=RNG))


def by_skimage(metric: Callable[..., Any], image: Tensor, reference: Tensor,
               data_range: float | None = None) -> Tensor:
    pairs = zip(reference.reshape(-1, 20, 17), image.reshape(-1, 20, 17), strict=True)
    found = [metric(b.double().numpy(), a.double().numpy(),
                    data_range=float(b.max()) if data_range is None else data_range)
             for b, a in pairs]
    return torch.tensor(found, dtype=torch.float64).view(image.shape[:-2])


def check_psnr(psnr: Metric) -> None:
    wanted = by_skimage(peak_signal_noise_ratio, IMAGE, REFERENCE)
    torch.testing.assert_close(psnr(IMAGE, REFERENCE).double(), wanted, rtol=1e-5, atol=0)
    turned = psnr(IMAGE * PHASE, REFERENCE * PHASE.conj())
    torch.testing.assert_close(turned.double(), wanted, rtol=1e-4, atol=0)
    wanted = by_skimage(peak_signal_noise_ratio, IMAGE, REFERENCE, 3e-5)
    found = psnr(IMAGE, REFERENCE, data_range=3e-5)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    flat = torch.full((8, 8), 4.0)
    assert float(psnr(flat + 0.4, flat)) == pytest.approx(20, rel=1e-5)
    half = torch.zeros(8, 8, dtype=torch.bool)
    half[:4] = True
    image = flat + torch.where(half, 0.4, 3.0)
    assert float(psnr(image, flat, region=half)) == pytest.approx(20, rel=1e-5)
    peak = flat.clone()
    peak[7, 7] = 8  # outside the region, and yet the range
    assert float(psnr(peak + 0.8, peak, region=half)) == pytest.approx(20, rel=1e-5)


def check_nmse(nmse: Metric) -> None:
    reference = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    image = torch.tensor([[3.0, 1.0], [2.0, 4.0]])
    assert float(nmse(image, reference)) == pytest.approx(5 / 25)
    assert float(nmse(1j * image, -reference)) == pytest.approx(5 / 25)
    region = torch.tensor([[True, True], [False, False]])
    assert float(nmse(image, reference, region=region)) == pytest.approx(1 / 9)
    one_by_one = torch.stack([nmse(a, b) for a, b in zip(IMAGE[0], REFERENCE[0], strict=True)])
    torch.testing.assert_close(nmse(IMAGE, REFERENCE)[0], one_by_one)


def check_ssim(ssim: Metric) -> None:
    wanted = by_skimage(structural_similarity, IMAGE, REFERENCE)
    torch.testing.assert_close(ssim(IMAGE, REFERENCE), wanted, rtol=1e-6, atol=0)
    wanted = by_skimage(structural_similarity, IMAGE, REFERENCE, 3e-5)
    torch.testing.assert_close(ssim(IMAGE, REFERENCE, data_range=3e-5), wanted, rtol=1e-6, atol=0)
    turned = ssim(IMAGE * PHASE, REFERENCE)
    torch.testing.assert_close(turned, ssim(IMAGE, REFERENCE), rtol=1e-4, atol=0)
    small = ssim(1e-6 * IMAGE, 1e-6 * REFERENCE)
    torch.testing.assert_close(small, ssim(IMAGE, REFERENCE), rtol=1e-4, atol=0)


def test_psnr() -> None:
    check_psnr(metrics.psnr)
    assert float(metrics.psnr(REFERENCE[0, 0], REFERENCE[0, 0])) == float("inf")


def test_nmse() -> None:
    check_nmse(metrics.nmse)


def test_ssim() -> None:
    check_ssim(metrics.ssim)
    assert float(metrics.ssim(REFERENCE[0, 0], REFERENCE[0, 0])) == pytest.approx(1)


def _scored(image: Tensor, reference: Tensor, peak: Tensor | float,
            region: Tensor | None = None) -> Tensor:
    square = (image - reference).square()
    mse = square.mean((-2, -1)) if region is None else (square * region).mean((-2, -1))
    return 10 * torch.log10(torch.as_tensor(peak).square() / mse)


def _own_range(image: Tensor, reference: Tensor, *, data_range: Any = None,
               region: Tensor | None = None) -> Tensor:
    peak = image.abs().amax((-2, -1)) if data_range is None else data_range
    return _scored(image.abs(), reference.abs(), peak, region)


def _batch_range(image: Tensor, reference: Tensor, *, data_range: Any = None,
                 region: Tensor | None = None) -> Tensor:
    return metrics.psnr(image, reference, region=region,
                        data_range=reference.abs().max() if data_range is None else data_range)


def _region_of_zeros(image: Tensor, reference: Tensor, *, data_range: Any = None,
                     region: Tensor | None = None) -> Tensor:
    peak = reference.abs().amax((-2, -1)) if data_range is None else data_range
    return _scored(image.abs(), reference.abs(), peak, region)


def _of_real_parts(image: Tensor, reference: Tensor, **options: Any) -> Tensor:
    return metrics.psnr(image.real, reference.real, **options)


def _scaled(image: Tensor, reference: Tensor, **options: Any) -> Tensor:
    image = image.abs() * metrics.best_scale(image, reference)
    return metrics.psnr(image, reference, **options)


@pytest.mark.parametrize("wrong", [_own_range, _batch_range, _region_of_zeros, _of_real_parts,
                                   _scaled])
def test_wrong_psnr_is_noticed(wrong: Metric) -> None:
    with pytest.raises(AssertionError):
        check_psnr(wrong)


def _by_image(image: Tensor, reference: Tensor, region: Tensor | None = None) -> Tensor:
    return metrics.nmse(image, reference, region=region) / metrics.nmse(
        torch.zeros_like(image), image, region=region) * 0.9


def _root(image: Tensor, reference: Tensor, region: Tensor | None = None) -> Tensor:
    return metrics.nmse(image, reference, region=region).sqrt()


def _complex(image: Tensor, reference: Tensor, region: Tensor | None = None) -> Tensor:
    del region
    gap = (image - reference).abs().square().sum((-2, -1))
    return gap / reference.abs().square().sum((-2, -1))


@pytest.mark.parametrize("wrong", [_by_image, _root, _complex])
def test_wrong_nmse_is_noticed(wrong: Metric) -> None:
    with pytest.raises(AssertionError):
        check_nmse(wrong)


def _gaussian(image: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    def windowed(b: Any, a: Any, data_range: float) -> Any:
        return structural_similarity(  # type: ignore[no-untyped-call]
            b, a, data_range=data_range, gaussian_weights=True)

    return by_skimage(windowed, image.abs(), reference.abs(), data_range)


def _volume_range(image: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    return metrics.ssim(image, reference, data_range=data_range or float(reference.abs().max()))


def _unit_range(image: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    return metrics.ssim(image, reference, data_range=data_range or 1.0)


@pytest.mark.parametrize("wrong", [_gaussian, _volume_range, _unit_range])
def test_wrong_ssim_is_noticed(wrong: Metric) -> None:
    with pytest.raises(AssertionError):
        check_ssim(wrong)


def test_best_scale() -> None:
    reference = REFERENCE.double()
    found = metrics.best_scale(-0.25 * reference * PHASE, reference)
    assert found.shape == (2, 3, 1, 1)
    torch.testing.assert_close(found, torch.full_like(found, 4), rtol=1e-6, atol=0)
    region = torch.zeros(20, 17, dtype=torch.bool)
    region[3:9, 2:8] = True
    image = torch.where(region, reference / 3, 7e-5)
    found = metrics.best_scale(image, reference, region=region)
    torch.testing.assert_close(found, torch.full_like(found, 3), rtol=1e-6, atol=0)
    assert float(metrics.best_scale(torch.zeros(4, 4), torch.ones(4, 4))) == 0


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.nmse, metrics.ssim, metrics.best_scale])
def test_what_cannot_be_compared_is_refused(metric: Metric) -> None:
    image = torch.ones(2, 8, 8)
    for bad in (torch.nan, torch.inf):
        spoilt = image.clone()
        spoilt[1, 0, 0] = bad
        with pytest.raises(ValueError, match="the image holds NaN or infinity"):
            metric(spoilt, image)
        with pytest.raises(ValueError, match="the reference holds NaN or infinity"):
            metric(image, spoilt)
    with pytest.raises(ValueError, match=r"want one shape, got image \(2, 8, 8\) and reference"):
        metric(image, image[:1])
    with pytest.raises(ValueError, match=r"want \(\.\.\., height, width\), got \(8,\)"):
        metric(image[0, 0], image[0, 0])


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.nmse])
def test_regions_must_fit_and_hold_something(metric: Metric) -> None:
    image = torch.ones(2, 8, 8)
    with pytest.raises(ValueError, match=r"region wants a shape that fits .* got \(8, 9\)"):
        metric(image, image, region=torch.ones(8, 9, dtype=torch.bool))
    nothing = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]).bool()
    with pytest.raises(ValueError, match="region chooses no pixel"):
        metric(image, image, region=nothing)


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ssim wants images of at least 7 x 7, got \(6, 9\)"):
        metrics.ssim(torch.ones(6, 9), torch.ones(6, 9))
    assert np.isfinite(float(metrics.ssim(torch.rand(7, 7), torch.rand(7, 7))))
