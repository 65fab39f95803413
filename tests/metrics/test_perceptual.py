"""LPIPS with a stand-in for its network: shapes, ranges, and the package's own arithmetic."""

import builtins
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recon import metrics

package = pytest.importorskip("lpips", reason="needs lpips 0.1.4")


class Layers(nn.Module):
    """Random features with the channels of AlexNet."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.kernels = [torch.randn(n, 3, 3, 3, generator=rng) for n in (64, 192, 384, 256, 256)]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.conv2d(x, k, stride=2).relu() for k in self.kernels]


BACKBONE = Layers()


@pytest.fixture(scope="module")
def model() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    made.net = BACKBONE
    return made


def pictures() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    reference = 3e-4 * torch.rand(2, 20, 18, generator=rng)
    return reference + 3e-5 * torch.randn(2, 20, 18, generator=rng), reference


def check(lpips: Callable[..., metrics.Perceptual], model: Any) -> None:
    image, reference = pictures()
    for ends in ((0.0, 2e-4), (-1e-4, 4e-4)):
        a, b = (((x - ends[0]) / (ends[1] - ends[0])).clamp(0, 1)[:, None].expand(-1, 3, -1, -1)
                for x in (image, reference))
        with torch.no_grad():
            wanted = model(a, b, normalize=True).flatten()
        found = lpips(image, reference, data_range=ends, backbone=BACKBONE)
        torch.testing.assert_close(found.slices, wanted, rtol=1e-4, atol=0)
        assert found.mean == pytest.approx(float(wanted.mean()), rel=1e-4)
        outside = sum(int(((x < ends[0]) | (x > ends[1])).sum()) for x in (image, reference))
        assert found.clipped == pytest.approx(outside / 1440)
        assert (found.net, found.range) == ("alex", ends)


def test_lpips_is_that_of_its_package(model: Any) -> None:
    check(metrics.lpips, model)

    def unit(image: Tensor, reference: Tensor, **given: Any) -> metrics.Perceptual:
        """Images of [0, 1] where [-1, 1] is wanted."""
        low, high = given["data_range"]
        found = metrics.lpips(image, reference, data_range=(2 * low - high, high),
                              backbone=BACKBONE)
        return found._replace(range=given["data_range"])

    def own(image: Tensor, reference: Tensor, **given: Any) -> metrics.Perceptual:
        image = (image - image.min()) / (image.max() - image.min())
        low, high = given["data_range"]
        return metrics.lpips(low + image * (high - low), reference, **given)

    for wrong in (unit, own):
        with pytest.raises(AssertionError):
            check(wrong, model)


def test_zero_for_identical_images_and_symmetric() -> None:
    image, reference = pictures()
    same = metrics.lpips(reference, reference, data_range=3e-4, backbone=BACKBONE)
    assert (same.mean, same.slices.tolist(), same.range) == (0, [0, 0], (0, 3e-4))
    there, back = (metrics.lpips(*pair, data_range=3e-4, backbone=BACKBONE)
                   for pair in ((image, reference), (reference, image)))
    assert there.mean > 0.001
    torch.testing.assert_close(there.slices, back.slices)
    turned = metrics.lpips(image.abs() * torch.exp(4j * image / 1e-4), reference, data_range=3e-4,
                           backbone=BACKBONE)
    plain = metrics.lpips(image.abs(), reference, data_range=3e-4, backbone=BACKBONE)
    torch.testing.assert_close(turned.slices, plain.slices, rtol=1e-4, atol=0)


def test_what_lpips_cannot_use_is_refused() -> None:
    image, reference = pictures()
    with pytest.raises(ValueError, match=r"\(slices, height, width\) alike"):
        metrics.lpips(image, reference[:1], data_range=1)
    with pytest.raises(ValueError, match=r"\(slices, height, width\) alike"):
        metrics.lpips(image[0], reference[0], data_range=1)
    for bad in (0, -1.0, math.nan, (1.0, 1.0)):
        with pytest.raises(ValueError, match="data_range wants"):
            metrics.lpips(image, reference, data_range=bad)
    with pytest.raises(ValueError, match="net wants one of alex, vgg, squeeze, got 'resnet'"):
        metrics.lpips(image, reference, data_range=1, net="resnet")
    with pytest.raises(ValueError, match="the image holds NaN"):
        metrics.lpips(image / 0, reference, data_range=1)


def test_weights_or_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    image, reference = pictures()
    monkeypatch.setattr(package, "LPIPS", offline)
    with pytest.raises(OSError, match="weights of vgg could not be read or downloaded"):
        metrics.lpips(image, reference, data_range=1, net="vgg")
    imported = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "lpips":
            raise ImportError(name)
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "recon\[lpips\]"'):
        metrics.lpips(image, reference, data_range=1)
