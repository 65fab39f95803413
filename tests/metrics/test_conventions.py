"""Named conventions against the programs they are named after; wrong ones must be noticed."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from recon import metrics
from recon.metrics import Score, SliceSums

Convention = Callable[..., Score]
Numbers = tuple[float, float, float]


def volumes() -> tuple[Tensor, Tensor]:
    """Float32 in units of 1e-4, taller than wide, the image larger than the reference.

    Slices of unlike brightness, one zero in both, and the brightest pixel outside the square.
    """
    rng = torch.Generator().manual_seed(1)
    level = 1e-4 * torch.tensor([1.0, 0.3, 0.0, 2.0, 1.0, 1.0, 0.7])[:, None, None]
    reference = level * torch.rand(7, 31, 24, generator=rng)
    reference[0, 0, 3] = 1e-3
    image = torch.zeros(7, 36, 28)
    image[:, 2:33, 2:26] = reference + 0.2 * level * torch.randn(7, 31, 24, generator=rng)
    return image, reference


def three_by_forty() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    reference = np.abs(rng.standard_normal((3, 40, 40))).astype(np.float32)
    image = (reference + 0.1 * rng.standard_normal((3, 40, 40))).astype(np.float32)
    return torch.from_numpy(image), torch.from_numpy(reference)


def numbers(score: Score) -> Numbers:
    return score.nmse, score.psnr, score.ssim


def _peer(image: Tensor, reference: Tensor, maximum: float | None = None) -> Numbers:
    """The steps of ``python -m fastmri.evaluate`` for one volume."""
    evaluate = pytest.importorskip("fastmri.evaluate", reason="needs fastmri 0.3.0 and requests")
    crop = pytest.importorskip("fastmri.data.transforms").center_crop
    side = (reference.shape[-1], reference.shape[-1])
    a, b = (crop(x.numpy(), side) for x in (image, reference))
    return (float(evaluate.nmse(b, a)), float(evaluate.psnr(b, a, maximum)),
            float(np.squeeze(evaluate.ssim(b, a, maximum))))


def check_fastmri(fastmri: Convention) -> None:
    for image, reference in (volumes(), three_by_forty()):
        found = fastmri(image, reference)
        assert numbers(found) == pytest.approx(_peer(image, reference), rel=1e-6)
        side = reference.shape[-1]
        top = (reference.shape[-2] - side) // 2
        assert found.range == float(reference[:, top : top + side].max())
        given = fastmri(image, reference, maximum=2.5 * found.range)
        wanted = _peer(image, reference, np.float32(2.5 * found.range).item())
        assert numbers(given) == pytest.approx(wanted, rel=1e-6)


def _fastmri_with(*, psnr: Any = None, ssim: Any = None, crop: Any = None,
                  limit: Any = None) -> Convention:
    """fastMRI's convention with one part replaced."""

    def wrong(image: Tensor, reference: Tensor, *, maximum: float | None = None) -> Score:
        side = reference.shape[-1]
        cut = crop or (lambda x: x[..., (x.shape[-2] - side) // 2 :, (x.shape[-1] - side) // 2 :]
                       [..., :side, :side])
        a, b = cut(image).double(), cut(reference).double()
        top = float((limit or (lambda _, b, __: b.max()))(a, b, reference))
        top = top if maximum is None else maximum
        mse = (a - b).square().mean()
        each = [structural_similarity(  # type: ignore[no-untyped-call]
            y.numpy(), x.numpy(), data_range=top) for x, y in zip(a, b, strict=True)]
        return Score(
            float((a - b).square().sum() / b.square().sum()),
            psnr(a, b, top) if psnr else float(10 * torch.log10(top**2 / mse)),
            ssim(a, b, top) if ssim else float(np.mean(each)), top, "", "", len(each))

    return wrong


def _slice_psnrs(image: Tensor, reference: Tensor, top: float) -> float:
    mse = (image - reference).square().mean((-2, -1))
    return float((10 * torch.log10(top**2 / mse.clamp(min=1e-30))).mean())


def _gaussian(image: Tensor, reference: Tensor, top: float) -> float:
    pairs = zip(reference.numpy(), image.numpy(), strict=True)
    return float(np.mean([structural_similarity(  # type: ignore[no-untyped-call]
        b, a, data_range=top, gaussian_weights=True) for b, a in pairs]))


def _slice_maximum(image: Tensor, reference: Tensor, top: float) -> float:
    del top
    pairs = zip(reference.numpy(), image.numpy(), strict=True)
    return float(np.mean([structural_similarity(  # type: ignore[no-untyped-call]
        b, a, data_range=max(float(b.max()), 1e-30)) for b, a in pairs]))


def _whole(image: Tensor, reference: Tensor, top: float) -> float:
    return float(structural_similarity(  # type: ignore[no-untyped-call]
        reference.numpy(), image.numpy(), data_range=top))


def _rows(x: Tensor) -> Tensor:
    height, width = 31 if x.shape[-1] < 40 else 40, 24 if x.shape[-1] < 40 else 40
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


WRONG_FASTMRI = {
    "mean of slice PSNRs": _fastmri_with(psnr=_slice_psnrs),
    "Gaussian window": _fastmri_with(ssim=_gaussian),
    "slice maximum": _fastmri_with(ssim=_slice_maximum),
    "SSIM in 3D": _fastmri_with(ssim=_whole),
    "crop to the reference's rows": _fastmri_with(crop=_rows),
    "maximum before the crop": _fastmri_with(limit=lambda _, __, whole: whole.max()),
    "maximum of the image": _fastmri_with(limit=lambda a, _, __: a.max()),
    "max - min": _fastmri_with(limit=lambda _, b, __: b.max() - b.min()),
    "magnitudes of real images": lambda a, b, **k: metrics.fastmri(a.abs(), b, **k)}


def test_fastmri_is_its_evaluation() -> None:
    check_fastmri(metrics.fastmri)
    check_fastmri(_fastmri_with())  # the plain second writing, of which the wrong ones are made


@pytest.mark.parametrize("name", WRONG_FASTMRI)
def test_wrong_fastmri_is_noticed(name: str) -> None:
    with pytest.raises(AssertionError):
        check_fastmri(WRONG_FASTMRI[name])


def test_fastmri_ssim_is_its_loss_and_not_torchmetrics_default() -> None:
    image, reference = three_by_forty()
    found = metrics.fastmri(image, reference)
    losses = pytest.importorskip("fastmri.losses", reason="needs fastmri 0.3.0")
    a, b = image.double()[:, None], reference.double()[:, None]
    loss = losses.SSIMLoss().double()(a, b, torch.full((3,), found.range, dtype=torch.float64))
    assert found.ssim == pytest.approx(1 - float(loss), rel=1e-6)
    functional = pytest.importorskip("torchmetrics.functional.image", reason="needs torchmetrics")
    other = functional.structural_similarity_index_measure(a, b, data_range=found.range)
    assert abs(found.ssim - float(other)) > 1e-4


def test_fastmri_from_stored_slices() -> None:
    for image, reference in (volumes(), three_by_forty()):
        whole = metrics.fastmri(image, reference)
        top = metrics.fastmri_maximum(reference)
        parts = [metrics.slice_sums(a, b, top) for a, b in zip(image, reference, strict=True)]
        stored = [SliceSums(**json.loads(json.dumps(part._asdict()))) for part in parts]
        joined = metrics.fastmri_from_slices(stored[::-1])
        assert numbers(joined) == pytest.approx(numbers(whole), rel=1e-12)
        assert joined[3:] == whole[3:]
        assert whole.range_source == "maximum of the reference volume"
        assert metrics.fastmri(image, reference, maximum=9.0).range_source == "given"
        assert metrics.fastmri_from_slices(stored[:3]).counted == 3


def check_whole(sums: Callable[..., SliceSums]) -> None:
    """Without the crop; landscape images, which it would refuse, and portrait ones."""
    _, reference = volumes()
    image = reference + 1e-5 * torch.rand(reference.shape, generator=torch.Generator())
    for a, b in ((image, reference), (image.mT, reference.mT)):
        top = float(b.max())
        found = metrics.fastmri_from_slices([sums(x, y, top) for x, y in zip(a, b, strict=True)])
        x, y = a.double().numpy(), b.double().numpy()
        ssim = np.mean([structural_similarity(  # type: ignore[no-untyped-call]
            q, p, data_range=top) for p, q in zip(x, y, strict=True)])
        psnr = peak_signal_noise_ratio(y, x, data_range=top)  # type: ignore[no-untyped-call]
        assert numbers(found) == pytest.approx(
            (((x - y) ** 2).sum() / (y**2).sum(), psnr, ssim), rel=1e-9)
        assert found.range_source == "maximum of the reference volume"


def test_slices_without_the_crop() -> None:
    check_whole(metrics.whole_slice_sums)
    with pytest.raises(AssertionError):
        check_whole(metrics.slice_sums)
    with pytest.raises(ValueError, match=r"one shape, got image \(31, 24\) and reference \(30"):
        metrics.whole_slice_sums(torch.ones(31, 24), torch.ones(30, 24), 1.0)


def test_slices_of_unlike_ranges_make_no_volume() -> None:
    image, reference = three_by_forty()
    pairs = list(zip(image, reference, strict=True))
    own = [metrics.slice_sums(a, b, float(b.max())) for a, b in pairs]
    with pytest.raises(ValueError, match="different ranges"):
        metrics.fastmri_from_slices(own)
    sizes = [metrics.slice_sums(x[:n, :n], x[:n, :n], 1.0) for n, x in ((30, image[0]),
                                                                       (40, image[1]))]
    with pytest.raises(ValueError, match="different numbers of pixels"):
        metrics.fastmri_from_slices(sizes)
    with pytest.raises(ValueError, match="at least one slice"):
        metrics.fastmri_from_slices([])


def test_the_conventions_on_the_same_arrays() -> None:
    """Reference figures of numpy and scikit-image for these arrays."""
    image, reference = three_by_forty()
    found = {name: score(image, reference) for name, score in metrics.CONVENTIONS.items()}
    assert all(found[name].convention == name for name in found)
    assert found["fastmri"].psnr == pytest.approx(31.790677, abs=5e-7)
    assert found["inversebench"].psnr == pytest.approx(30.8025566, abs=5e-7)
    assert found["dds"].psnr == pytest.approx(30.3761433, abs=5e-7)
    assert found["lodopab"].psnr == pytest.approx(30.6209641, abs=5e-7)
    assert math.isnan(found["dds"].ssim)
    assert math.isnan(found["inversebench"].nmse)
    # without the magnitude, the first slice alone differs by more than four decibels
    slices = found["dds"].slices
    assert slices is not None
    assert float(slices.psnr[0]) == pytest.approx(32.0330534, abs=5e-7)
    a, b = image[0].double(), reference[0].double()
    a, b = ((x - x.min()) / (x.max() - x.min()) for x in (a, b))
    assert float(-10 * (a - b).square().mean().log10()) == pytest.approx(27.4266942, abs=5e-7)


def _piq(image: Tensor, reference: Tensor) -> tuple[list[float], list[float]]:
    piq = pytest.importorskip("piq", reason="needs piq 0.8")
    pairs = [(a.clip(0, b.max())[None, None], b[None, None]) for a, b in zip(
        image.double(), reference.double(), strict=True)]
    return ([float(piq.psnr(a, b, data_range=b.max())) for a, b in pairs],
            [float(piq.ssim(a, b, data_range=b.max())) for a, b in pairs])


def check_inversebench(inversebench: Convention) -> None:
    rng = torch.Generator().manual_seed(2)
    for size, noise in (((40, 33), 0.2), ((384, 390), 0.1), ((640, 650), 0.1), ((64, 64), 1e-4)):
        reference = torch.rand(2, *size, generator=rng) * torch.tensor([1e-4, 3.0])[:, None, None]
        reference[0, 3, 3] = 2e-4
        image = reference + noise * reference.amax((-2, -1), True) * torch.randn(
            2, *size, generator=rng)
        found = inversebench(image, reference).slices
        assert found is not None
        psnr, ssim = _piq(image, reference)
        assert found.psnr.tolist() == pytest.approx(psnr, rel=1e-10)
        assert found.ssim.tolist() == pytest.approx(ssim, rel=1e-10)


def _inversebench_with(fault: str) -> Convention:
    """InverseBench's convention by scikit-image, with a fault."""

    def wrong(image: Tensor, reference: Tensor) -> Score:
        image, reference = image.double(), reference.double()
        dims = (-3, -2, -1) if fault == "volume maximum" else (-2, -1)
        peak = reference.amax(dims, True).expand(2, 1, 1)
        a = (image if fault == "not clipped" else image.clamp(min=0).minimum(peak)) / peak
        b = reference / peak
        eps = 0.0 if fault == "no eps" else 1e-8
        psnr = -10 * torch.log10((a - b).square().mean((-2, -1)) + eps)
        side = min(a.shape[-2:]) / 256
        pool = max(1, int(side + 0.4999) if fault == "rounded down" else round(side))
        pool = 1 if fault == "not pooled" else pool
        a, b = (torch.nn.functional.avg_pool2d(x[:, None], pool)[:, 0] for x in (a, b))
        window = {"win_size": 7} if fault == "uniform window" else {
            "gaussian_weights": True, "sigma": 1.5,
            "use_sample_covariance": fault == "sample covariance"}
        ssim = [structural_similarity(  # type: ignore[no-untyped-call]
            y.numpy(), x.numpy(), data_range=1.0, **window) for x, y in zip(a, b, strict=True)]
        slices = metrics.SliceScores(psnr, torch.tensor(ssim, dtype=torch.float64), peak.flatten())
        return Score(math.nan, 0, 0, 0, "", "", 2, slices)

    return wrong


def test_inversebench_is_piq() -> None:
    check_inversebench(metrics.inversebench)
    check_inversebench(_inversebench_with("none"))


@pytest.mark.parametrize("fault", ["volume maximum", "not clipped", "uniform window", "not pooled",
                                   "rounded down", "sample covariance", "no eps"])
def test_wrong_inversebench_is_noticed(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_inversebench(_inversebench_with(fault))


def test_inversebench_ssim_is_the_gaussian_one_of_skimage() -> None:
    image, reference = three_by_forty()
    found = metrics.inversebench(image, reference).slices
    assert found is not None
    for a, b, ssim in zip(image, reference, found.ssim, strict=True):
        top = float(b.max())
        wanted = structural_similarity(  # type: ignore[no-untyped-call]
            b.double().numpy(), a.double().clip(0, top).numpy(), data_range=top,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        assert float(ssim) == pytest.approx(wanted, rel=1e-10)


def _scaled(x: Tensor) -> Any:
    x = x.double()
    return ((x - x.min()) / (x.max() - x.min())).numpy()


def check_dds(dds: Convention) -> None:
    image, reference = three_by_forty()
    phase = torch.polar(torch.ones_like(image), 5 * image)
    for a, b in ((image, reference), (image.abs() * phase, reference * phase.conj())):
        wanted = [peak_signal_noise_ratio(  # type: ignore[no-untyped-call]
            _scaled(y.abs()), _scaled(x.abs())) for x, y in zip(a, b, strict=True)]
        found = dds(a, b)
        assert found.slices is not None
        assert found.slices.psnr.tolist() == pytest.approx(wanted, rel=1e-6)
        assert found.psnr == pytest.approx(np.mean(wanted), rel=1e-6)
        # what this convention hides
        assert dds(3 * a.abs() + 2, b).psnr == pytest.approx(found.psnr, rel=1e-6)


def _dds_with(fault: str) -> Convention:
    def wrong(image: Tensor, reference: Tensor) -> Score:
        dims = (-3, -2, -1) if fault == "of the volume" else (-2, -1)
        a, b = ((x.real if fault == "real part" else x.abs()).double() for x in (image, reference))
        low, high = b.amin(dims, True), b.amax(dims, True)
        b = (b - low) / (high - low)
        if fault != "the reference's scale":
            low, high = a.amin(dims, True), a.amax(dims, True)
        a = (a - low) / (high - low)
        psnr = -10 * (a - b).square().mean((-2, -1)).log10()
        slices = metrics.SliceScores(psnr, psnr, psnr)
        return Score(math.nan, float(psnr.mean()), 0, 1, "", "", 3, slices)

    return wrong


def test_dds_scales_each_image_by_itself() -> None:
    check_dds(metrics.dds)
    check_dds(_dds_with("none"))
    image, reference = three_by_forty()
    flat = torch.zeros_like(image)
    wanted = -10 * np.log10(np.mean(_scaled(reference[0]) ** 2))
    assert metrics.dds(flat[:1], reference[:1]).psnr == pytest.approx(wanted)


@pytest.mark.parametrize("fault", ["of the volume", "real part", "the reference's scale"])
def test_wrong_dds_is_noticed(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_dds(_dds_with(fault))


def check_lodopab(lodopab: Convention) -> None:
    image, reference = three_by_forty()
    image, reference = image - 0.5, reference - 0.5  # a range that is not the maximum
    for fixed in (None, 1.0):
        ranges = [float(b.max() - b.min()) if fixed is None else fixed for b in reference]
        trios = list(zip(image.double().numpy(), reference.double().numpy(), ranges, strict=True))
        psnr = [peak_signal_noise_ratio(b, a, data_range=w)  # type: ignore[no-untyped-call]
                for a, b, w in trios]
        ssim = [structural_similarity(a, b, data_range=w)  # type: ignore[no-untyped-call]
                for a, b, w in trios]
        found = lodopab(image, reference, data_range=fixed)
        assert found.slices is not None
        assert found.slices.psnr.tolist() == pytest.approx(psnr, rel=1e-6)
        assert found.slices.ssim.tolist() == pytest.approx(ssim, rel=1e-6)
        assert (found.psnr, found.ssim, found.range) == pytest.approx(
            (np.mean(psnr), np.mean(ssim), np.mean(ranges)), rel=1e-6)


def _maximum_only(image: Tensor, reference: Tensor, *, data_range: float | None = None) -> Score:
    each = [metrics.lodopab(a[None], b[None], data_range=data_range or float(b.max()))
            for a, b in zip(image, reference, strict=True)]
    psnr, ssim, wide = (torch.tensor([getattr(s, k) for s in each])
                        for k in ("psnr", "ssim", "range"))
    slices = metrics.SliceScores(psnr, ssim, wide)
    return Score(math.nan, float(psnr.mean()), float(ssim.mean()), 0, "", "", 3, slices)


def test_lodopab_is_that_of_dival() -> None:
    check_lodopab(metrics.lodopab)
    for wrong in (_maximum_only, lambda a, b, **_: metrics.lodopab(a, b, data_range=1.0)):
        with pytest.raises(AssertionError):
            check_lodopab(wrong)


def test_complex_images_count_by_magnitude() -> None:
    image, reference = three_by_forty()
    phase = torch.polar(torch.ones_like(image), 5 * image)
    for name in ("fastmri", "inversebench", "dds"):
        score = metrics.CONVENTIONS[name]
        found, wanted = score(image * phase, reference), score(image.abs(), reference)
        assert found.psnr == pytest.approx(wanted.psnr, rel=1e-6)
    with pytest.raises(TypeError, match="lodopab wants real images"):
        metrics.lodopab(image * phase, reference)


def test_slices_without_contrast_leave_a_volume_standing() -> None:
    image, reference = (torch.cat([x, 0 * x[:1]]) for x in three_by_forty())
    for name in ("inversebench", "dds", "lodopab"):
        score = metrics.CONVENTIONS[name]
        found, without = score(image, reference), score(image[:3], reference[:3])
        assert (found.counted, without.counted) == (3, 3)
        assert (found.psnr, found.range) == (without.psnr, without.range)
        assert found.slices is not None
        assert found.slices.psnr.isnan().tolist() == [False, False, False, True]
        with pytest.raises(ValueError, match="every slice of the reference is constant"):
            score(image[3:], reference[3:])
    whole = metrics.fastmri(image, reference)
    assert whole.counted == 4
    assert whole.ssim == pytest.approx((3 * metrics.fastmri(image[:3], reference[:3]).ssim + 1) / 4)
    with pytest.raises(ValueError, match="range > 0, got 0: is the reference all zero"):
        metrics.fastmri(image[3:], reference[3:])
    with pytest.raises(ValueError, match="range > 0, got 0: is the reference all zero"):
        metrics.fastmri_maximum(reference[3:])
    with pytest.raises(ValueError, match="zero everywhere and NMSE is undefined"):
        metrics.fastmri(image[3:], reference[3:], maximum=1.0)


def test_identical_images() -> None:
    _, reference = three_by_forty()
    found = {name: score(reference, reference) for name, score in metrics.CONVENTIONS.items()}
    assert numbers(found["fastmri"]) == pytest.approx((0, math.inf, 1))
    assert (found["dds"].psnr, found["lodopab"].psnr) == (math.inf, math.inf)
    assert found["inversebench"].psnr == pytest.approx(80)


@pytest.mark.parametrize("name", metrics.CONVENTIONS)
def test_what_cannot_be_scored_is_refused(name: str) -> None:
    score = metrics.CONVENTIONS[name]
    image, reference = three_by_forty()
    for bad in (torch.nan, torch.inf):
        spoilt = image.clone()
        spoilt[2, 0, 20] = bad
        with pytest.raises(ValueError, match=f"{name}: the image holds NaN or infinity in slice 2"):
            score(spoilt, reference)
        with pytest.raises(ValueError, match=f"{name}: the reference holds NaN .* slice 2"):
            score(image, spoilt)
    with pytest.raises(ValueError, match=r"want image \(slices, height, width\), got \(40, 40\)"):
        score(image[0], reference[0])
    with pytest.raises(ValueError, match=f"{name}: .*slices|one shape"):
        score(image[:2], reference)
    if name != "dds":
        with pytest.raises(ValueError, match=r"at least (7 x 7|11 x 11), got \(6, 6\)"):
            score(image[:, :6, :6], reference[:, :6, :6])


def test_fastmri_wants_images_that_hold_the_square() -> None:
    image, reference = three_by_forty()
    with pytest.raises(ValueError, match=r"40 x 40 square .* the image is \(40, 30\)"):
        metrics.fastmri(image[..., :30], reference)
    with pytest.raises(ValueError, match=r"40 x 40 square .* the reference is \(30, 40\)"):
        metrics.fastmri(image, reference[:, :30])
    with pytest.raises(ValueError, match="references >= 0"):
        metrics.inversebench(image, reference - 1)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="range > 0"):
            metrics.fastmri(image, reference, maximum=bad)
        with pytest.raises(ValueError, match="range > 0"):
            metrics.lodopab(image, reference, data_range=bad)
