"""Every metric of whole numbers and of half precision is that of the same numbers in double."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recon import metrics
from recon.operators import Identity, Scale, Space

REAL = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
        torch.float16, torch.bfloat16)
HALF = (torch.float16, torch.bfloat16)
SPAN = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.uint16: (0, 40000)}
RNG = torch.Generator().manual_seed(0)
REGION = torch.rand(12, 14, generator=RNG) < 0.5


def images(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Like CT in HU, ``(2, 12, 14)``; over all the numbers of a dtype that holds fewer."""
    rng = torch.Generator().manual_seed(1)
    reference = 500 * torch.randn(2, 12, 14, generator=rng)
    image = reference + 300 * torch.randn(2, 12, 14, generator=rng)
    low, high = SPAN.get(dtype, (-3000, 3000))
    both = [(low + (high - low) * (x + 3000) / 6000).clamp(low, high).round()
            for x in (image, reference)]
    both[0][0, 0, 0] = low  # the one whole number whose abs() wraps
    if dtype.is_complex:
        both = [torch.complex(x, x.roll(1)) for x in both]
    return both[0].to(dtype), both[1].to(dtype)


def positive(x: Tensor) -> Tensor:
    """The same numbers whatever the dtype, for what must not be negative."""
    x = x.real if x.is_complex() else x
    return x.double().clamp(min=0).to(x.dtype)


def _lpips(a: Tensor, b: Tensor) -> Tensor:
    pytest.importorskip("lpips", reason="needs lpips 0.1.4")

    class Layers(torch.nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x[:, :1, ::4, ::4].expand(-1, n, -1, -1) + x.mean() * torch.arange(n).view(
                -1, 1, 1) for n in (64, 128, 256, 384, 384, 512, 512)]

    torch.manual_seed(0)  # its random weights
    return metrics.lpips(a, b, data_range=(-3000.0, 3000.0), net="squeeze",
                         backbone=Layers()).slices


def _sums(part: Callable[..., metrics.SliceSums]) -> Callable[[Tensor, Tensor], Any]:
    return lambda a, b: part(a[0, :, :12], b[0, :, :12], 2500.0)


def _residual(a: Tensor, b: Tensor) -> Tensor:
    A = Identity(Space((1, 12, 14)))
    return metrics.residual_over_noise(a[:, None], A, b[None, :, None], 5.0).ratio


Call = Callable[[Tensor, Tensor], Any]
TABLE: dict[str, list[Call]] = {
    "best_scale": [metrics.best_scale, lambda a, b: metrics.best_scale(a, b, region=REGION)],
    "body_mask": [lambda a, b: metrics.body_mask(a, threshold=99.5)],  # noqa: ARG005
    "crps": [lambda a, b: metrics.crps(a, b[0]).map],
    "dds": [metrics.dds],
    "fastmri": [lambda a, b: metrics.fastmri(a[..., :12], b[..., :12])],
    "fastmri_maximum": [lambda a, b: metrics.fastmri_maximum(b[..., :12])],  # noqa: ARG005
    "gaussian_crps": [lambda a, b: metrics.gaussian_crps(a[0], positive(a[1]), b[0]).map],
    "hu_errors": [lambda a, b: metrics.hu_errors(a, b)[:4],
                  lambda a, b: metrics.hu_errors(a, b, REGION, window=(-20, 90))[:4]],
    "hu_to_mu": [lambda a, b: metrics.hu_to_mu(a)],  # noqa: ARG005
    "interval_coverage": [lambda a, b: metrics.interval_coverage(a, b[0], [0.3])[:5]],
    "inversebench": [lambda a, b: metrics.inversebench(positive(a), positive(b))],
    "lodopab": [metrics.lodopab],
    "lpips": [_lpips],
    "mu_to_hu": [lambda a, b: metrics.mu_to_hu(a, 300.0)],  # noqa: ARG005
    "nmse": [metrics.nmse, lambda a, b: metrics.nmse(a, b, region=REGION)],
    "psnr": [metrics.psnr, lambda a, b: metrics.psnr(a, b, region=REGION),
             lambda a, b: metrics.psnr(a, b, data_range=4095)],
    "rank_histogram": [lambda a, b: metrics.rank_histogram(
        a, b[0], torch.Generator().manual_seed(0))[:3]],
    "residual_over_noise": [_residual],
    "slice_sums": [_sums(metrics.slice_sums)],
    "sparsification": [lambda a, b: metrics.sparsification(a[0], positive(b[0]))[1:5]],
    "ssim": [metrics.ssim, lambda a, b: metrics.ssim(a, b, data_range=4095)],
    "whole_slice_sums": [_sums(metrics.whole_slice_sums)],
}
OF_RESULTS = {"fastmri_from_slices", "reliability"}  # take no images
OF_REAL = {"body_mask", "gaussian_crps", "hu_errors", "hu_to_mu", "lodopab", "mu_to_hu",
           "residual_over_noise"}


def numbers(found: Any) -> Tensor:
    if isinstance(found, tuple):
        return torch.cat([numbers(one) for one in found if not isinstance(one, str | None)])
    return torch.as_tensor(found).double().flatten()


def check(call: Call, dtype: torch.dtype) -> None:
    image, reference = images(dtype)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    torch.testing.assert_close(numbers(call(image, reference)),
                               numbers(call(image.to(wide), reference.to(wide))),
                               rtol=1e-5, atol=1e-4, equal_nan=True)


def dtypes_of(name: str) -> tuple[torch.dtype, ...]:
    return (HALF if name == "residual_over_noise"  # takes what operators do
            else REAL if name in OF_REAL else (*REAL, torch.complex32))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", TABLE)
def test_metric_is_that_of_the_same_numbers_in_double(name: str) -> None:
    for dtype in dtypes_of(name):
        for call in TABLE[name]:
            check(call, dtype)


def test_every_metric_is_in_the_table() -> None:
    public = {n for n in metrics.__all__ if inspect.isfunction(getattr(metrics, n))}
    assert public == set(TABLE) | OF_RESULTS


def _plain_psnr(image: Tensor, reference: Tensor) -> Tensor:
    peak = reference.abs().amax((-2, -1))
    return 10 * torch.log10(peak.square() / _plain_mse(image, reference))


def _plain_mse(image: Tensor, reference: Tensor) -> Tensor:
    square = (image - reference).square()
    return square.sum((-2, -1)) / square[0].numel()


def _plain_nmse(image: Tensor, reference: Tensor) -> Tensor:
    return _plain_mse(image, reference) / _plain_mse(torch.zeros_like(reference), reference)


def _plain_scale(image: Tensor, reference: Tensor) -> Tensor:
    return (image * reference).sum((-2, -1)) / image.square().sum((-2, -1))


@pytest.mark.parametrize(("wrong", "dtypes"), [
    (_plain_psnr, (torch.uint8, torch.int16, torch.float16)),
    (_plain_nmse, (torch.uint8, torch.int16, torch.float16)),
    (_plain_scale, (torch.uint8, torch.int16, torch.float16)),
    (lambda a, b: a.abs().double().mean(), (torch.int8,)),  # noqa: ARG005 where SSIM began
    (lambda a, b: (1 + a / 1000).clamp(min=0), HALF),  # noqa: ARG005
    (lambda a, b: 1000 * (a / 300.0 - 1), HALF),  # noqa: ARG005
])
def test_arithmetic_in_the_dtype_given_is_noticed(wrong: Call,
                                                  dtypes: tuple[torch.dtype, ...]) -> None:
    check(wrong, torch.float64)
    for dtype in dtypes:
        with pytest.raises(AssertionError):
            check(wrong, dtype)


def test_half_precision_of_images_that_nearly_agree() -> None:
    """The squares of such errors are below what half precision holds: a PSNR of infinity."""
    rng = torch.Generator().manual_seed(2)
    reference = torch.rand(64, 64, generator=rng)
    image = reference + 0.001 * torch.randn(64, 64, generator=rng)
    assert float(metrics.psnr(image.half(), reference.half())) == pytest.approx(60, abs=0.3)
    assert math.isinf(float(_plain_psnr(image.half()[None], reference.half()[None])))


@pytest.mark.parametrize("dtype", HALF)
def test_residuals_do_not_round_with_the_samples(dtype: torch.dtype) -> None:
    """Measurements that are the rounded products: half precision calls the residual 0."""
    A = Scale(1 / 3, Space((1, 12, 14)))
    x = images(torch.float64)[0][:, None].to(dtype)
    y = A(x)
    want = (y.double() - x.double() / 3).square().mean((-3, -2, -1)).sqrt()
    found = metrics.residual_over_noise(y, A, x[None], 1.0).ratio[0]
    torch.testing.assert_close(found, want, rtol=1e-3, atol=0)
    assert float(want.min()) > 0.01
    assert not bool((y - A(x)).any())


def test_gradients() -> None:
    """SSIM is scikit-image's and has none; the others keep theirs."""
    reference = torch.rand(8, 8, generator=RNG)
    image = (reference + 0.1).requires_grad_()
    assert float(metrics.ssim(image, reference)) == float(metrics.ssim(image.detach(), reference))
    (slope,) = torch.autograd.grad(metrics.nmse(image, reference), image)
    torch.testing.assert_close(slope, 0.2 * torch.ones(8, 8) / reference.square().sum())


def test_precision_of_the_result() -> None:
    for dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        x = torch.ones(8, 8, dtype=dtype)
        assert metrics.nmse(x, x).dtype == dtype.to_real()
    for dtype in HALF:
        x = torch.ones(8, 8, dtype=dtype)
        assert metrics.nmse(x, x).dtype == torch.float64
        assert metrics.hu_to_mu(x).dtype == metrics.mu_to_hu(x).dtype == torch.float32
        A = Identity(Space((1, 8, 8)))
        assert metrics.residual_over_noise(x[None], A, x[None, None] + 1, 1.0).ratio == 1
