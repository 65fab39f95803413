"""Errors in HU, the body's mask and attenuation; plausible wrong ones must be noticed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recon import metrics

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"


def check_errors(hu_errors: Callable[..., metrics.HUErrors]) -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(-1500, 2500, (3, 9, 11)).astype(np.float32)
    image = (reference + 40 * rng.standard_normal((3, 9, 11)) + 7).astype(np.float32)
    mask = rng.random((3, 9, 11)) < 0.3
    for window, counted in ((None, mask), ((-1000.0, 1000.0), mask), (None, None)):
        a, b = (x.astype(np.float64)[... if counted is None else counted] for x in (image,
                                                                                    reference))
        if window is not None:
            a, b = np.clip(a, *window), np.clip(b, *window)
        e = np.ravel(a - b)
        found = hu_errors(torch.from_numpy(image), torch.from_numpy(reference),
                          None if counted is None else torch.from_numpy(counted), window=window)
        assert found[:4] == pytest.approx(
            (np.abs(e).mean(), np.sqrt((e**2).mean()), e.mean(), np.percentile(np.abs(e), 95)))
        assert (found.pixels, found.window) == (e.size, window)


def _whole(image: Tensor, reference: Tensor, mask: Tensor | None, *, window: Any) -> Any:
    found = metrics.hu_errors(image, reference, window=window)
    return found._replace(pixels=found.pixels if mask is None else int(mask.sum()))


def _other_sign(image: Tensor, reference: Tensor, mask: Tensor | None, *, window: Any) -> Any:
    return metrics.hu_errors(reference, image, mask, window=window)


def _pixels_of_the_window(image: Tensor, reference: Tensor, mask: Tensor | None, *,
                          window: Any) -> Any:
    if window is None:
        return metrics.hu_errors(image, reference, mask)
    inside = (reference >= window[0]) & (reference <= window[1])
    return metrics.hu_errors(image, reference, inside if mask is None else inside & mask,
                             window=window)


def _clipped_error(image: Tensor, reference: Tensor, mask: Tensor | None, *, window: Any) -> Any:
    error = image - reference if window is None else (image - reference).clamp(*window)
    return metrics.hu_errors(error, torch.zeros_like(error), mask)._replace(window=window)


def _zeros_outside(image: Tensor, reference: Tensor, mask: Tensor | None, *, window: Any) -> Any:
    if mask is not None:
        image = torch.where(mask, image, reference)
    return _whole(image, reference, mask, window=window)


def test_hu_errors() -> None:
    check_errors(metrics.hu_errors)


@pytest.mark.parametrize("wrong", [_whole, _other_sign, _pixels_of_the_window, _clipped_error,
                                   _zeros_outside])
def test_wrong_hu_errors_are_noticed(wrong: Callable[..., metrics.HUErrors]) -> None:
    with pytest.raises(AssertionError):
        check_errors(wrong)


def phantom() -> tuple[Tensor, Tensor]:
    """Slices with two lungs, a table below and noise; one of air; and where the body is."""
    v, u = torch.meshgrid(torch.linspace(-1, 1, 80), torch.linspace(-1, 1, 96), indexing="ij")
    body = (u / 0.8).square() + (v / 0.6).square() < 1
    lungs = ((u.abs() - 0.35) / 0.2).square() + (v / 0.4).square() < 1
    table = (v > 0.75) & (v < 0.9)  # more pixels on the slice than a lung
    hu = torch.where(body, 40.0, -1000.0)
    hu = torch.where(lungs, -850.0, hu)
    hu = torch.where(table, -100.0, hu)
    air = torch.full_like(hu, -1000.0)
    noise = 60 * torch.randn(2, 80, 96, generator=torch.Generator().manual_seed(0))
    return torch.stack([hu, air]) + noise, torch.stack([body, torch.zeros_like(body)])


def check_body(body_mask: Callable[[Tensor], Tensor]) -> None:
    hu, body = phantom()
    assert torch.equal(body_mask(hu), body)
    assert torch.equal(body_mask(hu[0]), body[0])
    assert torch.equal(body_mask(hu[None].short()), body[None])


def test_body_mask() -> None:
    check_body(metrics.body_mask)


@pytest.mark.parametrize("fault", ["threshold alone", "holes left", "every piece"])
def test_wrong_body_masks_are_noticed(fault: str) -> None:
    from scipy import ndimage

    def wrong(hu: Tensor) -> Tensor:
        dense = (hu > -500).reshape(-1, *hu.shape[-2:])
        if fault == "holes left":
            kept = metrics.body_mask(hu).reshape(dense.shape) & dense
        elif fault == "every piece":
            kept = torch.stack([torch.from_numpy(ndimage.binary_fill_holes(x.numpy()))
                                for x in dense])
        else:
            kept = dense
        return kept.reshape(hu.shape)

    with pytest.raises(AssertionError):
        check_body(wrong)


def test_body_mask_of_a_patient_leaves_the_table_out() -> None:
    nibabel = pytest.importorskip("nibabel", reason="needs nibabel to read the volume")
    path = DATA / "thorax_cta.nii.gz"
    if not path.exists():
        pytest.skip("the thorax CT of the shared data is not here")
    hu = torch.from_numpy(np.asarray(nibabel.load(path).dataobj[..., 63]).T.astype(np.float32))
    mask = metrics.body_mask(hu)
    assert bool(mask[20:140, 60:180].all())  # lungs and trachea are filled
    assert not bool(mask[:, :3].any())
    assert float(mask.float().mean()) == pytest.approx(0.82, abs=0.02)


def check_attenuation(to_mu: Callable[..., Tensor]) -> None:
    hu = torch.tensor([-1000.0, 0.0, 1000.0, -500.0, -1024.0, -3024.0], dtype=torch.float64)
    wanted = torch.tensor([0, 0.0192, 0.0384, 0.0096, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(to_mu(hu), wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(to_mu(hu, 20.0), wanted / 0.0192 * 20, rtol=1e-12, atol=0)
    torch.testing.assert_close(metrics.mu_to_hu(to_mu(hu[:4], 0.2), 0.2), hu[:4])
    # numpy 2 refuses, and numpy 1 wraps, what 16-bit integers do not hold
    assert to_mu(torch.tensor([1000], dtype=torch.int16)).dtype == torch.float32
    assert float(to_mu(torch.tensor([32767], dtype=torch.int16))[0]) == pytest.approx(
        0.0192 * 33.767, rel=1e-6)


def test_attenuation() -> None:
    check_attenuation(metrics.hu_to_mu)
    assert float(metrics.mu_to_hu(torch.tensor(-0.00192))) == pytest.approx(-1100)
    # NIST's water at 60 and 80 keV, log-log between
    share = math.log(70 / 60) / math.log(80 / 60)
    nist = 0.2059 ** (1 - share) * 0.1837**share / 10
    assert float(metrics.hu_to_mu(torch.tensor(0.0))) == pytest.approx(nist, rel=0.01)

    def not_clipped(hu: Tensor, mu_water: float = 0.0192) -> Tensor:
        return mu_water * (1 + hu / 1000)

    def of_air(hu: Tensor, mu_water: float = 0.0192) -> Tensor:
        return (hu * 0.999 * mu_water / 1000 + mu_water).clamp(min=0)

    for wrong in (not_clipped, of_air):
        with pytest.raises(AssertionError):
            check_attenuation(wrong)


def test_what_is_not_hu_is_refused() -> None:
    x = torch.zeros(2, 8, 8)
    with pytest.raises(ValueError, match=r"one shape, got image \(2, 8, 8\) and reference \(8, 8"):
        metrics.hu_errors(x, x[0])
    with pytest.raises(ValueError, match="the image holds NaN or infinity where it counts"):
        metrics.hu_errors(x / 0, x)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:4] = True
    spoilt = torch.where(inside, x, torch.nan)
    assert metrics.hu_errors(spoilt, x, inside).pixels == 32
    with pytest.raises(ValueError, match="region chooses no pixel"):
        metrics.hu_errors(x, x, ~torch.ones_like(inside))
    with pytest.raises(ValueError, match=r"region wants a shape that fits .* got \(9,\)"):
        metrics.hu_errors(x, x, torch.ones(9, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"region wants a bool tensor, got torch\.float32"):
        metrics.hu_errors(x, x, torch.ones(8, 8))
    with pytest.raises(ValueError, match=r"window wants \(low, high\) in HU"):
        metrics.hu_errors(x, x, window=(1000, -1000))
    with pytest.raises(ValueError, match=r"body_mask wants \(\.\.\., height, width\)"):
        metrics.body_mask(x[0, 0])
    with pytest.raises(ValueError, match="hu holds NaN"):
        metrics.body_mask(spoilt)
    for call in (metrics.body_mask, metrics.hu_to_mu, metrics.mu_to_hu):
        with pytest.raises(TypeError, match=r"wants a real tensor, got torch\.complex64"):
            call(x.to(torch.complex64))
    for bad in (0.0, -0.02, math.nan):
        with pytest.raises(ValueError, match="mu_water wants a finite number > 0"):
            metrics.hu_to_mu(x, bad)
